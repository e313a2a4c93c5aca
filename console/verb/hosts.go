package verb

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"

	"guardhouse/appliance/appraise"
	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// HostValue is a host in --json.
type HostValue struct {
	Name    string         `json:"name"`
	ID      string         `json:"id"`
	Kind    string         `json:"kind"` // "host key", "TPM v2", "TPM v1, forced", "TPM v2, can't attest"
	Class   string         `json:"class"`
	Revoked bool           `json:"revoked"`
	Note    string         `json:"note,omitempty"`
	Added   policy.Stamp   `json:"added"`
	Seen    *ObservedValue `json:"seen,omitempty"`
	Overdue bool           `json:"overdue,omitempty"` // it should have attested here again; only where this is the only node
	// Only in host show: SubjectPublicKeyInfo DER, or what is known of the TPM; and the machine's other record.
	HostKey []byte              `json:"hostKey,omitempty"`
	TPM     *policy.TPMIdentity `json:"tpm,omitempty"`
	Dates   []string            `json:"dates,omitempty"` // what is odd about the validity of the EK's certificate and its issuers
	Also    *HostValue          `json:"also,omitempty"`
}

// ObservedValue is what this node saw of a host.
type ObservedValue struct {
	First policy.Stamp      `json:"first"`
	Last  policy.Stamp      `json:"last"`
	Count uint64            `json:"count"`
	Facts map[string]string `json:"facts,omitempty"`
}

func hostAdd(ctx context.Context, s *Session, a Args, stdin []byte) (Output, error) {
	var in Input
	var err error
	if a.Has("pending") {
		in.SPKI, err = pendingKey(ctx, s, a.Get("pending"))
	} else {
		in, err = ParseInput(stdin)
	}
	if err != nil {
		return Output{}, err
	}
	out, r, err := propose(ctx, s, policy.CmdHostAdd, policy.HostAdd{Name: a.Get("name"), HostKey: in.SPKI, Class: a.Get("class"), Note: a.Get("note")})
	if err != nil {
		return Output{}, err
	}
	v := struct {
		Done
		ID     string `json:"id"`
		SHA1   string `json:"sha1,omitempty"`
		SHA256 string `json:"sha256,omitempty"`
	}{out.Value.(Done), policy.HostID(in.SPKI), "", ""}
	out.Text.Field("id", "%s", v.ID)
	if in.Certificate != nil {
		v.SHA1, v.SHA256 = thumbprints(in.Certificate.Raw)
		out.Text.Field("certificate", "%s", in.Certificate.Subject)
		out.Text.Field("  SHA-1", "%s", v.SHA1).Field("  SHA-256", "%s", v.SHA256)
		out.Text.Line("Only its public key counts: dates and issuer are not checked in host key mode.")
	}
	s.modeNote(out.Text)
	v.Message, v.Subject = r.Message, r.Subject
	out.Value = v
	return out, nil
}

// modeNote warns where a registered host key has no effect yet.
func (s *Session) modeNote(p *Page) {
	if snap, _ := s.Node.Snapshot(); snap.State.Service != nil && snap.State.Service.Mode != policy.ModeHostKey {
		p.Line("The service is in %s mode: host keys count after `service set --mode HostKey`.", snap.State.Service.Mode)
	}
}

func observed(ctx context.Context, s *Session, kind policy.ObservationKind) (map[string]policy.Observation, error) {
	list, err := rpc.LedgerObserved.Call(ctx, s.Node.Ledger, rpc.ObservedRequest{Kind: kind, Limit: policy.MaxHosts})
	seen := make(map[string]policy.Observation, len(list))
	for _, o := range list { // the newest first
		if _, ok := seen[o.Subject]; !ok {
			seen[o.Subject] = o
		}
	}
	return seen, err
}

func sortedHosts(state policy.State) []policy.Host {
	hosts := make([]policy.Host, 0, len(state.Hosts))
	for _, h := range state.Hosts {
		hosts = append(hosts, h)
	}
	slices.SortFunc(hosts, func(a, b policy.Host) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(b.Mode(), a.Mode()))
	})
	return hosts
}

func (s *Session) hostValue(st policy.State, h policy.Host, seen map[string]policy.Observation) HostValue {
	v := HostValue{Name: h.Name, ID: h.ID, Kind: kindText(h), Class: h.Class, Revoked: h.Revoked, Note: h.Note, Added: h.Added}
	if o, ok := seen[h.ID]; ok {
		v.Seen = &ObservedValue{o.First, o.Last, o.Count, o.Facts}
		v.Overdue = overdue(st, h, o.Last, s.Node.Stamp())
	}
	return v
}

func (v HostValue) seen() string {
	if v.Seen == nil {
		return "never"
	}
	text := strings.TrimSpace(when(v.Seen.Last) + " " + v.Seen.Facts["verdict"])
	if v.Overdue {
		text += ", overdue"
	}
	return text
}

func (v HostValue) state() string {
	if v.Revoked {
		return "revoked"
	}
	return "allowed"
}

var hostHeader = []string{"HOST", "STATE", "KIND", "CLASS", "ID", "LAST ATTESTED HERE"}

func (v HostValue) row() []string {
	return []string{v.Name, v.state(), v.Kind, v.Class, v.ID[:min(8, len(v.ID))], v.seen()}
}

func hostList(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	seen, err := observed(ctx, s, policy.ObservedHost)
	value := struct {
		Hosts   []HostValue `json:"hosts"`
		Mixed   []string    `json:"mixed,omitempty"` // policy versions under which all hosts fail
		Warning string      `json:"warning,omitempty"`
	}{Hosts: []HostValue{}}
	p := new(Page)
	var rows [][]string
	for _, h := range sortedHosts(snap.State) {
		v := s.hostValue(snap.State, h, seen)
		value.Hosts = append(value.Hosts, v)
		rows = append(rows, v.row())
	}
	if len(rows) == 0 {
		p.Line("No host is registered.").Line("Register one: host add NAME < its-certificate.cer or, in TPM mode, host add-tpm NAME < its-identifier.xml, or see host pending.")
	} else {
		p.Table(hostHeader, rows)
	}
	value.Mixed = mixed(snap.State)
	for _, w := range value.Mixed {
		p.Blank().Line("! %s", w)
	}
	if err != nil {
		value.Warning = "when hosts attested is not known: " + Explain(err).Error()
		p.Blank().Line("%s", value.Warning)
	}
	return Output{Text: p, Value: value}, nil
}

func hostShow(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	hosts := snap.State.HostsByName(a.Get("name"))
	if len(hosts) == 0 {
		return Output{}, failed(fmt.Sprintf("there is no host %q", a.Get("name")), "see host list")
	}
	seen, err := observed(ctx, s, policy.ObservedHost)
	if err != nil {
		return Output{}, err
	}
	p := new(Page)
	var values []HostValue
	for _, h := range hosts {
		v := s.hostValue(snap.State, h, seen)
		v.HostKey, v.TPM = h.HostKey, h.TPM
		if h.TPM != nil && len(h.TPM.EKCert) > 0 {
			if c, err := evidence.ParseCertificate(h.TPM.EKCert); err == nil {
				trust, _ := appraise.NewTrust(snap.State)
				v.Dates = s.dates(trust, c)
			}
		}
		values = append(values, v)
		p.Blank()
		v.page(p, h)
	}
	if len(values) > 1 {
		values[0].Also = &values[1]
	}
	return Output{Text: p, Value: values[0]}, nil
}

// page shows everything that is known of one record.
func (v HostValue) page(p *Page, h policy.Host) {
	p.Field("host", "%s", v.Name).Field("kind", "%s", v.Kind).Field("state", "%s", v.state()).Field("class", "%s", v.Class).Field("id", "%s", v.ID)
	if h.TPM != nil {
		tpmFields(p, h, v.Dates)
	} else {
		p.Field("host key", "%s", keyText(h.HostKey))
	}
	p.Field("added", "%s", when(h.Added)).Field("note", "%s", h.Note)
	if h.DenyIssuedBefore > 0 {
		p.Field("refused", "health certificates issued before %s", unixTime(h.DenyIssuedBefore))
	}
	p.Field("last attested", "%s", v.seen())
	if v.Seen != nil {
		p.Field("times", "%d since %s", v.Seen.Count, when(v.Seen.First))
		facts(p, v.Seen.Facts)
	}
}

func facts(p *Page, facts map[string]string) {
	names := make([]string, 0, len(facts))
	for name := range facts {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if name != "spki" {
			p.Field("  "+name, "%s", facts[name])
		}
	}
}

// PendingValue is an unknown host in --json. Accept is the verb that registers it.
type PendingValue struct {
	ID     string       `json:"id"`
	Source string       `json:"source,omitempty"`
	First  policy.Stamp `json:"first"`
	Last   policy.Stamp `json:"last"`
	Count  uint64       `json:"count"`
	SPKI   string       `json:"spki,omitempty"` // base64
	Mode   string       `json:"mode,omitempty"` // "TPM" for one that asked with its TPM
	TPM    string       `json:"tpm,omitempty"`  // what its certificate says of the TPM
	Issuer string       `json:"issuer,omitempty"`
	// Of a TPM: whether its certificate leads to a root in tpm-trust list, and why not.
	Trusted bool   `json:"trusted,omitempty"`
	Why     string `json:"why,omitempty"`
	Accept  string `json:"accept"`

	facts map[string]string
}

// pending are the unknown hosts that the node remembers, those that asked last first.
func pending(ctx context.Context, s *Session) ([]PendingValue, error) {
	list, err := rpc.LedgerObserved.Call(ctx, s.Node.Ledger, rpc.ObservedRequest{Kind: policy.ObservedPending, Limit: policy.MaxPending})
	if err != nil {
		return nil, err
	}
	snap, _ := s.Node.Snapshot()
	waiting := []PendingValue{}
	var trust *appraise.Trust
	for _, o := range list {
		if _, known := snap.State.Hosts[o.Subject]; known {
			continue
		}
		v := PendingValue{ID: o.Subject, Source: o.Facts["source"], First: o.First, Last: o.Last, Count: o.Count, SPKI: o.Facts["spki"],
			Mode: o.Facts["mode"], TPM: o.Facts["tpm"], Issuer: o.Facts["issuer"], Accept: "host add NAME --pending ", facts: o.Facts}
		if v.Mode == "TPM" {
			v.Accept = "host add-tpm NAME --pending "
			if trust == nil {
				trust, _ = appraise.NewTrust(snap.State)
			}
			v.chain(trust)
		}
		v.Accept += o.Subject[:min(16, len(o.Subject))]
		waiting = append(waiting, v)
	}
	return waiting, nil
}

func hostPending(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	waiting, err := pending(ctx, s)
	if err != nil {
		return Output{}, err
	}
	old, err := oldTLS(ctx, s.Node)
	if err != nil {
		return Output{}, err
	}
	p := new(Page)
	const most = 50
	for _, v := range waiting[:min(most, len(waiting))] {
		p.Blank().Field("id", "%s", v.ID).Field("asked from", "%s, %d times, first %s, last %s", v.Source, v.Count, when(v.First), when(v.Last)).
			Field("TPM", "%s", strings.TrimSpace(v.TPM)).Field("issuer", "%s", v.Issuer)
		switch {
		case v.Trusted:
			p.Field("trusted", "yes, its certificate leads to a trusted root")
		case v.Why != "":
			p.Field("trusted", "NO: %s", v.Why)
		}
		p.Field("to accept", "%s", v.Accept)
	}
	if len(waiting) > most {
		p.Blank().Line("and %d that asked earlier, see --json", len(waiting)-most)
	}
	if len(waiting) == 0 {
		p.Line("No unknown host has asked since this node last forgot its observations.")
	} else {
		p.Blank().Line("An id is what the asker sent; nothing proves yet which machine that was. Compare it with the SHA-256 of the " +
			"public key on the host itself before you accept.")
	}
	oldTLSPage(p, old)
	return Output{Text: p, Value: struct {
		Pending []PendingValue `json:"pending"`
		OldTLS  []OldTLSValue  `json:"oldTls,omitempty"`
	}{waiting, old}}, nil
}

// pendingKey is the public key of the one unknown host whose id begins with prefix. The id is recomputed from the key.
func pendingKey(ctx context.Context, s *Session, prefix string) ([]byte, error) {
	found, err := pendingHost(ctx, s, prefix)
	if err != nil {
		return nil, err
	}
	if found.Mode == "TPM" {
		return nil, failed("that host asked with its TPM, not with a host key", "use host add-tpm NAME --pending "+prefix)
	}
	spki, err := base64.StdEncoding.DecodeString(found.SPKI)
	if err != nil || policy.HostID(spki) != found.ID {
		return nil, failed("the observation does not hold that host's key", "give the key as a file: host add NAME < FILE")
	}
	return spki, nil
}

func hostRevoke(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	out, _, err := propose(ctx, s, policy.CmdHostRevoke, policy.HostRevoke{Name: a.Get("name"), Reason: a.Get("reason"),
		Keys: certifiedKeys(ctx, s, a.Get("name"))})
	return out, err
}

func hostSet(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	b := policy.HostSet{Name: a.Get("name")}
	for flag, field := range map[string]**string{"class": &b.Class, "note": &b.Note} {
		if a.Has(flag) {
			value := a.Get(flag)
			*field = &value
		}
	}
	if b.Class == nil && b.Note == nil {
		return Output{}, usage("nothing to change", "usage: "+mustUsage("host set"))
	}
	return change(ctx, s, a, policy.CmdHostSet, b)
}

func hostRestore(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	return byName(ctx, s, policy.CmdHostRestore, a)
}

func hostRemove(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	out, _, err := propose(ctx, s, policy.CmdHostRemove, policy.HostRemove{Name: a.Get("name"), Mode: modes[a.Get("mode")], Phrase: a.Get("phrase")})
	return out, err
}

func byName(ctx context.Context, s *Session, kind policy.Kind, a Args) (Output, error) {
	out, _, err := propose(ctx, s, kind, policy.ByName{Name: a.Get("name")})
	return out, err
}
