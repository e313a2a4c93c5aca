package hgsa

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
)

// This file is the host's half: building requests and reading what comes back
// (sections 7 and 15 of hgsa.md). Checking the certificates of a reply is
// health.CheckReply.

// HostKeyRequest is what a host puts into a host key attestation.
type HostKeyRequest struct {
	SessionId GUID // a fresh one for each attestation
	Requested []AttestationResultType
	VSMKey    *rsa.PublicKey // the key to certify
	// VSMForm and HostForm choose the keys' encodings; empty means KeySIPA and
	// KeySPKI (13.5). HostCertificate, if not empty, is sent in place of the
	// host key's encoding.
	VSMForm         KeyEncoding
	HostForm        KeyEncoding
	HostCertificate []byte
	Style           Style
}

// NewHostKeyRequest signs with the host key (an RSA signer; PKCS#1 v1.5 with
// SHA-256) and returns the body of POST /v2.0/hostkeyattest. random serves the
// signer's blinding only.
func NewHostKeyRequest(random io.Reader, hostKey crypto.Signer, q HostKeyRequest) ([]byte, error) {
	if q.VSMForm == "" {
		q.VSMForm = KeySIPA
	}
	if q.HostForm == "" {
		q.HostForm = KeySPKI
	}
	host, ok := hostKey.Public().(*rsa.PublicKey)
	if !ok {
		return nil, errors.New("host key attestation: the host key is not RSA; make one with Set-HgsClientHostKey")
	}
	hostBytes, err := q.HostCertificate, error(nil)
	if len(hostBytes) == 0 {
		hostBytes, err = EncodePublicKey(host, q.HostForm)
	}
	if err != nil {
		return nil, fmt.Errorf("host key attestation: %w", err)
	}
	vsmBytes, err := EncodePublicKey(q.VSMKey, q.VSMForm)
	if err != nil {
		return nil, fmt.Errorf("host key attestation: %w", err)
	}
	h := sha256.New()
	h.Write(hostBytes)
	h.Write(vsmBytes)
	signature, err := hostKey.Sign(random, h.Sum(nil), crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("host key attestation: %w", err)
	}
	return EncodeRequest(&AttestationRequest{
		ProtocolRequestBase: ProtocolRequestBase{q.SessionId},
		RequestedContent:    q.Requested,
		ProvidedContent: []TupleOfAttestationProvidedContentTypebase64Binary{
			{VirtualSecureModeIdentityKey, vsmBytes},
			{HostKeyPublicKey, hostBytes},
			{HostKeySignature, signature},
		},
	}, q.Style), nil
}

// URL is where a client finds an operation: base is the configured value, which
// ends in /Attestation; version is "v1.0" or "v2.0", ignored for getinfo.
func URL(base string, op Operation, version string) string {
	base = strings.TrimRight(base, "/")
	switch op {
	case OpGetInfo:
		return base + "/Getinfo"
	case OpSigningCertificates:
		return base + "/" + version + "/signingCertificates"
	}
	return base + "/" + version + "/" + string(op)
}

// StatusError is an answer without a protocol message in it.
type StatusError struct {
	Status int   // of HTTP
	Cause  error // why the body is no message
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("attestation service answered with status %d and no protocol message: %v", e.Status, e.Cause)
}

func (e *StatusError) Unwrap() error { return e.Cause }

// CanRetry: faults of the server, and being told to slow down, may pass.
func (e *StatusError) CanRetry() bool { return e.Status == 429 || e.Status >= 500 }

// ParseReply reads an answer by its type first, whatever the status (13.2). A
// reply that is an error comes back as the error (a [Failure]); what is no
// message comes back as [*StatusError].
func ParseReply(status int, body []byte) (Reply, error) {
	reply, _, err := DecodeReply(body)
	if err != nil {
		return nil, &StatusError{status, err}
	}
	if f, ok := reply.(Failure); ok {
		return nil, f
	}
	if status != 200 {
		return nil, &StatusError{status, fmt.Errorf("%s with a status that is not 200", reply.Type())}
	}
	return reply, nil
}

// NextMode says which mode to try after a failure in mode attempted: the
// expected one, only if the failure is retryable and names another known mode
// (3.2.5.4). A client switches at most once per attestation.
func NextMode(attempted AttestationOperationMode, failure error) (AttestationOperationMode, bool) {
	var wrong *OperationModeErrorReply
	if !errors.As(failure, &wrong) || !wrong.Retryable {
		return attempted, false
	}
	m := wrong.ExpectedOperationMode
	if m == attempted || m < ModeTPM || m > ModeHostKey {
		return attempted, false
	}
	return m, true
}
