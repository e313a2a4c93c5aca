package evidence

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// maxBundle is the most certificates in one bundle; Microsoft's package of all TPM vendors has some hundreds.
const maxBundle = 4096

// ErrCabinet is the answer to TrustedTpm.cab.
var ErrCabinet = errors.New("a cabinet file: unpack it on Windows with `expand -F:* TrustedTpm.cab folder`, or on Linux with cabextract, and import the files of the vendors you trust")

// ReadBundle reads certificates in PEM, in DER and in PKCS#7 files, one after the other and mixed, as `cat folder/*` makes of a vendor's folder.
// What it can't read is an error in the second result, by position, and does not stop the rest; the third is for input that is no bundle
// at all. Text before a PEM block is passed over, and so is the padding after a certificate that was read from a TPM.
func ReadBundle(raw []byte) (good []*Certificate, bad []error, err error) {
	switch {
	case len(raw) > MaxBundle:
		return nil, nil, fmt.Errorf("bundle of %d bytes, more than %d", len(raw), MaxBundle)
	case bytes.HasPrefix(raw, []byte("MSCF")):
		return nil, nil, ErrCabinet
	}
	b := bundle{rest: raw}
	for len(b.rest) > 0 && b.n < maxBundle {
		b.next()
	}
	if b.n == 0 {
		return nil, nil, errors.New("neither PEM nor DER certificates")
	}
	return b.good, b.bad, nil
}

// bundle is one at work. n counts the certificates, good or bad.
type bundle struct {
	rest []byte
	n    int
	good []*Certificate
	bad  []error
	done bool // no PEM block is left in rest: don't search it again and again
}

const pemBegin = "-----BEGIN "

// next takes one thing off the front; rest gets shorter each time.
func (b *bundle) next() {
	header := 0
	if bytes.HasPrefix(b.rest, []byte(nvHeader)) && len(b.rest) > 7 {
		header = 7
	}
	s := cryptobyte.String(b.rest[header:])
	var der cryptobyte.String
	switch c := b.rest[0]; {
	case s.ReadASN1Element(&der, asn1.SEQUENCE):
		der, b.rest = b.rest[:header+len(der)], s
		b.der(der)
	case !b.done && bytes.HasPrefix(b.rest, []byte(pemBegin)):
		b.pem()
	case b.n > 0 && (c == 0 || c == 0xff):
		b.rest = bytes.TrimLeft(b.rest, string([]byte{c}))
	default: // text; or something else, in which no more can be found
		end := bytes.Index(b.rest[1:], []byte(pemBegin))
		if end < 0 || b.done {
			if len(bytes.TrimSpace(b.rest)) > 0 && b.n > 0 {
				b.bad = append(b.bad, fmt.Errorf("%d bytes after certificate %d", len(b.rest), b.n))
			}
			b.rest = nil
			return
		}
		if text := b.rest[:1+end]; bytes.IndexByte(text, 0) >= 0 {
			b.bad = append(b.bad, fmt.Errorf("%d bytes after certificate %d that are neither text nor a certificate", len(text), b.n))
		}
		b.rest = b.rest[1+end:]
	}
}

func (b *bundle) pem() {
	block, rest := pem.Decode(b.rest)
	if block == nil {
		b.done = true
		return
	}
	b.rest = rest
	switch block.Type {
	case "CERTIFICATE", "TRUSTED CERTIFICATE", "X509 CERTIFICATE", "PKCS7":
		b.der(block.Bytes)
	}
}

func (b *bundle) der(der []byte) {
	certs := [][]byte{der}
	if looksSigned(der) {
		var err error
		if _, certs, err = signedData(der); err != nil {
			b.n++
			b.bad = append(b.bad, fmt.Errorf("file %d of the bundle: %w", b.n, err))
			return
		}
	}
	for _, der := range certs {
		b.n++
		c, err := ParseCertificate(der)
		if err != nil {
			b.bad = append(b.bad, fmt.Errorf("certificate %d of the bundle: %w", b.n, err))
			continue
		}
		b.good = append(b.good, c)
	}
}

// looksSigned says whether raw begins as PKCS#7 does, with an object identifier, where a certificate begins with a sequence.
func looksSigned(raw []byte) bool {
	s := cryptobyte.String(raw)
	var seq cryptobyte.String
	return s.ReadASN1(&seq, asn1.SEQUENCE) && seq.PeekASN1Tag(asn1.OBJECT_IDENTIFIER)
}

// signedData takes a PKCS#7 SignedData in DER apart (RFC 2315, 9.1): the signed content without its tag and length, nil if there is none,
// and the certificates. Nothing is verified.
func signedData(raw []byte) (content []byte, certs [][]byte, err error) {
	const oid = "\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02" // 1.2.840.113549.1.7.2
	zero := asn1.Tag(0).Constructed().ContextSpecific()
	s := cryptobyte.String(raw)
	var outer, typ, explicit, data, info, set cryptobyte.String
	if !s.ReadASN1(&outer, asn1.SEQUENCE) || !outer.ReadASN1(&typ, asn1.OBJECT_IDENTIFIER) || string(typ) != oid ||
		!outer.ReadASN1(&explicit, zero) || !explicit.ReadASN1(&data, asn1.SEQUENCE) ||
		!data.SkipASN1(asn1.INTEGER) || !data.SkipASN1(asn1.SET) || !data.ReadASN1(&info, asn1.SEQUENCE) {
		return nil, nil, errors.New("PKCS#7 file is no SignedData in DER")
	}
	var present bool
	var inner, body cryptobyte.String
	var tag asn1.Tag
	if !info.SkipASN1(asn1.OBJECT_IDENTIFIER) || !info.ReadOptionalASN1(&inner, &present, zero) ||
		present && !inner.ReadAnyASN1(&body, &tag) || !data.ReadOptionalASN1(&set, &present, zero) {
		return nil, nil, errors.New("PKCS#7 file is cut short")
	}
	for !set.Empty() && len(certs) < maxBundle {
		var der cryptobyte.String
		if !set.ReadAnyASN1Element(&der, &tag) {
			return nil, nil, errors.New("PKCS#7 file with broken certificates")
		}
		if tag == asn1.SEQUENCE {
			certs = append(certs, der)
		}
	}
	return body, certs, nil
}
