package ledger

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// TestAnEventIsInTheAuditOnce: whoever asks again after a power cut, or because an answer was lost, gets the receipt of the first entry.
func TestAnEventIsInTheAuditOnce(t *testing.T) {
	b := newBench(t)
	ctx := context.Background()
	good := rpc.AuditOnce{ID: "boot-1 update.good", After: b.l.Status().AuditSeq, Entry: policy.AuditEntry{Kind: policy.AuditSystem, Action: "update.good", Outcome: "ok", Facts: map[string]string{"release": "7"}}}
	first, err := b.l.auditOnce(ctx, good)
	if err != nil {
		t.Fatal(err)
	}
	for i := range onceRecords + 10 { // more than one page
		if _, err := b.l.audit.Append(ctx, b.l.stamped(policy.AuditEntry{Kind: policy.AuditSystem, Action: "start", Outcome: "ok", Facts: map[string]string{"n": fmt.Sprint(i)}})); err != nil {
			t.Fatal(err)
		}
	}
	for _, after := range []uint64{good.After, 0} {
		b.crash()
		good.After = after
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				if again, err := b.l.auditOnce(ctx, good); err != nil || again != first {
					t.Errorf("after %d: %+v, %v instead of %+v", after, again, err, first)
				}
			})
		}
		all.Wait()
	}
	other := good
	other.ID = "boot-2 update.good"
	if r, err := b.l.auditOnce(ctx, other); err != nil || r.Seq <= first.Seq {
		t.Errorf("another boot's event: %+v, %v", r, err)
	}
	entries := b.audited("update.good")
	if len(entries) != 2 || entries[0].Facts[factEvent] != "boot-1 update.good" || entries[0].Facts["release"] != "7" {
		t.Errorf("%+v", entries)
	}
	// The position of a chain that does not exist any more, as after a restored backup.
	good.After = 1 << 40
	if _, err := b.l.auditOnce(ctx, good); err != nil {
		t.Error(err)
	}
}

// TestNobodyMakesAnEventLookWritten: an entry with an event's ID, by whoever, would keep the true one out.
func TestNobodyMakesAnEventLookWritten(t *testing.T) {
	b := newBench(t)
	s := rpc.NewServer(rpc.UIDs{rpc.Init: uint32(os.Getuid())})
	b.l.Register(s)
	path := filepath.Join(t.TempDir(), "ledger.sock")
	l, err := rpc.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ctx, l) }()
	t.Cleanup(func() { cancel(); <-done })
	client := rpc.NewProvedClient(path, uint32(os.Getuid()))
	defer client.Close()
	entry := func(change func(*policy.AuditEntry)) policy.AuditEntry {
		e := policy.AuditEntry{Kind: policy.AuditSystem, Action: "update.good", Outcome: "ok"}
		change(&e)
		return e
	}
	many := map[string]string{}
	for i := range policy.MaxAuditFacts {
		many[fmt.Sprint(i)] = "x"
	}
	claimed := entry(func(e *policy.AuditEntry) { e.Facts = map[string]string{factEvent: "boot-1 update.good"} })
	if _, err := rpc.LedgerAudit.Call(ctx, client, claimed); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("an entry with an event's ID: %v", err)
	}
	for name, req := range map[string]rpc.AuditOnce{
		"no ID":         {Entry: entry(func(*policy.AuditEntry) {})},
		"long ID":       {ID: string(make([]byte, maxEventID+1)), Entry: entry(func(*policy.AuditEntry) {})},
		"another kind":  {ID: "x", Entry: entry(func(e *policy.AuditEntry) { e.Kind = policy.AuditCommand })},
		"the ledger's":  {ID: "x", Entry: entry(func(e *policy.AuditEntry) { e.Action = floorAction })},
		"its own event": {ID: "x", Entry: claimed},
		"full of facts": {ID: "x", Entry: entry(func(e *policy.AuditEntry) { e.Facts = many })},
	} {
		if _, err := rpc.LedgerAuditOnce.Call(ctx, client, req); !errors.Is(err, rpc.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := len(b.audited("update.good")); n != 0 {
		t.Errorf("%d entries were written", n)
	}
	if _, err := rpc.LedgerAuditOnce.Call(ctx, client, rpc.AuditOnce{ID: "x", Entry: entry(func(*policy.AuditEntry) {})}); err != nil {
		t.Errorf("init's own: %v", err)
	}
}
