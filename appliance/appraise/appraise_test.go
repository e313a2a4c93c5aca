package appraise

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
)

var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got {
		t.Errorf("%s differs (run with -update and review); got:\n%s", path, got)
	}
}

func TestAGoodHostPassesAndSaysWhatMatched(t *testing.T) {
	s := newSite(t)
	s.set(true, policy.HgsBitLockerEnabled)
	v := s.judge(t)
	want := Verdict{Passed: true, Version: policy.Version2, Matched: Matched{Host: "hv7", Baseline: "r740", CIPolicy: "allow"}}
	if !reflect.DeepEqual(v, want) || v.Outcome() != "ok" || v.Reasons() != nil {
		t.Fatalf("%+v", v)
	}
}

// TestAHostMatchesOneOfEachKind is D17: the host must be registered, and of several baselines and code integrity policies one is enough;
// without any of the three it fails, however well the others fit.
func TestAHostMatchesOneOfEachKind(t *testing.T) {
	s := newSite(t)
	firmware, drivers := goodBoot(), goodBoot()
	firmware.dbx, drivers.ciPolicy = "other revocations", "another policy"
	s.state.Baselines = map[string]policy.Baseline{"a": s.baseline(t, firmware, policy.Version2), "b": s.baseline(t, goodBoot(), policy.Version2)}
	s.state.CIPolicies = map[string]policy.CIPolicy{"x": s.ciPolicy(drivers, policy.Version2), "y": s.ciPolicy(goodBoot(), policy.Version2)}
	for _, c := range []struct {
		change             func(*boot)
		baseline, ciPolicy string
	}{
		{func(*boot) {}, "b", "y"},
		{func(b *boot) { b.dbx = firmware.dbx }, "a", "y"},
		{func(b *boot) { b.ciPolicy = drivers.ciPolicy }, "b", "x"},
		{func(b *boot) { b.dbx, b.ciPolicy = firmware.dbx, drivers.ciPolicy }, "a", "x"},
	} {
		if v := s.judge(t, c.change); !v.Passed || v.Matched.Host != "hv7" || v.Matched.Baseline != c.baseline || v.Matched.CIPolicy != c.ciPolicy {
			t.Errorf("want %s and %s: %+v", c.baseline, c.ciPolicy, v)
		}
	}
	for name, c := range map[string]struct {
		spoil func(*Input)
		want  Kind
	}{
		"not registered":           {func(in *Input) { in.Host = policy.Host{} }, UnknownHost},
		"no baseline fits":         {func(in *Input) { in.State.Baselines = map[string]policy.Baseline{"a": s.state.Baselines["a"]} }, BaselineOther},
		"no CI policy fits":        {func(in *Input) { in.State.CIPolicies = map[string]policy.CIPolicy{"x": s.state.CIPolicies["x"]} }, CIPolicyOther},
		"no baseline registered":   {func(in *Input) { in.State.Baselines = nil }, NoBaseline},
		"no CI policy registered":  {func(in *Input) { in.State.CIPolicies = nil }, NoCIPolicy},
		"no CI policy on the host": {func(in *Input) { in.Facts.Policies = nil }, CIPolicyOther},
	} {
		in := Input{State: s.state, Host: s.host(), EK: s.ek, Facts: goodBoot().facts(t)}
		c.spoil(&in)
		if v := Judge(in); v.Passed || len(v.Findings) != 1 || v.Findings[0].Kind != c.want {
			t.Errorf("%s: %+v", name, v)
		}
	}
}

func TestVersion1NeedsNoCertificate(t *testing.T) {
	s := newSite(t)
	h := s.host()
	h.TPM = &policy.TPMIdentity{EK: h.TPM.EK, Version: policy.Version1, Forced: "old TPM"}
	s.state.Hosts[h.ID] = h
	s.state.Baselines["r740"] = s.baseline(t, goodBoot(), policy.Version1)
	s.state.CIPolicies["allow"] = s.ciPolicy(goodBoot(), policy.Version1)
	if v := s.judge(t, func(b *boot) { b.idks = false }); !v.Passed || v.Version != policy.Version1 {
		t.Fatalf("%+v", v)
	}
}

// violations breaks one policy at a time. Where a host can break it in several ways each stands here.
var violations = []struct {
	name   string
	policy string
	kind   Kind
	boot   func(*boot)
}{
	{"Secure Boot off", policy.HgsSecureBootEnabled, SecureBootOff, with(evidence.SecureBoot, 0)},
	{"other dbx", policy.HgsSecureBootSettings, BaselineOther, func(b *boot) { b.dbx = "nothing revoked" }},
	{"other authority", policy.HgsSecureBootSettings, BaselineOther, func(b *boot) { b.authority = []string{"somebody"} }},
	{"authority more", policy.HgsSecureBootSettings, BaselineOther, func(b *boot) { b.authority = append(b.authority, "option ROM") }},
	{"authority less", policy.HgsSecureBootSettings, BaselineOther, func(b *boot) { b.authority = nil }},
	{"DMA protection off", policy.HgsSecureBootSettings, BaselineOther, func(b *boot) { b.noDMA = true }},
	{"foreign boot loader", policy.HgsSecureBootSettings, ForeignLoader, func(b *boot) { b.foreign = true }},
	{"firmware debugger", policy.HgsUefiDebugDisabled, DebugOn, func(b *boot) { b.debugger = true }},
	{"boot debugger", policy.HgsUefiDebugDisabled, DebugOn, with(evidence.BootDebug, 1)},
	{"kernel debugger", policy.HgsUefiDebugDisabled, DebugOn, with(evidence.KernelDebug, 1)},
	{"hypervisor debugger", policy.HgsUefiDebugDisabled, DebugOn, with(evidence.HypervisorDebug, 1)},
	{"kernel debugger not measured", policy.HgsUefiDebugDisabled, SettingUnmeasured, lacking(evidence.KernelDebug)},
	{"hypervisor debugger not measured", policy.HgsUefiDebugDisabled, SettingUnmeasured, lacking(evidence.HypervisorDebug)},
	{"kernel debugger on and off", policy.HgsUefiDebugDisabled, SettingContradicts, func(b *boot) { b.twice = map[evidence.SettingID]uint64{evidence.KernelDebug: 1} }},
	{"other code integrity policy", policy.HgsCiPolicy, CIPolicyOther, func(b *boot) { b.ciPolicy = "everything" }},
	{"no code integrity policy", policy.HgsCiPolicy, CIPolicyOther, func(b *boot) { b.ciPolicy = "" }},
	{"code integrity off", policy.HgsCiPolicy, CodeIntegrityOff, with(evidence.CodeIntegrity, 0)},
	{"test signing", policy.HgsCiPolicy, TestSigningOn, with(evidence.TestSigning, 1)},
	{"safe mode", policy.HgsCiPolicy, NotNormalBoot, with(evidence.SafeMode, 1)},
	{"Windows PE", policy.HgsCiPolicy, NotNormalBoot, with(evidence.WinPE, 1)},
	{"HVCI off", policy.HgsHypervisorEnforcedCiPolicy, HVCIOff, with(evidence.HVCI, 0)},
	{"HVCI not measured", policy.HgsHypervisorEnforcedCiPolicy, SettingUnmeasured, lacking(evidence.HVCI)},
	{"resumed", policy.HgsFullBoot, NotFullBoot, with(evidence.TransferControl, 2)},
	{"start not measured", policy.HgsFullBoot, SettingUnmeasured, lacking(evidence.TransferControl)},
	{"no identity keys", policy.HgsVsmIdkPresent, NoIdentityKey, func(b *boot) { b.idk, b.idks = false, false }},
	{"no identity key for encryption", policy.HgsVsmIdkPresent, NoIdentityKey, func(b *boot) { b.idk = false }},
	{"no identity key for signing", policy.HgsVsmIdkPresent, NoIdentityKey, func(b *boot) { b.idks = false }},
	{"VSM off", policy.VsmRunning, VSMOff, with(evidence.VSMLaunch, 0)},
	{"IOMMU not required", policy.HgsIommuEnabled, IOMMUNotRequired, with(evidence.VBSIOMMU, 0)},
	{"IOMMU refused", policy.HgsIommuEnabled, IOMMUNotRequired, with(evidence.HypervisorIOMMU, 2)},
	{"plain page file", policy.HgsPageFileEncryptionEnabled, PageFilePlain, with(evidence.PageFileEncryption, 0)},
	{"no BitLocker", policy.HgsBitLockerEnabled, BitLockerOff, with(evidence.BitLockerUnlock, 0)},
	{"hibernation", policy.HgsNoHibernation, HibernationOn, with(evidence.HibernationDisabled, 0)},
	{"encrypted dumps", policy.HgsNoDumps, DumpsOn, with(evidence.DumpsDisabled, 0)},
}

func TestP13_20_EachPolicyViolatedAlone(t *testing.T) {
	s := newSite(t)
	s.set(true, policy.HgsBitLockerEnabled)
	var text strings.Builder
	seen := map[string]bool{}
	for _, c := range violations {
		seen[c.policy] = true
		v := s.judge(t, c.boot)
		b, _ := policy.BuiltinByName(c.policy)
		if v.Passed || len(v.Findings) != 1 || v.Findings[0].Kind != c.kind || !slices.Equal(v.Reasons(), []string{b.GUID}) {
			t.Errorf("%s: %+v", c.name, v)
		}
		for _, f := range v.Findings {
			if f.What == "" || f.Remedy == "" || f.SubStatus == "" || (f.EventID == 0) != (b.Events == nil) || f.Measured == "" || len(f.Expected) == 0 || f.Changed == "" {
				t.Errorf("%s: something is missing: %+v", c.name, f)
			}
			if (f.Accept != "") != (!b.Locked || f.Kind == BaselineOther || f.Kind == CIPolicyOther && !strings.Contains(f.Measured, "no policy")) {
				t.Errorf("%s: accept is %q", c.name, f.Accept)
			}
			text.WriteString("== " + c.name + "\n" + f.String())
		}
	}
	for _, b := range policy.Builtins {
		if !seen[b.Name] && b.Name != policy.HgsDumpEncryption && b.Name != policy.HgsDumpEncryptionKey { // in the table of dumps
			t.Errorf("%s is never violated", b.Name)
		}
	}
	golden(t, "findings.txt", text.String())
}

// TestDumpsFollowTheTruthTable is E19: three policies, four hosts.
func TestDumpsFollowTheTruthTable(t *testing.T) {
	s := newSite(t)
	hosts := []struct {
		name string
		boot func(*boot)
	}{
		{"off", func(*boot) {}},
		{"known key", with(evidence.DumpsDisabled, 0)},
		{"other key", func(b *boot) { b.settings[evidence.DumpsDisabled], b.dumpKey = 0, make([]byte, 32) }},
		{"no key", func(b *boot) { b.settings[evidence.DumpsDisabled], b.dumpKey = 0, nil }},
		{"plain", func(b *boot) { b.settings[evidence.DumpsDisabled], b.settings[evidence.DumpEncryption] = 0, 0 }},
		{"old", lacking(evidence.DumpsDisabled, evidence.DumpEncryption)},
	}
	N, E, K, OLD := string(DumpsOn), string(DumpsPlain), string(DumpKeyOther), string(DumpEventsMissing)
	for _, c := range []struct {
		noDumps, encryption, key bool
		want                     [6]string // by host
	}{
		{false, false, false, [6]string{}},
		{false, false, true, [6]string{}}, // the key is not applied while encryption is not asked for
		{false, true, false, [6]string{"", "", "", "", E, OLD}},
		{false, true, true, [6]string{"", "", K, K, E, OLD}},
		{true, false, false, [6]string{"", N, N, N, N, OLD}},
		{true, false, true, [6]string{"", N, N, N, N, OLD}},
		{true, true, false, [6]string{"", N, N, N, N + " " + E, OLD + " " + OLD}},
		{true, true, true, [6]string{"", N, N + " " + K, N + " " + K, N + " " + E, OLD + " " + OLD}},
	} {
		s.set(c.noDumps, policy.HgsNoDumps)
		s.set(c.encryption, policy.HgsDumpEncryption)
		s.set(c.key, policy.HgsDumpEncryptionKey)
		for i, h := range hosts {
			v := s.judge(t, h.boot)
			var kinds []string
			for _, f := range v.Findings {
				kinds = append(kinds, string(f.Kind))
			}
			if got := strings.Join(kinds, " "); got != c.want[i] || v.Passed != (got == "") {
				t.Errorf("NoDumps %v, DumpEncryption %v, DumpEncryptionKey %v, host with dumps %s: %q, want %q", c.noDumps, c.encryption, c.key, h.name, got, c.want[i])
			}
		}
	}
	s.set(false, policy.HgsNoDumps)
	s.state.DumpKeys = nil
	if v := s.judge(t, hosts[1].boot); len(v.Findings) != 1 || v.Findings[0].Kind != NoDumpKey {
		t.Errorf("without any dump key: %+v", v)
	}
}

func TestAllFailuresAtOnce(t *testing.T) {
	s := newSite(t)
	v := s.judge(t, with(evidence.SecureBoot, 0), with(evidence.VSMLaunch, 0), with(evidence.KernelDebug, 1), with(evidence.HibernationDisabled, 0),
		func(b *boot) { b.ciPolicy, b.dbx, b.idk = "", "", false })
	if len(v.Findings) != 7 || len(v.Reasons()) != 7 {
		t.Fatalf("%d findings, reasons %v", len(v.Findings), v.Reasons())
	}
	double := s.judge(t, with(evidence.KernelDebug, 1), with(evidence.BootDebug, 1))
	if len(double.Findings) != 2 || len(double.Reasons()) != 1 {
		t.Fatalf("one policy failed twice is named %v", double.Reasons())
	}
}

func TestWhoTheHostIsGoesBeforeWhatItBooted(t *testing.T) {
	for name, c := range map[string]struct {
		kind         Kind
		unauthorized bool
		spoil        func(*testing.T, *site, *Input)
	}{
		"unknown":  {UnknownHost, true, func(_ *testing.T, _ *site, in *Input) { in.Host = policy.Host{} }},
		"host key": {UnknownHost, true, func(_ *testing.T, _ *site, in *Input) { in.Host.TPM = nil }},
		"other EK": {WrongEK, true, func(t *testing.T, _ *site, in *Input) { in.EK = newSite(t).ek }},
		"no EK":    {WrongEK, true, func(_ *testing.T, _ *site, in *Input) { in.EK = nil }},
		"revoked":  {Revoked, true, func(_ *testing.T, _ *site, in *Input) { in.Host.Revoked = true }},
		"vendor off": {UntrustedEK, true, func(_ *testing.T, _ *site, in *Input) {
			in.State.VendorsOff = map[string]bool{"vendor": true}
		}},
		"root removed": {UntrustedEK, true, func(_ *testing.T, _ *site, in *Input) { in.State.Anchors = nil }},
		"no EK cert":   {UntrustedEK, true, func(_ *testing.T, _ *site, in *Input) { in.Host.TPM = &policy.TPMIdentity{Version: policy.Version2} }},
		"cert of other": {UntrustedEK, true, func(t *testing.T, s *site, in *Input) {
			other := *in.Host.TPM
			other.EKCert = s.issue(t, "TPM", &s.root.PublicKey, false)
			in.Host.TPM = &other
		}},
		"log refused": {BadLog, false, func(_ *testing.T, _ *site, in *Input) {
			in.Facts, in.Failure = nil, &evidence.Failure{Kind: evidence.KindDigest, PCR: 7, Event: 3, Detail: "x"}
		}},
		"no log": {BadLog, false, func(_ *testing.T, _ *site, in *Input) { in.Facts = nil }},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			in := Input{State: s.state, Host: s.host(), EK: s.ek, Facts: goodBoot().facts(t)}
			c.spoil(t, s, &in)
			v := Judge(in)
			if v.Passed || len(v.Findings) != 1 || v.Findings[0].Kind != c.kind || v.Unauthorized() != c.unauthorized || v.LogRefused() != (c.kind == BadLog) || v.Reasons() != nil {
				t.Fatalf("%+v", v)
			}
			if v.Findings[0].Remedy == "" {
				t.Error("no remedy")
			}
		})
	}
}

func TestVersionsAreNotMixed(t *testing.T) {
	s := newSite(t)
	s.state.Baselines["r740"] = s.baseline(t, goodBoot(), policy.Version1)
	s.state.CIPolicies["allow"] = s.ciPolicy(goodBoot(), policy.Version1)
	v := s.judge(t)
	if len(v.Findings) != 2 || v.Findings[0].Kind != VersionsMixed || v.Findings[1].Kind != VersionsMixed || !strings.Contains(v.Findings[0].What, "r740 matches") {
		t.Fatalf("%+v", v)
	}
}

func TestNegativePoliciesWithNothingRegisteredSaySo(t *testing.T) {
	s := newSite(t)
	s.state.Baselines, s.state.CIPolicies = nil, nil
	v := s.judge(t)
	if len(v.Findings) != 2 || v.Findings[0].Kind != NoBaseline || v.Findings[1].Kind != NoCIPolicy {
		t.Fatalf("%+v", v)
	}
	for _, f := range v.Findings {
		if !strings.Contains(f.What, "is registered") {
			t.Error(f.What)
		}
	}
	// The third negative policy: dumps are on, encrypted, and nobody's key is known.
	s = newSite(t)
	s.state.DumpKeys = nil
	s.set(false, policy.HgsNoDumps)
	v = s.judge(t, with(evidence.DumpsDisabled, 0))
	if len(v.Findings) != 1 || v.Findings[0].Kind != NoDumpKey || !strings.Contains(v.Findings[0].What, "registered") || v.Findings[0].Remedy == "" {
		t.Errorf("%+v", v.Findings)
	}
}

func TestClassesHaveTheirOwnPoliciesAboveTheLockedFloor(t *testing.T) {
	s := newSite(t)
	s.state.PolicySets = map[string]policy.PolicySet{"edge": {Class: "edge", Enabled: map[string]bool{policy.HgsIommuEnabled: false, policy.VsmRunning: false}}}
	old := with(evidence.VBSIOMMU, 0)
	if v := s.judge(t, old); v.Passed {
		t.Error("another class's exception counted")
	}
	h := s.host()
	h.Class = "edge"
	s.state.Hosts[h.ID] = h
	if v := s.judge(t, old); !v.Passed {
		t.Errorf("%+v", v)
	}
	if v := s.judge(t, with(evidence.VSMLaunch, 0)); v.Passed {
		t.Error("a class switched a locked policy off")
	}
}

func TestTheVerdictDoesNotDependOnTheOrderOfMaps(t *testing.T) {
	s := newSite(t)
	for _, name := range []string{"a", "b", "c", "d", "z"} {
		base := s.baseline(t, goodBoot(), policy.Version2)
		base.Name = name
		s.state.Baselines[name] = base
	}
	first := s.judge(t, with(evidence.KernelDebug, 1))
	for range 20 {
		if v := s.judge(t, with(evidence.KernelDebug, 1)); !reflect.DeepEqual(v, first) || v.Matched.Baseline != "a" {
			t.Fatalf("%+v", v)
		}
	}
}

func TestRecordsKeepVerdictAndFacts(t *testing.T) {
	s := newSite(t)
	b := goodBoot()
	long := strings.Repeat("é", 4000)
	b.ciPolicy, b.dbx = "other", "other"
	facts := b.facts(t)
	v := Judge(Input{State: s.state, Host: s.host(), EK: s.ek, Facts: facts})
	v.Findings[0].Measured, v.Findings[0].Changed = long, long
	for range 40 {
		v.Findings[0].Expected = append(v.Findings[0].Expected, long)
	}
	m, err := Record(&v, facts, map[string]string{"log": "abc"})
	if err != nil {
		t.Fatal(err)
	}
	if len(m) > policy.MaxAuditFacts || m["log"] != "abc" {
		t.Fatalf("%d strings", len(m))
	}
	for k, s := range m {
		if len(s) > maxString {
			t.Errorf("%s has %d bytes", k, len(s))
		}
	}
	back, proved, err := Recorded(m)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(proved, facts) || len(back.Findings) != len(v.Findings) || !reflect.DeepEqual(back.Findings[1], v.Findings[1]) || back.Matched != v.Matched {
		t.Fatalf("%+v", back)
	}
	for _, bad := range []map[string]string{nil, {"verdict": "x"}, {"verdict": "{}", "finding0": "x"}, {"verdict": "{}", "facts0": "AAAA"}, {"verdict": "{}", "facts0": "!"}} {
		if _, _, err := Recorded(bad); !errors.Is(err, ErrRecord) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}
