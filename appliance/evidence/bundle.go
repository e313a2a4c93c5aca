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

// ReadBundle reads certificates in PEM, in DER one after the other, or in a PKCS#7 file. What it can't read is an error in the second
// result, by position, and does not stop the rest; the third is for input that is no bundle at all.
func ReadBundle(raw []byte) (good []*Certificate, bad []error, err error) {
	switch {
	case len(raw) > MaxBundle:
		return nil, nil, fmt.Errorf("bundle of %d bytes, more than %d", len(raw), MaxBundle)
	case bytes.HasPrefix(raw, []byte("MSCF")):
		return nil, nil, ErrCabinet
	}
	add := func(n int, der []byte) {
		c, err := ParseCertificate(der)
		if err != nil {
			bad = append(bad, fmt.Errorf("certificate %d of the bundle: %w", n, err))
			return
		}
		good = append(good, c)
	}
	if bytes.Contains(raw, []byte("-----BEGIN ")) {
		n := 0
		for block, rest := pem.Decode(raw); block != nil && n < maxBundle; block, rest = pem.Decode(rest) {
			switch block.Type {
			case "CERTIFICATE", "TRUSTED CERTIFICATE", "X509 CERTIFICATE":
				n++
				add(n, block.Bytes)
			case "PKCS7":
				return ReadBundle(block.Bytes)
			}
		}
		if n == 0 {
			return nil, nil, errors.New("PEM without certificates")
		}
		return good, bad, nil
	}
	if looksSigned(raw) {
		_, certs, err := signedData(raw)
		if err != nil {
			return nil, nil, err
		}
		for i, der := range certs {
			add(i+1, der)
		}
		return good, bad, nil
	}
	s := cryptobyte.String(raw)
	for n := 1; !s.Empty() && n <= maxBundle; n++ {
		var der cryptobyte.String
		if !s.ReadASN1Element(&der, asn1.SEQUENCE) {
			if n == 1 {
				return nil, nil, errors.New("neither PEM nor DER certificates")
			}
			return good, append(bad, fmt.Errorf("%d bytes after certificate %d", len(s), n-1)), nil
		}
		add(n, der)
	}
	return good, bad, nil
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
