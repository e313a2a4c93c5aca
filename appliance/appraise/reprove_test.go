package appraise

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"guardhouse/appliance/evidence"
)

// shown is a boot as a host shows it.
type shown struct {
	log  []byte
	pcrs evidence.PCRs
	bank evidence.Bank
}

// boots are two real boots of Windows and one of our own making.
func boots(t *testing.T) map[string]shown {
	t.Helper()
	raw, pcrs := virtualMachine(t)
	laptop, err := os.ReadFile(filepath.Join("..", "evidence", "testdata", "option_rom_eventlog"))
	if err != nil {
		t.Fatal(err)
	}
	replayed, failure := evidence.Replay(laptop, evidence.SHA256)
	bank := evidence.SHA256
	if failure != nil {
		if replayed, failure = evidence.Replay(laptop, evidence.SHA1); failure != nil {
			t.Fatal(failure)
		}
		bank = evidence.SHA1
	}
	w := goodBoot().write()
	return map[string]shown{"virtual machine": {raw, pcrs, evidence.SHA1}, "laptop": {laptop, replayed, bank}, "ours": {w.Log(), w.PCRs(evidence.SHA256), evidence.SHA256}}
}

// kept is what is kept of it.
func (b *shown) kept(t *testing.T) map[string]string {
	t.Helper()
	facts, failure := evidence.Prove(b.log, b.pcrs, b.bank)
	if failure != nil {
		t.Fatal(failure)
	}
	sum := sha256.Sum256(b.log)
	m, err := Record(&Verdict{Passed: true, Matched: Matched{Host: "host", Baseline: "baseline", CIPolicy: "policy"}}, facts,
		map[string]string{"log": hex.EncodeToString(sum[:]), "source": "2001:db8::1", "pcrs": RecordPCRs(b.bank, &b.pcrs)})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestEvidenceOfAHostTakesFourKilobytes: facts, reading and verdict of a boot that passed.
func TestEvidenceOfAHostTakesFourKilobytes(t *testing.T) {
	for name, b := range boots(t) {
		j, err := json.Marshal(b.kept(t))
		if err != nil || len(j) > 4<<10 {
			t.Errorf("%s: %d bytes, %v", name, len(j), err)
		}
		t.Logf("%s: %d bytes beside a log of %d", name, len(j), len(b.log))
	}
}

func TestStoredLogsProveWhatIsOnRecord(t *testing.T) {
	for name, b := range boots(t) {
		m := b.kept(t)
		facts, err := Reprove(m, b.log)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		_, was, err := Recorded(m)
		if err != nil {
			t.Fatal(err)
		}
		before, _ := json.Marshal(was)
		if now, _ := json.Marshal(facts); !bytes.Equal(before, now) {
			t.Errorf("%s: %s", name, firstDifference(before, now))
		}
		for i := 0; i < len(b.log); i += 97 {
			bad := bytes.Clone(b.log)
			bad[i] ^= 4
			if _, err := Reprove(m, bad); !errors.Is(err, ErrOtherLog) {
				t.Fatalf("%s: byte %d: %v", name, i, err)
			}
		}
	}
}

// TestPCRsOfARecordSurvive: and nothing else reads as PCR values.
func TestPCRsOfARecordSurvive(t *testing.T) {
	for name, b := range boots(t) {
		s := RecordPCRs(b.bank, &b.pcrs)
		bank, pcrs, err := RecordedPCRs(s)
		if err != nil || bank != b.bank {
			t.Fatalf("%s: %v", name, err)
		}
		for i := range pcrs {
			if want := b.pcrs[i]; i < recordedPCRs && !bytes.Equal(pcrs[i], want) {
				t.Errorf("%s: PCR %d is %x, not %x", name, i, pcrs[i], want)
			}
		}
		for n := 0; n < len(s); n += 4 {
			if _, _, err := RecordedPCRs(s[:n]); err == nil {
				t.Errorf("%s: %d of %d characters are enough", name, n, len(s))
			}
		}
	}
}

func FuzzRecordedPCRs(f *testing.F) {
	w := goodBoot().write()
	pcrs := w.PCRs(evidence.SHA256)
	f.Add(RecordPCRs(evidence.SHA256, &pcrs))
	f.Add("AAQ=")
	f.Fuzz(func(t *testing.T, s string) {
		bank, pcrs, err := RecordedPCRs(s)
		if err != nil {
			return
		}
		again, same, err := RecordedPCRs(RecordPCRs(bank, &pcrs))
		if err != nil || again != bank {
			t.Fatalf("%q: %v", s, err)
		}
		for i := range pcrs {
			if !bytes.Equal(pcrs[i], same[i]) {
				t.Fatalf("%q: PCR %d", s, i)
			}
		}
	})
}
