// Package protect serves the key protection protocol (MS-KPS) over HTTP:
// everything below /KeyProtection. Tenants fetch guardian metadata; guarded
// hosts send a key protector and get its transport key and the next version.
//
// Promise: a transport key leaves only encrypted to the key of a health
// certificate that a trusted attestation signer issued, that is valid at every
// moment the present may be, and whose host was not revoked; out of a protector
// whose every signature holds; by a key that is enabled; and after the audit
// entry that tells of it is durable. Every failure around the secret (padding,
// structure, MAC) gives one and the same reply after the same work.
//
// A service that was set up without key protection answers 503 and says so.
//
// Limits: a request is not signed, so who sends it is not proven; only the
// holder of the certified key can read the reply. Private keys lie elsewhere
// and are named by policy.KeyRef. Deadlines of the connection are the server's
// (cmd/hgs). Offline unwrapping is off but for host classes that the records
// name, and there until the moment they name; a foreign attestation signer's
// hosts belong to no class of ours.
package protect

import (
	"context"
	"crypto"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"guardhouse/appliance/intake"
	"guardhouse/appliance/kps"
	"guardhouse/appliance/policy"
)

// Deps is what the service needs of the node. All functions must be safe for
// concurrent use and are required; numbers may be zero.
type Deps struct {
	// Snapshot gives the newest records; its State has no Service before setup.
	Snapshot func() policy.Snapshot
	// Now gives the interval in which the present lies; without ok no key
	// protector is opened (rpc.TimeSource.Now).
	Now func() (earliest, latest time.Time, ok bool)
	// Stamp is the same for records (rpc.TimeSource.Stamp).
	Stamp func() policy.Stamp
	// BootTime is CLOCK_BOOTTIME.
	BootTime func() time.Duration
	// Signer gives the private half of a recorded key; its calls have deadlines
	// of their own (rpc.NewHSMSigner).
	Signer func(policy.Key) (crypto.Signer, error)
	// Decrypter gives the private half of a recorded encryption key (HSMDecrypter).
	Decrypter func(policy.Key) (kps.Decrypter, error)
	// Audit returns when the entry is durable on this node.
	Audit func(context.Context, policy.AuditEntry) (policy.AuditReceipt, error)
	// Refuse counts a refused request; it is summed by the ledger.
	Refuse func(context.Context, policy.Refusal) error
	// Observe notes what the node saw; it may forget.
	Observe func(context.Context, []policy.Observation)
	// Used notes which keys a key protector needs; it may forget.
	Used func(context.Context, policy.ProtectorUse)
	// Random is the source of transport keys.
	Random io.Reader
	// Log writes a line for the operator. It gets no secrets.
	Log func(format string, args ...any)
	// RollsPerMinute bounds what one source address gets for one host, because
	// whoever has seen a health certificate and a protector can send them again.
	// 0 means DefaultRollsPerMinute.
	RollsPerMinute int
	// Status overrides the HTTP status of an error code: what the original sends
	// is not documented.
	Status map[kps.Code]int
}

// Limits of the service.
const (
	bodyBudget   = 16 << 20 // bytes of all request bodies in memory
	bodyStart    = 16 << 10 // of each body not counted: a usual protector
	noteTimeout  = 2 * time.Second
	tokenTimeout = 15 * time.Second
	auditTimeout = 10 * time.Second
	retryAfter   = 5 // seconds, sent with every reply that is only for now

	// DefaultRollsPerMinute lets a host start a hundred machines a second.
	DefaultRollsPerMinute = 6000
)

// Actions in the audit.
const (
	actionRoll     = "rolltransportkey"
	actionMetadata = "metadata.xml"
	actionAbsent   = "keyprotection"
)

const (
	outcomeAbsent = "attestation-only"
	absentMessage = "This service only attests hosts; it has no key protection, no guardian and no keys to give out."
)

// Service answers /KeyProtection; make it with New.
type Service struct {
	d       Deps
	budget  *intake.Budget
	keys    keyCache
	told    intake.Counter // refusals of known hosts that got an entry of their own, and tenants at their quota that were noted
	rolls   intake.Counter
	tenants intake.Counter // by tenant
}

// New makes the service. It starts nothing.
func New(d Deps) *Service {
	if d.RollsPerMinute == 0 {
		d.RollsPerMinute = DefaultRollsPerMinute
	}
	return &Service{d: d, budget: intake.NewBudget(bodyBudget, bodyStart)}
}

// request is one request on its way through the service.
type request struct {
	*Service
	w       http.ResponseWriter
	r       *http.Request
	route   kps.Route
	action  string
	snap    policy.Snapshot
	keys    *keyring
	replied bool
}

// ServeHTTP implements http.Handler. A panic becomes a reply without details;
// what and where goes to the log.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := &request{Service: s, w: w, r: r}
	defer func() {
		if p := recover(); p != nil {
			s.d.Log("key protection: fault: %v\n%s", p, debug.Stack())
			if q.replied {
				panic(http.ErrAbortHandler) // half a reply is out: cut the connection
			}
			q.fail(kps.CodeInternal, "internal fault, see the node's log")
		}
	}()
	q.serve()
}

func (q *request) serve() {
	q.route = kps.Match(q.r.URL.Path)
	if v := q.d.Snapshot().State.Service; v != nil && v.AttestationOnly {
		q.absent()
		return
	}
	switch q.route.Operation {
	case kps.OpMetadata:
		q.action = actionMetadata
		if q.allow(http.MethodGet, http.MethodPost, http.MethodHead) && q.ready() {
			q.metadata()
		}
	case kps.OpRoll:
		q.action = actionRoll
		if q.allow(http.MethodPost) && q.ready() && q.timed() {
			q.roll()
		}
	case kps.OpUnknownVersion:
		q.action = actionRoll
		// A host of a version that nobody here knows shows itself this way.
		q.d.Log("key protection: API version %q asked for by %s is not served", q.route.Segment, q.source())
		q.refuse(refusal{code: kps.CodeNotFound, outcome: "version-unknown", detail: "API version " + q.route.Segment + " is not served; v1.0 and v2.0 are",
			remedy: "update this node or the host"})
	default:
		q.fail(kps.CodeNotFound, "there is nothing at this path; the service is at "+kps.RollPathV2+" and "+kps.MetadataPath)
	}
}

// absent answers everybody where there is no key protection (row A05).
func (q *request) absent() {
	q.action = actionAbsent
	q.note(outcomeAbsent, "there is no key protection here", "none: this service was set up to attest only; point the caller at another service")
	body := (&kps.ErrorDocument{Code: kps.CodeUnavailable, Message: absentMessage}).Marshal()
	q.reply(http.StatusServiceUnavailable, body) // without Retry-After: it stays so
}

func (q *request) allow(methods ...string) bool {
	for _, m := range methods {
		if q.r.Method == m {
			return true
		}
	}
	q.w.Header().Set("Allow", strings.Join(methods, ", "))
	q.fail(kps.CodeMethodNotAllowed, "use "+methods[0])
	return false
}

// ready loads the records.
func (q *request) ready() bool {
	q.snap = q.d.Snapshot()
	if !q.snap.State.SetUp() {
		q.unavailable(outcomeNotSetUp, "the node is not set up", "run setup on the serial line")
		return false
	}
	q.keys = q.Service.keys.of(q.snap)
	return true
}

// timed sees that the dates of a health certificate can be judged at all. Guardian metadata holds no date of ours and goes on without.
func (q *request) timed() bool {
	if _, _, ok := q.d.Now(); !ok {
		q.noTime("see time why")
		return false
	}
	return true
}

func (q *request) noTime(remedy string) {
	q.unavailable(outcomeNoTime, "the node does not know the time, so the dates of the health certificate can't be judged", remedy)
}

// source is the caller's address without its port.
func (q *request) source() string {
	host, _, err := net.SplitHostPort(q.r.RemoteAddr)
	if err != nil {
		return q.r.RemoteAddr
	}
	return host
}

// statuses are the proposals of kps.md 14.13.
var statuses = map[kps.Code]int{
	kps.CodeHealthCertificate: http.StatusBadRequest, kps.CodeInvalidProtector: http.StatusBadRequest, kps.CodeInvalidWrapping: http.StatusBadRequest,
	kps.CodeInvalidRequest: http.StatusBadRequest, kps.CodeUnsupportedAlgorithm: http.StatusBadRequest,
	kps.CodeNotFound: http.StatusNotFound, kps.CodeMethodNotAllowed: http.StatusMethodNotAllowed,
	kps.CodeTooLarge: http.StatusRequestEntityTooLarge, kps.CodeMediaType: http.StatusUnsupportedMediaType,
	kps.CodeUnavailable: http.StatusServiceUnavailable,
}

func (q *request) status(code kps.Code) int {
	if s, ok := q.d.Status[code]; ok && s >= 400 && s < 600 {
		return s
	}
	if s, ok := statuses[code]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// fail sends an Error document.
func (q *request) fail(code kps.Code, message string) {
	status := q.status(code)
	if code == kps.CodeUnavailable {
		q.w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
	}
	q.reply(status, (&kps.ErrorDocument{Code: code, Message: message}).Marshal())
}

func (q *request) reply(status int, body []byte) {
	q.replied = true
	h := q.w.Header()
	h.Set("Content-Type", "application/xml; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	q.w.WriteHeader(status)
	if q.r.Method != http.MethodHead {
		_, _ = q.w.Write(body) // the caller is gone; nobody is left to tell
	}
}

// refusal is why a request is refused. detail and remedy are for the audit and,
// in refuse, also the message on the wire: neither holds a secret. host is the
// host id where the health certificate's signature was good, else empty.
type refusal struct {
	code    kps.Code
	outcome string
	detail  string
	remedy  string
	private string // for the audit only, after detail
	host    string
}

// refuse notes the refusal, then answers. It answers also where the note can't
// be taken: a refusal must not depend on the disk. A known host gets an entry of
// its own, but only once a minute for each reason; the rest is summed.
func (q *request) refuse(why refusal) {
	ctx, cancel := q.context(noteTimeout)
	defer cancel()
	detail := why.detail
	if why.private != "" {
		detail += ": " + why.private
	}
	var err error
	if why.host != "" && q.told.Allow(why.host+" "+why.outcome, 1, q.d.BootTime()) {
		e := q.entry(policy.AuditRefusal, why.host, why.outcome)
		e.Detail, e.Remedy = detail, why.remedy
		_, err = q.d.Audit(ctx, e)
	} else {
		err = q.d.Refuse(ctx, policy.Refusal{Source: q.source(), Action: q.action, Outcome: why.outcome, Detail: detail, Remedy: why.remedy, Subject: why.host})
	}
	if err != nil {
		q.d.Log("key protection: refusal %s of %s not noted: %v", why.outcome, q.source(), err)
	}
	message := why.detail
	if why.remedy != "" {
		message += "; " + why.remedy
	}
	q.fail(why.code, message)
}

// refuseError is refuse for an error of package kps.
func (q *request) refuseError(outcome, host string, err error) {
	why := refusal{code: kps.CodeOf(err), outcome: outcome, host: host, detail: err.Error()}
	var r *kps.Refusal
	if errors.As(err, &r) {
		why.detail = r.Reason
		if r.Algorithm != "" {
			q.d.Log("key protection: %s sent an algorithm that is not known: %q", q.source(), r.Algorithm)
			why.remedy = "note the algorithm and report it: it is not in this version"
		}
	}
	q.refuse(why)
}

// unavailable is the reply for faults of ours: 503, retryable.
func (q *request) unavailable(outcome, detail, remedy string) {
	q.refuse(refusal{code: kps.CodeUnavailable, outcome: outcome, detail: detail, remedy: remedy})
}

// context outlives the caller: hanging up must not keep anything out of the
// audit.
func (q *request) context(timeout time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(q.r.Context()), timeout)
}

func (q *request) entry(kind policy.AuditKind, subject, outcome string) policy.AuditEntry {
	return policy.AuditEntry{Kind: kind, At: q.d.Stamp(), BootTime: q.d.BootTime().Milliseconds(), Source: q.source(),
		Subject: subject, Action: q.action, Outcome: outcome, Policy: q.snap.Index}
}
