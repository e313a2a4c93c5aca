package ledger

import (
	"strings"
	"testing"

	"guardhouse/appliance/audit"
	"guardhouse/appliance/policy"
)

// TestAFullAuditIsNotCalledBroken: an administrator who asks whether the chain holds must not hear that it does not.
func TestAFullAuditIsNotCalledBroken(t *testing.T) {
	a, err := audit.Open(t.TempDir(), audit.Options{Quota: 64 << 10, SegmentSize: 16 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	e := policy.AuditEntry{Kind: policy.AuditGrant, Action: "test", Outcome: "ok", Detail: strings.Repeat("x", 500)}
	for a.Admits(policy.AuditGrant) == nil {
		if _, err := a.Append(t.Context(), e); err != nil {
			break
		}
	}
	if p := a.Status().Problem; p == nil || p.Kind != audit.KindFull {
		t.Fatalf("the control: it is not full: %+v", p)
	}
	r, err := (&Ledger{audit: a}).auditVerify(t.Context())
	if err != nil || r.Problem != "" || r.Last == 0 {
		t.Fatalf("%+v, %v", r, err)
	}
}
