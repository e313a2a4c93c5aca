package measure

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"testing"

	"guardhouse/images/uki"
)

// pe is a hand-made PE32+ image with one section of that name and data.
func pe(name string, data []byte) []byte {
	b := make([]byte, 1024)
	copy(b, "MZ")
	binary.LittleEndian.PutUint32(b[0x3c:], 0x80)
	copy(b[0x80:], "PE\x00\x00")
	c := b[0x84:]
	binary.LittleEndian.PutUint16(c, 0x8664)
	binary.LittleEndian.PutUint16(c[2:], 1)
	binary.LittleEndian.PutUint16(c[16:], 240)
	o := c[20:]
	binary.LittleEndian.PutUint16(o, 0x20b)
	binary.LittleEndian.PutUint32(o[32:], 512)
	binary.LittleEndian.PutUint32(o[36:], 512)
	binary.LittleEndian.PutUint32(o[60:], 1024)
	binary.LittleEndian.PutUint32(o[108:], 16)
	s := o[240:]
	copy(s, name)
	raw := (len(data) + 511) / 512 * 512
	binary.LittleEndian.PutUint32(s[8:], uint32(len(data)))
	binary.LittleEndian.PutUint32(s[12:], 0x1000)
	binary.LittleEndian.PutUint32(s[16:], uint32(raw))
	binary.LittleEndian.PutUint32(s[20:], 1024)
	return append(append(b, data...), make([]byte, raw-len(data))...)
}

func image(t *testing.T, magic string, extra ...uki.Section) []byte {
	t.Helper()
	list := append([]uki.Section{
		{Name: uki.OSRel, Data: []byte("ID=x\n")}, {Name: uki.Cmdline, Data: []byte("quiet")},
		{Name: uki.Uname, Data: []byte("6.1")}, {Name: uki.Linux, Data: pe(".text", []byte("kernel"))}, {Name: uki.Initrd, Data: []byte("initrd")},
	}, extra...)
	img, err := uki.Build(pe(uki.SDMagic, []byte(magic)), list)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

const magic = "#### LoaderInfo: systemd-stub 252.39-1~deb12u2 ####\x00"

// A register written out by hand, without Replay.
func chain(parts ...[]byte) (v [32]byte) {
	for _, p := range parts {
		d := sha256.Sum256(p)
		v = sha256.Sum256(append(v[:], d[:]...))
	}
	return v
}

func TestImageRegisterFollowsTheStubsOrder(t *testing.T) {
	p, err := Predict(image(t, magic), Options{})
	if err != nil {
		t.Fatal(err)
	}
	kernel := pe(".text", []byte("kernel"))
	want := chain([]byte(".linux\x00"), kernel, []byte(".osrel\x00"), []byte("ID=x\n"), []byte(".cmdline\x00"), []byte("quiet"), []byte(".initrd\x00"), []byte("initrd"))
	if p.PCR11 != want {
		t.Errorf("PCR 11 got %x want %x", p.PCR11, want)
	}
	if p.Stub != "252.39-1~deb12u2" {
		t.Errorf("stub %q", p.Stub)
	}
}

func TestSignedPolicyIsNotMeasuredButItsKeyIs(t *testing.T) {
	base, err := Predict(image(t, magic), Options{})
	if err != nil {
		t.Fatal(err)
	}
	sig, err := Predict(image(t, magic, uki.Section{Name: uki.PCRSig, Data: []byte("{}")}), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if sig.PCR11 != base.PCR11 || sig.PCR4 == base.PCR4 {
		t.Error(".pcrsig must change PCR 4 only")
	}
	key, err := Predict(image(t, magic, uki.Section{Name: uki.PCRPKey, Data: []byte("key")}), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if key.PCR11 == base.PCR11 {
		t.Error(".pcrpkey must change PCR 11")
	}
}

func TestInnerKernelIsMeasuredOnlyWithoutSecureBoot(t *testing.T) {
	img := image(t, magic)
	off, err := Predict(img, Options{})
	if err != nil {
		t.Fatal(err)
	}
	on, err := Predict(img, Options{SecureBoot: true})
	if err != nil {
		t.Fatal(err)
	}
	outer, _ := uki.AuthenticodeSHA256(img)
	inner, _ := uki.AuthenticodeSHA256(pe(".text", []byte("kernel")))
	first := chain([]byte("Calling EFI Application from Boot Option"), make([]byte, 4))
	want := sha256.Sum256(append(first[:], outer[:]...))
	if on.PCR4 != want {
		t.Errorf("Secure Boot on: PCR 4 got %x want %x", on.PCR4, want)
	}
	if want = sha256.Sum256(append(want[:], inner[:]...)); off.PCR4 != want {
		t.Errorf("Secure Boot off: PCR 4 got %x want %x", off.PCR4, want)
	}
}

// Read from the TPM of a real boot (OVMF 2022.11, Secure Boot off): the
// register before any boot application was measured is the same on every
// machine, so it anchors the two firmware events to reality.
func TestFirmwareEventsMatchARealLog(t *testing.T) {
	want, _ := hex.DecodeString("3d6772b4f84ed47595d72a2c4c5ffd15f5bb72c7507fe26f2aaee2c69d5633ba")
	separator := sha256.Sum256(make([]byte, 4))
	if got := separator[:]; hex.EncodeToString(got) != "df3f619804a92fdb4057192dc43dd748ea778adc52bc498ce80524c014b81119" {
		t.Errorf("separator %x", got)
	}
	calling := sha256.Sum256([]byte("Calling EFI Application from Boot Option"))
	if !bytes.Equal(calling[:], want) {
		t.Errorf("action %x want %x", calling, want)
	}
}

func TestRefusesImagesItCannotPredict(t *testing.T) {
	for name, img := range map[string][]byte{
		"newer stub":    image(t, "#### LoaderInfo: systemd-stub 256.1 ####"),
		"no version":    image(t, "#### LoaderInfo: other-stub 252 ####"),
		"no magic":      pe(".text", []byte("x")),
		"not a UKI":     pe(uki.SDMagic, []byte(magic)),
		"not an image":  []byte("hello"),
		"kernel not PE": mustBuild(t, []uki.Section{{Name: uki.Linux, Data: []byte("k")}, {Name: uki.Initrd, Data: []byte("i")}, {Name: uki.Cmdline, Data: []byte("c")}, {Name: uki.OSRel, Data: []byte("o")}}),
	} {
		if p, err := Predict(img, Options{}); err == nil {
			t.Errorf("%s: accepted: %+v", name, p)
		}
	}
	if _, err := Predict(image(t, "x systemd-stub 2520 x"), Options{}); !errors.Is(err, ErrStub) {
		t.Errorf("version 2520: %v", err)
	}
}

func mustBuild(t *testing.T, list []uki.Section) []byte {
	t.Helper()
	img, err := uki.Build(pe(uki.SDMagic, []byte(magic)), list)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func FuzzPredict(f *testing.F) {
	f.Add(pe(uki.SDMagic, []byte(magic)))
	f.Add([]byte("MZ"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := Predict(b, Options{}); err == nil && len(p.Events) < 12 {
			t.Fatalf("a prediction from %d events", len(p.Events))
		}
	})
}
