package evidence

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"math/big"
	"sync"
	"testing"
	"time"
)

var rsaKeys = sync.OnceValue(func() (keys [3]*rsa.PrivateKey) {
	for i := range keys {
		keys[i], _ = rsa.GenerateKey(rand.Reader, 2048)
	}
	return keys
})

var (
	noon    = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	oidNote = asn1.ObjectIdentifier{1, 2, 3, 4}
)

// tpmt writes TPMT_PUBLIC as TPMs do.
func tpmt(t testing.TB, key crypto.PublicKey, attributes uint32) []byte {
	t.Helper()
	be := binary.BigEndian
	head := func(typ uint16) []byte {
		b := be.AppendUint32(be.AppendUint16(be.AppendUint16(nil, typ), 0x000b), attributes)
		b = be.AppendUint16(b, 32)
		b = append(b, make([]byte, 32)...)
		for _, v := range []uint16{6, 128, 0x43, 0x10} {
			b = be.AppendUint16(b, v)
		}
		return b
	}
	switch key := key.(type) {
	case *rsa.PublicKey:
		b := be.AppendUint16(head(1), uint16(key.N.BitLen()))
		b = be.AppendUint16(be.AppendUint32(b, 0), uint16(key.N.BitLen()/8))
		return append(b, key.N.Bytes()...)
	case *ecdsa.PublicKey:
		raw, err := key.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		b := be.AppendUint16(be.AppendUint16(be.AppendUint16(head(0x23), 3), 0x10), 32)
		b = append(b, raw[1:33]...)
		return append(be.AppendUint16(b, 32), raw[33:]...)
	}
	t.Fatal("key")
	return nil
}

func TestEKIsTheSameInEveryForm(t *testing.T) {
	r := &rsaKeys()[0].PublicKey
	e, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	blob := le.AppendUint32([]byte("RSA1"), 2048)
	blob = le.AppendUint64(le.AppendUint32(le.AppendUint32(blob, 3), 256), 0)
	blob = append(append(blob, 1, 0, 1), r.N.Bytes()...)
	point, _ := e.PublicKey.Bytes()
	spki := func(k crypto.PublicKey) []byte { b, _ := x509.MarshalPKIXPublicKey(k); return b }
	sized := func(b []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) }
	for _, c := range []struct {
		form EKForm
		key  crypto.PublicKey
		raw  []byte
	}{
		{EKTPMT, r, tpmt(t, r, 0x300b2)}, {EKTPM2B, r, sized(tpmt(t, r, 0x300b2))}, {EKBcrypt, r, blob},
		{EKSPKI, r, spki(r)}, {EKPKCS1, r, x509.MarshalPKCS1PublicKey(r)},
		{EKTPMT, e.Public(), tpmt(t, &e.PublicKey, 0x300b2)}, {EKTPM2B, e.Public(), sized(tpmt(t, &e.PublicKey, 0x300b2))},
		{EKBcrypt, e.Public(), append(le.AppendUint32([]byte("ECK1"), 32), point[1:]...)}, {EKSPKI, e.Public(), spki(e.Public())},
	} {
		got, err := ParseEK(c.raw)
		if err != nil {
			t.Errorf("%s: %v", c.form, err)
			continue
		}
		want, err := newEK(c.key, EKSPKI)
		if err != nil {
			t.Fatal(err)
		}
		if got.Form != c.form || !got.Same(want) || got.ID() != want.ID() || got.NameAlg != SHA256 || got.Symmetric != 128 {
			t.Errorf("%s read as %s, %v", c.form, got.Form, got)
		}
		if _, err := ParseEK(append(bytes.Clone(c.raw), 1)); err == nil {
			t.Errorf("%s: a byte too many is accepted", c.form)
		}
		if _, err := ParseEK(c.raw[:len(c.raw)-1]); err == nil {
			t.Errorf("%s: cut short and accepted", c.form)
		}
	}
}

func TestRefusesKeysThatAreNoEK(t *testing.T) {
	r := &rsaKeys()[0].PublicKey
	for _, attributes := range []uint32{0x000300b2 | tpmSign, 0x000200b2, 0x000300b0, 0x000100b2} {
		if _, err := ParseEK(tpmt(t, r, attributes)); !errors.Is(err, ErrEKUse) {
			t.Errorf("attributes 0x%x: %v", attributes, err)
		}
	}
	small, _ := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 1023, 1), E: 65537})
	if _, err := ParseEK(small); !errors.Is(err, ErrEKKind) {
		t.Errorf("RSA of 1024 bits: %v", err)
	}
}

// TestSaysWhichKeysCanNotAttest, before a host is registered with one.
func TestSaysWhichKeysCanNotAttest(t *testing.T) {
	for _, c := range []struct {
		bits int
		alg  Bank
		can  bool
	}{{2048, SHA256, true}, {3072, SHA384, true}, {2048, SHA384, false}, {3072, SHA256, false}, {4096, SHA384, false}, {4096, SHA256, false}} {
		ek := &EK{Public: &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), c.bits-1, 1), E: 65537}, NameAlg: c.alg}
		if err := ek.CanAttest(); (err == nil) != c.can || err != nil && !errors.Is(err, ErrEKKind) {
			t.Errorf("RSA of %d bits with %s: %v", c.bits, c.alg, err)
		}
	}
	raw := tpmt(t, &rsaKeys()[0].PublicKey, 0x000300b2)
	copy(raw[10:], policyA)
	if ek, err := ParseEK(raw); err != nil || ek.OtherTemplate || ek.CanAttest() != nil {
		t.Errorf("the default key: %+v, %v", ek, err)
	}
	high := tpmt(t, &rsaKeys()[0].PublicKey, 0x000300f2)
	copy(high[10:], policyA)
	for name, raw := range map[string][]byte{"another policy": tpmt(t, &rsaKeys()[0].PublicKey, 0x000300b2), "other attributes": high} {
		if ek, err := ParseEK(raw); err != nil || !ek.OtherTemplate {
			t.Errorf("%s: %+v, %v", name, ek, err)
		}
	}
}

func FuzzParseEK(f *testing.F) {
	_, middle := hierarchy(f)
	key := &rsaKeys()[2].PublicKey
	f.Add(tpmt(f, key, 0x300b2))
	f.Add(middle.issue(f, issue{name: "ek", key: key, serial: []byte{0, 0, 1}, extra: []pkix.Extension{sanTPM(f)}}))
	f.Add(append([]byte(nvHeader), 0, 4, 0x10, 2, 0x30, 0))
	f.Add([]byte("RSA1"))
	f.Add([]byte("ECK1\x20\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if ek, err := ParseEK(raw); err == nil && ek.ID() == "" {
			t.Fatal("a key without a name")
		}
	})
}

func FuzzReadBundle(f *testing.F) {
	root, _ := hierarchy(f)
	f.Add(root.cert.Raw)
	armored := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.cert.Raw})
	f.Add(armored)
	f.Add(append(bytes.Clone(root.cert.Raw), armored...))
	f.Add(append(withHeader(root.cert.Raw), 0xff, 0xff))
	f.Fuzz(func(t *testing.T, raw []byte) {
		good, _, err := ReadBundle(raw)
		if err == nil {
			_, _ = NewTrust(good, good).Chain(mustParse(t, root.cert.Raw), noon)
		}
	})
}

// decryptSalt is what a TPM does with an encrypted salt: OAEP with the label "SECRET" and its NUL.
func decryptSalt(key *rsa.PrivateKey, secret []byte) ([]byte, error) {
	return rsa.DecryptOAEP(crypto.SHA256.New(), nil, key, secret, []byte("SECRET\x00"))
}
