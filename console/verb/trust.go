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

// TrustImported is tpm-trust import in --json. With --dry-run nothing was changed and Messages is empty.
type TrustImported struct {
	Vendor        string        `json:"vendor"`
	Messages      []string      `json:"messages"`
	Roots         int           `json:"roots"` // read, like the intermediates: some may have been trusted before
	Intermediates int           `json:"intermediates"`
	New           []AnchorValue `json:"new"` // not trusted before
	Unread        []string      `json:"unread"`
	DryRun        bool          `json:"dryRun,omitempty"`
	Effect        *Effect       `json:"effect"`
}

// trustImport tries the whole input on a copy of the records before it changes any, so that input which does not fit changes nothing.
func trustImport(ctx context.Context, s *Session, a Args, stdin []byte) (Output, error) {
	certs, bad, err := evidence.ReadBundle(stdin)
	if err != nil {
		return Output{}, failed("the input holds no certificates: "+err.Error(), "give PEM, DER or PKCS#7: tpm-trust import VENDOR < FILE")
	}
	v := TrustImported{Vendor: a.Get("vendor"), Messages: []string{}, Unread: []string{}, DryRun: a.Has("dry-run")}
	steps := importSteps(certs, v.Vendor, a.Has("virtual"))
	snap, _ := s.Node.Snapshot()
	next := snap.State
	for _, step := range steps {
		if next, err = tryOn(ctx, s, next, policy.CmdTrustImport, step); err != nil {
			return Output{}, err
		}
		for _, anchor := range step.Anchors {
			if anchor.Root {
				v.Roots++
			} else {
				v.Intermediates++
			}
		}
	}
	v.New = newAnchors(snap.State, next)
	v.Effect = effectOf(ctx, s, snap.State, next, nil)
	p := new(Page)
	if v.DryRun {
		p.Line("Nothing was changed.")
		v.page(p, next)
	} else {
		for _, step := range steps {
			out, r, err := propose(ctx, s, policy.CmdTrustImport, step)
			if err != nil {
				return Output{}, err
			}
			p.b.WriteString(out.Text.String())
			v.Messages = append(v.Messages, r.Message)
		}
	}
	p.Field("read", "%d roots, %d intermediates", v.Roots, v.Intermediates)
	for _, e := range bad {
		v.Unread = append(v.Unread, e.Error())
		p.Line("! not read: %s", e)
	}
	v.Effect.page(p, !v.DryRun)
	return Output{Text: p, Value: v}, nil
}

// importSteps divides certificates among commands.
func importSteps(certs []*evidence.Certificate, vendor string, virtual bool) (steps []policy.TrustImport) {
	size := 0
	for _, c := range certs {
		if size += len(c.Original); len(steps) == 0 || size > importChunk {
			steps = append(steps, policy.TrustImport{Vendor: vendor, Virtual: virtual})
			size = len(c.Original)
		}
		step := &steps[len(steps)-1]
		step.Anchors = append(step.Anchors, policy.TrustAnchor{Root: bytes.Equal(c.RawSubject, c.RawIssuer), Name: clip(c.Name()), Certificate: c.Original})
	}
	return steps
}

// newAnchors are the certificates that next trusts and state does not, roots first.
func newAnchors(state, next policy.State) []AnchorValue {
	list := []AnchorValue{}
	for tp, anchor := range next.Anchors {
		if _, known := state.Anchors[tp]; !known {
			list = append(list, anchorValue(anchor))
		}
	}
	slices.SortFunc(list, func(x, y AnchorValue) int {
		if x.Root != y.Root {
			return map[bool]int{true: -1, false: 1}[x.Root]
		}
		return cmp.Or(cmp.Compare(x.Name, y.Name), cmp.Compare(x.SHA256, y.SHA256))
	})
	return list
}

// page says what an import would add.
func (v TrustImported) page(p *Page, next policy.State) {
	const most = 20
	p.Line("%d certificates of the TPM vendor %s would be trusted.", len(v.New), v.Vendor)
	for i, c := range v.New {
		if i == most {
			p.Line("  and %d more, see --json", len(v.New)-most)
			break
		}
		p.Field(map[bool]string{true: "  root", false: "  intermediate"}[c.Root], "%s", c.Name)
		p.Field("    SHA-1", "%s", c.SHA1).Field("    SHA-256", "%s", c.SHA256)
	}
	if len(v.New) > 0 && next.VendorOff(v.Vendor) {
		p.Line("They would not count until you say so: tpm-trust vendor %s on", v.Vendor)
	}
}

func anchorValue(a policy.Anchor) AnchorValue {
	s1, _ := thumbprints(a.Certificate)
	return AnchorValue{a.Name, a.Root, s1, a.Thumbprint, a.Added}
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
	for _, anchor := range snap.State.Anchors {
		v := byVendor[anchor.Vendor]
		if v == nil {
			v = &VendorValue{Vendor: anchor.Vendor, On: !snap.State.VendorOff(anchor.Vendor), Anchors: []AnchorValue{}}
			byVendor[anchor.Vendor] = v
		}
		v.Anchors = append(v.Anchors, anchorValue(anchor))
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
