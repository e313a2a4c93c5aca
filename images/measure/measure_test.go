package measure

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"testing"

	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tcg"

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

// The logs are those of real boots of an image built by this project: OVMF
// 2022.11-6+deb12u2 with swtpm 0.7.1, stub 252.39-1~deb12u2, Debian's kernel
// 6.1.192-2, once without and once with Secure Boot. The registers beside
// them were read from the TPM by the booted system. They tie our reading of
// firmware and stub to what both did.
func TestRealBootsMeasureWhatIsPredicted(t *testing.T) {
	const (
		calling   = "3d6772b4f84ed47595d72a2c4c5ffd15f5bb72c7507fe26f2aaee2c69d5633ba"
		separator = "df3f619804a92fdb4057192dc43dd748ea778adc52bc498ce80524c014b81119"
		// What Debian's signature on that kernel says its image hash is.
		kernel = "6b1bf35c3bee9918250f593a6fff889c75c1e239cd2fe9e5bb0cd3de9dcb8e51"
		pcr11  = "1f196b8b981258338cef3f906e9c36a2c5b1c80f6225aa9a58c5419c194371b7"
	)
	for name, c := range map[string]struct {
		log, pcr4 string
		after     []string // PCR 4 events after the image's own
	}{
		"off": {"testdata/ovmf-2022.11-stub-252-secureboot-off.log", "dc8322c81bf0c72298bfa2e2c60c4e6c5fff749a2360c9ef7ba88bfb211eaccb", []string{kernel}},
		"on":  {"testdata/ovmf-2022.11-stub-252-secureboot-on.log", "1feff421311a61839e7bc381b58f8001a7977483572aa7aa811d7f8a82403b78", nil},
	} {
		boot, image := logged(t, c.log)
		if len(boot) != 3+len(c.after) || hexOf(boot[0]) != calling || hexOf(boot[1]) != separator {
			t.Fatalf("%s: PCR 4 events %+v", name, boot)
		}
		for i, want := range c.after {
			if hexOf(boot[3+i]) != want {
				t.Errorf("%s: inner kernel %s want %s", name, hexOf(boot[3+i]), want)
			}
		}
		if got := Replay(boot, BootPCR); hex.EncodeToString(got[:]) != c.pcr4 {
			t.Errorf("%s: PCR 4 %x want %s", name, got, c.pcr4)
		}
		if got := Replay(image, ImagePCR); hex.EncodeToString(got[:]) != pcr11 {
			t.Errorf("%s: PCR 11 %x want %s", name, got, pcr11)
		}
		for i, section := range []string{".linux", ".osrel", ".cmdline", ".initrd"} {
			if want := sha256.Sum256([]byte(section + "\x00")); image[2*i].Digest != want {
				t.Errorf("%s: event %d of PCR 11 is not the name %s", name, 2*i, section)
			}
		}
		p := Prediction{}
		if err := p.boot(pe(".text", nil)); err != nil || p.Events[0].Digest != boot[0].Digest || p.Events[1].Digest != boot[1].Digest {
			t.Errorf("%s: our first events differ (%v)", name, err)
		}
	}
}

func logged(t *testing.T, name string) (boot, image []Event) {
	t.Helper()
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	log, err := tcg.ParseEventLog(raw, tcg.ParseOpts{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range log.Events(register.HashSHA256) {
		ev := Event{PCR: e.Index, What: e.Type.String(), Digest: [32]byte(e.ReplayedDigest())}
		switch e.Index {
		case BootPCR:
			boot = append(boot, ev)
		case ImagePCR:
			image = append(image, ev)
		}
	}
	return boot, image
}

func hexOf(e Event) string { return hex.EncodeToString(e.Digest[:]) }

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
