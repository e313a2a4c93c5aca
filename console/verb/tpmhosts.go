package verb

import (
	"context"
	"crypto/x509"
	"fmt"
	"strings"
	"time"

	"guardhouse/appliance/appraise"
	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// TPMHostAdded is host add-tpm in --json.
type TPMHostAdded struct {
	Done
	ID      string   `json:"id"`
	Key     string   `json:"key"`
	TPM     string   `json:"tpm,omitempty"`    // manufacturer, model, version by its certificate
	Issuer  string   `json:"issuer,omitempty"` // of the certificate
	SHA1    string   `json:"sha1,omitempty"`
	SHA256  string   `json:"sha256,omitempty"`
	Trusted bool     `json:"trusted"`
	Why     string   `json:"why,omitempty"` // not trusted
	Forgave []string `json:"forgave,omitempty"`
	Dates   []string `json:"dates,omitempty"` // what is odd about the validity of the certificate and its issuers; it refuses nobody
	// Template is what is odd about the key's template; empty: nothing.
	Template string `json:"template,omitempty"`
}

// remedyOtherEK is for endorsement keys with whose TPMs no conversation can be held.
const remedyOtherEK = "have the firmware make the default endorsement key (RSA 2048), or use host key mode: host add"

// cannotAttest is why a registered TPM can't attest, or nil: older versions registered such keys.
func cannotAttest(h policy.Host) error {
	if h.TPM == nil {
		return nil
	}
	ek, err := evidence.ParseEK(h.TPM.EK)
	if err != nil {
		return err
	}
	if name := evidence.Bank(h.TPM.NameAlg); name.Size() > 0 {
		ek.NameAlg = name
	}
	return ek.CanAttest()
}

func hostAddTPM(ctx context.Context, s *Session, a Args, stdin []byte) (Output, error) {
	var e endorsement
	var err error
	if a.Has("pending") {
		e, err = pendingEndorsement(ctx, s, a.Get("pending"))
	} else {
		e, err = parseEndorsement(stdin)
	}
	if err != nil {
		return Output{}, err
	}
	spki, err := x509.MarshalPKIXPublicKey(e.ek.Public)
	if err != nil {
		return Output{}, failed("the endorsement key can't be used: "+err.Error(), "")
	}
	if err := e.ek.CanAttest(); err != nil {
		return Output{}, failed("a TPM with this endorsement key can't attest here: "+err.Error(), remedyOtherEK)
	}
	b := policy.TPMHostAdd{Name: a.Get("name"), EK: spki, NameAlg: uint16(e.ek.NameAlg), Symmetric: e.ek.Symmetric, Version: policy.PolicyVersion(a.Get("policy-version")),
		Force: a.Has("force"), Reason: a.Get("reason"), Class: a.Get("class"), Note: a.Get("note"), Inventory: a.Get("inventory"), Machine: e.box}
	v := TPMHostAdded{ID: e.ek.ID(), Key: keyText(spki)}
	snap, _ := s.Node.Snapshot()
	if e.cert != nil {
		v.describe(e.cert)
		b.EKCert = e.cert.Original
		trust, _ := appraise.NewTrust(snap.State)
		if b.Chain, err = trust.Chain(e.cert); err != nil {
			b.Untrusted = clipLong(err.Error())
			v.Why = b.Untrusted
		}
		v.Dates = s.dates(trust, e.cert)
	} else if v.Why = "it has no certificate"; e.why != "" {
		v.Why += ": " + Clean(e.why)
	}
	v.Trusted = len(b.Chain) > 0
	if e.ek.OtherTemplate {
		v.Template = "the key is of another template than the default one: the TPM can attest only if it keeps the key at its default handle"
	}
	out, r, err := propose(ctx, s, policy.CmdHostAddTPM, b)
	if err != nil {
		return Output{}, err
	}
	v.Done = out.Value.(Done)
	v.Message, v.Subject = r.Message, r.Subject
	v.page(out.Text)
	s.modeNoteTPM(out.Text)
	out.Value = v
	return out, nil
}

func (v *TPMHostAdded) describe(c *evidence.Certificate) {
	v.TPM = strings.TrimSpace(strings.Join(nonempty(c.TPM()), " "))
	v.Issuer = c.Issuer.String()
	v.SHA1, v.SHA256 = thumbprints(c.Original)
	for _, w := range c.Forgiven {
		v.Forgave = append(v.Forgave, string(w))
	}
}

func nonempty(all ...string) (some []string) {
	for _, s := range all {
		if s != "" {
			some = append(some, s)
		}
	}
	return some
}

func (v *TPMHostAdded) page(p *Page) {
	p.Field("id", "%s", v.ID).Field("key", "%s", v.Key).Field("TPM", "%s", v.TPM).Field("issuer", "%s", v.Issuer).
		Field("SHA-1", "%s", v.SHA1).Field("SHA-256", "%s", v.SHA256).Field("forgiven", "%s", strings.Join(v.Forgave, ", ")).Field("dates", "%s", datesText(v.Dates))
	p.Field("template", "%s", v.Template)
	if v.Trusted {
		p.Field("trusted", "yes, its certificate leads to a trusted root")
	} else {
		p.Field("trusted", "NO, registered by force: %s", v.Why)
	}
}

// clipLong bounds an error text that goes into a command.
func clipLong(s string) string {
	if s = Clean(s); len(s) > 480 {
		s = strings.ToValidUTF8(s[:480], "") + "..."
	}
	return s
}

// modeNoteTPM warns where a registered TPM has no effect yet.
func (s *Session) modeNoteTPM(p *Page) {
	if snap, _ := s.Node.Snapshot(); snap.State.Service != nil && snap.State.Service.Mode != policy.ModeTPM {
		p.Line("The service is in %s mode: TPMs and their policies count after `service set --mode TPM`.", snap.State.Service.Mode)
	}
}

// kindText is how a host is known.
func kindText(h policy.Host) string {
	switch {
	case h.TPM == nil:
		return "host key"
	case cannotAttest(h) != nil:
		return "TPM " + string(h.TPM.Version) + ", can't attest"
	case h.TPM.Forced != "":
		return "TPM " + string(h.TPM.Version) + ", forced"
	}
	return "TPM " + string(h.TPM.Version)
}

// mixed warns of hosts whose policy version has no baseline or no code integrity policy: all of them fail (C20).
func mixed(state policy.State) (warnings []string) {
	for _, v := range []policy.PolicyVersion{policy.Version2, policy.Version1} {
		n, base, ci := 0, 0, 0
		for _, h := range state.Hosts {
			if h.TPM != nil && h.TPM.Version == v {
				n++
			}
		}
		for _, b := range state.Baselines {
			if b.Version == v {
				base++
			}
		}
		for _, p := range state.CIPolicies {
			if p.Version == v {
				ci++
			}
		}
		if n > 0 && (base == 0 || ci == 0) {
			warnings = append(warnings, fmt.Sprintf("%d hosts have the policy version %s, which has %d baselines and %d code integrity policies: "+
				"they fail until it has one of each", n, v, base, ci))
		}
	}
	return warnings
}

// datesText is how odd dates are told, with what follows from them.
func datesText(notes []string) string {
	if len(notes) == 0 {
		return ""
	}
	return strings.Join(notes, "; ") + " (a note: a TPM is as genuine after it)"
}

// dates are the notes on a certificate's validity; none while the node does not know the time.
func (s *Session) dates(trust *appraise.Trust, c *evidence.Certificate) []string {
	stamp := s.Node.Stamp()
	if stamp.Earliest <= 0 {
		return nil
	}
	return trust.Dates(c, time.UnixMilli(stamp.Earliest))
}

func tpmFields(p *Page, h policy.Host, dates []string) {
	t := h.TPM
	p.Field("EK", "%s", keyText(t.EK)).Field("policies", "version %s", t.Version).Field("inventory", "%s", t.Inventory)
	if m := t.Machine; m != nil {
		p.Field("machine", "%s", strings.Join(nonempty(Clean(m.Serial), Clean(m.SMBIOS)), ", "))
		for _, mac := range m.MACs {
			p.Field("  MAC", "%s", macText(mac))
		}
	}
	if c, err := evidence.ParseCertificate(t.EKCert); err == nil {
		p.Field("TPM", "%s", strings.Join(nonempty(c.TPM()), " ")).Field("issuer", "%s", c.Issuer)
		s1, s256 := thumbprints(c.Original)
		p.Field("EK cert SHA-1", "%s", s1).Field("  SHA-256", "%s", s256)
		if c.NotAfter.Year() < 9999 {
			p.Field("  valid until", "%s", c.NotAfter.UTC().Format(time.DateOnly))
		}
		p.Field("  dates", "%s", datesText(dates))
	}
	if err := cannotAttest(h); err != nil {
		p.Field("can't attest", "%s; %s", err, remedyOtherEK)
	}
	if t.Forced != "" {
		p.Field("forced", "registered without a trusted certificate: %s", t.Forced)
	}
}

// FindingsValue is host findings in --json.
type FindingsValue struct {
	Host     string             `json:"host"`
	ID       string             `json:"id"`
	Passed   *ObservedMoment    `json:"passed,omitempty"` // the last boot that passed
	Failed   *ObservedMoment    `json:"failed,omitempty"` // the last one that did not
	Current  bool               `json:"current"`          // Failed is newer than Passed
	Matched  *appraise.Matched  `json:"matched,omitempty"`
	Findings []appraise.Finding `json:"findings"`
	// Connection is what kept its address from being heard at all.
	Connection []appraise.Finding `json:"connection,omitempty"`
}

// ObservedMoment is when something was seen, and in which log.
type ObservedMoment struct {
	At     policy.Stamp `json:"at"`
	Log    string       `json:"log,omitempty"` // SHA-256
	Source string       `json:"source,omitempty"`
}

// seenEvidence is what is kept of a host's boots.
type seenEvidence struct {
	on      policy.Observation
	at      *ObservedMoment
	verdict *appraise.Verdict
	facts   *evidence.Facts
}

func evidenceOf(ctx context.Context, s *Session, kind policy.ObservationKind, id string) (seenEvidence, error) {
	list, err := rpc.LedgerObserved.Call(ctx, s.Node.Ledger, rpc.ObservedRequest{Kind: kind, Subject: id, Limit: 1})
	if err != nil || len(list) == 0 {
		return seenEvidence{}, err
	}
	o := list[0]
	e := seenEvidence{on: o, at: &ObservedMoment{o.Last, o.Facts["log"], o.Facts["source"]}}
	if e.verdict, e.facts, err = appraise.Recorded(o.Facts); err != nil {
		return seenEvidence{}, failed("what this node keeps of the host's evidence is damaged: "+err.Error(), "wait until it attests again")
	}
	return e, nil
}

// tpmHost finds the record of TPM mode of a machine.
func tpmHost(s *Session, name string) (policy.Host, error) {
	snap, _ := s.Node.Snapshot()
	hosts := snap.State.HostsByName(name)
	for _, h := range hosts {
		if h.TPM != nil {
			return h, nil
		}
	}
	if len(hosts) > 0 {
		return policy.Host{}, failed(fmt.Sprintf("host %q is known by its host key only, which gives no evidence", name), "register its TPM: host add-tpm "+name+" < FILE")
	}
	return policy.Host{}, failed(fmt.Sprintf("there is no host %q", name), "see host list")
}

func hostFindings(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	h, err := tpmHost(s, a.Get("name"))
	if err != nil {
		return Output{}, err
	}
	good, err := evidenceOf(ctx, s, policy.ObservedGood, h.ID)
	if err != nil {
		return Output{}, err
	}
	bad, err := evidenceOf(ctx, s, policy.ObservedFindings, h.ID)
	if err != nil {
		return Output{}, err
	}
	v := FindingsValue{Host: h.Name, ID: h.ID, Passed: good.at, Failed: bad.at, Findings: []appraise.Finding{}}
	v.Current = bad.at != nil && (good.at == nil || !newer(good.at.At, bad.at.At))
	p := new(Page).Field("host", "%s, %s", h.Name, kindText(h)).Field("id", "%s", h.ID)
	if good.at != nil {
		v.Matched = &good.verdict.Matched
		p.Field("last passed", "%s, with baseline %s and code integrity policy %s", when(good.at.At), v.Matched.Baseline, v.Matched.CIPolicy)
	} else {
		p.Field("last passed", "never here")
	}
	if v.Connection, err = oldTLSFindings(ctx, s, h.Name); err != nil {
		return Output{}, err
	}
	for i := range v.Connection {
		findingPage(p, i+1, &v.Connection[i])
	}
	if bad.at == nil {
		if len(v.Connection) == 0 {
			p.Line("This node has seen nothing wrong with it.")
		}
		return Output{Text: p, Value: v}, nil
	}
	v.Findings = append(v.Findings, bad.verdict.Findings...)
	p.Field("last failed", "%s", when(bad.at.At))
	if !v.Current {
		p.Line("It has passed since. These were the findings:")
	}
	for i := range v.Findings {
		findingPage(p, i+1, &v.Findings[i])
	}
	return Output{Text: p, Value: v}, nil
}

func newer(a, b policy.Stamp) bool { return a.Latest > b.Latest }

// findingPage is one finding for people: what is wrong and what to do first.
func findingPage(p *Page, n int, f *appraise.Finding) {
	p.Blank().Line("%d. %s", n, f.What)
	p.Field("  -> remedy", "%s", f.Remedy)
	p.Field("  or accept", "%s", f.Accept)
	if f.Policy != "" {
		p.Field("  policy", "%s, shown on the host as %s", f.Policy, f.SubStatus)
	}
	if f.PCR >= 0 {
		where := fmt.Sprintf("PCR %d", f.PCR)
		if f.Event >= 0 {
			where += fmt.Sprintf(", event %d of the log", f.Event)
		}
		p.Field("  where", "%s", where)
	}
	p.Field("  measured", "%s", f.Measured).Field("  expected", "%s", strings.Join(f.Expected, "; ")).Field("  changed", "%s", f.Changed)
}

// pendingHost is the one unknown host whose id begins with prefix.
func pendingHost(ctx context.Context, s *Session, prefix string) (*PendingValue, error) {
	if len(prefix) < 8 {
		return nil, usage("give 8 characters of the id or more", "see host pending")
	}
	waiting, err := pending(ctx, s)
	if err != nil {
		return nil, err
	}
	var found *PendingValue
	for i := range waiting {
		if strings.HasPrefix(waiting[i].ID, strings.ToUpper(prefix)) {
			if found != nil {
				return nil, failed("several unknown hosts have an id that begins so", "give more characters of it")
			}
			found = &waiting[i]
		}
	}
	if found == nil {
		return nil, failed("no unknown host has an id that begins so", "see host pending")
	}
	return found, nil
}
