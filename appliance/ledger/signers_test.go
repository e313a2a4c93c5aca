package ledger

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// signers are the recorded attestation signers, the newest first.
func (b *bench) signers() []policy.Key {
	s, _ := b.l.Snapshot()
	return s.State.AttestationSigners()
}

func (b *bench) renew(want int) {
	b.t.Helper()
	if err := b.l.RenewSigner(context.Background()); err != nil {
		b.t.Fatal(err)
	}
	if n := len(b.signers()); n != want {
		b.t.Fatalf("%d attestation signers, want %d", n, want)
	}
}

func withSigner(t *testing.T, utc time.Time) (*bench, *token, policy.Actor) {
	b := newBench(t)
	k := b.attachToken()
	ada := b.setUp()
	b.renew(0)
	b.trust(utc)
	b.renew(0) // the first one is an administrator's to make
	req := rpc.MakeKeysRequest{Actor: ada, ID: newID(), Roles: []policy.KeyRole{policy.RoleAttestationSigner}, Bits: 2048}
	if _, err := b.l.MakeKeys(context.Background(), req); err != nil {
		t.Fatal(err)
	}
	return b, k, ada
}

const day = 24 * time.Hour

func TestTheAttestationSignerIsRenewedAtTwoThirdsOfItsLifeOnce(t *testing.T) {
	utc := time.Date(2026, 11, 22, 10, 30, 0, 0, time.UTC)
	b, k, _ := withSigner(t, utc)
	first := b.signers()[0]
	if k.list[0].Bits != policy.SignerBits {
		t.Errorf("it has %d bits", k.list[0].Bits)
	}
	b.renew(1)
	b.trust(utc.Add(243 * day))
	b.renew(1)
	now := utc.Add(244 * day)
	b.trust(now)
	b.renew(2)
	b.renew(2)
	b.restart()
	b.l.cfg.HSM = b.cfg.HSM
	b.renew(2)
	next := b.signers()[0]
	if s, _ := b.l.Snapshot(); next.Ref == first.Ref || next.SignerStage(now) != policy.SignerNext || len(k.list) != 2 {
		t.Errorf("%+v of %d keys", next, len(k.list))
	} else if used, _ := s.State.SignerInUse(now); used.Ref != first.Ref {
		t.Error("the new one signs before drivers know it")
	} else if used, _ = s.State.SignerInUse(now.Add(day + time.Minute)); used.Ref != next.Ref {
		t.Error("the new one does not sign a day later")
	}
	made := b.audited(string(policy.CmdKeyAdd))
	if len(made) != 2 || made[1].Actor.Door != policy.DoorNode {
		t.Errorf("the audit says %+v", made)
	}
	b.trust(now.Add(2 * day))
	b.renew(2)
}

// TestASteppedClockGetsASignerThatIsValidNow: the step itself has the check made, sooner than its turn would come, and what a wrong clock
// left behind is never used.
func TestASteppedClockGetsASignerThatIsValidNow(t *testing.T) {
	wrong := time.Date(2036, 11, 22, 10, 30, 0, 0, time.UTC)
	b, _, ada := withSigner(t, wrong)
	right := wrong.AddDate(-10, 0, 0)
	select {
	case <-b.l.renewNow: // left by the first signer
	default:
	}
	stepped, looks, reads := make(chan struct{}), make(chan struct{}, 100), make(chan struct{}, 1000)
	clock := b.l.cfg.Time
	b.l.cfg.Time = func() policy.TrustedTime { t := clock(); reads <- struct{}{}; return t }
	b.l.cfg.TimeEvent = func() <-chan struct{} {
		looks <- struct{}{}
		b.mu.Lock()
		defer b.mu.Unlock()
		return stepped
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan struct{})
	go func() { defer close(done); b.l.keepSigner(ctx) }()
	<-looks
	<-reads // nothing is due by the wrong clock, which this look has read
	b.trust(right)
	b.mu.Lock()
	now := stepped
	stepped = make(chan struct{})
	b.mu.Unlock()
	close(now)
	select {
	case <-looks:
	case <-time.After(renewalCheck - time.Second):
		t.Fatal("the step was not looked at")
	}
	for deadline := time.Now().Add(20 * time.Second); len(b.signers()) < 2; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the check did not come")
		}
	}
	cancel()
	<-done
	s, _ := b.l.Snapshot()
	if used, ok := s.State.SignerInUse(right); !ok || used.Ref != b.signers()[0].Ref {
		t.Error("no signer that is valid now signs")
	}
	again := rpc.MakeKeysRequest{Actor: ada, ID: newID(), Roles: []policy.KeyRole{policy.RoleAttestationSigner}, Bits: 3072}
	if _, err := b.l.MakeKeys(context.Background(), again); err != nil { // attestation-signer renew, by hand
		t.Error(err)
	}
}

func TestRefusesAThirdSignerBeforeTheTokenMakesIt(t *testing.T) {
	utc := time.Date(2026, 11, 22, 10, 30, 0, 0, time.UTC)
	b, k, ada := withSigner(t, utc)
	req := rpc.MakeKeysRequest{Actor: ada, ID: newID(), Roles: []policy.KeyRole{policy.RoleAttestationSigner}, Bits: 3072}
	if _, err := b.l.MakeKeys(context.Background(), req); err != nil {
		t.Fatal(err)
	}
	if _, err := b.l.MakeKeys(context.Background(), req); err != nil {
		t.Error("the same request again:", err)
	}
	req.ID = newID()
	if _, err := b.l.MakeKeys(context.Background(), req); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "published already") {
		t.Error(err)
	}
	if len(k.list) != 2 {
		t.Errorf("the token made %d keys", len(k.list))
	}
}

// TestARenewalThatFailsIsAProblemUntilItSucceeds: the old signer goes on meanwhile.
func TestARenewalThatFailsIsAProblemUntilItSucceeds(t *testing.T) {
	utc := time.Date(2026, 11, 22, 10, 30, 0, 0, time.UTC)
	b, k, _ := withSigner(t, utc)
	b.trust(utc.Add(250 * day))
	fail := func(err error) {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.fail = err
	}
	fail(rpc.ErrUnavailable.With("the token is away"))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); b.l.keepSigner(ctx) }()
	defer func() { cancel(); <-done }()
	problem := func() bool {
		for _, p := range b.l.Status().Problems {
			if p.Kind == renewalKind {
				return true
			}
		}
		return false
	}
	wait := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal(what)
			}
		}
	}
	wait("no problem is reported", problem)
	if s, _ := b.l.Snapshot(); len(b.signers()) != 1 || len(s.State.Keys) != 1 {
		t.Error("something was recorded")
	}
	fail(nil)
	b.l.wakeRenewal()
	wait("it is not renewed", func() bool { return len(b.signers()) == 2 })
	wait("the problem stays", func() bool { return !problem() })
}

// TestACrashDuringRenewalNeitherLosesNorDoublesTheSuccessor: the first try fails after the token made a key, the second succeeds, and
// after kill -9 nothing more is made.
func TestACrashDuringRenewalNeitherLosesNorDoublesTheSuccessor(t *testing.T) {
	utc := time.Date(2026, 11, 22, 10, 30, 0, 0, time.UTC)
	b, k, _ := withSigner(t, utc)
	b.trust(utc.Add(250 * day))
	k.leaky = true
	if err := b.l.RenewSigner(context.Background()); !errors.Is(err, rpc.ErrRefused) || len(b.signers()) != 1 {
		t.Fatalf("%d signers, %v", len(b.signers()), err)
	}
	k.leaky = false
	b.renew(2)
	want := b.signers()
	b.crash()
	b.l.cfg.HSM = b.cfg.HSM
	b.renew(2)
	for i, s := range b.signers() {
		if s.Ref != want[i].Ref || s.UseFrom != want[i].UseFrom || s.RetiredAt != want[i].RetiredAt || s.Primary != want[i].Primary {
			t.Errorf("signer %d is %+v, was %+v", i, s, want[i])
		}
	}
	if len(k.list) != 3 {
		t.Errorf("the token made %d keys", len(k.list))
	}
}

func TestAttestationOnlyMakesNoGuardianKeys(t *testing.T) {
	b := newBench(t)
	k := b.attachToken()
	b.service = "key-protection = false\n"
	ada := b.setUp()
	if s, _ := b.l.Snapshot(); !s.State.Service.AttestationOnly || !strings.Contains(summary(policy.Setup{Service: *s.State.Service}), "no key protection") {
		t.Error("setup does not say so")
	}
	b.trust(time.Date(2026, 11, 22, 10, 30, 0, 0, time.UTC))
	for _, role := range policy.KeyRoles {
		_, err := b.l.MakeKeys(context.Background(), rpc.MakeKeysRequest{Actor: ada, ID: newID(), Roles: []policy.KeyRole{role}, Bits: 2048})
		if (role == policy.RoleAttestationSigner) != (err == nil) || err != nil && !errors.Is(err, rpc.ErrRefused) {
			t.Errorf("%s: %v", role, err)
		}
	}
	if len(k.list) != 1 {
		t.Errorf("the token made %d keys", len(k.list))
	}
}
