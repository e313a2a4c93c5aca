package evidence

import (
	"encoding/hex"
	"testing"
)

func hexOf(b []byte) string { return hex.EncodeToString(b) }

func FuzzParseLog(f *testing.F) {
	for _, name := range []string{"crypto_agile_eventlog", "short_no_action_eventlog", "debian-10.bin"} {
		f.Add(read(f, name))
	}
	f.Add(goodBoot(SHA1, SHA256).Log())
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, bank := range []Bank{SHA1, SHA256} {
			pcrs, failure := Replay(raw, bank)
			if failure != nil {
				continue
			}
			facts, failure := Prove(raw, pcrs, bank)
			if (facts == nil) == (failure == nil) {
				t.Fatal("facts and failure, or neither")
			}
		}
		_, _ = ParseBaseline(raw)
		if l, failure := ParseLog(raw); failure == nil {
			for i := range l.Events {
				if len(l.Describe(i)) > 4096 {
					t.Fatal("a long description")
				}
			}
		}
	})
}

// FuzzTagged fuzzes the Windows events behind digests that fit them.
func FuzzTagged(f *testing.F) {
	for _, e := range (&boot{}).system() {
		f.Add(e)
		f.Add(TrustBoundary(e))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		b := &boot{NewWriter(SHA1)}
		b.firmware()
		b.Event(12, EventTag, data)
		b.Event(7, EventVariableAuthz, data)
		b.seal()
		facts, failure := Prove(b.Log(), b.PCRs(SHA1), SHA1)
		if (facts == nil) == (failure == nil) {
			t.Fatal("facts and failure, or neither")
		}
	})
}
