package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode/utf16"
)

// SlotNames are the GPT names of the two partitions of a boot disk.
var SlotNames = [2]string{"guardhouse-a", "guardhouse-b"}

// Partition is one entry of a GPT. Start and Size are bytes.
type Partition struct {
	Number int // from 1
	Name   string
	GUID   [16]byte // as on the disk: the first three fields little-endian
	Start  int64
	Size   int64
	Device string // device file; empty where it is not of this machine
}

// BootDisk is the disk with the two slots.
type BootDisk struct {
	Name  string // as in /sys/block
	Slots [2]Partition
}

// ErrNoGPT: there is no valid GUID partition table.
var ErrNoGPT = errors.New("no valid partition table")

// Kinds of Error of boot disks.
const (
	KindNoSlots  = "boot-no-slots"  // no disk has both slots
	KindTwoSlots = "boot-ambiguous" // several have
)

// Bounds of a GPT.
const (
	gptEntries   = 128
	gptEntrySize = 128
)

// ReadGPT reads the partitions of a disk of size bytes: by the first table, or the one at its end where that is damaged. Sectors of 512
// bytes (UEFI specification, 5.3).
func ReadGPT(r io.ReaderAt, size int64) ([]Partition, error) {
	list, err := readGPT(r, size, 1)
	if err != nil && size >= 4*fatSector {
		if second, serr := readGPT(r, size, size/fatSector-1); serr == nil {
			return second, nil
		}
	}
	return list, err
}

func readGPT(r io.ReaderAt, size, lba int64) ([]Partition, error) {
	le := binary.LittleEndian
	h := make([]byte, fatSector)
	if _, err := r.ReadAt(h, lba*fatSector); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrNoGPT, err)
	}
	length := le.Uint32(h[12:])
	if string(h[:8]) != "EFI PART" || length < 92 || length > fatSector || int64(le.Uint64(h[24:])) != lba {
		return nil, ErrNoGPT
	}
	sum := le.Uint32(h[16:])
	le.PutUint32(h[16:], 0)
	count, entry, table := le.Uint32(h[80:]), le.Uint32(h[84:]), int64(le.Uint64(h[72:]))
	if crc32.ChecksumIEEE(h[:length]) != sum || count == 0 || count > gptEntries || entry != gptEntrySize || table < 2 || table > size/fatSector {
		return nil, ErrNoGPT
	}
	b := make([]byte, count*gptEntrySize)
	if _, err := r.ReadAt(b, table*fatSector); err != nil || crc32.ChecksumIEEE(b) != le.Uint32(h[88:]) {
		return nil, fmt.Errorf("%w: its entries are damaged", ErrNoGPT)
	}
	var list []Partition
	for i := range int(count) {
		e := b[i*gptEntrySize:][:gptEntrySize]
		if bytes.Equal(e[:16], make([]byte, 16)) {
			continue
		}
		first, last := le.Uint64(e[32:]), le.Uint64(e[40:])
		if first < 2 || last < first || last >= uint64(size/fatSector) {
			return nil, fmt.Errorf("%w: partition %d lies outside the disk", ErrNoGPT, i+1)
		}
		list = append(list, Partition{Number: i + 1, Name: gptName(e[56:]), GUID: [16]byte(e[16:32]), Start: int64(first) * fatSector, Size: int64(last-first+1) * fatSector})
	}
	return list, nil
}

func gptName(b []byte) string {
	var text []uint16
	for ; len(b) >= 2; b = b[2:] {
		c := binary.LittleEndian.Uint16(b)
		if c == 0 {
			break
		}
		text = append(text, c)
	}
	return string(utf16.Decode(text))
}

// BootDisk finds the one disk of the machine with both slots. Errors are *Error of KindNoSlots or KindTwoSlots.
func (f *Finder) BootDisk() (BootDisk, error) {
	disks, _ := filepath.Glob(filepath.Join(f.Sys, "block", "*"))
	var found []BootDisk
	var names []string
	for _, dir := range disks[:min(len(disks), maxPartitions)] {
		if b, ok := f.slotsOf(filepath.Base(dir)); ok {
			found, names = append(found, b), append(names, b.Name)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return BootDisk{}, &Error{KindNoSlots, "no disk of this machine has the two slots of a boot disk", "write the release's disk image to the boot disk as a whole, and boot from it"}
	}
	return BootDisk{}, &Error{KindTwoSlots, "several disks have the slots of a boot disk: " + strings.Join(names, ", "), "remove all but the one that the machine boots from"}
}

func (f *Finder) slotsOf(name string) (BootDisk, bool) {
	b := BootDisk{Name: name}
	sectors, _ := strconv.ParseInt(f.attr(name, "size"), 10, 64)
	if parts, _ := filepath.Glob(filepath.Join(f.Sys, "block", name, name+"*", "partition")); len(parts) < 2 || sectors <= 0 {
		return b, false
	}
	file, err := os.Open(filepath.Join(f.Dev, name))
	if err != nil {
		return b, false
	}
	defer file.Close()
	list, err := ReadGPT(file, sectors*fatSector)
	if err != nil {
		return b, false
	}
	seen := [2]int{}
	for _, p := range list {
		for i, want := range SlotNames {
			if p.Name == want {
				p.Device = f.partition(name, p.Number)
				b.Slots[i] = p
				seen[i]++
			}
		}
	}
	return b, seen == [2]int{1, 1} && b.Slots[0].Device != "" && b.Slots[1].Device != ""
}

// partition is the device file of a disk's n-th partition, "" where the kernel has none.
func (f *Finder) partition(name string, n int) string {
	files, _ := filepath.Glob(filepath.Join(f.Sys, "block", name, name+"*", "partition"))
	for _, file := range files {
		if b, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(b)) == strconv.Itoa(n) {
			return filepath.Join(f.Dev, filepath.Base(filepath.Dir(file)))
		}
	}
	return ""
}
