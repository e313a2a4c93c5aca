package ledger

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"

	"guardhouse/appliance/audit"
	"guardhouse/appliance/disk"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// The audit's way to a collector. The durable chain itself is the queue: the process forward takes pages of it, and this file remembers
// how far a collector has got. Nothing here is on the way of a request: whoever appends neither waits for this nor knows of it.

// Bounds of a page.
const (
	forwardRecords = 256
	forwardBytes   = 256 << 10
	forwardWait    = 10 * time.Second
)

const (
	forwardSave   = 2 * time.Second  // the position is written at most this often: a crash repeats what was sent meanwhile
	forwardSilent = time.Minute      // after that a process that asked for nothing counts as gone
	forwardLate   = 10 * time.Minute // a connected collector that took nothing for so long while records wait is a problem
)

// KindSyslog is the problem of a collector that does not get the audit.
const KindSyslog = "audit-syslog"

// forward is the state of the sending. Position is the last record that a collector has.
type forward struct {
	path  string
	log   *audit.Log
	clock func() time.Duration

	mu       sync.Mutex
	kept     forwardFile
	saved    forwardFile
	savedAt  time.Duration
	opened   string // target for which the process may leave the node, "?" = not known
	reader   *audit.Reader
	reading  bool
	furthest uint64             // that was read since the start
	state    rpc.ForwardRequest // the newest report
	asked    time.Duration      // when; -1 = never
	progress time.Duration      // when Position last moved, or nothing was waiting
}

type forwardFile struct {
	Position uint64 `json:"position"`
	Skipped  uint64 `json:"skipped"`
}

// openForward reads the position. One that is lost or damaged sends everything again: a collector knows records by their number.
func openForward(path string, log *audit.Log, clock func() time.Duration) *forward {
	f := &forward{path: path, log: log, clock: clock, asked: -1, opened: "?", progress: clock()}
	if b, err := os.ReadFile(path); err == nil && json.Unmarshal(b, &f.kept) != nil {
		f.kept = forwardFile{}
	}
	f.kept.Position = min(f.kept.Position, log.Status().Last)
	f.saved = f.kept
	return f
}

// targetOf names a collector's settings, with what this node shows it; it is empty where there is none.
func targetOf(s *policy.Syslog, client [][]byte) string {
	if s == nil {
		return ""
	}
	b, _ := json.Marshal(struct {
		*policy.Syslog
		Client [][]byte `json:"client,omitempty"`
	}{s, client})
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

// Forward is one turn of the process forward.
func (l *Ledger) Forward(ctx context.Context, req rpc.ForwardRequest) (rpc.ForwardReply, error) {
	whole := ctx
	ctx, cancel := context.WithTimeout(ctx, min(max(req.Wait, 0), forwardWait))
	defer cancel()
	first := true
	for {
		s, changed := l.Snapshot()
		var r rpc.ForwardReply
		if s.State.SetUp() {
			node := s.State.Nodes[s.NodeID]
			r.Syslog, r.Node = s.State.Service.Syslog, node.Name
			r.Host = syslogHost(s.State, node)
			r.Client = node.SyslogCertificates()
		}
		r.Target = targetOf(r.Syslog, r.Client)
		if first {
			l.forward.report(req, r.Target)
			first = false
		}
		r.Position = l.forward.position()
		if req.Start {
			r.Peers, r.Unreachable = l.reach(whole, r.Syslog, r.Target)
		}
		if req.Start || r.Target != req.Target {
			return r, nil
		}
		var more <-chan struct{}
		if !req.Idle && r.Syslog != nil {
			var err error
			if r.Records, r.Skipped, more, err = l.forward.page(req.After); err != nil {
				return r, fmt.Errorf("read the audit: %w", err)
			}
			if len(r.Records) > 0 {
				return r, nil
			}
		}
		select {
		case <-ctx.Done():
			return r, nil
		case <-changed:
		case <-more:
		}
	}
}

// reach has init let the process forward connect to the collector and to nothing else. A collector's name is looked up anew for each
// connection; that there is none any more is told once.
func (l *Ledger) reach(ctx context.Context, s *policy.Syslog, target string) (peers []string, unreachable string) {
	f := l.forward
	if l.cfg.Reach == nil || s == nil && f.isOpenFor(target) {
		return nil, ""
	}
	ctx, cancel := context.WithTimeout(ctx, forwardWait)
	defer cancel()
	address := ""
	if s != nil {
		address = s.Address
	}
	peers, err := l.cfg.Reach(ctx, address)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.opened = target; err != nil {
		f.opened = "?"
		return nil, err.Error()
	}
	return peers, ""
}

func (f *forward) isOpenFor(target string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.opened == target
}

// report takes what became of earlier records.
func (f *forward) report(req rpc.ForwardRequest, target string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = f.clock()
	if req.Target != target || target == "" {
		f.state = rpc.ForwardRequest{}
		return
	}
	f.state = req
	if last := f.log.Status().Last; req.Acked > f.kept.Position && req.Acked <= last {
		f.kept.Position, f.progress = req.Acked, f.asked
	} else if f.kept.Position >= last {
		f.progress = f.asked
	}
	if f.asked-f.savedAt >= forwardSave {
		// A disk that refuses this is the audit's own problem, told there; the position lives in memory meanwhile.
		_ = f.save()
	}
}

// save writes the position where it has changed; f.mu is held.
func (f *forward) save() error {
	if f.kept == f.saved {
		return nil
	}
	b, err := json.Marshal(f.kept)
	if err == nil {
		err = disk.ReplaceFile(f.path, b)
	}
	if err == nil {
		f.saved, f.savedAt = f.kept, f.clock()
	}
	return err
}

func (f *forward) position() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.kept.Position
}

// page reads the records after a number. Only one call reads at a time: a second one finds nothing for now.
func (f *forward) page(after uint64) (records []rpc.AuditRecord, skipped uint64, more <-chan struct{}, err error) {
	f.mu.Lock()
	if f.reading {
		f.mu.Unlock()
		return nil, 0, nil, nil
	}
	f.reading = true
	if f.reader == nil || f.reader.At() != after {
		f.reader = f.log.NewReader(after)
	}
	reader := f.reader
	f.mu.Unlock()
	read, skipped, more, err := reader.Next(forwardRecords, forwardBytes)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reading = false
	if at := reader.At(); at > f.furthest { // what is read again after a lost connection was counted before
		f.kept.Skipped += skipped
		f.furthest = at
	}
	for _, r := range read {
		records = append(records, rpc.AuditRecord{Seq: r.Seq, Prev: r.Prev, Hash: r.Hash, Entry: r.Entry})
	}
	return records, skipped, more, err
}

// status tells how far the collector is, and what is wrong with that.
func (f *forward) status(s policy.Syslog, client [][]byte, a audit.Status) (rpc.SyslogStatus, *policy.Problem) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.clock()
	st := rpc.SyslogStatus{Address: s.Address, Position: f.kept.Position, Skipped: f.kept.Skipped}
	if a.Last > st.Position {
		st.Behind = a.Last - st.Position
	}
	p := policy.Problem{Kind: KindSyslog, Remedy: "the collector gets everything once it is back, hosts notice nothing; see audit syslog show, then audit syslog test"}
	behind := fmt.Sprintf("; records behind: %d", st.Behind)
	switch {
	case f.asked < 0 || now-f.asked > forwardSilent:
		if now < forwardSilent {
			return st, nil // the process has just been started
		}
		p.What, p.Remedy = "the process forward asks for nothing"+behind, "it is restarted by itself; if this stays, see log show forward"
		return st, &p
	case f.state.Target != targetOf(&s, client):
		return st, nil // it has just been set
	}
	st.Connected, st.LastError = f.state.Connected, f.state.Error
	switch {
	case !st.Connected && st.LastError != "":
		p.What = "the audit does not get to " + s.Address + ": " + st.LastError + behind
	case st.Behind > 0 && now-f.progress > forwardLate:
		p.What = "the collector " + s.Address + " takes nothing although it is connected" + behind
	default:
		return st, nil
	}
	return st, &p
}

func (f *forward) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.save()
}
