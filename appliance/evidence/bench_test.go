package evidence_test

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/google/go-attestation/attest"

	"guardhouse/appliance/evidence"
)

type dump struct {
	Log struct {
		PCRs []attest.PCR
		Raw  []byte
	}
}

func loadVM(b *testing.B) (d dump, pcrs evidence.PCRs) {
	b.Helper()
	raw, err := os.ReadFile("testdata/windows_gcp_shielded_vm.json")
	if err != nil {
		b.Fatal(err)
	}
	if err := json.Unmarshal(raw, &d); err != nil {
		b.Fatal(err)
	}
	for i, p := range d.Log.PCRs {
		pcrs[p.Index] = p.Digest
		d.Log.PCRs[i].DigestAlg = 3 // crypto.SHA1
	}
	b.SetBytes(int64(len(d.Log.Raw)))
	b.ReportAllocs()
	return d, pcrs
}

// BenchmarkProve proves the Windows log of 43 KB.
func BenchmarkProve(b *testing.B) {
	d, pcrs := loadVM(b)
	for b.Loop() {
		if _, f := evidence.Prove(d.Log.Raw, pcrs, evidence.SHA1); f != nil {
			b.Fatal(f)
		}
	}
}

// BenchmarkGoAttestation does the nearest thing with another library, for comparison.
func BenchmarkGoAttestation(b *testing.B) {
	d, _ := loadVM(b)
	for b.Loop() {
		l, err := attest.ParseEventLog(d.Log.Raw)
		if err != nil {
			b.Fatal(err)
		}
		events, err := l.Verify(d.Log.PCRs)
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
}
