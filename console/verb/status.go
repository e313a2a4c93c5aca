package verb

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// StatusValue is status in --json. Problems come first what matters most; a part is nil where its process did not answer.
type StatusValue struct {
	OK       bool                   `json:"ok"`
	SetUp    bool                   `json:"setUp"`
	Problems []policy.Problem       `json:"problems"`
	Hints    []policy.Problem       `json:"hints,omitempty"` // what keeps nothing from working: keys for trying out, something about a host or a tenant
	Node     *NodeValue             `json:"node,omitempty"`
	Service  string                 `json:"service,omitempty"`
	Mode     string                 `json:"mode,omitempty"`
	Hosts    HostCount              `json:"hosts"`
	SetupKey *rpc.SetupKeyReply     `json:"setupKey,omitempty"` // before setup only
	Init     *rpc.InitStatusReply   `json:"init,omitempty"`
	Ledger   *rpc.LedgerStatusReply `json:"ledger,omitempty"`
	HSM      *rpc.HSMStatusReply    `json:"hsm,omitempty"`
	Clock    *rpc.ClockStatusReply  `json:"clock,omitempty"`
}

// HostCount counts the registered hosts.
type HostCount struct {
	Registered int `json:"registered"`
	Revoked    int `json:"revoked"`
}

const statusLimit = 4 * time.Second

// ask calls a process for status and turns its silence into a problem.
func ask[T any](ctx context.Context, name string, m rpc.Method[rpc.Empty, T], c *rpc.Client) (*T, *policy.Problem) {
	ctx, cancel := context.WithTimeout(ctx, statusLimit)
	defer cancel()
	v, err := m.Call(ctx, c, rpc.Empty{})
	if err == nil {
		return &v, nil
	}
	return nil, &policy.Problem{Kind: name + "-silent", What: "the process " + name + " does not answer: " + Explain(err).Reason,
		Remedy: "it is restarted by itself; if this stays, see log show " + name}
}

// GatherStatus asks all processes at the same time and sorts what is wrong.
func GatherStatus(ctx context.Context, n *Node) StatusValue {
	snap, known := n.Snapshot()
	v := StatusValue{SetUp: snap.State.SetUp(), Problems: []policy.Problem{}}
	silent := make([]*policy.Problem, 5)
	var wg sync.WaitGroup
	wg.Go(func() { v.Ledger, silent[0] = ask(ctx, rpc.Ledger, rpc.LedgerStatus, n.Ledger) })
	wg.Go(func() { v.Init, silent[1] = ask(ctx, rpc.Init, rpc.InitStatus, n.Init) })
	if v.SetUp {
		wg.Go(func() { v.HSM, silent[2] = ask(ctx, rpc.HSM, rpc.HSMStatus, n.HSM) })
		wg.Go(func() { v.Clock, silent[3] = ask(ctx, rpc.Clock, rpc.ClockStatus, n.Clock) })
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, statusLimit)
			defer cancel()
			list, _ := oldTLS(ctx, n) // that the ledger does not answer is told already
			if h := oldTLSHint(list); h != nil {
				v.Hints = append(v.Hints, *h)
			}
			if h := overdueHint(ctx, n); h != nil {
				v.Hints = append(v.Hints, *h)
			}
			if h := quotaHint(ctx, n); h != nil {
				v.Hints = append(v.Hints, *h)
			}
		})
	} else if known {
		wg.Go(func() { v.SetupKey, silent[4] = ask(ctx, rpc.Ledger, rpc.LedgerSetupKey, n.Ledger) })
	}
	wg.Wait()
	for i, p := range silent {
		// Without a setup key the ledger says why in its problems.
		if p != nil && !(i == 4 && (silent[0] != nil || len(v.Ledger.Problems) > 0)) {
			v.Problems = append(v.Problems, *p)
		}
	}
	v.reported()
	if v.SetUp {
		v.records(snap)
	} else if known {
		v.Problems = append(v.Problems, policy.Problem{Kind: "not-set-up", What: "this node is not set up", Remedy: "run setup on the serial line"})
	}
	v.OK = len(v.Problems) == 0
	if n.Evaluation {
		v.Hints = append([]policy.Problem{evaluationHint}, v.Hints...)
	}
	return v
}

// reported collects the problems that the processes know of.
func (v *StatusValue) reported() {
	if v.Ledger != nil {
		v.Problems = append(v.Problems, v.Ledger.Problems...)
	}
	if v.Init != nil {
		v.Problems = append(v.Problems, v.Init.Problems...)
		for _, l := range v.Init.Links {
			if l.Problem != "" {
				v.Problems = append(v.Problems, policy.Problem{Kind: "link", What: cmp.Or(l.Name, l.Device) + ": " + l.Problem, Remedy: l.Remedy})
			}
		}
		for _, s := range v.Init.Services {
			if s.State == "failed" || s.State == "restarting" {
				v.Problems = append(v.Problems, policy.Problem{Kind: "service-" + s.State, What: "the process " + s.Name + " is " + s.State + ": " + cmp.Or(s.LastExit, s.Status, "no reason known"),
					Remedy: "see log show " + s.Name})
			}
		}
	}
	if v.HSM != nil {
		v.Problems = append(v.Problems, v.HSM.Problems...)
		if v.HSM.State != "ready" && len(v.HSM.Problems) == 0 {
			v.Problems = append(v.Problems, policy.Problem{Kind: "hsm-" + v.HSM.State, What: "the HSM is " + v.HSM.State, Remedy: "see hsm status"})
		}
	}
	if v.Clock != nil {
		v.Problems = append(v.Problems, v.Clock.Problems...)
	}
}

// records adds what the records themselves say.
func (v *StatusValue) records(snap policy.Snapshot) {
	svc := snap.State.Service
	v.Service, v.Mode = svc.Name, svc.Mode.String()
	if self, ok := snap.State.Nodes[snap.NodeID]; ok {
		nv := nodeValue(self, snap.NodeID)
		v.Node = &nv
	}
	v.Hosts.Registered = len(snap.State.Hosts)
	for _, h := range snap.State.Hosts {
		if h.Revoked {
			v.Hosts.Revoked++
		}
	}
	v.Problems = append(v.Problems, httpsProblems(snap, v.Clock)...)
	v.Problems = append(v.Problems, communicationsProblems(snap, v.Clock)...)
	v.Problems = append(v.Problems, syslogProblems(snap, v.Clock)...)
	var missing []string
	for _, role := range snap.State.KeyRolesUsed() {
		if _, ok := snap.State.PrimaryKey(role); !ok {
			missing = append(missing, string(role))
		}
	}
	if len(missing) > 0 {
		roles := strings.Join(missing, ",")
		if len(missing) == len(snap.State.KeyRolesUsed()) {
			roles = "all"
		}
		v.Problems = append(v.Problems, policy.Problem{Kind: "no-keys", What: "there is no primary key for: " + strings.Join(missing, ", "),
			Remedy: "make them: key new --roles " + roles})
	}
}

func runStatus(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	v := GatherStatus(ctx, s.Node)
	return Output{Text: v.Page(), Value: v}, nil
}

// link is one line for an interface. A NIC that nobody uses is named by what an answer file needs, its MAC address; it is down after
// setup, so that nothing is known of its cable then.
func (v StatusValue) link(p *Page, l rpc.LinkStatus) {
	state := map[bool]string{true: "up", false: "no link: is the cable in?"}[l.Link]
	if l.Unused() {
		if v.SetUp {
			state = "not used"
		}
		p.Field("link "+l.Device, "%s, %s", l.MAC, state)
		return
	}
	p.Field("link "+cmp.Or(l.Name, l.Device), "%s, %s", state, cmp.Or(strings.Join(l.Addresses, ", "), "no address"))
}

// Page is the status on one screen: what is wrong, then how things are.
func (v StatusValue) Page() *Page {
	p := new(Page)
	const most = 4
	switch {
	case v.OK:
		p.Line("Nothing is wrong.")
	case len(v.Problems) == 1:
		p.Line("One thing needs you:")
	default:
		p.Line("%d things need you, first:", len(v.Problems))
	}
	for _, problem := range v.Problems[:min(most, len(v.Problems))] {
		p.Line("! %s", problem.What)
		if problem.Remedy != "" {
			p.Line("  -> %s", problem.Remedy)
		}
	}
	for _, h := range v.Hints {
		if h.Kind == evaluationHint.Kind {
			continue // stands above every page
		}
		p.Line("? %s", h.What).Line("  -> %s", h.Remedy)
	}
	p.Blank()
	if v.Node != nil {
		p.Field("node", "%s (%s)", v.Node.Name, v.Node.ID).Field("fingerprint", "%s", v.Node.Fingerprint).
			Field("service", "%s, %s mode, %d hosts, %d revoked", v.Service, v.Mode, v.Hosts.Registered, v.Hosts.Revoked)
	}
	if v.SetupKey != nil {
		p.Field("setup key", "%s", v.SetupKey.Recipient)
	}
	if v.Init != nil {
		p.Field("version", "%s, up %s", v.Init.Version, span(v.Init.Up)).Field("disk", "%s", v.Init.Disk)
		for _, l := range v.Init.Links {
			v.link(p, l)
		}
	}
	if v.Clock != nil {
		if v.Clock.Trusted.OK {
			now, bound := middle(v.Clock.Trusted)
			p.Field("time", "%s, +- %s", now, bound)
		} else {
			p.Field("time", "not trusted")
		}
		if peers := peersLine(v.Clock.Sources); peers != "" {
			p.Field("peers' time", "%s", peers)
		}
	}
	if v.HSM != nil {
		p.Field("HSM", "%s, token %s, OAEP by %s", v.HSM.State, cmp.Or(v.HSM.Token, "none"), cmp.Or(v.HSM.OAEP, "nobody yet"))
	}
	if v.Ledger != nil {
		sealing, why, _ := strings.Cut(cmp.Or(v.Ledger.Sealing, "not made yet"), ": ")
		if why != "" {
			sealing += ", see above"
		}
		p.Field("records", "index %d; secrets %s", v.Ledger.Index, sealing)
		p.Field("audit", "%d entries, %d of %d KiB", v.Ledger.AuditSeq, v.Ledger.AuditBytes>>10, v.Ledger.AuditLimit>>10)
		if st := v.Ledger.Syslog; st != nil {
			p.Field("audit syslog", "%s: %s", st.Address, syslogState(*st))
		}
	}
	if v.Init != nil {
		states := make([]string, len(v.Init.Services))
		for i, s := range v.Init.Services {
			states[i] = s.Name + " " + s.State
			if s.Restarts > 0 {
				states[i] += fmt.Sprintf(" (restarts: %d)", s.Restarts)
			}
		}
		p.Field("processes", "%s", strings.Join(states, ", "))
	}
	return p
}
