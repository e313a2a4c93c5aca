package ledger

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// clockProcess answers as the clock would and remembers what it was told.
type clockProcess struct {
	mu       sync.Mutex
	status   rpc.ClockStatusReply
	approved []rpc.ClockApproveRequest
	floors   []rpc.ClockFloorRequest
	refuse   error
}

func (b *bench) withClock() *clockProcess {
	b.t.Helper()
	c := &clockProcess{status: rpc.ClockStatusReply{State: rpc.ClockWaiting}}
	s := rpc.NewServer(rpc.UIDs{rpc.Ledger: uint32(os.Getuid())})
	rpc.Handle(s, rpc.ClockStatus, func(context.Context, rpc.Caller, rpc.Empty) (rpc.ClockStatusReply, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.status, nil
	}, rpc.Ledger)
	rpc.Handle(s, rpc.ClockApprove, func(_ context.Context, _ rpc.Caller, req rpc.ClockApproveRequest) (rpc.ClockStatusReply, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.approved = append(c.approved, req)
		return c.status, c.refuse
	}, rpc.Ledger)
	rpc.Handle(s, rpc.ClockFloor, func(_ context.Context, _ rpc.Caller, req rpc.ClockFloorRequest) (rpc.ClockFloorReply, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.floors = append(c.floors, req)
		return rpc.ClockFloorReply{}, nil
	}, rpc.Ledger)
	path := filepath.Join(b.t.TempDir(), "clock.sock")
	l, err := rpc.Listen(path)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ctx, l) }()
	b.t.Cleanup(func() { cancel(); <-done })
	b.cfg.Clock = rpc.NewProvedClient(path, uint32(os.Getuid()))
	b.restart()
	return c
}

func (b *bench) floor() time.Time {
	s, _ := b.l.Snapshot()
	return time.UnixMilli(s.Floor).UTC()
}

func (b *bench) audited(action string) (list []policy.AuditEntry) {
	b.t.Helper()
	records, err := b.l.audit.Tail(1000)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, r := range records {
		if r.Entry.Action == action {
			list = append(list, r.Entry)
		}
	}
	return list
}

// TestBootIn2099DoesNotPoisonTheFloor: what is written before the time is trusted has a boot id and a boot time and never counts, whatever
// the clock chip says.
func TestBootIn2099DoesNotPoisonTheFloor(t *testing.T) {
	b := newBench(t)
	if _, err := b.l.audit.Append(context.Background(), b.l.stamped(policy.AuditEntry{Kind: policy.AuditSystem, Action: "start", Outcome: "ok"})); err != nil {
		t.Fatal(err)
	}
	if e := b.audited("start")[0]; e.At.Latest != 0 || e.At.Boot != "test-boot" || e.BootTime == 0 {
		t.Errorf("before the lock an entry has a date: %+v", e)
	}
	if err := b.l.recordFloor(floorStep); err != nil || b.floor().UnixMilli() != 0 {
		t.Fatalf("a floor without a trusted time: %s, %v", b.floor(), err)
	}
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	b.trust(now)
	if err := b.l.recordFloor(floorStep); err != nil {
		t.Fatal(err)
	}
	want := now.Add(-20 * time.Millisecond)
	if !b.floor().Equal(want) {
		t.Fatalf("the floor is %s, not the earliest bound %s", b.floor(), want)
	}
	if e := b.audited(floorAction); len(e) != 1 || e[0].At.Earliest != want.UnixMilli() || e[0].At.Latest <= e[0].At.Earliest {
		t.Errorf("%+v", e)
	}
	b.time = policy.TrustedTime{}
	b.restart()
	if !b.floor().Equal(want) {
		t.Errorf("after the reboot the floor is %s", b.floor())
	}
}

func TestFloorRisesByTheHourAndAtACleanStop(t *testing.T) {
	b := newBench(t)
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	b.trust(now)
	b.l.recordFloor(floorStep)
	first := b.floor()
	b.pass(50 * time.Minute)
	b.l.recordFloor(floorStep)
	if !b.floor().Equal(first) {
		t.Error("it was written again within the hour")
	}
	b.restart()
	if d := b.floor().Sub(first); d < 49*time.Minute {
		t.Errorf("a clean stop moved it by %s only", d)
	}
	if n := len(b.audited(floorAction)); n != 1 {
		t.Errorf("%d entries in a day", n)
	}
	before := b.floor()
	b.pass(48 * time.Hour)
	b.mu.Lock()
	b.time.Manual = true
	b.mu.Unlock()
	b.l.recordFloor(floorStep)
	if !b.floor().Equal(before) {
		t.Error("a time that people approved raised the floor")
	}
}

// TestFloorIsFoundInTheAuditWhenTheRecordsAreOld: a copy of the records brought back must not bring back the old floor.
func TestFloorIsFoundInTheAuditWhenTheRecordsAreOld(t *testing.T) {
	b := newBench(t)
	b.trust(time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC))
	b.l.recordFloor(floorStep)
	want := b.floor()
	b.time = policy.TrustedTime{}
	if err := b.l.store.setFloor(1000); err != nil {
		t.Fatal(err)
	}
	b.restart()
	if !b.floor().Equal(want) || b.l.floor.from != rpc.FloorAudit {
		t.Errorf("%s from %s", b.floor(), b.l.floor.from)
	}
}

// TestFloorIsFoundInABusyAudit: where many entries are written in a day, the one that holds the floor must not be further back than the start
// looks.
func TestFloorIsFoundInABusyAudit(t *testing.T) {
	b := newBench(t)
	b.trust(time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC))
	b.l.recordFloor(floorStep)
	for range 5 {
		var writers sync.WaitGroup
		for range 64 {
			writers.Go(func() {
				for range floorTail/4/64 + 1 {
					b.l.audit.Append(context.Background(), b.l.stamped(policy.AuditEntry{Kind: policy.AuditSystem, Action: "busy", Outcome: "ok"}))
				}
			})
		}
		writers.Wait()
		b.pass(time.Minute)
		if err := b.l.recordFloor(floorStep); err != nil {
			t.Fatal(err)
		}
	}
	want := b.floor()
	b.mu.Lock()
	b.time = policy.TrustedTime{}
	b.mu.Unlock()
	if err := b.l.store.setFloor(1000); err != nil {
		t.Fatal(err)
	}
	b.restart()
	if got := b.floor(); want.Sub(got) > 5*time.Minute || b.l.floor.from != rpc.FloorAudit {
		t.Errorf("the floor is %s from %s, it was %s", got, b.l.floor.from, want)
	}
}

// TestTPMKnowsTheFloorWhenTheDiskDoesNot: NV is written at most daily and at a clean stop.
func TestTPMKnowsTheFloorWhenTheDiskDoesNot(t *testing.T) {
	b := newBench(t)
	if err := b.l.tpm.Prepare(1, 0); err != nil {
		t.Fatal(err)
	}
	writes := 0
	b.cfg.TimeFloor = func(_ context.Context, at time.Time) error {
		writes++
		return b.l.tpm.SetTimeFloor(nil, at) // nobody owns this TPM
	}
	b.restart()
	b.trust(time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC))
	for range 30 {
		b.l.recordFloor(floorStep)
		b.pass(time.Hour)
	}
	if writes != 2 {
		t.Errorf("NV was written %d times in 30 hours", writes)
	}
	b.restart()
	if writes != 3 {
		t.Errorf("NV was written %d times with the clean stop", writes)
	}
	want := b.floor()
	b.mu.Lock()
	b.time = policy.TrustedTime{}
	b.mu.Unlock()
	b.l.Close()
	for _, name := range []string{"state.db", "audit"} {
		if err := os.RemoveAll(filepath.Join(b.cfg.Dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	b.open()
	if !b.floor().Equal(want) || b.l.floor.from != rpc.FloorTPM {
		t.Errorf("on an empty disk the floor is %s (%s), not %s", b.floor(), b.l.floor.from, want)
	}
}

func TestEventOfTheTimeIsSeenAtOnce(t *testing.T) {
	b := newBench(t)
	event := make(chan struct{})
	b.cfg.TimeEvent = func() <-chan struct{} { b.mu.Lock(); defer b.mu.Unlock(); return event }
	b.restart()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go b.l.keepFloor(ctx)
	time.Sleep(20 * time.Millisecond)
	b.trust(time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC))
	b.mu.Lock()
	old := event
	event = make(chan struct{})
	b.mu.Unlock()
	close(old)
	for range 200 {
		if b.floor().Year() == 2026 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the first trusted time was not looked at within two seconds")
}

// TestAnEventOfTheTimeHasSignersAndSessionsLookedAtAtOnce: each loop looks again at each step or lock, ten times in less time than its own
// pauses would take.
func TestAnEventOfTheTimeHasSignersAndSessionsLookedAtAtOnce(t *testing.T) {
	for name, loop := range map[string]func(*Ledger, context.Context){
		"the floor":               func(l *Ledger, ctx context.Context) { l.keepFloor(ctx) },
		"the attestation signers": func(l *Ledger, ctx context.Context) { l.keepSigner(ctx) },
		"the sessions of hosts": func(l *Ledger, ctx context.Context) {
			l.WatchContextKeys(ctx, func(rpc.ContextKeys) error { return nil })
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.setUp()
			looked, trusted := make(chan struct{}, 64), b.cfg.Time
			b.cfg.Time = func() policy.TrustedTime { looked <- struct{}{}; return trusted() }
			var mu sync.Mutex
			event := make(chan struct{})
			b.cfg.TimeEvent = func() <-chan struct{} { mu.Lock(); defer mu.Unlock(); return event }
			b.restart()
			for len(looked) > 0 {
				<-looked
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { defer close(done); loop(b.l, ctx) }()
			<-looked
			begun := time.Now()
			for range 10 {
				mu.Lock()
				old := event
				event = make(chan struct{})
				mu.Unlock()
				close(old)
				<-looked
			}
			if took := time.Since(begun); took > 5*time.Second {
				t.Errorf("ten events were seen within %v only", took)
			}
			cancel()
			<-done
			b.l.cfg.Time = trusted
		})
	}
}

// second enrols another administrator and gives the actor.
func (b *bench) second(ada policy.Actor, name string, role policy.AdminRole) policy.Actor {
	b.t.Helper()
	add := policy.AdminAdd{Name: name, Role: role, Key: sshKey(b.t)}
	if _, _, err := b.l.Propose(context.Background(), command(ada, policy.CmdAdminAdd, add)); err != nil {
		b.t.Fatal(err)
	}
	fp, err := policy.KeyFingerprint(add.Key)
	if err != nil {
		b.t.Fatal(err)
	}
	return policy.Actor{Name: name, Key: fp, Door: policy.DoorSSH, Session: "s9"}
}

func manual(a policy.Actor, b *bench) rpc.TimeAskRequest {
	return rpc.TimeAskRequest{Actor: a, Kind: rpc.ApproveManual, UTC: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC), Boot: "test-boot", BootTime: b.clock()}
}

func TestOneAdministratorAloneApprovesATime(t *testing.T) {
	b := newBench(t)
	ada := b.setUp()
	c := b.withClock()
	b.second(ada, "eve", policy.AdminReviewer) // who may not decide does not count
	d, err := b.l.TimeAsk(context.Background(), manual(ada, b))
	if err != nil || d.Waiting != nil || !slices.Equal(d.By, []string{"ada"}) || len(c.approved) != 1 || c.approved[0].Asked != b.clock() {
		t.Fatalf("%+v %v, clock: %+v", d, err, c.approved)
	}
	if e := b.audited(actionTimeDecide); len(e) != 1 || !strings.Contains(e[0].Detail, "2026-11-22 12:00:00") {
		t.Errorf("%+v", e)
	}
}

func TestTwoAdministratorsApproveATime(t *testing.T) {
	b := newBench(t)
	ada := b.setUp()
	c := b.withClock()
	grace, eve := b.second(ada, "grace", policy.AdminOperator), b.second(ada, "eve", policy.AdminReviewer)
	ctx := context.Background()
	d, err := b.l.TimeAsk(ctx, manual(ada, b))
	if err != nil || d.Waiting == nil || len(c.approved) != 0 {
		t.Fatalf("%+v %v", d, err)
	}
	b.pass(time.Minute)
	if list := b.l.TimeAsked(); len(list) != 1 || !list[0].Now.Equal(list[0].UTC.Add(time.Minute)) || list[0].ExpiresIn != 14*time.Minute {
		t.Errorf("%+v", list)
	}
	for name, req := range map[string]rpc.TimeConfirmRequest{"who asked": {Actor: ada, ID: d.Waiting.ID}, "a reviewer": {Actor: eve, ID: d.Waiting.ID}, "another id": {Actor: grace, ID: "00000000"}} {
		if _, err := b.l.TimeConfirm(ctx, req); !errors.Is(err, rpc.ErrRefused) {
			t.Errorf("%s confirmed it: %v", name, err)
		}
	}
	c.refuse = rpc.ErrRefused.With("no")
	if _, err := b.l.TimeConfirm(ctx, rpc.TimeConfirmRequest{Actor: grace, ID: d.Waiting.ID}); err == nil {
		t.Error("the clock's refusal was lost")
	}
	c.refuse, c.approved = nil, nil
	done, err := b.l.TimeConfirm(ctx, rpc.TimeConfirmRequest{Actor: grace, ID: d.Waiting.ID})
	if err != nil || !slices.Equal(done.By, []string{"ada", "grace"}) || len(c.approved) != 1 || c.approved[0].Asked == b.clock() {
		t.Fatalf("%+v %v, clock: %+v", done, err, c.approved)
	}
	if _, err := b.l.TimeConfirm(ctx, rpc.TimeConfirmRequest{Actor: grace, ID: d.Waiting.ID}); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("it was carried out twice: %v", err)
	}
}

func TestApprovalsExpireByBootTimeAndBelongToOneBoot(t *testing.T) {
	b := newBench(t)
	ada := b.setUp()
	c := b.withClock()
	grace := b.second(ada, "grace", policy.AdminOperator)
	ctx := context.Background()
	d, err := b.l.TimeAsk(ctx, manual(ada, b))
	if err != nil {
		t.Fatal(err)
	}
	b.pass(rpc.ApprovalLife)
	if _, err := b.l.TimeConfirm(ctx, rpc.TimeConfirmRequest{Actor: grace, ID: d.Waiting.ID}); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("after %s: %v", rpc.ApprovalLife, err)
	}
	for name, change := range map[string]func(*rpc.TimeAskRequest){
		"of another boot":      func(r *rpc.TimeAskRequest) { r.Boot = "another" },
		"of the future":        func(r *rpc.TimeAskRequest) { r.BootTime += time.Hour },
		"of long ago":          func(r *rpc.TimeAskRequest) { r.BootTime -= rpc.ApprovalLife },
		"of an unknown kind":   func(r *rpc.TimeAskRequest) { r.Kind = "holiday" },
		"below the floor":      func(r *rpc.TimeAskRequest) { r.UTC = r.UTC.AddDate(-20, 0, 0) },
		"with another key":     func(r *rpc.TimeAskRequest) { r.Actor.Key = "SHA256:x" },
		"nothing is suspect":   func(r *rpc.TimeAskRequest) { r.Kind = rpc.ApproveRelease },
		"raising the floor":    func(r *rpc.TimeAskRequest) { r.Kind = rpc.ApproveFloor },
		"servers are in reach": func(*rpc.TimeAskRequest) { c.status.State = rpc.ClockHoldover },
	} {
		c.status = rpc.ClockStatusReply{State: rpc.ClockWaiting, Floor: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
		req := manual(ada, b)
		change(&req)
		if _, err := b.l.TimeAsk(ctx, req); !errors.Is(err, rpc.ErrRefused) {
			t.Errorf("a decision %s: %v", name, err)
		}
	}
	b.restart()
	if list := b.l.TimeAsked(); len(list) != 0 || len(c.approved) != 0 {
		t.Errorf("after a restart %+v waits; the clock was told %+v", list, c.approved)
	}
}

// TestLoweredFloorStaysLowered: the entry of the lie that raised it is in the audit for ever and must not raise it again.
func TestLoweredFloorStaysLowered(t *testing.T) {
	b := newBench(t)
	ada := b.setUp()
	c := b.withClock()
	b.trust(time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)) // a majority lied
	b.l.recordFloor(floorStep)
	b.mu.Lock()
	b.time = policy.TrustedTime{}
	b.mu.Unlock()
	c.status = rpc.ClockStatusReply{State: rpc.ClockSuspect, Floor: b.floor()}
	to := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	if _, err := b.l.TimeAsk(context.Background(), rpc.TimeAskRequest{Actor: ada, Kind: rpc.ApproveFloor, UTC: to, Boot: "test-boot", BootTime: b.clock()}); err != nil {
		t.Fatal(err)
	}
	if !b.floor().Equal(to) || len(c.approved) != 1 || !c.approved[0].UTC.Equal(to) {
		t.Errorf("floor %s, clock %+v", b.floor(), c.approved)
	}
	b.restart()
	if !b.floor().Equal(to) {
		t.Errorf("after a restart the floor is %s", b.floor())
	}
	if err := b.l.store.setFloor(0); err != nil {
		t.Fatal(err)
	}
	b.restart()
	if b.floor().After(to) {
		t.Errorf("without records the audit says %s", b.floor())
	}
}
