// Package attest serves the attestation protocol (MS-HGSA) over HTTP: everything
// below /Attestation. Hosts prove a registered key and get health certificates;
// SQL drivers get the attestation signers.
//
// Promise: a health certificate leaves only for a registered host that is not
// revoked and proved its host key or, in TPM mode, that its TPM holds what the
// policies ask for; in a trusted time, signed by the cluster's attestation
// signer whose turn it is, and after the audit entry that tells of it is
// durable. Every other request gets the protocol's typed reply; why it was
// refused and what to do about it goes to the audit, never to the caller.
//
// Limits: host key and TPM mode; in Active Directory mode the informational
// operations and the mode gate work and attestation answers that it is
// unavailable. No state survives a request but a few counters and the nonces of
// answered contexts: the rounds of a TPM conversation carry their own. Bodies of
// all requests together take at most 32 MiB; deadlines of the connection are
// the server's (cmd/hgs). Genuine Windows hosts can't attest in TPM mode yet:
// the framing of their contexts is not public (evidence.PrivateCodec is ours).
//
// There is one mode at a time for all hosts, not one for each host class (C04): a Windows host asks getinfo, without saying who it is, and then
// attests in the mode that is advertised, so one of a class with another mode would never ask in it.
//
// The functional levels of getinfo are fixed: 2, and 1 and 2 supported. A level names what the server itself can do (2: policy version v2),
// which no setting can change, and which versions a host is judged by is in its record; so there is no policy field for them (hgsa.md 13.13).
//
// Where the public record of the protocol is silent (hgsa.md section 13) the
// tests named TestP13_nn_... hold what we decided, here and in the packages
// below. Not settled by them: the genuine framing of TPM contexts (7), which
// needs a capture; the credentials of Active Directory mode (15).
package attest

import (
	"context"
	"crypto"
	"io"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/hgsa"
	"guardhouse/appliance/intake"
	"guardhouse/appliance/policy"
)

// Deps is what the service needs of the node. All functions must be safe for
// concurrent use and are required.
type Deps struct {
	// Snapshot gives the newest records; its State has no Service before setup.
	Snapshot func() policy.Snapshot
	// Now gives the interval in which the present lies; without ok nothing is
	// issued (rpc.TimeSource.Now).
	Now func() (earliest, latest time.Time, ok bool)
	// Stamp is the same for records (rpc.TimeSource.Stamp).
	Stamp func() policy.Stamp
	// BootTime is CLOCK_BOOTTIME.
	BootTime func() time.Duration
	// Signer gives the private half of a recorded key; its calls have deadlines
	// of their own (rpc.NewHSMSigner).
	Signer func(policy.Key) (crypto.Signer, error)
	// Audit returns when the entry is durable on this node.
	Audit func(context.Context, policy.AuditEntry) (policy.AuditReceipt, error)
	// Refuse counts a refused request; it is summed by the ledger.
	Refuse func(context.Context, policy.Refusal) error
	// Observe notes what was seen; it may forget.
	Observe func(context.Context, []policy.Observation)
	// KeepLog offers the boot log with a SHA-256 (lower-case hexadecimal) that an
	// observation of the host just named, so that it can be proved again; it may
	// be forgotten. nil = logs are not kept.
	KeepLog func(ctx context.Context, host, digest string, log []byte)
	// ContextKeys gives the keys that seal TPM conversations; the service wipes
	// what it got, so it must be a copy. ok is false while there are none. Only
	// TPM mode needs it; nil = TPM mode is unavailable.
	ContextKeys func() (keys evidence.ContextKeys, ok bool)
	// GrantsPerMinute bounds what one host gets, because anyone who saw a request
	// on the wire can send it again: such a copy is worth nothing to them, but
	// each grant costs a signature and an audit entry. 0 means
	// DefaultGrantsPerMinute.
	GrantsPerMinute int
	// Random is the source of serial numbers.
	Random io.Reader
	// Log writes a line for the operator. It gets no secrets.
	Log func(format string, args ...any)
}

// Limits of the service.
const (
	bodyBudget   = 32 << 20        // bytes of all request bodies in memory
	bodyStart    = 4 << 10         // of each body not counted: a usual request
	noteTimeout  = 2 * time.Second // for a refusal's entry; the refusal stands without it
	auditTimeout = 10 * time.Second
	retryAfter   = 5 // seconds, sent with every reply that is only for now

	// DefaultGrantsPerMinute is far above a host's need of one in eight hours.
	DefaultGrantsPerMinute = 600
)

// Service answers /Attestation; make it with New.
type Service struct {
	d       Deps
	budget  *intake.Budget
	signers signerCache
	lately  lately
	told    intake.Counter // refusals of registered hosts that got an entry of their own
	grants  intake.Counter

	strangers          intake.Counter // unknown TPMs noted, by source
	answered, finished nonces         // contexts of TPM conversations
	trust              trustCache
	good               goodBoots
	verdicts           verdicts
	eks                ekCache
}

// New makes the service. It starts nothing.
func New(d Deps) *Service {
	if d.GrantsPerMinute == 0 {
		d.GrantsPerMinute = DefaultGrantsPerMinute
	}
	return &Service{d: d, budget: intake.NewBudget(bodyBudget, bodyStart).Reusing(), signers: signerCache{now: d.Now}}
}

// request is one request on its way through the service.
type request struct {
	*Service
	w       http.ResponseWriter
	r       *http.Request
	route   hgsa.Route
	snap    policy.Snapshot
	style   hgsa.Style
	replied bool
}

// ServeHTTP implements http.Handler. A panic becomes a reply without details;
// what and where goes to the log.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := &request{Service: s, w: w, r: r}
	defer func() {
		if p := recover(); p != nil {
			s.d.Log("attestation: fault: %v\n%s", p, debug.Stack())
			if q.replied {
				panic(http.ErrAbortHandler) // half a reply is out: cut the connection
			}
			q.reply(http.StatusInternalServerError, hgsa.UnavailableError())
		}
	}()
	q.serve()
}

// serve checks in the order of hgsa.md 6.2: path, method, setup, mode.
func (q *request) serve() {
	var ok bool
	if q.route, ok = hgsa.ParseRoute(q.r.URL.Path); !ok {
		q.reply(http.StatusNotFound, hgsa.PayloadError())
		return
	}
	method := q.route.Operation.Method()
	if q.r.Method != method && (method != http.MethodGet || q.r.Method != http.MethodHead) {
		if method == http.MethodGet {
			method = "GET, HEAD"
		}
		q.w.Header().Set("Allow", method)
		q.reply(http.StatusMethodNotAllowed, hgsa.PayloadError())
		return
	}
	q.snap = q.d.Snapshot()
	if !q.snap.State.SetUp() {
		q.unavailable("not-set-up", "the node is not set up", "run setup on the serial line")
		return
	}
	mode := hgsa.AttestationOperationMode(q.snap.State.Service.Mode)
	switch q.route.Operation {
	case hgsa.OpGetInfo:
		q.reply(http.StatusOK, &hgsa.ServiceInfoReply{FunctionalLevel: 2, OperationMode: mode, SupportedFunctionalLevels: []uint32{1, 2}})
		return
	case hgsa.OpSigningCertificates:
		q.signingCertificates()
		return
	}
	if q.route.Operation.Mode() != mode {
		q.refuse(http.StatusOK, hgsa.OperationModeError(mode), refusal{outcome: "wrong-mode",
			detail: "asked on " + string(q.route.Operation) + ", the service is in mode " + mode.String(),
			remedy: "none if the host tries again in the right mode; else set its mode, or service set --mode"})
		return
	}
	switch {
	case mode == hgsa.ModeHostKey:
		q.hostKeyAttest()
	case mode == hgsa.ModeTPM && q.d.ContextKeys != nil:
		q.tpmAttest()
	default:
		q.unavailable("mode-not-served", "attestation in mode "+mode.String()+" is not served by this version", "service set --mode HostKey")
	}
}

// source is the caller's address without its port.
func (q *request) source() string {
	host, _, err := net.SplitHostPort(q.r.RemoteAddr)
	if err != nil {
		return q.r.RemoteAddr
	}
	return host
}

// reply writes a message of the protocol with headers and length.
func (q *request) reply(status int, reply hgsa.Reply) {
	body := hgsa.EncodeReply(reply, q.style)
	q.replied = true
	h := q.w.Header()
	setHeaders(h, len(body))
	if status >= 500 {
		h.Set("Retry-After", strconv.Itoa(retryAfter))
	}
	q.w.WriteHeader(status)
	if q.r.Method != http.MethodHead {
		_, _ = q.w.Write(body) // the caller is gone; nobody is left to tell
	}
}

func setHeaders(h http.Header, length int) {
	h.Set("Content-Type", hgsa.ContentType)
	h.Set("Content-Length", strconv.Itoa(length))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
}

// refusal is why a request is refused, for the audit. subject is the host id
// where one is known.
type refusal struct{ outcome, detail, remedy, subject string }

// refuse notes the refusal, then answers. It answers also where the note can't
// be taken: a refusal must not depend on the disk.
func (q *request) refuse(status int, reply hgsa.Reply, why refusal) {
	ctx, cancel := q.context(noteTimeout)
	defer cancel()
	if err := q.d.Refuse(ctx, policy.Refusal{Source: q.source(), Action: string(q.route.Operation), Outcome: why.outcome,
		Detail: why.detail, Remedy: why.remedy, Subject: why.subject}); err != nil {
		q.d.Log("attestation: refusal %s of %s not noted: %v", why.outcome, q.source(), err)
	}
	q.reply(status, reply)
}

// context outlives the caller: hanging up must not keep anything out of the
// audit.
func (q *request) context(timeout time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(q.r.Context()), timeout)
}

// unavailable is the reply for faults of ours: 503, retryable.
func (q *request) unavailable(outcome, detail, remedy string) {
	q.refuse(http.StatusServiceUnavailable, hgsa.UnavailableError(), refusal{outcome: outcome, detail: detail, remedy: remedy})
}
