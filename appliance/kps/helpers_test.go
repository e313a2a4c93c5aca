package kps

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// testKeys are made once for all tests; index by the role constants.
var testKeys = sync.OnceValue(func() []*rsa.PrivateKey {
	keys := make([]*rsa.PrivateKey, 8)
	for i := range keys {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		keys[i] = k
	}
	return keys
})

const (
	ownerSigning = iota
	ownerEncryption
	guardianSigning
	guardianEncryption
	otherSigning
	otherEncryption
	communications
	hostKey
)

var testTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func certify(t testing.TB, name string, key *rsa.PrivateKey) *x509.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: name},
		NotBefore: testTime.Add(-time.Hour), NotAfter: testTime.Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func testOwner(t testing.TB) Owner {
	k := testKeys()
	return Owner{SigningCertificate: certify(t, "owner signing", k[ownerSigning]), EncryptionCertificate: certify(t, "owner encryption", k[ownerEncryption]),
		Signer: k[ownerSigning], Decrypter: MemoryKey{k[ownerEncryption]}}
}

// testGuardian goes the whole way through a metadata document.
func testGuardian(t testing.TB, signing, encryption int) Guardian {
	t.Helper()
	m, err := ParseMetadata(testMetadata(t, signing, encryption))
	if err != nil {
		t.Fatal(err)
	}
	g, _, err := m.Import(ImportOptions{AllowUntrustedRoot: true, Now: testTime})
	if err != nil {
		t.Fatal(err)
	}
	return *g
}

func testMetadata(t testing.TB, signing, encryption int) []byte {
	t.Helper()
	k := testKeys()
	raw, err := MakeMetadata(MetadataSpec{
		SigningCertificate: certify(t, "guardian signing", k[signing]), EncryptionCertificate: certify(t, "guardian encryption", k[encryption]),
		Signer: k[signing], CommunicationsCertificate: certify(t, "communications", k[communications]), CommunicationsSigner: k[communications],
		Random: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// testProtector has the owner as wrapping 1, the service as 2 and another guardian as 3.
func testProtector(t testing.TB) (*Protector, []byte) {
	t.Helper()
	p, tk, err := New(testOwner(t), []Guardian{testGuardian(t, guardianSigning, guardianEncryption), testGuardian(t, otherSigning, otherEncryption)}, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return p, tk
}

func service() (Decrypter, *rsa.PrivateKey) {
	return MemoryKey{testKeys()[guardianEncryption]}, testKeys()[guardianSigning]
}

// edited returns the document with one text replaced; the text must be there.
func edited(t testing.TB, raw []byte, old, to string) []byte {
	t.Helper()
	s := string(raw)
	if !strings.Contains(s, old) {
		t.Fatalf("the document does not hold %q", old)
	}
	return []byte(strings.Replace(s, old, to, 1))
}

func between(t testing.TB, raw []byte, from, to string) string {
	t.Helper()
	_, rest, ok := strings.Cut(string(raw), from)
	mid, _, ok2 := strings.Cut(rest, to)
	if !ok || !ok2 {
		t.Fatalf("the document does not hold %q...%q", from, to)
	}
	return mid
}

// threadTime is the processor time that this thread has used.
func threadTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err)
	}
	return time.Duration(t.Nano())
}

// timed adds up the processor time of a token's signatures, to be taken off a measurement.
type timed struct {
	*rsa.PrivateKey
	spent time.Duration
}

func (s *timed) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	start := threadTime()
	defer func() { s.spent += threadTime() - start }()
	return s.PrivateKey.Sign(random, digest, opts)
}

// faulty is a token whose signatures are wrong in one bit.
type faulty struct{ *rsa.PrivateKey }

func (f faulty) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	sig, err := f.PrivateKey.Sign(random, digest, opts)
	if err == nil {
		sig[100] ^= 1
	}
	return sig, err
}
