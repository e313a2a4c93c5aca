package verb_test

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/console/verb/verbtest"
)

// TestNamesEachMissingIssuerOnce: with the address that its certificates give and who needs it; one that is here and switched off is not missing.
func TestNamesEachMissingIssuerOnce(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	mustCall(t, s, "service set --mode TPM", "")
	if text := flat(t, s, "tpm-trust missing", ""); !strings.Contains(text, "No certificate is missing") {
		t.Errorf("of an empty node: %s", text)
	}
	maker := newVendor(t)
	ask := func(v *vendor, n int) (ids []string) {
		for range n {
			ek, cert := v.tpm(t)
			id := policy.HostID(ek)
			f.PendingTPM(id, map[string]string{"mode": "TPM", "source": "10.0.2.9", "spki": base64.StdEncoding.EncodeToString(ek), "certificate": base64.StdEncoding.EncodeToString(cert)})
			ids = append(ids, id)
		}
		return ids
	}
	ids := ask(maker, 6)
	ek, cert := maker.tpm(t)
	mustCall(t, s, "host add-tpm hv7 --policy-version v1 --force --reason lab", platform(t, ek, cert))
	waitFor(t, f, func(st policy.State) bool { return len(st.Hosts) == 1 })
	text := flat(t, s, "tpm-trust missing", "")
	for _, want := range []string{"issuer Lab TPM Root", "at http://vendor.test/root.cer", "for hosts hv7", ids[0][:16], "and 1 more", "tpm-trust import VENDOR --dry-run"} {
		if !strings.Contains(text, want) {
			t.Errorf("lacks %q: %s", want, text)
		}
	}
	if n := strings.Count(text, "Lab TPM Root"); n != 1 {
		t.Errorf("the issuer is named %d times: %s", n, text)
	}
	c, err := evidence.ParseCertificate(cert)
	if err != nil {
		t.Fatal(err)
	}
	if id := fmt.Sprintf("key id %X", c.AuthorityKeyId); !strings.Contains(text, id) {
		t.Errorf("lacks %s: %s", id, text)
	}
	mustCall(t, s, "tpm-trust import lab --virtual", armor("CERTIFICATE", maker.cert.Raw))
	waitFor(t, f, func(st policy.State) bool { return len(st.Anchors) == 1 && st.VendorOff("lab") })
	if text := flat(t, s, "tpm-trust missing", ""); !strings.Contains(text, "No certificate is missing") {
		t.Errorf("after the import: %s", text)
	}
	f.Fail("ledger.Observed", rpc.ErrUnavailable)
	if text := flat(t, s, "tpm-trust missing", ""); !strings.Contains(text, "which unknown hosts asked is not known") {
		t.Errorf("without observations: %s", text)
	}
}
