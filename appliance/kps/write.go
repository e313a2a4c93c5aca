package kps

import (
	"bytes"
	"crypto"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

const xmlDeclaration = `<?xml version="1.0" encoding="utf-8"?>`

// escapeAttribute and escapeText are the escapes of canonical XML.
var (
	escapeAttribute = strings.NewReplacer("&", "&amp;", "<", "&lt;", `"`, "&quot;", "\t", "&#x9;", "\n", "&#xA;", "\r", "&#xD;")
	escapeText      = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "\r", "&#xD;")
)

func writeBase64(w *bytes.Buffer, name string, value []byte) {
	w.WriteString("<" + name + ">")
	n := base64.StdEncoding.EncodedLen(len(value))
	w.Grow(n + len(name) + 3)
	w.Write(base64.StdEncoding.AppendEncode(w.AvailableBuffer(), value))
	w.WriteString("</" + name + ">")
}

// writeCertificate writes a certificate as it was received, else as base64.
func writeCertificate(w *bytes.Buffer, name string, der []byte, received certificateText) {
	if received.text == "" {
		writeBase64(w, name, der)
		return
	}
	w.WriteString("<" + name + ">")
	text := received.text // base64 and white space
	if strings.IndexByte(text, '\r') >= 0 {
		text = escapeText.Replace(text)
	}
	w.WriteString(text)
	w.WriteString("</" + name + ">")
}

func (s Signature) write(w *bytes.Buffer, name string) {
	w.WriteString("<" + name + ` Algorithm="`)
	w.WriteString(escapeAttribute.Replace(s.Algorithm))
	w.WriteString(`">`)
	w.WriteString(s.parameters)
	writeBase64(w, "SignatureValue", s.Value)
	w.WriteString("</" + name + ">")
}

func (x *Wrapping) write(w *bytes.Buffer) {
	w.WriteString("<Wrapping><Id>")
	w.WriteString(strconv.FormatUint(uint64(x.ID), 10))
	w.WriteString("</Id>")
	writeCertificate(w, "SigningCertificate", x.SigningCertificate.Raw, x.signingText)
	w.WriteString(`<SigningCertificateSignature ParentWrappingId="`)
	w.WriteString(strconv.FormatUint(uint64(x.ParentID), 10))
	w.WriteString(`">`)
	x.SigningCertificateSignature.write(w, "Signature")
	w.WriteString("</SigningCertificateSignature>")
	writeCertificate(w, "EncryptionCertificate", x.EncryptionCertificate.Raw, x.encryptionText)
	w.WriteString("<EncryptionCertificateSignature>")
	x.EncryptionCertificateSignature.write(w, "Signature")
	w.WriteString(`</EncryptionCertificateSignature><TransportKey><EncryptedData Algorithm="`)
	w.WriteString(x.TransportKey.Algorithm)
	w.WriteString(`">`)
	writeOAEP(w, x.TransportKey)
	writeBase64(w, "CipherValue", x.TransportKey.Value)
	w.WriteString("</EncryptedData></TransportKey></Wrapping>")
}

// usualWrapping is what one takes with keys of 2048 bits, in bytes.
const usualWrapping = 4 << 10

const (
	wrappingsStart     = `<Wrappings xmlns="` + Namespace + `">`
	wrappingsStartBare = `<Wrappings>`
	wrappingsEnd       = `</Wrappings>`
)

// sealing is what turns wrappings into a protector of a new version.
type sealing struct {
	wrappings     []Wrapping // transport keys already encrypted
	transportKey  []byte
	derivation    KeyDerivation
	guardianID    uint32
	maxOffline    uint32
	signer        crypto.Signer // key of the signing certificate of guardianID
	random        io.Reader
	foreignChecks bool // wrappings carry Parameters of other writers
}

// protector writes the document in canonical form, so that the bytes signed are
// a substring of it apart from the namespace declaration of Wrappings.
func (s sealing) protector() (*Protector, error) {
	p := &Protector{
		MaxOfflineUnwraps: s.maxOffline,
		Wrappings:         s.wrappings,
		KeyDerivation:     s.derivation,
		GuardianID:        s.guardianID,
	}
	by := p.Wrapping(s.guardianID)
	if by == nil || !sameModulus(by.SigningCertificate.PublicKey, s.signer.Public()) {
		return nil, errors.New("the signing key does not belong to the wrapping that is to sign")
	}
	var body bytes.Buffer
	body.Grow(len(p.Wrappings) * usualWrapping)
	body.WriteString(wrappingsStart)
	for i := range p.Wrappings {
		p.Wrappings[i].write(&body)
	}
	body.WriteString(wrappingsEnd)
	p.canonical = body.Bytes()
	if s.foreignChecks {
		if err := p.recanonicalise(); err != nil {
			return nil, err
		}
	}
	p.TransportKeyMAC = Signature{Algorithm: HMACSHA256, Value: macTransportKey(p.KeyDerivation, s.transportKey, p.canonical)}
	var err error
	if p.GuardianSignature, err = signRSA(s.signer, s.random, p.canonical); err != nil {
		return nil, err
	}
	p.raw = p.document(body.Bytes()[len(wrappingsStart):])
	return p, nil
}

// document writes the whole file around the content of Wrappings with its end tag.
func (p *Protector) document(content []byte) []byte {
	var w bytes.Buffer
	w.Grow(len(content) + 2048)
	w.WriteString(xmlDeclaration + `<Protector xmlns="` + Namespace + `"`)
	if p.MaxOfflineUnwraps != 0 {
		w.WriteString(` MaxOfflineUnwraps="` + strconv.FormatUint(uint64(p.MaxOfflineUnwraps), 10) + `"`)
	}
	w.WriteString(">" + wrappingsStartBare)
	w.Write(content)
	w.WriteString("<TransportKeySignature>")
	p.KeyDerivation.write(&w)
	p.TransportKeyMAC.write(&w, "Signature")
	fmt.Fprintf(&w, `</TransportKeySignature><GuardianSignature WrappingId="%d">`, p.GuardianID)
	p.GuardianSignature.write(&w, "Signature")
	w.WriteString("</GuardianSignature></Protector>")
	return w.Bytes()
}

// recanonicalise asks the canonicaliser for the form of what was written.
// Carried Parameters may hold declarations that are redundant at their new
// place, so the written bytes need not be canonical.
func (p *Protector) recanonicalise() error {
	root, err := readTree(p.canonical, documentBounds)
	if err != nil {
		return fmt.Errorf("carried parameters: %w", err)
	}
	p.canonical, err = canonical(root)
	return err
}

// carriesParameters reports whether a signature of the wrappings has Parameters.
func carriesParameters(wrappings []Wrapping) bool {
	for i := range wrappings {
		if wrappings[i].SigningCertificateSignature.parameters != "" || wrappings[i].EncryptionCertificateSignature.parameters != "" {
			return true
		}
	}
	return false
}

// encryptTo fills the transport key of every wrapping anew, with the algorithm
// the wrapping has.
func encryptTo(wrappings []Wrapping, random io.Reader, plain []byte) error {
	for i := range wrappings {
		w := &wrappings[i]
		value, err := encryptOAEP(w.EncryptionCertificate.PublicKey, random, w.TransportKey.Padding, plain)
		if err != nil {
			return fmt.Errorf("transport key of wrapping %d: %w", w.ID, err)
		}
		w.TransportKey.Value = value
	}
	return nil
}
