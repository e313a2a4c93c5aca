package policy

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

func step(t *testing.T, kind Kind, body any) DraftStep {
	t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	return DraftStep{kind, b}
}

// policies is what drafts change, as JSON; times of records that came back are their own.
func policies(s State) string {
	for _, name := range sortedNames(s.DumpKeys) {
		k := s.DumpKeys[name]
		k.Added = Stamp{}
		s.DumpKeys[name] = k
	}
	b, _ := json.Marshal([]any{s.Baselines, s.CIPolicies, s.DumpKeys, len(s.PolicySets), s.PolicySets[FabricWide].Enabled})
	return strings.ReplaceAll(string(b), "null", "{}")
}

// TestDraftHasNoEffectUntilItIsCommittedAndIsUndoneAsOne is E22.
func TestDraftHasNoEffectUntilItIsCommittedAndIsUndoneAsOne(t *testing.T) {
	s, actors := setUp(t)
	op := actors[AdminOperator]
	off, on := false, true
	s, _ = must(t, s, command(t, CmdDumpKeyAdd, op, DumpKeyAdd{Name: "old", SHA256: make([]byte, 32)}))
	s, _ = must(t, s, command(t, CmdPolicySet, op, PolicySwitch{Policy: HgsIommuEnabled, Enabled: &off}))
	before := policies(s.clone())
	for _, st := range []DraftStep{
		step(t, CmdPolicySet, PolicySwitch{Policy: HgsNoDumps, Enabled: &off}),
		step(t, CmdPolicySet, PolicySwitch{Policy: HgsIommuEnabled, Enabled: &on}),
		step(t, CmdDumpKeyRemove, Removal{Name: "old"}),
		step(t, CmdDumpKeyAdd, DumpKeyAdd{Name: "new", SHA256: []byte(strings.Repeat("n", 32))}),
	} {
		s, _ = must(t, s, command(t, CmdDraftAdd, op, st))
		if policies(s.clone()) != before {
			t.Fatalf("%s has an effect before it is committed", st.Kind)
		}
	}
	refused(t, s, command(t, CmdDraftCommit, op, DraftCommit{Digest: "of another draft"}))
	refused(t, s, command(t, CmdDraftUndo, op, DraftUndo{}))
	s, r := must(t, s, command(t, CmdDraftCommit, op, DraftCommit{Digest: s.Draft.Digest()}))
	if s.Draft != nil || len(s.DumpKeys) != 1 || s.DumpKeys["new"].Name == "" || s.PolicySets[FabricWide].Enabled[HgsNoDumps] || !s.PolicySets[FabricWide].Enabled[HgsIommuEnabled] ||
		!strings.Contains(r.Message, "draft of 4 changes committed") {
		t.Errorf("%+v %s", s.DumpKeys, r.Message)
	}
	after := policies(s.clone())
	s, _ = must(t, s, command(t, CmdDraftUndo, op, DraftUndo{}))
	if got := policies(s.clone()); got != before {
		t.Errorf("undone to %s, want %s", got, before)
	}
	s, _ = must(t, s, command(t, CmdDraftUndo, op, DraftUndo{}))
	if got := policies(s.clone()); got != after {
		t.Errorf("undone twice: %s, want %s", got, after)
	}
}

// TestUndoBringsEveryKindOfRecordBack compares whole records.
func TestUndoBringsEveryKindOfRecordBack(t *testing.T) {
	s, actors := setUp(t)
	op := actors[AdminOperator]
	digest := make([]byte, 32)
	base := BaselineAdd{Name: "base", Version: Version1, LogDigest: strings.Repeat("ab", 32), NoDMA: true, Variables: []Measured{{Name: "PK", GUID: "g", SHA256: digest}},
		Authorities: []Measured{{Name: "db", GUID: "g", SHA256: digest}}}
	ci := CIPolicyAdd{Name: "ci", Version: Version1, Digests: []HashValue{{Alg: 0x000b, Digest: digest}}, Audit: true, PolicyID: "id", Title: "title", Revision: "1.2.3.4"}
	s, _ = must(t, s, command(t, CmdBaselineAdd, op, base))
	s, _ = must(t, s, command(t, CmdCIPolicyAdd, op, ci))
	was := s
	for kind, name := range map[Kind]string{CmdBaselineRemove: "base", CmdCIPolicyRemove: "ci"} {
		s, _ = must(t, s, command(t, CmdDraftAdd, op, step(t, kind, Removal{Name: name})))
	}
	s, _ = must(t, s, command(t, CmdDraftCommit, op, DraftCommit{Digest: s.Draft.Digest()}))
	if len(s.Baselines)+len(s.CIPolicies) != 0 {
		t.Fatal("not removed")
	}
	s, _ = must(t, s, command(t, CmdDraftUndo, op, DraftUndo{}))
	if !reflect.DeepEqual(s.Baselines, was.Baselines) || !reflect.DeepEqual(s.CIPolicies, was.CIPolicies) {
		t.Errorf("%+v %+v", s.Baselines, s.CIPolicies)
	}
}

func TestRefusesDraftsThatCouldNotBeCommitted(t *testing.T) {
	s, actors := setUp(t)
	op := actors[AdminOperator]
	off := false
	refused(t, s, command(t, CmdDraftCommit, op, DraftCommit{}))
	refused(t, s, command(t, CmdDraftDrop, op, DraftDrop{}))
	for name, st := range map[string]DraftStep{
		"a locked policy":   step(t, CmdPolicySet, PolicySwitch{Policy: VsmRunning, Enabled: &off}),
		"nothing to remove": step(t, CmdDumpKeyRemove, Removal{Name: "none"}),
		"another command":   step(t, CmdAdminRemove, ByName{"owner1"}),
		"a draft in it":     step(t, CmdDraftDrop, DraftDrop{}),
		"no body":           {Kind: CmdPolicySet},
	} {
		if _, _, err := Apply(s, command(t, CmdDraftAdd, op, st)); err == nil {
			t.Errorf("%s was staged", name)
		}
	}
	full := s
	for range MaxDraftSteps {
		full, _ = must(t, full, command(t, CmdDraftAdd, op, step(t, CmdPolicySet, PolicySwitch{Policy: HgsNoDumps, Enabled: &off})))
	}
	refused(t, full, command(t, CmdDraftAdd, op, step(t, CmdPolicySet, PolicySwitch{Policy: HgsNoDumps, Enabled: &off})))
	// What changed meanwhile is found at the commit, and then nothing of the draft is done.
	s, _ = must(t, s, command(t, CmdDraftAdd, op, step(t, CmdPolicySet, PolicySwitch{Policy: HgsNoDumps, Enabled: &off})))
	s, _ = must(t, s, command(t, CmdDraftAdd, op, step(t, CmdDumpKeyAdd, DumpKeyAdd{Name: "k", SHA256: make([]byte, 32)})))
	s, _ = must(t, s, command(t, CmdDumpKeyAdd, op, DumpKeyAdd{Name: "k", SHA256: make([]byte, 32)}))
	refused(t, s, command(t, CmdDraftCommit, op, DraftCommit{Digest: s.Draft.Digest()}))
	s, _ = must(t, s, command(t, CmdDraftDrop, op, DraftDrop{}))
	if s.Draft != nil {
		t.Error("the draft is still there")
	}
}

// TestDraftIsNoWayAroundTheGuard: removals in it are refused like those at once, when staged, committed and undone.
func TestDraftIsNoWayAroundTheGuard(t *testing.T) {
	x := newCrossing(t)
	x.do(CmdDraftAdd, step(t, CmdDumpKeyRemove, Removal{Name: "ops"}))
	x.mode(ModeTPM)
	x.mode(ModeHostKey)
	if r := x.refused(CmdDraftCommit, DraftCommit{Digest: x.s.Draft.Digest()}); !strings.Contains(r.Reason, "3 of 3 hosts") {
		t.Error(r)
	}
	x.refused(CmdDraftAdd, step(t, CmdDumpKeyRemove, Removal{Name: "ops"}))
	x.do(CmdDraftDrop, DraftDrop{})
	x.do(CmdDraftAdd, step(t, CmdDumpKeyAdd, DumpKeyAdd{Name: "more", SHA256: []byte(strings.Repeat("m", 32))}))
	x.do(CmdDraftCommit, DraftCommit{Digest: x.s.Draft.Digest()})
	x.refused(CmdDraftUndo, DraftUndo{})
	const phrase = "remove-TPM-although-3-of-3-hosts-have-not-passed-in-HostKey"
	if r := x.do(CmdDraftUndo, DraftUndo{Phrase: phrase}); !strings.Contains(r.Message, "by typed phrase") {
		t.Error(r.Message)
	}
	x.do(CmdDraftAdd, step(t, CmdDumpKeyRemove, Removal{Name: "ops", Phrase: phrase}))
	if r := x.do(CmdDraftCommit, DraftCommit{Digest: x.s.Draft.Digest()}); !strings.Contains(r.Message, "by typed phrase") {
		t.Error(r.Message)
	}
}
