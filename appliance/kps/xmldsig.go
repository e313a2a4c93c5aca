package kps

import (
	"bytes"
	"crypto"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/beevik/etree"
)

// The one shape of XML signature that is written and read here: enveloped, one
// reference to the whole document, exclusive canonical form [kps.md 14.16].
const envelopedSignature = "http://www.w3.org/2000/09/xmldsig#enveloped-signature"

// makeEnveloped returns ds:Signature over a document whose canonical form
// without the signature has this SHA-256 digest.
func makeEnveloped(digest []byte, cert *x509.Certificate, signer crypto.Signer, random io.Reader) ([]byte, error) {
	if cert == nil || !sameModulus(cert.PublicKey, signer.Public()) {
		return nil, errors.New("the communications key does not belong to its certificate")
	}
	info := `<ds:CanonicalizationMethod Algorithm="` + excC14N + `"></ds:CanonicalizationMethod>` +
		`<ds:SignatureMethod Algorithm="` + RSASHA256 + `"></ds:SignatureMethod>` +
		`<ds:Reference URI=""><ds:Transforms><ds:Transform Algorithm="` + envelopedSignature + `"></ds:Transform>` +
		`<ds:Transform Algorithm="` + excC14N + `"></ds:Transform></ds:Transforms>` +
		`<ds:DigestMethod Algorithm="` + digestSHA256 + `"></ds:DigestMethod>` +
		`<ds:DigestValue>` + base64.StdEncoding.EncodeToString(digest) + `</ds:DigestValue></ds:Reference></ds:SignedInfo>`
	sig, err := signRSA(signer, random, []byte(`<ds:SignedInfo xmlns:ds="`+dsigNamespace+`">`+info))
	if err != nil {
		return nil, err
	}
	var w bytes.Buffer
	w.WriteString(`<ds:Signature xmlns:ds="` + dsigNamespace + `"><ds:SignedInfo>` + info)
	writeBase64(&w, "ds:SignatureValue", sig.Value)
	w.WriteString(`<ds:KeyInfo><ds:X509Data>`)
	writeBase64(&w, "ds:X509Certificate", cert.Raw)
	w.WriteString(`</ds:X509Data></ds:KeyInfo></ds:Signature>`)
	return w.Bytes(), nil
}

// unsupported marks a signature that this package cannot judge.
type unsupported struct{ what string }

func (u *unsupported) Error() string { return u.what + " is not supported" }

// checkDocument judges sig, a child of root, and records the result. An error
// means that the signature is malformed or wrong.
func (m *Metadata) checkDocument(root, sig *etree.Element) error {
	err := m.verifyEnveloped(root, sig)
	var u *unsupported
	switch {
	case err == nil:
		m.Signature = SignatureValid
	case errors.As(err, &u):
		m.Signature, m.SignatureReason = SignatureUnsupported, u.Error()
	default:
		return fmt.Errorf("ds:Signature: %w", err)
	}
	return nil
}

func (m *Metadata) verifyEnveloped(root, sig *etree.Element) error {
	seq, err := children(sig)
	if err != nil {
		return err
	}
	kids := make([]*etree.Element, 0, 3)
	for _, name := range []string{"SignedInfo", "SignatureValue", "KeyInfo"} {
		kid, err := seq.take(dsigNamespace, name)
		if err != nil {
			return err
		}
		kids = append(kids, kid)
	}
	if err := seq.end(); err != nil {
		return err
	}
	if m.CommunicationsCertificate, err = embeddedCertificate(kids[2]); err != nil {
		return err
	}
	info, err := parseSignedInfo(kids[0], root)
	if err != nil {
		return err
	}
	value, err := binary64(kids[1])
	if err != nil {
		return err
	}
	signed, err := canonical(kids[0])
	if err != nil {
		return err
	}
	if err := verifyRSA(m.CommunicationsCertificate.PublicKey, Signature{Algorithm: info.method, Value: value}, signed); err != nil {
		return err
	}
	without := root.Copy()
	without.RemoveChildAt(sig.Index())
	document, err := canonical(without)
	if err != nil {
		return err
	}
	h := info.hash.New()
	h.Write(document)
	if subtle.ConstantTimeCompare(h.Sum(nil), info.digest) != 1 {
		return errors.New("the digest of the document does not match")
	}
	return nil
}

func embeddedCertificate(keyInfo *etree.Element) (*x509.Certificate, error) {
	seq, err := children(keyInfo)
	if err != nil {
		return nil, err
	}
	data, err := seq.take(dsigNamespace, "X509Data")
	if err != nil {
		return nil, &unsupported{"KeyInfo without X509Data"}
	}
	inner, err := children(data)
	if err != nil {
		return nil, err
	}
	for _, kid := range inner.kids {
		if is(kid, dsigNamespace, "X509Certificate") {
			return parseCertificate(kid)
		}
	}
	return nil, &unsupported{"X509Data without a certificate"}
}

type signedInfo struct {
	method string
	hash   crypto.Hash
	digest []byte
}

func parseSignedInfo(el, root *etree.Element) (info signedInfo, err error) {
	seq, err := children(el)
	if err != nil {
		return info, err
	}
	kids, err := seq.all(dsigNamespace, "CanonicalizationMethod", "SignatureMethod", "Reference")
	if err != nil {
		return info, err
	}
	if uri, err := bareAlgorithm(kids[0]); err != nil || uri != excC14N {
		return info, &unsupported{"canonicalisation " + bounded(uri)}
	}
	if info.method, err = bareAlgorithm(kids[1]); err != nil {
		return info, err
	}
	if _, ok := rsaSignatures[info.method]; !ok {
		return info, &unsupported{"signature algorithm " + bounded(info.method)}
	}
	uri, ok := attribute(kids[2], "URI")
	id, hasID := attribute(root, "ID")
	if !ok || (uri != "" && (!hasID || uri != "#"+id)) {
		return info, errors.New("element Reference does not name the document")
	}
	ref, err := children(kids[2])
	if err != nil {
		return info, err
	}
	parts, err := ref.all(dsigNamespace, "Transforms", "DigestMethod", "DigestValue")
	if err != nil {
		return info, err
	}
	if err := checkTransforms(parts[0]); err != nil {
		return info, err
	}
	digest, err := bareAlgorithm(parts[1])
	if err != nil {
		return info, err
	}
	if info.hash, ok = hashesByDigestURI[digest]; !ok || info.hash == crypto.SHA1 {
		return info, &unsupported{"digest " + bounded(digest)}
	}
	info.digest, err = binary64(parts[2])
	return info, err
}

func checkTransforms(el *etree.Element) error {
	seq, err := children(el)
	if err != nil {
		return err
	}
	var uris []string
	for len(seq.kids) > 0 && len(uris) < 3 {
		kid, err := seq.take(dsigNamespace, "Transform")
		if err != nil {
			return err
		}
		uri, err := bareAlgorithm(kid)
		if err != nil {
			return &unsupported{"a transform with parameters"}
		}
		uris = append(uris, uri)
	}
	if len(uris) != 2 || uris[0] != envelopedSignature || uris[1] != excC14N {
		return &unsupported{"transforms " + bounded(strings.Join(uris, " "))}
	}
	return nil
}

// bareAlgorithm returns the attribute Algorithm of an element without content.
func bareAlgorithm(el *etree.Element) (string, error) {
	uri, _ := attribute(el, "Algorithm")
	seq, err := children(el)
	if err != nil {
		return uri, err
	}
	return uri, seq.end()
}
