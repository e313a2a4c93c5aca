package appraise

import (
	"crypto"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-attestation/attest"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
)

// virtualMachine is a real boot of Windows Server in a cloud, with the PCR values its TPM reported.
func virtualMachine(t testing.TB) (raw []byte, pcrs evidence.PCRs) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "evidence", "testdata", "windows_gcp_shielded_vm.json"))
	if err != nil {
		t.Fatal(err)
	}
	var j struct {
		Log struct {
			PCRs []struct {
				Index  int
				Digest []byte
			}
			Raw []byte
		}
	}
	if err := json.Unmarshal(b, &j); err != nil {
		t.Fatal(err)
	}
	for _, p := range j.Log.PCRs {
		pcrs[p.Index] = p.Digest
	}
	return j.Log.Raw, pcrs
}

// adopt registers what a boot measured.
func (s *site) adopt(facts *evidence.Facts) {
	base := policy.Baseline{Name: "vm", Version: policy.Version2}
	base.Variables, base.Authorities, base.NoDMA = Baseline(facts)
	s.state.Baselines["vm"] = base
	for _, p := range facts.Policies {
		s.state.CIPolicies[p.Name] = policy.CIPolicy{Name: p.Name, Version: policy.Version2, Digests: []policy.HashValue{{Alg: uint16(p.Hash), Digest: p.Digest}}}
	}
}

// TestTheVirtualMachineFailsOnlyForWhatItLacks: a machine without VSM, whose other settings are those of a fresh installation.
func TestTheVirtualMachineFailsOnlyForWhatItLacks(t *testing.T) {
	raw, pcrs := virtualMachine(t)
	facts, failure := evidence.Prove(raw, pcrs, evidence.SHA1)
	if failure != nil {
		t.Fatal(failure)
	}
	s := newSite(t)
	s.adopt(facts)
	s.set(false, policy.HgsNoHibernation, policy.HgsNoDumps, policy.HgsDumpEncryption, policy.HgsPageFileEncryptionEnabled)
	v := Judge(Input{State: s.state, Host: s.host(), EK: s.ek, Facts: facts})
	var failed []string
	for _, f := range v.Findings {
		failed = append(failed, f.Policy)
	}
	want := []string{policy.HgsHypervisorEnforcedCiPolicy, policy.HgsVsmIdkPresent, policy.VsmRunning, policy.HgsIommuEnabled}
	if len(facts.Policies) == 0 {
		want = slices.Insert(want, 0, policy.HgsCiPolicy)
	}
	if !slices.Equal(failed, want) || v.Matched.Baseline != "vm" {
		t.Fatalf("failed %v, matched %+v", failed, v.Matched)
	}
}

// BenchmarkAppraise proves and judges the real log of 43 KB, as for one attestation.
func BenchmarkAppraise(b *testing.B) {
	raw, pcrs := virtualMachine(b)
	s := newSite(b)
	trust, _ := NewTrust(s.state)
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		facts, failure := evidence.Prove(raw, pcrs, evidence.SHA1)
		if failure != nil {
			b.Fatal(failure)
		}
		if v := Judge(Input{State: s.state, Trust: trust, Host: s.host(), EK: s.ek, Facts: facts}); v.Passed {
			b.Fatal("passed")
		}
	}
}

// BenchmarkBesideGoAttestation proves and judges the log by turns with the nearest thing that another library does with it, so that what
// else the machine does falls on both: times-as-fast is the bound's number, with appraise-ns and appraise-allocs.
func BenchmarkBesideGoAttestation(b *testing.B) {
	raw, pcrs := virtualMachine(b)
	var theirs []attest.PCR
	for i, p := range pcrs {
		theirs = append(theirs, attest.PCR{Index: i, Digest: p, DigestAlg: crypto.SHA1})
	}
	s := newSite(b)
	trust, _ := NewTrust(s.state)
	ours := func() {
		facts, failure := evidence.Prove(raw, pcrs, evidence.SHA1)
		if failure != nil {
			b.Fatal(failure)
		}
		Judge(Input{State: s.state, Trust: trust, Host: s.host(), EK: s.ek, Facts: facts})
	}
	other := func() {
		l, err := attest.ParseEventLog(raw)
		if err != nil {
			b.Fatal(err)
		}
		events, err := l.Verify(theirs)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := attest.ParseSecurebootState(events); err != nil {
			b.Fatal(err)
		}
		if _, err := attest.ParseWinEvents(events); err != nil {
			b.Fatal(err)
		}
	}
	allocs, otherAllocs := testing.AllocsPerRun(20, ours), testing.AllocsPerRun(20, other)
	var mine, its time.Duration
	for b.Loop() {
		begin := time.Now()
		ours()
		middle := time.Now()
		other()
		mine, its = mine+middle.Sub(begin), its+time.Since(middle)
	}
	b.ReportMetric(float64(its)/float64(mine), "times-as-fast")
	b.ReportMetric(float64(mine)/float64(b.N), "appraise-ns")
	b.ReportMetric(float64(its)/float64(b.N), "go-attestation-ns")
	b.ReportMetric(allocs, "appraise-allocs")
	b.ReportMetric(otherAllocs, "go-attestation-allocs")
}

// TestAppraisalAllocatesLittle: the bound of 300, which no noise of the machine moves.
func TestAppraisalAllocatesLittle(t *testing.T) {
	raw, pcrs := virtualMachine(t)
	s := newSite(t)
	trust, _ := NewTrust(s.state)
	allocs := testing.AllocsPerRun(20, func() {
		facts, _ := evidence.Prove(raw, pcrs, evidence.SHA1)
		Judge(Input{State: s.state, Trust: trust, Host: s.host(), EK: s.ek, Facts: facts})
	})
	if allocs > 300 {
		t.Errorf("%v allocations", allocs)
	}
}

// BenchmarkAppraiseGood does the same with the log of a host that passes.
func BenchmarkAppraiseGood(b *testing.B) {
	w := goodBoot().write()
	raw, pcrs := w.Log(), w.PCRs(evidence.SHA256)
	s := newSite(b)
	trust, _ := NewTrust(s.state)
	b.ReportAllocs()
	for b.Loop() {
		facts, failure := evidence.Prove(raw, pcrs, evidence.SHA256)
		if failure != nil {
			b.Fatal(failure)
		}
		if v := Judge(Input{State: s.state, Trust: trust, Host: s.host(), EK: s.ek, Facts: facts}); !v.Passed {
			b.Fatal(v.Findings)
		}
	}
}

// BenchmarkJudge judges facts alone, as a dry run does.
func BenchmarkJudge(b *testing.B) {
	facts := goodBoot().facts(b)
	s := newSite(b)
	trust, _ := NewTrust(s.state)
	b.ReportAllocs()
	for b.Loop() {
		if v := Judge(Input{State: s.state, Trust: trust, Host: s.host(), EK: s.ek, Facts: facts}); !v.Passed {
			b.Fatal(v.Findings)
		}
	}
}

// BenchmarkDryRun is one host's part of a dry run: its stored facts are read and judged under two sets of policies.
func BenchmarkDryRun(b *testing.B) {
	facts := goodBoot().facts(b)
	s := newSite(b)
	v := Judge(Input{State: s.state, Host: s.host(), EK: s.ek, Facts: facts})
	m, err := Record(&v, facts, nil)
	if err != nil {
		b.Fatal(err)
	}
	size := 0
	for _, text := range m {
		size += len(text)
	}
	for b.Loop() {
		_, stored, err := Recorded(m)
		if err != nil {
			b.Fatal(err)
		}
		for range 2 {
			if v := Review(Input{State: s.state, Host: s.host(), Facts: stored}); !v.Passed {
				b.Fatal(v.Findings)
			}
		}
	}
	b.ReportMetric(float64(size), "bytes/host")
}
