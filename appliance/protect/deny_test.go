package protect

import (
	"crypto/x509"
	"net/http"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/health"
	"guardhouse/appliance/kps"
	"guardhouse/appliance/policy"
)

// trusting makes a node that trusts a foreign attestation signer and gives that signer's certificate.
func trusting(t *testing.T) (*node, *x509.Certificate) {
	n := newNode(t)
	other := signerCertificate(t, testKeys()[foreign])
	n.change(func(s *policy.State) {
		s.Signers["x"] = policy.TrustedSigner{Thumbprint: policy.Thumbprint(other.Raw), Name: "site2", Certificate: other.Raw}
	})
	return n, other
}

func TestForeignHostsNeedNotBeRegisteredAndAreNotTakenForOurs(t *testing.T) {
	n, other := trusting(t)
	protector, _ := n.protector()
	for _, id := range []string{hostID, strings.Repeat("CD", 32)} {
		if w := n.roll(protector, healthy(t, health.Order{HostID: id}, other, testKeys()[foreign])); w.Code != http.StatusOK {
			t.Fatalf("%s", w.Body)
		}
		e := n.entries[len(n.entries)-1]
		if want := "foreign " + policy.Thumbprint(other.Raw)[:16] + " " + id; e.Subject != want || e.Facts["host"] != "" {
			t.Errorf("the audit says that %q (%q) got a key, a foreign signer said so of %q", e.Subject, e.Facts["host"], want)
		}
	}
}

// TestARevokedHostGetsNothingWhoeverVouchesForIt: a trusted foreign attestation signer knows nothing of our revocations.
func TestARevokedHostGetsNothingWhoeverVouchesForIt(t *testing.T) {
	k := testKeys()
	certified := hexSum(spki(t, &k[vsm].PublicKey))
	hostKeyID := policy.HostID(spki(t, &k[spareSigning].PublicKey))
	stranger := strings.Repeat("CD", 32)
	revoke := func(id string, keys ...string) func(*policy.State) {
		return func(s *policy.State) {
			s.Hosts[id] = policy.Host{ID: id, Name: "host1", Revoked: true, CertifiedKeys: keys}
		}
	}
	deny := func(d policy.Denial) func(*policy.State) {
		return func(s *policy.State) {
			d.Name = "thief"
			s.Denials = map[string]policy.Denial{"thief": d}
		}
	}
	for name, c := range map[string]struct {
		order   health.Order
		change  func(*policy.State)
		outcome string
	}{
		"named after it":             {health.Order{}, revoke(hostID), outcomeRevoked},
		"with the key it had":        {health.Order{HostID: stranger}, revoke(hostID, certified), outcomeRevoked},
		"with its host key":          {health.Order{HostID: stranger, Key: &k[spareSigning].PublicKey}, revoke(hostKeyID), outcomeRevoked},
		"denied by subject":          {health.Order{HostID: stranger}, deny(policy.Denial{Subject: strings.ToLower(stranger)}), outcomeDenied},
		"denied by whole subject":    {health.Order{HostID: stranger}, deny(policy.Denial{Subject: "CN=" + stranger}), outcomeDenied},
		"denied by key":              {health.Order{HostID: stranger}, deny(policy.Denial{Key: certified}), outcomeDenied},
		"another one is revoked":     {health.Order{HostID: stranger}, revoke(hostID), ""},
		"another subject, other key": {health.Order{HostID: stranger}, deny(policy.Denial{Subject: hostID, Key: strings.Repeat("0", 64)}), ""},
	} {
		t.Run(name, func(t *testing.T) {
			n, other := trusting(t)
			protector, _ := n.protector()
			cert := healthy(t, c.order, other, k[foreign])
			if w := n.roll(protector, cert); w.Code != http.StatusOK {
				t.Fatalf("the control: %s", w.Body)
			}
			n.change(c.change)
			w := n.roll(protector, cert)
			if c.outcome == "" {
				if w.Code != http.StatusOK {
					t.Errorf("%s", w.Body)
				}
				return
			}
			wantRefusal(t, w, http.StatusBadRequest, kps.CodeHealthCertificate, "")
			if c.outcome == outcomeRevoked {
				e := n.entries[len(n.entries)-1]
				if e.Kind != policy.AuditRefusal || e.Outcome != outcomeRevoked || !strings.Contains(e.Detail, "foreign attestation signer "+thumbprint(other)[:16]) {
					t.Errorf("audit entry %+v", e)
				}
				if strings.Contains(w.Body.String(), "foreign") {
					t.Error("the wire tells which signers are trusted")
				}
			} else if r := n.refused[len(n.refused)-1]; r.Outcome != c.outcome || !strings.Contains(r.Remedy, "host allow thief") {
				t.Errorf("refusal %+v", r)
			}
		})
	}
}

func spki(t testing.TB, key any) []byte {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// TestDenialsHoldForOurOwnCertificatesToo, by name and by key.
func TestDenialsHoldForOurOwnCertificatesToo(t *testing.T) {
	for name, d := range map[string]policy.Denial{"subject": {Name: "d", Subject: hostID}, "key": {Name: "d", Key: hexSum(spki(t, &testKeys()[vsm].PublicKey))}} {
		n := newNode(t)
		protector, _ := n.protector()
		n.change(func(s *policy.State) { s.Denials = map[string]policy.Denial{"d": d} })
		w := n.roll(protector, n.certificate())
		wantRefusal(t, w, http.StatusBadRequest, kps.CodeHealthCertificate, "denied")
		if t.Failed() {
			t.Fatal(name)
		}
	}
}

// TestReattestHoldsForForeignCertificatesOfThatHost, while host add, which also sets a deny date for our own, does not lock a host out
// that moves here with what another service gave it.
func TestReattestHoldsForForeignCertificatesOfThatHost(t *testing.T) {
	n, other := trusting(t)
	protector, _ := n.protector()
	cert := healthy(t, health.Order{}, other, testKeys()[foreign])
	n.changeHost(func(h *policy.Host) { h.DenyIssuedBefore = now.Add(time.Hour).Unix() })
	if w := n.roll(protector, cert); w.Code != http.StatusOK {
		t.Errorf("registered after its foreign certificate was issued: %s", w.Body)
	}
	n.changeHost(func(h *policy.Host) { h.DenyForeignBefore = now.Unix() })
	wantRefusal(t, n.roll(protector, cert), http.StatusBadRequest, kps.CodeHealthCertificate, "the host must attest again")
	fresh := healthy(t, health.Order{}, other, testKeys()[foreign])
	n.changeHost(func(h *policy.Host) { h.DenyForeignBefore = now.Add(-health.Backdate - time.Minute).Unix() })
	if w := n.roll(protector, fresh); w.Code != http.StatusOK {
		t.Errorf("issued after the date: %s", w.Body)
	}
}
