package kps

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/beevik/etree"
)

// MaxRequest is the largest body of a roll message in bytes: the base64 form of
// the largest protector with line breaks, and 64 KiB for the rest.
const MaxRequest = MaxDocument*4/3 + MaxDocument/16 + 1<<16

var messageBounds = bounds{bytes: MaxRequest, depth: 8, elements: 64, attributes: 16, declarations: 32, bare: true}

// MaxHealthCertificate is the largest health certificate in bytes.
const MaxHealthCertificate = 16 << 10

// RollTransportKeyRequest is [MS-KPS 2.2.2.1]. The client chooses the three
// algorithms; there is no negotiation.
type RollTransportKeyRequest struct {
	IngressProtector  []byte // the document as serialised to a file
	HealthCertificate []byte // DER

	TransferKeyEncryptionAlgorithm   string
	WrappingKeyEncryptionAlgorithm   string
	TransportKeysEncryptionAlgorithm string // with this "s" on the wire
}

// ParseRequest reads a request. Its Refusals have CodeInvalidRequest, or
// CodeHealthCertificate or CodeInvalidProtector where that element is not base64.
func ParseRequest(raw []byte) (*RollTransportKeyRequest, error) {
	r, err := parseRequest(raw)
	if err != nil {
		return nil, recode(CodeInvalidRequest, "", err)
	}
	return r, nil
}

func parseRequest(raw []byte) (*RollTransportKeyRequest, error) {
	seq, err := serviceRoot(raw, "RollTransportKeyRequest")
	if err != nil {
		return nil, err
	}
	kids, err := seq.all(ServiceNamespace, "IngressProtector", "HealthCertificate",
		"TransferKeyEncryptionAlgorithm", "WrappingKeyEncryptionAlgorithm", "TransportKeysEncryptionAlgorithm")
	if err != nil {
		return nil, err
	}
	r := &RollTransportKeyRequest{}
	if r.IngressProtector, err = binary64(kids[0]); err != nil {
		return nil, recode(CodeInvalidProtector, "", err)
	}
	if r.HealthCertificate, err = binary64(kids[1]); err != nil {
		return nil, recode(CodeHealthCertificate, "", err)
	}
	if len(r.HealthCertificate) > MaxHealthCertificate {
		return nil, refuse(CodeHealthCertificate, "the health certificate has %d bytes, %d are accepted", len(r.HealthCertificate), MaxHealthCertificate)
	}
	for i, to := range []*string{&r.TransferKeyEncryptionAlgorithm, &r.WrappingKeyEncryptionAlgorithm, &r.TransportKeysEncryptionAlgorithm} {
		t, err := text(kids[2+i])
		if err != nil {
			return nil, err
		}
		if *to = strings.Trim(t, " \t\r\n"); *to == "" {
			return nil, fmt.Errorf("%s is empty", kids[2+i].Tag)
		}
	}
	return r, nil
}

// Marshal writes the request.
func (r *RollTransportKeyRequest) Marshal() []byte {
	var w bytes.Buffer
	w.WriteString(xmlDeclaration + `<RollTransportKeyRequest xmlns="` + ServiceNamespace + `">`)
	writeBase64(&w, "IngressProtector", r.IngressProtector)
	writeBase64(&w, "HealthCertificate", r.HealthCertificate)
	writeText(&w, "TransferKeyEncryptionAlgorithm", r.TransferKeyEncryptionAlgorithm)
	writeText(&w, "WrappingKeyEncryptionAlgorithm", r.WrappingKeyEncryptionAlgorithm)
	writeText(&w, "TransportKeysEncryptionAlgorithm", r.TransportKeysEncryptionAlgorithm)
	w.WriteString(`</RollTransportKeyRequest>`)
	return w.Bytes()
}

// RollTransportKeyResponse is [MS-KPS 2.2.2.2].
type RollTransportKeyResponse struct {
	EgressProtector        []byte
	EncryptedTransferKey   []byte // to the health certificate
	EncryptedWrappingKey   []byte // by the transfer key
	EncryptedTransportKeys []byte // by the wrapping key
}

// ParseResponse reads a response; the host's side.
func ParseResponse(raw []byte) (*RollTransportKeyResponse, error) {
	seq, err := serviceRoot(raw, "RollTransportKeyResponse")
	if err != nil {
		return nil, fmt.Errorf("roll response: %w", err)
	}
	kids, err := seq.all(ServiceNamespace, "EgressProtector", "EncryptedTransferKey", "EncryptedWrappingKey", "EncryptedTransportKeys")
	if err != nil {
		return nil, fmt.Errorf("roll response: %w", err)
	}
	r := &RollTransportKeyResponse{}
	for i, to := range []*[]byte{&r.EgressProtector, &r.EncryptedTransferKey, &r.EncryptedWrappingKey, &r.EncryptedTransportKeys} {
		if *to, err = binary64(kids[i]); err != nil {
			return nil, fmt.Errorf("roll response: %w", err)
		}
	}
	return r, nil
}

// Marshal writes the response.
func (r *RollTransportKeyResponse) Marshal() []byte {
	var w bytes.Buffer
	w.Grow(len(r.EgressProtector)*4/3 + 4096)
	w.WriteString(xmlDeclaration + `<RollTransportKeyResponse xmlns="` + ServiceNamespace + `">`)
	writeBase64(&w, "EgressProtector", r.EgressProtector)
	writeBase64(&w, "EncryptedTransferKey", r.EncryptedTransferKey)
	writeBase64(&w, "EncryptedWrappingKey", r.EncryptedWrappingKey)
	writeBase64(&w, "EncryptedTransportKeys", r.EncryptedTransportKeys)
	w.WriteString(`</RollTransportKeyResponse>`)
	return w.Bytes()
}

// ErrorDocument is the body of every reply other than 200 [MS-KPS 2.2.2.5].
type ErrorDocument struct {
	Code    Code
	Message string
}

// Error makes an ErrorDocument a Go error on the client's side.
func (e *ErrorDocument) Error() string {
	if e.Message == "" || e.Message == string(e.Code) {
		return string(e.Code)
	}
	return string(e.Code) + ": " + e.Message
}

// Marshal writes the document in the service's namespace.
func (e *ErrorDocument) Marshal() []byte {
	var w bytes.Buffer
	w.WriteString(xmlDeclaration + `<Error xmlns="` + ServiceNamespace + `">`)
	writeText(&w, "Code", string(e.Code))
	writeText(&w, "Message", e.Message)
	w.WriteString(`</Error>`)
	return w.Bytes()
}

// ParseError reads an Error by local names alone: its namespace is not
// documented [kps.md 14.14]. A body that is something else, as the HTML page of
// a broken server, is an error.
func ParseError(raw []byte) (*ErrorDocument, error) {
	root, err := readTree(raw, bounds{bytes: 1 << 16, depth: 8, elements: 32, attributes: 16, declarations: 32, bare: true})
	if err != nil {
		return nil, fmt.Errorf("error document: %w", err)
	}
	if root.Tag != "Error" {
		return nil, errors.New("error document: the root element is not Error")
	}
	e := &ErrorDocument{}
	for _, kid := range root.ChildElements() {
		switch kid.Tag {
		case "Code":
			e.Code = Code(bounded(kid.Text()))
		case "Message":
			e.Message = kid.Text()
		}
	}
	if e.Code == "" {
		return nil, errors.New("error document: Code is missing")
	}
	return e, nil
}

func writeText(w *bytes.Buffer, name, value string) {
	w.WriteString("<" + name + ">" + escapeText.Replace(printable(value)) + "</" + name + ">")
}

// printable replaces what XML cannot carry.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' || r == '\n' || r == '\r' || (r >= 0x20 && r != 0xfffe && r != 0xffff) {
			return r
		}
		return '\uFFFD'
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

func serviceRoot(raw []byte, name string) (*sequence, error) {
	root, err := readTree(raw, messageBounds)
	if err != nil {
		return nil, err
	}
	if !is(root, ServiceNamespace, name) {
		return nil, fmt.Errorf("the root element is not %s in the namespace %s", name, ServiceNamespace)
	}
	if err := onlyAttributes(root); err != nil {
		return nil, err
	}
	return children(root)
}

// all takes exactly these children.
func (s *sequence) all(ns string, names ...string) ([]*etree.Element, error) {
	kids := make([]*etree.Element, 0, len(names))
	for _, name := range names {
		kid, err := s.take(ns, name)
		if err != nil {
			return nil, err
		}
		kids = append(kids, kid)
	}
	return kids, s.end()
}
