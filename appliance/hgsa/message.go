package hgsa

// Request is one of the four request messages of section 2.2.2:
// [*TpmRequestInitial], [*TpmRequestContinue], [*ADRequest] and
// [*AttestationRequest].
type Request interface {
	// Session is the request's SessionId, zero where the host sent none.
	Session() GUID
	isRequest()
}

// ProtocolRequestBase holds what all requests have (2.2.2.18). SessionId is for
// logs and for binding RTPM state; no decision depends on it.
type ProtocolRequestBase struct {
	SessionId GUID
}

// Session implements [Request].
func (b *ProtocolRequestBase) Session() GUID { return b.SessionId }
func (b *ProtocolRequestBase) isRequest()    {}

// TpmRequest is the base of the v1.0 TPM requests (2.2.2.2). The endorsement key
// is in any encoding that [ParsePublicKey] reads.
type TpmRequest struct {
	ProtocolRequestBase
	RequestedContent         []AttestationResultType
	RtpmPublicEndorsementKey []byte
}

// TpmRequestInitial begins a v1.0 TPM attestation (2.2.2.3).
type TpmRequestInitial struct{ TpmRequest }

// TpmRequestContinue carries the TPM's answers (2.2.2.4). The context is opaque
// here.
type TpmRequestContinue struct {
	TpmRequest
	RtpmNewContext []byte
}

// ADRequest pairs wanted certificate types with the keys to certify (2.2.2.5).
type ADRequest struct {
	ProtocolRequestBase
	RequestedContent []TupleOfAttestationResultTypebase64Binary
}

// AttestationRequest is the v2.0 request (2.2.2.1).
type AttestationRequest struct {
	ProtocolRequestBase
	RequestedContent []AttestationResultType
	ProvidedContent  []TupleOfAttestationProvidedContentTypebase64Binary
}

// Provided returns the first item of a type; ok is false where there is none.
func (r *AttestationRequest) Provided(t AttestationProvidedContentType) (item []byte, ok bool) {
	for _, p := range r.ProvidedContent {
		if p.Item1 == t {
			return p.Item2, true
		}
	}
	return nil, false
}

// Count is the number of items of a type.
func (r *AttestationRequest) Count(t AttestationProvidedContentType) (n int) {
	for _, p := range r.ProvidedContent {
		if p.Item1 == t {
			n++
		}
	}
	return n
}

// TupleOfAttestationProvidedContentTypebase64Binary is a tagged value of a host
// (2.2.2.8); on the wire its members are m_Item1 and m_Item2.
type TupleOfAttestationProvidedContentTypebase64Binary struct {
	Item1 AttestationProvidedContentType
	Item2 []byte
}

// TupleOfAttestationResultTypebase64Binary is a result type with a public key
// (in ADRequest) or a DER certificate (in HealthCertificateReply) (2.2.2.9).
type TupleOfAttestationResultTypebase64Binary struct {
	Item1 AttestationResultType
	Item2 []byte
}

// EvaluationLog is the outcome of one policy (2.2.2.13); Reason is one of
// [PolicyIDs].
type EvaluationLog struct {
	Result bool
	Reason GUID
}

// Reply is one of the reply messages of section 2.2.2.
type Reply interface {
	// Type is the name in the __type hint, without the namespace.
	Type() string
}

// Failure is a reply that is an error. The error types are pointers; compare
// with errors.As-like type switches, not by value.
type Failure interface {
	Reply
	error
	// CanRetry is the Retryable member: whether sending the request again can
	// help.
	CanRetry() bool
}

// ServiceInfoReply answers getinfo (2.2.2.10).
type ServiceInfoReply struct {
	FunctionalLevel           uint32
	OperationMode             AttestationOperationMode
	SupportedFunctionalLevels []uint32
}

// TpmReplyContinue sends the next commands for the host's TPM (2.2.2.6).
type TpmReplyContinue struct {
	RtpmActiveContext []byte
}

// HealthCertificateReply is success: one DER certificate for each requested
// type, in the order of the request (2.2.2.7).
type HealthCertificateReply struct {
	Content []TupleOfAttestationResultTypebase64Binary
}

// ErrorReply is the general error and the base of all others (2.2.2.11).
type ErrorReply struct {
	Retryable bool
}

// The error replies, one type for each of 2.2.2.14 to 2.2.2.24.
type (
	// OperationModeErrorReply: the endpoint does not belong to the server's mode.
	OperationModeErrorReply struct {
		ErrorReply
		ExpectedOperationMode AttestationOperationMode
	}
	// PayloadErrorReply: the body is not valid for the endpoint.
	PayloadErrorReply struct{ ErrorReply }
	// PolicyEvaluationErrorReply: the TPM policy is not satisfied.
	PolicyEvaluationErrorReply struct {
		ErrorReply
		Reasons []EvaluationLog
	}
	// RtpmErrorReply: the exchange with the TPM failed.
	RtpmErrorReply struct{ ErrorReply }
	// TcgLogValidationErrorReply: the boot log is invalid.
	TcgLogValidationErrorReply struct{ ErrorReply }
	// UnauthorizedErrorReply: the host is not registered, or did not prove it.
	UnauthorizedErrorReply struct{ ErrorReply }
	// UnavailableErrorReply: the service can't answer now.
	UnavailableErrorReply struct{ ErrorReply }
	// VirtualSecureModeErrorReply: no usable VSM identity key.
	VirtualSecureModeErrorReply struct{ ErrorReply }
	// VsmReportValidationErrorReply: the CA trustlet's report is invalid.
	VsmReportValidationErrorReply struct{ ErrorReply }
)

// Names of the replies in __type hints.
const (
	typeServiceInfo         = "ServiceInfoReply"
	typeTpmReplyContinue    = "TpmReplyContinue"
	typeHealthCertificate   = "HealthCertificateReply"
	typeError               = "ErrorReply"
	typeOperationMode       = "OperationModeErrorReply"
	typePayload             = "PayloadErrorReply"
	typePolicyEvaluation    = "PolicyEvaluationErrorReply"
	typeRtpm                = "RtpmErrorReply"
	typeTcgLogValidation    = "TcgLogValidationErrorReply"
	typeUnauthorized        = "UnauthorizedErrorReply"
	typeUnavailable         = "UnavailableErrorReply"
	typeVirtualSecureMode   = "VirtualSecureModeErrorReply"
	typeVsmReportValidation = "VsmReportValidationErrorReply"
)

// Type implements [Reply].
func (*ServiceInfoReply) Type() string { return typeServiceInfo }

// Type implements [Reply].
func (*TpmReplyContinue) Type() string { return typeTpmReplyContinue }

// Type implements [Reply].
func (*HealthCertificateReply) Type() string { return typeHealthCertificate }

// Type implements [Reply].
func (*ErrorReply) Type() string { return typeError }

// CanRetry implements [Failure].
func (e *ErrorReply) CanRetry() bool { return e.Retryable }

// Error implements [Failure].
func (*ErrorReply) Error() string {
	return "the attestation service failed for a reason it does not name"
}

// Type implements [Reply].
func (*OperationModeErrorReply) Type() string { return typeOperationMode }

// Error implements [Failure].
func (e *OperationModeErrorReply) Error() string {
	return "the attestation service is in mode " + e.ExpectedOperationMode.String()
}

// Type implements [Reply].
func (*PayloadErrorReply) Type() string { return typePayload }

// Error implements [Failure].
func (*PayloadErrorReply) Error() string {
	return "the attestation service can't read the request"
}

// Type implements [Reply].
func (*PolicyEvaluationErrorReply) Type() string { return typePolicyEvaluation }

// Error implements [Failure].
func (e *PolicyEvaluationErrorReply) Error() string {
	text := "the host fails the attestation policies"
	for _, r := range e.Reasons {
		if r.Result {
			continue
		}
		name := r.Reason.String()
		for _, p := range PolicyIDs {
			if p.ID == r.Reason {
				name = p.Name
			}
		}
		text += " " + name
	}
	return text
}

// Type implements [Reply].
func (*RtpmErrorReply) Type() string { return typeRtpm }

// Error implements [Failure].
func (*RtpmErrorReply) Error() string { return "the exchange with the host's TPM failed" }

// Type implements [Reply].
func (*TcgLogValidationErrorReply) Type() string { return typeTcgLogValidation }

// Error implements [Failure].
func (*TcgLogValidationErrorReply) Error() string { return "the host's boot log is not valid" }

// Type implements [Reply].
func (*UnauthorizedErrorReply) Type() string { return typeUnauthorized }

// Error implements [Failure].
func (*UnauthorizedErrorReply) Error() string {
	return "the host is not authorized: it is not registered, or its signature does not verify"
}

// Type implements [Reply].
func (*UnavailableErrorReply) Type() string { return typeUnavailable }

// Error implements [Failure].
func (*UnavailableErrorReply) Error() string { return "the attestation service is not available now" }

// Type implements [Reply].
func (*VirtualSecureModeErrorReply) Type() string { return typeVirtualSecureMode }

// Error implements [Failure].
func (*VirtualSecureModeErrorReply) Error() string {
	return "the virtual secure mode identity key is missing or can't be read"
}

// Type implements [Reply].
func (*VsmReportValidationErrorReply) Type() string { return typeVsmReportValidation }

// Error implements [Failure].
func (*VsmReportValidationErrorReply) Error() string { return "the CA trustlet's report is not valid" }

// OperationModeError answers a request on an endpoint of another mode. It is
// retryable: a host changes its mode only then (3.2.5.4).
func OperationModeError(expected AttestationOperationMode) *OperationModeErrorReply {
	return &OperationModeErrorReply{ErrorReply{true}, expected}
}

// InternalError answers a fault of ours that has no type of its own; retryable.
func InternalError() *ErrorReply { return &ErrorReply{true} }

// PayloadError answers a body that does not fit; not retryable.
func PayloadError() *PayloadErrorReply { return &PayloadErrorReply{} }

// PolicyEvaluationError answers a host that fails policies; only the failed ones
// are listed (13.12); not retryable.
func PolicyEvaluationError(failed ...GUID) *PolicyEvaluationErrorReply {
	e := &PolicyEvaluationErrorReply{}
	for _, id := range failed {
		e.Reasons = append(e.Reasons, EvaluationLog{Result: false, Reason: id})
	}
	return e
}

// RtpmError answers a TPM context that is broken or stale; retryable.
func RtpmError() *RtpmErrorReply { return &RtpmErrorReply{ErrorReply{true}} }

// TcgLogValidationError answers an invalid boot log; not retryable.
func TcgLogValidationError() *TcgLogValidationErrorReply { return &TcgLogValidationErrorReply{} }

// UnauthorizedError answers a host that is not entitled; not retryable.
func UnauthorizedError() *UnauthorizedErrorReply { return &UnauthorizedErrorReply{} }

// UnavailableError answers while the service can't work; retryable.
func UnavailableError() *UnavailableErrorReply { return &UnavailableErrorReply{ErrorReply{true}} }

// VirtualSecureModeError answers an unusable VSM identity key; not retryable.
func VirtualSecureModeError() *VirtualSecureModeErrorReply { return &VirtualSecureModeErrorReply{} }

// VsmReportValidationError answers an invalid CA trustlet report; not retryable.
func VsmReportValidationError() *VsmReportValidationErrorReply {
	return &VsmReportValidationErrorReply{}
}
