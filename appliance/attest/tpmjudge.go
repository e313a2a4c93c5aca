package attest

import (
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"guardhouse/appliance/appraise"
	"guardhouse/appliance/evidence"
	"guardhouse/appliance/hgsa"
	"guardhouse/appliance/policy"
)

// appraise decides over an authentic reading: the host, its log, the policies,
// and at last whether there are keys to certify.
func (q *request) appraise(host policy.Host, ek *evidence.EK, c claim, reading *evidence.Reading) {
	e := q.judge(host, ek, reading)
	switch {
	case e.verdict.Passed:
	case e.verdict.Unauthorized():
		q.failed(e, hgsa.UnauthorizedError())
		return
	case e.verdict.LogRefused():
		q.failed(e, hgsa.TcgLogValidationError())
		return
	default:
		q.failed(e, hgsa.PolicyEvaluationError(reasons(&e.verdict)...))
		return
	}
	o := order{session: c.session, begun: reading.Started, facts: map[string]string{policy.FactWindowsEvent: eventTPMPassed, "log": e.log, "baseline": e.verdict.Matched.Baseline,
		"ciPolicy": e.verdict.Matched.CIPolicy, "device": fmt.Sprintf("version %d interface %d bank %s", reading.Device.Version, reading.Device.Interface, reading.Bank)}}
	for _, t := range c.requested {
		key, err := e.identityKey(t)
		if err != nil {
			e.verdict.Findings = append(e.verdict.Findings, appraise.Finding{Kind: appraise.NoIdentityKey, SubStatus: "VirtualSecureMode", PCR: -1, Event: -1,
				What: err.Error(), Remedy: "run a version of Windows that measures this key, or ask for the other certificate only"})
			q.failed(e, hgsa.VirtualSecureModeError())
			return
		}
		w := wanted{t, key, keyHash(key)}
		o.wanted = append(o.wanted, w)
		o.facts[fmt.Sprintf("vsmKey%d", t)] = w.hash
	}
	o.granted = func() {
		if e.facts != nil && q.good.news(&e, q.d.BootTime()) {
			q.keep(policy.ObservedGood, e)
		}
	}
	q.grant(host, o)
}

// proved is what one conversation with a host's TPM gave.
type proved struct {
	host    policy.Host
	reading *evidence.Reading
	log     string          // SHA-256
	facts   *evidence.Facts // nil if the log proved nothing, and where the verdict was remembered
	verdict appraise.Verdict
	// idk and idks are the VSM identity keys that the boot shows.
	idk, idks []byte
}

// reasons are the GUIDs of the failed policies.
func reasons(v *appraise.Verdict) (ids []hgsa.GUID) {
	for _, text := range v.Reasons() {
		for _, p := range hgsa.PolicyIDs {
			if strings.EqualFold(p.ID.String(), text) {
				ids = append(ids, p.ID)
			}
		}
	}
	return ids
}

// identityKey is the key that the boot log shows for a type of certificate.
func (e *proved) identityKey(t hgsa.AttestationResultType) (*rsa.PublicKey, error) {
	payload := e.idk
	if t == hgsa.VSMIdentitySigningKeyCertificate {
		payload = e.idks
	}
	if payload == nil {
		return nil, fmt.Errorf("the boot log holds no VSM identity key for %s", t)
	}
	key, err := hgsa.ParsePublicKey(payload)
	if err != nil {
		return nil, fmt.Errorf("the boot log's VSM identity key for %s: %w", t, err)
	}
	return key.RSA, nil
}

const maxFindingsNoted = 12

// toldPerMinute bounds the audit entries about one host, which may invent ever
// new ways to fail; what is more is summed.
const toldPerMinute = 10

// eventTPMPassed is the id of a host that passed in TPM mode.
const eventTPMPassed = "1523"

// failed refuses a host that proved itself and does not pass: the reply says
// what the protocol has words for, the audit and the console get everything. A
// set of findings gets an entry of its own once a minute, before the reply.
func (q *request) failed(e proved, reply hgsa.Reply) {
	findings := e.verdict.Findings
	outcome := e.verdict.Outcome()
	if e.verdict.Passed { // by the policies
		outcome = string(findings[0].Kind)
	}
	entry := q.entry(policy.AuditRefusal, e.host.ID, outcome)
	entry.Detail, entry.Remedy = findings[0].What, findings[0].Remedy
	entry.Facts = map[string]string{"host": e.host.Name, "log": e.log, "reply": reply.Type()}
	if events := windowsEvents(findings); events != "" {
		entry.Facts[policy.FactWindowsEvent] = events
	}
	told := e.host.ID
	for i := range findings {
		line := line(&findings[i])
		told += "\n" + line
		if i < maxFindingsNoted {
			entry.Facts[fmt.Sprintf("finding%02d", i+1)] = line
		}
	}
	q.observeFacts(policy.ObservedHost, e.host.ID, map[string]string{"verdict": outcome, "mode": "TPM", "finding": line(&findings[0])})
	e.verdict.Passed = false
	q.keep(policy.ObservedFindings, e)
	q.good.failed(e.host.ID)
	sum := sha256.Sum256([]byte(told))
	if now := q.d.BootTime(); !q.told.Allow(string(sum[:]), 1, now) || !q.told.Allow(e.host.ID+" findings", toldPerMinute, now) {
		q.refuse(http.StatusOK, reply, refusal{outcome: outcome, subject: e.host.ID, detail: entry.Detail, remedy: entry.Remedy})
		return
	}
	ctx, cancel := q.context(noteTimeout)
	defer cancel()
	if _, err := q.d.Audit(ctx, entry); err != nil {
		q.d.Log("attestation: refusal %s of host %s not noted: %v", outcome, e.host.Name, err)
	}
	q.reply(http.StatusOK, reply)
}

// windowsEvents are the ids of Microsoft's event log that the findings have, each once, in their order, so that rules of a collector
// which know those ids keep working (row F18). Empty where none has one.
func windowsEvents(findings []appraise.Finding) string {
	var ids []string
	for i := range findings {
		if id := strconv.Itoa(findings[i].EventID); findings[i].EventID != 0 && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return strings.Join(ids, ",")
}

// line is a finding in one line, for the audit.
func line(f *appraise.Finding) string {
	text := string(f.Kind)
	if f.Policy != "" {
		text += " " + f.Policy
	}
	if f.PCR >= 0 {
		text += fmt.Sprintf(" PCR %d", f.PCR)
	}
	if f.Event >= 0 {
		text += fmt.Sprintf(" event %d", f.Event)
	}
	if f.Measured != "" {
		text += " measured " + f.Measured
	}
	return clip(text + ": " + f.What + "; " + f.Remedy)
}

// keep notes evidence with its verdict, for diffs, adoption and dry runs on the
// console. Nothing here decides by it.
func (q *request) keep(kind policy.ObservationKind, e proved) {
	facts, err := appraise.Record(&e.verdict, e.facts, map[string]string{"log": e.log, "source": q.source(),
		"pcrs": appraise.RecordPCRs(e.reading.Bank, &e.reading.PCRs)})
	if err != nil {
		q.d.Log("attestation: evidence of host %s is not kept: %v", e.host.Name, err)
		return
	}
	q.observeFacts(kind, e.host.ID, facts)
	if q.d.KeepLog != nil {
		ctx, cancel := q.context(noteTimeout)
		defer cancel()
		q.d.KeepLog(ctx, e.host.ID, e.log, e.reading.Log)
	}
}

// trustCache keeps the TPM vendors' certificates of one snapshot as long as they
// stay the same: reading them takes longer than an attestation.
type trustCache struct {
	mu      sync.Mutex
	index   uint64
	anchors map[string]policy.Anchor
	off     map[string]bool
	trust   *appraise.Trust
}

func (c *trustCache) of(snap policy.Snapshot) *appraise.Trust {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &snap.State
	same := c.trust != nil && (c.index == snap.Index ||
		maps.Equal(c.off, s.VendorsOff) && maps.EqualFunc(c.anchors, s.Anchors, func(a, b policy.Anchor) bool { return a.Vendor == b.Vendor && a.Root == b.Root }))
	if !same {
		c.trust, _ = appraise.NewTrust(snap.State) // what can't be read was told when it was imported
	}
	c.index, c.anchors, c.off = snap.Index, s.Anchors, s.VendorsOff
	return c.trust
}

// goodBoots remembers what the last boots that passed proved, to say what has
// changed, and when that was last told to the ledger. It forgets everything when
// there are too many.
type goodBoots struct {
	mu    sync.Mutex
	boots map[string]goodBoot // by host id
}

type goodBoot struct {
	log     string
	matched appraise.Matched
	facts   []byte        // packed
	told    time.Duration // CLOCK_BOOTTIME; zero: it must be told again
}

const (
	maxGoodBoots = 16 << 10         // of about 2 KB
	goodBootNews = 10 * time.Minute // how old the note of an unchanged boot may become
)

// due reports whether news would be told of this boot: what is only remembered
// can't be told.
func (g *goodBoots) due(host, log string, matched appraise.Matched, now time.Duration) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	old, ok := g.boots[host]
	return !ok || old.log != log || old.matched != matched || old.told <= 0 || now-old.told >= goodBootNews
}

// news remembers a boot that passed and reports whether the ledger should hear
// of it.
func (g *goodBoots) news(e *proved, now time.Duration) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	old, ok := g.boots[e.host.ID]
	same := ok && old.log == e.log && old.matched == e.verdict.Matched
	if same && old.told > 0 && now-old.told < goodBootNews {
		return false
	}
	if !same {
		b, err := appraise.Pack(e.facts)
		if err != nil {
			return true // no facts that came out of a log
		}
		old = goodBoot{log: e.log, matched: e.verdict.Matched, facts: b}
	}
	if g.boots == nil || !ok && len(g.boots) >= maxGoodBoots {
		g.boots = map[string]goodBoot{}
	}
	old.told = now
	g.boots[e.host.ID] = old
	return true
}

// failed has the next good boot told, however little it has changed: it is newer
// than the failure.
func (g *goodBoots) failed(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if b, ok := g.boots[id]; ok {
		b.told = 0
		g.boots[id] = b
	}
}

func (g *goodBoots) get(id string) *evidence.Facts {
	g.mu.Lock()
	b := g.boots[id].facts
	g.mu.Unlock()
	if b == nil {
		return nil
	}
	f, err := appraise.Unpack(b)
	if err != nil {
		return nil
	}
	return f
}
