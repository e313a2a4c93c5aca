package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"guardhouse/images/keys"
)

var moment = time.Unix(1795000000, 0)

func keySet(t *testing.T, name string) *keys.Set {
	t.Helper()
	s, err := keys.Make(filepath.Join(t.TempDir(), "keys"), name, name == "", moment)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestFirmwareUpdateSaysWhatMustBeInstalledFirst(t *testing.T) {
	old, next := keySet(t, "Contoso 2026"), keySet(t, "Contoso 2027")
	out := filepath.Join(t.TempDir(), "x.auth")
	lists := filepath.Join(t.TempDir(), "present")
	present := keys.HashList(old.Owner, [32]byte{1})
	if err := os.WriteFile(lists, present, 0o644); err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := firmwareUpdate(&text, []string{"--keys", next.Dir, "--forbid-keys", old.Dir, "--present", lists, "-o", out}, moment); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(out + ".dbx")
	if want := append(present, keys.CertList(next.Owner, old.Certs[keys.DB])...); err != nil || !bytes.Equal(content, want) || !strings.Contains(text.String(), "--dbx "+out+".dbx") {
		t.Errorf("%v\n%s", err, text.String())
	}
	if err := firmwareUpdate(&text, []string{"--keys", next.Dir, "--forbid-keys", old.Dir, "--present", out + ".dbx", "-o", out + "2"}, moment); err == nil {
		t.Error("made an update that adds nothing")
	}
	dir := filepath.Join(t.TempDir(), "steps")
	text.Reset()
	if err := firmwareUpdate(&text, []string{"--keys", old.Dir, "--to", next.Dir, "-o", dir}, moment); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	for i := range files {
		files[i] = filepath.Base(files[i])
	}
	if !slices.Equal(files, []string{"1-db.auth", "2-KEK.auth", "3-PK.auth", "4-KEK.auth", "5-db.auth"}) || !strings.Contains(text.String(), "--keys "+next.Dir+" --also-sign "+old.Dir) {
		t.Errorf("%q\n%s", files, text.String())
	}
}

func TestFirmwareUpdateRefusesWhatLeavesNothingThatStarts(t *testing.T) {
	ours, trial := keySet(t, "Contoso"), keySet(t, "")
	out := filepath.Join(t.TempDir(), "x")
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"own certificate":        {[]string{"--forbid-keys", ours.Dir}, "nothing that starts"},
		"to an evaluation set":   {[]string{"--to", trial.Dir}, "never sign the same"},
		"forbid what is no file": {[]string{"--forbid", out}, "no such file"},
		"forbid no image":        {[]string{"--forbid", filepath.Join(ours.Dir, "README.txt")}, "not a PE32+"},
		"nothing":                {nil, "usage"},
		"two at once":            {[]string{"--to", trial.Dir, "--forbid-keys", trial.Dir}, "usage"},
	} {
		var text bytes.Buffer
		if err := firmwareUpdate(&text, append([]string{"--keys", ours.Dir, "-o", out}, c.args...), moment); err == nil || !strings.Contains(err.Error(), c.want) || text.Len() > 0 {
			t.Errorf("%s: %v %q", name, err, text.String())
		}
		if files, _ := filepath.Glob(out + "*"); len(files) > 0 {
			t.Errorf("%s: left %q", name, files)
		}
	}
}

func TestReleaseIsWholeOrNotThere(t *testing.T) {
	ours := keySet(t, "Contoso")
	out := filepath.Join(t.TempDir(), "guardhouse-update")
	for _, args := range [][]string{{"--image", t.TempDir(), "--keys", ours.Dir, "-o", out}, {"--image", t.TempDir(), "--keys", t.TempDir(), "-o", out}, {"--keys", ours.Dir, "-o", out}} {
		var text bytes.Buffer
		if err := makeRelease(&text, args); err == nil || text.Len() > 0 {
			t.Errorf("%q: %v", args, err)
		}
	}
	if files, _ := filepath.Glob(filepath.Join(filepath.Dir(out), "*")); len(files) > 0 {
		t.Errorf("left %q", files)
	}
	var text bytes.Buffer
	if err := verifyRelease(&text, []string{filepath.Join(ours.Dir, "README.txt"), "--keys", ours.Dir}); err == nil || !strings.Contains(err.Error(), "not a usable update bundle") {
		t.Errorf("%v", err)
	}
}
