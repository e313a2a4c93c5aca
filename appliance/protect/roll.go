package protect

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"guardhouse/appliance/health"
	"guardhouse/appliance/intake"
	"guardhouse/appliance/kps"
	"guardhouse/appliance/policy"
)

// Outcomes of a roll in the audit beside the reasons of package health. Never
// rename one.
const (
	outcomeTooLarge    = "body-too-large"
	outcomeBusy        = "busy"
	outcomeIncomplete  = "body-incomplete"
	outcomeMediaType   = "media-type"
	outcomeRequest     = "request-malformed"
	outcomeAlgorithm   = "algorithm-unsupported"
	outcomeUnknownHost = "host-unknown"
	outcomeRevoked     = "host-revoked"
	outcomeHostDenied  = "host-issued-before-deny-date"
	outcomeDenied      = "certificate-denied"
	outcomeTooOften    = "host-too-often"
	outcomeTenantQuota = "tenant-too-often"
	outcomeProtector   = "protector-refused"
	outcomeNoWrapping  = "protector-not-for-us"
	outcomeSecret      = "transport-key-refused"
	outcomeChanged     = "records-changed"
	outcomeAudit       = "audit-unavailable"
)

// roll answers RollTransportKey in the practical order of kps.md 9.1. Nothing
// of the protector is looked at before the health certificate is accepted.
func (q *request) roll() {
	req, ok := q.readRequest()
	if !ok {
		return
	}
	host, ok := q.checkHost(req)
	if !ok {
		return
	}
	if err := req.CheckAlgorithms(); err != nil {
		q.refuseError(outcomeAlgorithm, host.id, err)
		return
	}
	p, err := kps.ParseProtector(req.IngressProtector)
	var forms []string
	if err == nil {
		forms, err = q.verify(p)
	}
	if err != nil {
		q.refuseError(outcomeProtector, host.id, err)
		return
	}
	with, why, ok := q.keys.find(p, q.barred(host))
	if !ok {
		q.refuse(refusal{code: kps.CodeInvalidProtector, outcome: outcomeNoWrapping, host: host.id, detail: why,
			remedy: "its owner must grant it to this service's guardian (metadata.xml), or key enable, or for a tenant's key tenant set"})
		return
	}
	with.forms = forms
	if !q.withinQuota(host, with.encryption.Tenant) {
		return
	}
	q.unwrap(req, host, p, with)
}

// verify proves everything of a protector that needs no key. It gives the
// foreign forms of certificate signatures that were needed (kps.md 14.4), which
// count only where an administrator switched them on.
func (q *request) verify(p *kps.Protector) ([]string, error) {
	if q.snap.State.Service.ForeignForms {
		return p.VerifyForeign()
	}
	return nil, p.Verify()
}

// offline is what the host is told as MaxOfflineUnwraps; only version 2 of the
// protocol knows it (kps.md 14.11).
func (q *request) offline(host caller) policy.OfflineCaching {
	_, latest, ok := q.d.Now()
	if !ok || !host.own || q.route.Version != kps.PayloadV2 {
		return policy.OfflineCaching{}
	}
	o, _ := q.snap.State.OfflineUnwraps(q.snap.State.Hosts[host.id].Class, latest)
	return o
}

// barred tells why a tenant's key is not for this host (row B20). Hosts of a
// foreign attestation signer belong to no class of ours.
func (q *request) barred(host caller) func(policy.Key) string {
	class := ""
	if host.own {
		class = q.snap.State.Hosts[host.id].Class
	}
	return func(k policy.Key) string { return q.snap.State.TenantRefusal(k, class) }
}

// withinQuota is the quota of the tenant whose key opens the protector (row B20). It counts what the token is asked for, whatever becomes of
// it: a protector that fails there costs as much as one that opens. Where the quota is used up it has answered.
func (q *request) withinQuota(host caller, tenant string) bool {
	most := q.snap.State.Tenants[tenant].PerMinute
	if tenant == "" || most == 0 || q.tenants.Allow(tenant, most, q.d.BootTime()) {
		return true
	}
	q.overQuota(tenant, most)
	q.refuse(refusal{code: kps.CodeUnavailable, outcome: outcomeTenantQuota, host: host.id,
		detail: fmt.Sprintf("the tenant %s has used its quota of %d transport keys a minute on this node", tenant, most), remedy: "the host asks again by itself; tenant set --per-minute, if it may have more"})
	return false
}

// overQuota has it noted for those who look at the node, once a minute for each tenant.
func (q *request) overQuota(tenant string, most int) {
	if !q.told.Allow("quota of "+tenant, 1, q.d.BootTime()) {
		return
	}
	ctx, cancel := q.context(noteTimeout)
	defer cancel()
	at := q.d.Stamp()
	q.d.Observe(ctx, []policy.Observation{{Kind: policy.ObservedQuota, Subject: tenant, First: at, Last: at, Count: 1,
		Facts: map[string]string{"perMinute": strconv.Itoa(most), "source": q.source()}}})
}

// readRequest reads and parses the body; where it is not good it has answered.
func (q *request) readRequest() (*kps.RollTransportKeyRequest, bool) {
	if t := q.r.Header.Get("Content-Type"); t != "" && !strings.Contains(strings.ToLower(t), "xml") {
		q.refuse(refusal{code: kps.CodeMediaType, outcome: outcomeMediaType, detail: "the body must be application/xml"})
		return nil, false
	}
	body, done, err := q.budget.Body(q.w, q.r, kps.MaxRequest)
	switch {
	case errors.Is(err, intake.ErrTooLarge):
		q.refuse(refusal{code: kps.CodeTooLarge, outcome: outcomeTooLarge, detail: fmt.Sprintf("the body is larger than %d bytes", kps.MaxRequest)})
		return nil, false
	case errors.Is(err, intake.ErrBusy):
		q.unavailable(outcomeBusy, err.Error(), "look at what runs at the source address")
		return nil, false
	case err != nil:
		q.refuse(refusal{code: kps.CodeInvalidRequest, outcome: outcomeIncomplete, detail: err.Error()})
		return nil, false
	}
	defer done() // what was parsed is smaller
	req, err := kps.ParseRequest(body)
	if err != nil {
		q.refuseError(outcomeRequest, "", err)
		return nil, false
	}
	return req, true
}

// caller is the host for which the reply will be readable.
type caller struct {
	health.Verdict
	id  string // subject of the health certificate, behind its signer where that is a foreign one
	own bool   // one of our attestation signers issued it
}

// checkHost is step 1: the health certificate, then whether its host is still
// welcome. Of our own certificates the host must be registered; a foreign
// attestation signer's hosts need not be, but what is denied here is denied
// whoever issued the certificate.
func (q *request) checkHost(req *kps.RollTransportKeyRequest) (caller, bool) {
	c := caller{Verdict: health.Check(req.HealthCertificate, health.Encryption, q.keys.signers, health.Between(q.d.Now()))}
	switch {
	case c.Reason == health.NoTrustedTime:
		q.noTime(c.Reason.Remedy())
		return c, false
	case !c.OK():
		q.refuse(refusal{code: kps.CodeHealthCertificate, outcome: string(c.Reason), detail: "the health certificate is refused (" + string(c.Reason) + ")",
			remedy: c.Reason.Remedy(), private: c.Detail})
		return c, false
	}
	if _, err := kps.CheckRSA(c.Key); err != nil {
		q.refuse(refusal{code: kps.CodeHealthCertificate, outcome: string(health.WeakKey), detail: err.Error(), remedy: health.WeakKey.Remedy()})
		return c, false
	}
	c.id = c.HostID
	if c.id == "" {
		c.id = "certificate " + c.Certificate.SerialNumber.Text(16)
	}
	c.own = q.keys.own[string(c.Signer.Raw)]
	if !c.own { // it may name one of our hosts: neither the audit nor the rate of that host may take it for them
		c.id = "foreign " + thumbprint(c.Signer)[:16] + " " + c.id
	}
	if why, denied := q.keys.denied.find(c); denied {
		q.refuse(why)
		return c, false
	}
	if c.own && !q.welcome(c, q.snap.State) {
		return c, false
	}
	if !q.rolls.Allow(q.source()+" "+c.id, q.d.RollsPerMinute, q.d.BootTime()) {
		q.refuse(refusal{code: kps.CodeUnavailable, outcome: outcomeTooOften, detail: "this host asks too often, or somebody repeats its requests",
			remedy: "see what runs at the source address"})
		return c, false
	}
	return c, true
}

// welcome is the deny of single hosts. It answers where the host is not.
func (q *request) welcome(c caller, s policy.State) bool {
	host, registered := s.Hosts[c.id]
	why := refusal{code: kps.CodeHealthCertificate}
	switch {
	case c.HostID == "" || !registered:
		why.outcome, why.detail, why.remedy = outcomeUnknownHost, "no host is registered under the id of the health certificate", "host add, then the host must attest again"
	case host.DenyIssuedBefore != 0 && c.Issued.Before(time.Unix(host.DenyIssuedBefore, 0)):
		why.outcome, why.detail, why.remedy = outcomeHostDenied, "the health certificate is older than an administrator allows for this host", "the host must attest again"
		why.host = host.ID
	default:
		return true
	}
	q.refuse(why)
	return false
}

// unwrap is what needs the token: steps 5 to 8, then the audit, then the reply.
func (q *request) unwrap(req *kps.RollTransportKeyRequest, host caller, p *kps.Protector, with opener) {
	ctx, cancel := context.WithTimeout(q.r.Context(), tokenTimeout)
	defer cancel()
	key, err := q.d.Decrypter(with.encryption.Key)
	if err != nil {
		q.tokenFailed(err)
		return
	}
	ingress, err := p.OpenTransportKey(ctx, with.wrapping, key, q.d.Random)
	if err != nil {
		q.rollFailed(outcomeSecret, host, err)
		return
	}
	defer ingress.Wipe()
	signer, err := q.d.Signer(with.signing.Key)
	if err != nil {
		q.tokenFailed(err)
		return
	}
	with.offline = q.offline(host)
	next, egress, err := p.NextVersion(kps.Egress{Ingress: ingress, Guardian: with.wrapping, Signer: signer, MaxOffline: with.offline.MaxUnwraps, Random: q.d.Random})
	if err != nil {
		q.rollFailed(outcomeProtector, host, err)
		return
	}
	defer egress.Wipe()
	resp, err := req.SealReply(kps.Reply{Version: q.route.Version, Ingress: ingress, Egress: egress, Protector: next, HostKey: host.Key, Random: q.d.Random})
	if err != nil {
		q.rollFailed(outcomeAlgorithm, host, err)
		return
	}
	if !q.stillGood(req, with) {
		return
	}
	if !q.record(rolled{host: host, in: p, out: next, ingress: ingress, egress: egress, with: with}) {
		return
	}
	q.reply(http.StatusOK, resp.Marshal())
}

// stillGood asks again with the newest records, because the HSM may have taken seconds: is the host still welcome, do its certificate and
// the keys still count? Where not, it has answered.
func (q *request) stillGood(req *kps.RollTransportKeyRequest, with opener) bool {
	snap := q.d.Snapshot()
	if snap.Index == q.snap.Index {
		return true
	}
	q.snap, q.keys = snap, q.Service.keys.of(snap)
	host, ok := q.checkHost(req)
	if !ok {
		return false
	}
	if with.offline.MaxUnwraps != 0 && q.offline(host) != with.offline {
		q.unavailable(outcomeChanged, "the rules of offline caching changed meanwhile", "the host asks again by itself")
		return false
	}
	if !q.keys.byRef[with.encryption.Ref].Enabled || !q.keys.byRef[with.signing.Ref].Enabled {
		q.refuse(refusal{code: kps.CodeInvalidProtector, outcome: outcomeNoWrapping, host: host.id, detail: "the key of this service's wrapping was disabled meanwhile",
			remedy: "key enable, if it may be used again"})
		return false
	}
	if why := q.barred(host)(q.keys.byRef[with.encryption.Ref].Key); why != "" {
		q.refuse(refusal{code: kps.CodeInvalidProtector, outcome: outcomeNoWrapping, host: host.id, detail: why, remedy: "tenant set, if it may be used for this host"})
		return false
	}
	return true
}

// rollFailed tells a protector that is at fault from a token that is.
func (q *request) rollFailed(outcome string, host caller, err error) {
	var r *kps.Refusal
	if errors.As(err, &r) {
		q.refuseError(outcome, host.id, err)
		return
	}
	q.tokenFailed(err)
}

func (q *request) tokenFailed(err error) {
	q.d.Log("key protection: no transport key returned: %v", err)
	q.unavailable(outcomeToken, "the HSM does not answer at the moment", "see hsm status")
}

// rolled is a roll that is done but for its record.
type rolled struct {
	host            caller
	in, out         *kps.Protector
	ingress, egress *kps.TransportKey
	with            opener
}

// record makes the grant durable; without that nothing leaves. Then it has the use of the keys noted.
func (q *request) record(r rolled) bool {
	ctx, cancel := q.context(auditTimeout)
	defer cancel()
	owner := thumbprint(r.in.Owner().SigningCertificate)
	e := q.entry(policy.AuditGrant, r.host.id, "ok")
	e.Detail = "transport key returned, readable only with the key of the host's health certificate"
	e.Facts = map[string]string{
		"protector": hexSum(r.in.Bytes()), "egress": hexSum(r.out.Bytes()), "owner": owner, "wrapping": decimal(r.with.wrapping.ID),
		"encryptionKey": string(r.with.encryption.Ref), "signingKey": string(r.with.signing.Ref),
		"certificate": r.host.Certificate.SerialNumber.Text(16), "attestationSigner": thumbprint(r.host.Signer), "payload": decimal(uint32(q.route.Version)),
	}
	if known, ok := q.snap.State.Hosts[r.host.id]; ok && r.host.own {
		e.Facts["host"] = known.Name
	}
	if o := r.with.offline; o.MaxUnwraps != 0 {
		e.Detail += "; the host may keep it for starts without this service"
		e.Facts["offlineUnwraps"] = decimal(o.MaxUnwraps)
		e.Facts["offlineClass"] = o.Class
	}
	if len(r.with.forms) > 0 {
		e.Facts["foreignForms"] = strings.Join(r.with.forms, ",")
	}
	if t := r.with.encryption.Tenant; t != "" {
		e.Facts["tenant"] = t
	}
	if _, err := q.d.Audit(ctx, e); err != nil {
		q.d.Log("key protection: a transport key was unwrapped for host %s, but its audit entry is not durable, so it gets nothing: %v", r.host.id, err)
		q.unavailable(outcomeAudit, "the audit can't be written, so no key is given out", "see audit verify; free the audit's disk with audit export and audit trim")
		return false
	}
	use := policy.ProtectorUse{Mark: r.ingress.Mark(), Next: r.egress.Mark(), Protector: e.Facts["egress"], Owner: owner,
		OwnerName: bounded(r.in.Owner().SigningCertificate.Subject.CommonName, policy.MaxOwnerName), Encryption: r.with.encryption.Ref, Signing: r.with.signing.Ref,
		Host: bounded(r.host.id, policy.MaxOwnerName), HostName: e.Facts["host"], At: e.At}
	q.d.Used(ctx, use)
	return true
}

// note tells the ledger of a failure without answering.
func (q *request) note(outcome, detail, remedy string) {
	ctx, cancel := q.context(noteTimeout)
	defer cancel()
	if err := q.d.Refuse(ctx, policy.Refusal{Source: q.source(), Action: q.action, Outcome: outcome, Detail: detail, Remedy: remedy}); err != nil {
		q.d.Log("key protection: %s not noted: %v", outcome, err)
	}
}

// bounded cuts at most bytes.
func bounded(s string, most int) string { return strings.ToValidUTF8(s[:min(len(s), most)], "") }

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func decimal(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
