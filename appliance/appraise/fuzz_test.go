package appraise

import (
	"bytes"
	"encoding/binary"
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
		b.once = true // no second copy that contradicts
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

// TestNoEditTowardsAGoodLogTurnsARefusalIntoAPass is the same with what an attacker would try: the log of a host that fails is edited
// towards the log of one that passes, bit by bit where they differ, event by event with the digest or without it, and from each event on.
// Settings are measured once only, so that no second copy contradicts the edited one.
func TestNoEditTowardsAGoodLogTurnsARefusalIntoAPass(t *testing.T) {
	s := newSite(t)
	s.set(true, policy.HgsBitLockerEnabled)
	trust, _ := NewTrust(s.state)
	judge := func(log []byte, pcrs evidence.PCRs) bool {
		facts, failure := evidence.Prove(log, pcrs, evidence.SHA256)
		return Judge(Input{State: s.state, Trust: trust, Host: s.host(), EK: s.ek, Facts: facts, Failure: failure}).Passed
	}
	good := goodBoot()
	good.once = true
	w := good.write()
	goodLog := w.Log()
	if !judge(goodLog, w.PCRs(evidence.SHA256)) {
		t.Fatal("the control: a good host does not pass")
	}
	goodEvents := events(t, goodLog)
	tried := 0
	for _, c := range violations {
		b := goodBoot()
		b.once = true
		c.boot(b)
		w := b.write()
		log, pcrs := w.Log(), w.PCRs(evidence.SHA256)
		edits := [][]byte{log, goodLog}
		bad := events(t, log)
		for i := range min(len(bad), len(goodEvents)) {
			head, tail := bytes.Join(bad[:i], nil), bytes.Join(bad[i+1:], nil)
			edits = append(edits,
				bytes.Join([][]byte{head, goodEvents[i], tail}, nil),                                 // one event
				bytes.Join([][]byte{head, withData(bad[i], goodEvents[i]), tail}, nil),               // its data only
				bytes.Join([][]byte{head, bytes.Join(goodEvents[i:], nil)}, nil),                     // the rest of the log
				bytes.Join([][]byte{bytes.Join(goodEvents[:i], nil), bytes.Join(bad[i:], nil)}, nil), // all before it
				bytes.Join([][]byte{head, tail}, nil),                                                // without it
				bytes.Join([][]byte{head, goodEvents[i], bad[i], tail}, nil))                         // one more
		}
		for i := 0; len(log) == len(goodLog) && i < len(log); i++ {
			for bit := 0; bit < 8 && log[i] != goodLog[i]; bit++ {
				flipped := bytes.Clone(log)
				flipped[i] ^= 1 << bit
				edits = append(edits, flipped)
			}
		}
		for i, edit := range edits {
			if tried++; judge(edit, pcrs) {
				t.Fatalf("%s: the host passes with edit %d of its log", c.name, i)
			}
		}
	}
	t.Logf("%d logs", tried)
}

// events cuts a crypto-agile log into its events, the first one (the header) included.
func events(t *testing.T, log []byte) (list [][]byte) {
	t.Helper()
	le := binary.LittleEndian
	digests := map[uint16]int{4: 20, 11: 32}
	for n := 32 + int(le.Uint32(log[28:])); ; {
		list, log = append(list, log[:n]), log[n:]
		if len(log) == 0 {
			return list
		}
		n = sizeAt(log, digests)
		n += 4 + int(le.Uint32(log[n:]))
	}
}

// sizeAt is where the size of an event's data stands.
func sizeAt(event []byte, digests map[uint16]int) int {
	le := binary.LittleEndian
	at := 12
	for range le.Uint32(event[8:]) {
		at += 2 + digests[le.Uint16(event[at:])]
	}
	return at
}

// withData is an event with the data of another one.
func withData(event, other []byte) []byte {
	digests := map[uint16]int{4: 20, 11: 32}
	if binary.LittleEndian.Uint32(event[8:]) != 2 || binary.LittleEndian.Uint32(other[8:]) != 2 {
		return event // the header
	}
	return append(bytes.Clone(event[:sizeAt(event, digests)]), other[sizeAt(other, digests):]...)
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
