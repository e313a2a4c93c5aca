package verb

import (
	"cmp"
	"context"
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
