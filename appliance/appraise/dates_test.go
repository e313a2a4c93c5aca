package appraise

import (
	"crypto/ecdsa"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
)

// TestCertificatesThatRanOutAreANoteAndRefuseNobody: manufacturers' certificates, and their issuers', expire while the TPM is in service.
func TestCertificatesThatRanOutAreANoteAndRefuseNobody(t *testing.T) {
	at := func(year int) time.Time { return time.Date(year, 1, 2, 0, 0, 0, 0, time.UTC) }
	for _, c := range []struct {
		name        string
		root, leaf  [2]time.Time // from, until
		now         time.Time
		want, other string // a note that must be there, and how many there are
		notes       int
	}{
		{"in its time", [2]time.Time{at(2015), at(2040)}, [2]time.Time{at(2020), at(2030)}, at(2026), "", "", 0},
		{"of no end", [2]time.Time{at(2015), at(9998)}, [2]time.Time{at(2020), at(9998)}, at(2026), "", "", 0},
		{"expired", [2]time.Time{at(2015), at(2040)}, [2]time.Time{at(2020), at(2025)}, at(2026), `"TPM" has expired on 2025-01-02`, "", 1},
		{"issuer expired", [2]time.Time{at(2015), at(2022)}, [2]time.Time{at(2020), at(2030)}, at(2026), `"Vendor Root" has expired on 2022-01-02`, "", 1},
		{"not yet valid", [2]time.Time{at(2015), at(2040)}, [2]time.Time{at(2030), at(2040)}, at(2026), `"TPM" is valid only from 2030-01-02 on`, "", 1},
		{"issued by an expired root", [2]time.Time{at(2015), at(2018)}, [2]time.Time{at(2020), at(2030)}, at(2026), `"TPM" was issued after its issuer "Vendor Root" had expired`, "has expired", 2},
	} {
		s := newSite(t)
		root := s.issueFor(t, "Vendor Root", &s.root.PublicKey, true, c.root[0], c.root[1])
		leaf := s.issueFor(t, "TPM", s.ek.Public.(*ecdsa.PublicKey), false, c.leaf[0], c.leaf[1])
		tp := policy.Thumbprint(root)
		s.state.Anchors = map[string]policy.Anchor{tp: {Thumbprint: tp, Vendor: "vendor", Root: true, Name: "Vendor Root", Certificate: root}}
		host := s.host()
		identity := *host.TPM
		identity.EKCert = leaf
		host.TPM = &identity
		trust, bad := NewTrust(s.state)
		if len(bad) != 0 {
			t.Fatal(bad)
		}
		if v := Judge(Input{State: s.state, Trust: trust, Host: host, EK: s.ek, Facts: goodBoot().facts(t)}); !v.Passed {
			t.Errorf("%s: refused: %+v", c.name, v.Findings)
		}
		cert, err := evidence.ParseCertificate(leaf)
		if err != nil {
			t.Fatal(err)
		}
		notes := trust.Dates(cert, c.now)
		text := strings.Join(notes, "; ")
		if len(notes) != c.notes || !strings.Contains(text, c.want) || !strings.Contains(text, c.other) {
			t.Errorf("%s: %q", c.name, notes)
		}
		// A chain that leads nowhere still has its own dates.
		nowhere, _ := NewTrust(policy.NewState())
		if own := nowhere.Dates(cert, c.now); (len(own) > 0) != (c.now.After(c.leaf[1]) || c.now.Before(c.leaf[0])) {
			t.Errorf("%s, without anchors: %q", c.name, own)
		}
	}
}
