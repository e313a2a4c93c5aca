// Package kps holds the documents of the Key Protection Service Protocol
// (MS-KPS 8.0): key protectors, guardian metadata, the roll messages and the
// binary transport key BLOB, with their canonical form and their signatures.
//
// Promise: bytes in, values out. A document that this package accepted has
// exactly the shape of the schema, its size and depth are bounded, and every
// signature was checked over the bytes that were received. The same codecs
// serve the service, a guarded host and a tenant.
//
// Limits: no files, sockets or clocks; randomness and time are arguments. The
// specification names no algorithms; the ones here are profile P1 (algorithm.go),
// which is not confirmed against Windows. Health certificates are judged
// elsewhere, here they are only carried. Values are not safe for concurrent
// change; a parsed value may be read from several goroutines.
//
// RSA private keys are reached only through crypto.Signer and Decrypter, so
// they can stay in a token.
package kps

import (
	"errors"
	"fmt"
)

// Namespaces of the protocol [MS-KPS 2.2, 6]. They are compared exactly.
const (
	// Namespace is that of Protector, Metadata and the shared types.
	Namespace = "http://schemas.microsoft.com/kps/2014/07"
	// ServiceNamespace is that of the roll messages and of Error.
	ServiceNamespace = "http://schemas.microsoft.com/kps/2014/07/service"

	dsigNamespace   = "http://www.w3.org/2000/09/xmldsig#"
	xenc11Namespace = "http://www.w3.org/2009/xmlenc11#"
	xencNamespace   = "http://www.w3.org/2001/04/xmlenc#"
	xsiNamespace    = "http://www.w3.org/2001/XMLSchema-instance"
)

// Code is the content of the element Code in an Error document.
type Code string

// The codes of [MS-KPS 3.1.5.1.1.3 and 3.1.5.1.2.3], and at the end our own.
const (
	CodeHealthCertificate   Code = "HealthCertificateException"
	CodeInvalidProtector    Code = "InvalidProtectorException"
	CodeInvalidWrapping     Code = "InvalidWrappingException"
	CodeNoPrimaryEncryption Code = "Primary Encryption Certificate not found"
	CodeNoPrimarySigning    Code = "Primary Signing Certificate not found"

	CodeInvalidRequest       Code = "InvalidRequestException"
	CodeUnsupportedAlgorithm Code = "UnsupportedAlgorithmException"
	CodeNotFound             Code = "NotFoundException"
	CodeMethodNotAllowed     Code = "MethodNotAllowedException"
	CodeTooLarge             Code = "RequestTooLargeException"
	CodeMediaType            Code = "UnsupportedMediaTypeException"
	CodeUnavailable          Code = "ServiceUnavailableException"
	CodeInternal             Code = "InternalErrorException"
)

// A Refusal says why a document was not accepted. Reason is one lower-case
// sentence without secrets, fit for the wire and for a log.
type Refusal struct {
	Code   Code
	Reason string
	// Algorithm is the algorithm URI that is not supported, verbatim, when that
	// was the reason; the first contact with a foreign peer shows up here.
	Algorithm string
}

// Error returns code and reason.
func (r *Refusal) Error() string { return string(r.Code) + ": " + r.Reason }

// CodeOf returns the code of the Refusal inside err, or CodeInternal.
func CodeOf(err error) Code {
	var r *Refusal
	if errors.As(err, &r) {
		return r.Code
	}
	return CodeInternal
}

func refuse(code Code, format string, args ...any) *Refusal {
	return &Refusal{Code: code, Reason: fmt.Sprintf(format, args...)}
}

func unknownAlgorithm(code Code, where, uri string) *Refusal {
	return &Refusal{Code: code, Reason: fmt.Sprintf("%s: algorithm %q is not supported", where, bounded(uri)), Algorithm: bounded(uri)}
}

// bounded cuts text of a peer to a length that fits a message.
func bounded(s string) string {
	const most = 200
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}

// recode gives err the code of the document part it was met in. A Refusal that
// names an unknown algorithm keeps its code.
func recode(code Code, where string, err error) error {
	var r *Refusal
	if errors.As(err, &r) {
		c := *r
		if c.Code == "" {
			c.Code = code
		}
		if where != "" {
			c.Reason = where + ": " + c.Reason
		}
		return &c
	}
	if where != "" {
		return refuse(code, "%s: %v", where, err)
	}
	return refuse(code, "%v", err)
}

func wipe(b []byte) {
	for i := range b {
		b[i] = 0
	}
}

// Wipe overwrites a buffer that held a secret.
func Wipe(b []byte) { wipe(b) }
