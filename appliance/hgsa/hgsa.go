// Package hgsa reads and writes the messages of the Host Guardian Service
// Attestation protocol ([MS-HGSA]): requests, replies, the signingCertificates
// body, the public keys and the host key signature they carry, and the paths
// they travel on.
//
// Promise: a reader accepts every documented form of a value (number array or
// base64, dashed or binary GUID, short or long type hint) and remembers which
// one it met, so that an answer can mirror it; a writer produces the bytes of
// the genuine serializer. The names of types and members are the protocol's.
//
// Limits: no files, sockets, clocks or randomness of its own; bodies are at
// most [MaxAttestBody] bytes, nesting at most 16 levels, lists and keys have
// fixed upper bounds. The contents of the TPM context (RTPM) are opaque bytes
// here. The encodings of keys and the signature forms are what the public
// record suggests; none was tried against a genuine Windows host.
package hgsa

import (
	"errors"
	"strconv"
)

// Namespace is the part of a __type hint after the type's name, as the genuine
// service abbreviates it (hgsa.md 3.1).
const Namespace = ":#Microsoft.Windows.RemoteAttestation.Core"

// longNamespace is the unabbreviated form, understood on input (3.2).
const longNamespace = ":http://schemas.datacontract.org/2004/07/Microsoft.Windows.RemoteAttestation.Core"

// ContentType is sent with every JSON body, requests and replies (13.1).
const ContentType = "application/json; charset=utf-8"

// Limits of the reader (3.3). A caller enforces the two body limits on the
// connection as well, before the bytes are in memory.
const (
	MaxAttestBody = 16 << 20 // bytes of a body on /attest
	MaxBody       = 1 << 20  // bytes of any other request body
	maxDepth      = 16       // nesting of arrays and objects
	maxMembers    = 64       // members of one object
	maxItems      = 64       // elements of a list of tuples, types or reasons
)

// The two ways in which a body can be unusable. Everything the decoders of this
// package return wraps one of them.
var (
	// ErrSyntax: the body is not JSON at all; the answer is status 400.
	ErrSyntax = errors.New("body is not JSON")
	// ErrPayload: JSON that is not a valid message for the endpoint; the answer
	// is PayloadErrorReply.
	ErrPayload = errors.New("body does not fit the endpoint")
)

// AttestationOperationMode says how a service attests hosts; exactly one is
// active at a time (2.2.1.1 of the specification).
type AttestationOperationMode uint32

// The operation modes and their wire values.
const (
	ModeUnknown AttestationOperationMode = 0
	ModeTPM     AttestationOperationMode = 1
	ModeAD      AttestationOperationMode = 2
	ModeHostKey AttestationOperationMode = 3
)

// String is the name that Windows host tools print for the mode.
func (m AttestationOperationMode) String() string {
	switch m {
	case ModeTPM:
		return "Tpm"
	case ModeAD:
		return "AD"
	case ModeHostKey:
		return "HostKey"
	}
	return "Unknown"
}

// AttestationProvidedContentType tags what a host supplies (2.2.1.2).
type AttestationProvidedContentType uint32

// The content types and their wire values. HostKeySignature covers the bytes
// of HostKeyPublicKey followed by the bytes of VirtualSecureModeIdentityKey.
const (
	VirtualSecureModeIdentityKey AttestationProvidedContentType = 1
	RtpmContext                  AttestationProvidedContentType = 2
	HealthCertificate            AttestationProvidedContentType = 3
	EndorsementKeyCertificate    AttestationProvidedContentType = 4
	CaTrustletUserData           AttestationProvidedContentType = 5
	CaTrustletVsmReport          AttestationProvidedContentType = 6
	CaTrustletReportSignature    AttestationProvidedContentType = 7
	HostKeyPublicKey             AttestationProvidedContentType = 8
	HostKeySignature             AttestationProvidedContentType = 9
)

// AttestationResultType tags what is requested and returned (2.2.1.3).
type AttestationResultType uint32

// The result types and their wire values.
const (
	VSMIdentityEncryptionKeyCertificate AttestationResultType = 1
	VSMIdentitySigningKeyCertificate    AttestationResultType = 2
	VSMCAIntermediateCertificate        AttestationResultType = 3 // TPM mode only
)

// TPMVersion is the TPM family of a host (2.2.1.4).
type TPMVersion uint32

// The TPM versions; the first is spelled as the specification spells it.
const (
	TPM_VERSION_UNKOWN TPMVersion = 0
	TPM_VERSION_12     TPMVersion = 1
	TPM_VERSION_20     TPMVersion = 2
)

// TpmInterfaceType says how a host reaches its TPM (2.2.1.5).
type TpmInterfaceType uint32

// The interface types and their wire values.
const (
	TPM_IFTYPE_UNKNOWN   TpmInterfaceType = 0
	TPM_IFTYPE_1         TpmInterfaceType = 1
	TPM_IFTYPE_TRUSTZONE TpmInterfaceType = 2
	TPM_IFTYPE_HW        TpmInterfaceType = 3
	TPM_IFTYPE_EMULATOR  TpmInterfaceType = 4
)

// String is the protocol's name of the type, or its number.
func (t AttestationResultType) String() string {
	switch t {
	case VSMIdentityEncryptionKeyCertificate:
		return "VSMIdentityEncryptionKeyCertificate"
	case VSMIdentitySigningKeyCertificate:
		return "VSMIdentitySigningKeyCertificate"
	case VSMCAIntermediateCertificate:
		return "VSMCAIntermediateCertificate"
	}
	return strconv.FormatUint(uint64(t), 10)
}
