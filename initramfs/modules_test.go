package initramfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"guardhouse/board/kernel"
)

// object is the least ELF file with a .modinfo section.
func object(info ...string) []byte {
	data := []byte(strings.Join(info, "\x00") + "\x00")
	names := []byte("\x00.modinfo\x00.shstrtab\x00")
	h := make([]byte, 64)
	copy(h, "\x7fELF\x02\x01\x01")
	le := binary.LittleEndian
	le.PutUint16(h[16:], 1)  // relocatable
	le.PutUint16(h[18:], 62) // x86-64
	le.PutUint32(h[20:], 1)
	le.PutUint64(h[40:], uint64(64+len(data)+len(names)))
	le.PutUint16(h[52:], 64)
	le.PutUint16(h[58:], 64)
	le.PutUint16(h[60:], 3)
	le.PutUint16(h[62:], 2)
	sec := func(name, kind uint32, off, size int) []byte {
		s := make([]byte, 64)
		le.PutUint32(s, name)
		le.PutUint32(s[4:], kind)
		le.PutUint64(s[24:], uint64(off))
		le.PutUint64(s[32:], uint64(size))
		return s
	}
	return slices.Concat(h, data, names, make([]byte, 64), sec(1, 1, 64, len(data)), sec(10, 3, 64+len(data), len(names)))
}

// tree writes a module folder: file name -> .modinfo strings.
func tree(t *testing.T, builtin string, files map[string][]string) *ModuleTree {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join(dir, "6.1.0-test")
	for name, info := range files {
		p := filepath.Join(root, "kernel", name+".ko")
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, object(info...), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "modules.builtin"), []byte(builtin), 0o644); err != nil {
		t.Fatal(err)
	}
	mt, err := OpenModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	return mt
}

func order(list []Module) string {
	var out []string
	for _, m := range list {
		out = append(out, m.Name)
	}
	return strings.Join(out, " ")
}

func TestDependenciesLoadBeforeTheirUsers(t *testing.T) {
	mt := tree(t, "kernel/lib/built-in.ko\n", map[string][]string{
		"fs/ext4":        {"depends=jbd2,crc-16,built_in", "softdep=pre: crc32c"},
		"fs/jbd2":        {"depends="},
		"lib/crc-16":     {"license=GPL"},
		"crypto/generic": {"alias=crypto-crc32c"},
	})
	got, err := mt.Resolve([]kernel.Module{{Name: "generic"}, {Name: "built-in"}, {Name: "ext4"}, {Name: "jbd2"}})
	if err != nil {
		t.Fatal(err)
	}
	if order(got) != "generic jbd2 crc_16 ext4" {
		t.Errorf("got %q", order(got))
	}
	if got[2].Path != "/lib/modules/6.1.0-test/kernel/lib/crc-16.ko" {
		t.Errorf("path %s", got[2].Path)
	}
	if _, err := mt.Resolve([]kernel.Module{{Name: "ext4"}}); !errors.Is(err, ErrModule) || !strings.Contains(err.Error(), "crc32c") {
		t.Errorf("missing soft dependency: %v", err)
	}
}

func TestModuleWaitsForItsDeviceUnlessSomethingElseNeedsIt(t *testing.T) {
	mt := tree(t, "", map[string][]string{
		"a/igb":  {"depends=dca,common", "alias=pci:v1*", "alias=pci:v2*"},
		"a/dca":  {"depends="},
		"a/ix":   {"depends=dca", "alias=pci:v3*"},
		"a/soft": {"depends=common"}, "a/common": {},
		"a/extra": {},
	})
	got, err := mt.Resolve([]kernel.Module{{Name: "igb", Probe: true, Needs: []string{"extra"}}, {Name: "ix", Probe: true}, {Name: "soft"}})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"igb": "pci:v1* pci:v2*", "dca": "pci:v1* pci:v2* pci:v3*", "ix": "pci:v3*", "soft": "", "common": "", "extra": "pci:v1* pci:v2*"}
	for _, m := range got {
		if s := strings.Join(m.Match, " "); s != want[m.Name] {
			t.Errorf("%s: got %q want %q", m.Name, s, want[m.Name])
		}
	}
	var l List
	if err := l.AddModules(got); err != nil {
		t.Fatal(err)
	}
	text := map[string]string{}
	for _, e := range l.Entries() {
		text[e.Path] = string(e.Data)
	}
	load, err := kernel.Select(text[kernel.ListFile], text[kernel.MatchFile], []string{"pci:v3xyz"})
	if err != nil || len(load) != 4 {
		t.Errorf("a machine with device 3 loads %v, %v", load, err)
	}
	got, err = mt.Resolve([]kernel.Module{{Name: "dca", Probe: true, Params: "quiet=1"}, {Name: "ix", Probe: true}})
	if err != nil || len(got) != 2 || got[0].Name != "dca" || got[0].Params != "quiet=1" || strings.Join(got[0].Match, " ") != "pci:v3*" {
		t.Errorf("a module with parameters that another one's device needs: %+v, %v", got, err)
	}
	if _, err := mt.Resolve([]kernel.Module{{Name: "soft", Probe: true}}); err == nil {
		t.Error("a module without a device was told to wait for one")
	}
}

func TestRefusesMissingModulesAndCircles(t *testing.T) {
	mt := tree(t, "", map[string][]string{"a": {"depends=b"}, "b": {"depends=a"}, "c": {"depends=gone"}})
	for _, n := range []string{"a", "c", "nothing"} {
		if _, err := mt.Resolve([]kernel.Module{{Name: n}}); !errors.Is(err, ErrModule) {
			t.Errorf("%s: %v", n, err)
		}
	}
	if _, err := OpenModules(t.TempDir()); err == nil {
		t.Error("an empty folder was accepted")
	}
}

func FuzzModinfo(f *testing.F) {
	f.Add(object("depends=a,b", "alias=pci:v*"))
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := modinfo(b)
		if err != nil {
			return
		}
		for k, v := range info {
			for _, s := range v {
				if !bytes.Contains(b, []byte(k)) || s == "" {
					t.Fatal("value out of nowhere")
				}
			}
		}
	})
}
