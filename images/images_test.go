package images

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"guardhouse/images/debian"
	"guardhouse/initramfs"
)

func TestRefusesHSMOptionsThatDoNotFit(t *testing.T) {
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("terms"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		hsm  HSM
		want string
	}{
		"unknown word":            {HSM{Variant: "softhsm"}, "want attached, embedded"},
		"empty":                   {HSM{}, "want attached, embedded"},
		"no pack":                 {HSM{Variant: text}, "not an HSM pack"},
		"vendor without licence":  {HSM{Variant: softHSM}, "--hsm-licence"},
		"config for attached":     {HSM{Variant: "attached", Config: []string{"a:/b"}}, "go with a vendor's module only"},
		"licence for a pack":      {HSM{Variant: text, Licence: text}, "go with a vendor's module only"},
		"config without target":   {HSM{Variant: softHSM, Licence: text, Config: []string{"a.conf"}}, "want SOURCE:"},
		"config at relative path": {HSM{Variant: softHSM, Licence: text, Config: []string{"a.conf:etc/a"}}, "want SOURCE:"},
	} {
		if _, err := c.hsm.pack(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPackGoesIntoTheImageAndItsNotice has the two packs of ours, and a module with a vendor's terms.
func TestPackGoesIntoTheImageAndItsNotice(t *testing.T) {
	terms := filepath.Join(t.TempDir(), "terms")
	if err := os.WriteFile(terms, []byte("the vendor's terms"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		hsm                   HSM
		module, name, debian_ string
		notice                string
		token                 bool
	}{
		{HSM{Variant: "attached"}, "/usr/lib/pkcs11/p11-kit-client.so", "p11-kit-client", "p11-kit-modules", "", false},
		{HSM{Variant: "embedded"}, "/usr/lib/pkcs11/libsofthsm2.so", "libsofthsm2", "libsofthsm2", "", true},
		{HSM{Variant: softHSM, Licence: terms, Config: []string{terms + ":/etc/v.conf"}}, "/usr/lib/pkcs11/libsofthsm2.so", "libsofthsm2", "libc6", "the vendor's terms", false},
	} {
		b := &build{Options: Options{HSM: c.hsm}}
		if err := b.addHSM(t.Context()); err != nil {
			t.Errorf("%+v: %v", c.hsm, err)
			continue
		}
		var notice bytes.Buffer
		b.packNotice(&notice)
		if b.hsm.Module != c.module || b.hsm.Name != c.name || b.hsm.Version == "" || b.hsm.MakesToken != c.token {
			t.Errorf("%+v", b.hsm.Manifest)
		}
		if !slices.ContainsFunc(b.packDebian(), func(p debian.Package) bool { return p.Name == c.debian_ && len(p.Copyright) > 0 }) || strings.Contains(notice.String(), "the vendor's terms") != (c.notice != "") {
			t.Errorf("terms: %v, %q", b.hsm.Packages, notice.String())
		}
		paths := map[string]bool{}
		for _, e := range b.list.Entries() {
			paths[e.Path] = true
		}
		for _, want := range []string{c.module, "/etc/hsm-pack.json", "/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"} {
			if !paths[want] {
				t.Errorf("no %s in the image", want)
			}
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
