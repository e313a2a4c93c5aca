package protect

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/health"
	"guardhouse/appliance/kps"
	"guardhouse/appliance/policy"
)

// brought makes the node's guardian pair a tenant's: what was wrapped for it is wrapped for the tenant.
func (n *node) brought(t policy.Tenant) {
	for _, role := range []policy.KeyRole{policy.RoleSigning, policy.RoleEncryption} {
		n.changeKey(role, func(k *policy.Key) { k.Primary, k.Tenant = false, t.Name })
	}
	n.tenant(t)
}

func (n *node) tenant(t policy.Tenant) {
	n.change(func(s *policy.State) { s.Tenants = map[string]policy.Tenant{t.Name: t} })
}

// TestATenantsKeysServeItsHostClassesOnly (row B20): disabled as a whole, for another class and for hosts that somebody else attests.
func TestATenantsKeysServeItsHostClassesOnly(t *testing.T) {
	n := newNode(t)
	protector, tk := n.protector()
	n.changeHost(func(h *policy.Host) { h.Class = "gold" })
	n.brought(policy.Tenant{Name: "contoso"})
	if got, err := opened(t, protector, n.roll(protector, n.certificate())); err != nil || !bytes.Equal(got.IngressKey, tk) {
		t.Fatalf("for every class: %v", err)
	}
	if e := n.entries[len(n.entries)-1]; e.Facts["tenant"] != "contoso" {
		t.Errorf("the audit does not name the tenant: %v", e.Facts)
	}
	n.tenant(policy.Tenant{Name: "contoso", Classes: []string{"gold"}})
	if w := n.roll(protector, n.certificate()); w.Code != http.StatusOK {
		t.Errorf("its own class: %s", w.Body)
	}
	k := testKeys()
	other := signerCertificate(t, k[foreign])
	n.change(func(s *policy.State) { s.Signers["x"] = policy.TrustedSigner{Thumbprint: "x", Certificate: other.Raw} })
	wantRefusal(t, n.roll(protector, healthy(t, health.Order{}, other, k[foreign])), http.StatusBadRequest, kps.CodeInvalidProtector, "class is not known")
	n.tenant(policy.Tenant{Name: "contoso", Disabled: true})
	wantRefusal(t, n.roll(protector, n.certificate()), http.StatusBadRequest, kps.CodeInvalidProtector, "which is disabled")
	n.tenant(policy.Tenant{Name: "fabrikam"})
	wantRefusal(t, n.roll(protector, n.certificate()), http.StatusBadRequest, kps.CodeInvalidProtector, "not recorded")
}

func TestATenantsKeyAndOursMakeNoPair(t *testing.T) {
	n := newNode(t)
	protector, _ := n.protector()
	n.brought(policy.Tenant{Name: "contoso"})
	n.changeKey(policy.RoleSigning, func(k *policy.Key) { k.Tenant = "" })
	wantRefusal(t, n.roll(protector, n.certificate()), http.StatusBadRequest, kps.CodeInvalidProtector, "not that tenant's")
}

func TestATenantSwitchedOffWhileTheTokenWorksGetsNoKey(t *testing.T) {
	n := newNode(t)
	protector, _ := n.protector()
	n.brought(policy.Tenant{Name: "contoso"})
	n.token = func() error { n.tenant(policy.Tenant{Name: "contoso", Disabled: true}); return nil }
	wantRefusal(t, n.roll(protector, n.certificate()), http.StatusBadRequest, kps.CodeInvalidProtector, "disabled")
}

func TestTheAuditSaysWhyATenantsKeyIsNotForThisHost(t *testing.T) {
	n := newNode(t)
	protector, _ := n.protector()
	n.changeHost(func(h *policy.Host) { h.Class = "gold" })
	n.brought(policy.Tenant{Name: "contoso", Classes: []string{"silver"}})
	const says = "classes silver only; this host is of the class gold"
	wantRefusal(t, n.roll(protector, n.certificate()), http.StatusBadRequest, kps.CodeInvalidProtector, says)
	e := n.entries[len(n.entries)-1]
	if e.Kind != policy.AuditRefusal || e.Subject != hostID || !strings.Contains(e.Detail, says) || e.Remedy == "" {
		t.Errorf("%+v", e)
	}
}

// TestATenantsQuotaStopsItsKeysAndNobodyElses (row B20): a tenant that asks without end is told to come again, with its name in the audit;
// what it asked for in vain counts as well, and the next minute is its own again.
func TestATenantsQuotaStopsItsKeysAndNobodyElses(t *testing.T) {
	n := newNode(t)
	protector, _ := n.protector()
	n.brought(policy.Tenant{Name: "contoso", PerMinute: 2})
	n.token = func() error { return errToken }
	wantRefusal(t, n.roll(protector, n.certificate()), http.StatusServiceUnavailable, kps.CodeUnavailable, "HSM")
	n.token = nil
	if w := n.roll(protector, n.certificate()); w.Code != http.StatusOK {
		t.Fatalf("within the quota: %s", w.Body)
	}
	n.token = func() error { t.Error("the token is asked beyond the quota"); return nil }
	w := n.roll(protector, n.certificate())
	wantRefusal(t, w, http.StatusServiceUnavailable, kps.CodeUnavailable, "tenant contoso has used its quota of 2")
	n.roll(protector, n.certificate())
	if len(n.noted) != 1 || n.noted[0].Kind != policy.ObservedQuota || n.noted[0].Subject != "contoso" || n.noted[0].Facts["perMinute"] != "2" ||
		n.noted[0].Facts["source"] == "" || n.noted[0].Last.Latest == 0 || !n.noted[0].Fits() {
		t.Errorf("of two refusals in a minute it is noted: %+v", n.noted)
	}
	if w.Header().Get("Retry-After") == "" {
		t.Error("the host is not told when to ask again")
	}
	if e := n.entries[len(n.entries)-1]; e.Outcome != outcomeTenantQuota || e.Subject != hostID || !strings.Contains(e.Detail, "contoso") || !strings.Contains(e.Remedy, "tenant set") {
		t.Errorf("%+v", e)
	}
	n.token = nil
	n.brought(policy.Tenant{Name: "fabrikam", PerMinute: 1})
	if w := n.roll(protector, n.certificate()); w.Code != http.StatusOK {
		t.Errorf("another tenant: %s", w.Body)
	}
	n.brought(policy.Tenant{Name: "contoso", PerMinute: 3})
	if w := n.roll(protector, n.certificate()); w.Code != http.StatusOK {
		t.Errorf("a larger quota counts at once: %s", w.Body)
	}
	n.boot += time.Minute
	n.tenant(policy.Tenant{Name: "contoso", PerMinute: 2})
	if w := n.roll(protector, n.certificate()); w.Code != http.StatusOK {
		t.Errorf("a minute later: %s", w.Body)
	}
	for range 2 {
		n.roll(protector, n.certificate())
	}
	if len(n.noted) != 2 {
		t.Errorf("of the next minute %+v", n.noted)
	}
}
