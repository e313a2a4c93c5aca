package kps

import (
	"bytes"
	"crypto"
	"crypto/hmac"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
)

// Verify proves everything that needs no secret, in the order of
// [MS-KPS 3.1.5.1.1.3]: GuardianSignature, then every wrapping. What is left
// is VerifyTransportKey.
func (p *Protector) Verify() error {
	_, err := p.verify(formsDER)
	return err
}

// VerifyForeign is Verify that also accepts what a foreign writer's certificate
// signatures might cover instead of the certificate's DER bytes, which the
// specification leaves open [kps.md 14.4]. It gives the names of those forms
// that were needed. All forms say the same thing of the same certificate.
func (p *Protector) VerifyForeign() ([]string, error) { return p.verify(formsForeign) }

func (p *Protector) verify(forms []certificateForm) ([]string, error) {
	if err := p.verifyGraph(); err != nil {
		return nil, recode(CodeInvalidWrapping, "", err)
	}
	if err := p.verifyGuardian(); err != nil {
		return nil, recode(CodeInvalidProtector, "", err)
	}
	var used []string
	for i := range p.Wrappings {
		foreign, err := p.verifyWrapping(&p.Wrappings[i], forms)
		if err != nil {
			return nil, recode(CodeInvalidWrapping, fmt.Sprintf("wrapping %d", p.Wrappings[i].ID), err)
		}
		for _, name := range foreign {
			if !slices.Contains(used, name) {
				used = append(used, name)
			}
		}
	}
	return used, nil
}

// certificateForm is what a signature over a certificate may cover. bytes gives
// nil where the form can't be known.
type certificateForm struct {
	name  string // empty: ours
	bytes func(name string, der []byte, received certificateText) []byte
}

var (
	derForm      = certificateForm{"", func(_ string, der []byte, _ certificateText) []byte { return der }}
	formsDER     = []certificateForm{derForm}
	formsForeign = []certificateForm{derForm, {"base64", base64Form}, {"element", elementForm}}
)

// base64Form is the text of the element.
func base64Form(_ string, _ []byte, received certificateText) []byte { return []byte(received.text) }

// elementForm is the exclusive canonical form of the element. One with a prefix
// is left out: the next version of the protector would write it without.
func elementForm(name string, _ []byte, received certificateText) []byte {
	if !received.bare {
		return nil
	}
	return []byte("<" + name + ` xmlns="` + Namespace + `">` + escapeText.Replace(received.text) + "</" + name + ">")
}

// verifyCertificate checks a signature over a certificate in the first form
// that fits and gives that form's name.
func verifyCertificate(key crypto.PublicKey, sig Signature, name string, der []byte, received certificateText, forms []certificateForm) (string, error) {
	var first error
	for _, form := range forms {
		message := form.bytes(name, der, received)
		if len(message) == 0 {
			continue
		}
		err := verifyRSA(key, sig, message)
		if err == nil {
			return form.name, nil
		}
		if first == nil {
			first = err
		}
	}
	return "", first
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

func (p *Protector) verifyWrapping(w *Wrapping, forms []certificateForm) (foreign []string, err error) {
	parent := p.Wrapping(w.ParentID)
	a, err := verifyCertificate(parent.SigningCertificate.PublicKey, w.SigningCertificateSignature, "SigningCertificate", w.SigningCertificate.Raw, w.signingText, forms)
	if err != nil {
		return nil, fmt.Errorf("SigningCertificateSignature: %w", err)
	}
	b, err := verifyCertificate(w.SigningCertificate.PublicKey, w.EncryptionCertificateSignature, "EncryptionCertificate", w.EncryptionCertificate.Raw, w.encryptionText, forms)
	if err != nil {
		return nil, fmt.Errorf("EncryptionCertificateSignature: %w", err)
	}
	for _, name := range []string{a, b} {
		if name != "" {
			foreign = append(foreign, name)
		}
	}
	return foreign, nil
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
