package verb

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// Node is what the console knows of its node and how it speaks to it: one client for each process, the newest records and the trusted
// time. Make it with its exported fields, then run Watch. It is safe for concurrent use.
type Node struct {
	Ledger, HSM, Clock, Init *rpc.Client
	Forward                  *rpc.Client
	Stamp                    func() policy.Stamp  // trusted time now, as rpc.TimeSource gives it
	Boottime                 func() time.Duration // CLOCK_BOOTTIME
	Random                   io.Reader            // request ids, challenges
	Evaluation               bool                 // the image is signed with keys for trying out: see EvaluationLine

	mu       sync.Mutex
	snapshot policy.Snapshot
	known    bool
	silent   bool // the ledger was heard once and does not answer now
	changed  chan struct{}
}

// Watch follows the records until ctx ends.
func (n *Node) Watch(ctx context.Context) error {
	return rpc.LedgerWatch.Follow(ctx, n.Ledger, rpc.Empty{}, func(s policy.Snapshot) error {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.snapshot, n.known, n.silent = s, true, false
		if n.changed != nil {
			close(n.changed)
			n.changed = nil
		}
		return nil
	}, func(error) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.silent = n.known
	})
}

// Silent reports whether the ledger, which was heard once, does not answer now: then nobody can log in at the serial line.
func (n *Node) Silent() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.silent
}

// Snapshot is the newest records; known is false until the ledger has sent them once. Treat it as immutable.
func (n *Node) Snapshot() (s policy.Snapshot, known bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.snapshot, n.known
}

// Changed is closed when newer records arrive.
func (n *Node) Changed() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.changed == nil {
		n.changed = make(chan struct{})
	}
	return n.changed
}

// Self is this node's record.
func (n *Node) Self() (policy.Node, bool) {
	s, _ := n.Snapshot()
	node, ok := s.State.Nodes[s.NodeID]
	return node, ok
}

// ID makes a request or session id: 16 random bytes in hex.
func (n *Node) ID() (string, error) {
	var b [16]byte
	if _, err := io.ReadFull(n.Random, b[:]); err != nil {
		return "", fmt.Errorf("read randomness: %w", err)
	}
	return hex.EncodeToString(b[:]), nil
}

// reached waits a moment until the records are at least at index, so that what a person just changed shows in their next question.
func (n *Node) reached(ctx context.Context, index uint64) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for {
		changed := n.Changed()
		if s, _ := n.Snapshot(); s.Index >= index {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// Done is the value of a verb that changed something.
type Done struct {
	Message string `json:"message"`
	Index   uint64 `json:"index"`
	Subject string `json:"subject,omitempty"`
}

const proposeLimit = 30 * time.Second

// propose sends one change to the ledger in the name of the session. Where it is not known whether the change was made, it asks once
// more with the same request id, which changes nothing twice.
func propose(ctx context.Context, s *Session, kind policy.Kind, body any) (Output, policy.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, proposeLimit)
	defer cancel()
	raw, err := json.Marshal(body)
	if err != nil {
		return Output{}, policy.Result{}, fmt.Errorf("encode the command: %w", err)
	}
	id, err := s.Node.ID()
	if err != nil {
		return Output{}, policy.Result{}, err
	}
	c := policy.Command{ID: id, Kind: kind, Actor: s.Actor, At: s.Node.Stamp(), Body: raw}
	r, err := rpc.LedgerPropose.Call(ctx, s.Node.Ledger, c)
	if f := new(Failure); err != nil {
		if f = Explain(err); f.Kind == rpc.ErrLost.Kind || f.Kind == rpc.ErrUnknownOutcome.Kind {
			select {
			case <-time.After(500 * time.Millisecond):
			case <-ctx.Done():
			}
			r, err = rpc.LedgerPropose.Call(ctx, s.Node.Ledger, c)
		}
	}
	if err != nil {
		return Output{}, policy.Result{}, err
	}
	s.Node.reached(ctx, r.Index)
	page := new(Page).Line("%s", r.Message)
	return Output{Text: page, Value: Done{r.Message, r.Index, r.Subject}}, r, nil
}

// audit records what has no command of its own, for example a reboot.
func (s *Session) audit(ctx context.Context, kind policy.AuditKind, action, outcome, detail string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	snapshot, _ := s.Node.Snapshot()
	actor := s.Actor
	_, err := rpc.LedgerAudit.Call(ctx, s.Node.Ledger, policy.AuditEntry{
		Kind: kind, At: s.Node.Stamp(), BootTime: s.Node.Boottime().Milliseconds(), Actor: &actor, Source: s.Source,
		Subject: actor.Name, Action: action, Outcome: outcome, Detail: detail, Policy: snapshot.Index,
	})
	return err
}

// AuditLogin records that a door opened, closed or refused. outcome is "ok" or the reason's kind; count sums what was not written.
func (s *Session) AuditLogin(ctx context.Context, action, outcome, detail string) error {
	return s.audit(ctx, policy.AuditLogin, action, outcome, detail)
}

// when shows a stamp, and whether people said what time it was.
func when(s policy.Stamp) string {
	if s.Latest == 0 {
		return "time not known"
	}
	text := time.UnixMilli((s.Earliest + s.Latest) / 2).UTC().Format("2006-01-02 15:04:05 UTC")
	if s.Manual {
		text += " (manual)"
	}
	return text
}

// whenWithin also shows by how much the stamp may be wrong.
func whenWithin(s policy.Stamp) string {
	if s.Latest == 0 {
		return when(s)
	}
	return fmt.Sprintf("%s +-%s", when(s), time.Duration((s.Latest-s.Earliest+1)/2)*time.Millisecond)
}

// span shows a duration without fractions of a second.
func span(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days %d h", int(d.Hours())/24, int(d.Hours())%24)
	case d >= time.Hour:
		return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
	case d >= time.Minute:
		return fmt.Sprintf("%d min %d s", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%d s", int(d.Seconds()))
}
