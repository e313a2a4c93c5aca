package verb_test

import (
	"strings"
	"testing"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
	"guardhouse/console/verb"
)

// TestStagedChangesAreTriedTogetherCommittedAndUndone is E22 from the keyboard: dump policies staged, seen on stored evidence, applied as
// one, taken back as one.
func TestStagedChangesAreTriedTogetherCommittedAndUndone(t *testing.T) {
	f, s, _ := tpmNode(t, "hv7")
	dumps := bootLog("revoked", ciFile(false), map[evidence.SettingID]uint64{evidence.DumpsDisabled: 0})
	mustCall(t, s, "baseline add base", string(dumps))
	mustCall(t, s, "ci-policy add allow", ciFile(false))
	waitFor(t, f, func(st policy.State) bool { return len(st.CIPolicies) == 1 && len(st.Hosts) == 1 })
	if v := attest(t, f, "hv7", dumps); v.Passed || len(v.Findings) != 2 {
		t.Fatalf("a host with dumps to an unknown key: %+v", v.Findings)
	}
	staged := func(n int) {
		t.Helper()
		waitFor(t, f, func(st policy.State) bool {
			return n == 0 && st.Draft == nil || st.Draft != nil && len(st.Draft.Steps) == n
		})
	}
	if text := flat(t, s, "draft show", ""); !strings.Contains(text, "Nothing is staged") {
		t.Errorf("draft show said %s", text)
	}
	if text := flat(t, s, "policy disable Hgs_NoDumps --stage", ""); !strings.Contains(text, "nothing has changed yet") || !strings.Contains(text, "0 that fail would pass") {
		t.Errorf("one of two changes: %s", text)
	}
	staged(1)
	if text := flat(t, s, "dump-key add ops --host hv7 --stage", ""); !strings.Contains(text, "staged as change 2") || !strings.Contains(text, "1 that fail would pass") {
		t.Errorf("both changes: %s", text)
	}
	staged(2)
	snap, _ := f.Node.Snapshot()
	if len(snap.State.DumpKeys) != 0 || len(snap.State.PolicySets) != 0 {
		t.Fatal("the draft has an effect")
	}
	refusedCall(t, s, "policy disable VsmRunning --stage", "", "locked")
	refusedCall(t, s, "draft commit --digest 00", "", "another one than you have seen")
	text := flat(t, s, "draft show", "")
	for _, want := range []string{"2 changes are staged", "1. policy.set Hgs_NoDumps: off", "2. dump-key.add ops", "+ hv7"} {
		if !strings.Contains(text, want) {
			t.Errorf("draft show lacks %q: %s", want, text)
		}
	}
	mustCall(t, s, "draft commit", "")
	waitFor(t, f, func(st policy.State) bool { return st.Draft == nil && len(st.DumpKeys) == 1 && len(st.PolicySets) == 1 })
	if v := attest(t, f, "hv7", dumps); !v.Passed {
		t.Fatalf("%+v", v.Findings)
	}
	if text := flat(t, s, "draft undo --dry-run", ""); !strings.Contains(text, "1 that pass would fail") {
		t.Errorf("undo: %s", text)
	}
	mustCall(t, s, "draft undo", "")
	waitFor(t, f, func(st policy.State) bool { return len(st.DumpKeys) == 0 && len(st.PolicySets) == 0 })
	mustCall(t, s, "policy enable Hgs_BitLockerEnabled --stage", "")
	staged(1)
	mustCall(t, s, "draft drop", "")
	staged(0)
	out, err := call(s, "draft show", "")
	if err != nil || len(out.Value.(verb.DraftValue).Steps) != 0 {
		t.Error(out, err)
	}
}
