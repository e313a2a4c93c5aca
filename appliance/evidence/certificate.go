package evidence

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Workaround names what was forgiven in a certificate. TPM vendors' certificates of many years are like this, and can't be replaced.
type Workaround string

// The workarounds. Each is tested by a certificate that needs it.
const (
	// WorkaroundPadding: 0xff or 0x00 after the certificate, the rest of its NV index.
	WorkaroundPadding Workaround = "padding after the certificate"
	// WorkaroundNVHeader: the 7 bytes of TCG_PCCLIENT_STORED_CERT before the certificate.
	WorkaroundNVHeader Workaround = "NV header before the certificate"
	// WorkaroundSAN: a critical subject alternative name that holds the TPM's model only.
	WorkaroundSAN Workaround = "critical subject alternative name"
	// WorkaroundSHA1: a signature with SHA-1. Collisions don't forge a certificate that its vendor issued long ago, but a vendor that
	// still signs so today could be abused; the caller may refuse.
	WorkaroundSHA1 Workaround = "signature with SHA-1"
	// WorkaroundSerial: a serial number that is negative or longer than it should be encoded.
	WorkaroundSerial Workaround = "malformed serial number"
	// WorkaroundOAEP: an RSA key marked as for OAEP only.
	WorkaroundOAEP Workaround = "key marked as for OAEP"
)

const nvHeader = "\x10\x01\x00"

// Certificate is an endorsement key certificate or one of its issuers. Fields that x509 could not read as they stand were mended; Original
// is what the issuer signed.
type Certificate struct {
	*x509.Certificate
	Original []byte       // DER as found, without header and padding
	Forgiven []Workaround // in parsing; SHA-1 too, if the certificate is signed with it

	tbs []byte // the signed part of Original
}

// ParseCertificate reads one certificate in DER, with the workarounds above.
func ParseCertificate(raw []byte) (*Certificate, error) {
	if len(raw) > MaxCertificate {
		return nil, fmt.Errorf("certificate of %d bytes, more than %d", len(raw), MaxCertificate)
	}
	c := &Certificate{}
	if bytes.HasPrefix(raw, []byte(nvHeader)) {
		var err error
		if raw, err = stripNVHeader(raw); err != nil {
			return nil, err
		}
		c.Forgiven = append(c.Forgiven, WorkaroundNVHeader)
	}
	s := cryptobyte.String(raw)
	var der cryptobyte.String
	if !s.ReadASN1Element(&der, cbasn1.SEQUENCE) {
		return nil, errors.New("not a certificate in DER")
	}
	if len(s) > 0 {
		if f := s[0]; f != 0 && f != 0xff || len(bytes.Trim(s, string([]byte{f}))) > 0 {
			return nil, fmt.Errorf("%d bytes after the certificate that are no padding", len(s))
		}
		c.Forgiven = append(c.Forgiven, WorkaroundPadding)
	}
	c.Original = der
	if err := c.parse(); err != nil {
		return nil, err
	}
	return c, c.critical()
}

func stripNVHeader(raw []byte) ([]byte, error) {
	if len(raw) < 7 || raw[5] != 0x10 || raw[6] != 0x02 {
		return nil, errors.New("NV header without a full certificate")
	}
	n := int(binary.BigEndian.Uint16(raw[3:])) // of the tag (2 bytes) and the certificate
	if n < 2 || n > len(raw)-5 {
		return nil, fmt.Errorf("NV header for %d bytes, there are %d", n, len(raw)-5)
	}
	return raw[7:], nil
}

func (c *Certificate) parse() error {
	var outer, tbs cryptobyte.String
	s := cryptobyte.String(c.Original)
	if !s.ReadASN1(&outer, cbasn1.SEQUENCE) || !outer.ReadASN1Element(&tbs, cbasn1.SEQUENCE) {
		return errors.New("not a certificate in DER")
	}
	c.tbs = tbs
	cert, err := x509.ParseCertificate(c.Original)
	if err != nil {
		mended, ok := mendSerial(tbs, outer)
		if !ok {
			return fmt.Errorf("certificate: %w", err)
		}
		if cert, err = x509.ParseCertificate(mended); err != nil {
			return fmt.Errorf("certificate: %w", err)
		}
		c.Forgiven = append(c.Forgiven, WorkaroundSerial)
	}
	if cert.PublicKey == nil {
		if cert.PublicKey, err = publicKeyInfo(cert.RawSubjectPublicKeyInfo); err != nil {
			return fmt.Errorf("certificate's key: %w", err)
		}
		cert.PublicKeyAlgorithm = x509.RSA
		c.Forgiven = append(c.Forgiven, WorkaroundOAEP)
	}
	if cert.SignatureAlgorithm == x509.SHA1WithRSA || cert.SignatureAlgorithm == x509.ECDSAWithSHA1 {
		c.Forgiven = append(c.Forgiven, WorkaroundSHA1)
	}
	c.Certificate = cert
	return nil
}

// mendSerial rewrites a certificate whose serial number x509 refuses; rest is what follows the signed part. ok is false if that is not it.
func mendSerial(tbs, rest cryptobyte.String) (mended []byte, ok bool) {
	var body, version, serial cryptobyte.String
	if !tbs.ReadASN1(&body, cbasn1.SEQUENCE) {
		return nil, false
	}
	if body.PeekASN1Tag(cbasn1.Tag(0).Constructed().ContextSpecific()) && !body.ReadASN1Element(&version, cbasn1.Tag(0).Constructed().ContextSpecific()) {
		return nil, false
	}
	if !body.ReadASN1(&serial, cbasn1.INTEGER) || len(serial) == 0 || len(serial) > 64 {
		return nil, false
	}
	number := new(big.Int).SetBytes(serial) // as unsigned, whatever was meant
	if number.Sign() == 0 {
		return nil, false
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddBytes(version)
			b.AddASN1BigInt(number)
			b.AddBytes(body)
		})
		b.AddBytes(rest)
	})
	out, err := b.Bytes()
	return out, err == nil && !bytes.Contains(tbs, out)
}

var oidSAN = asn1.ObjectIdentifier{2, 5, 29, 17}

// critical refuses critical extensions that nobody understood, except a subject alternative name.
func (c *Certificate) critical() error {
	for _, oid := range c.UnhandledCriticalExtensions {
		if !oid.Equal(oidSAN) {
			return fmt.Errorf("certificate has the unknown critical extension %s", oid)
		}
		c.Forgiven = append(c.Forgiven, WorkaroundSAN)
	}
	return nil
}

// EK is the certified key.
func (c *Certificate) EK() (*EK, error) { return newEK(c.PublicKey, EKCertificate) }

// Name is how people know the certificate: its common name, else its whole subject.
func (c *Certificate) Name() string { return nameOf(&c.Subject) }

func nameOf(n *pkix.Name) string {
	if n.CommonName != "" {
		return n.CommonName
	}
	if s := n.String(); s != "" {
		return s
	}
	return "(without name)"
}

// TPM gives what the subject alternative name tells of the TPM (EK Credential Profile 3.2.9): manufacturer as "id:494E5443", model,
// version. Empty where it does not.
func (c *Certificate) TPM() (manufacturer, model, version string) {
	for _, x := range c.Extensions {
		if !x.Id.Equal(oidSAN) {
			continue
		}
		var names []asn1.RawValue
		if rest, err := asn1.Unmarshal(x.Value, &names); err != nil || len(rest) > 0 {
			continue
		}
		for _, n := range names {
			if n.Class != asn1.ClassContextSpecific || n.Tag != 4 {
				continue
			}
			var rdns pkix.RDNSequence
			if _, err := asn1.Unmarshal(n.Bytes, &rdns); err != nil {
				continue
			}
			for _, rdn := range rdns {
				for _, a := range rdn {
					v, _ := a.Value.(string)
					switch a.Type.String() {
					case "2.23.133.2.1":
						manufacturer = strings.TrimRight(v, "\x00")
					case "2.23.133.2.2":
						model = strings.TrimRight(v, "\x00")
					case "2.23.133.2.3":
						version = strings.TrimRight(v, "\x00")
					}
				}
			}
		}
	}
	return manufacturer, model, version
}

// signedBy checks the signature over what the issuer signed, SHA-1 included.
func (c *Certificate) signedBy(issuer *Certificate) error {
	var hash crypto.Hash
	switch c.SignatureAlgorithm {
	case x509.SHA1WithRSA, x509.ECDSAWithSHA1:
		hash = crypto.SHA1
	default:
		return issuer.CheckSignature(c.SignatureAlgorithm, c.tbs, c.Signature)
	}
	sum := sha1.Sum(c.tbs)
	switch key := issuer.PublicKey.(type) {
	case *rsa.PublicKey:
		if c.SignatureAlgorithm == x509.SHA1WithRSA {
			return rsa.VerifyPKCS1v15(key, hash, sum[:], c.Signature)
		}
	case *ecdsa.PublicKey:
		if c.SignatureAlgorithm == x509.ECDSAWithSHA1 && ecdsa.VerifyASN1(key, sum[:], c.Signature) {
			return nil
		}
	}
	return errors.New("signature does not verify")
}
