package rpc

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"time"

	"guardhouse/appliance/policy"
)

// callTimeout bounds one signature or decryption, for callers whose interface has no context.
const callTimeout = 10 * time.Second

// HSMSigner is a crypto.Signer whose private key lies in the HSM. Options: a crypto.Hash for PKCS#1 v1.5, or *rsa.PSSOptions with a salt
// of the hash's length.
type HSMSigner struct {
	HSM *Client
	Key policy.Key
	pub *rsa.PublicKey
}

// NewHSMSigner reads the public key from the record's certificate.
func NewHSMSigner(hsm *Client, key policy.Key) (*HSMSigner, error) {
	cert, err := x509.ParseCertificate(key.Certificate)
	if err != nil {
		return nil, fmt.Errorf("certificate of key %.16s: %w", key.Ref, err)
	}
	pub, ok := cert.PublicKey.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("key %.16s is not RSA", key.Ref)
	}
	return &HSMSigner{HSM: hsm, Key: key, pub: pub}, nil
}

// NewHSMSignerFor is for a key that has no certificate yet: spki is its SubjectPublicKeyInfo DER.
func NewHSMSignerFor(hsm *Client, ref policy.KeyRef, role policy.KeyRole, spki []byte) (*HSMSigner, error) {
	k, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, fmt.Errorf("public key %.16s: %w", ref, err)
	}
	pub, ok := k.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("key %.16s is not RSA", ref)
	}
	return &HSMSigner{HSM: hsm, Key: policy.Key{Ref: ref, Role: role}, pub: pub}, nil
}

// Public is the RSA public key.
func (s *HSMSigner) Public() crypto.PublicKey { return s.pub }

// Sign signs a digest in the HSM; the reader is not used, the token has its own randomness.
func (s *HSMSigner) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	req := HSMSignRequest{Ref: s.Key.Ref, Role: s.Key.Role, Digest: digest, Hash: uint(opts.HashFunc())}
	if pss, ok := opts.(*rsa.PSSOptions); ok {
		if pss.SaltLength != rsa.PSSSaltLengthEqualsHash && pss.SaltLength != pss.Hash.Size() {
			return nil, errors.New("the HSM signs PSS only with a salt of the hash's length")
		}
		req.PSS = true
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	r, err := HSMSign.Call(ctx, s.HSM, req)
	return r.Signature, err
}

// NodeSigner is a crypto.Signer over one of the node's own keys in the ledger process: "tls", "syslog" or "ssh". Ref tells keys of one name apart.
type NodeSigner struct {
	Ledger *Client
	Name   string
	Ref    policy.KeyRef
	Pub    crypto.PublicKey
}

// Public is Pub.
func (s *NodeSigner) Public() crypto.PublicKey { return s.Pub }

// Sign asks the ledger; the reader is not used.
func (s *NodeSigner) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	_, pss := opts.(*rsa.PSSOptions)
	r, err := LedgerSign.Call(ctx, s.Ledger, NodeSignRequest{Key: s.Name, Ref: s.Ref, Digest: digest, Hash: uint(opts.HashFunc()), PSS: pss})
	return r.Signature, err
}
