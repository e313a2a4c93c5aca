package evidence

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
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

// issue makes a certificate; mend may rewrite the signed part before it is signed.
type issue struct {
	name   string
	key    crypto.PublicKey
	ca     bool
	extra  []pkix.Extension
	sha1   bool
	serial []byte // raw content of the INTEGER
	spki   []byte
	url    string
	until  time.Time
}

type authority struct {
	cert *x509.Certificate
	key  *rsa.PrivateKey
}

func (a *authority) issue(t testing.TB, i issue) []byte {
	t.Helper()
	if i.until.IsZero() {
		i.until = noon.AddDate(10, 0, 0)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: i.name}, NotBefore: noon.AddDate(-1, 0, 0), NotAfter: i.until,
		IsCA: i.ca, BasicConstraintsValid: i.ca, ExtraExtensions: i.extra}
	if i.ca {
		tmpl.KeyUsage = x509.KeyUsageCertSign
	}
	if i.url != "" {
		tmpl.IssuingCertificateURL = []string{i.url}
	}
	parent := a.cert
	if parent == nil {
		parent = tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, i.key, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if !i.sha1 && i.serial == nil && i.spki == nil {
		return der
	}
	return a.resign(t, der, i)
}

// resign replaces serial number, key and signature algorithm, and signs again.
func (a *authority) resign(t testing.TB, der []byte, i issue) []byte {
	t.Helper()
	s := cryptobyte.String(der)
	var outer, tbs, version, serial, algorithm, issuer, validity, subject, spki cryptobyte.String
	zero := cbasn1.Tag(0).Constructed().ContextSpecific()
	if !s.ReadASN1(&outer, cbasn1.SEQUENCE) || !outer.ReadASN1(&tbs, cbasn1.SEQUENCE) || !tbs.ReadASN1Element(&version, zero) ||
		!tbs.ReadASN1(&serial, cbasn1.INTEGER) || !tbs.ReadASN1Element(&algorithm, cbasn1.SEQUENCE) || !tbs.ReadASN1Element(&issuer, cbasn1.SEQUENCE) ||
		!tbs.ReadASN1Element(&validity, cbasn1.SEQUENCE) || !tbs.ReadASN1Element(&subject, cbasn1.SEQUENCE) || !tbs.ReadASN1Element(&spki, cbasn1.SEQUENCE) {
		t.Fatal("own certificate not understood")
	}
	if i.serial != nil {
		serial = i.serial
	}
	if i.spki != nil {
		spki = i.spki
	}
	hash := crypto.SHA256
	if i.sha1 {
		hash = crypto.SHA1
		algorithm = []byte("\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05\x05\x00")
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(version)
		b.AddASN1(cbasn1.INTEGER, func(b *cryptobyte.Builder) { b.AddBytes(serial) })
		for _, part := range []cryptobyte.String{algorithm, issuer, validity, subject, spki, tbs} {
			b.AddBytes(part)
		}
	})
	signed := b.BytesOrPanic()
	sum := SHA256.sum(nil, signed)
	if i.sha1 {
		s := sha1.Sum(signed)
		sum = s[:]
	}
	sig, err := rsa.SignPKCS1v15(nil, a.key, hash, sum)
	if err != nil {
		t.Fatal(err)
	}
	var out cryptobyte.Builder
	out.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(signed)
		b.AddBytes(algorithm)
		b.AddASN1BitString(sig)
	})
	return out.BytesOrPanic()
}

func mustParse(t testing.TB, der []byte) *Certificate {
	t.Helper()
	c, err := ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func hierarchy(t testing.TB) (root, middle *authority) {
	keys := rsaKeys()
	root = &authority{key: keys[0]}
	root.cert = mustParse(t, root.issue(t, issue{name: "Vendor Root", key: &keys[0].PublicKey, ca: true})).Certificate
	middle = &authority{key: keys[1]}
	middle.cert = mustParse(t, root.issue(t, issue{name: "Vendor Intermediate", key: &keys[1].PublicKey, ca: true})).Certificate
	return root, middle
}

// sanTPM is a critical subject alternative name as the EK Credential Profile wants it.
func sanTPM(t testing.TB) pkix.Extension {
	name, err := asn1.Marshal(pkix.RDNSequence{{
		{Type: asn1.ObjectIdentifier{2, 23, 133, 2, 1}, Value: "id:494E5443"},
		{Type: asn1.ObjectIdentifier{2, 23, 133, 2, 2}, Value: "SLB 9670"},
		{Type: asn1.ObjectIdentifier{2, 23, 133, 2, 3}, Value: "id:0763"}}})
	if err != nil {
		t.Fatal(err)
	}
	san, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: name}})
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: oidSAN, Critical: true, Value: san}
}

func TestForgivesWhatVendorsDo(t *testing.T) {
	root, middle := hierarchy(t)
	key := &rsaKeys()[2].PublicKey
	trust := NewTrust([]*Certificate{mustParse(t, root.cert.Raw)}, []*Certificate{mustParse(t, middle.cert.Raw)})
	plain := middle.issue(t, issue{name: "ek", key: key})
	header := append([]byte(nvHeader), binary.BigEndian.AppendUint16(nil, uint16(len(plain)+2))...)
	oaep, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	oaep = bytes.Replace(oaep, []byte("\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01"), []byte("\x2a\x86\x48\x86\xf7\x0d\x01\x01\x07"), 1)
	for _, c := range []struct {
		want []Workaround
		der  []byte
	}{
		{nil, plain},
		{[]Workaround{WorkaroundPadding}, append(bytes.Clone(plain), bytes.Repeat([]byte{0xff}, 300)...)},
		{[]Workaround{WorkaroundNVHeader, WorkaroundPadding}, slices.Concat(header, []byte{0x10, 0x02}, plain, make([]byte, 5))},
		{[]Workaround{WorkaroundSAN}, middle.issue(t, issue{name: "ek", key: key, extra: []pkix.Extension{sanTPM(t)}})},
		{[]Workaround{WorkaroundSHA1}, middle.issue(t, issue{name: "ek", key: key, sha1: true})},
		{[]Workaround{WorkaroundSerial}, middle.issue(t, issue{name: "ek", key: key, serial: []byte{0, 0, 1}})},
		{[]Workaround{WorkaroundSerial}, middle.issue(t, issue{name: "ek", key: key, serial: []byte{0x80, 1}})},
		{[]Workaround{WorkaroundOAEP}, middle.issue(t, issue{name: "ek", key: key, spki: oaep})},
	} {
		cert, err := ParseCertificate(c.der)
		if err != nil {
			t.Errorf("%v: %v", c.want, err)
			continue
		}
		if !slices.Equal(cert.Forgiven, c.want) {
			t.Errorf("forgave %v, want %v", cert.Forgiven, c.want)
		}
		chain, err := trust.Chain(cert, noon)
		if err != nil || len(chain) != 3 {
			t.Errorf("%v: chain %d, %v", c.want, len(chain), err)
		}
		ek, err := cert.EK()
		if err != nil || !key.Equal(ek.Public) {
			t.Errorf("%v: key %v", c.want, err)
		}
		if m, model, v := cert.TPM(); slices.Contains(c.want, WorkaroundSAN) && (m != "id:494E5443" || model != "SLB 9670" || v != "id:0763") {
			t.Errorf("TPM is %q %q %q", m, model, v)
		}
		if _, err := ParseEK(c.der); err != nil {
			t.Errorf("%v: %v", c.want, err)
		}
	}
}

func TestDoesNotForgive(t *testing.T) {
	_, middle := hierarchy(t)
	key := &rsaKeys()[2].PublicKey
	plain := middle.issue(t, issue{name: "ek", key: key})
	for name, der := range map[string][]byte{
		"something after the certificate": append(bytes.Clone(plain), 0xff, 0xff, 1),
		"unknown critical extension":      middle.issue(t, issue{name: "ek", key: key, extra: []pkix.Extension{{Id: oidNote, Critical: true, Value: []byte{5, 0}}}}),
		"serial number of zero":           middle.issue(t, issue{name: "ek", key: key, serial: []byte{0, 0}}),
		"header longer than the data":     slices.Concat([]byte(nvHeader), []byte{0xff, 0xff, 0x10, 0x02}, plain),
		"cut short":                       plain[:len(plain)-1],
	} {
		if _, err := ParseCertificate(der); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestChainErrorNamesTheMissingIssuer(t *testing.T) {
	root, middle := hierarchy(t)
	leaf := mustParse(t, middle.issue(t, issue{name: "ek", key: &rsaKeys()[2].PublicKey, url: "http://vendor.example/i.crt"}))
	r, m := mustParse(t, root.cert.Raw), mustParse(t, middle.cert.Raw)
	var missing *MissingIssuer
	_, err := NewTrust([]*Certificate{r}, nil).Chain(leaf, noon)
	if !errors.As(err, &missing) || missing.Issuer != "Vendor Intermediate" || missing.KeyID != upperHex(m.SubjectKeyId) || missing.URLs[0] != "http://vendor.example/i.crt" || missing.Root {
		t.Errorf("without intermediate: %v", err)
	}
	_, err = NewTrust(nil, []*Certificate{m}).Chain(leaf, noon)
	if !errors.As(err, &missing) || missing.Issuer != "Vendor Root" || missing.Certificate != "Vendor Intermediate" {
		t.Errorf("without root: %v", err)
	}
	_, err = NewTrust(nil, []*Certificate{m, r}).Chain(leaf, noon)
	if !errors.As(err, &missing) || !missing.Root || missing.Issuer != "Vendor Root" {
		t.Errorf("root among the intermediates: %v", err)
	}
}

func TestRefusesChains(t *testing.T) {
	root, middle := hierarchy(t)
	keys := rsaKeys()
	trust := NewTrust([]*Certificate{mustParse(t, root.cert.Raw)}, []*Certificate{mustParse(t, middle.cert.Raw)})
	forged := &authority{cert: middle.cert, key: keys[2]}
	der := middle.issue(t, issue{name: "ek", key: &keys[2].PublicKey, sha1: true})
	der = bytes.Clone(der)
	der[len(der)-1] ^= 1
	server := &authority{cert: mustParse(t, root.issue(t, issue{name: "Vendor Server", key: &keys[1].PublicKey})).Certificate, key: keys[1]}
	withServer := NewTrust([]*Certificate{mustParse(t, root.cert.Raw)}, []*Certificate{{Certificate: server.cert, Original: server.cert.Raw, tbs: server.cert.RawTBSCertificate}})
	notCA := &authority{cert: &x509.Certificate{Subject: server.cert.Subject, RawSubject: server.cert.RawSubject, SubjectKeyId: []byte{1}}, key: keys[1]}
	old := mustParse(t, middle.issue(t, issue{name: "ek", key: &keys[2].PublicKey, until: noon.AddDate(0, -1, 0)}))
	for _, c := range []struct {
		name   string
		trust  *Trust
		leaf   *Certificate
		reason string
	}{
		{"altered SHA-1 signature", trust, mustParse(t, der), "verif"},
		{"signed by somebody else under the same name", trust, mustParse(t, func() []byte {
			f := *forged.cert
			f.PublicKey = &keys[2].PublicKey
			return (&authority{cert: &f, key: keys[2]}).issue(t, issue{name: "ek", key: &keys[2].PublicKey})
		}()), "verif"},
		{"issued by a certificate that is no CA", withServer, mustParse(t, func() []byte {
			return notCA.issue(t, issue{name: "ek", key: &keys[2].PublicKey})
		}()), "certification authority"},
		{"expired", trust, old, "valid from"},
	} {
		_, err := c.trust.Chain(c.leaf, noon)
		var problem *ChainProblem
		if !errors.As(err, &problem) || !strings.Contains(problem.Reason, c.reason) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if _, err := trust.Chain(old, time.Time{}); err != nil {
		t.Errorf("expired, but time was not asked for: %v", err)
	}
}

func TestReadsBundles(t *testing.T) {
	root, middle := hierarchy(t)
	a, b := root.cert.Raw, middle.cert.Raw
	p := func(der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}) }
	var p7 cryptobyte.Builder
	zero := cbasn1.Tag(0).Constructed().ContextSpecific()
	p7.AddASN1(cbasn1.SEQUENCE, func(o *cryptobyte.Builder) {
		o.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2})
		o.AddASN1(zero, func(o *cryptobyte.Builder) {
			o.AddASN1(cbasn1.SEQUENCE, func(o *cryptobyte.Builder) {
				o.AddASN1Int64(1)
				o.AddASN1(cbasn1.SET, func(*cryptobyte.Builder) {})
				o.AddASN1(cbasn1.SEQUENCE, func(o *cryptobyte.Builder) {
					o.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1})
				})
				o.AddASN1(zero, func(o *cryptobyte.Builder) { o.AddBytes(a); o.AddBytes(b) })
				o.AddASN1(cbasn1.SET, func(*cryptobyte.Builder) {})
			})
		})
	})
	for name, raw := range map[string][]byte{
		"PEM": slices.Concat([]byte("vendor\n"), p(a), p(b)), "DER": slices.Concat(a, b), "PKCS#7": p7.BytesOrPanic(),
		"PKCS#7 in PEM": pem.EncodeToMemory(&pem.Block{Type: "PKCS7", Bytes: p7.BytesOrPanic()}),
	} {
		good, bad, err := ReadBundle(raw)
		if err != nil || len(bad) != 0 || len(good) != 2 || good[1].Name() != "Vendor Intermediate" {
			t.Errorf("%s: %d, %v, %v", name, len(good), bad, err)
		}
	}
	if good, bad, err := ReadBundle(slices.Concat(p(a), p([]byte("junk")), p(b))); err != nil || len(good) != 2 || len(bad) != 1 {
		t.Errorf("one bad certificate spoils the bundle: %d, %v, %v", len(good), bad, err)
	}
	if _, _, err := ReadBundle([]byte("MSCF....")); !errors.Is(err, ErrCabinet) {
		t.Errorf("cabinet: %v", err)
	}
	if _, _, err := ReadBundle([]byte("hello")); err == nil {
		t.Error("text is a bundle")
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
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.cert.Raw}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		good, _, err := ReadBundle(raw)
		if err == nil {
			_, _ = NewTrust(good, good).Chain(mustParse(t, root.cert.Raw), noon)
		}
	})
}
