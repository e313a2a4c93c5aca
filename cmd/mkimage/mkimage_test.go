package main

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"guardhouse/images/hsmpack"
)

func TestOptionsMayFollowTheFile(t *testing.T) {
	for _, args := range [][]string{{"--json", "a.efi"}, {"a.efi", "--json"}} {
		fs := flag.NewFlagSet("t", flag.ContinueOnError)
		j := fs.Bool("json", false, "")
		rest, err := parse(fs, args)
		if err != nil || !*j || !slices.Equal(rest, []string{"a.efi"}) {
			t.Errorf("%q: %v %v %v", args, *j, rest, err)
		}
	}
}

func TestMeasureSaysWhatIsWrongWithTheFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "x.efi")
	if err := os.WriteFile(name, []byte("MZ but nothing else"), 0o644); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err := measureImage(&out, []string{name})
	if err == nil || !strings.Contains(err.Error(), name) || out.Len() != 0 {
		t.Errorf("err %v, output %q", err, out.String())
	}
	if err := measureImage(&out, []string{filepath.Join(t.TempDir(), "absent")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent file: %v", err)
	}
}

func TestBuildTimeComesFromTheCallerFirst(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1795000001")
	r, err := releaseOf(t.Context(), t.TempDir(), "1.0", 1795000002, 1)
	if err != nil || r.Epoch != 1795000002 || r.Version != "1.0" {
		t.Errorf("%+v %v", r, err)
	}
	if r, err = releaseOf(t.Context(), t.TempDir(), "1.0", 0, 1); err != nil || r.Epoch != 1795000001 {
		t.Errorf("%+v %v", r, err)
	}
	t.Setenv("SOURCE_DATE_EPOCH", "yesterday")
	if _, err = releaseOf(t.Context(), t.TempDir(), "1.0", 0, 1); err == nil {
		t.Error("accepted a time that is none")
	}
	t.Setenv("SOURCE_DATE_EPOCH", "")
	if _, err = releaseOf(t.Context(), t.TempDir(), "1.0", 0, 1); err == nil || !strings.Contains(err.Error(), "--epoch") {
		t.Errorf("outside git: %v", err)
	}
}

func TestPackIsWholeOrNotThere(t *testing.T) {
	dir := t.TempDir()
	out, conf := filepath.Join(dir, "v.hsmpack"), filepath.Join(dir, "v.conf")
	if err := os.WriteFile(conf, []byte("slot = 0\npin = 1234\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	module := "/usr/lib/softhsm/libsofthsm2.so"
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"no output":           {[]string{"--module", module}, "usage"},
		"no module":           {[]string{"-o", out}, "usage"},
		"argument of nothing": {[]string{"-o", out, "--module", module, "--daemon-arg", "-f"}, "usage"},
		"configuration":       {[]string{"-o", out, "--module", module, "--config", conf}, "want SOURCE:"},
		"secret":              {[]string{"-o", out, "--module", module, "--config", conf + ":/etc/v.conf"}, "v.conf, line 2"},
	} {
		if err := makePack(t.Context(), c.args); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if files, _ := filepath.Glob(out + "*"); len(files) > 0 {
			t.Errorf("%s: left %q", name, files)
		}
	}
	if err := makePack(t.Context(), []string{"-o", out, "--module", module, "--connect", "192.0.2.7:1792"}); err != nil {
		t.Fatal(err)
	}
	if p, err := hsmpack.Open(out); err != nil || p.Name != "libsofthsm2" || len(p.Connect) != 1 {
		t.Errorf("%v", err)
	}
}
