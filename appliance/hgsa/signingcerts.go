package hgsa

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// MaxSigningCertificates is how many certificates one answer may hold: the JDBC
// driver reads once, and what is on the way after the first write is lost.
const MaxSigningCertificates = 5

// MaxSigningBody bounds a signingCertificates body that a client reads.
const MaxSigningBody = 256 << 10

// ErrSigningCertificates is a list that the SQL drivers would stumble over.
var ErrSigningCertificates = errors.New("signingCertificates")

// Contents of the object identifiers 1.2.840.113549.1.7.2 and .1.
const (
	oidSignedData = "\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02"
	oidData       = "\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01"
)

var (
	explicit0 = asn1.Tag(0).Constructed().ContextSpecific()
	implicit1 = asn1.Tag(1).Constructed().ContextSpecific()
)

// EncodeSigningCertificates packs 1 to 5 DER certificates with RSA keys into a
// certificates-only PKCS#7 object and writes that as a JSON array of numbers
// without any white space (hgsa.md 6.7). The certificates appear in the order
// DER demands of a set, so equal sets give equal bodies. Whether each is valid
// now is the caller's to check.
func EncodeSigningCertificates(certificates []*x509.Certificate) ([]byte, error) {
	if len(certificates) == 0 || len(certificates) > MaxSigningCertificates {
		return nil, fmt.Errorf("%w: %d certificates, want 1 to %d", ErrSigningCertificates, len(certificates), MaxSigningCertificates)
	}
	var ders [][]byte
	for _, c := range certificates {
		if _, ok := c.PublicKey.(*rsa.PublicKey); !ok {
			return nil, fmt.Errorf("%w: the key of %q is not RSA", ErrSigningCertificates, c.Subject)
		}
		ders = append(ders, c.Raw)
	}
	slices.SortFunc(ders, bytes.Compare)
	b := cryptobyte.NewBuilder(nil)
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		addOID(b, oidSignedData)
		b.AddASN1(explicit0, func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(1)
				b.AddASN1(asn1.SET, func(*cryptobyte.Builder) {}) // digest algorithms
				b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { addOID(b, oidData) })
				b.AddASN1(explicit0, func(b *cryptobyte.Builder) {
					for _, der := range ders {
						b.AddBytes(der)
					}
				})
				b.AddASN1(asn1.SET, func(*cryptobyte.Builder) {}) // signers
			})
		})
	})
	p7, err := b.Bytes()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSigningCertificates, err)
	}
	return appendNumbers(make([]byte, 0, 4*len(p7)+2), p7), nil
}

func addOID(b *cryptobyte.Builder, content string) {
	b.AddASN1(asn1.OBJECT_IDENTIFIER, func(b *cryptobyte.Builder) { b.AddBytes([]byte(content)) })
}

// CheckSigningBody holds a body against what the strictest driver demands: a
// list of decimal bytes and commas in brackets, nothing before, between or
// after, not even a line end.
func CheckSigningBody(body []byte) error {
	if len(body) < 3 || body[0] != '[' || body[len(body)-1] != ']' {
		return fmt.Errorf("%w: the body must begin with '[' and end with ']'", ErrSigningCertificates)
	}
	for _, number := range bytes.Split(body[1:len(body)-1], []byte(",")) {
		value := 0
		for _, c := range number {
			if c < '0' || c > '9' || len(number) > 3 {
				return fmt.Errorf("%w: %.8q is not a decimal byte; JDBC drivers fail", ErrSigningCertificates, number)
			}
			value = value*10 + int(c-'0')
		}
		if len(number) == 0 || value > 255 || len(number) > 1 && number[0] == '0' {
			return fmt.Errorf("%w: %.8q is not a decimal byte; JDBC drivers fail", ErrSigningCertificates, number)
		}
	}
	return nil
}

// DecodeSigningCertificates reads the body, as a list of numbers or a base64
// string, and gives its certificates in their order. At most 64 are read.
func DecodeSigningCertificates(body []byte) ([]*x509.Certificate, error) {
	r, err := newReader(body, MaxSigningBody)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSigningCertificates, err)
	}
	if c := r.peek(); c != '[' && c != '"' {
		return nil, fmt.Errorf("%w: the body is not a list of numbers", ErrSigningCertificates)
	}
	p7, err := r.binary()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSigningCertificates, err)
	}
	set, ok := certificateSet(p7)
	if !ok {
		return nil, fmt.Errorf("%w: not a PKCS#7 object of certificates", ErrSigningCertificates)
	}
	var out []*x509.Certificate
	for !set.Empty() {
		var der cryptobyte.String
		if !set.ReadASN1Element(&der, asn1.SEQUENCE) || len(out) >= maxItems {
			return nil, fmt.Errorf("%w: not a set of at most %d certificates", ErrSigningCertificates, maxItems)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrSigningCertificates, err)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: the object holds no certificate", ErrSigningCertificates)
	}
	return out, nil
}

// certificateSet walks ContentInfo and SignedData to the certificates.
func certificateSet(p7 []byte) (certificates cryptobyte.String, ok bool) {
	s := cryptobyte.String(p7)
	var info, oid, content, signed cryptobyte.String
	if !s.ReadASN1(&info, asn1.SEQUENCE) || !s.Empty() ||
		!info.ReadASN1(&oid, asn1.OBJECT_IDENTIFIER) || string(oid) != oidSignedData ||
		!info.ReadASN1(&content, explicit0) || !info.Empty() ||
		!content.ReadASN1(&signed, asn1.SEQUENCE) || !content.Empty() {
		return nil, false
	}
	if !signed.SkipASN1(asn1.INTEGER) || !signed.SkipASN1(asn1.SET) || !signed.SkipASN1(asn1.SEQUENCE) ||
		!signed.ReadASN1(&certificates, explicit0) || !signed.SkipOptionalASN1(implicit1) ||
		!signed.SkipASN1(asn1.SET) || !signed.Empty() {
		return nil, false
	}
	return certificates, true
}
