package volume

import (
	"encoding/json"
	"os"
	"testing"

	"guardhouse/appliance/disk"
)

// TestOnlyTheVolumesOwnSecretIsTaken: also where a foreign header wraps a key of its own with a secret that its maker knows.
func TestOnlyTheVolumesOwnSecretIsTaken(t *testing.T) {
	device, err := os.CreateTemp(t.TempDir(), "")
	if err == nil {
		err = device.Truncate(16 << 20)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	v := &Volume{header: &disk.Header{Volume: testVolume}}
	_, texts := wrapped(t, FormPassphrase)
	wantKind(t, v.CheckRecovery(texts), KindNoSecret)
	for _, form := range []string{FormPassphrase, FormShares} {
		s, texts := wrapped(t, form)
		slot, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		v.header.SetSlot(SlotRecovery, slot)
		if err := disk.WriteHeader(device, v.header, testKey); err != nil {
			t.Fatal(err)
		}
		if err := v.CheckRecovery(texts); err != nil {
			t.Errorf("%s: %v", form, err)
		}
		_, other := wrapped(t, form)
		wantKind(t, v.CheckRecovery(other), KindWrongSecret)
		wantKind(t, v.CheckRecovery(texts[:0]), KindMistyped)
		v.header.SetSlot("tpm", []byte("of somebody else")) // the MAC does not fit any more
		wantKind(t, v.CheckRecovery(texts), disk.KindUnproved)
	}
}
