package evidence

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// EKForm is the encoding in which an endorsement key arrived.
type EKForm string

// The forms that [ParseEK] reads.
const (
	EKTPM2B       EKForm = "TPM2B_PUBLIC"
	EKTPMT        EKForm = "TPMT_PUBLIC"
	EKBcrypt      EKForm = "BCRYPT public blob"
	EKSPKI        EKForm = "SubjectPublicKeyInfo"
	EKPKCS1       EKForm = "PKCS#1 RSAPublicKey"
	EKCertificate EKForm = "certificate"
)

// EK is a TPM's endorsement key. Two forms of one key have the same ID.
type EK struct {
	Public crypto.PublicKey // *rsa.PublicKey of 2048 to 4096 bits, or *ecdsa.PublicKey on P-256 or P-384
	Form   EKForm
	// NameAlg is the hash of the key's TPM name, which also is the hash of its OAEP or ECDH. A form without one (all but the TPM's) has
	// the default of the TCG EK Credential Profile for that size.
	NameAlg Bank
	// Symmetric is the key size in bits of the AES-CFB that protects the key's children; the same default applies.
	Symmetric int
	// OtherTemplate is whether the TPM's own form showed another template than the default one of that kind (as of the high range): a TPM
	// makes the default key instead, so this one can attest only where it is kept at the default's persistent handle.
	OtherTemplate bool

	id string // of Public, where newEK made the key
}

// Reasons why an endorsement key is refused.
var (
	ErrEKForm = errors.New("endorsement key is in no known encoding")
	ErrEKKind = errors.New("endorsement key must be RSA of 2048 to 4096 bits or ECC P-256 or P-384")
	ErrEKUse  = errors.New("the key is no endorsement key: it must be a fixed, restricted decryption key")
)

// ID names a host by its endorsement key: upper-case hex SHA-256 of the SubjectPublicKeyInfo, whatever form the key came in (hgsa.md 13.16).
func (k *EK) ID() string {
	if k.id != "" {
		return k.id
	}
	spki, err := x509.MarshalPKIXPublicKey(k.Public)
	if err != nil {
		return "" // not for the keys that ParseEK lets through
	}
	sum := sha256.Sum256(spki)
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}

// Same compares the keys themselves.
func (k *EK) Same(other *EK) bool {
	a, ok := k.Public.(interface{ Equal(crypto.PublicKey) bool })
	return ok && other != nil && a.Equal(other.Public)
}

// ParseEK reads an endorsement key in any form, told apart by its first bytes; bytes after it are an error, except those that
// [ParseCertificate] forgives.
func ParseEK(raw []byte) (*EK, error) {
	if len(raw) > MaxCertificate {
		return nil, fmt.Errorf("%w: %d bytes", ErrEKForm, len(raw))
	}
	has := func(prefix string) bool { return strings.HasPrefix(string(raw[:min(len(raw), 8)]), prefix) }
	switch {
	case has("RSA1"):
		return bcryptRSA(raw)
	case has("ECK1"), has("ECK3"):
		return bcryptECC(raw)
	case has("\x00\x01"), has("\x00\x23"):
		return parseTPMT(raw, EKTPMT)
	case len(raw) > 4 && int(binary.BigEndian.Uint16(raw)) == len(raw)-2:
		return parseTPMT(raw[2:], EKTPM2B)
	case has("\x30"), has(nvHeader):
		return ekDER(raw)
	}
	return nil, ErrEKForm
}

func ekDER(raw []byte) (*EK, error) {
	if key, err := publicKeyInfo(raw); err == nil {
		return newEK(key, EKSPKI)
	}
	if key, err := x509.ParsePKCS1PublicKey(raw); err == nil {
		return newEK(key, EKPKCS1)
	}
	c, err := ParseCertificate(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEKForm, err)
	}
	return c.EK()
}

// newEK checks the key and fills in the profile's defaults: SHA-256 and AES-128 up to RSA 2048 and P-256, SHA-384 and AES-256 above.
func newEK(key crypto.PublicKey, form EKForm) (*EK, error) {
	ek := &EK{Public: key, Form: form, NameAlg: SHA256, Symmetric: 128}
	switch key := key.(type) {
	case *rsa.PublicKey:
		bits := key.N.BitLen()
		if bits < 2048 || bits > 4096 || key.N.Bit(0) == 0 || key.E < 3 || key.E&1 == 0 {
			return nil, fmt.Errorf("%w, this one is RSA of %d", ErrEKKind, bits)
		}
		if bits > 2048 {
			ek.NameAlg, ek.Symmetric = SHA384, 256
		}
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() {
			return nil, fmt.Errorf("%w, this one is on %s", ErrEKKind, key.Curve.Params().Name)
		}
		if _, err := key.ECDH(); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrEKKind, err)
		}
		if key.Curve == elliptic.P384() {
			ek.NameAlg, ek.Symmetric = SHA384, 256
		}
	default:
		return nil, fmt.Errorf("%w, this one is %T", ErrEKKind, key)
	}
	ek.id = ek.ID()
	return ek, nil
}

// publicKeyInfo is x509.ParsePKIXPublicKey that also takes RSA keys marked as for OAEP (id-RSAES-OAEP), as old Infineon certificates have.
func publicKeyInfo(spki []byte) (crypto.PublicKey, error) {
	key, err := x509.ParsePKIXPublicKey(spki)
	if err == nil {
		return key, nil
	}
	s := cryptobyte.String(spki)
	var seq, algorithm, oid cryptobyte.String
	var bits []byte
	const oaep = "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x07" // 1.2.840.113549.1.1.7
	if !s.ReadASN1(&seq, asn1.SEQUENCE) || !s.Empty() || !seq.ReadASN1(&algorithm, asn1.SEQUENCE) ||
		!algorithm.ReadASN1(&oid, asn1.OBJECT_IDENTIFIER) || string(oid) != oaep || !seq.ReadASN1BitStringAsBytes(&bits) || !seq.Empty() {
		return nil, err
	}
	return x509.ParsePKCS1PublicKey(bits)
}

// bcryptRSA: "RSA1", bits, exponent length, modulus length, 0, 0 (u32 little-endian), exponent, modulus (big-endian).
func bcryptRSA(b []byte) (*EK, error) {
	if len(b) < 24 {
		return nil, fmt.Errorf("%w: short %s", ErrEKForm, EKBcrypt)
	}
	le := binary.LittleEndian
	e, n := le.Uint32(b[8:]), le.Uint32(b[12:])
	if e > 4 || uint64(e)+uint64(n) != uint64(len(b)-24) {
		return nil, fmt.Errorf("%w: %s with lengths %d and %d", ErrEKForm, EKBcrypt, e, n)
	}
	return rsaEK(b[24+e:], new(big.Int).SetBytes(b[24:24+e]).Uint64(), EKBcrypt)
}

// bcryptECC: "ECK1" (P-256) or "ECK3" (P-384), bytes per coordinate (u32 little-endian), X, Y.
func bcryptECC(b []byte) (*EK, error) {
	size, curve := 32, elliptic.P256()
	if b[3] == '3' {
		size, curve = 48, elliptic.P384()
	}
	if len(b) != 8+2*size || int(binary.LittleEndian.Uint32(b[4:])) != size {
		return nil, fmt.Errorf("%w: %s of %d bytes", ErrEKForm, EKBcrypt, len(b))
	}
	return eccEK(curve, b[8:8+size], b[8+size:], EKBcrypt)
}

func rsaEK(modulus []byte, exponent uint64, form EKForm) (*EK, error) {
	if exponent > 1<<31-1 {
		return nil, fmt.Errorf("%w, this one has exponent %d", ErrEKKind, exponent)
	}
	return newEK(&rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: int(exponent)}, form)
}

func eccEK(curve elliptic.Curve, x, y []byte, form EKForm) (*EK, error) {
	size := (curve.Params().BitSize + 7) / 8
	point := make([]byte, 1+2*size)
	point[0] = 4
	if len(x) > size || len(y) > size {
		return nil, fmt.Errorf("%w: coordinates of %d and %d bytes", ErrEKForm, len(x), len(y))
	}
	copy(point[1+size-len(x):], x)
	copy(point[1+2*size-len(y):], y)
	key, err := ecdsa.ParseUncompressedPublicKey(curve, point)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEKForm, err)
	}
	return newEK(key, form)
}

// TPM algorithm identifiers and object attributes (TCG Part 2).
const (
	tpmAlgRSA   = 0x0001
	tpmAlgAES   = 0x0006
	tpmAlgNull  = 0x0010
	tpmAlgECC   = 0x0023
	tpmAlgCFB   = 0x0043
	tpmP256     = 0x0003
	tpmP384     = 0x0004
	tpmSign     = 1 << 18
	tpmEKNeeded = 1<<1 | 1<<4 | 1<<16 | 1<<17 // fixedTPM, fixedParent, restricted, decrypt
)

// parseTPMT reads TPMT_PUBLIC (Part 2, 12.2.4), big-endian: type, name algorithm, attributes, policy digest, then for a restricted
// decryption key: AES, bits, CFB, scheme null; RSA: bits, exponent (0 is 65537), modulus; ECC: curve, KDF null, X, Y.
func parseTPMT(b []byte, form EKForm) (*EK, error) {
	s := cryptobyte.String(b)
	var typ, name, aes, bits, mode, scheme, size, kdf uint16
	var attributes, exponent uint32
	var policy, x, y cryptobyte.String
	short := fmt.Errorf("%w: malformed %s", ErrEKForm, form)
	if !s.ReadUint16(&typ) || !s.ReadUint16(&name) || !s.ReadUint32(&attributes) || !s.ReadUint16LengthPrefixed(&policy) {
		return nil, short
	}
	if attributes&tpmEKNeeded != tpmEKNeeded || attributes&tpmSign != 0 {
		return nil, fmt.Errorf("%w (attributes 0x%x)", ErrEKUse, attributes)
	}
	if !s.ReadUint16(&aes) || aes != tpmAlgAES || !s.ReadUint16(&bits) || !s.ReadUint16(&mode) || mode != tpmAlgCFB ||
		!s.ReadUint16(&scheme) || scheme != tpmAlgNull || !s.ReadUint16(&size) {
		return nil, short
	}
	var ek *EK
	var err error
	switch {
	case typ == tpmAlgRSA:
		if !s.ReadUint32(&exponent) || !s.ReadUint16LengthPrefixed(&x) || int(size) != 8*len(x) {
			return nil, short
		}
		if exponent == 0 {
			exponent = 65537
		}
		ek, err = rsaEK(x, uint64(exponent), form)
	case typ == tpmAlgECC && (size == tpmP256 || size == tpmP384):
		if !s.ReadUint16(&kdf) || kdf != tpmAlgNull || !s.ReadUint16LengthPrefixed(&x) || !s.ReadUint16LengthPrefixed(&y) {
			return nil, short
		}
		curve := elliptic.P256()
		if size == tpmP384 {
			curve = elliptic.P384()
		}
		ek, err = eccEK(curve, x, y, form)
	default:
		return nil, fmt.Errorf("%w, this one has type 0x%x", ErrEKKind, typ)
	}
	if err != nil {
		return nil, err
	}
	if ek.NameAlg, ek.Symmetric = Bank(name), int(bits); !s.Empty() || ek.NameAlg.Size() == 0 || bits != 128 && bits != 256 {
		return nil, short
	}
	if t, err := templateFor(ek); err == nil {
		ek.OtherTemplate = t.attributes != attributes || t.policy != string(policy) || t.aes != bits
	}
	return ek, nil
}
