package hgsa

import (
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// KeyEncoding is one of the forms in which a public key may travel; the
// specification names none (hgsa.md 13.5).
type KeyEncoding string

// The encodings that [ParsePublicKey] reads. All but KeyCertificate and
// KeyObject can be written.
const (
	KeySPKI        KeyEncoding = "SubjectPublicKeyInfo"
	KeyPKCS1       KeyEncoding = "PKCS#1 RSAPublicKey"
	KeyCertificate KeyEncoding = "certificate"
	KeyBcrypt      KeyEncoding = "BCRYPT_RSAPUBLIC_BLOB"
	KeyCryptoAPI   KeyEncoding = "PUBLICKEYBLOB"
	KeySIPA        KeyEncoding = "SIPA VSM_IDK_INFO"
	KeyTPMT        KeyEncoding = "TPMT_PUBLIC"
	KeyTPM2B       KeyEncoding = "TPM2B_PUBLIC"
	KeyObject      KeyEncoding = "EndorsementKey object"
)

// Reasons why a key is refused.
var (
	ErrKeyEncoding = errors.New("public key is in no known encoding")
	ErrKeySize     = errors.New("RSA key must have 2048 to 16384 bits")
	ErrKeyExponent = errors.New("RSA public exponent must be odd and from 3 to 2^31-1")
	ErrKeyModulus  = errors.New("RSA modulus is even")
)

const (
	minKeyBits  = 2048
	maxKeyBits  = 16384
	maxKeyBytes = 64 << 10 // of an encoding, certificates included
)

// PublicKey is a key as it was received: its value, and the very bytes, which a
// host key signature covers.
type PublicKey struct {
	RSA      *rsa.PublicKey
	Encoding KeyEncoding
	Raw      []byte
}

// ParsePublicKey reads an RSA public key in any of the encodings above, told
// apart by the first bytes, and checks its size and exponent. Bytes after the
// encoding are an error. Raw is the argument itself, not a copy.
func ParsePublicKey(raw []byte) (PublicKey, error) {
	if len(raw) > maxKeyBytes {
		return PublicKey{}, fmt.Errorf("%w: %d bytes", ErrKeyEncoding, len(raw))
	}
	encoding, n, e, err := parseKey(raw, true)
	if err != nil {
		return PublicKey{}, err
	}
	key, err := checkedKey(n, e)
	if err != nil {
		return PublicKey{}, err
	}
	return PublicKey{RSA: key, Encoding: encoding, Raw: raw}, nil
}

// SameKey compares modulus and exponent, the only things that identify a key.
func SameKey(a, b *rsa.PublicKey) bool {
	return a != nil && b != nil && a.E == b.E && a.N.Cmp(b.N) == 0
}

// HostID names a host by its key: upper-case hex SHA-256 of the key's
// SubjectPublicKeyInfo, whatever encoding it came in (13.16).
func HostID(key *rsa.PublicKey) (string, error) {
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", fmt.Errorf("host id: %w", err)
	}
	sum := sha256.Sum256(spki)
	return strings.ToUpper(hex.EncodeToString(sum[:])), nil
}

// checkedKey takes big-endian modulus and exponent.
func checkedKey(n, e []byte) (*rsa.PublicKey, error) {
	modulus, exponent := new(big.Int).SetBytes(n), new(big.Int).SetBytes(e)
	switch bits := modulus.BitLen(); {
	case bits < minKeyBits || bits > maxKeyBits:
		return nil, fmt.Errorf("%w, this one has %d", ErrKeySize, bits)
	case modulus.Bit(0) == 0:
		return nil, ErrKeyModulus
	case exponent.BitLen() > 31 || exponent.Bit(0) == 0 || exponent.Cmp(big.NewInt(3)) < 0:
		return nil, ErrKeyExponent
	}
	return &rsa.PublicKey{N: modulus, E: int(exponent.Int64())}, nil
}

// parseKey gives modulus and exponent, big-endian. A JSON object may hold one
// of the other encodings, not another object.
func parseKey(b []byte, object bool) (KeyEncoding, []byte, []byte, error) {
	has := func(prefix string) bool { return len(b) >= len(prefix) && string(b[:len(prefix)]) == prefix }
	switch {
	case has("{") && object:
		return parseKeyObject(b)
	case has("\x30"):
		return parseDER(b)
	case has("RSA1"):
		n, e, ok := parseBcrypt(b)
		return known(KeyBcrypt, n, e, ok)
	case has("\x06\x02\x00\x00"):
		n, e, ok := parseCryptoAPI(b)
		return known(KeyCryptoAPI, n, e, ok)
	case has("\x01\x00\x00\x00"):
		n, e, ok := parseSIPA(b)
		return known(KeySIPA, n, e, ok)
	case has("\x00\x01"):
		n, e, ok := parseTPMT(b)
		return known(KeyTPMT, n, e, ok)
	case len(b) > 4 && int(binary.BigEndian.Uint16(b)) == len(b)-2 && b[2] == 0 && b[3] == 1:
		n, e, ok := parseTPMT(b[2:])
		return known(KeyTPM2B, n, e, ok)
	}
	return "", nil, nil, ErrKeyEncoding
}

func known(encoding KeyEncoding, n, e []byte, ok bool) (KeyEncoding, []byte, []byte, error) {
	if !ok {
		return "", nil, nil, fmt.Errorf("%w: it begins like %s and does not go on so", ErrKeyEncoding, encoding)
	}
	return encoding, n, e, nil
}

// parseKeyObject reads a JSON EndorsementKey inside a binary field.
func parseKeyObject(b []byte) (KeyEncoding, []byte, []byte, error) {
	r, err := newReader(b, maxKeyBytes)
	if err != nil {
		return "", nil, nil, fmt.Errorf("%w: it begins like %s and is not JSON", ErrKeyEncoding, KeyObject)
	}
	key, err := r.endorsementKey()
	if err != nil {
		return "", nil, nil, fmt.Errorf("%w: %w", ErrKeyEncoding, err)
	}
	_, n, e, err := parseKey(key, false)
	return KeyObject, n, e, err
}

// parseDER tells SubjectPublicKeyInfo, PKCS#1 and certificate apart by their
// first two elements. A certificate is only searched for its key: a host key's
// chain, expiry and extensions do not count (6.4), and odd ones are in use.
func parseDER(b []byte) (KeyEncoding, []byte, []byte, error) {
	outer := cryptobyte.String(b)
	var seq cryptobyte.String
	if !outer.ReadASN1(&seq, asn1.SEQUENCE) || !outer.Empty() {
		return known(KeySPKI, nil, nil, false)
	}
	if seq.PeekASN1Tag(asn1.INTEGER) {
		n, e, ok := parsePKCS1(b)
		return known(KeyPKCS1, n, e, ok)
	}
	var first cryptobyte.String
	rest := seq
	if !rest.ReadASN1(&first, asn1.SEQUENCE) {
		return known(KeySPKI, nil, nil, false)
	}
	if rest.PeekASN1Tag(asn1.BIT_STRING) {
		n, e, ok := parseSPKI(seq)
		return known(KeySPKI, n, e, ok)
	}
	n, e, ok := parseTBS(first)
	return known(KeyCertificate, n, e, ok)
}

func parseTBS(tbs cryptobyte.String) (n, e []byte, ok bool) {
	var spki cryptobyte.String
	if !tbs.SkipOptionalASN1(asn1.Tag(0).Constructed().ContextSpecific()) ||
		!tbs.SkipASN1(asn1.INTEGER) || // serial number
		!tbs.SkipASN1(asn1.SEQUENCE) || // signature algorithm
		!tbs.SkipASN1(asn1.SEQUENCE) || // issuer
		!tbs.SkipASN1(asn1.SEQUENCE) || // validity
		!tbs.SkipASN1(asn1.SEQUENCE) || // subject
		!tbs.ReadASN1(&spki, asn1.SEQUENCE) {
		return nil, nil, false
	}
	return parseSPKI(spki)
}

// rsaEncryption is the content of OID 1.2.840.113549.1.1.1.
const rsaEncryption = "\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01"

// parseSPKI takes the content of the SubjectPublicKeyInfo sequence.
func parseSPKI(s cryptobyte.String) (n, e []byte, ok bool) {
	var algorithm, oid cryptobyte.String
	var bits []byte
	if !s.ReadASN1(&algorithm, asn1.SEQUENCE) || !algorithm.ReadASN1(&oid, asn1.OBJECT_IDENTIFIER) ||
		string(oid) != rsaEncryption || !s.ReadASN1BitStringAsBytes(&bits) || !s.Empty() {
		return nil, nil, false
	}
	return parsePKCS1(bits)
}

func parsePKCS1(b []byte) (n, e []byte, ok bool) {
	s := cryptobyte.String(b)
	var seq cryptobyte.String
	modulus, exponent := new(big.Int), new(big.Int)
	if !s.ReadASN1(&seq, asn1.SEQUENCE) || !s.Empty() ||
		!seq.ReadASN1Integer(modulus) || !seq.ReadASN1Integer(exponent) || !seq.Empty() ||
		modulus.Sign() <= 0 || exponent.Sign() <= 0 {
		return nil, nil, false
	}
	return modulus.Bytes(), exponent.Bytes(), true
}

// parseBcrypt: "RSA1", bits, exponent length, modulus length, 0, 0 (u32
// little-endian), exponent, modulus (big-endian).
func parseBcrypt(b []byte) (n, e []byte, ok bool) {
	if len(b) < 24 {
		return nil, nil, false
	}
	return split(b[24:], binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:]))
}

// parseSIPA: the payload of 9.3, algorithm 1, bits, exponent length, modulus
// length (u32 little-endian), exponent, modulus (big-endian).
func parseSIPA(b []byte) (n, e []byte, ok bool) {
	if len(b) < 16 {
		return nil, nil, false
	}
	return split(b[16:], binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:]))
}

// split cuts exponent and modulus, which must fill b.
func split(b []byte, exponent, modulus uint32) (n, e []byte, ok bool) {
	if exponent > 8 || uint64(exponent)+uint64(modulus) != uint64(len(b)) {
		return nil, nil, false
	}
	return b[exponent:], b[:exponent], true
}

// parseCryptoAPI: BLOBHEADER (type 6, version 2, reserved, algorithm), "RSA1",
// bits, exponent (u32), modulus, all little-endian.
func parseCryptoAPI(b []byte) (n, e []byte, ok bool) {
	if len(b) < 20 || string(b[8:12]) != "RSA1" {
		return nil, nil, false
	}
	if algorithm := binary.LittleEndian.Uint32(b[4:]); algorithm != 0xa400 && algorithm != 0x2400 {
		return nil, nil, false
	}
	if bits := binary.LittleEndian.Uint32(b[12:]); uint64(bits) != 8*uint64(len(b)-20) {
		return nil, nil, false
	}
	n = slices.Clone(b[20:])
	slices.Reverse(n)
	return n, binary.BigEndian.AppendUint32(nil, binary.LittleEndian.Uint32(b[16:])), true
}

// TPM algorithm identifiers that appear in an RSA TPMT_PUBLIC.
const (
	tpmRSA   = 0x0001
	tpmXOR   = 0x000a
	tpmNull  = 0x0010
	tpmRSAES = 0x0015
)

// parseTPMT reads TPMT_PUBLIC of an RSA key (TCG Part 2, 12.2.4), big-endian:
// type, name algorithm, attributes, policy digest, symmetric definition,
// scheme, key bits, exponent (0 means 65537), modulus.
func parseTPMT(b []byte) (n, e []byte, ok bool) {
	s := cryptobyte.String(b)
	var typ, nameAlg, symmetric, scheme, bits uint16
	var attributes, exponent uint32
	var policy, modulus cryptobyte.String
	if !s.ReadUint16(&typ) || typ != tpmRSA || !s.ReadUint16(&nameAlg) || !s.ReadUint32(&attributes) ||
		!s.ReadUint16LengthPrefixed(&policy) || !s.ReadUint16(&symmetric) {
		return nil, nil, false
	}
	if symmetric == tpmXOR || symmetric != tpmNull && !s.Skip(4) { // key bits and mode
		return nil, nil, false
	}
	if !s.ReadUint16(&scheme) {
		return nil, nil, false
	}
	if scheme != tpmNull && scheme != tpmRSAES && !s.Skip(2) { // hash
		return nil, nil, false
	}
	if !s.ReadUint16(&bits) || !s.ReadUint32(&exponent) || !s.ReadUint16LengthPrefixed(&modulus) || !s.Empty() {
		return nil, nil, false
	}
	if exponent == 0 {
		exponent = 65537
	}
	return modulus, binary.BigEndian.AppendUint32(nil, exponent), int(bits) == 8*len(modulus)
}

// EncodePublicKey writes a key for sending: the form a client uses is its
// choice, KeySIPA for a VSM identity key and KeySPKI for a host key are the
// defaults of 13.5. TPM forms carry the attributes of a restricted decryption
// key with AES-128-CFB, the usual endorsement key.
func EncodePublicKey(key *rsa.PublicKey, encoding KeyEncoding) ([]byte, error) {
	n := key.N.Bytes()
	e := new(big.Int).SetInt64(int64(key.E)).Bytes()
	bits := uint32(8 * len(n))
	le := binary.LittleEndian
	switch encoding {
	case KeySPKI:
		return x509.MarshalPKIXPublicKey(key)
	case KeyPKCS1:
		return x509.MarshalPKCS1PublicKey(key), nil
	case KeySIPA:
		b := le.AppendUint32(le.AppendUint32(nil, 1), bits)
		b = le.AppendUint32(le.AppendUint32(b, uint32(len(e))), uint32(len(n)))
		return append(append(b, e...), n...), nil
	case KeyBcrypt:
		b := le.AppendUint32([]byte("RSA1"), bits)
		b = le.AppendUint32(le.AppendUint32(b, uint32(len(e))), uint32(len(n)))
		b = le.AppendUint64(b, 0)
		return append(append(b, e...), n...), nil
	case KeyCryptoAPI:
		b := le.AppendUint32([]byte{6, 2, 0, 0}, 0xa400)
		b = le.AppendUint32(append(b, "RSA1"...), bits)
		b = le.AppendUint32(b, uint32(key.E))
		slices.Reverse(n)
		return append(b, n...), nil
	case KeyTPMT, KeyTPM2B:
		return encodeTPM(n, uint32(key.E), encoding == KeyTPM2B), nil
	}
	return nil, fmt.Errorf("%w to write: %q", ErrKeyEncoding, encoding)
}

func encodeTPM(n []byte, exponent uint32, sized bool) []byte {
	const (
		sha256Alg  = 0x000b
		attributes = 0x000300b2 // fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt
		aes        = 0x0006
		cfb        = 0x0043
	)
	be := binary.BigEndian
	if exponent == 65537 {
		exponent = 0
	}
	b := be.AppendUint16(be.AppendUint16(nil, tpmRSA), sha256Alg)
	b = be.AppendUint16(be.AppendUint32(b, attributes), 0)
	b = be.AppendUint16(be.AppendUint16(be.AppendUint16(b, aes), 128), cfb)
	b = be.AppendUint16(be.AppendUint16(b, tpmNull), uint16(8*len(n)))
	b = be.AppendUint16(be.AppendUint32(b, exponent), uint16(len(n)))
	b = append(b, n...)
	if sized {
		b = append(be.AppendUint16(nil, uint16(len(b))), b...)
	}
	return b
}
