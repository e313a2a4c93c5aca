package evidence

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files")

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// vm is the virtual machine's log and the PCR values its TPM reported.
func vm(t testing.TB) ([]byte, PCRs) {
	t.Helper()
	var j struct {
		Log struct {
			PCRs []struct {
				Index  int
				Digest []byte
			}
			Raw []byte
		}
	}
	if err := json.Unmarshal(read(t, "windows_gcp_shielded_vm.json"), &j); err != nil {
		t.Fatal(err)
	}
	var pcrs PCRs
	for _, p := range j.Log.PCRs {
		pcrs[p.Index] = p.Digest
	}
	return j.Log.Raw, pcrs
}

// laptop comes without PCR values: its own replay stands for them.
func laptop(t testing.TB) ([]byte, PCRs) {
	t.Helper()
	raw := read(t, "option_rom_eventlog")
	pcrs, f := Replay(raw, SHA1)
	if f != nil {
		t.Fatal(f)
	}
	return raw, pcrs
}

func mustProve(t testing.TB, raw []byte, pcrs PCRs, bank Bank) *Facts {
	t.Helper()
	facts, f := Prove(raw, pcrs, bank)
	if f != nil {
		t.Fatal(f)
	}
	return facts
}

func asJSON(t testing.TB, f *Facts) []byte {
	t.Helper()
	b, err := json.MarshalIndent(f, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return append(b, '\n')
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		t.Fatalf("%s does not exist; run with -update", path)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("differs from %s:\n%s", path, got)
	}
}

func TestGoldenVirtualMachine(t *testing.T) {
	raw, pcrs := vm(t)
	facts := mustProve(t, raw, pcrs, SHA1)
	golden(t, "windows_gcp_shielded_vm.facts.json", asJSON(t, facts))
	if !facts.Settings[SecureBoot].Only(1) || !facts.Settings[VSMLaunch].Only(0) || facts.IDK != nil || facts.Settings[VBSRequired].Measured() {
		t.Error("a virtual machine with Secure Boot and without VSM is described otherwise")
	}
	if full, known := facts.FullBoot(); !full || !known {
		t.Error("the virtual machine booted fully")
	}
}

func TestGoldenLaptop(t *testing.T) {
	raw, pcrs := laptop(t)
	facts := mustProve(t, raw, pcrs, SHA1)
	golden(t, "option_rom.facts.json", asJSON(t, facts))
	if !slices.Equal(facts.Settings[TransferControl].Values(), []uint64{1, 5}) || !slices.Equal(facts.Settings[BitLockerUnlock].Values(), []uint64{4, 1}) {
		t.Error("boot manager and hypervisor loader are described otherwise")
	}
	if !slices.Contains(facts.Quirks, QuirkTrustPoint) {
		t.Error("the trust point went unnoticed")
	}
	if len(asJSON(t, facts)) > 8<<10 {
		t.Error("facts are not small")
	}
}

func TestFactsSurviveStorage(t *testing.T) {
	raw, pcrs := laptop(t)
	facts := mustProve(t, raw, pcrs, SHA1)
	b, err := json.Marshal(facts)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > 4<<10 {
		t.Errorf("stored facts have %d bytes", len(b))
	}
	var back Facts
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(asJSON(t, &back), asJSON(t, facts)) || back.Settings != facts.Settings {
		t.Error("facts changed in storage")
	}
	if err := json.Unmarshal([]byte(`{"settings":{"nosuch":{"v":[1]}}}`), &back); err == nil {
		t.Error("an unknown setting was dropped silently")
	}
}

func TestBaselineNeedsNoPCRs(t *testing.T) {
	raw, pcrs := vm(t)
	facts := mustProve(t, raw, pcrs, SHA1)
	base, f := ParseBaseline(raw)
	if f != nil {
		t.Fatal(f)
	}
	if !bytes.Equal(asJSON(t, base), asJSON(t, facts)) {
		t.Error("the same log gives other facts as a baseline")
	}
}
