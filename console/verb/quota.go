package verb

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

const (
	quotaShown = time.Hour // how long it is worth mentioning that a tenant was at its quota
	quotaNamed = 5         // tenants that the hint names; tenant list marks all
)

// atQuota are the tenants that this node refused within the last hour because their quota was used up, with when it last did. Other nodes
// count for themselves. A quota that was changed since is another one. Before the time is trusted all that is remembered counts.
func atQuota(ctx context.Context, n *Node) (map[string]policy.Stamp, error) {
	list, err := rpc.LedgerObserved.Call(ctx, n.Ledger, rpc.ObservedRequest{Kind: policy.ObservedQuota, Limit: policy.MaxTenants})
	if err != nil {
		return nil, err
	}
	snap, _ := n.Snapshot()
	now, full := n.Stamp(), map[string]policy.Stamp{}
	for _, o := range list {
		t, known := snap.State.Tenants[o.Subject]
		if !known || o.Facts["perMinute"] != strconv.Itoa(t.PerMinute) || now.Latest > 0 && now.Latest-o.Last.Latest > quotaShown.Milliseconds() {
			continue
		}
		if o.Last.Latest >= full[o.Subject].Latest {
			full[o.Subject] = o.Last
		}
	}
	return full, nil
}

// quotaHint is what status says of them; nil if there is none. The node is well and does as it was told, so that it is no problem of it.
func quotaHint(ctx context.Context, n *Node) *policy.Problem {
	full, err := atQuota(ctx, n)
	if err != nil || len(full) == 0 {
		return nil // that the ledger does not answer is told already
	}
	names := slices.Sorted(maps.Keys(full))
	named := strings.Join(names[:min(len(names), quotaNamed)], ", ")
	if len(names) > quotaNamed {
		named += ", ..."
	}
	return &policy.Problem{Kind: "tenant-quota", What: fmt.Sprintf("within an hour %s asked for more than the quota, so that machines start late: %s", count(len(names), "tenant"), named),
		Remedy: "see tenant list; tenant set NAME --per-minute, if it may have more"}
}
