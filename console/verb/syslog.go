package verb

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

func syslogSet(ctx context.Context, s *Session, a Args, stdin []byte) (Output, error) {
	cas, err := policy.SyslogCAs(stdin)
	if err != nil {
		return Output{}, usage("the CA certificates: "+err.Error(), "give PEM certificates on standard input")
	}
	y := policy.Syslog{Address: a.Get("address"), CAs: cas}
	if y.Name = cmp.Or(a.Get("name"), y.Host()); y.Name == "" {
		return Output{}, usage("ADDRESS is not HOST:PORT", "write it like siem.example.com:6514")
	}
	out, _, err := propose(ctx, s, policy.CmdAuditSyslog, policy.SyslogSet{Syslog: &y})
	if err != nil {
		return Output{}, err
	}
	for _, der := range cas {
		sha1, sha256 := thumbprints(der)
		out.Text.Line("CA SHA-1 %s", sha1).Line("CA SHA-256 %s", sha256)
	}
	out.Text.Line("Next: audit syslog test, on each node.")
	return out, nil
}

func syslogOff(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	out, _, err := propose(ctx, s, policy.CmdAuditSyslog, policy.SyslogSet{})
	return out, err
}

// SyslogValue is where the audit is sent in --json. State is nil where no collector is set or the ledger does not say.
type SyslogValue struct {
	Set     bool              `json:"set"`
	Address string            `json:"address,omitempty"`
	Name    string            `json:"name,omitempty"`
	CAs     []SyslogCA        `json:"cas"`
	State   *rpc.SyslogStatus `json:"state,omitempty"`
	Problem *policy.Problem   `json:"problem,omitempty"`
	Client  *SyslogClient     `json:"client,omitempty"` // what this node shows; nil = nothing
}

// SyslogClient is a node's client certificate towards collectors.
type SyslogClient struct {
	Subject string           `json:"subject"`
	Issuer  string           `json:"issuer"`
	Key     string           `json:"key"`
	SHA1    string           `json:"sha1"`
	SHA256  string           `json:"sha256"`
	From    time.Time        `json:"notBefore"`
	Until   time.Time        `json:"notAfter"`
	Chain   int              `json:"chain"`
	Notes   []policy.Problem `json:"notes"`
}

func syslogClient(ctx context.Context, s *Session, node policy.Node) (*SyslogClient, error) {
	shown := node.SyslogCertificates()
	if shown == nil {
		return nil, nil
	}
	cert, err := x509.ParseCertificate(shown[0])
	if err != nil {
		return nil, failed("the client certificate does not parse: "+err.Error(), "audit syslog uninstall, then audit syslog csr")
	}
	v := &SyslogClient{Subject: cert.Subject.String(), Issuer: cert.Issuer.String(), Key: keyText(cert.RawSubjectPublicKeyInfo), From: cert.NotBefore.UTC(), Until: cert.NotAfter.UTC(), Chain: len(shown) - 1}
	v.SHA1, v.SHA256 = thumbprints(cert.Raw)
	earliest, latest := trusted(ctx, s)
	v.Notes = append([]policy.Problem{}, policy.SyslogNotes(node.Name, cert, earliest, latest)...)
	return v, nil
}

func (v *SyslogClient) show(p *Page) {
	if v == nil {
		p.Field("shown to it", "nothing; a collector that asks who sends wants a certificate: audit syslog csr")
		return
	}
	p.Blank().Line("Shown to it:").Field("  subject", "%s", clip(v.Subject)).Field("  signed by", "%s", clip(v.Issuer)).Field("  key", "%s", v.Key).
		Field("  SHA-1", "%s", v.SHA1).Field("  SHA-256", "%s", v.SHA256).Field("  until", "%s", v.Until.Format("2006-01-02 15:04:05 UTC"))
	problems(p, v.Notes)
}

func syslogCSR(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	r, err := rpc.LedgerSyslogRequest.Call(ctx, s.Node.Ledger, rpc.SyslogRequest{Actor: s.Actor, Key: a.Or("key", rpc.HTTPSKeyNew)})
	if err != nil {
		return Output{}, err
	}
	v := RequestValue{Request: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: r.Request})), Key: r.Ref}
	p := new(Page)
	p.b.WriteString(v.Request)
	return Output{Text: p, Value: v}, nil
}

// SyslogShown is audit syslog install and uninstall in --json.
type SyslogShown struct {
	Done
	Client *SyslogClient `json:"client,omitempty"`
}

func syslogInstall(ctx context.Context, s *Session, _ Args, stdin []byte) (Output, error) {
	chain, err := ParseChain(stdin)
	if err != nil {
		return Output{}, err
	}
	return syslogShows(ctx, s, policy.SyslogInstall{Certificate: chain[0], Chain: chain[1:]})
}

func syslogUninstall(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	return syslogShows(ctx, s, policy.SyslogInstall{})
}

// syslogShows sets what this node shows collectors.
func syslogShows(ctx context.Context, s *Session, b policy.SyslogInstall) (Output, error) {
	self, ok := s.Node.Self()
	if !ok {
		return Output{}, unavailable("this node has no record yet", "try again in a few seconds")
	}
	b.Node = self.ID
	out, r, err := propose(ctx, s, policy.CmdSyslogInstall, b)
	if err != nil {
		return Output{}, err
	}
	self.SyslogCertificate, self.SyslogChain = b.Certificate, b.Chain
	v := SyslogShown{Done: Done{r.Message, r.Index, r.Subject}}
	if v.Client, err = syslogClient(ctx, s, self); err != nil {
		return Output{}, err
	}
	if v.Client != nil {
		v.Client.show(out.Text)
		out.Text.Line("Next: audit syslog test.")
	}
	return Output{Text: out.Text, Value: v}, nil
}

// syslogProblems are the status's: only where a collector is set.
func syslogProblems(snap policy.Snapshot, clock *rpc.ClockStatusReply) []policy.Problem {
	node := snap.State.Nodes[snap.NodeID]
	if snap.State.Service.Syslog == nil || len(node.SyslogCertificate) == 0 || clock == nil || !clock.Trusted.OK {
		return nil
	}
	cert, err := x509.ParseCertificate(node.SyslogCertificate)
	if err != nil {
		return nil
	}
	return policy.SyslogNotes(node.Name, cert, clock.Trusted.Earliest, clock.Trusted.Latest)
}

// SyslogCA is a CA certificate by its thumbprints.
type SyslogCA struct {
	SHA1   string `json:"sha1"`
	SHA256 string `json:"sha256"`
}

func syslogShow(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	y := snap.State.Service.Syslog
	if y == nil {
		return Output{Text: new(Page).Line("The audit is sent nowhere; see audit syslog set."), Value: SyslogValue{CAs: []SyslogCA{}}}, nil
	}
	v := SyslogValue{Set: true, Address: y.Address, Name: y.Name}
	p := new(Page).Field("collector", "%s", y.Address).Field("must prove", "%s", y.Name)
	for _, der := range y.CAs {
		var ca SyslogCA
		ca.SHA1, ca.SHA256 = thumbprints(der)
		v.CAs = append(v.CAs, ca)
		p.Field("CA SHA-1", "%s", ca.SHA1).Field("CA SHA-256", "%s", ca.SHA256)
	}
	var err error
	if v.Client, err = syslogClient(ctx, s, snap.State.Nodes[snap.NodeID]); err != nil {
		return Output{}, err
	}
	v.Client.show(p)
	st, err := rpc.LedgerStatus.Call(ctx, s.Node.Ledger, rpc.Empty{})
	if err != nil {
		return Output{}, err
	}
	if v.State = st.Syslog; v.State != nil {
		p.Field("this node", "%s", syslogState(*v.State))
		if v.State.Skipped > 0 {
			p.Line("Records that were trimmed or damaged before they could be sent: %d; earlier audit exports hold them.", v.State.Skipped)
		}
	}
	for _, problem := range st.Problems {
		if problem.Kind == "audit-syslog" {
			v.Problem = &problem
			p.Blank().Line("! %s", problem.What).Line("  %s", problem.Remedy)
		}
	}
	return Output{Text: p, Value: v}, nil
}

// syslogState is one line on how far the collector is.
func syslogState(st rpc.SyslogStatus) string {
	behind := fmt.Sprintf(", records behind: %d", st.Behind)
	switch {
	case !st.Connected && st.LastError != "":
		return "not connected" + behind + ": " + st.LastError
	case !st.Connected:
		return "not connected" + behind
	case st.Behind > 0:
		return "connected" + behind
	}
	return "connected, up to date"
}

func syslogTest(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	r, err := rpc.ForwardTest.Call(ctx, s.Node.Forward, rpc.Empty{})
	if err != nil {
		f := Explain(err)
		f.Remedy = cmp.Or(f.Remedy, "check the address, the network and the collector's certificate; see audit syslog show")
		return Output{}, f
	}
	p := new(Page).Line("%s took a test message over %s.", r.Address, r.TLS).Field("certificate", "%s", r.Subject).
		Field("SHA-1", "%s", r.SHA1).Field("SHA-256", "%s", r.SHA256).
		Line("Look for it at the collector: syslog itself does not confirm that a message was kept.")
	return Output{Text: p, Value: r}, nil
}
