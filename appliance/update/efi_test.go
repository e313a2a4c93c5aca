package update

import (
	"bytes"
	"encoding/binary"
	"io/fs"
	"os"
	"slices"
	"testing"

	"guardhouse/appliance/disk"
)

// variables are the firmware's, in memory; writes counts what wears its memory.
type variables struct {
	m      map[string][]byte
	writes int
}

func (v *variables) Names() (names []string, err error) {
	for n := range v.m {
		names = append(names, n)
	}
	return names, nil
}
func (v *variables) Read(name string) ([]byte, error) {
	if b, ok := v.m[name]; ok {
		return b, nil
	}
	return nil, fs.ErrNotExist
}
func (v *variables) Write(name string, b []byte) error { v.m[name] = b; v.writes++; return nil }
func (v *variables) Remove(name string) error          { delete(v.m, name); return nil }

var bootDisk = disk.BootDisk{Name: "vda", Slots: [2]disk.Partition{
	{Number: 1, GUID: [16]byte{1, 2, 3}, Start: 1 << 20, Size: 64 << 20}, {Number: 2, GUID: [16]byte{4, 5, 6}, Start: 65 << 20, Size: 64 << 20}}}

func order(t *testing.T, v Variables, name string) []uint16 {
	t.Helper()
	n, err := numbers(v, name)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestTheBoxOwnsItsBootEntries(t *testing.T) {
	wrong := loadOption(EntryNames[1], bootDisk.Slots[0]) // as of another disk
	v := &variables{m: map[string][]byte{
		"Boot0000" + efiGlobal: []byte("somebody else's"), "Boot0001" + efiGlobal: wrong, "Boot0003" + efiGlobal: wrong, "BootXYZ0" + efiGlobal: {}, "Boot0002-ffff": {},
		bootOrder: {0, 0, 3, 0},
	}}
	e, err := OwnEntries(v, bootDisk)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(v.m["Boot0002"+efiGlobal], loadOption(EntryNames[0], bootDisk.Slots[0])) || !bytes.Equal(v.m["Boot0001"+efiGlobal], loadOption(EntryNames[1], bootDisk.Slots[1])) {
		t.Errorf("entries: %q", v.m)
	}
	if _, there := v.m["Boot0003"+efiGlobal]; there || string(v.m["Boot0000"+efiGlobal]) != "somebody else's" {
		t.Error("a double is left, or somebody else's entry was touched")
	}
	for slot, want := range [][]uint16{{2, 1, 0, 3}, {1, 2, 0, 3}} {
		if err := e.Prefer(slot); err != nil || !slices.Equal(order(t, v, bootOrder), want) {
			t.Errorf("slot %d first: %v %v", slot, order(t, v, bootOrder), err)
		}
	}
	wear := v.writes
	again, err := OwnEntries(v, bootDisk)
	if err != nil || again.Prefer(1) != nil || v.writes != wear {
		t.Errorf("what is right is written again: %d times, %v", v.writes-wear, err)
	}
	if _, ok, err := e.Next(); ok || err != nil {
		t.Errorf("next: %v %v", ok, err)
	}
	if err := e.Once(1); err != nil {
		t.Fatal(err)
	}
	if slot, ok, err := e.Next(); !ok || slot != 1 || err != nil {
		t.Errorf("next: %d %v %v", slot, ok, err)
	}
	if err := e.NotOnce(); err != nil || len(order(t, v, bootNext)) != 0 {
		t.Errorf("next stays: %v", err)
	}
}

func TestRestartsOnlyOnceForABrokenEntry(t *testing.T) {
	v := &variables{m: map[string][]byte{}}
	e, err := OwnEntries(v, bootDisk)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := e.Retry(1); !again || err != nil || order(t, v, bootOrder)[0] != e.numbers[1] || order(t, v, bootNext)[0] != e.numbers[1] {
		t.Errorf("%v %v", again, err)
	}
	if again, err := e.Retry(1); again || err != nil {
		t.Errorf("twice: %v %v", again, err)
	}
	if err := e.Succeeded(); err != nil || e.Retried() {
		t.Errorf("not forgotten: %v", err)
	}
}

// The bytes are those of the specification: an active option, its name, HD(1,GPT,...), the file, the end.
func TestLoadOptionIsWhatFirmwareReads(t *testing.T) {
	b := loadOption("guardhouse A", bootDisk.Slots[0])
	path := b[6+26:]
	if binary.LittleEndian.Uint32(b) != 1 || int(binary.LittleEndian.Uint16(b[4:])) != len(path) || optionName(b) != "guardhouse A" {
		t.Errorf("head: %x", b[:40])
	}
	if !bytes.Equal(path[:8], []byte{4, 1, 42, 0, 1, 0, 0, 0}) || binary.LittleEndian.Uint64(path[8:]) != 2048 || binary.LittleEndian.Uint64(path[16:]) != 131072 ||
		!bytes.Equal(path[24:40], bootDisk.Slots[0].GUID[:]) || !bytes.Equal(path[40:44], []byte{2, 2, 4, 4}) || !bytes.HasSuffix(path, []byte{0x7f, 0xff, 4, 0}) {
		t.Errorf("path: %x", path)
	}
	for _, bad := range [][]byte{nil, make([]byte, 7), {1, 0, 0, 0, 0, 0, 'x', 0}} {
		if optionName(bad) != "" {
			t.Errorf("%x has a name", bad)
		}
	}
}

func TestRefusesAFolderThatIsNoFirmwareStore(t *testing.T) {
	e := EFIVars{t.TempDir()}
	_, rerr := e.Read(bootOrder)
	_, nerr := e.Names()
	for what, err := range map[string]error{"read": rerr, "names": nerr, "write": e.Write(bootOrder, []byte{1, 0}), "remove": e.Remove(bootNext)} {
		if err == nil {
			t.Errorf("%s: took a folder of a disk for the firmware's variables", what)
		}
	}
	if left, _ := os.ReadDir(e.Dir); len(left) != 0 {
		t.Error("something was written")
	}
}

// bootLog is a legacy event log with these events of PCR 4, among others.
func bootLog(events ...[]byte) []byte {
	one := func(pcr, kind uint32, data []byte) []byte {
		b := binary.LittleEndian.AppendUint32(nil, pcr)
		b = append(binary.LittleEndian.AppendUint32(b, kind), make([]byte, 20)...)
		return append(binary.LittleEndian.AppendUint32(b, uint32(len(data))), data...)
	}
	log := one(0, 8, []byte("firmware"))
	for _, e := range events {
		switch {
		case len(e) == 4:
			log = append(log, one(4, 4, e)...)
		case len(e) > 60:
			log = append(log, one(4, 0x80000003, e)...)
		default:
			log = append(log, one(4, 0x80000007, e)...)
		}
	}
	return append(log, one(5, 0x80000006, []byte("partitions"))...)
}

func imageEvent(p disk.Partition) []byte {
	option := loadOption("x", p)
	path := option[6+4:]
	b := make([]byte, 24)
	return append(binary.LittleEndian.AppendUint64(b, uint64(len(path))), path...)
}

func TestTheBootLogTellsHowFirmwareCameHere(t *testing.T) {
	call, back, separator := []byte("Calling EFI Application from Boot Option"), []byte("Returning from EFI Application from Boot Option"), make([]byte, 4)
	elsewhere := disk.Partition{Number: 1, GUID: [16]byte{9}}
	for name, c := range map[string]struct {
		log   []byte
		slot  int
		clean bool
	}{
		"slot A":             {bootLog(call, separator, imageEvent(bootDisk.Slots[0])), 0, true},
		"slot B":             {bootLog(call, separator, imageEvent(bootDisk.Slots[1])), 1, true},
		"another disk":       {bootLog(call, separator, imageEvent(elsewhere)), -1, true},
		"after a broken one": {bootLog(call, separator, back, call, imageEvent(bootDisk.Slots[1])), 1, false},
		"after another":      {bootLog(call, separator, imageEvent(elsewhere), back, call, imageEvent(bootDisk.Slots[1])), 1, false},
		"no image":           {bootLog(call, separator), -1, false},
	} {
		p, err := ReadBootPath(c.log, bootDisk)
		if err != nil || p.Slot != c.slot || p.Clean != c.clean {
			t.Errorf("%s: %+v %v", name, p, err)
		}
	}
	if _, err := ReadBootPath([]byte("x"), bootDisk); err == nil {
		t.Error("garbage was read")
	}
}

func FuzzImagePartition(f *testing.F) {
	f.Add(imageEvent(bootDisk.Slots[0]))
	f.Add(make([]byte, 40))
	f.Fuzz(func(t *testing.T, b []byte) {
		if guid, ok := imagePartition(b); ok && !bytes.Contains(b, guid[:]) {
			t.Error("a partition that is not there")
		}
	})
}
