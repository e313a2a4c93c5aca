package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"

	"github.com/google/go-tpm/tpm2"
)

// SigningKey is an ECDSA P-256 key that this TPM made and never gives out. It signs any SHA-256 digest (it is not restricted), so it is
// no attestation key: what it signs says what its owner wanted to say. It is not loaded while it is not in use. Safe for concurrent use.
type SigningKey struct {
	child
	pub *ecdsa.PublicKey
}

// MaxSigningKey bounds an encoded SigningKey, in bytes.
const MaxSigningKey = maxChild

// SigningTemplate is what the public area of a signing key must be, but for the key itself. NoDA: somebody guessing elsewhere must not lock this node out.
var SigningTemplate = tpm2.TPMTPublic{Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
	ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, SignEncrypt: true},
	Parameters:       ecdsaParameters}

var ecdsaParameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256,
	Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})}})

// NewSigningKey has the TPM make a key. The caller keeps what Encode gives; nothing stays in the TPM.
func (t *TPM) NewSigningKey() (*SigningKey, error) {
	c, err := t.newChild(signingKeyName, SigningTemplate)
	if err != nil {
		return nil, err
	}
	return asSigningKey(c)
}

const signingKeyName = "signing key"

// LoadSigningKey takes what Encode gave and proves that this TPM can use it. Errors of type *Error: KindOtherTPM where another TPM made
// it or this one was cleared since, KindDamaged.
func (t *TPM) LoadSigningKey(b []byte) (*SigningKey, error) {
	c, err := t.loadChild(signingKeyName, b)
	if err != nil {
		return nil, err
	}
	return asSigningKey(c)
}

func asSigningKey(c child) (*SigningKey, error) {
	pub, err := tpm2.Unmarshal[tpm2.TPM2BPublic](c.blob.Public)
	if err != nil {
		return nil, c.damaged("its public half does not parse")
	}
	k := &SigningKey{child: c}
	if k.pub, err = publicP256(pub); err != nil {
		return nil, c.damaged("%v", err)
	}
	return k, nil
}

// Public is a *ecdsa.PublicKey on P-256.
func (k *SigningKey) Public() crypto.PublicKey { return k.pub }

// Area is the key's TPM2B_PUBLIC.
func (k *SigningKey) Area() []byte { return bytes.Clone(k.blob.Public) }

// Sign signs a SHA-256 digest and gives ASN.1 DER, as crypto.Signer says. The randomness is the TPM's own. It takes a few milliseconds, on
// slow TPMs half a second.
func (k *SigningKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != crypto.SHA256 || len(digest) != crypto.SHA256.Size() {
		return nil, errors.New("the TPM's signing key signs SHA-256 digests only")
	}
	k.t.mu.Lock()
	defer k.t.mu.Unlock()
	var sig []byte
	err := k.use(func(h tpm2.NamedHandle) error {
		r, err := tpm2.Sign{KeyHandle: tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: tpm2.PasswordAuth(nil)},
			Digest:     tpm2.TPM2BDigest{Buffer: digest},
			InScheme:   tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
			Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull}}.Execute(k.t.t)
		if err != nil {
			return fmt.Errorf("sign in the TPM: %w", err)
		}
		ecc, err := r.Signature.Signature.ECDSA()
		if err != nil {
			return fmt.Errorf("sign in the TPM: %w", err)
		}
		sig, err = asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(ecc.SignatureR.Buffer), new(big.Int).SetBytes(ecc.SignatureS.Buffer)})
		return err
	})
	if err != nil {
		return nil, err
	}
	if !ecdsa.VerifyASN1(k.pub, digest, sig) { // somebody on the bus, or a broken TPM: nothing wrong may be kept
		return nil, errors.New("sign in the TPM: the signature does not fit the key")
	}
	return sig, nil
}

func publicP256(b *tpm2.TPM2BPublic) (*ecdsa.PublicKey, error) {
	pub, err := b.Contents()
	if err != nil {
		return nil, err
	}
	if pub.Type != tpm2.TPMAlgECC {
		return nil, errors.New("it is not an elliptic-curve key")
	}
	parms, err := pub.Parameters.ECCDetail()
	if err != nil {
		return nil, err
	}
	point, err := pub.Unique.ECC()
	if err != nil {
		return nil, err
	}
	if parms.CurveID != tpm2.TPMECCNistP256 || len(point.X.Buffer) > 32 || len(point.Y.Buffer) > 32 {
		return nil, errors.New("it is not on P-256")
	}
	uncompressed := make([]byte, 65)
	uncompressed[0] = 4
	new(big.Int).SetBytes(point.X.Buffer).FillBytes(uncompressed[1:33])
	new(big.Int).SetBytes(point.Y.Buffer).FillBytes(uncompressed[33:])
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), uncompressed)
}
