package attest

import (
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"time"

	"guardhouse/appliance/health"
	"guardhouse/appliance/hgsa"
	"guardhouse/appliance/intake"
	"guardhouse/appliance/policy"
)

// Outcomes of host key attestation in the audit. Never rename one.
const (
	outcomeNotJSON       = "body-not-json"
	outcomeIncomplete    = "body-incomplete"
	outcomePayload       = "payload"
	outcomeTooLarge      = "body-too-large"
	outcomeBusy          = "busy"
	outcomeNoTime        = "no-trusted-time"
	outcomeHostKey       = "host-key-unreadable"
	outcomeUnknownHost   = "host-unknown"
	outcomeRevoked       = "host-revoked"
	outcomeTooOften      = "host-too-often"
	outcomeSignature     = "signature-wrong"
	outcomeVSMKey        = "vsm-key-unreadable"
	outcomeNoSigner      = "no-attestation-signer"
	outcomeSigningFailed = "signing-failed"
)

// Bounds on the keys of strangers for which a signature is verified at all.
const (
	strangerKeyBits     = 4096
	strangerKeyExponent = 65537
)

// proof is what a well-formed host key request holds.
type proof struct {
	request *hgsa.AttestationRequest
	// vsm and hostKey are the raw items 1 and 8, signature is item 9.
	vsm, hostKey, signature []byte
}

// hostKeyAttest is 6.4 of hgsa.md. The mode gate is behind it.
func (q *request) hostKeyAttest() {
	if _, _, ok := q.d.Now(); !ok {
		q.unavailable(outcomeNoTime, "the node does not know the time", "see time why")
		return
	}
	p, ok := q.readProof()
	if !ok {
		return
	}
	host, hostKey, ok := q.knownHost(p)
	if !ok {
		return
	}
	form, err := hgsa.VerifyHostKeySignature(hostKey, p.hostKey, p.vsm, p.signature)
	if err != nil {
		q.refuseHost(host, hgsa.UnauthorizedError(), refusal{outcome: outcomeSignature, detail: err.Error(),
			remedy: "the host signed with another key than the one it names: set its host key again (Set-HgsClientHostKey)"})
		return
	}
	if host.Revoked {
		q.refuseRevoked(host)
		return
	}
	vsm, err := hgsa.ParsePublicKey(p.vsm)
	if err != nil {
		q.verdict(host, outcomeVSMKey)
		q.refuseHost(host, hgsa.VirtualSecureModeError(), refusal{outcome: outcomeVSMKey, detail: err.Error(),
			remedy: "see that virtualization-based security runs on the host"})
		return
	}
	hash := keyHash(vsm.RSA)
	o := order{session: p.request.SessionId, facts: map[string]string{"signature": form, "vsmKey": hash}}
	for _, t := range p.request.RequestedContent {
		o.wanted = append(o.wanted, wanted{t, vsm.RSA, hash})
	}
	q.grant(host, o)
}

func (q *request) notJSON(err error) {
	q.refuse(http.StatusBadRequest, hgsa.PayloadError(), refusal{outcome: outcomeNotJSON, detail: err.Error(), remedy: "look at what runs at the source address"})
}

func (q *request) badPayload(err error) {
	q.refuse(http.StatusOK, hgsa.PayloadError(), refusal{outcome: outcomePayload, detail: err.Error(), remedy: "the host sends what this service does not know; update one of them"})
}

// readProof reads and checks the message; where it is not good it has answered.
func (q *request) readProof() (proof, bool) {
	body, done, err := q.budget.Body(q.w, q.r, q.route.Operation.BodyLimit())
	if err != nil {
		q.refuseBody(err)
		return proof{}, false
	}
	defer done() // what was decoded is smaller
	message, style, err := hgsa.DecodeHostKeyAttest(body)
	if errors.Is(err, hgsa.ErrSyntax) {
		q.notJSON(err)
		return proof{}, false
	}
	q.style = style
	p := proof{request: message}
	if err == nil {
		err = p.check()
	}
	if err != nil {
		q.badPayload(err)
		return proof{}, false
	}
	return p, true
}

// refuseBody answers where there is no body to read.
func (q *request) refuseBody(err error) {
	status, reply, outcome := http.StatusBadRequest, hgsa.Reply(hgsa.PayloadError()), outcomeIncomplete
	switch {
	case errors.Is(err, intake.ErrTooLarge):
		status, outcome = http.StatusRequestEntityTooLarge, outcomeTooLarge
	case errors.Is(err, intake.ErrBusy):
		status, reply, outcome = http.StatusServiceUnavailable, hgsa.UnavailableError(), outcomeBusy
	}
	q.refuse(status, reply, refusal{outcome: outcome, detail: err.Error(), remedy: "look at what runs at the source address"})
}

// check wants items 1, 8 and 9 exactly once (a second one could be outside of
// the signature), none of the kinds that nobody here understands, and one or two
// wanted certificates of types 1 and 2.
func (p *proof) check() error {
	m := p.request
	for _, c := range m.ProvidedContent {
		var into *[]byte
		switch c.Item1 {
		case hgsa.VirtualSecureModeIdentityKey:
			into = &p.vsm
		case hgsa.HostKeyPublicKey:
			into = &p.hostKey
		case hgsa.HostKeySignature:
			into = &p.signature
		case hgsa.HealthCertificate, hgsa.CaTrustletUserData, hgsa.CaTrustletVsmReport, hgsa.CaTrustletReportSignature:
			return fmt.Errorf("provided content of type %d is not served", c.Item1)
		default:
			continue
		}
		if m.Count(c.Item1) != 1 {
			return fmt.Errorf("provided content of type %d comes more than once", c.Item1)
		}
		*into = c.Item2
	}
	if len(p.vsm) == 0 || len(p.hostKey) == 0 || len(p.signature) == 0 {
		return errors.New("provided content lacks one of the types 1, 8 and 9")
	}
	if n := len(m.RequestedContent); n == 0 || n > 2 {
		return fmt.Errorf("%d certificates are requested, 1 or 2 are served", n)
	}
	for _, t := range m.RequestedContent {
		if t != hgsa.VSMIdentityEncryptionKeyCertificate && t != hgsa.VSMIdentitySigningKeyCertificate {
			return fmt.Errorf("a certificate of type %d is requested, 1 and 2 are served", t)
		}
	}
	return nil
}

// knownHost finds the record by the key's value, whatever its encoding.
func (q *request) knownHost(p proof) (policy.Host, *rsa.PublicKey, bool) {
	key, err := hgsa.ParsePublicKey(p.hostKey)
	if err != nil {
		q.refuse(http.StatusOK, hgsa.UnauthorizedError(), refusal{outcome: outcomeHostKey, detail: err.Error(),
			remedy: "the host needs an RSA key of at least 2048 bits (Set-HgsClientHostKey)"})
		return policy.Host{}, nil, false
	}
	spki, err := x509.MarshalPKIXPublicKey(key.RSA)
	if err != nil {
		panic(err) // an RSA key always has this form
	}
	id := policy.HostID(spki)
	if host, ok := q.snap.State.Hosts[id]; ok && host.TPM == nil { // an endorsement key is no host key
		return host, key.RSA, true
	}
	q.pending(p, key, id, spki)
	q.refuse(http.StatusOK, hgsa.UnauthorizedError(), refusal{outcome: outcomeUnknownHost, subject: id,
		detail: "no host is registered with this host key",
		remedy: "if it is yours: host add NAME with its key from Get-HgsClientHostKey, or see host pending"})
	return policy.Host{}, nil, false
}

// pending notes a stranger that proved its key, so that an administrator can
// register it; a key that nobody proved would only fill the list.
func (q *request) pending(p proof, key hgsa.PublicKey, id string, spki []byte) {
	if key.RSA.N.BitLen() > strangerKeyBits || key.RSA.E > strangerKeyExponent {
		return
	}
	if _, err := hgsa.VerifyHostKeySignature(key.RSA, p.hostKey, p.vsm, p.signature); err != nil {
		return
	}
	q.observe(policy.ObservedPending, id, "spki", base64.StdEncoding.EncodeToString(spki))
}

// refuseHost refuses a registered host. It gets an entry of its own, but only
// once a minute for each reason: requests can be replayed, and a flood of them
// must not fill the disk. The others are summed.
func (q *request) refuseHost(host policy.Host, reply hgsa.Reply, why refusal) {
	why.subject = host.ID
	if !q.told.Allow(host.ID+" "+why.outcome, 1, q.d.BootTime()) {
		q.refuse(http.StatusOK, reply, why)
		return
	}
	ctx, cancel := q.context(noteTimeout)
	defer cancel()
	entry := q.entry(policy.AuditRefusal, host.ID, why.outcome)
	entry.Detail, entry.Remedy = why.detail, why.remedy
	if _, err := q.d.Audit(ctx, entry); err != nil {
		q.d.Log("attestation: refusal %s of host %s not noted: %v", why.outcome, host.Name, err)
	}
	q.reply(http.StatusOK, reply)
}

func (q *request) refuseRevoked(host policy.Host) {
	q.verdict(host, outcomeRevoked)
	q.refuseHost(host, hgsa.UnauthorizedError(), revoked(host))
}

func revoked(host policy.Host) refusal {
	return refusal{outcome: outcomeRevoked, detail: "host " + host.Name + " is revoked", remedy: "host restore " + host.Name + ", if it may work again"}
}

// verdict notes the last verdict on a host that proved its key; without proof
// anyone could write here.
func (q *request) verdict(host policy.Host, verdict string) {
	q.observe(policy.ObservedHost, host.ID, "verdict", verdict)
}

func (q *request) observe(kind policy.ObservationKind, subject, fact, value string) {
	q.observeFacts(kind, subject, map[string]string{fact: value})
}

// observeFacts adds the source to the facts.
func (q *request) observeFacts(kind policy.ObservationKind, subject string, facts map[string]string) {
	ctx, cancel := q.context(noteTimeout)
	defer cancel()
	at := q.d.Stamp()
	facts["source"] = q.source()
	q.d.Observe(ctx, []policy.Observation{{Kind: kind, Subject: subject, First: at, Last: at, Count: 1, Facts: facts}})
}

func (q *request) entry(kind policy.AuditKind, subject, outcome string) policy.AuditEntry {
	return policy.AuditEntry{Kind: kind, At: q.d.Stamp(), BootTime: q.d.BootTime().Milliseconds(), Source: q.source(),
		Subject: subject, Action: string(q.route.Operation), Outcome: outcome, Policy: q.snap.Index}
}

// order is what a host that passed gets.
type order struct {
	session hgsa.GUID
	wanted  []wanted
	// begun is when the evidence was asked for: the certificates' life counts
	// from then. Zero = now.
	begun time.Time
	// facts go into the audit entry.
	facts map[string]string
	// granted, if not nil, is called when the audit entry is durable.
	granted func()
}

// wanted is one certificate.
type wanted struct {
	content hgsa.AttestationResultType
	key     *rsa.PublicKey
	hash    string // keyHash
}

// life is how long a certificate made at now is good.
func (o *order) life(full time.Duration, now time.Time) time.Duration {
	if o.begun.IsZero() || now.Before(o.begun) {
		return full
	}
	return full - now.Sub(o.begun)
}

// grant issues the certificates, waits for the audit, and answers.
func (q *request) grant(host policy.Host, o order) {
	if !q.grants.Allow(host.ID, q.d.GrantsPerMinute, q.d.BootTime()) {
		q.refuse(http.StatusServiceUnavailable, hgsa.UnavailableError(), refusal{outcome: outcomeTooOften, subject: host.ID,
			detail: "host " + host.Name + " asks too often, or somebody repeats its requests", remedy: "see what runs at the source address"})
		return
	}
	signer, ok := q.signers.primary(q.snap)
	if !ok {
		q.unavailable(outcomeNoSigner, "there is no attestation signer that may sign now", "attestation-signer renew; see attestation-signer list")
		return
	}
	key, err := q.d.Signer(signer.key)
	if err != nil {
		q.unavailable(outcomeSigningFailed, err.Error(), "see hsm status")
		return
	}
	entry := q.entry(policy.AuditGrant, host.ID, "ok")
	entry.Facts = map[string]string{"host": host.Name, "session": o.session.String(), "signer": string(signer.key.Ref)}
	maps.Copy(entry.Facts, o.facts)
	reply := &hgsa.HealthCertificateReply{}
	for i, w := range o.wanted {
		earliest, latest, ok := q.d.Now()
		der, err := health.Issue(q.d.Random, health.Between(earliest, latest, ok), health.Order{Purpose: health.Purpose(w.content), Key: w.key,
			HostID: host.ID, Life: o.life(q.snap.State.Service.HealthLife, earliest)}, signer.certificate, key)
		if err != nil {
			q.issueFailed(err)
			return
		}
		reply.Content = append(reply.Content, hgsa.TupleOfAttestationResultTypebase64Binary{Item1: w.content, Item2: der})
		entry.Facts[fmt.Sprintf("certificate%d", i+1)] = fmt.Sprintf("type %d sha256 %s", w.content, policy.Thumbprint(der))
	}
	// The HSM may have taken seconds: ask again whether the host is welcome.
	if now, ok := q.d.Snapshot().State.Hosts[host.ID]; !ok || now.Revoked {
		q.refuseRevoked(host)
		return
	}
	ctx, cancel := q.context(auditTimeout)
	defer cancel()
	if _, err := q.d.Audit(ctx, entry); err != nil {
		q.d.Log("attestation: host %s passed, but its audit entry is not durable, so it gets nothing: %v", host.Name, err)
		q.reply(http.StatusServiceUnavailable, hgsa.UnavailableError())
		return
	}
	q.verdict(host, "ok")
	for _, w := range o.wanted {
		if health.Purpose(w.content) == health.Encryption {
			q.observe(policy.ObservedIdentity, host.ID, "vsmKey", w.hash)
		}
	}
	if o.granted != nil {
		o.granted()
	}
	q.reply(http.StatusOK, reply)
}

// issueFailed answers for our own faults: the host is fine.
func (q *request) issueFailed(err error) {
	switch {
	case errors.Is(err, health.ErrNoTime):
		q.unavailable(outcomeNoTime, err.Error(), "see time why")
	case errors.Is(err, health.ErrSigner):
		q.unavailable(outcomeNoSigner, err.Error(), "attestation-signer renew; see attestation-signer list")
	default:
		q.d.Log("attestation: no certificate issued: %v", err)
		q.unavailable(outcomeSigningFailed, err.Error(), "see hsm status")
	}
}

func keyHash(key *rsa.PublicKey) string {
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}
