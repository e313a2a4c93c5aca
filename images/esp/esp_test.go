package esp

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/fat32"
	"github.com/diskfs/go-diskfs/partition/gpt"
)

func sum(t *testing.T, name string) [32]byte {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}

func TestSameFilesGiveTheSameDisk(t *testing.T) {
	t.Setenv(EpochVariable, "1795000000")
	a, b := filepath.Join(t.TempDir(), "a.img"), filepath.Join(t.TempDir(), "other", "b.img")
	if err := os.Mkdir(filepath.Dir(b), 0o700); err != nil {
		t.Fatal(err)
	}
	files := []File{{BootPath, bytes.Repeat([]byte("uki"), 100_000)}, {"/note.txt", []byte("hello")}}
	if err := Write(a, files); err != nil {
		t.Fatal(err)
	}
	if err := Write(b, []File{files[1], files[0]}); err != nil {
		t.Fatal(err)
	}
	if sum(t, a) != sum(t, b) {
		t.Fatal("two disks of the same files differ")
	}
	files[1].Data = []byte("hellp")
	if err := Write(b, files); err != nil {
		t.Fatal(err)
	}
	if sum(t, a) == sum(t, b) {
		t.Fatal("another file gave the same disk")
	}
}

func TestFilesReadBack(t *testing.T) {
	t.Setenv(EpochVariable, "1795000000")
	name := filepath.Join(t.TempDir(), "a.img")
	want := bytes.Repeat([]byte("0123456789"), 70_001)
	if err := Write(name, []File{{BootPath, want}}); err != nil {
		t.Fatal(err)
	}
	disk, err := file.OpenFromPath(name, true)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	table, err := gpt.Read(disk, sector, sector)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Verify(disk, uint64(info.Size())); err != nil {
		t.Fatal(err)
	}
	if len(table.Partitions) < 2 {
		t.Fatal("no two partitions")
	}
	for i, p := range table.Partitions[:2] {
		if p.Name != []string{"guardhouse-a", "guardhouse-b"}[i] || p.Type != gpt.EFISystemPartition {
			t.Errorf("partition %d is %q of type %s", i+1, p.Name, p.Type)
		}
		fs, err := fat32.Read(disk, p.GetSize(), p.GetStart(), sector)
		if err != nil {
			t.Fatal(err)
		}
		got, err := fs.ReadFile("EFI/BOOT/BOOTX64.EFI")
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("read back %d bytes, %v", len(got), err)
		}
	}
	if table.Partitions[0].GUID == table.Partitions[1].GUID {
		t.Error("both partitions have the same identifier")
	}
}

// The time of the partition's files is visible in the directory, so it must
// be the one that was asked for and not the clock's.
func TestTimesComeFromTheBuildAndNotTheClock(t *testing.T) {
	name := filepath.Join(t.TempDir(), "a.img")
	t.Setenv(EpochVariable, "")
	if err := Write(name, []File{{BootPath, []byte("x")}}); err == nil {
		t.Fatal("wrote a disk without a build time")
	}
	t.Setenv(EpochVariable, "1000000000")
	if err := Write(name, []File{{BootPath, []byte("x")}}); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	// 9 September 2001 01:46:40 as FAT writes it.
	const date, clock = (2001-1980)<<9 | 9<<5 | 9, 1<<11 | 46<<5 | 40/2
	want := []byte{clock & 0xff, clock >> 8, date & 0xff, date >> 8}
	for _, entry := range []string{"EFI        ", ".          ", "..         ", "BOOT       ", "BOOTX64 EFI"} {
		at := bytes.Index(raw, []byte(entry))
		if at < 0 {
			t.Fatalf("no directory entry %q", entry)
		}
		if got := raw[at+22 : at+26]; !bytes.Equal(got, want) {
			t.Errorf("%q: modified %x want %x", entry, got, want)
		}
		if got := raw[at+14 : at+18]; !bytes.Equal(got, want) {
			t.Errorf("%q: created %x want %x", entry, got, want)
		}
	}
}

func TestRefusesWhatDoesNotFit(t *testing.T) {
	t.Setenv(EpochVariable, "1795000000")
	if _, err := SlotSize([]File{{"/a", make([]byte, 1)}}); err != nil {
		t.Fatal(err)
	}
	var many []File
	shared := make([]byte, 64<<20)
	for range 20 {
		many = append(many, File{"/x", shared})
	}
	if err := Write(filepath.Join(t.TempDir(), "a"), many); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("got %v", err)
	}
	for _, p := range []string{"", "rel", "/", "/a/../b"} {
		if err := Write(filepath.Join(t.TempDir(), "a"), []File{{p, []byte("x")}}); err == nil {
			t.Errorf("path %q accepted", p)
		}
	}
}
