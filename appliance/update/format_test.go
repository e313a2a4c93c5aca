package update

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"guardhouse/appliance/disk"
)

// reads is a release that reads and writes these forms.
func reads(oldest, newest, writes int) Manifest {
	return Manifest{MinStoredFormat: oldest, StoredFormat: newest, WritesFormat: writes}
}

func TestTheVolumeKnowsTheFormOfItsData(t *testing.T) {
	file := filepath.Join(t.TempDir(), "format.json")
	for _, step := range []struct {
		name    string
		release uint64
		own     Manifest
		want    int
		refused string
	}{
		{name: "first", release: 1, own: reads(1, 1, 1), want: 1},
		{name: "reads the next form", release: 2, own: reads(1, 2, 1), want: 1},
		{name: "writes it", release: 3, own: reads(1, 2, 2), want: 2},
		{name: "one back", release: 2, own: reads(1, 2, 1), want: 2},
		{name: "two back", release: 1, own: reads(1, 1, 1), refused: "format 1 to 1, and this volume's is 2, by release 3"},
		{name: "forward again", release: 3, own: reads(2, 2, 2), want: 2},
		{name: "too far forward", release: 9, own: reads(3, 3, 3), refused: "format 3 to 3, and this volume's is 2"},
	} {
		got, err := claimFormat(file, step.release, step.own)
		var de *disk.Error
		if got != step.want || (err != nil) != (step.refused != "") {
			t.Errorf("%s: %d %v", step.name, got, err)
		}
		if step.refused != "" && (!errors.As(err, &de) || de.Kind != KindUnreadable || de.Remedy == "" || !strings.Contains(de.What, step.refused)) {
			t.Errorf("%s: %v", step.name, err)
		}
	}
	for _, text := range []string{"", "{", `{"version":2,"format":1}`, `{"version":1}`} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := ClaimFormat(file, 4); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
}

// A release that the old one could not follow is refused before it starts, so nobody has to find out on the way back.
func TestATrialIsNotTakenBackToAReleaseThatCantReadTheData(t *testing.T) {
	u, _ := updater(t)
	if err := errors.Join(u.Begin(Manifest{Number: 7, Version: "1.4"}), u.Wrote(nil), u.Try()); err != nil {
		t.Fatal(err)
	}
	reboot(t, u, 1, 7)
	u.Format = StoredFormat + 1
	if what, err := u.Back("ada"); err == nil || !strings.Contains(err.Error(), "release 6 reads stored data up to format") || !u.OnTrial() {
		t.Errorf("%q %v", what, err)
	}
	u.Format = StoredFormat
	if _, err := u.Back("ada"); err != nil {
		t.Error(err)
	}
}
