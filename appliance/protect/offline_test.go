package protect

import (
	"net/http"
	"testing"
	"time"

	"guardhouse/appliance/health"
	"guardhouse/appliance/kps"
	"guardhouse/appliance/policy"
)

func offlineFor(class string, until time.Time) func(*policy.State) {
	return func(s *policy.State) {
		h := s.Hosts[hostID]
		h.Class = "edge"
		s.Hosts[hostID] = h
		s.Offline = map[string]policy.OfflineCaching{class: {Class: class, MaxUnwraps: 3, Until: until.Unix()}}
	}
}

// TestOfflineCachingIsGivenToItsHostClassUntilItsEnd: attribute and policy say the same number, the audit tells of it (kps.md 14.11, 14.12).
func TestOfflineCachingIsGivenToItsHostClassUntilItsEnd(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*policy.State)
		path   string
		want   uint32
	}{
		"off":                 {func(*policy.State) {}, kps.RollPathV2, 0},
		"its class":           {offlineFor("edge", now.Add(time.Hour)), kps.RollPathV2, 3},
		"another class":       {offlineFor("core", now.Add(time.Hour)), kps.RollPathV2, 0},
		"version 1":           {offlineFor("edge", now.Add(time.Hour)), kps.RollPathV1, 0},
		"its end has come":    {offlineFor("edge", now.Add(-time.Hour)), kps.RollPathV2, 0},
		"its end may be come": {offlineFor("edge", now.Add(time.Second)), kps.RollPathV2, 0},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			protector, _ := n.protector()
			n.change(c.change)
			got, err := opened(t, protector, n.do(http.MethodPost, c.path, kps.NewRequest(protector, n.certificate()).Marshal()))
			if err != nil {
				t.Fatal(err)
			}
			facts := n.entries[0].Facts
			if c.want == 0 {
				if got.Egress.MaxOfflineUnwraps != 0 || len(got.Policies) != 0 || facts["offlineUnwraps"] != "" {
					t.Errorf("attribute %d, policies %v, facts %v", got.Egress.MaxOfflineUnwraps, got.Policies, facts)
				}
				return
			}
			p := kps.OfflinePolicy(c.want)
			if got.Egress.MaxOfflineUnwraps != c.want || len(got.Policies) != 1 || string(got.Policies[0].Data) != string(p.Data) || facts["offlineUnwraps"] != "3" || facts["offlineClass"] != "edge" {
				t.Errorf("attribute %d, policies %v, facts %v", got.Egress.MaxOfflineUnwraps, got.Policies, facts)
			}
			if len(facts) > policy.MaxAuditFacts {
				t.Errorf("%d facts", len(facts))
			}
			// It does not stick: what comes back without the class's consent is without it.
			n.change(func(s *policy.State) { s.Offline = nil })
			again, err := opened(t, got.Egress.Bytes(), n.roll(got.Egress.Bytes(), n.certificate()))
			if err != nil || again.Egress.MaxOfflineUnwraps != 0 || len(again.Policies) != 0 {
				t.Errorf("copied from the ingress protector: %v", err)
			}
		})
	}
}

func TestForeignHostsGetNoOfflineCaching(t *testing.T) {
	n, other := trusting(t)
	protector, _ := n.protector()
	n.change(offlineFor("edge", now.Add(time.Hour)))
	got, err := opened(t, protector, n.roll(protector, healthy(t, health.Order{}, other, testKeys()[foreign])))
	if err != nil || got.Egress.MaxOfflineUnwraps != 0 {
		t.Errorf("%v", err)
	}
}

func TestOfflineCachingTakenBackWhileTheTokenWorksIsNotGiven(t *testing.T) {
	n := newNode(t)
	protector, _ := n.protector()
	n.change(offlineFor("edge", now.Add(time.Hour)))
	cert := n.certificate()
	n.token = func() error { n.change(func(s *policy.State) { s.Offline = nil }); return nil }
	wantRefusal(t, n.roll(protector, cert), http.StatusServiceUnavailable, kps.CodeUnavailable, "offline caching")
	n.token = nil
	if w := n.roll(protector, cert); w.Code != http.StatusOK {
		t.Errorf("asked again: %s", w.Body)
	}
}

func TestMetadataListsOtherSigningKeysOnlyWhereConfigured(t *testing.T) {
	n := newNode(t)
	k := testKeys()
	spare, off := record(policy.RoleSigning, certify(t, "spare", k[spareSigning])), record(policy.RoleSigning, certify(t, "off", k[spareEncryption]))
	spare.Primary, off.Primary, off.Enabled = false, false, false
	n.change(func(s *policy.State) { s.Keys[spare.Ref], s.Keys[off.Ref] = spare, off })
	read := func() *kps.Metadata {
		m, err := kps.ParseMetadata(n.do(http.MethodGet, kps.MetadataPath, nil).Body.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	if m := read(); len(m.OtherSigningCertificates) != 0 {
		t.Errorf("%d others without being asked: old hosts don't know the element", len(m.OtherSigningCertificates))
	}
	n.change(func(s *policy.State) { s.Service.OtherSigning = true })
	m := read()
	if len(m.OtherSigningCertificates) != 1 || m.OtherSigningCertificates[0].Subject.CommonName != "spare" || m.Signature != kps.SignatureValid ||
		m.CommunicationsCertificate.Subject.CommonName != "communications" {
		t.Errorf("%+v", m)
	}
}
