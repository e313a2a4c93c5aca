package uki

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"testing"
)

// tinyPE is a hand-made PE32+ image: headers of 1024 bytes, one .text
// section of n bytes. Written out field by field so that it owes nothing to
// the code under test.
func tinyPE(n int) []byte {
	const lfanew, optSize = 0x80, 240
	b := make([]byte, 1024)
	copy(b, "MZ")
	binary.LittleEndian.PutUint32(b[0x3c:], lfanew)
	copy(b[lfanew:], "PE\x00\x00")
	c := b[lfanew+4:]
	binary.LittleEndian.PutUint16(c[0:], 0x8664)
	binary.LittleEndian.PutUint16(c[2:], 1)
	binary.LittleEndian.PutUint16(c[16:], optSize)
	binary.LittleEndian.PutUint16(c[18:], 0x22)
	o := c[20:]
	binary.LittleEndian.PutUint16(o[0:], 0x20b)
	binary.LittleEndian.PutUint32(o[32:], 512) // SectionAlignment
	binary.LittleEndian.PutUint32(o[36:], 512) // FileAlignment
	binary.LittleEndian.PutUint32(o[56:], 0x2000)
	binary.LittleEndian.PutUint32(o[60:], 1024)
	binary.LittleEndian.PutUint32(o[108:], 16)
	s := o[optSize:]
	copy(s, ".text")
	raw := (n + 511) / 512 * 512
	binary.LittleEndian.PutUint32(s[8:], uint32(n))
	binary.LittleEndian.PutUint32(s[12:], 0x1000)
	binary.LittleEndian.PutUint32(s[16:], uint32(raw))
	binary.LittleEndian.PutUint32(s[20:], 1024)
	return append(b, bytes.Repeat([]byte{0xcc}, raw)...)
}

func sections() []Section {
	return []Section{{OSRel, []byte("ID=x\n")}, {Cmdline, []byte("quiet")}, {Linux, bytes.Repeat([]byte("k"), 5000)}, {Initrd, bytes.Repeat([]byte("i"), 777)}}
}

func TestBuildIsDeterministicAndKeepsEveryByte(t *testing.T) {
	stub := tinyPE(700)
	before := bytes.Clone(stub)
	a, err := Build(stub, sections())
	if err != nil {
		t.Fatal(err)
	}
	b, err := Build(stub, sections())
	if err != nil || !bytes.Equal(a, b) {
		t.Fatalf("two builds differ (%v)", err)
	}
	if !bytes.Equal(before, stub) {
		t.Fatal("the stub was changed")
	}
	got, err := Parse(a)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 5 {
		t.Fatalf("got %d sections", len(got))
	}
	for i, want := range sections() {
		if got[i+1].Name != want.Name || !bytes.Equal(got[i+1].Data, want.Data) {
			t.Errorf("section %d: got %s of %d bytes, want %s of %d", i+1, got[i+1].Name, len(got[i+1].Data), want.Name, len(want.Data))
		}
	}
}

func TestDropsTheSymbolTableAfterTheLastSection(t *testing.T) {
	clean := tinyPE(700)
	dirty := append(bytes.Clone(clean), bytes.Repeat([]byte("sym"), 100)...)
	binary.LittleEndian.PutUint32(dirty[0x84+8:], uint32(len(clean)))
	binary.LittleEndian.PutUint32(dirty[0x84+12:], 16)
	a, err := Build(clean, sections())
	if err != nil {
		t.Fatal(err)
	}
	b, err := Build(dirty, sections())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Fatal("a symbol table changed the image")
	}
}

func TestRefusesBadSections(t *testing.T) {
	for name, list := range map[string][]Section{
		"empty name":   {{"", []byte("x")}},
		"long name":    {{".overlong", []byte("x")}},
		"repeated":     {{".a", []byte("x")}, {".a", []byte("y")}},
		"already here": {{".text", []byte("x")}},
		"empty data":   {{".a", nil}},
	} {
		if _, err := Build(tinyPE(10), list); !errors.Is(err, ErrSection) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	var many []Section
	for i := range 100 {
		many = append(many, Section{string([]byte{'.', byte('a' + i/10), byte('0' + i%10)}), []byte("x")})
	}
	if _, err := Build(tinyPE(10), many); !errors.Is(err, ErrNoRoom) {
		t.Errorf("100 sections: got %v", err)
	}
}

func TestRefusesWhatIsNotAnImage(t *testing.T) {
	good := tinyPE(10)
	for name, edit := range map[string]func(b []byte) []byte{
		"empty":              func(b []byte) []byte { return nil },
		"text":               func(b []byte) []byte { return []byte("#!/bin/true\n") },
		"cut in the header":  func(b []byte) []byte { return b[:0x90] },
		"cut in a section":   func(b []byte) []byte { return b[:1100] },
		"header far away":    func(b []byte) []byte { binary.LittleEndian.PutUint32(b[0x3c:], 0xfffffff0); return b },
		"32 bit":             func(b []byte) []byte { binary.LittleEndian.PutUint16(b[0x98:], 0x10b); return b },
		"other machine":      func(b []byte) []byte { binary.LittleEndian.PutUint16(b[0x84:], 0xaa64); return b },
		"alignment 0":        func(b []byte) []byte { binary.LittleEndian.PutUint32(b[0x98+36:], 0); return b },
		"headers beyond end": func(b []byte) []byte { binary.LittleEndian.PutUint32(b[0x98+60:], 1<<30); return b },
		"section in header":  func(b []byte) []byte { binary.LittleEndian.PutUint32(b[0x98+240+20:], 16); return b },
	} {
		if _, err := Parse(edit(bytes.Clone(good))); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestAuthenticodeSkipsExactlyChecksumAndCertificates(t *testing.T) {
	img, err := Build(tinyPE(700), sections())
	if err != nil {
		t.Fatal(err)
	}
	want, err := AuthenticodeSHA256(img)
	if err != nil {
		t.Fatal(err)
	}
	// By hand: checksum at 0x98+64, certificate directory at 0x98+112+32.
	h := sha256.New()
	h.Write(img[:0x98+64])
	h.Write(img[0x98+68 : 0x98+144])
	h.Write(img[0x98+152:])
	if [32]byte(h.Sum(nil)) != want {
		t.Fatal("digest differs from the specification's order")
	}
	signed := append(bytes.Clone(img), make([]byte, 64)...)
	binary.LittleEndian.PutUint32(signed[0x98+64:], 0x12345678)
	binary.LittleEndian.PutUint32(signed[0x98+144:], uint32(len(img)))
	binary.LittleEndian.PutUint32(signed[0x98+148:], 64)
	if got, err := AuthenticodeSHA256(signed); err != nil || got != want {
		t.Fatalf("a signature changed the digest (%v)", err)
	}
	if c, err := Certificates(signed); err != nil || len(c) != 64 {
		t.Errorf("certificate table of %d bytes, %v", len(c), err)
	}
	if c, err := Certificates(img); err != nil || len(c) != 0 {
		t.Errorf("unsigned image has a certificate table of %d bytes, %v", len(c), err)
	}
	for _, at := range []int{0, 0x99, 0x98 + 240, 1024, len(img) - 1} {
		bad := bytes.Clone(img)
		bad[at] ^= 1
		if got, err := AuthenticodeSHA256(bad); err == nil && got == want {
			t.Errorf("byte %d is not covered", at)
		}
	}
}

// The stub of the machine's systemd package, when there is one: it is what
// the product ships, and it has a symbol table.
func TestRealStubHasRoomForAllSections(t *testing.T) {
	stub, err := os.ReadFile("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("package systemd-boot-efi is not installed")
	}
	if err != nil {
		t.Fatal(err)
	}
	all := []Section{{OSRel, []byte("a")}, {Cmdline, []byte("b")}, {Uname, []byte("c")}, {PCRPKey, []byte("d")}, {PCRSig, []byte("e")}, {Linux, []byte("f")}, {Initrd, []byte("g")}}
	img, err := Build(stub, all)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := AuthenticodeSHA256(img); err != nil {
		t.Fatal(err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(tinyPE(700))
	f.Add([]byte("MZ"))
	img, err := Build(tinyPE(100), sections())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(img)
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := Parse(b)
		if err == nil {
			for _, s := range list {
				if len(s.Data) > len(b) {
					t.Fatal("section larger than the file")
				}
			}
		}
		if _, err := AuthenticodeSHA256(b); err == nil && len(b) < 0x40 {
			t.Fatal("digest of something too short")
		}
		if c, err := Certificates(b); err == nil && len(c) > len(b) {
			t.Fatal("certificate table larger than the file")
		}
		if out, err := Build(b, sections()); err == nil {
			if _, err := Parse(out); err != nil {
				t.Fatalf("built image does not parse: %v", err)
			}
		}
	})
}
