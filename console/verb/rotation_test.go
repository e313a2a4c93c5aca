package verb_test

import (
	"strings"
	"testing"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/console/verb"
	"guardhouse/console/verb/verbtest"
)

func step(t *testing.T, f *verbtest.Fake) policy.RotationStep {
	t.Helper()
	snap, _ := f.Node.Snapshot()
	if snap.State.Rotation == nil {
		return ""
	}
	return snap.State.Rotation.Step
}

func TestARotationGoesStepByStepAndAsksBeforeItHurts(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	mustCall(t, s, "key new --roles all", "")
	f.Use(use(f, 1, 50), use(f, 2, 3))
	old := use(f, 0, 0)
	mustCall(t, s, "rotation start --days 30", "")
	if step(t, f) != policy.RotationMade {
		t.Fatal(step(t, f))
	}
	if text := mustCall(t, s, "rotation instructions", ""); !strings.Contains(text, "not primary") {
		t.Error("instructions for the old pair without a warning")
	}
	text := mustCall(t, s, "rotation next", "")
	for _, want := range []string{"done new pair tested on every node and primary", "     old pair disabled", "2 key protectors last seen on it, newest 3 h ago", "rotation next --confirm 2"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	instructions := mustCall(t, s, "rotation instructions", "")
	for _, want := range []string{"Grant-HgsKeyProtectorAccess", "-RestoreLastKnownGoodKeyProtector", "metadata.xml"} {
		if !strings.Contains(instructions, want) {
			t.Errorf("no %q in the instructions", want)
		}
	}
	for _, wrong := range []string{"rotation next", "rotation next --confirm 1"} {
		if _, err := call(s, wrong, ""); err == nil || !strings.Contains(err.Error(), "2 key protectors last seen on the old pair within 30 days, newest 3 h ago") {
			t.Fatalf("%s: %v", wrong, err)
		}
	}
	mustCall(t, s, "rotation next --confirm 2", "")
	snap, _ := f.Node.Snapshot()
	if snap.State.Keys[old.Signing].Enabled || snap.State.Keys[old.Encryption].Enabled {
		t.Error("the old pair is enabled")
	}
	mustCall(t, s, "rotation undo", "")
	if snap, _ = f.Node.Snapshot(); !snap.State.Keys[old.Encryption].Enabled {
		t.Error("undo did not enable it")
	}
	mustCall(t, s, "rotation next --confirm 2", "")
	mustCall(t, s, "rotation next --confirm 2", "")
	if snap, _ = f.Node.Snapshot(); step(t, f) != "" || len(snap.State.Keys) != 4 {
		t.Errorf("%d keys, step %s", len(snap.State.Keys), step(t, f))
	}
	if _, err := call(s, "rotation next", ""); err == nil {
		t.Error("there is a step after the last")
	}
}

// TestARotationIsResumed: the console is cut off after the plan is on record and while the keys are made.
func TestARotationIsResumed(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	mustCall(t, s, "key new --roles all", "")
	f.Fail(rpc.LedgerMakeKeys.Name, rpc.ErrUnavailable.With("the HSM does not answer"))
	if _, err := call(s, "rotation start", ""); err == nil {
		t.Fatal("started without a token")
	}
	if step(t, f) != policy.RotationStarted {
		t.Fatal(step(t, f))
	}
	if text := mustCall(t, s, "rotation status", ""); !strings.Contains(text, "not made yet") {
		t.Error(text)
	}
	f.Fail(rpc.LedgerMakeKeys.Name, nil)
	mustCall(t, s, "rotation next", "")
	snap, _ := f.Node.Snapshot()
	if step(t, f) != policy.RotationMade || len(snap.State.Keys) != 6 {
		t.Errorf("%s, %d keys", step(t, f), len(snap.State.Keys))
	}
	mustCall(t, s, "rotation abort", "")
	if text := mustCall(t, s, "rotation status", ""); !strings.Contains(text, "No rotation") {
		t.Error(text)
	}
}

func TestACompromisedKeyIsFrozenWithAListOfWhatNeedsIt(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	mustCall(t, s, "key new --roles all", "")
	f.Use(use(f, 1, 50), use(f, 2, 3))
	ref := use(f, 0, 0).Encryption
	text := mustCall(t, s, "key compromise "+string(ref[:12]), "")
	if !strings.Contains(text, "frozen") || !strings.Contains(text, "2 key protectors") || !strings.Contains(text, "hv7") {
		t.Error(text)
	}
	snap, _ := f.Node.Snapshot()
	if k := snap.State.Keys[ref]; k.Enabled || k.Primary {
		t.Errorf("%+v", k)
	}
	if p := verb.GatherStatus(t.Context(), f.Node).Problems; !has(p, "no-keys") {
		t.Errorf("%+v", p)
	}
}
