package evidence

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

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
