package disk

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/partition/gpt"
)

const gptSize = 4 << 20

// partitioned writes a disk with partitions of these names.
func partitioned(t testing.TB, name string, names ...string) {
	t.Helper()
	d, err := file.CreateFromPath(name, gptSize)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	w, err := d.Writable()
	if err != nil {
		t.Fatal(err)
	}
	table := &gpt.Table{LogicalSectorSize: 512, PhysicalSectorSize: 512, ProtectiveMBR: true, GUID: "2F0A6B63-1B1E-4C57-9DCD-6A4E1B0A0F01"}
	for i, n := range names {
		start := uint64(100 + 100*i)
		table.Partitions = append(table.Partitions, &gpt.Partition{Index: i + 1, Start: start, End: start + 99, Size: 100 * 512, Type: gpt.EFISystemPartition, Name: n,
			GUID: fmt.Sprintf("0001020%d-0405-0607-0809-0A0B0C0D0E0F", i)})
	}
	if err := table.Write(w, gptSize); err != nil {
		t.Fatal(err)
	}
}

func TestReadsWhatAnotherProgramPartitioned(t *testing.T) {
	name := filepath.Join(t.TempDir(), "d")
	partitioned(t, name, SlotNames[0], SlotNames[1])
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string) {
		list, err := ReadGPT(bytes.NewReader(b), gptSize)
		if err != nil || len(list) != 2 || list[1].Name != SlotNames[1] || list[1].Number != 2 || list[1].Start != 200*512 || list[1].Size != 100*512 ||
			list[0].GUID != [16]byte{0, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15} {
			t.Errorf("%s: %+v %v", what, list, err)
		}
	}
	check("whole")
	b[512+30] ^= 1
	check("first table damaged")
	b[gptSize-512+30] ^= 1
	if _, err := ReadGPT(bytes.NewReader(b), gptSize); !errors.Is(err, ErrNoGPT) {
		t.Errorf("both damaged: %v", err)
	}
}

// machine is a /sys and /dev with these disks.
func machine(t *testing.T, disks map[string][]string) *Finder {
	t.Helper()
	f := &Finder{Sys: t.TempDir(), Dev: t.TempDir()}
	for disk, names := range disks {
		for i := range names {
			dir := filepath.Join(f.Sys, "block", disk, fmt.Sprint(disk, i+1))
			if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "partition"), fmt.Appendln(nil, i+1), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(f.Sys, "block", disk, "size"), fmt.Appendln(nil, gptSize/512), 0o600); err != nil {
			t.Fatal(err)
		}
		partitioned(t, filepath.Join(f.Dev, disk), names...)
	}
	return f
}

func TestFindsTheOneDiskWithBothSlots(t *testing.T) {
	f := machine(t, map[string][]string{"vda": {"data", "more"}, "vdb": {SlotNames[0], SlotNames[1]}, "vdc": {SlotNames[0]}})
	b, err := f.BootDisk()
	if err != nil || b.Name != "vdb" || b.Slots[1].Device != filepath.Join(f.Dev, "vdb2") {
		t.Errorf("%+v %v", b, err)
	}
	for kind, disks := range map[string]map[string][]string{
		KindNoSlots:  {"vda": {SlotNames[0], SlotNames[0]}, "vdb": {"x"}},
		KindTwoSlots: {"vda": {SlotNames[0], SlotNames[1]}, "vdb": {SlotNames[0], SlotNames[1]}},
	} {
		var de *Error
		if _, err := machine(t, disks).BootDisk(); !errors.As(err, &de) || de.Kind != kind {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

// FuzzReadGPT: whatever a disk holds, only partitions that lie on it are found.
func FuzzReadGPT(f *testing.F) {
	name := filepath.Join(f.TempDir(), "d")
	partitioned(f, name, SlotNames[0], SlotNames[1])
	b, err := os.ReadFile(name)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[:20<<10])
	f.Add([]byte("EFI PART"))
	f.Fuzz(func(t *testing.T, in []byte) {
		list, err := ReadGPT(bytes.NewReader(in), int64(len(in)))
		for _, p := range list {
			if err != nil || p.Start < 1024 || p.Size <= 0 || p.Start+p.Size > int64(len(in)) {
				t.Errorf("%+v", p)
			}
		}
	})
}
