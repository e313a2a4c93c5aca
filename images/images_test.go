package images

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"guardhouse/initramfs"
)

func TestRefusesHSMOptionsThatDoNotFit(t *testing.T) {
	for name, c := range map[string]struct {
		hsm HSM
		ok  bool
	}{
		"attached":                {HSM{Variant: "attached"}, true},
		"embedded":                {HSM{Variant: "embedded"}, true},
		"vendor":                  {HSM{Variant: "/opt/v.so", Licence: "/l", Config: []string{"a.conf:/etc/a.conf"}}, true},
		"unknown word":            {HSM{Variant: "softhsm"}, false},
		"empty":                   {HSM{}, false},
		"vendor without licence":  {HSM{Variant: "/opt/v.so"}, false},
		"config for attached":     {HSM{Variant: "attached", Config: []string{"a:/b"}}, false},
		"config without target":   {HSM{Variant: "/opt/v.so", Licence: "/l", Config: []string{"a.conf"}}, false},
		"config at relative path": {HSM{Variant: "/opt/v.so", Licence: "/l", Config: []string{"a.conf:etc/a"}}, false},
	} {
		if err := c.hsm.Validate(); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	for v, want := range map[string]string{"attached": "/usr/lib/pkcs11/p11-kit-client.so", "embedded": "/usr/lib/pkcs11/libsofthsm2.so", "/opt/v.so": "/usr/lib/pkcs11/v.so"} {
		if got := (HSM{Variant: v}).Module(); got != want {
			t.Errorf("%s: module at %s", v, got)
		}
	}
}

func TestRefusesAComponentWithoutLicence(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "license_test.go"), []byte("package x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := licenceTexts(dir); !errors.Is(err, ErrLicence) {
		t.Fatalf("got %v", err)
	}
	for _, n := range []string{"LICENSE", "LICENCE.md", "COPYING", "NOTICE", "license-mit.txt"} {
		if err := os.WriteFile(filepath.Join(dir, n), []byte("terms of "+n), 0o644); err != nil {
			t.Fatal(err)
		}
		text, err := licenceTexts(dir)
		if err != nil || !strings.Contains(text, "terms of "+n) {
			t.Errorf("%s: %q, %v", n, text, err)
		}
	}
}

func TestUnknownProgramsAreNamed(t *testing.T) {
	src := t.TempDir()
	for _, p := range []string{"cmd/init/main.go", "cmd/hgs/main.go", "cmd/empty/x.txt"} {
		if err := errors.Join(os.MkdirAll(filepath.Join(src, filepath.Dir(p)), 0o755), os.WriteFile(filepath.Join(src, p), []byte("package main"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if got := ExistingPrograms(src); !slices.Equal(got, []string{"hgs", "init"}) {
		t.Errorf("existing: %q", got)
	}
	for _, list := range [][]string{nil, {"init", "ledger"}, {"mkimage"}, {"../x"}} {
		b := &build{Options: Options{Source: src, Commands: list}}
		if err := b.compile(t.Context()); !errors.Is(err, ErrPrograms) {
			t.Errorf("%q: %v", list, err)
		}
	}
}

func TestCacheKeepsOnlyTheNewest(t *testing.T) {
	b := &build{Options: Options{Cache: t.TempDir()}}
	for i, n := range []string{"x-1", "x-2", "x-3", "y-1"} {
		p := filepath.Join(b.Cache, n)
		when := time.Unix(1_700_000_000+int64(i), 0)
		if err := errors.Join(os.Mkdir(p, 0o755), os.Chtimes(p, when, when)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.keepNewest("x-*", 2); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(b.Cache, "*"))
	if err != nil || len(left) != 3 || filepath.Base(left[0]) != "x-2" {
		t.Errorf("left %q %v", left, err)
	}
}

func TestEveryProgramLandsWhereInitExpectsIt(t *testing.T) {
	b := &build{}
	file := filepath.Join(t.TempDir(), "init")
	if err := os.WriteFile(file, []byte("\x7fELF static"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.addProgram("init", file), b.addProgram("hgs", file)); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range b.list.Entries() {
		if e.Kind != initramfs.Dir {
			got = append(got, e.Path+e.Target)
		}
	}
	if !slices.Equal(got, []string{"/bin/hgs", "/bin/init", "/init/bin/init"}) {
		t.Errorf("got %q", got)
	}
}

func TestBoardTablesNameEachModuleOnceWithAReason(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range BoardModules() {
		if m.Reason == "" || seen[m.Name] {
			t.Errorf("module %q: reason %q, repeated %v", m.Name, m.Reason, seen[m.Name])
		}
		seen[m.Name] = true
	}
}
