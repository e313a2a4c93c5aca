//go:build qemu

package site

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"guardhouse/appliance/disk"
	"guardhouse/appliance/update"
	"guardhouse/images"
	"guardhouse/images/esp"
	"guardhouse/images/keys"
	"guardhouse/images/uki"
)

// bootDriver is the least PE32+ file that firmware loads as a driver of its boot services: its entry says "success" and does nothing.
// Whoever can have one loaded controls the machine before any image does.
func bootDriver() []byte {
	le := binary.LittleEndian
	b := make([]byte, 0x400)
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x40) // where the PE header is
	copy(b[0x40:], "PE\x00\x00")
	le.PutUint16(b[0x44:], 0x8664) // x86-64
	le.PutUint16(b[0x46:], 1)      // sections
	le.PutUint16(b[0x54:], 240)    // bytes of the optional header
	le.PutUint16(b[0x56:], 0x22)   // executable, large addresses
	o := b[0x58:]
	le.PutUint16(o, 0x20b)       // PE32+
	le.PutUint32(o[4:], 0x200)   // code
	le.PutUint32(o[16:], 0x1000) // entry
	le.PutUint32(o[20:], 0x1000) // base of code
	le.PutUint32(o[32:], 0x1000) // alignment in memory
	le.PutUint32(o[36:], 0x200)  // and in the file
	le.PutUint32(o[56:], 0x2000) // image
	le.PutUint32(o[60:], 0x200)  // headers
	le.PutUint16(o[68:], 11)     // subsystem: EFI boot service driver
	le.PutUint32(o[108:], 16)    // data directories, all empty
	s := b[0x58+240:]            // section
	copy(s, ".text")
	le.PutUint32(s[8:], 0x200)                // size
	le.PutUint32(s[12:], 0x1000)              // address
	le.PutUint32(s[16:], 0x200)               // in the file
	le.PutUint32(s[20:], 0x200)               // at
	le.PutUint32(s[36:], 0x60000020)          // code, execute, read
	copy(b[0x200:], []byte{0x31, 0xc0, 0xc3}) // xor eax, eax; ret: EFI_SUCCESS
	return b
}

// The driver's place on the boot disk, as files and as firmware names them.
const (
	driverPath = "/EFI/GUEST/driver.efi"
	driverFile = `\EFI\GUEST\driver.efi`
)

// diskWithDriver is a boot disk with the image, its policies and the driver.
func (s *stage) diskWithDriver(t *testing.T) string {
	t.Helper()
	read := func(name string) []byte {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	t.Setenv(esp.EpochVariable, "1795000000")
	name := filepath.Join(s.Lab.Dir, "with-driver.img")
	if err := esp.Write(name, []esp.File{{Path: esp.BootPath, Data: read(s.Image.EFI)}, {Path: driverPath, Data: bootDriver()},
		{Path: images.PolicyPath, Data: read(filepath.Join(s.built, images.PolicyFile))}}); err != nil {
		t.Fatal(err)
	}
	return name
}

// slots are the partitions of a boot disk.
func slots(t *testing.T, name string) []disk.Partition {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	parts, err := disk.ReadGPT(f, st.Size())
	if err != nil || len(parts) == 0 {
		t.Fatalf("%v %v", parts, err)
	}
	return parts
}

// option is a boot or driver entry, by the variable's name.
func option(t *testing.T, name, disk, file string, data []byte) keys.Variable {
	t.Helper()
	return keys.Variable{Name: name, GUID: keys.GlobalVariable, Data: update.LoadOption(name, slots(t, disk)[0], file, data)}
}

// variables of the firmware with one entry's number.
func number(name string, n uint16) keys.Variable {
	return keys.Variable{Name: name, GUID: keys.GlobalVariable, Data: binary.LittleEndian.AppendUint16(nil, n)}
}

// remove makes variables not exist.
func (s *stage) remove(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := s.Lab.BootVariables(s.Name, keys.Variable{Name: name, GUID: keys.GlobalVariable}); err != nil {
			t.Fatal(err)
		}
	}
}

// withCommandLine makes the next boot one by an entry that gives the image's stub another command line.
func (s *stage) withCommandLine(t *testing.T, words string) {
	t.Helper()
	line := append(keys.UTF16(words), 0, 0)
	if err := s.Lab.BootVariables(s.Name, option(t, "Boot0100", s.Image.Disk, `\EFI\BOOT\BOOTX64.EFI`, line), number("BootNext", 0x100)); err != nil {
		t.Fatal(err)
	}
}

// commandLine is the image's own.
func (s *stage) commandLine(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(s.Image.EFI)
	if err != nil {
		t.Fatal(err)
	}
	sections, err := uki.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	words, ok := uki.Find(sections, uki.Cmdline)
	if !ok {
		t.Fatal("the image has no command line")
	}
	return string(words)
}
