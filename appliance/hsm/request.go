package hsm

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"guardhouse/appliance/policy"
)

// MaxRequest bounds a CertificationRequestInfo in bytes.
const MaxRequest = 8 << 10

// RequestDigest checks that info is exactly one CertificationRequestInfo (RFC 2986 4.1) for the public key spki, and gives the block
// that its signature is the private operation of: EMSA-PKCS1-v1_5 with SHA-256 (RFC 8017 9.2), size bytes long. No certificate and no
// document of ours has that form, so a key that may sign nothing can prove its possession to a CA without becoming a signing key.
func RequestDigest(info, spki []byte, size int) (digest [sha256.Size]byte, block []byte, err error) {
	refused := badRequest("this is no certificate request for this key")
	if len(info) > MaxRequest {
		return digest, nil, refused
	}
	in := cryptobyte.String(info)
	var body, subject, key, attributes cryptobyte.String
	var version int64
	if !in.ReadASN1(&body, asn1.SEQUENCE) || !in.Empty() ||
		!body.ReadASN1Integer(&version) || version != 0 ||
		!body.ReadASN1(&subject, asn1.SEQUENCE) ||
		!body.ReadASN1Element(&key, asn1.SEQUENCE) || !bytes.Equal(key, spki) ||
		!body.ReadASN1(&attributes, asn1.Tag(0).ContextSpecific().Constructed()) || !body.Empty() {
		return digest, nil, refused
	}
	if pub, err := x509.ParsePKIXPublicKey(spki); err != nil {
		return digest, nil, refused
	} else if k, ok := pub.(*rsa.PublicKey); !ok || k.Size() != size || size < 128 {
		return digest, nil, refused
	}
	digest = sha256.Sum256(info)
	// DigestInfo of SHA-256 without the digest itself, RFC 8017 9.2 note 1.
	prefix := []byte{0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20}
	block = bytes.Repeat([]byte{0xff}, size)
	block[0], block[1] = 0, 1
	block[size-len(prefix)-len(digest)-1] = 0
	copy(block[size-len(prefix)-len(digest):], prefix)
	copy(block[size-len(digest):], digest[:])
	return digest, block, nil
}

// Request signs a certificate request with the key named ref; see RequestDigest. Safe to repeat.
func (k *Keeper) Request(ctx context.Context, ref policy.KeyRef, info []byte) ([]byte, error) {
	if len(info) > MaxRequest {
		return nil, badRequest("a certificate request has at most %d bytes", MaxRequest)
	}
	_, sig, err := k.call(ctx, call{Op: opRequest, Ref: ref}, info, k.timing.Call)
	return sig, err
}
