package attest

import (
	"strconv"
	"testing"

	"guardhouse/appliance/appraise"
	"guardhouse/appliance/policy"
)

// TestEachPolicyKeepsMicrosoftsEventID: the audit carries the first id that the documents give for the policy.
func TestEachPolicyKeepsMicrosoftsEventID(t *testing.T) {
	for _, b := range policy.Builtins {
		f := appraise.Finding{Kind: "x", Policy: b.Name}
		want := ""
		if len(b.Events) > 0 {
			f.EventID = b.Events[0]
			want = strconv.Itoa(b.Events[0])
		}
		if got := windowsEvents([]appraise.Finding{f, f}); got != want {
			t.Errorf("%s: %q, want %q", b.Name, got, want)
		}
	}
	if got := windowsEvents([]appraise.Finding{{EventID: 1508}, {}, {EventID: 1534}, {EventID: 1508}}); got != "1508,1534" {
		t.Error(got)
	}
}
