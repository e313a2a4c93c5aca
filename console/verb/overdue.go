package verb

import (
	"context"
	"fmt"
	"strings"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// Windows hosts attest when they start and every 8 hours (row C24), whatever the life of their health certificates.
const (
	attestEvery  = 8 * time.Hour
	overdueAfter = 9 * time.Hour
	overdueNamed = 5 // hosts that the hint names; host list marks all
)

// overdue reports whether a host that was last seen at last should surely have attested again by now. A node knows only what it saw itself,
// so with several nodes, any of which may have served the host, it is silent; and so it is about hosts of another mode, which do not attest.
func overdue(st policy.State, h policy.Host, last, now policy.Stamp) bool {
	return now.Earliest > 0 && last.Latest > 0 && st.Service != nil && len(st.Nodes) == 1 && !h.Revoked && h.Mode() == st.Service.Mode &&
		now.Earliest-last.Latest > overdueAfter.Milliseconds()
}

// overdueHint names hosts that have attested before and are silent for too long; nil if there is none.
func overdueHint(ctx context.Context, n *Node) *policy.Problem {
	snap, _ := n.Snapshot()
	seen, err := rpc.LedgerObserved.Call(ctx, n.Ledger, rpc.ObservedRequest{Kind: policy.ObservedHost, Limit: policy.MaxHosts})
	if err != nil {
		return nil // that the ledger does not answer is told already
	}
	newest := map[string]policy.Stamp{}
	for _, o := range seen {
		if o.Kind == policy.ObservedHost && o.Last.Latest > newest[o.Subject].Latest {
			newest[o.Subject] = o.Last
		}
	}
	var names []string
	now := n.Stamp()
	for _, h := range sortedHosts(snap.State) {
		if overdue(snap.State, h, newest[h.ID], now) {
			names = append(names, h.Name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	named := strings.Join(names[:min(len(names), overdueNamed)], ", ")
	if len(names) > overdueNamed {
		named += ", ..."
	}
	return &policy.Problem{Kind: "host-overdue", What: fmt.Sprintf("silent for more than %d hours: %s (%d of %d hosts; they attest every %d hours)",
		int(overdueAfter.Hours()), named, len(names), len(snap.State.Hosts), int(attestEvery.Hours())),
		Remedy: "see that it runs and reaches this node; on it: Get-HgsClientConfiguration; if it is gone for good: host remove"}
}
