// Package health makes and checks health certificates: what an attestation
// service gives to a host whose state it found good, and what the key
// protection service wants to see before it hands out a key.
//
// Promise: a certificate of the signing kind has exactly the fields, extensions
// and order of the one genuine certificate on public record (hgsa.md 9.1 and
// 14.2), but for the serial number, whose first bytes tell the second of issue;
// the encryption kind follows by analogy. Nothing is issued without a
// trusted time, and a certificate counts as valid only if it is valid at every
// moment that the time's uncertainty allows.
//
// Limits: pure, no clock, files or sockets; the moment and the randomness are
// arguments. RSA only. There are no revocation lists: whether the host is still
// welcome is the records' to say, not the certificate's.
package health

import (
	"bytes"
	"crypto"
	"crypto/md5" // the genuine subject key identifier; identifies, protects nothing
	"crypto/rsa"
	"crypto/sha1" // the usual identifier of the attestation signer's key
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"time"

	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"

	"guardhouse/appliance/policy"
)

// Purpose is what the certified key is for; the numbers are those of
// AttestationResultType.
type Purpose uint8

// The two kinds of health certificate.
const (
	Encryption Purpose = 1
	Signing    Purpose = 2
)

// Times of a certificate. Backdate helps hosts whose clock is a little behind.
const (
	DefaultLife       = policy.DefaultHealthLife
	Backdate          = policy.HealthBackdate
	DefaultSignerLife = 365 * 24 * time.Hour
)

// DefaultSignerName is the subject of an attestation signer and the issuer of
// its certificates.
const DefaultSignerName = "Microsoft Remote Attestation Service"

const minKeyBits, maxKeyBits = 2048, 16384

// Object identifiers of the profile (9.1). The one of the encryption kind is
// concluded by analogy.
var (
	oidKeyUsage            = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidBasicConstraints    = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidSubjectKeyID        = asn1.ObjectIdentifier{2, 5, 29, 14}
	oidAuthorityKeyID      = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidApplicationPolicies = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 21, 10}
	oidCommonName          = asn1.ObjectIdentifier{2, 5, 4, 3}
	policyOIDs             = map[Purpose]asn1.ObjectIdentifier{
		Encryption: {1, 3, 6, 1, 4, 1, 311, 48, 1, 1},
		Signing:    {1, 3, 6, 1, 4, 1, 311, 48, 1, 2},
	}
)

// keyUsages are the key usage extensions' values: BIT STRINGs without trailing
// zero bits, as DER wants them.
var keyUsages = map[Purpose][]byte{
	Encryption: {0x03, 0x02, 0x04, 0x30}, // keyEncipherment, dataEncipherment
	Signing:    {0x03, 0x02, 0x07, 0x80}, // digitalSignature
}

// Reasons why nothing is issued.
var (
	ErrNoTime    = errors.New("no trusted time, nothing is issued")
	ErrOrder     = errors.New("health certificate order")
	ErrSigner    = errors.New("attestation signer")
	ErrSignature = errors.New("attestation signer does not sign")
)

// Window is the interval in which the present moment lies. The zero value says
// that the time is not known; with it nothing is issued and nothing is valid.
type Window struct {
	earliest, latest time.Time
	known            bool
}

// Between makes a Window of the three results of policy.TrustedTime's At.
func Between(earliest, latest time.Time, ok bool) Window {
	if !ok || latest.Before(earliest) {
		return Window{}
	}
	return Window{earliest, latest, true}
}

// Known reports whether the time is known at all.
func (w Window) Known() bool { return w.known }

// Within says whether every moment of the window lies from a to b.
func (w Window) Within(a, b time.Time) bool {
	return w.known && !w.earliest.Before(a) && !w.latest.After(b)
}

// Order is what one certificate shall say.
type Order struct {
	Purpose Purpose
	Key     *rsa.PublicKey // at least 2048 bits
	HostID  string         // 64 upper-case hex digits, the subject's common name
	Life    time.Duration  // counted from the earliest possible present
}

// Issue makes a health certificate, DER, signed with SHA-256 and PKCS#1 v1.5 by
// the attestation signer. key is the signer's private key, usually in an HSM; it
// is used once, and what it returns is verified before it counts. The
// certificate never outlives the signer's. Errors wrap ErrNoTime, ErrOrder,
// ErrSigner or, when the key fails, ErrSignature.
func Issue(random io.Reader, now Window, o Order, signer *x509.Certificate, key crypto.Signer) ([]byte, error) {
	if !now.known {
		return nil, ErrNoTime
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	if !now.Within(signer.NotBefore, signer.NotAfter) {
		return nil, fmt.Errorf("%w: certificate is valid from %s to %s, not now; renew it",
			ErrSigner, signer.NotBefore.UTC().Format(time.RFC3339), signer.NotAfter.UTC().Format(time.RFC3339))
	}
	if _, ok := signer.PublicKey.(*rsa.PublicKey); !ok {
		return nil, fmt.Errorf("%w: its key is not RSA", ErrSigner)
	}
	template, err := o.template(random, now, signer)
	if err != nil {
		return nil, err
	}
	cert, err := x509.CreateCertificate(random, template, signer, o.Key, key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSignature, err)
	}
	return cert, nil
}

func (o Order) check() error {
	switch {
	case keyUsages[o.Purpose] == nil:
		return fmt.Errorf("%w: purpose %d is not known", ErrOrder, o.Purpose)
	case o.Key == nil || o.Key.N.BitLen() < minKeyBits:
		return fmt.Errorf("%w: the key has fewer than %d bits", ErrOrder, minKeyBits)
	case !validHostID(o.HostID):
		return fmt.Errorf("%w: the host id is not 64 upper-case hex digits", ErrOrder)
	case o.Life <= 0:
		return fmt.Errorf("%w: the life is not positive", ErrOrder)
	}
	return nil
}

// template sets all four extensions by hand: the genuine order is KeyUsage,
// application policies, subject key identifier, authority key identifier.
func (o Order) template(random io.Reader, now Window, signer *x509.Certificate) (*x509.Certificate, error) {
	serial, err := issueSerial(random, now.earliest)
	if err != nil {
		return nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(o.Key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrOrder, err)
	}
	ski := md5.Sum(spki)
	notAfter := now.earliest.Add(o.Life)
	if notAfter.After(signer.NotAfter) {
		notAfter = signer.NotAfter
	}
	return &x509.Certificate{
		SerialNumber:       serial,
		RawSubject:         commonName(o.HostID),
		NotBefore:          now.earliest.Add(-Backdate).UTC(),
		NotAfter:           notAfter.UTC(),
		SignatureAlgorithm: x509.SHA256WithRSA,
		ExtraExtensions: []pkix.Extension{
			{Id: oidKeyUsage, Critical: true, Value: keyUsages[o.Purpose]},
			{Id: oidApplicationPolicies, Value: applicationPolicies(policyOIDs[o.Purpose])},
			{Id: oidSubjectKeyID, Value: octets(ski[:])},
			{Id: oidAuthorityKeyID, Value: authorityKeyID(signer)},
		},
	}, nil
}

// NewSignerCertificate makes the self-signed certificate of an attestation
// signer: KeyUsage keyCertSign and digitalSignature, CA, a 20-byte subject key
// identifier (9.2). An empty name means DefaultSignerName. The key must be RSA.
func NewSignerCertificate(random io.Reader, now Window, name string, life time.Duration, key crypto.Signer) ([]byte, error) {
	if !now.known {
		return nil, ErrNoTime
	}
	pub, ok := key.Public().(*rsa.PublicKey)
	if !ok || pub.N.BitLen() < minKeyBits {
		return nil, fmt.Errorf("%w: the key is not RSA of at least %d bits", ErrSigner, minKeyBits)
	}
	if name == "" {
		name = DefaultSignerName
	}
	serial, err := serialNumber(random)
	if err != nil {
		return nil, err
	}
	ski := sha1.Sum(x509.MarshalPKCS1PublicKey(pub))
	template := &x509.Certificate{
		SerialNumber:       serial,
		RawSubject:         commonName(name),
		NotBefore:          now.earliest.Add(-Backdate).UTC(),
		NotAfter:           now.earliest.Add(life).UTC(),
		SignatureAlgorithm: x509.SHA256WithRSA,
		ExtraExtensions: []pkix.Extension{
			{Id: oidKeyUsage, Critical: true, Value: []byte{0x03, 0x02, 0x02, 0x84}},
			{Id: oidBasicConstraints, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}},
			{Id: oidSubjectKeyID, Value: octets(ski[:])},
		},
	}
	cert, err := x509.CreateCertificate(random, template, template, pub, key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSignature, err)
	}
	return cert, nil
}

// serialNumber is 16 random bytes, positive and of full length.
func serialNumber(random io.Reader) (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := io.ReadFull(random, b); err != nil {
		return nil, fmt.Errorf("serial number: %w", err)
	}
	b[0] = b[0]&0x3f | 0x40
	return new(big.Int).SetBytes(b), nil
}

// secondBytes is how much of a health certificate's serial number is the second
// of its issue.
const secondBytes = 5

// issueSerial is the serial number of a health certificate: 16 bytes, the first
// 5 of them the unix second that surely lay before its issue, the others random.
// The second says when it was issued whatever notBefore is back-dated by.
func issueSerial(random io.Reader, earliest time.Time) (*big.Int, error) {
	second := earliest.Unix()
	if second <= 0 || second >= 1<<(8*secondBytes-1) {
		return nil, fmt.Errorf("%w: the second of issue is out of range", ErrOrder)
	}
	var b [16]byte
	if _, err := io.ReadFull(random, b[secondBytes:]); err != nil {
		return nil, fmt.Errorf("serial number: %w", err)
	}
	for i := range secondBytes {
		b[i] = byte(second >> (8 * (secondBytes - 1 - i)))
	}
	return new(big.Int).SetBytes(b[:]), nil
}

// IssuedAt reads the second of issue from a certificate that Issue made. Where
// it does not lie within the validity the certificate is older than these
// serial numbers, and its notBefore is taken, which is never later.
func IssuedAt(c *x509.Certificate) time.Time {
	if c.SerialNumber == nil || c.SerialNumber.Sign() <= 0 || c.SerialNumber.BitLen() > 128 {
		return c.NotBefore
	}
	second := new(big.Int).Rsh(c.SerialNumber, 8*(16-secondBytes))
	at := time.Unix(second.Int64(), 0).UTC() // at most 40 bits
	if at.Before(c.NotBefore) || at.After(c.NotAfter) {
		return c.NotBefore
	}
	return at
}

func validHostID(id string) bool {
	if len(id) != 64 {
		return false
	}
	for i := range len(id) {
		if c := id[i]; (c < '0' || c > '9') && (c < 'A' || c > 'F') {
			return false
		}
	}
	return true
}

// build runs a builder that can't fail: every part has a bounded, known form.
func build(f func(b *cryptobyte.Builder)) []byte {
	b := cryptobyte.NewBuilder(nil)
	f(b)
	return b.BytesOrPanic()
}

// commonName is a name of one attribute as UTF8String; the standard library
// would write PrintableString, which the genuine certificate does not have.
func commonName(cn string) []byte {
	return build(func(b *cryptobyte.Builder) {
		b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(der.SET, func(b *cryptobyte.Builder) {
				b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(oidCommonName)
					b.AddASN1(der.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes([]byte(cn)) })
				})
			})
		})
	})
}

func octets(v []byte) []byte {
	return build(func(b *cryptobyte.Builder) { b.AddASN1OctetString(v) })
}

func applicationPolicies(oid asn1.ObjectIdentifier) []byte {
	return build(func(b *cryptobyte.Builder) {
		b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oid) })
		})
	})
}

// authorityKeyID names the signer's certificate by key, issuer and serial.
func authorityKeyID(signer *x509.Certificate) []byte {
	keyID := signer.SubjectKeyId
	if len(keyID) == 0 {
		sum := sha1.Sum(signer.RawSubjectPublicKeyInfo)
		keyID = sum[:]
	}
	context := func(n uint8) der.Tag { return der.Tag(n).ContextSpecific() }
	serial := build(func(b *cryptobyte.Builder) { b.AddASN1BigInt(signer.SerialNumber) })
	serial[0] = byte(context(2))
	return build(func(b *cryptobyte.Builder) {
		b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(context(0), func(b *cryptobyte.Builder) { b.AddBytes(keyID) })
			b.AddASN1(context(1).Constructed(), func(b *cryptobyte.Builder) {
				b.AddASN1(context(4).Constructed(), func(b *cryptobyte.Builder) { b.AddBytes(signer.RawIssuer) })
			})
			b.AddBytes(serial)
		})
	})
}

// policies reads the application policies of a certificate; ok is false where
// the extension is there and does not parse.
func policies(c *x509.Certificate) (oids []asn1.ObjectIdentifier, ok bool) {
	for _, e := range c.Extensions {
		if !e.Id.Equal(oidApplicationPolicies) {
			continue
		}
		s := cryptobyte.String(e.Value)
		var list cryptobyte.String
		if !s.ReadASN1(&list, der.SEQUENCE) || !s.Empty() {
			return nil, false
		}
		for !list.Empty() {
			var info cryptobyte.String
			var oid asn1.ObjectIdentifier
			if !list.ReadASN1(&info, der.SEQUENCE) || !info.ReadASN1ObjectIdentifier(&oid) || len(oids) >= 16 {
				return nil, false
			}
			oids = append(oids, oid)
		}
	}
	return oids, true
}

// fits says whether the certificate's policies allow the purpose: they name it,
// or they name neither purpose (foreign services may number the encryption kind
// otherwise than we conclude).
func fits(oids []asn1.ObjectIdentifier, p Purpose) bool {
	if slices.ContainsFunc(oids, policyOIDs[p].Equal) {
		return true
	}
	for _, other := range policyOIDs {
		if slices.ContainsFunc(oids, other.Equal) {
			return false
		}
	}
	return true
}

// issuedBy is a cheap look at names and key identifiers before the signature.
func issuedBy(c, signer *x509.Certificate) bool {
	if !bytes.Equal(c.RawIssuer, signer.RawSubject) {
		return false
	}
	return len(c.AuthorityKeyId) == 0 || len(signer.SubjectKeyId) == 0 || bytes.Equal(c.AuthorityKeyId, signer.SubjectKeyId)
}
