package kps

import (
	"bytes"
	"crypto/hmac"
	"crypto/x509"
	"errors"
	"fmt"
)

// Verify proves everything that needs no secret, in the order of
// [MS-KPS 3.1.5.1.1.3]: GuardianSignature, then every wrapping. What is left
// is VerifyTransportKey.
func (p *Protector) Verify() error {
	if err := p.verifyGraph(); err != nil {
		return recode(CodeInvalidWrapping, "", err)
	}
	if err := p.verifyGuardian(); err != nil {
		return recode(CodeInvalidProtector, "", err)
	}
	for i := range p.Wrappings {
		if err := p.verifyWrapping(&p.Wrappings[i]); err != nil {
			return recode(CodeInvalidWrapping, fmt.Sprintf("wrapping %d", p.Wrappings[i].ID), err)
		}
	}
	return nil
}

// verifyGraph checks ids and parents alone, which costs nothing: unique ids,
// one owner, every parent present and every chain ending at the owner.
func (p *Protector) verifyGraph() error {
	parent := make(map[uint32]uint32, len(p.Wrappings))
	owners := 0
	for i := range p.Wrappings {
		w := &p.Wrappings[i]
		if _, twice := parent[w.ID]; twice {
			return fmt.Errorf("the wrapping id %d is used twice", w.ID)
		}
		parent[w.ID] = w.ParentID
		if w.IsOwner() {
			owners++
		}
	}
	if _, ok := parent[p.GuardianID]; !ok {
		return refuse(CodeInvalidProtector, "GuardianSignature names wrapping %d, which does not exist", p.GuardianID)
	}
	for i := range p.Wrappings {
		w := &p.Wrappings[i]
		if _, ok := parent[w.ParentID]; !ok {
			return fmt.Errorf("wrapping %d names parent %d, which does not exist", w.ID, w.ParentID)
		}
		at := w.ID
		for steps := 0; parent[at] != at; steps++ {
			if steps > len(p.Wrappings) {
				return fmt.Errorf("wrapping %d does not chain up to the owner", w.ID)
			}
			at = parent[at]
		}
	}
	if owners != 1 {
		return fmt.Errorf("the protector has %d owners, exactly one is needed", owners)
	}
	return nil
}

func (p *Protector) verifyGuardian() error {
	w := p.Wrapping(p.GuardianID)
	if err := verifyRSA(w.SigningCertificate.PublicKey, p.GuardianSignature, p.canonical); err != nil {
		return fmt.Errorf("GuardianSignature: %w", err)
	}
	return nil
}

func (p *Protector) verifyWrapping(w *Wrapping) error {
	parent := p.Wrapping(w.ParentID)
	if err := verifyRSA(parent.SigningCertificate.PublicKey, w.SigningCertificateSignature, w.SigningCertificate.Raw); err != nil {
		return fmt.Errorf("SigningCertificateSignature: %w", err)
	}
	if err := verifyRSA(w.SigningCertificate.PublicKey, w.EncryptionCertificateSignature, w.EncryptionCertificate.Raw); err != nil {
		return fmt.Errorf("EncryptionCertificateSignature: %w", err)
	}
	return nil
}

// VerifyTransportKey checks TransportKeySignature under a transport key. The
// comparison takes the same time wherever the tags differ.
func (p *Protector) VerifyTransportKey(tk []byte) error {
	tag := macTransportKey(p.KeyDerivation, tk, p.canonical)
	if !hmac.Equal(tag, p.TransportKeyMAC.Value) {
		return errTransportKey
	}
	return nil
}

// errTransportKey is the one answer to every failure around the secret: wrong
// padding, wrong structure, wrong length, wrong MAC.
var errTransportKey = &Refusal{Code: CodeInvalidProtector, Reason: "TransportKeySignature is not valid under the key that the protector holds for this service"}

// SameKeys checks that q has the wrappings of p: same ids, parents, certificates
// and the same owner. A roll changes nothing of these.
func (p *Protector) SameKeys(q *Protector) error {
	if len(p.Wrappings) != len(q.Wrappings) {
		return errors.New("the number of wrappings differs")
	}
	for i := range p.Wrappings {
		a, b := &p.Wrappings[i], &q.Wrappings[i]
		if a.ID != b.ID || a.ParentID != b.ParentID ||
			!sameCertificate(a.SigningCertificate, b.SigningCertificate) || !sameCertificate(a.EncryptionCertificate, b.EncryptionCertificate) {
			return fmt.Errorf("wrapping %d differs", a.ID)
		}
	}
	return nil
}

func sameCertificate(a, b *x509.Certificate) bool { return bytes.Equal(a.Raw, b.Raw) }
