package ledger

import (
	"context"
	"maps"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// factEvent is the fact that holds the ID of an entry that is written once. Entries with it come from auditOnce only, so nobody else can
// make an event look written.
const factEvent = "event"

const maxEventID = 128

// Bounds of what is read of the chain at once.
const (
	onceRecords = 256
	onceBytes   = 256 << 10
)

// auditOnce writes an entry unless the chain has one with its ID after number req.After; then that one's receipt is the answer. What is
// begun is finished although the caller goes, so that the same question asked again finds it.
func (l *Ledger) auditOnce(ctx context.Context, req rpc.AuditOnce) (policy.AuditReceipt, error) {
	e := req.Entry
	if n := len(req.ID); n == 0 || n > maxEventID {
		return policy.AuditReceipt{}, rpc.ErrRefused.With("the ID of an entry has 1 to %d bytes, and this one has %d", maxEventID, n)
	}
	if len(e.Facts) >= policy.MaxAuditFacts {
		return policy.AuditReceipt{}, rpc.ErrRefused.With("an entry that is written once has at most %d facts", policy.MaxAuditFacts-1)
	}
	l.onceMu.Lock()
	defer l.onceMu.Unlock()
	r, found, err := l.findEvent(ctx, req.ID, req.After)
	if found || err != nil {
		return r, err
	}
	facts := map[string]string{factEvent: req.ID}
	maps.Copy(facts, e.Facts)
	e.Facts = facts
	r, err = l.audit.Append(context.WithoutCancel(ctx), l.stamped(e))
	return r, auditError(err)
}

// findEvent reads the chain in pages: it may be large.
func (l *Ledger) findEvent(ctx context.Context, id string, after uint64) (policy.AuditReceipt, bool, error) {
	for in := l.audit.NewReader(after); ; {
		records, _, more, err := in.Next(onceRecords, onceBytes)
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return policy.AuditReceipt{}, false, err
		}
		for _, r := range records {
			if r.Entry.Kind == policy.AuditSystem && r.Entry.Facts[factEvent] == id {
				return policy.AuditReceipt{Seq: r.Seq, Hash: r.Hash}, true, nil
			}
		}
		if more != nil {
			return policy.AuditReceipt{}, false, nil
		}
	}
}
