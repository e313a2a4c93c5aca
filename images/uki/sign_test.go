package uki

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

func keyPair(t testing.TB, name string) (*x509.Certificate, *rsa.PrivateKey) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Unix(1795000000, 0), NotAfter: time.Unix(2795000000, 0)}, &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: name}}, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// sbverify is what Debian signs and checks its own boot loaders with.
func TestOthersVerifyOurSignature(t *testing.T) {
	cert, key := keyPair(t, "db")
	other, _ := keyPair(t, "other")
	image, err := Build(tinyPE(700), sections())
	if err != nil {
		t.Fatal(err)
	}
	signed, err := Sign(image, cert, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := sbverify(t, cert, signed); err != nil {
		t.Error("sbverify refuses our signature")
	}
	if sbverify(t, other, signed) == nil {
		t.Error("sbverify takes another certificate")
	}
	broken := bytes.Clone(signed)
	broken[len(image)-600] ^= 1
	if sbverify(t, cert, broken) == nil {
		t.Error("sbverify takes a changed image")
	}
}

func sbverify(t *testing.T, c *x509.Certificate, file []byte) error {
	t.Helper()
	dir := t.TempDir()
	name, img := filepath.Join(dir, "c.pem"), filepath.Join(dir, "i.efi")
	if err := errors.Join(os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}), 0o600), os.WriteFile(img, file, 0o600)); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sbverify", "--cert", name, img).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("sbverify (Debian package sbsigntool): %v: %s", err, out)
	}
	return err
}

func TestSignsTheSameBytesTwiceAndChangesOnlyWhatHashesSkip(t *testing.T) {
	cert, key := keyPair(t, "db")
	image, err := Build(tinyPE(700), sections())
	if err != nil {
		t.Fatal(err)
	}
	a, err := Sign(image, cert, key)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := Sign(image, cert, key); err != nil || !bytes.Equal(a, b) {
		t.Errorf("two signatures differ (%v)", err)
	}
	before, _ := AuthenticodeSHA256(image)
	if after, err := AuthenticodeSHA256(a); err != nil || after != before {
		t.Errorf("the image hash changed: %x %x %v", before, after, err)
	}
	if err := Verify(a, cert); err != nil {
		t.Error(err)
	}
	if _, err := Sign(a, cert, key); !errors.Is(err, ErrSignature) {
		t.Errorf("signed twice: %v", err)
	}
}

// While db changes, one image starts on machines that trust either certificate; what firmware measures of it stays the same.
func TestTwoSignersBothCount(t *testing.T) {
	first, key := keyPair(t, "new")
	second, secondKey := keyPair(t, "old")
	third, _ := keyPair(t, "other")
	image, err := Build(tinyPE(700), sections())
	if err != nil {
		t.Fatal(err)
	}
	one, err := Sign(image, first, key)
	if err != nil {
		t.Fatal(err)
	}
	both, err := Sign(one, second, secondKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(Verify(both, first), Verify(both, second)); err != nil {
		t.Error(err)
	}
	if Verify(both, third) == nil {
		t.Error("a third certificate counts too")
	}
	before, _ := AuthenticodeSHA256(one)
	if after, err := AuthenticodeSHA256(both); err != nil || after != before {
		t.Errorf("the image hash changed: %v", err)
	}
	for _, cert := range []*x509.Certificate{first, second} {
		if err := sbverify(t, cert, both); err != nil {
			t.Errorf("sbverify finds no signature by %s", cert.Subject.CommonName)
		}
	}
	if _, err := Sign(both, second, secondKey); !errors.Is(err, ErrSignature) {
		t.Errorf("signed twice by one: %v", err)
	}
}

func TestVerifyRefusesAChangedImageOrAnotherSigner(t *testing.T) {
	cert, key := keyPair(t, "db")
	other, otherKey := keyPair(t, "db") // the same name and serial number
	image, err := Build(tinyPE(700), sections())
	if err != nil {
		t.Fatal(err)
	}
	if err := Verify(image, cert); !errors.Is(err, ErrSignature) {
		t.Errorf("unsigned: %v", err)
	}
	signed, err := Sign(image, cert, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := Verify(signed, other); !errors.Is(err, ErrSignature) {
		t.Errorf("another key: %v", err)
	}
	if _, err := Sign(image, cert, otherKey); !errors.Is(err, ErrSignature) {
		t.Errorf("a key that is not the certificate's: %v", err)
	}
	if _, err := Sign(image, cert, liar{key}); !errors.Is(err, ErrSignature) {
		t.Errorf("a signer that answers nonsense: %v", err)
	}
	for at := range len(image) {
		changed := bytes.Clone(signed)
		changed[at] ^= 0x10
		if sum, err := AuthenticodeSHA256(changed); err == nil {
			if was, _ := AuthenticodeSHA256(signed); sum == was {
				continue // the checksum and the table's own entry
			}
		}
		if Verify(changed, cert) == nil {
			t.Fatalf("byte %d changed and the signature holds", at)
		}
	}
}

type liar struct{ *rsa.PrivateKey }

func (l liar) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return make([]byte, 256), nil
}

func FuzzVerify(f *testing.F) {
	cert, key := keyPair(f, "db")
	image, err := Build(tinyPE(100), sections()[:1])
	if err != nil {
		f.Fatal(err)
	}
	signed, err := Sign(image, cert, key)
	if err != nil {
		f.Fatal(err)
	}
	want, _ := AuthenticodeSHA256(signed)
	f.Add(signed)
	f.Fuzz(func(t *testing.T, b []byte) {
		if Verify(b, cert) == nil {
			if got, err := AuthenticodeSHA256(b); err != nil || got != want {
				t.Error("verified an image that was never signed")
			}
		}
	})
}
