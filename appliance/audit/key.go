package audit

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io"
)

// PublicKey is an audit key as it stands in the records and in exports: SubjectPublicKeyInfo DER of an ECDSA key on P-256, which the
// node's TPM holds and which signs the SHA-256 of a checkpoint's text (ASN.1 DER); or the 32 bytes of an Ed25519 key, which signs the
// text itself. Nodes of earlier images had the latter, in software.
type PublicKey []byte

// EncodeKey is the PublicKey of a signer's public half.
func EncodeKey(pub crypto.PublicKey) (PublicKey, error) {
	switch k := pub.(type) {
	case ed25519.PublicKey:
		return PublicKey(bytes.Clone(k)), nil
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return x509.MarshalPKIXPublicKey(k)
		}
	}
	return nil, errors.New("the audit key is neither on P-256 nor Ed25519")
}

// Fingerprint is the SHA-256 of the key, 64 hex digits: what a person compares.
func (k PublicKey) Fingerprint() string {
	sum := sha256.Sum256(k)
	return hex.EncodeToString(sum[:])
}

// NodeID is the name of the node whose first audit key this is: 16 hex digits.
func NodeID(key PublicKey) string { return key.Fingerprint()[:16] }

// is compares with a key or the SHA-256 of one.
func (k PublicKey) is(want []byte) bool {
	sum := sha256.Sum256(k)
	return bytes.Equal(k, want) || bytes.Equal(sum[:], want)
}

func (k PublicKey) parse() (crypto.PublicKey, bool) {
	if len(k) == ed25519.PublicKeySize {
		return ed25519.PublicKey(k), true
	}
	if len(k) > 256 {
		return nil, false
	}
	pub, err := x509.ParsePKIXPublicKey(k)
	ec, ok := pub.(*ecdsa.PublicKey)
	return ec, err == nil && ok && ec.Curve == elliptic.P256()
}

func (k PublicKey) valid() bool {
	_, ok := k.parse()
	return ok
}

func (k PublicKey) verifies(text, signature []byte) bool {
	pub, ok := k.parse()
	if !ok {
		return false
	}
	if ed, ok := pub.(ed25519.PublicKey); ok {
		return ed25519.Verify(ed, text, signature)
	}
	sum := sha256.Sum256(text)
	return ecdsa.VerifyASN1(pub.(*ecdsa.PublicKey), sum[:], signature)
}

// signText signs as PublicKey says.
func signText(rand io.Reader, signer crypto.Signer, text []byte) ([]byte, error) {
	if _, ok := signer.Public().(ed25519.PublicKey); ok {
		return signer.Sign(rand, text, crypto.Hash(0))
	}
	sum := sha256.Sum256(text)
	return signer.Sign(rand, sum[:], crypto.SHA256)
}
