// Package uki assembles and reads Unified Kernel Images: one PE file that
// holds a boot stub, a kernel, an initramfs, a command line and an
// os-release, so that one firmware measurement covers all of them.
//
// Promise: the same inputs give the same bytes; every section is recorded
// with its exact length, so that what the stub measures is what was given;
// Parse and AuthenticodeSHA256 never panic and never read outside the file,
// whatever bytes they are handed.
//
// Limits: PE32+ for x86-64 only. Signatures are RSA with SHA-256.
// Two UEFI details are assumed because every stub we know obeys them: the
// section headers are sorted by file offset, and nothing follows the last
// section but a COFF symbol table or a certificate table.
package uki

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// Names of the sections a systemd stub looks for. See systemd-stub(7).
const (
	Linux   = ".linux"
	OSRel   = ".osrel"
	Cmdline = ".cmdline"
	Initrd  = ".initrd"
	Uname   = ".uname"
	PCRPKey = ".pcrpkey"
	PCRSig  = ".pcrsig"
	SDMagic = ".sdmagic"
)

// MaxSize bounds every PE file this package reads or writes (512 MiB).
const MaxSize = 512 << 20

// Errors a caller may want to tell apart. All are wrapped with detail.
var (
	ErrNotPE    = errors.New("not a PE32+ x86-64 image")
	ErrNoRoom   = errors.New("no room for another section header in the stub")
	ErrTooLarge = errors.New("image too large")
	ErrSection  = errors.New("bad section")
)

// Section is one named part of an image. Data has exactly the length that
// the stub sees (the PE VirtualSize), without file padding.
type Section struct {
	Name string
	Data []byte
}

// Layout constants of the sections we add. The stub is linked with a section
// alignment of 512; we use whole pages, which every multiple rule accepts.
const (
	virtualAlign = 4096
	codeRVA      = 0x40000040 // initialised data, readable (IMAGE_SCN_*)
	headerSize   = 40         // one IMAGE_SECTION_HEADER
)

// Build appends sections to stub and returns the finished image. The stub is
// not changed. Sections keep their order. It fails on an empty or repeated
// name, on a name the stub already has, and when the stub's header has no
// room left.
func Build(stub []byte, sections []Section) ([]byte, error) {
	im, err := read(stub)
	if err != nil {
		return nil, fmt.Errorf("stub: %w", err)
	}
	if err := checkNames(im, sections); err != nil {
		return nil, err
	}
	table := im.sectionTable
	room := (im.firstData - table) / headerSize
	if len(im.sections)+len(sections) > room {
		return nil, fmt.Errorf("%w: %d present, %d wanted, %d possible", ErrNoRoom, len(im.sections), len(sections), room)
	}
	// The stub carries a COFF symbol table after its last section. Left in
	// place it is a gap in the file that signers and firmware hash apart.
	out := append([]byte(nil), stub[:im.endOfSections]...)
	binary.LittleEndian.PutUint32(out[im.coff+8:], 0)  // PointerToSymbolTable
	binary.LittleEndian.PutUint32(out[im.coff+12:], 0) // NumberOfSymbols
	out = pad(out, im.fileAlign)

	rva := alignUp(im.endOfImage, virtualAlign)
	at := table + len(im.sections)*headerSize
	for _, s := range sections {
		raw := alignUp(int64(len(s.Data)), im.fileAlign)
		if int64(len(out))+raw > MaxSize || rva+raw > math.MaxInt32 {
			return nil, fmt.Errorf("%w: section %s", ErrTooLarge, s.Name)
		}
		h := out[at : at+headerSize]
		clear(h)
		copy(h[:8], s.Name)
		binary.LittleEndian.PutUint32(h[8:], uint32(len(s.Data)))
		binary.LittleEndian.PutUint32(h[12:], uint32(rva))
		binary.LittleEndian.PutUint32(h[16:], uint32(raw))
		binary.LittleEndian.PutUint32(h[20:], uint32(len(out)))
		binary.LittleEndian.PutUint32(h[36:], codeRVA)
		out = pad(append(out, s.Data...), im.fileAlign)
		rva = alignUp(rva+int64(len(s.Data)), virtualAlign)
		at += headerSize
	}
	binary.LittleEndian.PutUint16(out[im.coff+2:], uint16(len(im.sections)+len(sections)))
	binary.LittleEndian.PutUint32(out[im.optional+56:], uint32(rva)) // SizeOfImage
	binary.LittleEndian.PutUint32(out[im.optional+64:], 0)           // CheckSum: firmware ignores it
	return out, nil
}

func checkNames(im *image, sections []Section) error {
	seen := map[string]bool{}
	for _, s := range im.sections {
		seen[s.name] = true
	}
	for _, s := range sections {
		switch {
		case len(s.Name) == 0 || len(s.Name) > 8:
			return fmt.Errorf("%w: name %q must have 1 to 8 bytes", ErrSection, s.Name)
		case seen[s.Name]:
			return fmt.Errorf("%w: %s is already present", ErrSection, s.Name)
		case len(s.Data) == 0:
			return fmt.Errorf("%w: %s is empty", ErrSection, s.Name)
		}
		seen[s.Name] = true
	}
	return nil
}

// Parse returns the sections of a PE image in file order. The data is cut
// from file, not copied: the caller must not change it. A section whose
// VirtualSize exceeds what the file holds (uninitialised data) is returned
// with what the file holds.
func Parse(file []byte) ([]Section, error) {
	im, err := read(file)
	if err != nil {
		return nil, err
	}
	out := make([]Section, 0, len(im.sections))
	for _, s := range im.sections {
		n := min(s.virtual, s.rawSize)
		out = append(out, Section{Name: s.name, Data: file[s.rawAt : s.rawAt+n]})
	}
	return out, nil
}

// Find returns the section of that name; ok is false when there is none.
// When a name occurs twice the first wins, as it does in the stub.
func Find(sections []Section, name string) (data []byte, ok bool) {
	for _, s := range sections {
		if s.Name == name {
			return s.Data, true
		}
	}
	return nil, false
}

type rawSection struct {
	name           string
	virtual, rva   int64
	rawAt, rawSize int64
}

// image is the checked skeleton of a PE file: every offset in it is inside
// the file.
type image struct {
	coff, optional, sectionTable int
	fileAlign                    int64
	headers                      int64 // SizeOfHeaders
	firstData                    int   // offset of the first section's bytes
	endOfSections                int64 // offset after the last section's bytes
	endOfImage                   int64 // first free RVA
	certDir                      int   // offset of data directory entry 4, 0 = absent
	certSize                     int64
	sections                     []rawSection
}

// read checks the headers with debug/pe and then takes the offsets that
// package does not show. PE format: Microsoft "PE Format" specification.
func read(file []byte) (*image, error) {
	if len(file) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(file), MaxSize)
	}
	if len(file) < 0x40 || file[0] != 'M' || file[1] != 'Z' {
		return nil, fmt.Errorf("%w: no MZ header", ErrNotPE)
	}
	lfanew := int64(binary.LittleEndian.Uint32(file[0x3c:]))
	if lfanew < 0x40 || lfanew+24+240 > int64(len(file)) {
		return nil, fmt.Errorf("%w: PE header outside the file", ErrNotPE)
	}
	coff := int(lfanew) + 4
	// debug/pe reads the symbol and string tables eagerly; we have no use for
	// them and they may be damaged, so it is shown a header without them.
	head := bytes.Clone(file[:min(len(file), 64<<10)])
	binary.LittleEndian.PutUint32(head[coff+8:], 0)
	binary.LittleEndian.PutUint32(head[coff+12:], 0)
	f, err := pe.NewFile(bytes.NewReader(head))
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrNotPE, err)
	}
	oh, ok := f.OptionalHeader.(*pe.OptionalHeader64)
	if !ok || f.Machine != pe.IMAGE_FILE_MACHINE_AMD64 || f.SizeOfOptionalHeader < 112 {
		return nil, ErrNotPE
	}
	im := &image{
		coff: coff, optional: coff + 20, sectionTable: coff + 20 + int(f.SizeOfOptionalHeader),
		fileAlign: int64(oh.FileAlignment), headers: int64(oh.SizeOfHeaders),
	}
	if im.fileAlign == 0 || im.fileAlign&(im.fileAlign-1) != 0 || im.fileAlign > 64<<10 {
		return nil, fmt.Errorf("%w: file alignment %d", ErrNotPE, im.fileAlign)
	}
	if oh.NumberOfRvaAndSizes > 4 && f.SizeOfOptionalHeader >= 112+5*8 {
		im.certDir = im.optional + 112 + 4*8
		im.certSize = int64(oh.DataDirectory[4].Size)
	}
	return im, im.takeSections(f.Sections, int64(len(file)))
}

func (im *image) takeSections(list []*pe.Section, size int64) error {
	end := im.sectionTable + len(list)*headerSize
	if int64(end) > im.headers || im.headers > size {
		return fmt.Errorf("%w: headers of %d bytes do not fit", ErrNotPE, im.headers)
	}
	im.endOfSections, im.firstData = im.headers, int(im.headers)
	prev := im.headers
	for _, s := range list {
		r := rawSection{name: s.Name, virtual: int64(s.VirtualSize), rva: int64(s.VirtualAddress), rawAt: int64(s.Offset), rawSize: int64(s.Size)}
		if r.rawSize == 0 {
			r.rawAt = 0
		} else if r.rawAt < prev || r.rawAt+r.rawSize > size {
			return fmt.Errorf("%w: %q lies outside the file or overlaps", ErrSection, r.name)
		} else {
			prev = r.rawAt + r.rawSize
			im.endOfSections = prev
		}
		im.endOfImage = max(im.endOfImage, r.rva+max(r.virtual, r.rawSize))
		im.sections = append(im.sections, r)
	}
	return nil
}

func alignUp(n, to int64) int64 { return (n + to - 1) / to * to }

func pad(b []byte, to int64) []byte {
	return append(b, make([]byte, alignUp(int64(len(b)), to)-int64(len(b)))...)
}
