package ledger

import (
	"sync"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// A grant that is not recorded is not given, so whoever fills the audit shuts the others out. While half of the space is free everybody
// may use it; in the second half each host has a rate of its own, far above what a host needs, and the others go on.
const (
	shareBurst  = 2048            // grants of one host at once: every machine of a large host starts
	shareRefill = 2 * time.Second // then one each: about 50 MB in a day
	shareHosts  = 32 << 10        // kept apart; more share one rate
	shareOthers = "\x00others"
)

// shares are the rates by host. Safe for concurrent use.
type shares struct {
	mu    sync.Mutex
	hosts map[string]*share
}

type share struct {
	tokens float64
	filled time.Duration
}

// take counts a grant of the host at now and reports whether it is within the host's rate.
func (s *shares) take(host string, now time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.hosts[host]
	if h == nil {
		if len(s.hosts) >= shareHosts {
			s.forget(now)
		}
		if len(s.hosts) >= shareHosts {
			host = shareOthers
			h = s.hosts[host]
		}
	}
	if h == nil {
		h = &share{tokens: shareBurst, filled: now}
		if s.hosts == nil {
			s.hosts = map[string]*share{}
		}
		s.hosts[host] = h
	}
	h.tokens = min(shareBurst, h.tokens+float64(now-h.filled)/float64(shareRefill))
	h.filled = now
	if h.tokens < 1 {
		return false
	}
	h.tokens--
	return true
}

// forget drops hosts that have their whole burst again.
func (s *shares) forget(now time.Duration) {
	for k, h := range s.hosts {
		if h.tokens+float64(now-h.filled)/float64(shareRefill) >= shareBurst {
			delete(s.hosts, k)
		}
	}
}

// checkShare refuses a grant of a host that has used up its share of an audit that is running full. The request gets the protocol's
// retryable error; nothing was granted.
func (l *Ledger) checkShare(e policy.AuditEntry) error {
	if e.Kind != policy.AuditGrant {
		return nil
	}
	within := l.shares.take(e.Subject, l.cfg.BootTime())
	if s := l.audit.Status(); within || s.Bytes <= s.Quota/2 {
		return nil
	}
	return rpc.ErrUnavailable.With("the audit is half full and this host has used up its share of it (one grant in %s); run audit export, then audit trim, and see what the host does", shareRefill)
}
