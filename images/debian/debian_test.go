package debian

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestOwnersFindsLibrariesUnderBothSpellings(t *testing.T) {
	list, err := Owners(t.Context(), []string{"/lib64/ld-linux-x86-64.so.2", "/usr/lib/x86_64-linux-gnu/libc.so.6", "/lib/x86_64-linux-gnu/libc.so.6"})
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 || list[0].Name != "libc6" || list[0].Source != "glibc" || list[0].Version == "" || !bytes.Contains(list[0].Copyright, []byte("LGPL")) {
		t.Fatalf("got %+v", list)
	}
}

func TestRefusesAFileWithoutAKnownLicence(t *testing.T) {
	name := filepath.Join(t.TempDir(), "libmystery.so")
	if err := os.WriteFile(name, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Owners(t.Context(), []string{"/lib/x86_64-linux-gnu/libc.so.6", name}); !errors.Is(err, ErrOwner) {
		t.Fatalf("got %v", err)
	}
}

func TestOnlyASingleDependencyIsFollowed(t *testing.T) {
	for in, want := range map[string]string{
		"linux-image-6.1.0-56-amd64 (= 6.1.192-2)": "linux-image-6.1.0-56-amd64",
		"": "", "a, b": "", "a | b": "",
	} {
		if got, _ := onlyDependency(in); got != want {
			t.Errorf("%q: got %q", in, got)
		}
	}
}

func TestRefusesAPackageWithAnotherHash(t *testing.T) {
	name := filepath.Join(t.TempDir(), "p.deb")
	if err := os.WriteFile(name, []byte("tampered"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := checkHash(name, strings.Repeat("0", 64)); err == nil {
		t.Fatal("accepted")
	}
}

func TestPruneKeepsOnlyWhatIsAskedFor(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{"boot/vmlinuz", "lib/sound/a.ko"} {
		p := filepath.Join(dir, f)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := prune(dir, func(p string) bool { return strings.HasPrefix(p, "/boot/") }); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "boot/vmlinuz")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "lib/sound/a.ko")); err == nil {
		t.Error("kept too much")
	}
}

func TestCommonLicencesAreNamedOnce(t *testing.T) {
	got := CommonLicences([]byte("see /usr/share/common-licenses/GPL-2.\n/usr/share/common-licenses/LGPL-2.1'"), []byte("in `/usr/share/common-licenses/GPL-2'"))
	if !slices.Equal(got, []string{"GPL-2", "LGPL-2.1"}) {
		t.Errorf("got %q", got)
	}
}
