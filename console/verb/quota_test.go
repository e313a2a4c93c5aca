package verb_test

import (
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/console/verb"
	"guardhouse/console/verb/verbtest"
)

// TestATenantAtItsQuotaIsToldForAnHour in status and in its own list, and is no problem of the node's.
func TestATenantAtItsQuotaIsToldForAnHour(t *testing.T) {
	const told = "within an hour 1 tenant asked for more than the quota, so that machines start late: contoso"
	ago := func(d time.Duration) policy.Stamp {
		at := verbtest.At
		at.Earliest, at.Latest = at.Earliest-d.Milliseconds(), at.Latest-d.Milliseconds()
		return at
	}
	for name, c := range map[string]struct {
		at     policy.Stamp
		tenant string
		quota  string // at that time
		then   string // an administrator's answer
		told   bool
	}{
		"now":                     {verbtest.At, "contoso", "600", "", true},
		"55 minutes ago":          {ago(55 * time.Minute), "contoso", "600", "", true},
		"more than an hour ago":   {ago(61 * time.Minute), "contoso", "600", "", false},
		"the quota was raised":    {verbtest.At, "contoso", "600", "tenant set contoso --per-minute 900", false},
		"the quota was removed":   {verbtest.At, "contoso", "600", "tenant set contoso --per-minute 0", false},
		"the tenant is forgotten": {verbtest.At, "contoso", "600", "tenant remove contoso", false},
		"a tenant nobody records": {verbtest.At, "fabrikam", "600", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			f := verbtest.Start(t, true)
			s := f.Session(policy.DoorSSH)
			mustCall(t, s, "tenant add contoso --per-minute 600", "")
			waitFor(t, f, func(st policy.State) bool { return len(st.Tenants) == 1 })
			problems := len(verb.GatherStatus(t.Context(), f.Node).Problems)
			f.ObserveAt(c.at, policy.ObservedQuota, c.tenant, map[string]string{"perMinute": c.quota})
			if c.then != "" {
				mustCall(t, s, c.then, "")
				waitFor(t, f, func(st policy.State) bool { return st.Tenants["contoso"].PerMinute != 600 })
			}
			v := verb.GatherStatus(t.Context(), f.Node)
			if text := flat(t, s, "status", ""); strings.Contains(text, told) != c.told || len(v.Problems) != problems {
				t.Errorf("%d problems, before %d; status says %s", len(v.Problems), problems, text)
			}
			if text := flat(t, s, "tenant list", ""); strings.Contains(text, "! It asked for more than its quota within the last hour, last 2026") != c.told {
				t.Errorf("tenant list says %s", text)
			}
		})
	}
}

func TestTenantListSaysWhereItDoesNotKnowTheQuotas(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	f.Fail("ledger.Observed", rpc.ErrUnavailable)
	if text := flat(t, s, "tenant list", ""); !strings.Contains(text, "No tenant brings keys of its own. whether a tenant is at its quota is not known") {
		t.Errorf("tenant list says %s", text)
	}
}
