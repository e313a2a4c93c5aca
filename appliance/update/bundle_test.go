package update

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"guardhouse/appliance/tpm"
)

func key(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

var facts = Manifest{Version: "1.4", Number: 7, BuildEpoch: 1795000000, Kernel: "6.1.0", Go: "go1.26.8", KeySet: "Contoso",
	StoredFormat: 2, MinStoredFormat: 1, Notes: "faster\nsafer"}

var parts = Parts{Policy: []byte(`{"version":1}`), SBOM: bytes.Repeat([]byte("sbom "), 1000), UKI: bytes.Repeat([]byte("MZ image "), 20000)}

func made(t testing.TB, m Manifest, signers ...crypto.Signer) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, m, parts, signers...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// read takes a bundle in as a node does, and returns what it acknowledged.
func read(r io.Reader, keys ...*rsa.PublicKey) (*Bundle, []byte, error) {
	b, err := Open(r, keys...)
	if err != nil {
		return nil, nil, err
	}
	var image bytes.Buffer
	if err := b.UKI(&image); err != nil {
		return nil, nil, err
	}
	return b, image.Bytes(), nil
}

func TestWhatWasSignedIsWhatIsRead(t *testing.T) {
	k := key(t)
	b, err := Open(iotest.OneByteReader(bytes.NewReader(made(t, facts, k))), &k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	m := b.Manifest
	m.Policy, m.SBOM, m.UKI = Part{}, Part{}, Part{}
	if m != facts || !bytes.Equal(b.Policy, parts.Policy) || b.SignedBy != KeyID(&k.PublicKey) || b.Manifest.UKI != PartOf(parts.UKI) {
		t.Errorf("%+v", b)
	}
	var sbom, image bytes.Buffer
	if err := errors.Join(b.SBOM(&sbom), b.UKI(&image)); err != nil || !bytes.Equal(sbom.Bytes(), parts.SBOM) || !bytes.Equal(image.Bytes(), parts.UKI) {
		t.Errorf("%v", err)
	}
	if err := b.UKI(io.Discard); !errors.Is(err, ErrOrder) {
		t.Errorf("read twice: %v", err)
	}
}

func TestTheSameReleaseIsTheSameBytes(t *testing.T) {
	k := key(t)
	if !bytes.Equal(made(t, facts, k), made(t, facts, k)) {
		t.Error("two bundles of one release differ")
	}
}

// Every byte counts: header, manifest, signature, policy, SBOM, image.
func TestRefusesABundleThatDiffersInOneByte(t *testing.T) {
	k := key(t)
	good := made(t, facts, k)
	at := map[string]int{"magic": 0, "manifest's length": 19, "number of signatures": 23, "manifest": 60}
	head := len(good) - len(parts.UKI) - len(parts.SBOM) - len(parts.Policy)
	at["key id"], at["signature"], at["policy"] = head-280, head-1, head
	at["SBOM"], at["image"], at["last byte"] = head+len(parts.Policy)+5, len(good)-len(parts.UKI), len(good)-1
	for name, i := range at {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if _, _, err := read(bytes.NewReader(bad), &k.PublicKey); !errors.Is(err, ErrBundle) && !errors.Is(err, ErrUntrusted) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i := 0; i < len(good); i += 97 { // and all over
		bad := bytes.Clone(good)
		bad[i] ^= 0x80
		if _, _, err := read(bytes.NewReader(bad), &k.PublicKey); err == nil {
			t.Errorf("byte %d changed: read", i)
		}
	}
}

func TestRefusesABundleThatIsCutOffOrLonger(t *testing.T) {
	k := key(t)
	good := made(t, facts, k)
	for _, n := range []int{0, 10, 24, 100, 1200, len(good) - len(parts.UKI) - 1, len(good) - len(parts.UKI), len(good) - 1} {
		if _, _, err := read(bytes.NewReader(good[:n]), &k.PublicKey); !errors.Is(err, ErrBundle) {
			t.Errorf("cut off at %d: %v", n, err)
		}
	}
	if _, _, err := read(bytes.NewReader(append(bytes.Clone(good), 0)), &k.PublicKey); !errors.Is(err, ErrBundle) || !strings.Contains(err.Error(), "more follows") {
		t.Errorf("one byte more: %v", err)
	}
	// A stream that breaks after the last byte was not seen to end: nothing is acknowledged.
	broken := io.MultiReader(bytes.NewReader(good), iotest.ErrReader(io.ErrUnexpectedEOF))
	if _, _, err := read(broken, &k.PublicKey); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("broken stream: %v", err)
	}
}

func TestRefusesPartsInAnotherOrder(t *testing.T) {
	k := key(t)
	good := made(t, facts, k)
	n := len(good) - len(parts.UKI) - len(parts.SBOM)
	swapped := slices.Concat(good[:n], parts.UKI, parts.SBOM)
	if _, _, err := read(bytes.NewReader(swapped), &k.PublicKey); !errors.Is(err, ErrBundle) {
		t.Errorf("%v", err)
	}
}

func TestRefusesAReleaseOfOtherKeys(t *testing.T) {
	ours, others := key(t), key(t)
	_, _, err := read(bytes.NewReader(made(t, facts, others)), &ours.PublicKey)
	if !errors.Is(err, ErrUntrusted) || !strings.Contains(err.Error(), KeyID(&ours.PublicKey)[:16]) {
		t.Errorf("%v", err)
	}
	if _, _, err := read(bytes.NewReader(made(t, facts, others))); !errors.Is(err, ErrUntrusted) {
		t.Errorf("a node without keys: %v", err)
	}
	// Somebody else's signature under our key's name.
	forged := made(t, facts, others)
	id, mine := keyID(&others.PublicKey), keyID(&ours.PublicKey)
	copy(forged[bytes.Index(forged, id[:]):], mine[:])
	if _, _, err := read(bytes.NewReader(forged), &ours.PublicKey); !errors.Is(err, ErrBundle) {
		t.Errorf("forged: %v", err)
	}
}

// The release key's signature over the same bytes without our prefix is for something else.
func TestRefusesASignatureMadeForAnotherPurpose(t *testing.T) {
	k := key(t)
	bundle := made(t, facts, k)
	n := int(binary.BigEndian.Uint32(bundle[16:]))
	sum := crypto.SHA256.New()
	sum.Write(bundle[24 : 24+n])
	sig, err := rsa.SignPKCS1v15(nil, k, crypto.SHA256, sum.Sum(nil))
	if err != nil {
		t.Fatal(err)
	}
	copy(bundle[24+n+32:], sig)
	if _, _, err := read(bytes.NewReader(bundle), &k.PublicKey); !errors.Is(err, ErrBundle) {
		t.Errorf("%v", err)
	}
}

func TestOldAndNewReleaseKeyBothTakeOneBundle(t *testing.T) {
	before, after := key(t), key(t)
	bundle := made(t, facts, before, after)
	for _, k := range []*rsa.PrivateKey{before, after} {
		if b, _, err := read(bytes.NewReader(bundle), &k.PublicKey); err != nil || b.SignedBy != KeyID(&k.PublicKey) {
			t.Errorf("%v", err)
		}
	}
}

func TestRefusesWhatAManifestMustNotSay(t *testing.T) {
	for name, change := range map[string]func(*Manifest){
		"no version":       func(m *Manifest) { m.Version = "" },
		"two lines":        func(m *Manifest) { m.Kernel = "6.1\nrm" },
		"terminal control": func(m *Manifest) { m.Notes = "\x1b[2J" },
		"long notes":       func(m *Manifest) { m.Notes = strings.Repeat("x", maxNotes+1) },
		"not UTF-8":        func(m *Manifest) { m.Notes = "\xff" },
		"number 0":         func(m *Manifest) { m.Number = 0 },
		"no build time":    func(m *Manifest) { m.BuildEpoch = 0 },
		"formats":          func(m *Manifest) { m.MinStoredFormat = 3 },
		"unread format":    func(m *Manifest) { m.WritesFormat = 3 },
		"huge image":       func(m *Manifest) { m.UKI.Size = MaxUKI + 1 },
		"negative SBOM":    func(m *Manifest) { m.SBOM.Size = -1 },
		"no policies":      func(m *Manifest) { m.Policy.Size = 0 },
		"no hash":          func(m *Manifest) { m.UKI.SHA256 = "" },
		"capital hash":     func(m *Manifest) { m.UKI.SHA256 = strings.Repeat("A", 64) },
	} {
		m := facts
		m.Policy, m.SBOM, m.UKI = PartOf(parts.Policy), PartOf(parts.SBOM), PartOf(parts.UKI)
		if err := m.check(); err != nil {
			t.Fatal(err)
		}
		change(&m)
		if m.check() == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestReadsOnlyStoredFormsItKnows(t *testing.T) {
	for format, want := range map[int]bool{0: false, 1: true, 2: true, 3: false} {
		if facts.Reads(format) != want {
			t.Errorf("format %d: %v", format, !want)
		}
	}
}

func TestReleaseKeysComeFromTheImage(t *testing.T) {
	a, b := key(t), key(t)
	var text []byte
	for _, k := range []*rsa.PrivateKey{a, b} {
		pem, err := tpm.AuthorityPEM(&k.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, pem...)
	}
	name := filepath.Join(t.TempDir(), "release.pub")
	if err := os.WriteFile(name, text, 0o644); err != nil {
		t.Fatal(err)
	}
	if keys, err := Keys(name); err != nil || len(keys) != 2 || !keys[1].Equal(&b.PublicKey) {
		t.Errorf("%v %v", keys, err)
	}
	for what, bad := range map[string][]byte{"empty": nil, "garbage": []byte("x"), "tail": append(bytes.Clone(text), 'x'), "many": bytes.Repeat(text, 3), "other form": bytes.ReplaceAll(text, []byte("PUBLIC"), []byte("PRIVATE"))} {
		if _, err := ParseKeys(bad); err == nil {
			t.Errorf("%s: taken", what)
		}
	}
	if _, err := Keys(name + "x"); err == nil || !strings.Contains(err.Error(), "mkimage") {
		t.Errorf("%v", err)
	}
}

// FuzzOpen: whatever arrives, it neither panics nor acknowledges anything that was not signed; with the signature left out it reads
// manifests without trusting a length.
func FuzzOpen(f *testing.F) {
	k := key(f)
	good := made(f, facts, k)
	for _, seed := range [][]byte{good, good[:len(good)/2], good[:24], nil, append(bytes.Clone(good), 1)} {
		f.Add(seed)
	}
	f.Add(append([]byte(magic), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff))
	f.Add([]byte(`{"version":"1","number":1}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		if _, image, err := read(bytes.NewReader(in), &k.PublicKey); err == nil && (!bytes.Equal(image, parts.UKI) || !bytes.Equal(in[:16], good[:16])) {
			t.Error("acknowledged what nobody signed")
		}
		if m, err := parseManifest(in); err == nil {
			if text, err := m.encode(); err != nil && len(text) <= MaxManifest {
				t.Errorf("read but can't be written: %v", err)
			}
		}
	})
}
