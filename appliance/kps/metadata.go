package kps

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/beevik/etree"
)

// MaxOtherSigningCertificates bounds the list in guardian metadata.
const MaxOtherSigningCertificates = 64

// Guardian is what an owner needs of a guardian to grant it a protector.
type Guardian struct {
	SigningCertificate    *x509.Certificate
	EncryptionCertificate *x509.Certificate
	// EncryptionCertificateSignature is by the guardian's own signing key; an
	// owner can only copy it.
	EncryptionCertificateSignature Signature
}

// DocumentSignature is the state of ds:Signature in a metadata document.
type DocumentSignature int

// A signature that is present, supported and wrong makes ParseMetadata fail.
const (
	SignatureAbsent DocumentSignature = iota
	SignatureUnsupported
	SignatureValid // under the certificate embedded in it, which is not thereby trusted
)

// String names the state.
func (d DocumentSignature) String() string {
	return [...]string{"absent", "unsupported", "valid"}[d]
}

// Metadata is a guardian metadata document [MS-KPS 2.2.1.2, 6.4].
type Metadata struct {
	Guardian
	Version                         uint32
	GuardianVersion                 uint32
	SigningCertificateSelfSignature Signature
	OtherSigningCertificates        []*x509.Certificate
	Signature                       DocumentSignature
	SignatureReason                 string            // why it is unsupported
	CommunicationsCertificate       *x509.Certificate // from ds:Signature; nil when absent
}

// MetadataSpec is the content of a document to be made. Version numbers are 1:
// their values are not documented.
type MetadataSpec struct {
	SigningCertificate    *x509.Certificate // primary
	EncryptionCertificate *x509.Certificate // primary
	Others                []*x509.Certificate
	Signer                crypto.Signer // key of SigningCertificate
	// The communications certificate signs the document; both nil for an
	// owner's own export, which then has no ds:Signature.
	CommunicationsCertificate *x509.Certificate
	CommunicationsSigner      crypto.Signer
	Random                    io.Reader
}

// MakeMetadata writes a metadata document in canonical form. Errors are
// Refusals for missing primary certificates, in the order of [MS-KPS
// 3.1.5.1.2.3], else failures of a signer.
func MakeMetadata(s MetadataSpec) ([]byte, error) {
	if s.EncryptionCertificate == nil {
		return nil, &Refusal{Code: CodeNoPrimaryEncryption, Reason: string(CodeNoPrimaryEncryption)}
	}
	if s.SigningCertificate == nil {
		return nil, &Refusal{Code: CodeNoPrimarySigning, Reason: string(CodeNoPrimarySigning)}
	}
	encryption, err := signRSA(s.Signer, s.Random, s.EncryptionCertificate.Raw)
	if err != nil {
		return nil, fmt.Errorf("encryption certificate signature: %w", err)
	}
	self, err := signRSA(s.Signer, s.Random, s.SigningCertificate.Raw)
	if err != nil {
		return nil, fmt.Errorf("signing certificate self signature: %w", err)
	}
	var w bytes.Buffer
	w.WriteString(`<Metadata xmlns="` + Namespace + `" Version="1"><GuardianInformation><Version>1</Version>`)
	writeBase64(&w, "EncryptionCertificate", s.EncryptionCertificate.Raw)
	writeBase64(&w, "SigningCertificate", s.SigningCertificate.Raw)
	encryption.write(&w, "EncryptionCertificateSignature")
	self.write(&w, "SigningCertificateSelfSignature")
	if len(s.Others) > 0 {
		w.WriteString("<OtherSigningCertificates>")
		for _, c := range s.Others {
			writeBase64(&w, "Certificate", c.Raw)
		}
		w.WriteString("</OtherSigningCertificates>")
	}
	w.WriteString("</GuardianInformation>")
	const end = "</Metadata>"
	if s.CommunicationsSigner != nil {
		digest := crypto.SHA256.New()
		digest.Write(w.Bytes())
		digest.Write([]byte(end))
		sig, err := makeEnveloped(digest.Sum(nil), s.CommunicationsCertificate, s.CommunicationsSigner, s.Random)
		if err != nil {
			return nil, fmt.Errorf("document signature: %w", err)
		}
		w.Write(sig)
	}
	w.WriteString(end)
	return append([]byte(xmlDeclaration), w.Bytes()...), nil
}

// ParseMetadata reads a metadata document or a bare GuardianInformation, and
// proves both inner signatures and, where it can, ds:Signature. Whether the
// certificates are trusted or expired is left to Import.
func ParseMetadata(raw []byte) (*Metadata, error) {
	m, err := parseMetadata(raw)
	if err != nil {
		return nil, fmt.Errorf("guardian metadata: %w", err)
	}
	return m, nil
}

func parseMetadata(raw []byte) (*Metadata, error) {
	root, err := readTree(raw, documentBounds)
	if err != nil {
		return nil, err
	}
	m := &Metadata{}
	if is(root, Namespace, "GuardianInformation") {
		return m, m.parseInformation(root)
	}
	if !is(root, Namespace, "Metadata") {
		return nil, errors.New("the root element is neither Metadata nor GuardianInformation")
	}
	v, ok := attribute(root, "Version")
	if !ok {
		return nil, errors.New("the attribute Version is missing")
	}
	if m.Version, err = number(v); err != nil {
		return nil, fmt.Errorf("the attribute Version: %w", err)
	}
	seq, err := children(root)
	if err != nil {
		return nil, err
	}
	info, err := seq.take(Namespace, "GuardianInformation")
	if err != nil {
		return nil, err
	}
	if err := m.parseInformation(info); err != nil {
		return nil, err
	}
	if sig := seq.optional(dsigNamespace, "Signature"); sig != nil {
		if err := m.checkDocument(root, sig); err != nil {
			return nil, err
		}
	}
	// Any further elements may follow, but not a second signature.
	for _, kid := range seq.kids {
		if is(kid, dsigNamespace, "Signature") {
			return nil, errors.New("ds:Signature is not where it belongs")
		}
	}
	return m, nil
}

func (m *Metadata) parseInformation(el *etree.Element) error {
	if err := onlyAttributes(el); err != nil {
		return err
	}
	seq, err := children(el)
	if err != nil {
		return err
	}
	kids := make([]*etree.Element, 0, 5)
	for _, name := range []string{"Version", "EncryptionCertificate", "SigningCertificate", "EncryptionCertificateSignature", "SigningCertificateSelfSignature"} {
		kid, err := seq.take(Namespace, name)
		if err != nil {
			return err
		}
		kids = append(kids, kid)
	}
	others := seq.optional(Namespace, "OtherSigningCertificates")
	if err := seq.end(); err != nil {
		return err
	}
	version, err := text(kids[0])
	if err != nil {
		return err
	}
	if m.GuardianVersion, err = number(version); err != nil {
		return fmt.Errorf("guardian version: %w", err)
	}
	if m.EncryptionCertificate, err = parseCertificate(kids[1]); err != nil {
		return err
	}
	if m.SigningCertificate, err = parseCertificate(kids[2]); err != nil {
		return err
	}
	if m.EncryptionCertificateSignature, err = parseSignature(kids[3]); err != nil {
		return err
	}
	if m.SigningCertificateSelfSignature, err = parseSignature(kids[4]); err != nil {
		return err
	}
	if err := m.parseOthers(others); err != nil {
		return err
	}
	return m.verifyInformation()
}

func (m *Metadata) parseOthers(el *etree.Element) error {
	if el == nil {
		return nil
	}
	seq, err := children(el)
	if err != nil {
		return err
	}
	if len(seq.kids) > MaxOtherSigningCertificates {
		return fmt.Errorf("more than %d other signing certificates", MaxOtherSigningCertificates)
	}
	for len(seq.kids) > 0 {
		kid, err := seq.take(Namespace, "Certificate")
		if err != nil {
			return err
		}
		cert, err := parseCertificate(kid)
		if err != nil {
			return err
		}
		m.OtherSigningCertificates = append(m.OtherSigningCertificates, cert)
	}
	return nil
}

func (m *Metadata) verifyInformation() error {
	key := m.SigningCertificate.PublicKey
	if err := verifyRSA(key, m.EncryptionCertificateSignature, m.EncryptionCertificate.Raw); err != nil {
		return fmt.Errorf("EncryptionCertificateSignature: %w", err)
	}
	if err := verifyRSA(key, m.SigningCertificateSelfSignature, m.SigningCertificate.Raw); err != nil {
		return fmt.Errorf("SigningCertificateSelfSignature: %w", err)
	}
	return nil
}

// ImportOptions are the two switches of Import-HgsGuardian and what they relax.
type ImportOptions struct {
	Roots              *x509.CertPool // nil trusts nothing
	AllowUntrustedRoot bool
	AllowExpired       bool
	Now                time.Time
	// Communications, when set, is the certificate that must have signed the document.
	Communications *x509.Certificate
}

// Import decides whether an owner may use parsed metadata. The warnings are
// lines for a person.
func (m *Metadata) Import(o ImportOptions) (*Guardian, []string, error) {
	var warnings []string
	switch {
	case o.Communications != nil && m.Signature != SignatureValid:
		return nil, nil, errors.New("guardian metadata: the document is not signed by the communications certificate that was named; fetch it again")
	case o.Communications != nil && !sameCertificate(o.Communications, m.CommunicationsCertificate):
		return nil, nil, errors.New("guardian metadata: the document is signed by another communications certificate; compare its fingerprint on the service's console")
	case m.Signature == SignatureAbsent:
		warnings = append(warnings, "the document is not signed; only its certificates speak for it")
	case m.Signature == SignatureUnsupported:
		warnings = append(warnings, "the document's signature was not checked: "+m.SignatureReason)
	}
	for _, c := range []struct {
		name string
		cert *x509.Certificate
	}{{"signing certificate", m.SigningCertificate}, {"encryption certificate", m.EncryptionCertificate}} {
		w, err := checkImported(c.name, c.cert, o)
		if err != nil {
			return nil, nil, err
		}
		warnings = append(warnings, w...)
	}
	g := m.Guardian
	return &g, warnings, nil
}

func checkImported(name string, cert *x509.Certificate, o ImportOptions) (warnings []string, err error) {
	at := o.Now
	if o.Now.Before(cert.NotBefore) || o.Now.After(cert.NotAfter) {
		if !o.AllowExpired {
			return nil, fmt.Errorf("guardian metadata: the %s is valid from %s to %s; repeat with allow-expired if you accept that",
				name, cert.NotBefore.UTC().Format(time.DateOnly), cert.NotAfter.UTC().Format(time.DateOnly))
		}
		warnings = append(warnings, "the "+name+" is outside its validity period")
		at = cert.NotBefore
	}
	roots := o.Roots
	if roots == nil {
		roots = x509.NewCertPool()
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		if !o.AllowUntrustedRoot {
			return nil, fmt.Errorf("guardian metadata: the %s has no trusted root; compare its fingerprint with the service's console and repeat with allow-untrusted-root", name)
		}
		warnings = append(warnings, "the "+name+" has no trusted root; compare its fingerprint with the service's console")
	}
	return warnings, nil
}
