package update

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"

	"guardhouse/appliance/disk"
)

// Variables are the firmware's variables. Names are those of Linux' efivarfs: the variable's, a minus, its GUID. Each method is one step
// that a power cut leaves done or not done. Read of a variable that does not exist gives an error that is fs.ErrNotExist.
type Variables interface {
	Read(name string) ([]byte, error)
	Write(name string, data []byte) error // non-volatile, for boot and run time
	Remove(name string) error             // of none is no error
	Names() ([]string, error)
}

// The firmware's own variables (UEFI specification 2.10, 3.3), and ours.
const (
	efiGlobal    = "-8be4df61-93ca-11d2-aa0d-00e098032b8c"
	bootOrder    = "BootOrder" + efiGlobal
	bootNext     = "BootNext" + efiGlobal
	bootCurrent  = "BootCurrent" + efiGlobal
	retryMark    = "GuardhouseRetry-3f2b0c6a-7d5e-4f7c-9a41-6d1e5b8c2f90" // the machine was restarted once because of a broken boot entry
	maxVariable  = 4 << 10
	maxVariables = 512
)

// EntryNames are what the firmware's boot menu calls the slots.
var EntryNames = [2]string{"guardhouse A", "guardhouse B"}

// bootFile is where the image lies in a slot, as firmware names it.
const bootFile = `\EFI\BOOT\BOOTX64.EFI`

// loadOption is the entry of a slot.
func loadOption(name string, p disk.Partition) []byte { return LoadOption(name, p, bootFile, nil) }

// LoadOption is EFI_LOAD_OPTION (UEFI specification, 3.1.3) for a file with backslashes in a partition, by the short form of a hard drive's
// device path, which firmware finds wherever the disk is plugged in. data is what the program is given, for instance a command line.
func LoadOption(name string, p disk.Partition, file string, data []byte) []byte {
	le := binary.LittleEndian
	text := func(s string) (b []byte) {
		for _, c := range append(utf16.Encode([]rune(s)), 0) {
			b = le.AppendUint16(b, c)
		}
		return b
	}
	drive := le.AppendUint16([]byte{4, 1}, 42)
	drive = le.AppendUint32(drive, uint32(p.Number))
	drive = le.AppendUint64(drive, uint64(p.Start/512))
	drive = le.AppendUint64(drive, uint64(p.Size/512))
	drive = append(append(drive, p.GUID[:]...), 2, 2) // GPT, GUID
	node := text(file)
	path := slices.Concat(drive, le.AppendUint16([]byte{4, 4}, uint16(4+len(node))), node, []byte{0x7f, 0xff, 4, 0})
	b := le.AppendUint32(nil, 1) // active
	b = le.AppendUint16(b, uint16(len(path)))
	return slices.Concat(b, text(name), path, data)
}

// optionName is the description of a load option; "" where it has none.
func optionName(b []byte) string {
	if len(b) < 8 {
		return ""
	}
	var text []uint16
	for b = b[6:]; len(b) >= 2; b = b[2:] {
		c := binary.LittleEndian.Uint16(b)
		if c == 0 {
			return string(utf16.Decode(text))
		}
		text = append(text, c)
	}
	return ""
}

func entryVariable(n uint16) string { return fmt.Sprintf("Boot%04X", n) + efiGlobal }

func entryNumber(name string) (uint16, bool) {
	digits, ours := strings.CutSuffix(name, efiGlobal)
	digits, entry := strings.CutPrefix(digits, "Boot")
	if !ours || !entry || len(digits) != 4 || digits != strings.ToUpper(digits) {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 16, 16)
	return uint16(n), err == nil
}

// Entries are the firmware's boot entries of the two slots.
type Entries struct {
	vars    Variables
	numbers [2]uint16
}

// OwnEntries makes the entries of both slots where they are missing or other than they must be, and removes doubles of them. Entries of
// others stay. What is right already is not written: firmware's memory wears.
func OwnEntries(v Variables, d disk.BootDisk) (*Entries, error) {
	names, err := v.Names()
	if err != nil {
		return nil, fmt.Errorf("boot entries: %w", err)
	}
	if len(names) > maxVariables {
		return nil, fmt.Errorf("boot entries: the firmware holds more than %d variables", maxVariables)
	}
	slices.Sort(names)
	used := map[uint16][]byte{}
	for _, name := range names {
		if n, ok := entryNumber(name); ok {
			b, err := v.Read(name)
			if err != nil {
				b = nil // of no use, but its number is taken
			}
			used[n] = b
		}
	}
	e := &Entries{vars: v}
	for i, p := range d.Slots {
		if err := e.own(i, loadOption(EntryNames[i], p), used); err != nil {
			return nil, fmt.Errorf("boot entry %q: %w", EntryNames[i], err)
		}
	}
	return e, nil
}

func (e *Entries) own(slot int, want []byte, used map[uint16][]byte) error {
	var ours []uint16
	for n, b := range used {
		if optionName(b) == EntryNames[slot] {
			ours = append(ours, n)
		}
	}
	slices.Sort(ours)
	// One that is right already is kept before others of the name.
	slices.SortStableFunc(ours, func(x, y uint16) int {
		return right(used[y], want) - right(used[x], want)
	})
	if len(ours) == 0 {
		n := uint16(0)
		for _, taken := used[n]; taken; _, taken = used[n] {
			n++
		}
		ours = []uint16{n}
	}
	e.numbers[slot] = ours[0]
	if !bytes.Equal(used[ours[0]], want) {
		if err := e.vars.Write(entryVariable(ours[0]), want); err != nil {
			return err
		}
	}
	used[ours[0]] = want
	for _, n := range ours[1:] {
		if err := e.vars.Remove(entryVariable(n)); err != nil {
			return err
		}
		delete(used, n)
	}
	return nil
}

func right(b, want []byte) int {
	if bytes.Equal(b, want) {
		return 1
	}
	return 0
}

// Prefer puts the slot first in the boot order, the other one second, and what others have behind.
func (e *Entries) Prefer(slot int) error {
	have, err := numbers(e.vars, bootOrder)
	if err != nil {
		return err
	}
	want := []uint16{e.numbers[slot], e.numbers[1-slot]}
	for _, n := range have {
		if !slices.Contains(want, n) {
			want = append(want, n)
		}
	}
	if slices.Equal(have, want) {
		return nil
	}
	var b []byte
	for _, n := range want {
		b = binary.LittleEndian.AppendUint16(b, n)
	}
	if err := e.vars.Write(bootOrder, b); err != nil {
		return fmt.Errorf("boot order: %w", err)
	}
	return nil
}

// Once has the next boot, and only that, start the slot.
func (e *Entries) Once(slot int) error {
	if err := e.vars.Write(bootNext, binary.LittleEndian.AppendUint16(nil, e.numbers[slot])); err != nil {
		return fmt.Errorf("next boot: %w", err)
	}
	return nil
}

// Next is the slot that Once chose; ok is false where the next boot follows the order, or somebody else's entry.
func (e *Entries) Next() (slot int, ok bool, err error) {
	n, err := numbers(e.vars, bootNext)
	if err != nil || len(n) != 1 {
		return 0, false, err
	}
	slot = slices.Index(e.numbers[:], n[0])
	return slot, slot >= 0, nil
}

// OnlyOnce reports whether this boot of the slot was for once: the boot order begins with the other one, and firmware used our entry.
func (e *Entries) OnlyOnce(slot int) (bool, error) {
	order, err := numbers(e.vars, bootOrder)
	if err != nil {
		return false, err
	}
	current, err := numbers(e.vars, bootCurrent)
	return err == nil && len(order) > 0 && len(current) == 1 && order[0] == e.numbers[1-slot] && current[0] == e.numbers[slot], err
}

// NotOnce undoes Once.
func (e *Entries) NotOnce() error { return e.vars.Remove(bootNext) }

// Retried reports whether Retry restarted the machine and nothing has come of it yet.
func (e *Entries) Retried() bool {
	_, err := e.vars.Read(retryMark)
	return err == nil
}

// Retry prepares the restart after which only the slot's own entry was tried: it comes first and next. It returns false where that was
// done before.
func (e *Entries) Retry(slot int) (bool, error) {
	if e.Retried() {
		return false, nil
	}
	if err := e.vars.Write(retryMark, []byte{1}); err != nil {
		return false, fmt.Errorf("remember the restart: %w", err)
	}
	return true, errors.Join(e.Once(slot), e.Prefer(slot))
}

// Succeeded forgets Retry.
func (e *Entries) Succeeded() error { return e.vars.Remove(retryMark) }

func numbers(v Variables, name string) ([]uint16, error) {
	b, err := v.Read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil || len(b)%2 != 0 {
		return nil, fmt.Errorf("read %s: %d bytes, %v", name, len(b), err)
	}
	var list []uint16
	for ; len(b) >= 2; b = b[2:] {
		list = append(list, binary.LittleEndian.Uint16(b))
	}
	return list, nil
}
