package kps

import (
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/beevik/etree"
)

// MaxWrappings is how many wrappings a protector may have.
const MaxWrappings = 64

// MaxTransportKey is the longest transport key in bytes; MinTransportKey the shortest.
const (
	MinTransportKey = 16
	MaxTransportKey = 128
)

// Signature is a Signature_T [MS-KPS 2.2.2.15].
type Signature struct {
	Algorithm string
	Value     []byte
	// parameters is the element Parameters in canonical form as it stands under
	// a default namespace KPS; empty when absent. No known signature algorithm
	// needs them, so they are carried and not understood.
	parameters string
}

// Wrapping is one entity's entry in a protector [MS-KPS 2.2.2.4].
type Wrapping struct {
	ID                             uint32
	ParentID                       uint32 // own ID for the owner
	SigningCertificate             *x509.Certificate
	SigningCertificateSignature    Signature // by the parent, over the DER bytes
	EncryptionCertificate          *x509.Certificate
	EncryptionCertificateSignature Signature // by its own signing key, over the DER bytes
	TransportKey                   EncryptedData

	// The certificates' elements as they were received; zero in a wrapping that
	// was made here. A roll copies them: a foreign form of the signatures covers
	// the text.
	signingText, encryptionText certificateText
}

// certificateText is the content of a certificate's element: its text, and
// whether the element has a prefix or declarations, which a copy would lose.
type certificateText struct {
	text string
	bare bool
}

// IsOwner reports whether the wrapping names itself as its parent.
func (w *Wrapping) IsOwner() bool { return w.ID == w.ParentID }

// Protector is a key protector [MS-KPS 2.2.2.3] as it was received or written.
// Nothing in it is proven before Verify and VerifyTransportKey succeeded, and
// MaxOfflineUnwraps is never covered by a signature.
type Protector struct {
	MaxOfflineUnwraps uint32
	Wrappings         []Wrapping
	KeyDerivation     KeyDerivation
	TransportKeyMAC   Signature
	GuardianID        uint32 // GuardianSignature/@WrappingId: who made this version
	GuardianSignature Signature

	raw       []byte
	canonical []byte // Wrappings in exclusive canonical form
}

// Bytes returns the document as received or written. It must not be changed.
func (p *Protector) Bytes() []byte { return p.raw }

// Wrapping returns the wrapping with this id, or nil.
func (p *Protector) Wrapping(id uint32) *Wrapping {
	for i := range p.Wrappings {
		if p.Wrappings[i].ID == id {
			return &p.Wrappings[i]
		}
	}
	return nil
}

// Owner returns the self-parented wrapping; nil only before Verify.
func (p *Protector) Owner() *Wrapping {
	for i := range p.Wrappings {
		if p.Wrappings[i].IsOwner() {
			return &p.Wrappings[i]
		}
	}
	return nil
}

// ParseProtector reads a protector and refuses every departure from the schema
// and the limits of kps.md 9.2. It checks no signature. Errors are Refusals:
// CodeInvalidWrapping when a wrapping is malformed, else CodeInvalidProtector.
// A byte order mark, an XML declaration and UTF-16 are tolerated. raw is kept.
func ParseProtector(raw []byte) (*Protector, error) {
	p, err := parseProtector(raw)
	if err != nil {
		return nil, recode(CodeInvalidProtector, "", err)
	}
	return p, nil
}

func parseProtector(raw []byte) (*Protector, error) {
	root, err := readTree(raw, documentBounds)
	if err != nil {
		return nil, err
	}
	if !is(root, Namespace, "Protector") {
		return nil, errors.New("the root element is not Protector")
	}
	p := &Protector{raw: raw}
	if err := onlyAttributes(root, "MaxOfflineUnwraps"); err != nil {
		return nil, err
	}
	if v, ok := attribute(root, "MaxOfflineUnwraps"); ok {
		if p.MaxOfflineUnwraps, err = number(v); err != nil {
			return nil, fmt.Errorf("MaxOfflineUnwraps: %w", err)
		}
	}
	seq, err := children(root)
	if err != nil {
		return nil, err
	}
	wrappings, err := seq.take(Namespace, "Wrappings")
	if err != nil {
		return nil, err
	}
	if err := p.parseWrappings(wrappings); err != nil {
		return nil, err
	}
	if err := p.parseSignatures(seq); err != nil {
		return nil, err
	}
	p.canonical = canonicalFast(wrappings)
	return p, nil
}

func (p *Protector) parseWrappings(el *etree.Element) error {
	if err := onlyAttributes(el); err != nil {
		return err
	}
	seq, err := children(el)
	if err != nil {
		return err
	}
	if len(seq.kids) == 0 {
		return errors.New("the protector has no wrapping")
	}
	if len(seq.kids) > MaxWrappings {
		return fmt.Errorf("the protector has %d wrappings, at most %d are accepted", len(seq.kids), MaxWrappings)
	}
	p.Wrappings = make([]Wrapping, 0, len(seq.kids))
	for n := 1; len(seq.kids) > 0; n++ {
		kid, err := seq.take(Namespace, "Wrapping")
		if err != nil {
			return err
		}
		w, err := parseWrapping(kid)
		if err != nil {
			return recode(CodeInvalidWrapping, fmt.Sprintf("wrapping number %d", n), err)
		}
		p.Wrappings = append(p.Wrappings, w)
	}
	return nil
}

func parseWrapping(el *etree.Element) (w Wrapping, err error) {
	if err := onlyAttributes(el); err != nil {
		return w, err
	}
	seq, err := children(el)
	if err != nil {
		return w, err
	}
	kids := make([]*etree.Element, 0, 6)
	for _, name := range []string{"Id", "SigningCertificate", "SigningCertificateSignature",
		"EncryptionCertificate", "EncryptionCertificateSignature", "TransportKey"} {
		kid, err := seq.take(Namespace, name)
		if err != nil {
			return w, err
		}
		kids = append(kids, kid)
	}
	if err := seq.end(); err != nil {
		return w, err
	}
	id, err := text(kids[0])
	if err != nil {
		return w, err
	}
	if w.ID, err = number(id); err != nil {
		return w, fmt.Errorf("element Id: %w", err)
	}
	if w.SigningCertificate, w.signingText, err = receivedCertificate(kids[1]); err != nil {
		return w, err
	}
	parent, ok := attribute(kids[2], "ParentWrappingId")
	if !ok {
		return w, errors.New("element SigningCertificateSignature lacks ParentWrappingId")
	}
	if w.ParentID, err = number(parent); err != nil {
		return w, fmt.Errorf("ParentWrappingId: %w", err)
	}
	if w.SigningCertificateSignature, err = parseHolder(kids[2], "ParentWrappingId"); err != nil {
		return w, err
	}
	if w.EncryptionCertificate, w.encryptionText, err = receivedCertificate(kids[3]); err != nil {
		return w, err
	}
	if w.EncryptionCertificateSignature, err = parseHolder(kids[4]); err != nil {
		return w, err
	}
	w.TransportKey, err = parseTransportKey(kids[5])
	return w, err
}

func parseTransportKey(el *etree.Element) (d EncryptedData, err error) {
	if err := onlyAttributes(el); err != nil {
		return d, err
	}
	seq, err := children(el)
	if err != nil {
		return d, err
	}
	data, err := seq.take(Namespace, "EncryptedData")
	if err != nil {
		return d, err
	}
	if err := seq.end(); err != nil {
		return d, err
	}
	uri, params, value, err := algorithmAndValue(data, "CipherValue")
	if err != nil {
		return d, err
	}
	padding, err := oaepFromXML(uri, params)
	return EncryptedData{Algorithm: uri, Padding: padding, Value: value}, err
}

func (p *Protector) parseSignatures(seq *sequence) error {
	tks, err := seq.take(Namespace, "TransportKeySignature")
	if err != nil {
		return err
	}
	guardian, err := seq.take(Namespace, "GuardianSignature")
	if err != nil {
		return err
	}
	if err := seq.end(); err != nil {
		return err
	}
	if err := onlyAttributes(tks); err != nil {
		return err
	}
	inner, err := children(tks)
	if err != nil {
		return err
	}
	kdm, err := inner.take(Namespace, "KeyDerivationMethod")
	if err != nil {
		return err
	}
	if p.KeyDerivation, err = keyDerivationFromXML(kdm); err != nil {
		return err
	}
	mac, err := inner.take(Namespace, "Signature")
	if err != nil {
		return err
	}
	if p.TransportKeyMAC, err = parseSignature(mac); err != nil {
		return err
	}
	if p.TransportKeyMAC.Algorithm != HMACSHA256 {
		return unknownAlgorithm(CodeInvalidProtector, "TransportKeySignature", p.TransportKeyMAC.Algorithm)
	}
	if err := inner.end(); err != nil {
		return err
	}
	id, ok := attribute(guardian, "WrappingId")
	if !ok {
		return errors.New("GuardianSignature lacks WrappingId")
	}
	if p.GuardianID, err = number(id); err != nil {
		return fmt.Errorf("WrappingId: %w", err)
	}
	p.GuardianSignature, err = parseHolder(guardian, "WrappingId")
	return err
}

// parseHolder reads an element whose only child is a Signature.
func parseHolder(el *etree.Element, attributes ...string) (s Signature, err error) {
	if err := onlyAttributes(el, attributes...); err != nil {
		return s, err
	}
	seq, err := children(el)
	if err != nil {
		return s, err
	}
	inner, err := seq.take(Namespace, "Signature")
	if err != nil {
		return s, err
	}
	if err := seq.end(); err != nil {
		return s, err
	}
	if s, err = parseSignature(inner); err != nil {
		return s, err
	}
	return s, knownSignature(el.Tag, s)
}

func knownSignature(where string, s Signature) error {
	if _, ok := rsaSignatures[s.Algorithm]; !ok {
		return unknownAlgorithm(CodeInvalidProtector, where, s.Algorithm)
	}
	return nil
}

// parseSignature reads a Signature_T, whatever the element is called.
func parseSignature(el *etree.Element) (s Signature, err error) {
	uri, params, value, err := algorithmAndValue(el, "SignatureValue")
	if err != nil {
		return s, err
	}
	s = Signature{Algorithm: uri, Value: value}
	if params != nil {
		if s.parameters, err = carried(params); err != nil {
			return s, err
		}
	}
	return s, nil
}

// carried returns Parameters in the form in which they stand in a canonical
// document whose default namespace is KPS.
func carried(params *etree.Element) (string, error) {
	c, err := canonical(params)
	if err != nil {
		return "", err
	}
	if params.Space == "" {
		return strings.Replace(string(c), ` xmlns="`+Namespace+`"`, "", 1), nil
	}
	return string(c), nil
}

// algorithmAndValue reads the shape shared by Signature_T and EncryptedData_T.
func algorithmAndValue(el *etree.Element, valueName string) (uri string, params *etree.Element, value []byte, err error) {
	if err := onlyAttributes(el, "Algorithm"); err != nil {
		return "", nil, nil, err
	}
	uri, ok := attribute(el, "Algorithm")
	if !ok || uri == "" {
		return "", nil, nil, fmt.Errorf("%s lacks Algorithm", el.Tag)
	}
	seq, err := children(el)
	if err != nil {
		return "", nil, nil, err
	}
	params = seq.optional(Namespace, "Parameters")
	v, err := seq.take(Namespace, valueName)
	if err != nil {
		return "", nil, nil, err
	}
	if err := seq.end(); err != nil {
		return "", nil, nil, err
	}
	if value, err = binary64(v); err != nil {
		return "", nil, nil, err
	}
	return uri, params, value, nil
}

// method reads a KeyDerivationMethod_T.
func method(el *etree.Element) (uri string, params *etree.Element, err error) {
	if err := onlyAttributes(el, "Algorithm"); err != nil {
		return "", nil, err
	}
	uri, _ = attribute(el, "Algorithm")
	seq, err := children(el)
	if err != nil {
		return "", nil, err
	}
	params = seq.optional(Namespace, "Parameters")
	return uri, params, seq.end()
}

// binary64 reads an xs:base64Binary; white space inside is legal, everything
// else outside the alphabet and non-zero trailing bits are not.
func binary64(el *etree.Element) ([]byte, error) {
	t, err := text(el)
	if err != nil {
		return nil, err
	}
	out, err := decodeBase64(t)
	if err != nil {
		return nil, fmt.Errorf("%s is not base64", el.Tag)
	}
	return out, nil
}

var strictBase64 = base64.StdEncoding.Strict()

func decodeBase64(t string) ([]byte, error) {
	if strings.IndexByte(t, ' ') >= 0 || strings.IndexByte(t, '\t') >= 0 || strings.IndexByte(t, '\r') >= 0 || strings.IndexByte(t, '\n') >= 0 {
		t = strings.Map(func(r rune) rune {
			if r == ' ' || r == '\t' || r == '\r' || r == '\n' {
				return -1
			}
			return r
		}, t)
	}
	if t == "" {
		return nil, errors.New("empty")
	}
	return strictBase64.DecodeString(t)
}

func parseCertificate(el *etree.Element) (*x509.Certificate, error) {
	der, err := binary64(el)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("%s is not an X.509 certificate", el.Tag)
	}
	if _, err := checkRSA(cert.PublicKey); err != nil {
		return nil, fmt.Errorf("%s: %w", el.Tag, err)
	}
	return cert, nil
}

// receivedCertificate is parseCertificate that keeps how it was written.
func receivedCertificate(el *etree.Element) (*x509.Certificate, certificateText, error) {
	cert, err := parseCertificate(el)
	if err != nil {
		return nil, certificateText{}, err
	}
	return cert, certificateText{text: el.Text(), bare: el.Space == "" && len(el.Attr) == 0}, nil
}

// number reads an xs:unsignedInt; surrounding white space collapses.
func number(s string) (uint32, error) {
	s = strings.Trim(s, " \t\r\n")
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "+"), 10, 32)
	if err != nil || len(s) > 20 {
		return 0, errors.New("not a number of 32 bits")
	}
	return uint32(n), nil
}
