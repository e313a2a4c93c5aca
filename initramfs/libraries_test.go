package initramfs

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// compile makes a small shared library or program with gcc.
func compile(t *testing.T, out string, args ...string) {
	t.Helper()
	src := filepath.Join(t.TempDir(), "x.c")
	if err := errors.Join(os.WriteFile(src, []byte("int x(void){return 1;}\n"), 0o644), os.MkdirAll(filepath.Dir(out), 0o755)); err != nil {
		t.Fatal(err)
	}
	if text, err := exec.Command("gcc", append([]string{"-shared", "-fPIC", "-o", out, src, "-Wl,--no-as-needed"}, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}

// TestClosureFollowsWhatTheLoaderWould has a vendor's tree with a library beside the module, one in a folder of its own, and one that only
// the workstation has.
func TestClosureFollowsWhatTheLoaderWould(t *testing.T) {
	root := t.TempDir()
	module, beside, apart := root+"/opt/v/module.so", root+"/opt/v/libbeside.so.1", root+"/opt/v/lib64/libapart.so"
	compile(t, apart)
	compile(t, beside, "-Wl,-rpath,/opt/v/lib64", apart)
	compile(t, module, "-Wl,-rpath,$ORIGIN", beside, "-lm")
	libs, err := Closure([]string{root, "/"}, module)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, l := range libs {
		got[l.Path] = l.From
	}
	// gcc without a soname records the path it was given.
	if got[apart] != apart && got["/lib/x86_64-linux-gnu/libapart.so"] != apart {
		t.Errorf("the library apart: %v", got)
	}
	for _, want := range []string{"/lib/x86_64-linux-gnu/libm.so.6", "/lib/x86_64-linux-gnu/libc.so.6", loader} {
		if got[want] == "" {
			t.Errorf("no %s in %v", want, got)
		}
	}
	os.Remove(beside)
	if _, err := Closure([]string{root, "/"}, module); !errors.Is(err, ErrLibrary) || !strings.Contains(err.Error(), "libbeside.so.1") {
		t.Errorf("a missing library: %v", err)
	}
}

func TestClosureFindsSonamesBesideAndInTheTree(t *testing.T) {
	root := t.TempDir()
	module, beside, tree := root+"/opt/v/module.so", root+"/opt/v/libbeside.so.1", root+"/usr/lib/libtree.so.2"
	compile(t, beside, "-Wl,-soname,libbeside.so.1")
	compile(t, tree, "-Wl,-soname,libtree.so.2")
	compile(t, module, "-Wl,-rpath,$ORIGIN", beside, tree)
	libs, err := Closure([]string{root, "/"}, module)
	if err != nil {
		t.Fatal(err)
	}
	for at, from := range map[string]string{"/lib/x86_64-linux-gnu/libbeside.so.1": beside, "/lib/x86_64-linux-gnu/libtree.so.2": tree} {
		if !slices.Contains(libs, Library{from, at}) {
			t.Errorf("no %s in %v", at, libs)
		}
	}
	if _, err := Closure(nil, module); !errors.Is(err, ErrLibrary) {
		t.Errorf("without its tree: %v", err)
	}
}

func TestRefusesWhatIsNoProgramOfThisMachine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "module.so")
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Closure(nil, file); !errors.Is(err, ErrELF) {
		t.Errorf("a script: %v", err)
	}
}
