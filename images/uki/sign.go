package uki

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/smallstep/pkcs7"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// ErrSignature reports an image that is not signed as asked.
var ErrSignature = errors.New("bad image signature")

// Object identifiers of "Windows Authenticode Portable Executable Signature Format" and PKCS #7 (RFC 2315, RFC 2985).
var (
	oidSignedData    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidIndirectData  = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 4}
	oidPEImageData   = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 15}
	oidContentType   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	oidMessageDigest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
	oidSHA256        = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidRSA           = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
)

// Sign returns the image with an Authenticode signature for Secure Boot: RSA, SHA-256, the certificate inside, no time. The same key
// gives the same bytes, so a signed image is as reproducible as an unsigned one. An image that others have signed gets one signature more,
// behind theirs; firmware tries them in order. One that this certificate signed already is refused.
// The signer may be a file's key or anything else that signs digests (a PKCS #11 token behind a command).
func Sign(file []byte, cert *x509.Certificate, signer crypto.Signer) ([]byte, error) {
	im, err := read(file)
	if err != nil {
		return nil, err
	}
	if im.certSize != 0 {
		if err := Verify(file, cert); err == nil {
			return nil, fmt.Errorf("%w: the image is signed by it already", ErrSignature)
		}
	}
	if im.certDir == 0 {
		return nil, fmt.Errorf("%w: its header has no room for a signature", ErrNotPE)
	}
	pub, ok := signer.Public().(*rsa.PublicKey)
	if !ok || !pub.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("%w: the key is not the certificate's RSA key", ErrSignature)
	}
	others, err := Certificates(file)
	if err != nil {
		return nil, err
	}
	if len(others)%8 != 0 || (len(others) == 0) != (im.certSize == 0) {
		return nil, fmt.Errorf("%w: the table of signatures does not end on 8 bytes", ErrSignature)
	}
	out := bytes.Clone(file)
	if len(others) == 0 {
		out = pad(out, 8) // the padding is hashed: it is part of the file from now on
	}
	sum, err := AuthenticodeSHA256(out)
	if err != nil {
		return nil, err
	}
	p7, err := signedData(sum, cert, signer)
	if err != nil {
		return nil, err
	}
	table := make([]byte, 8, 16+len(p7)) // WIN_CERTIFICATE
	binary.LittleEndian.PutUint16(table[4:], 0x0200)
	binary.LittleEndian.PutUint16(table[6:], 0x0002) // PKCS #7 SignedData
	table = append(table, p7...)
	binary.LittleEndian.PutUint32(table, uint32(len(table)))
	table = pad(table, 8)
	binary.LittleEndian.PutUint32(out[im.certDir:], uint32(len(out)-len(others)))
	binary.LittleEndian.PutUint32(out[im.certDir+4:], uint32(len(others)+len(table)))
	return append(out, table...), nil
}

// Verify checks that one of the image's signatures is by cert and covers this image. Firmware does the same with db.
func Verify(file []byte, cert *x509.Certificate) error {
	table, err := Certificates(file)
	if err != nil {
		return err
	}
	sum, err := AuthenticodeSHA256(file)
	if err != nil {
		return err
	}
	why := fmt.Errorf("%w: it has none", ErrSignature)
	for len(table) >= 8 {
		size := int(binary.LittleEndian.Uint32(table))
		if size < 8 || size > len(table) {
			return fmt.Errorf("%w: its table is cut off", ErrSignature)
		}
		if why = verifyOne(table[8:size], sum, cert); why == nil {
			return nil
		}
		table = table[min(len(table), (size+7)&^7):]
	}
	return why
}

func verifyOne(der []byte, sum [32]byte, cert *x509.Certificate) error {
	p7, err := pkcs7.Parse(der)
	if err != nil {
		return fmt.Errorf("%w: %v", ErrSignature, err)
	}
	if !bytes.Equal(p7.Content, indirectContent(sum)) {
		return fmt.Errorf("%w: it is for another image", ErrSignature)
	}
	p7.Certificates = []*x509.Certificate{cert}
	if err := p7.Verify(); err != nil {
		return fmt.Errorf("%w: not by %s: %v", ErrSignature, cert.Subject.CommonName, err)
	}
	return nil
}

// indirectContent is what the message digest covers: SpcIndirectDataContent without its own tag and length.
func indirectContent(sum [32]byte) []byte {
	var b cryptobyte.Builder
	indirectBody(&b, sum)
	return b.BytesOrPanic() // fixed input; it can't fail
}

func indirectBody(b *cryptobyte.Builder, sum [32]byte) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { // SpcAttributeTypeAndOptionalValue
		b.AddASN1ObjectIdentifier(oidPEImageData)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { // SpcPeImageData
			b.AddASN1(cbasn1.BIT_STRING, func(b *cryptobyte.Builder) { b.AddUint8(0) })
			b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.Tag(2).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
					b.AddASN1(cbasn1.Tag(0).ContextSpecific(), func(*cryptobyte.Builder) {}) // an empty file name
				})
			})
		})
	})
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { // DigestInfo
		algorithm(b, oidSHA256)
		b.AddASN1OctetString(sum[:])
	})
}

func algorithm(b *cryptobyte.Builder, oid asn1.ObjectIdentifier) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		b.AddASN1NULL()
	})
}

// signedData makes the PKCS #7 SignedData. Its content is a SEQUENCE and not an OCTET STRING, which is why no library's encoder serves.
func signedData(sum [32]byte, cert *x509.Certificate, signer crypto.Signer) ([]byte, error) {
	digest := sha256.Sum256(indirectContent(sum))
	var set cryptobyte.Builder // the attributes as they are signed: a SET, in DER's order
	set.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) { attributes(b, digest) })
	signed, err := set.Bytes()
	if err != nil {
		return nil, err
	}
	hash := sha256.Sum256(signed)
	signature, err := signer.Sign(rand.Reader, hash[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("sign image: %w", err)
	}
	if err := rsa.VerifyPKCS1v15(cert.PublicKey.(*rsa.PublicKey), crypto.SHA256, hash[:], signature); err != nil {
		return nil, fmt.Errorf("%w: the signer's answer does not verify with the certificate", ErrSignature)
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidSignedData)
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(1)
				b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) { algorithm(b, oidSHA256) })
				b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(oidIndirectData)
					b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) {
						b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) { indirectBody(b, sum) })
					})
				})
				b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) { b.AddBytes(cert.Raw) })
				b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) { signerInfo(b, cert, digest, signature) })
			})
		})
	})
	return b.Bytes()
}

func attributes(b *cryptobyte.Builder, digest [32]byte) {
	attribute := func(oid asn1.ObjectIdentifier, value func(b *cryptobyte.Builder)) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oid)
			b.AddASN1(cbasn1.SET, value)
		})
	}
	attribute(oidContentType, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidIndirectData) })
	attribute(oidMessageDigest, func(b *cryptobyte.Builder) { b.AddASN1OctetString(digest[:]) })
}

func signerInfo(b *cryptobyte.Builder, cert *x509.Certificate, digest [32]byte, signature []byte) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(1)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddBytes(cert.RawIssuer)
			b.AddASN1BigInt(cert.SerialNumber)
		})
		algorithm(b, oidSHA256)
		b.AddASN1(cbasn1.Tag(0).ContextSpecific().Constructed(), func(b *cryptobyte.Builder) { attributes(b, digest) })
		algorithm(b, oidRSA)
		b.AddASN1OctetString(signature)
	})
}
