package attest

import (
	"sync"
	"time"

	"guardhouse/appliance/evidence"
)

// nonces remembers which contexts were answered, for at least as long as they
// are valid, in two generations: a generation ends after that time or when it
// is full, and then the one before it is forgotten. A flood can make it forget
// early; what that costs is said in tpm.go.
type nonces struct {
	mu              sync.Mutex
	started         time.Duration
	current, former map[[12]byte]struct{}
}

// maxNonces bounds a generation; both together take about 2 MiB.
const maxNonces = 32 << 10

// nonceLife is the life of a context, with what the nodes' clocks may differ by.
const nonceLife = evidence.SessionLifetime + 20*time.Second

// first remembers a nonce and reports whether it is new. now is CLOCK_BOOTTIME.
func (n *nonces) first(nonce [12]byte, now time.Duration) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if now-n.started >= nonceLife || len(n.current) >= maxNonces || n.current == nil {
		if now-n.started >= 2*nonceLife {
			n.current = nil
		}
		n.former, n.current, n.started = n.current, make(map[[12]byte]struct{}), now
	}
	if _, ok := n.current[nonce]; ok {
		return false
	}
	if _, ok := n.former[nonce]; ok {
		return false
	}
	n.current[nonce] = struct{}{}
	return true
}
