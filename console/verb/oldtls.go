package verb

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"guardhouse/appliance/appraise"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// OldTLSValue is an address from which somebody asked for HTTPS without offering TLS 1.2, in --json. Hosts are those that were last seen from
// there: perhaps it was them.
type OldTLSValue struct {
	Address string       `json:"address"`
	Offered string       `json:"offered"`        // the newest version
	Name    string       `json:"name,omitempty"` // of the server that it asked for
	Last    policy.Stamp `json:"last"`
	Hosts   []string     `json:"hosts,omitempty"`
}

// oldTLSShown is how long such an address is worth mentioning.
const oldTLSShown = 24 * 60 * 60 * 1000 // milliseconds

// oldTLS lists the addresses of the last day, the newest first. One from which a host passed since is cured.
func oldTLS(ctx context.Context, n *Node) ([]OldTLSValue, error) {
	list, err := rpc.LedgerObserved.Call(ctx, n.Ledger, rpc.ObservedRequest{Kind: policy.ObservedOldTLS})
	if err != nil || len(list) == 0 {
		return nil, err
	}
	seen, err := rpc.LedgerObserved.Call(ctx, n.Ledger, rpc.ObservedRequest{Kind: policy.ObservedHost, Limit: policy.MaxHosts})
	if err != nil {
		return nil, err
	}
	snap, _ := n.Snapshot()
	now := n.Stamp()
	var values []OldTLSValue
	for _, o := range list {
		if now.Latest > 0 && o.Last.Latest < now.Latest-oldTLSShown {
			continue
		}
		v := OldTLSValue{Address: o.Subject, Offered: o.Facts["offered"], Name: o.Facts["name"], Last: o.Last}
		cured := false
		for _, h := range seen {
			if h.Facts["source"] != o.Subject {
				continue
			}
			cured = cured || h.Facts["verdict"] == "ok" && h.Last.Earliest > o.Last.Latest
			if host, ok := snap.State.Hosts[h.Subject]; ok && !slices.Contains(v.Hosts, host.Name) {
				v.Hosts = append(v.Hosts, host.Name)
			}
		}
		if !cured {
			slices.Sort(v.Hosts)
			values = append(values, v)
		}
	}
	slices.SortStableFunc(values, func(a, b OldTLSValue) int { return cmp.Compare(b.Last.Latest, a.Last.Latest) })
	return values, nil
}

// hint is what status says of them: no problem of the node's, and perhaps nobody's, because anybody can knock like this.
func oldTLSHint(list []OldTLSValue) *policy.Problem {
	if len(list) == 0 {
		return nil
	}
	const most = 5
	var names []string
	for _, v := range list[:min(most, len(list))] {
		name := v.Address
		if len(v.Hosts) > 0 {
			name += " (" + strings.Join(v.Hosts, ", ") + ")"
		}
		names = append(names, name)
	}
	if len(list) > most {
		names = append(names, fmt.Sprintf("and %d more", len(list)-most))
	}
	return &policy.Problem{Kind: string(appraise.OldTLS), What: fmt.Sprintf("within a day %d addresses asked for HTTPS without TLS 1.2, and were refused: %s", len(list), strings.Join(names, ", ")),
		Remedy: "if they are hosts of yours: " + appraise.TLSRemedy}
}

// oldTLSPage adds them to the unknown hosts: such a host never comes so far that it could be one.
func oldTLSPage(p *Page, list []OldTLSValue) {
	if len(list) == 0 {
		return
	}
	p.Blank().Line("Refused before they could ask, because they offer no TLS 1.2:")
	const most = 20
	for _, v := range list[:min(most, len(list))] {
		p.Field("  "+v.Address, "%s, asked for %s, last %s", v.Offered, cmp.Or(v.Name, "no name"), when(v.Last))
	}
	if len(list) > most {
		p.Line("  and %d more, see --json", len(list)-most)
	}
	p.Line("  -> %s", appraise.TLSRemedy)
}

// oldTLSFindings are about a host whose address is among them.
func oldTLSFindings(ctx context.Context, s *Session, host string) ([]appraise.Finding, error) {
	list, err := oldTLS(ctx, s.Node)
	var findings []appraise.Finding
	for _, v := range list {
		if slices.Contains(v.Hosts, host) {
			findings = append(findings, appraise.TLSFinding(v.Address, v.Offered))
		}
	}
	return findings, err
}
