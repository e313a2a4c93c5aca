package verb

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"strings"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
)

// importChunk bounds one command of tpm-trust import: base64 makes it a third longer, and a command has 1 MiB.
const importChunk = 512 << 10

func trustImport(ctx context.Context, s *Session, a Args, stdin []byte) (Output, error) {
	certs, bad, err := evidence.ReadBundle(stdin)
	if err != nil {
		return Output{}, failed("the input holds no certificates: "+err.Error(), "give PEM, DER or PKCS#7: tpm-trust import VENDOR < FILE")
	}
	p := new(Page)
	var chunk []policy.TrustAnchor
	roots, size, messages := 0, 0, []string{}
	send := func() error {
		if len(chunk) == 0 {
			return nil
		}
		out, r, err := propose(ctx, s, policy.CmdTrustImport, policy.TrustImport{Vendor: a.Get("vendor"), Anchors: chunk, Virtual: a.Has("virtual")})
		if err != nil {
			return err
		}
		p.b.WriteString(out.Text.String())
		messages = append(messages, r.Message)
		chunk, size = nil, 0
		return nil
	}
	for _, c := range certs {
		anchor := policy.TrustAnchor{Root: bytes.Equal(c.RawSubject, c.RawIssuer), Name: clip(c.Name()), Certificate: c.Original}
		if anchor.Root {
			roots++
		}
		if size += len(c.Original); size > importChunk {
			if err := send(); err != nil {
				return Output{}, err
			}
			size = len(c.Original)
		}
		chunk = append(chunk, anchor)
	}
	if err := send(); err != nil {
		return Output{}, err
	}
	p.Field("read", "%d roots, %d intermediates", roots, len(certs)-roots)
	unread := []string{}
	for _, e := range bad {
		unread = append(unread, e.Error())
		p.Line("! not read: %s", e)
	}
	return Output{Text: p, Value: struct {
		Vendor        string   `json:"vendor"`
		Messages      []string `json:"messages"`
		Roots         int      `json:"roots"`
		Intermediates int      `json:"intermediates"`
		Unread        []string `json:"unread"`
	}{a.Get("vendor"), messages, roots, len(certs) - roots, unread}}, nil
}

// AnchorValue is a trusted TPM certificate in --json.
type AnchorValue struct {
	Name   string       `json:"name"`
	Root   bool         `json:"root"`
	SHA1   string       `json:"sha1"`
	SHA256 string       `json:"sha256"`
	Added  policy.Stamp `json:"added"`
}

// VendorValue is a TPM vendor in --json. Hosts counts those whose certificate leads to it.
type VendorValue struct {
	Vendor  string        `json:"vendor"`
	On      bool          `json:"on"`
	Hosts   int           `json:"hosts"`
	Anchors []AnchorValue `json:"anchors"`
}

func trustList(_ context.Context, s *Session, a Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	byVendor := map[string]*VendorValue{}
	for tp, anchor := range snap.State.Anchors {
		v := byVendor[anchor.Vendor]
		if v == nil {
			v = &VendorValue{Vendor: anchor.Vendor, On: !snap.State.VendorOff(anchor.Vendor), Anchors: []AnchorValue{}}
			byVendor[anchor.Vendor] = v
		}
		s1, _ := thumbprints(anchor.Certificate)
		v.Anchors = append(v.Anchors, AnchorValue{anchor.Name, anchor.Root, s1, tp, anchor.Added})
	}
	for _, h := range snap.State.Hosts {
		if h.TPM != nil && len(h.TPM.Chain) > 0 {
			if v := byVendor[snap.State.Anchors[h.TPM.Chain[0]].Vendor]; v != nil {
				v.Hosts++
			}
		}
	}
	vendors := []VendorValue{}
	for _, v := range byVendor {
		if a.Has("vendor") && v.Vendor != a.Get("vendor") {
			continue
		}
		slices.SortFunc(v.Anchors, func(x, y AnchorValue) int {
			return cmp.Or(cmp.Compare(x.Name, y.Name), cmp.Compare(x.SHA256, y.SHA256))
		})
		vendors = append(vendors, *v)
	}
	slices.SortFunc(vendors, func(x, y VendorValue) int { return cmp.Compare(x.Vendor, y.Vendor) })
	p := new(Page)
	for _, v := range vendors {
		p.Blank().Line("%s: %s, %d certificates, %d hosts", v.Vendor, onOff(v.On), len(v.Anchors), v.Hosts)
		if !a.Has("vendor") && len(vendors) > 1 {
			continue
		}
		for _, c := range v.Anchors {
			p.Field(map[bool]string{true: "  root", false: "  intermediate"}[c.Root], "%s", c.Name)
			p.Field("    SHA-1", "%s", c.SHA1).Field("    SHA-256", "%s", c.SHA256)
		}
	}
	if len(vendors) == 0 {
		p.Line("No TPM vendor is trusted: hosts of policy version v2 can't be registered.")
		p.Line("Import the certificates of your TPMs' vendors: tpm-trust import VENDOR < FILE")
	}
	return Output{Text: p, Value: struct {
		Vendors []VendorValue `json:"vendors"`
	}{vendors}}, nil
}

func trustRemove(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	name := strings.TrimSpace(a.Get("name"))
	snap, _ := s.Node.Snapshot()
	hosts := hostsTrustedBy(snap.State, func(tp string) bool { return tp == strings.ToLower(name) || snap.State.Anchors[tp].Vendor == name })
	out, err := change(ctx, s, a, policy.CmdTrustRemove, policy.Removal{Name: name, Phrase: a.Get("phrase")})
	if err == nil && hosts > 0 {
		out.Text.Line("! %d hosts of policy version v2 were registered by it; they fail unless another chain holds.", hosts)
	}
	return out, err
}

// hostsTrustedBy counts the hosts of version v2 whose chain has a certificate, by its thumbprint, for which is says so.
func hostsTrustedBy(state policy.State, is func(string) bool) (n int) {
	for _, h := range state.Hosts {
		if h.TPM != nil && h.TPM.Version == policy.Version2 && slices.ContainsFunc(h.TPM.Chain, is) {
			n++
		}
	}
	return n
}

func trustVendor(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	body := policy.VendorSwitch{Vendor: a.Get("vendor"), On: a.Get("state") == "on"}
	snap, _ := s.Node.Snapshot()
	hosts := hostsTrustedBy(snap.State, func(tp string) bool { return snap.State.Anchors[tp].Vendor == body.Vendor })
	out, err := change(ctx, s, a, policy.CmdTrustVendor, body)
	if err == nil && hosts > 0 {
		out.Text.Line("%d registered hosts of policy version v2 have its TPMs.", hosts)
	}
	return out, err
}
