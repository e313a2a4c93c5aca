package initramfs

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/mkuimage/cpio"
)

func entries() []Entry {
	return []Entry{
		{Path: "/bin/hgs", Kind: File, Perm: 0o755, Data: bytes.Repeat([]byte("elf"), 1000), Origin: "a"},
		{Path: "/init", Kind: Link, Perm: 0o777, Target: "/bin/hgs"},
		{Path: "/dev/null", Kind: CharDevice, Perm: 0o666, Major: 1, Minor: 3},
		{Path: "/a/b/c", Kind: File, Perm: 0o644, Data: []byte("x")},
		{Path: "/", Kind: Dir, Perm: 0o755},
	}
}

func pack(t *testing.T, list []Entry) []byte {
	t.Helper()
	var l List
	for _, e := range list {
		if err := l.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	var raw, z bytes.Buffer
	if err := l.WriteCPIO(&raw); err != nil {
		t.Fatal(err)
	}
	if err := Compress(&z, &raw); err != nil {
		t.Fatal(err)
	}
	return z.Bytes()
}

func TestSameContentsPackToTheSameBytesInAnyOrder(t *testing.T) {
	want := pack(t, entries())
	back := entries()
	slices.Reverse(back)
	if !bytes.Equal(want, pack(t, back)) {
		t.Fatal("the order of adding changed the archive")
	}
}

func TestFileTimesAndFoldersOfTheWorkstationLeaveNoTrace(t *testing.T) {
	var got [2][]byte
	for i := range got {
		name := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(name, []byte("same"), os.FileMode(0o600+i*0o44)); err != nil {
			t.Fatal(err)
		}
		var l List
		if err := l.AddFile("/f", name, 0o644); err != nil {
			t.Fatal(err)
		}
		var raw bytes.Buffer
		if err := l.WriteCPIO(&raw); err != nil {
			t.Fatal(err)
		}
		got[i] = raw.Bytes()
	}
	if !bytes.Equal(got[0], got[1]) {
		t.Fatal("archives differ")
	}
}

func TestArchiveReadsBackWithRootOwnersAndOpenRoot(t *testing.T) {
	z, err := zstd.NewReader(bytes.NewReader(pack(t, entries())))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	raw, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(raw)))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range records {
		if r.Name == cpio.Trailer {
			continue
		}
		names = append(names, r.Name)
		if r.UID != 0 || r.GID != 0 || r.MTime != 0 {
			t.Errorf("%s: owner %d:%d time %d", r.Name, r.UID, r.GID, r.MTime)
		}
		if r.Name == "." && r.Mode != cpio.S_IFDIR|0o755 {
			t.Errorf("root folder has mode %o", r.Mode)
		}
	}
	want := []string{".", "a", "a/b", "a/b/c", "bin", "bin/hgs", "dev", "dev/null", "init"}
	if !slices.Equal(names, want) {
		t.Errorf("got %q want %q", names, want)
	}
}

func TestRefusesInterpretersAndScripts(t *testing.T) {
	for name, e := range map[string]Entry{
		"shell":      {Path: "/bin/sh", Kind: File, Perm: 0o755, Data: []byte("\x7fELF")},
		"shell link": {Path: "/bin/bash", Kind: Link, Target: "/bin/x"},
		"busybox":    {Path: "/usr/sbin/busybox", Kind: File, Perm: 0o755},
		"script":     {Path: "/bin/tool", Kind: File, Perm: 0o755, Data: []byte("#!/bin/x\n")},
	} {
		var l List
		if err := l.Add(e); !errors.Is(err, ErrInterpreter) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestRefusesUncleanPathsAndConflicts(t *testing.T) {
	for _, p := range []string{"", "a", "/a/", "/a/../b", "//a", "/TRAILER!!!", "/a\nb"} {
		var l List
		if err := l.Add(Entry{Path: p, Kind: File}); err == nil {
			t.Errorf("%q accepted", p)
		}
	}
	var l List
	for i, e := range []Entry{{Path: "/a", Data: []byte("1")}, {Path: "/a", Data: []byte("1")}, {Path: "/a", Data: []byte("2")}, {Path: "/a/b"}, {Path: "/s", Perm: 0o4755}} {
		if err := l.Add(e); (err == nil) != (i < 2) {
			t.Errorf("step %d: %v", i, err)
		}
	}
}

func TestReleaseTextIsPlain(t *testing.T) {
	r := Release{Version: "1.2-3", Epoch: 1795000000, Number: 7}
	if err := r.Validate(); err != nil {
		t.Fatal(err)
	}
	want := "NAME=guardhouse\nID=guardhouse\nPRETTY_NAME=\"guardhouse 1.2-3\"\nVERSION_ID=1.2-3\nBUILD_EPOCH=1795000000\nRELEASE_NUMBER=7\n"
	if r.Text() != want {
		t.Errorf("got %q", r.Text())
	}
	r.Evaluation = true
	if r.Text() != want+"EVALUATION=yes\n" {
		t.Errorf("of an evaluation: %q", r.Text())
	}
	for _, bad := range []Release{{Epoch: 1795000000}, {Version: "a b", Epoch: 1795000000}, {Version: "a\"b", Epoch: 1795000000}, {Version: "1"}, {Version: "1", Epoch: -5}} {
		if bad.Validate() == nil {
			t.Errorf("%+v accepted", bad)
		}
	}
}

func TestLibrariesMoveToTheLoadersFolder(t *testing.T) {
	for in, want := range map[string]string{
		"libc.so.6":                   "/lib/x86_64-linux-gnu/libc.so.6",
		"ld-linux-x86-64.so.2":        "/lib64/ld-linux-x86-64.so.2",
		"/lib64/ld-linux-x86-64.so.2": "/lib64/ld-linux-x86-64.so.2",
		"/opt/vendor/lib/libx.so":     "/opt/vendor/lib/libx.so",
	} {
		if got := imagePath(in); got != want {
			t.Errorf("%s: got %s want %s", in, got, want)
		}
	}
}
