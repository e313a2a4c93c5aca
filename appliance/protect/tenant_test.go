package protect

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

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
