package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/clock"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// still is a clock.Clock that nobody may set.
type still struct{ start time.Time }

func (s still) Read() clock.Reading {
	d := time.Since(s.start) + time.Hour
	return clock.Reading{Raw: d, Boot: d, Wall: s.start.Add(d)}
}
func (still) Step(time.Time) error { return errors.New("not permitted") }
func (still) Rate(float64) error   { return errors.New("not permitted") }
func (still) Applied() float64     { return 0 }

// serve starts the rpc server for a caller that is the named process.
func serve(t *testing.T, caller string, admins *administered) (*clock.Keeper, *rpc.Client) {
	t.Helper()
	k := clock.New()
	k.Clock, k.Boot, k.Build, k.Log = still{time.Now()}, "boot", time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), t.Logf
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "clock.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := rpc.Listen(rpc.SocketPath(dir, rpc.Clock))
	if err != nil {
		t.Fatal(err)
	}
	uid := uint32(os.Getuid())
	done := make(chan struct{})
	ctx := t.Context()
	go func() { defer close(done); server(rpc.UIDs{caller: uid}, k, admins).Serve(ctx, l) }()
	c := rpc.NewProvedClient(rpc.SocketPath(dir, rpc.Clock), uid)
	t.Cleanup(func() { c.Close(); <-done })
	return k, c
}

// TestOnlyTheLedgerDecidesWhereThereAreAdministrators: init has checked the recovery secret, which counts where nobody can be asked, and for
// a time alone. The console's own word counts for nothing.
func TestOnlyTheLedgerDecidesWhereThereAreAdministrators(t *testing.T) {
	setUp := policy.Snapshot{State: policy.State{Service: &policy.Service{}}}
	for name, tt := range map[string]struct {
		caller string
		kind   string
		seen   []policy.Snapshot
		lost   bool // afterwards
		obeyed bool
	}{
		"init, before the records came":   {rpc.Init, rpc.ApproveManual, nil, false, true},
		"init, never set up":              {rpc.Init, rpc.ApproveManual, []policy.Snapshot{{}}, false, true},
		"init, another kind":              {rpc.Init, rpc.ApproveFloor, nil, false, false},
		"init, set up":                    {rpc.Init, rpc.ApproveManual, []policy.Snapshot{setUp}, false, false},
		"init, records that were emptied": {rpc.Init, rpc.ApproveManual, []policy.Snapshot{setUp, {}}, false, false},
		"init, set up, the ledger died":   {rpc.Init, rpc.ApproveManual, []policy.Snapshot{setUp}, true, true},
		"init, a floor, the ledger died":  {rpc.Init, rpc.ApproveFloor, []policy.Snapshot{setUp}, true, false},
		"console, the ledger died":        {rpc.Console, rpc.ApproveManual, []policy.Snapshot{setUp}, true, false},
		"console, never set up":           {rpc.Console, rpc.ApproveManual, []policy.Snapshot{{}}, false, false},
		"ledger":                          {rpc.Ledger, rpc.ApproveManual, []policy.Snapshot{setUp}, false, true},
		"hgs":                             {rpc.HGS, rpc.ApproveManual, []policy.Snapshot{{}}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			admins := &administered{}
			for _, s := range tt.seen {
				admins.saw(s)
			}
			if tt.lost {
				admins.lost(errors.New("it was killed"))
			}
			k, c := serve(t, tt.caller, admins)
			now := k.Clock.Read().Boot
			utc := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
			r, err := rpc.ClockApprove.Call(t.Context(), c, rpc.ClockApproveRequest{Kind: tt.kind, UTC: utc, Boot: "boot", BootTime: now, Asked: now, By: []string{"ada"}})
			if tt.obeyed {
				if err != nil || r.State != rpc.ClockManual || !r.Trusted.OK || !r.Trusted.Manual || len(r.Why) != 3 {
					t.Errorf("%+v, %v", r, err)
				}
				return
			}
			if !errors.Is(err, rpc.ErrNotAllowed) {
				t.Errorf("obeyed: %v", err)
			}
			if now, _ := k.Current(); !now.UTC.IsZero() {
				t.Error("the time was set")
			}
		})
	}
}

// TestAManualTimeIsInTheAuditEvenIfTheLedgerComesLater: as it was when the time was approved, marked manual, with whose word it was.
func TestAManualTimeIsInTheAuditEvenIfTheLedgerComesLater(t *testing.T) {
	k := clock.New()
	k.Clock, k.Boot, k.Build, k.Log = still{time.Now().Add(-rpc.BootTime() + time.Hour)}, "boot", time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), t.Logf
	dir, uid := t.TempDir(), uint32(os.Getuid())
	path := filepath.Join(dir, "ledger.sock")
	c := rpc.NewProvedClient(path, uid)
	defer c.Close()
	tell := newTeller(k, c)
	k.Event = tell.event
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{}, 2)
	go func() { tell.run(ctx); done <- struct{}{} }()
	now := k.Clock.Read().Boot
	if err := k.Approve(clock.Approval{Kind: "manual", UTC: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC), Boot: "boot", BootTime: now, Asked: now, By: []string{"recovery secret 0badcafe"}}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	heard := make(chan policy.AuditEntry, 8)
	s := rpc.NewServer(rpc.UIDs{rpc.Clock: uid})
	rpc.Handle(s, rpc.LedgerAudit, func(_ context.Context, _ rpc.Caller, e policy.AuditEntry) (policy.AuditReceipt, error) {
		heard <- e
		return policy.AuditReceipt{}, nil
	}, rpc.Clock)
	l, err := rpc.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	go func() { s.Serve(ctx, l); done <- struct{}{} }()
	select {
	case e := <-heard:
		if e.Action != "time-manual" || !strings.Contains(e.Detail, "recovery secret 0badcafe") || !e.At.Manual || e.At.Boot != "boot" || time.UnixMilli(e.At.Latest).UTC().Year() != 2026 {
			t.Errorf("%+v", e)
		}
	case <-time.After(20 * time.Second):
		t.Error("the audit never heard of it")
	}
	cancel()
	<-done
	<-done
}

// TestALedgerThatComesBackDecidesAgain: init's word counts while it does not answer, and no longer.
func TestALedgerThatComesBackDecidesAgain(t *testing.T) {
	admins, setUp := &administered{}, policy.Snapshot{State: policy.State{Service: &policy.Service{}}}
	for i, want := range []bool{false, true, false, true} {
		switch i {
		case 1, 3:
			admins.saw(setUp)
		case 2:
			admins.lost(nil)
		}
		if admins.decide() != want {
			t.Errorf("step %d: the ledger decides: %v", i, !want)
		}
	}
}

func TestOnlyTheLedgerMovesTheFloor(t *testing.T) {
	moment := time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC)
	for caller, obeyed := range map[string]bool{rpc.Ledger: true, rpc.Console: false, rpc.HGS: false, rpc.HSM: false} {
		k, c := serve(t, caller, &administered{})
		r, err := rpc.ClockFloor.Call(t.Context(), c, rpc.ClockFloorRequest{Floor: moment, From: "tpm"})
		if floor, _ := k.Floor(time.Time{}, ""); floor.Equal(moment) != obeyed || (err == nil) != obeyed || obeyed && r.From != "tpm" {
			t.Errorf("%s: floor %v, %+v, %v", caller, floor, r, err)
		}
	}
}

func TestTheStatesOfTheClockAreThoseOfTheContract(t *testing.T) {
	for ours, contract := range map[clock.State]string{clock.Waiting: rpc.ClockWaiting, clock.Locked: rpc.ClockLocked, clock.Holdover: rpc.ClockHoldover,
		clock.Suspect: rpc.ClockSuspect, clock.Manual: rpc.ClockManual, clock.Stopped: rpc.ClockStopped} {
		if string(ours) != contract {
			t.Errorf("%s is %s in the contract", ours, contract)
		}
	}
	if clock.ApprovalLife != rpc.ApprovalLife {
		t.Error("the clock and the ledger disagree about how long an approval lives")
	}
}

func TestKeysOfTheDiskAreUsedUntilTheLedgerSpeaks(t *testing.T) {
	dir := t.TempDir()
	r := &keyring{dir: dir}
	if _, ok := r.find(7); ok {
		t.Fatal("a key out of nothing")
	}
	if err := clock.WriteKeys(dir, []clock.Key{{ID: 7, Algorithm: "aes128", Secret: []byte("0123456789abcdef")}}); err != nil {
		t.Fatal(err)
	}
	k, ok := r.find(7) // the disk was opened since
	if !ok {
		t.Fatal("the key on the disk was not found")
	}
	clear(k.Secret)
	if k, _ = r.find(7); k.Secret[0] != '0' {
		t.Error("a caller's copy is the ring's own")
	}
	r.set(nil)
	if _, ok := r.find(7); ok {
		t.Error("a key that the ledger does not send any more is still used")
	}
}

// TestPeersComeFromTheRecordsAndAreAskedThroughTheLedger: at each change at once, and never by the clock itself.
func TestPeersComeFromTheRecordsAndAreAskedThroughTheLedger(t *testing.T) {
	k := clock.New()
	k.Clock, k.Log = still{time.Now()}, t.Logf
	snap := policy.Snapshot{NodeID: "n", State: policy.State{Service: &policy.Service{}, Nodes: map[string]policy.Node{"n": {TimeServers: []string{"node3"}}},
		Peers: map[string]policy.Peer{"node3": {Name: "node3", Key: []byte{3}}, "node2": {Name: "node2", Key: []byte{2}}}}}
	names := func() (list []string) {
		for _, s := range k.Status().Sources {
			list = append(list, fmt.Sprintf("%s %v %s", s.Address, s.Peer, s.Pin))
		}
		return list
	}
	configure(k, snap)
	if got, want := strings.Join(names(), ", "), "node3 false , node2 true 02, node3 true 03"; got != want {
		t.Errorf("%s, not %s", got, want)
	}
	snap.State.Peers = map[string]policy.Peer{"node2": {Name: "node2", Key: []byte{4}}}
	configure(k, snap)
	if got, want := strings.Join(names(), ", "), "node3 false , node2 true 04"; got != want {
		t.Errorf("%s, not %s", got, want)
	}

	path, uid := filepath.Join(t.TempDir(), "l"), uint32(os.Getuid())
	s := rpc.NewServer(rpc.UIDs{rpc.Clock: uid})
	raw := k.Clock.Read().Raw
	truth := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	rpc.Handle(s, rpc.LedgerPeerTime, func(_ context.Context, _ rpc.Caller, r rpc.PeerTimeRequest) (rpc.PeerTimeReply, error) {
		switch r.Name {
		case "node2":
			return rpc.PeerTimeReply{Raw: raw, UTC: truth, Distance: 3 * time.Millisecond}, nil
		case "node4":
			return rpc.PeerTimeReply{Raw: raw + time.Hour, UTC: truth, Distance: time.Millisecond}, nil
		}
		return rpc.PeerTimeReply{}, rpc.ErrUnavailable.With("it is refused: its clock is 3.214 s ahead of this node's")
	}, rpc.Clock)
	l, err := rpc.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { defer close(done); s.Serve(ctx, l) }()
	defer func() { cancel(); <-done }()
	c := rpc.NewProvedClient(path, uid)
	defer c.Close()
	var asked []string
	ask := query(k.Clock, func(_ context.Context, s clock.Server) (clock.Sample, error) {
		asked = append(asked, s.Address)
		return clock.Sample{}, nil
	}, c)
	n, err := ask(t.Context(), clock.Server{Address: "node2", Peer: true})
	if err != nil || n.Raw != raw || !n.UTC.Equal(truth) || n.Distance < 3*time.Millisecond {
		t.Errorf("%+v, %v", n, err)
	}
	if _, err := ask(t.Context(), clock.Server{Address: "node3", Peer: true}); err == nil || err.Error() != "it is refused: its clock is 3.214 s ahead of this node's" {
		t.Errorf("%v", err)
	}
	if _, err := ask(t.Context(), clock.Server{Address: "node4", Peer: true}); err == nil || !strings.Contains(err.Error(), "not used") {
		t.Errorf("an answer of the future: %v", err)
	}
	if ask(t.Context(), clock.Server{Address: "node3"}); strings.Join(asked, " ") != "node3" {
		t.Errorf("asked by NTP: %v", asked)
	}
}
