package initramfs

import (
	"bytes"
	"errors"
	"io/fs"
	"testing"
)

func TestAFinishedArchiveCanBeLookedInto(t *testing.T) {
	var l List
	if err := errors.Join(l.Add(Entry{Path: "/etc/x", Kind: File, Perm: 0o644, Data: []byte("content")}), l.Add(Entry{Path: "/etc/y", Kind: Link, Target: "x"})); err != nil {
		t.Fatal(err)
	}
	var raw, packed bytes.Buffer
	if err := errors.Join(l.WriteCPIO(&raw), Compress(&packed, &raw)); err != nil {
		t.Fatal(err)
	}
	if b, err := ReadFile(packed.Bytes(), "/etc/x"); err != nil || string(b) != "content" {
		t.Errorf("%q %v", b, err)
	}
	if _, err := ReadFile(packed.Bytes(), "/etc/z"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	for name, archive := range map[string][]byte{"/etc/y": packed.Bytes(), "/etc": packed.Bytes(), "/etc/x": packed.Bytes()[:packed.Len()/2], "/x": []byte("none")} {
		if _, err := ReadFile(archive, name); err == nil {
			t.Errorf("%s was read", name)
		}
	}
}
