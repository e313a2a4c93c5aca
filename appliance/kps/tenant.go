package kps

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
)

// NewTransportKeySize is the length in bytes of the transport keys made here.
const NewTransportKeySize = 32

// Owner is who creates and edits protectors. Decrypter may be nil where only
// New is called.
type Owner struct {
	SigningCertificate    *x509.Certificate
	EncryptionCertificate *x509.Certificate
	Signer                crypto.Signer // key of SigningCertificate
	Decrypter             Decrypter     // key of EncryptionCertificate
}

// New makes a protector for an owner and guardians [kps.md 11] and returns its
// transport key, which the caller wipes. The owner is wrapping 1, the guardians
// follow in order.
func New(owner Owner, guardians []Guardian, random io.Reader) (*Protector, []byte, error) {
	tk := &TransportKey{Key: make([]byte, NewTransportKeySize)}
	if _, err := io.ReadFull(random, tk.Key); err != nil {
		return nil, nil, fmt.Errorf("random: %w", err)
	}
	p, err := newProtector(owner, guardians, tk, random)
	if err != nil {
		tk.Wipe()
		return nil, nil, fmt.Errorf("new protector: %w", err)
	}
	return p, tk.Key, nil
}

func newProtector(owner Owner, guardians []Guardian, tk *TransportKey, random io.Reader) (*Protector, error) {
	if len(guardians)+1 > MaxWrappings {
		return nil, fmt.Errorf("at most %d guardians fit", MaxWrappings-1)
	}
	self, err := owner.wrapping(random)
	if err != nil {
		return nil, err
	}
	wrappings := []Wrapping{self}
	for _, g := range guardians {
		w, err := owner.grant(uint32(len(wrappings)+1), self.ID, g, random)
		if err != nil {
			return nil, err
		}
		wrappings = append(wrappings, w)
	}
	return (*Protector)(nil).rewrap(tk, sealing{derivation: defaultKeyDerivation(HMACSHA256), guardianID: self.ID, signer: owner.Signer, random: random}, wrappings)
}

func newEncryptedData() EncryptedData {
	return EncryptedData{Algorithm: RSAOAEP, Padding: OAEP{Hash: crypto.SHA256, MGF: crypto.SHA256}}
}

func (o Owner) wrapping(random io.Reader) (w Wrapping, err error) {
	w = Wrapping{ID: 1, ParentID: 1, SigningCertificate: o.SigningCertificate, EncryptionCertificate: o.EncryptionCertificate, TransportKey: newEncryptedData()}
	if !sameModulus(o.SigningCertificate.PublicKey, o.Signer.Public()) {
		return w, errors.New("the owner's signing key does not belong to the signing certificate")
	}
	if w.SigningCertificateSignature, err = signRSA(o.Signer, random, o.SigningCertificate.Raw); err != nil {
		return w, err
	}
	w.EncryptionCertificateSignature, err = signRSA(o.Signer, random, o.EncryptionCertificate.Raw)
	return w, err
}

func (o Owner) grant(id, parent uint32, g Guardian, random io.Reader) (w Wrapping, err error) {
	if err := verifyRSA(g.SigningCertificate.PublicKey, g.EncryptionCertificateSignature, g.EncryptionCertificate.Raw); err != nil {
		return w, fmt.Errorf("guardian: EncryptionCertificateSignature: %w", err)
	}
	w = Wrapping{ID: id, ParentID: parent, SigningCertificate: g.SigningCertificate, EncryptionCertificate: g.EncryptionCertificate,
		EncryptionCertificateSignature: g.EncryptionCertificateSignature, TransportKey: newEncryptedData()}
	w.SigningCertificateSignature, err = signRSA(o.Signer, random, g.SigningCertificate.Raw)
	return w, err
}

// Open proves a protector and returns its transport key to its owner, who wipes it.
func (p *Protector) Open(ctx context.Context, owner Owner, random io.Reader) ([]byte, error) {
	tk, err := p.open(ctx, owner, random)
	if err != nil {
		return nil, err
	}
	return tk.Key, nil
}

func (p *Protector) open(ctx context.Context, owner Owner, random io.Reader) (*TransportKey, error) {
	if err := p.Verify(); err != nil {
		return nil, err
	}
	w := p.Owner()
	if !sameCertificate(w.SigningCertificate, owner.SigningCertificate) || !sameModulus(w.EncryptionCertificate.PublicKey, owner.EncryptionCertificate.PublicKey) {
		return nil, errors.New("the protector has another owner")
	}
	return p.OpenTransportKey(ctx, w, owner.Decrypter, random)
}

// Grant returns the protector with one more guardian, under the same transport
// key. It needs both keys of the owner.
func (p *Protector) Grant(ctx context.Context, owner Owner, g Guardian, random io.Reader) (*Protector, error) {
	tk, err := p.open(ctx, owner, random)
	if err != nil {
		return nil, fmt.Errorf("grant: %w", err)
	}
	defer tk.Wipe()
	if len(p.Wrappings) >= MaxWrappings {
		return nil, fmt.Errorf("grant: the protector is full with %d wrappings", MaxWrappings)
	}
	var highest uint32
	for i := range p.Wrappings {
		w := &p.Wrappings[i]
		if sameModulus(w.EncryptionCertificate.PublicKey, g.EncryptionCertificate.PublicKey) && sameModulus(w.SigningCertificate.PublicKey, g.SigningCertificate.PublicKey) {
			return nil, fmt.Errorf("grant: the guardian already has wrapping %d", w.ID)
		}
		highest = max(highest, w.ID)
	}
	if highest == math.MaxUint32 {
		return nil, errors.New("grant: no wrapping id is left")
	}
	ownerID := p.Owner().ID
	w, err := owner.grant(highest+1, ownerID, g, random)
	if err != nil {
		return nil, fmt.Errorf("grant: %w", err)
	}
	return p.reseal(tk, owner, append(append([]Wrapping(nil), p.Wrappings...), w), random)
}

// Revoke returns the protector without wrapping id and all below it. The
// transport key stays the same, so who opened the protector before still knows
// it until the next roll.
func (p *Protector) Revoke(ctx context.Context, owner Owner, id uint32, random io.Reader) (*Protector, error) {
	tk, err := p.open(ctx, owner, random)
	if err != nil {
		return nil, fmt.Errorf("revoke: %w", err)
	}
	defer tk.Wipe()
	gone := p.Wrapping(id)
	switch {
	case gone == nil:
		return nil, fmt.Errorf("revoke: there is no wrapping %d", id)
	case gone.IsOwner():
		return nil, errors.New("revoke: the owner cannot be removed")
	}
	var kept []Wrapping
	for i := range p.Wrappings {
		if !p.below(p.Wrappings[i].ID, id) {
			kept = append(kept, p.Wrappings[i])
		}
	}
	return p.reseal(tk, owner, kept, random)
}

func (p *Protector) reseal(tk *TransportKey, owner Owner, wrappings []Wrapping, random io.Reader) (*Protector, error) {
	return p.rewrap(tk, sealing{derivation: p.KeyDerivation, guardianID: p.Owner().ID, maxOffline: p.MaxOfflineUnwraps, signer: owner.Signer, random: random}, wrappings)
}

// below reports whether the chain of wrapping id passes through ancestor. The
// protector must have been verified.
func (p *Protector) below(id, ancestor uint32) bool {
	for {
		if id == ancestor {
			return true
		}
		w := p.Wrapping(id)
		if w.IsOwner() {
			return false
		}
		id = w.ParentID
	}
}

// Summary describes a protector for a person or for --json, without secrets.
type Summary struct {
	SHA256            string           `json:"sha256"` // of the document
	Bytes             int              `json:"bytes"`
	MaxOfflineUnwraps uint32           `json:"maxOfflineUnwraps"`
	SignedBy          uint32           `json:"signedBy"`
	Wrappings         []WrappingReport `json:"wrappings"`
	Problem           string           `json:"problem,omitempty"` // the first one that Verify found
}

// WrappingReport is one wrapping of a Summary. Keys are the lower-case hex
// SHA-256 of the SubjectPublicKeyInfo.
type WrappingReport struct {
	ID            uint32 `json:"id"`
	Parent        uint32 `json:"parent"`
	Owner         bool   `json:"owner"`
	Signing       string `json:"signing"`
	SigningKey    string `json:"signingKey"`
	Encryption    string `json:"encryption"`
	EncryptionKey string `json:"encryptionKey"`
	Algorithm     string `json:"algorithm"`
}

// Summary reports what the protector says and whether Verify accepts it.
func (p *Protector) Summary() Summary {
	sum := sha256.Sum256(p.raw)
	s := Summary{SHA256: hex.EncodeToString(sum[:]), Bytes: len(p.raw), MaxOfflineUnwraps: p.MaxOfflineUnwraps, SignedBy: p.GuardianID}
	for i := range p.Wrappings {
		w := &p.Wrappings[i]
		s.Wrappings = append(s.Wrappings, WrappingReport{ID: w.ID, Parent: w.ParentID, Owner: w.IsOwner(),
			Signing: w.SigningCertificate.Subject.String(), SigningKey: KeyID(w.SigningCertificate),
			Encryption: w.EncryptionCertificate.Subject.String(), EncryptionKey: KeyID(w.EncryptionCertificate), Algorithm: w.TransportKey.Algorithm})
	}
	if err := p.Verify(); err != nil {
		s.Problem = err.Error()
	}
	return s
}

// KeyID is the lower-case hex SHA-256 of a certificate's SubjectPublicKeyInfo:
// the name of a key, whatever certificate it stands in.
func KeyID(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}
