package disk

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/fat32"
)

func planned(t testing.TB, size int64, contents map[string][]byte, order ...string) (*FAT, [][]byte) {
	t.Helper()
	var files []FATFile
	var data [][]byte
	for _, p := range order {
		files, data = append(files, FATFile{p, int64(len(contents[p])), sha256.Sum256(contents[p])}), append(data, contents[p])
	}
	f, err := PlanFAT(size, files, 1795000000)
	if err != nil {
		t.Fatal(err)
	}
	return f, data
}

// Another implementation reads what is written here.
func TestAnotherReaderFindsEveryFile(t *testing.T) {
	contents := map[string][]byte{"/EFI/BOOT/BOOTX64.EFI": bytes.Repeat([]byte("0123456789"), 70_001), "/guardhouse/policy.json": []byte("{}"), "/empty": nil,
		"/guardhouse/a name that needs several entries of its folder.text": []byte("long"), "/exact": make([]byte, 4096)}
	order := []string{"/EFI/BOOT/BOOTX64.EFI", "/exact", "/empty", "/guardhouse/policy.json", "/guardhouse/a name that needs several entries of its folder.text"}
	for i := range 40 { // a folder of more than one cluster
		name := "/many/" + strings.Repeat("x", i+1)
		contents[name] = []byte(name)
		order = append(order, name)
	}
	for _, size := range []int64{34 << 20, 64 << 20, 300 << 20} {
		fs, data := planned(t, size, contents, order...)
		name := filepath.Join(t.TempDir(), "fat")
		out, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(out.Truncate(size), fs.Write(out, data), out.Close()); err != nil {
			t.Fatal(err)
		}
		in, err := file.OpenFromPath(name, true)
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		read, err := fat32.Read(in, size, 0, fatSector)
		if err != nil {
			t.Fatal(err)
		}
		for p, want := range contents {
			if len(want) == 0 {
				continue
			}
			if got, err := read.ReadFile(p[1:]); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d MiB: %s: %d bytes, %v", size>>20, p, len(got), err)
			}
		}
	}
}

func TestEachFileLiesInOnePieceWhereItWasPlanned(t *testing.T) {
	contents := map[string][]byte{"/a/b": bytes.Repeat([]byte("b"), 100_000), "/c": []byte("c")}
	fs, data := planned(t, 40<<20, contents, "/a/b", "/c")
	mem := make(memory, 40<<20)
	if err := fs.Write(mem, data); err != nil {
		t.Fatal(err)
	}
	for i, d := range data {
		if !bytes.Equal(mem[fs.Offset(i):][:len(d)], d) {
			t.Errorf("file %d is not at its offset", i)
		}
	}
	if err := fs.Write(mem, [][]byte{data[0], []byte("cc")}); !errors.Is(err, ErrFAT) {
		t.Errorf("a file of another size: %v", err)
	}
}

type memory []byte

func (m memory) WriteAt(b []byte, off int64) (int, error) { return copy(m[off:], b), nil }

func TestRefusesWhatFATCantHold(t *testing.T) {
	for name, files := range map[string][]FATFile{
		"relative": {{Path: "a"}}, "root": {{Path: "/"}}, "unclean": {{Path: "/a/../b"}}, "twice": {{Path: "/a"}, {Path: "/A"}}, "below a file": {{Path: "/a"}, {Path: "/a/b"}},
		"a folder's name": {{Path: "/a/b"}, {Path: "/a"}}, "control": {{Path: "/a\n"}}, "umlaut": {{Path: "/\u00e4"}}, "colon": {{Path: "/a:b"}}, "dot": {{Path: "/a."}},
		"too large": {{Path: "/a", Size: 41 << 20}}, "negative": {{Path: "/a", Size: -1}}, "many": make([]FATFile, maxFATFiles+1),
	} {
		if _, err := PlanFAT(40<<20, files, 0); !errors.Is(err, ErrFAT) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, size := range []int64{0, 1 << 20, 34<<20 + 1, 3 << 30} {
		if _, err := PlanFAT(size, nil, 0); !errors.Is(err, ErrFAT) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}
