package appraise

import (
	"bytes"
	"testing"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
)

// TestNoFlippedBitTurnsARefusalIntoAPass changes every byte of the logs of hosts that fail; what the TPM reported stays as it was.
func TestNoFlippedBitTurnsARefusalIntoAPass(t *testing.T) {
	s := newSite(t)
	s.set(true, policy.HgsBitLockerEnabled)
	trust, _ := NewTrust(s.state)
	tried := 0
	for n, c := range violations {
		if n%5 != 0 { // each flip replays the log; five runs of the whole list would find no more
			continue
		}
		b := goodBoot()
		c.boot(b)
		w := b.write()
		pcrs := w.PCRs(evidence.SHA256)
		for i := range w.Log() {
			log := bytes.Clone(w.Log())
			log[i] ^= 1 << (i % 8)
			facts, failure := evidence.Prove(log, pcrs, evidence.SHA256)
			tried++
			if v := Judge(Input{State: s.state, Trust: trust, Host: s.host(), EK: s.ek, Facts: facts, Failure: failure}); v.Passed {
				t.Fatalf("%s: the host passes with byte %d of its log changed", c.name, i)
			}
		}
	}
	t.Logf("%d logs", tried)
}

// FuzzJudge appraises whatever replays to itself: no input may panic, and what passes must have what the locked policies ask for.
func FuzzJudge(f *testing.F) {
	s := newSite(f)
	s.set(false, policy.HgsDumpEncryption)
	f.Add(goodBoot().write().Log())
	for _, c := range violations {
		b := goodBoot()
		c.boot(b)
		f.Add(b.write().Log())
	}
	raw, _ := virtualMachine(f)
	f.Add(raw)
	trust, _ := NewTrust(s.state)
	f.Fuzz(func(t *testing.T, log []byte) {
		facts, failure := evidence.ParseBaseline(log)
		v := Judge(Input{State: s.state, Trust: trust, Host: s.host(), EK: s.ek, Facts: facts, Failure: failure, LastGood: facts})
		if v.Passed != (len(v.Findings) == 0) || v.Passed && (facts == nil || len(facts.IDK) == 0 || !facts.Settings.Get(evidence.SecureBoot).Only(1) || v.Matched.Baseline == "") {
			t.Fatalf("%+v", v)
		}
		m, err := Record(&v, facts, nil)
		if err != nil {
			return // more facts than fit: the caller logs it
		}
		if back, _, err := Recorded(m); err != nil || back.Passed != v.Passed {
			t.Fatalf("%v", err)
		}
	})
}

// FuzzRecorded reads records that somebody else wrote.
func FuzzRecorded(f *testing.F) {
	f.Add(`{"passed":true}`, `{"kind":"x"}`, "S0vMKU0FAA==")
	f.Fuzz(func(t *testing.T, verdict, finding, facts string) {
		Recorded(map[string]string{"verdict": verdict, "finding0": finding, "facts0": facts})
	})
}
