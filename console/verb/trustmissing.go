package verb

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"guardhouse/appliance/appraise"
	"guardhouse/appliance/evidence"
)

// MissingValue is a certificate that hosts' endorsement key certificates need and that is in neither store, in --json. URLs are what those
// certificates say; of unknown hosts nothing proves them.
type MissingValue struct {
	Issuer     string   `json:"issuer"`          // common name
	KeyID      string   `json:"keyId,omitempty"` // upper-case hex; empty where the certificates name none
	Root       bool     `json:"root"`            // an import that held it was not trusted as a root
	URLs       []string `json:"urls"`
	Registered []string `json:"registered"` // names of hosts
	Pending    []string `json:"pending"`    // ids of unknown hosts
}

// Bounds of what certificates that anybody may send can make of the list.
const (
	maxMissing     = 64
	maxMissingURLs = 4
)

// missingIssuers collects them.
type missingIssuers struct {
	trust *appraise.Trust // of all vendors, those that are off included: their certificates are not missing
	list  []MissingValue
	more  int // certificates whose issuers did not fit
}

// add notes what the certificate lacks, with the host under a name of one of the two kinds.
func (m *missingIssuers) add(c *evidence.Certificate, registered, pending string) {
	_, err := m.trust.Chain(c)
	var missing *evidence.MissingIssuer
	if !errors.As(err, &missing) {
		return
	}
	issuer, key := clip(missing.Issuer), clip(missing.KeyID)
	i := slices.IndexFunc(m.list, func(v MissingValue) bool { return v.Issuer == issuer && v.KeyID == key && v.Root == missing.Root })
	if i < 0 {
		if len(m.list) == maxMissing {
			m.more++
			return
		}
		i = len(m.list)
		m.list = append(m.list, MissingValue{Issuer: issuer, KeyID: key, Root: missing.Root, URLs: []string{}, Registered: []string{}, Pending: []string{}})
	}
	v := &m.list[i]
	for _, url := range missing.URLs {
		if url = clipLong(url); len(v.URLs) < maxMissingURLs && !slices.Contains(v.URLs, url) {
			v.URLs = append(v.URLs, url)
		}
	}
	if registered != "" {
		v.Registered = append(v.Registered, registered)
	} else {
		v.Pending = append(v.Pending, pending)
	}
}

// trustMissing is the queue of what an administrator has to fetch: the node itself goes to no address that a certificate names.
func trustMissing(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	all := snap.State
	all.VendorsOff = nil
	m := missingIssuers{list: []MissingValue{}}
	m.trust, _ = appraise.NewTrust(all) // what can't be read was told when it was imported
	for _, h := range sortedHosts(snap.State) {
		if h.TPM == nil {
			continue
		}
		if c, err := evidence.ParseCertificate(h.TPM.EKCert); err == nil {
			m.add(c, h.Name, "")
		}
	}
	waiting, unknown := pending(ctx, s)
	for _, v := range waiting {
		if e, err := v.endorsement(); v.Mode == "TPM" && err == nil && e.cert != nil {
			m.add(e.cert, "", v.ID)
		}
	}
	// Those that stop registered hosts first.
	slices.SortStableFunc(m.list, func(a, b MissingValue) int {
		return cmp.Or(cmp.Compare(len(b.Registered), len(a.Registered)), cmp.Compare(len(b.Pending), len(a.Pending)))
	})
	value := struct {
		Missing []MissingValue `json:"missing"`
		More    int            `json:"more,omitempty"` // hosts whose issuers are not listed
		Warning string         `json:"warning,omitempty"`
	}{m.list, m.more, ""}
	p := new(Page)
	for _, v := range m.list {
		v.page(p)
	}
	switch {
	case len(m.list) == 0:
		p.Line("No certificate is missing: each host's that was seen here leads to a root, or has another fault (host findings).")
	default:
		p.Blank().Line("Fetch them on a workstation, compare their thumbprints with what the vendor publishes, then: tpm-trust import VENDOR --dry-run < FILE")
		p.Line("The node fetches nothing: whoever sends a certificate also writes the address in it.")
	}
	if m.more > 0 {
		p.Line("%d more hosts need issuers that are not listed here.", m.more)
	}
	if unknown != nil {
		value.Warning = "which unknown hosts asked is not known: " + Explain(unknown).Error()
		p.Line("%s", value.Warning)
	}
	return Output{Text: p, Value: value}, nil
}

func (v MissingValue) page(p *Page) {
	const most = 5
	p.Blank().Field(map[bool]string{true: "root", false: "issuer"}[v.Root], "%s", v.Issuer).Field("  key id", "%s", v.KeyID)
	for _, url := range v.URLs {
		p.Field("  at", "%s", url)
	}
	if len(v.Registered) > 0 {
		p.Field("  for hosts", "%s", some(v.Registered, most))
	}
	if len(v.Pending) > 0 {
		short := make([]string, len(v.Pending))
		for i, id := range v.Pending {
			short[i] = id[:min(16, len(id))]
		}
		p.Field("  for unknown", "%s", some(short, most))
	}
}
