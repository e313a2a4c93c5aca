package attest

import (
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/hgsa"
	"guardhouse/appliance/policy"
)

// This file is the conversation of TPM mode (hgsa.md 6.5, 8, 13.6, 13.7). All
// that a round needs to know of the earlier ones travels sealed through the
// host, so the rounds of one conversation may be answered by different nodes.
//
// A context that was answered is remembered here, and refused when it comes
// again. Another node does not know of it, nor does this process after a
// restart: there a copy is good for two minutes
// (evidence.SessionLifetime) and leads at most to certificates for the same
// keys, whose end is counted from the beginning of the first conversation.

// Outcomes of TPM attestation in the audit, beside the kinds of findings
// (appraise.Kind). Never rename one.
const (
	outcomeEK         = "endorsement-key-unreadable"
	outcomeUnknownTPM = "tpm-unknown"
	outcomeNoKeys     = "no-context-keys"
	outcomeContext    = "tpm-context"
	outcomeExpired    = "tpm-context-expired"
	outcomeReplayed   = "tpm-context-replayed"
	outcomeTPM        = "tpm-failed"
	outcomeOtherEK    = "tpm-other-key"
	outcomeForged     = "tpm-forged"
	outcomeBank       = "tpm-bank-missing"
)

// pendingPerMinute bounds the unknown TPMs that one source may put before the
// administrators: nobody proved that they exist.
const pendingPerMinute = 6

// claim is what a well-formed request of TPM mode holds: who the host says it
// is, and what its TPM answered.
type claim struct {
	session     hgsa.GUID
	requested   []hgsa.AttestationResultType
	certified   bool   // v2.0: key is its certificate
	key         []byte // as it came
	ek          *evidence.EK
	known       bool                  // ek was parsed before, for a registered host; then certificate is nil
	certificate *evidence.Certificate // v2.0 only
	context     []byte                // empty in the first request
}

// tpmAttest is 6.5 of hgsa.md. The mode gate is behind it.
func (q *request) tpmAttest() {
	earliest, _, ok := q.d.Now()
	if !ok {
		q.unavailable(outcomeNoTime, "the node does not know the time", "see time why")
		return
	}
	c, ok := q.readClaim()
	if !ok {
		return
	}
	host, ek, ok := q.knownTPM(c)
	if !ok {
		return
	}
	if host.Revoked {
		// The TPM proved nothing yet: no verdict is noted.
		q.refuseHost(host, hgsa.UnauthorizedError(), revoked(host))
		return
	}
	keys, ok := q.d.ContextKeys()
	defer clear(keys.Current)
	defer clear(keys.Previous)
	if !ok {
		q.unavailable(outcomeNoKeys, "the node has no keys to seal the conversation with", "see status; they come from the ledger right after setup")
		return
	}
	d := &evidence.Dialogue{Keys: keys, Codec: evidence.PrivateCodec, Random: q.d.Random}
	who := evidence.Host{EK: ek, Session: c.session, Bank: evidence.SHA256, Fallback: evidence.SHA384}
	if len(c.context) == 0 {
		q.begin(d, who, host, earliest)
		return
	}
	q.next(d, who, host, c, earliest)
}

func (q *request) begin(d *evidence.Dialogue, who evidence.Host, host policy.Host, now time.Time) {
	context, err := d.Begin(who, now)
	if err != nil {
		q.dialogueFailed(host, err)
		return
	}
	q.reply(http.StatusOK, &hgsa.TpmReplyContinue{RtpmActiveContext: context})
}

func (q *request) next(d *evidence.Dialogue, who evidence.Host, host policy.Host, c claim, now time.Time) {
	turn, err := d.Next(who, c.context, now)
	if err != nil {
		q.dialogueFailed(host, err)
		return
	}
	// Contexts that ended a conversation are kept apart: a flood of beginnings, which need no TPM, can't make them forgotten.
	seen := &q.answered
	if turn.Reading != nil {
		seen = &q.finished
	}
	if !seen.first(turn.Nonce, q.d.BootTime()) {
		q.refuseHost(host, hgsa.RtpmError(), refusal{outcome: outcomeReplayed, detail: "this context was answered before",
			remedy: "none if the host begins anew; if it happens often, somebody repeats its requests"})
		return
	}
	if turn.Reading == nil {
		q.reply(http.StatusOK, &hgsa.TpmReplyContinue{RtpmActiveContext: turn.Context})
		return
	}
	q.appraise(host, who.EK, c, turn.Reading)
}

// dialogueFailed answers for a conversation that did not work: RtpmErrorReply,
// except for faults of ours.
func (q *request) dialogueFailed(host policy.Host, err error) {
	why := refusal{outcome: outcomeContext, detail: err.Error(), remedy: "none if the host begins anew; else look at what is between it and this node"}
	switch {
	case errors.Is(err, evidence.ErrExpired):
		why.outcome, why.remedy = outcomeExpired, "none if the host begins anew; else see why its TPM needs more than two minutes"
	case errors.Is(err, evidence.ErrContext):
	case errors.Is(err, evidence.ErrTPM):
		why.outcome, why.remedy = outcomeTPM, "see tpm.msc on the host; a TPM in lockout can't attest"
	case errors.Is(err, evidence.ErrBank):
		why.outcome = outcomeBank
		why.remedy = "switch the TPM's SHA-256 bank on in the host's firmware setup (or with its vendor's tool) and restart it: SHA-1 alone can't attest"
	case errors.Is(err, evidence.ErrOtherEK):
		why.outcome = outcomeOtherEK
		why.remedy = "if its mainboard or TPM was replaced: host remove " + host.Name + ", then register its new platform identifier"
	case errors.Is(err, evidence.ErrForged):
		why.outcome, why.remedy = outcomeForged, "somebody answers in the place of this host's TPM: look at what runs at the source address"
	case errors.Is(err, evidence.ErrEKKind):
		why.outcome, why.remedy = outcomeEK, "only RSA 2048 and 3072, P-256 and P-384 endorsement keys of the default templates can attest"
	default:
		q.d.Log("attestation: TPM conversation with host %s: %v", host.Name, err)
		q.unavailable(outcomeNoKeys, err.Error(), "see log show hgs")
		return
	}
	q.refuseHost(host, hgsa.RtpmError(), why)
}

// readClaim reads and checks the message; where it is not good it has answered.
func (q *request) readClaim() (claim, bool) {
	body, done, err := q.budget.Body(q.w, q.r, q.route.Operation.BodyLimit())
	if err != nil {
		q.refuseBody(err)
		return claim{}, false
	}
	defer done() // what was decoded is smaller
	message, style, err := hgsa.DecodeAttest(body)
	if errors.Is(err, hgsa.ErrSyntax) {
		q.notJSON(err)
		return claim{}, false
	}
	q.style = style
	if err != nil {
		q.badPayload(err)
		return claim{}, false
	}
	c, err := claimOf(message, q.route.Version)
	if err != nil {
		q.badPayload(err)
		return claim{}, false
	}
	if c.ek, c.known = q.eks.get(c.keyOf()); c.known {
		return c, true
	}
	if err = c.parseKey(); err != nil {
		q.refuse(http.StatusOK, hgsa.UnauthorizedError(), refusal{outcome: outcomeEK, detail: err.Error(),
			remedy: "see Get-TpmEndorsementKeyInfo on the host; a key that can't be read can't be registered"})
		return claim{}, false
	}
	return c, true
}

// claimOf takes a message apart.
func claimOf(message hgsa.Request, version string) (c claim, err error) {
	switch m := message.(type) {
	case *hgsa.TpmRequestInitial:
		c = claim{session: m.SessionId, requested: m.RequestedContent, key: m.RtpmPublicEndorsementKey}
	case *hgsa.TpmRequestContinue:
		c = claim{session: m.SessionId, requested: m.RequestedContent, context: m.RtpmNewContext, key: m.RtpmPublicEndorsementKey}
	case *hgsa.AttestationRequest:
		c = claim{session: m.SessionId, requested: m.RequestedContent, certified: true}
		if c.key, c.context, err = provided(m); err != nil {
			return claim{}, err
		}
	}
	if c.certified != (version == "v2.0") {
		return claim{}, fmt.Errorf("the message is not one of the protocol's version %s", version)
	}
	if n := len(c.requested); n == 0 || n > 2 {
		return claim{}, fmt.Errorf("%d certificates are requested, 1 or 2 are served", n)
	}
	for _, t := range c.requested {
		if t != hgsa.VSMIdentityEncryptionKeyCertificate && t != hgsa.VSMIdentitySigningKeyCertificate {
			return claim{}, fmt.Errorf("a certificate of type %d is requested, 1 and 2 are served", t)
		}
	}
	return c, nil
}

// keyOf is what ekCache knows the key by: bytes that are a certificate in v2.0
// are another form of key in v1.0.
func (c *claim) keyOf() []byte {
	if c.certified {
		return append([]byte("certificate\x00"), c.key...)
	}
	return c.key
}

func (c *claim) parseKey() (err error) {
	c.ek, c.certificate, err = endorsementKey(c.key, c.certified)
	return err
}

// provided wants one item of type 4, at most one of type 2, and none of the kinds that nobody here understands.
func provided(m *hgsa.AttestationRequest) (certificate, context []byte, err error) {
	for _, p := range m.ProvidedContent {
		switch p.Item1 {
		case hgsa.EndorsementKeyCertificate:
			certificate = p.Item2
		case hgsa.RtpmContext:
			context = p.Item2
		case hgsa.HealthCertificate, hgsa.CaTrustletUserData, hgsa.CaTrustletVsmReport, hgsa.CaTrustletReportSignature:
			return nil, nil, fmt.Errorf("provided content of type %d is not served", p.Item1)
		default:
			continue
		}
		if m.Count(p.Item1) != 1 {
			return nil, nil, fmt.Errorf("provided content of type %d comes more than once", p.Item1)
		}
	}
	if len(certificate) == 0 {
		return nil, nil, errors.New("provided content lacks type 4, the certificate of the endorsement key")
	}
	return certificate, context, nil
}

// endorsementKey reads the key in any of its forms (13.5).
func endorsementKey(raw []byte, certified bool) (*evidence.EK, *evidence.Certificate, error) {
	if certified {
		certificate, err := evidence.ParseCertificate(raw)
		if err != nil {
			return nil, nil, err
		}
		ek, err := certificate.EK()
		return ek, certificate, err
	}
	ek, err := evidence.ParseEK(raw)
	if err == nil {
		return ek, nil, nil
	}
	key, keyErr := hgsa.ParsePublicKey(raw)
	if keyErr != nil {
		return nil, nil, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.RSA)
	if err != nil {
		return nil, nil, err
	}
	ek, err = evidence.ParseEK(spki)
	return ek, nil, err
}

// knownTPM finds the record by the key's value and gives the key as it was
// registered: only to that one anything is ever encrypted.
func (q *request) knownTPM(c claim) (policy.Host, *evidence.EK, bool) {
	id := c.ek.ID()
	host, ok := q.snap.State.Hosts[id]
	if !ok || host.TPM == nil {
		if c.known { // the host was registered until now
			_ = c.parseKey() // as it went the first time
		}
		q.pendingTPM(c, id)
		q.refuse(http.StatusOK, hgsa.UnauthorizedError(), refusal{outcome: outcomeUnknownTPM, subject: id,
			detail: "no host is registered with this endorsement key",
			remedy: "if it is yours: register its platform identifier (Get-PlatformIdentifier), or see host pending"})
		return policy.Host{}, nil, false
	}
	registered, err := q.eks.registered(host.TPM.EK)
	if err != nil || !registered.Same(c.ek) {
		q.d.Log("attestation: the recorded endorsement key of host %s can't be used: %v", host.Name, err)
		q.refuseHost(host, hgsa.UnauthorizedError(), refusal{outcome: outcomeEK, detail: "the recorded endorsement key can't be used",
			remedy: "host remove " + host.Name + ", then register its platform identifier again"})
		return policy.Host{}, nil, false
	}
	if !c.known {
		q.eks.put(c.keyOf(), c.ek)
	}
	ek := *registered
	if name := evidence.Bank(host.TPM.NameAlg); name.Size() > 0 {
		ek.NameAlg, ek.Symmetric = name, host.TPM.Symmetric
	}
	return host, &ek, true
}

// pendingTPM notes an unknown TPM, so that an administrator can register it.
// That it exists is proved only by a conversation, which nobody has with
// strangers.
func (q *request) pendingTPM(c claim, id string) {
	now := q.d.BootTime()
	if c.certificate == nil && q.strangers.Recent(id, now) {
		return // a host that is refused by v2.0 asks by v1.0 next: the note with its certificate is worth more
	}
	if !q.strangers.Allow(q.source(), pendingPerMinute, now) {
		return
	}
	if c.certificate != nil {
		q.strangers.Allow(id, 1, now)
	}
	spki, err := x509.MarshalPKIXPublicKey(c.ek.Public)
	if err != nil {
		return
	}
	facts := map[string]string{"mode": "TPM", "spki": base64.StdEncoding.EncodeToString(spki), "nameAlg": fmt.Sprint(uint16(c.ek.NameAlg)),
		"symmetric": fmt.Sprint(c.ek.Symmetric)}
	if c.certificate != nil {
		manufacturer, model, version := c.certificate.TPM()
		facts["tpm"] = clip(fmt.Sprintf("%s %s %s", manufacturer, model, version))
		facts["issuer"] = clip(c.certificate.Issuer.String())
		if der := base64.StdEncoding.EncodeToString(c.certificate.Original); len(der) <= maxPendingCertificate {
			facts["certificate"] = der
		}
	}
	q.observeFacts(policy.ObservedPending, id, facts)
}

// maxPendingCertificate bounds a stranger's certificate in base64: of 3 KiB, where TPMs have room for about 2. With all other facts at their
// longest it stays below policy.ObservedBounds.
const maxPendingCertificate = 4 << 10

func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), policy.MaxAuditField)], "") }
