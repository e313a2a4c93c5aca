package ledger

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// Log orders commands. The single-node one applies at once; a replicated one returns when a majority has the entry and this node has
// applied it. Errors: rpc.ErrNoQuorum and rpc.ErrNotLeader (nothing happened), rpc.ErrUnknownOutcome (ask again with the same id).
type Log interface {
	// Append puts one encoded command into the log and gives what applying it gave on this node. Called from any goroutine.
	Append(ctx context.Context, command []byte) (Outcome, error)
}

// Machine is what a Log drives: one call at a time, with indexes that only grow.
type Machine interface {
	// Apply applies the command at index. It fails only where this node's disk does; a command that is refused is an Outcome.
	Apply(index uint64, command []byte) (Outcome, error)
	// Applied is the newest index that is on this node's disk.
	Applied() uint64
}

// Outcome is what became of a command. Repeated means that its request id was known already.
type Outcome struct {
	Index    uint64
	Result   policy.Result
	Refused  string
	Repeated bool
}

// singleLog is the log of a cluster of one.
type singleLog struct {
	mu sync.Mutex
	m  Machine
}

// NewSingleLog is a Log without peers.
func NewSingleLog(m Machine) Log { return &singleLog{m: m} }

func (l *singleLog) Append(ctx context.Context, command []byte) (Outcome, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return Outcome{}, rpc.ErrUnavailable.With("the caller gave up before the command was looked at")
	}
	out, err := l.m.Apply(l.m.Applied()+1, command)
	if err != nil {
		return out, rpc.ErrUnknownOutcome.With("it is not known whether the command was done: %v; ask again with the same request id", err)
	}
	return out, nil
}

// machine is the state machine over the store.
type machine struct {
	l *Ledger
}

// commandDigest covers what makes two commands the same request: not the time, which a retry may state anew.
func commandDigest(c policy.Command) []byte {
	b, _ := json.Marshal(struct {
		Kind  policy.Kind
		Name  string
		Key   string
		Door  policy.Door
		Body  []byte
		Extra string
	}{c.Kind, c.Actor.Name, c.Actor.Key, c.Actor.Door, c.Body, "guardhouse command 1"})
	sum := sha256.Sum256(b)
	return sum[:]
}

// Applied is the newest index on the disk.
func (m machine) Applied() uint64 {
	m.l.mu.Lock()
	defer m.l.mu.Unlock()
	return m.l.index
}

// Apply decides and commits one command.
func (m machine) Apply(index uint64, command []byte) (Outcome, error) {
	var c policy.Command
	if err := json.Unmarshal(command, &c); err != nil {
		return Outcome{Index: index, Refused: "the command does not parse"}, nil
	}
	if out, known, err := m.repeated(c); known || err != nil {
		return out, err
	}
	l := m.l
	l.mu.Lock()
	old, node := l.state, ""
	delivered := l.delivered
	l.mu.Unlock()
	next, result, err := policy.Apply(old, c)
	out := Outcome{Index: index, Result: result}
	out.Result.Index = index
	if err != nil {
		next, out.Refused = old, err.Error()
	} else if c.Kind == policy.CmdSetup {
		node = result.Subject
	}
	ch := change{index: index, old: old, new: next, node: node, id: c.ID, delivered: delivered,
		result: stored{Index: index, Digest: commandDigest(c), Result: out.Result, Refused: out.Refused},
		audit:  outgoing{After: l.audit.Status().Last, Entry: l.commandEntry(c, out, err)}}
	if err := l.store.commit(ch); err != nil {
		l.resync(err)
		return out, err
	}
	l.mu.Lock()
	l.index, l.state = index, next
	l.delivered = slices.DeleteFunc(slices.Clone(l.delivered), func(i uint64) bool { return slices.Contains(delivered, i) })
	l.outbox[index] = ch.audit
	if node != "" {
		l.node = node
	}
	l.mu.Unlock()
	if out.Refused == "" {
		l.publish()
	}
	return out, nil
}

// repeated answers a request id that was seen before.
func (m machine) repeated(c policy.Command) (Outcome, bool, error) {
	r, ok, err := m.l.store.result(c.ID)
	if err != nil || !ok {
		return Outcome{}, false, err
	}
	out := Outcome{Index: r.Index, Result: r.Result, Refused: r.Refused, Repeated: true}
	if hex.EncodeToString(r.Digest) != hex.EncodeToString(commandDigest(c)) {
		out = Outcome{Index: r.Index, Refused: "this request id was used for another command; use a new one", Repeated: true}
	}
	return out, true, nil
}

// resync takes the store's word after a failed commit.
func (l *Ledger) resync(cause error) {
	l.cfg.Log("a commit failed: %v", cause)
	c, err := l.store.reread()
	if err != nil {
		l.setProblem(policy.Problem{Kind: "store-damaged", What: "the records can't be read: " + err.Error(), Remedy: storeRemedy})
		return
	}
	l.mu.Lock()
	for _, i := range l.delivered {
		delete(c.outbox, i)
	}
	l.index, l.state, l.node, l.outbox = c.index, c.state, c.node, c.outbox
	l.mu.Unlock()
	l.publish()
}

// commandEntry is the audit entry of a command; err is policy's refusal or nil.
func (l *Ledger) commandEntry(c policy.Command, out Outcome, err error) policy.AuditEntry {
	sum := sha256.Sum256(c.Body)
	actor := c.Actor
	e := policy.AuditEntry{Kind: policy.AuditCommand, At: c.At, BootTime: l.cfg.BootTime().Milliseconds(), Actor: &actor, Subject: out.Result.Subject,
		Action: string(c.Kind), Outcome: "ok", Detail: out.Result.Message, Policy: out.Index,
		Facts: map[string]string{factRequest: c.ID, "body-sha256": hex.EncodeToString(sum[:])}}
	if e.At.Boot == "" { // proposed before there was a trusted time
		e.At.Boot = l.cfg.Boot
	}
	if err != nil {
		e.Outcome, e.Detail = "refused", err.Error()
		var r *policy.Refused
		if errors.As(err, &r) {
			e.Detail, e.Remedy = r.Reason, r.Remedy
		}
	}
	return e
}

const factRequest = "request"

// Propose has a command applied, and its audit entry on the disk, before it returns. A refusal is rpc.ErrRefused with the reason and the
// remedy; it is recorded like a change. Asking again with the same id gives the first answer. The command is of the moment at which it is
// proposed, by the time that this node trusts.
func (l *Ledger) Propose(ctx context.Context, c policy.Command) (uint64, policy.Result, error) {
	if err := l.ready(); err != nil {
		return 0, policy.Result{}, err
	}
	if !validID(c.ID) {
		return 0, policy.Result{}, rpc.ErrRefused.With("the request id is not 32 lower-case hex digits")
	}
	if len(c.Body) > policy.MaxCommandSize || len(c.Kind) > 64 {
		return 0, policy.Result{}, rpc.ErrRefused.With("the command is larger than 1 MiB")
	}
	if err := l.audit.Admits(policy.AuditCommand); err != nil {
		return 0, policy.Result{}, rpc.ErrUnavailable.With("nothing may be changed that can't be recorded: %v", err)
	}
	state, _ := l.Snapshot()
	// Whatever the sender says:
	c.Stragglers = state.State.Stragglers(c, l.observed.lastOfHost())
	c.At, _ = l.stamp()
	if slices.Contains(primaries, c.Kind) {
		if err := l.gatePrimary(ctx, c); err != nil {
			return 0, policy.Result{}, err
		}
	}
	b, err := json.Marshal(c)
	if err != nil {
		return 0, policy.Result{}, rpc.ErrRefused.With("the command does not encode: %v", err)
	}
	out, err := l.log.Append(ctx, b)
	if err != nil {
		return 0, policy.Result{}, err
	}
	if err := l.deliver(out.Index); err != nil {
		return out.Index, out.Result, rpc.ErrUnknownOutcome.With("the command was decided at %d, but its audit entry is not on the disk: %v", out.Index, err)
	}
	if out.Refused != "" {
		return out.Index, policy.Result{}, rpc.ErrRefused.With("%s", out.Refused)
	}
	return out.Index, out.Result, nil
}

func validID(id string) bool {
	b, err := hex.DecodeString(id)
	return err == nil && len(b) == 16 && hex.EncodeToString(b) == id
}

// deliver moves an audit entry from the outbox into the chain, if it is not there yet. It does not end with its caller: an entry that
// was begun is finished.
func (l *Ledger) deliver(index uint64) error {
	l.deliverMu.Lock()
	defer l.deliverMu.Unlock()
	l.mu.Lock()
	o, ok := l.outbox[index]
	l.mu.Unlock()
	if !ok {
		return nil
	}
	if _, err := l.audit.Append(context.Background(), o.Entry); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.outbox, index)
	l.delivered = append(l.delivered, index)
	return nil
}

// repairAudit finishes what a crash between a commit and its audit entry left: entries in the outbox that the chain does not hold.
func (l *Ledger) repairAudit() error {
	l.mu.Lock()
	waiting := make(map[uint64]outgoing, len(l.outbox))
	from := ^uint64(0)
	for i, o := range l.outbox {
		waiting[i] = o
		from = min(from, o.After+1)
	}
	l.mu.Unlock()
	if len(waiting) == 0 {
		return nil
	}
	records, err := l.audit.Since(from)
	if err != nil {
		return fmt.Errorf("read the audit: %w", err)
	}
	held := map[string]bool{}
	for _, r := range records {
		if r.Entry.Kind == policy.AuditCommand {
			held[fmt.Sprint(r.Entry.Policy, r.Entry.Facts[factRequest])] = true
		}
	}
	for i, o := range waiting {
		if held[fmt.Sprint(o.Entry.Policy, o.Entry.Facts[factRequest])] {
			l.mu.Lock()
			delete(l.outbox, i)
			l.delivered = append(l.delivered, i)
			l.mu.Unlock()
			continue
		}
		if err := l.deliver(i); err != nil {
			return err
		}
	}
	return nil
}
