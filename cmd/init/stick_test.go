package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"guardhouse/appliance/sandbox"
	"guardhouse/appliance/update"
)

// What keeps drivers from a stick is the kernel's word; this finds the devices that wait for ours.
func TestOnlyDevicesThatWaitAreLetIn(t *testing.T) {
	sys := t.TempDir()
	for name, text := range map[string]string{"usb1": "1\n", "1-1": "0\n", "1-1:1.0": "0\n", "1-2": "1\n", "1-1.4": "0\n", "2-1": ""} {
		dir := filepath.Join(sys, "bus/usb/devices", name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "authorized"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := unauthorized(sys); !slices.Equal(got, []string{"1-1", "1-1.4"}) {
		t.Errorf("%q", got)
	}
	if got := unauthorized(t.TempDir()); len(got) != 0 {
		t.Errorf("a machine without USB has %q", got)
	}
}

// The confined process opens its release keys before it reads anything; a changed path would make every update fail.
func TestTheReaderOfUpdatesReachesItsKeysAndNothingElse(t *testing.T) {
	if want := []sandbox.Reach{{Path: update.KeysFile}}; !slices.Equal(sandbox.UpdateProcess.Confine.Files, want) {
		t.Errorf("%v", sandbox.UpdateProcess.Confine.Files)
	}
}
