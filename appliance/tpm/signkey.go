package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"

	"github.com/google/go-tpm/tpm2"
)

// SigningKey is an ECDSA P-256 key that this TPM made and never gives out. It signs any SHA-256 digest (it is not restricted), so it is
// no attestation key: what it signs says what its owner wanted to say. It is not loaded while it is not in use. Safe for concurrent use.
type SigningKey struct {
	t    *TPM
	blob signingBlob
	pub  *ecdsa.PublicKey
}

// signingBlob is the key as it may be kept: readable by this TPM alone, under its storage root key.
type signingBlob struct {
	Version int    `json:"version"` // 1
	Root    []byte `json:"root"`    // name of the storage root key: which TPM this is
	Public  []byte `json:"public"`  // TPM2B_PUBLIC
	Private []byte `json:"private"` // TPM2B_PRIVATE
}

// MaxSigningKey bounds an encoded SigningKey, in bytes.
const MaxSigningKey = 4 << 10

// NewSigningKey has the TPM make a key. The caller keeps what Encode gives; nothing stays in the TPM.
func (t *TPM) NewSigningKey() (*SigningKey, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	srk, done, err := t.anyRoot()
	if err != nil {
		return nil, err
	}
	defer done()
	r, err := tpm2.Create{
		ParentHandle: tpm2.AuthHandle{Handle: srk.handle, Name: srk.name, Auth: tpm2.PasswordAuth(nil)},
		InPublic: tpm2.New2B(tpm2.TPMTPublic{Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
			// NoDA: somebody guessing elsewhere must not lock this node out.
			ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, SignEncrypt: true},
			Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256,
				Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})}})}),
	}.Execute(t.t)
	if err != nil {
		return nil, fmt.Errorf("make signing key: %w", err)
	}
	k := &SigningKey{t: t, blob: signingBlob{Version: 1, Root: srk.name.Buffer, Public: tpm2.Marshal(r.OutPublic), Private: tpm2.Marshal(r.OutPrivate)}}
	k.pub, err = publicP256(&r.OutPublic)
	return k, err
}

// LoadSigningKey takes what Encode gave and proves that this TPM can use it. Errors of type *Error: KindOtherTPM where another TPM made
// it or this one was cleared since, KindDamaged.
func (t *TPM) LoadSigningKey(b []byte) (*SigningKey, error) {
	k := &SigningKey{t: t}
	if len(b) > MaxSigningKey || json.Unmarshal(b, &k.blob) != nil || k.blob.Version != 1 {
		return nil, damagedKey("it does not parse")
	}
	pub, err := tpm2.Unmarshal[tpm2.TPM2BPublic](k.blob.Public)
	if err != nil {
		return nil, damagedKey("its public half does not parse")
	}
	if k.pub, err = publicP256(pub); err != nil {
		return nil, damagedKey("%v", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return k, k.use(func(tpm2.NamedHandle) error { return nil })
}

func damagedKey(format string, args ...any) error {
	return &Error{KindDamaged, "the signing key of the TPM can't be read: " + fmt.Sprintf(format, args...), "a new one must be made"}
}

// Encode is the key for a file; it holds nothing that helps without this TPM.
func (k *SigningKey) Encode() ([]byte, error) { return json.Marshal(k.blob) }

// Public is a *ecdsa.PublicKey on P-256.
func (k *SigningKey) Public() crypto.PublicKey { return k.pub }

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

// use loads the key for one command; k.t.mu is held.
func (k *SigningKey) use(fn func(tpm2.NamedHandle) error) error {
	srk, done, err := k.t.anyRoot()
	if err != nil {
		return err
	}
	defer done()
	if !bytes.Equal(srk.name.Buffer, k.blob.Root) {
		return &Error{KindOtherTPM, "the signing key belongs to another TPM, or this TPM was cleared", "a new one must be made"}
	}
	pub, err := tpm2.Unmarshal[tpm2.TPM2BPublic](k.blob.Public)
	if err != nil {
		return damagedKey("its public half does not parse")
	}
	priv, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](k.blob.Private)
	if err != nil {
		return damagedKey("its private half does not parse")
	}
	r, err := tpm2.Load{ParentHandle: tpm2.AuthHandle{Handle: srk.handle, Name: srk.name, Auth: tpm2.PasswordAuth(nil)}, InPrivate: *priv, InPublic: *pub}.Execute(k.t.t)
	if errors.Is(err, tpm2.TPMRCIntegrity) || errors.Is(err, tpm2.TPMRCSize) || errors.Is(err, tpm2.TPMRCBinding) {
		return damagedKey("the TPM does not take it (%v)", err)
	}
	if err != nil {
		return fmt.Errorf("load signing key: %w", err)
	}
	defer flush(k.t.t, r.ObjectHandle)
	return fn(tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name})
}

// anyRoot is the storage root key: the persistent one, or where there is none (no sealed volume) one made for this moment. t.mu is held.
func (t *TPM) anyRoot() (*root, func(), error) {
	if r, err := t.storageRoot(); err == nil {
		return r, func() {}, nil
	}
	srk, err := storageRoot(t.t)
	if err != nil {
		return nil, nil, err
	}
	pub, err := srk.OutPublic.Contents()
	if err != nil {
		flush(t.t, srk.ObjectHandle)
		return nil, nil, err
	}
	return &root{srk.ObjectHandle, srk.Name, *pub}, func() { flush(t.t, srk.ObjectHandle) }, nil
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
