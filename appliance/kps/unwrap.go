package kps

import (
	"context"
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
)

// TransportKey is a decrypted transport key and how it lay in its wrapping.
type TransportKey struct {
	Key  []byte
	Form TransportKeyForm
}

// Wipe overwrites the key.
func (t *TransportKey) Wipe() {
	if t != nil {
		wipe(t.Key)
	}
}

// OpenTransportKey decrypts the transport key of wrapping w and checks
// TransportKeySignature with it. Wrong ciphertext, padding, structure and MAC
// all end in the same Refusal after the same work: where decryption fails, the
// MAC is computed with a random key instead. An error that is no Refusal means
// that the key could not be used at all and the caller may try again later.
// Verify must have succeeded before. The caller wipes the result.
func (p *Protector) OpenTransportKey(ctx context.Context, w *Wrapping, key Decrypter, random io.Reader) (*TransportKey, error) {
	substitute := make([]byte, 32)
	if _, err := io.ReadFull(random, substitute); err != nil {
		return nil, fmt.Errorf("random: %w", err)
	}
	defer wipe(substitute)
	plain, err := key.Decrypt(ctx, w.TransportKey.Value, w.TransportKey.Padding)
	if err != nil && !errors.Is(err, ErrDecryption) {
		return nil, fmt.Errorf("decrypt transport key: %w", err)
	}
	defer wipe(plain)
	tk, form, structure := unpackTransportKey(plain)
	if err != nil || structure != nil {
		tk, form = substitute, FormRaw
	}
	if p.VerifyTransportKey(tk) != nil {
		return nil, errTransportKey
	}
	return &TransportKey{Key: append([]byte(nil), tk...), Form: form}, nil
}

// Egress is what NextVersion needs beside the ingress protector.
type Egress struct {
	Ingress    *TransportKey
	Guardian   *Wrapping     // the service's wrapping, which will sign
	Signer     crypto.Signer // key of Guardian.SigningCertificate
	MaxOffline uint32        // by policy; never taken from the ingress protector
	Random     io.Reader
}

// NextVersion makes the egress protector of a roll [kps.md 9.3]: a fresh
// transport key of the same length and form, encrypted for every wrapping;
// everything else of the wrappings is copied. The caller wipes the key.
func (p *Protector) NextVersion(e Egress) (*Protector, *TransportKey, error) {
	next := &TransportKey{Key: make([]byte, len(e.Ingress.Key)), Form: e.Ingress.Form}
	if _, err := io.ReadFull(e.Random, next.Key); err != nil {
		return nil, nil, fmt.Errorf("random: %w", err)
	}
	q, err := p.rewrap(next, sealing{
		derivation: p.KeyDerivation, guardianID: e.Guardian.ID, maxOffline: e.MaxOffline, signer: e.Signer, random: e.Random,
	}, append([]Wrapping(nil), p.Wrappings...))
	if err != nil {
		next.Wipe()
		return nil, nil, err
	}
	return q, next, nil
}

// rewrap encrypts tk to all of wrappings and seals them.
func (p *Protector) rewrap(tk *TransportKey, s sealing, wrappings []Wrapping) (*Protector, error) {
	plain, err := packTransportKey(tk.Key, tk.Form)
	if err != nil {
		return nil, err
	}
	defer wipe(plain)
	if err := encryptTo(wrappings, s.random, plain); err != nil {
		return nil, recode(CodeInvalidProtector, "", err)
	}
	s.wrappings, s.transportKey, s.foreignChecks = wrappings, tk.Key, carriesParameters(wrappings)
	return s.protector()
}

// SameKey reports whether a and b are the same RSA public key.
func SameKey(a, b crypto.PublicKey) bool { return sameModulus(a, b) }

// CheckRSA returns pub as an RSA key of an accepted size, or the reason why not.
func CheckRSA(pub crypto.PublicKey) (*rsa.PublicKey, error) { return checkRSA(pub) }
