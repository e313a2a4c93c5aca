package verb

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	"guardhouse/appliance/appraise"
	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
)

// captured is a boot that somebody wants to register something of: from a .tcglog file, or what a host last showed.
type captured struct {
	facts *evidence.Facts
	log   string // SHA-256
	host  policy.Host
}

// capture takes the last evidence of --host, the failed one if that is newer, or the log on standard input.
func capture(ctx context.Context, s *Session, a Args, stdin []byte) (captured, error) {
	if a.Has("host") {
		return captureHost(ctx, s, a.Get("host"))
	}
	if len(stdin) == 0 {
		return captured{}, usage("nothing came on standard input", "give the .tcglog of Get-HgsAttestationBaselinePolicy, or --host NAME")
	}
	facts, failure := evidence.ParseBaseline(stdin)
	if failure != nil {
		return captured{}, failed("this is no usable boot log: "+failure.Error(), "capture it on the host with Get-HgsAttestationBaselinePolicy -Path FILE")
	}
	sum := sha256.Sum256(stdin)
	return captured{facts: facts, log: hex.EncodeToString(sum[:])}, nil
}

func captureHost(ctx context.Context, s *Session, name string) (captured, error) {
	h, err := tpmHost(s, name)
	if err != nil {
		return captured{}, err
	}
	c := captured{host: h}
	var last policy.Stamp
	for _, kind := range []policy.ObservationKind{policy.ObservedGood, policy.ObservedFindings} {
		e, err := evidenceOf(ctx, s, kind, h.ID)
		if err != nil {
			return captured{}, err
		}
		if e.facts != nil && !newer(last, e.at.At) {
			c.facts, c.log, last = e.facts, e.at.Log, e.at.At
		}
	}
	if c.facts == nil {
		return captured{}, failed("this node has seen no boot of that host", "wait until it attests here, or give its .tcglog as a file")
	}
	return c, nil
}

// BaselineValue is a baseline in --json; added and proposed ones say what the boot as a whole was like.
type BaselineValue struct {
	policy.Baseline
	Warnings []string `json:"warnings,omitempty"` // policies that a host which boots like this fails
	Effect   *Effect  `json:"effect,omitempty"`
}

// printable shows JSON of the digests in hex.
type measuredHex struct {
	Name   string `json:"name"`
	GUID   string `json:"guid"`
	SHA256 string `json:"sha256"`
}

func baselineAdd(ctx context.Context, s *Session, a Args, stdin []byte) (Output, error) {
	c, err := capture(ctx, s, a, stdin)
	if err != nil {
		return Output{}, err
	}
	b := policy.BaselineAdd{Name: a.Get("name"), Version: policy.PolicyVersion(a.Or("policy-version", string(policy.Version2))), LogDigest: c.log}
	b.Variables, b.Authorities, b.NoDMA = appraise.Baseline(c.facts)
	snap, _ := s.Node.Snapshot()
	out, err := change(ctx, s, a, policy.CmdBaselineAdd, b)
	if err != nil {
		return Output{}, err
	}
	bootFields(out.Text, c.facts)
	nearest(out.Text, snap.State, b)
	warnings := bootWarnings(snap.State, a, c, b.Version)
	for _, w := range warnings {
		out.Text.Line("! %s", w)
	}
	out.Value = struct {
		Changed
		Warnings    []string      `json:"warnings"`
		Variables   []measuredHex `json:"variables"`
		Authorities []measuredHex `json:"authorities"`
	}{out.Value.(Changed), append([]string{}, warnings...), inHex(b.Variables), inHex(b.Authorities)}
	s.modeNoteTPM(out.Text)
	return out, nil
}

func inHex(list []policy.Measured) []measuredHex {
	all := []measuredHex{}
	for _, m := range list {
		all = append(all, measuredHex{m.Name, m.GUID, hex.EncodeToString(m.SHA256)})
	}
	return all
}

// bootFields is a boot for people.
func bootFields(p *Page, f *evidence.Facts) {
	yes := func(id evidence.SettingID) string {
		s := f.Settings.Get(id)
		switch {
		case !s.Measured():
			return "not measured"
		case slices.Contains(s.Values(), 0):
			return "off"
		}
		return "on"
	}
	p.Field("Secure Boot", "%s", yes(evidence.SecureBoot))
	for i := range f.Variables {
		v := &f.Variables[i]
		p.Field("  "+v.Name, "%x, %d bytes", v.SHA256[:8], v.Size)
	}
	for i := range f.Authorities {
		p.Field("  authority", "%s %x", f.Authorities[i].Variable, f.Authorities[i].SHA256[:8])
	}
	p.Field("debuggers", "boot %s, kernel %s, hypervisor %s", yes(evidence.BootDebug), yes(evidence.KernelDebug), yes(evidence.HypervisorDebug))
	p.Field("VSM", "%s, IOMMU required %s, HVCI %s", yes(evidence.VSMLaunch), yes(evidence.VBSIOMMU), yes(evidence.HVCI))
	p.Field("dumps", "disabled %s, encryption %s", yes(evidence.DumpsDisabled), yes(evidence.DumpEncryption))
	if len(f.DumpKey) > 0 {
		p.Field("  dump key", "%x", []byte(f.DumpKey))
	}
	for i := range f.Policies {
		p.Field("CI policy", "%q %s, %s %x", f.Policies[i].Name, f.Policies[i].Version, f.Policies[i].Hash, []byte(f.Policies[i].Digest))
	}
}

// nearest says how a new baseline differs from the registered one that is most like it.
func nearest(p *Page, state policy.State, b policy.BaselineAdd) {
	best, name, diff := -1, "", []string(nil)
	for _, n := range slices.Sorted(maps.Keys(state.Baselines)) {
		old := state.Baselines[n]
		d := differences(old.Variables, b.Variables, "variable")
		d = append(d, differences(old.Authorities, b.Authorities, "authority")...)
		if best < 0 || len(d) < best {
			best, name, diff = len(d), n, d
		}
	}
	if best < 0 {
		return
	}
	if best == 0 {
		p.Field("compared", "the same as baseline %s but for its version or order", name)
		return
	}
	p.Field("compared", "with baseline %s:", name)
	for _, d := range diff {
		p.Line("  %s", d)
	}
}

// differences lists what is not the same in two lists, by name.
func differences(old, now []policy.Measured, what string) (diff []string) {
	in := func(list []policy.Measured, m policy.Measured) bool {
		return slices.ContainsFunc(list, func(o policy.Measured) bool {
			return o.Name == m.Name && o.GUID == m.GUID && bytes.Equal(o.SHA256, m.SHA256)
		})
	}
	for _, m := range now {
		if !in(old, m) {
			diff = append(diff, fmt.Sprintf("+ %s %s %x", what, m.Name, m.SHA256[:min(8, len(m.SHA256))]))
		}
	}
	for _, m := range old {
		if !in(now, m) {
			diff = append(diff, fmt.Sprintf("- %s %s %x", what, m.Name, m.SHA256[:min(8, len(m.SHA256))]))
		}
	}
	return diff
}

// bootWarnings says which policies a host that boots like this would fail, beside those that want something registered.
func bootWarnings(state policy.State, a Args, c captured, v policy.PolicyVersion) (warnings []string) {
	h := c.host
	h.TPM = &policy.TPMIdentity{Version: v}
	if h.Class == "" {
		h.Class = "default"
	}
	verdict := appraise.Review(appraise.Input{State: state, Host: h, Facts: c.facts})
	for _, f := range verdict.Findings {
		switch f.Kind {
		case appraise.NoBaseline, appraise.BaselineOther, appraise.NoCIPolicy, appraise.VersionsMixed, appraise.DumpKeyOther, appraise.NoDumpKey:
			continue
		case appraise.CIPolicyOther:
			if len(c.facts.Policies) > 0 {
				continue
			}
		}
		warnings = append(warnings, "a host that boots like this fails "+f.Policy+": "+f.What)
	}
	return warnings
}

func baselineList(_ context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	type value struct {
		Name        string               `json:"name"`
		Version     policy.PolicyVersion `json:"version"`
		LogDigest   string               `json:"logDigest"`
		Variables   []measuredHex        `json:"variables"`
		Authorities []measuredHex        `json:"authorities"`
		NoDMA       bool                 `json:"noDma"`
		Added       policy.Stamp         `json:"added"`
	}
	list := []value{}
	p := new(Page)
	for _, name := range slices.Sorted(maps.Keys(snap.State.Baselines)) {
		b := snap.State.Baselines[name]
		list = append(list, value{b.Name, b.Version, b.LogDigest, inHex(b.Variables), inHex(b.Authorities), b.NoDMA, b.Added})
		p.Blank().Line("%s (%s), added %s", b.Name, b.Version, when(b.Added))
		for _, m := range b.Variables {
			p.Field("  "+m.Name, "%x", m.SHA256[:min(8, len(m.SHA256))])
		}
		for _, m := range b.Authorities {
			p.Field("  authority", "%s %x", m.Name, m.SHA256[:min(8, len(m.SHA256))])
		}
		if b.NoDMA {
			p.Field("  firmware", "starts without DMA protection")
		}
	}
	if len(list) == 0 {
		p.Line("No baseline is registered: in TPM mode every host fails %s.", policy.HgsSecureBootSettings)
		p.Line("Register one: baseline add NAME < FILE.tcglog, or baseline add NAME --host HOST after it has tried to attest.")
	}
	return Output{Text: p, Value: struct {
		Baselines []value `json:"baselines"`
	}{list}}, nil
}

func ciPolicyAdd(ctx context.Context, s *Session, a Args, stdin []byte) (Output, error) {
	b := policy.CIPolicyAdd{Name: a.Get("name"), Version: policy.PolicyVersion(a.Or("policy-version", string(policy.Version2)))}
	signed := false
	if a.Has("host") {
		if err := ciFromHost(ctx, s, a, &b); err != nil {
			return Output{}, err
		}
	} else {
		if len(stdin) == 0 {
			return Output{}, usage("nothing came on standard input", "give the binary policy: ci-policy add NAME < SIPolicy.bin, or --host NAME")
		}
		parsed, err := evidence.ParseCIPolicy(stdin)
		if err != nil {
			return Output{}, failed(err.Error(), "convert it with ConvertFrom-CIPolicy")
		}
		signed = parsed.Signed
		b.Audit, b.PolicyID, b.Revision, b.Title = parsed.Audit, parsed.PolicyID, parsed.Version, clip(parsed.Name)
		for _, bank := range []evidence.Bank{evidence.SHA1, evidence.SHA256, evidence.SHA384, evidence.SHA512} {
			b.Digests = append(b.Digests, policy.HashValue{Alg: uint16(bank), Digest: parsed.Digest(bank)})
		}
	}
	out, err := change(ctx, s, a, policy.CmdCIPolicyAdd, b)
	if err != nil {
		return Output{}, err
	}
	for _, d := range b.Digests {
		if d.Alg == uint16(evidence.SHA256) {
			out.Text.Field("SHA-256", "%x", d.Digest)
		}
	}
	out.Text.Field("title", "%s", b.Title).Field("id", "%s", b.PolicyID).Field("version", "%s", b.Revision)
	if b.Audit {
		out.Text.Line("! It is in audit mode: what it forbids runs all the same and is only logged.")
	}
	if signed {
		out.Text.Line("The file was signed; its signature was taken off, because hosts measure the policy without it.")
	}
	s.modeNoteTPM(out.Text)
	return out, nil
}

// ciFromHost takes the policy that a host has measured. Where there are several, --title chooses.
func ciFromHost(ctx context.Context, s *Session, a Args, b *policy.CIPolicyAdd) error {
	c, err := captureHost(ctx, s, a.Get("host"))
	if err != nil {
		return err
	}
	var found []evidence.SIPolicy
	var titles []string
	for _, p := range c.facts.Policies {
		titles = append(titles, p.Name)
		if !a.Has("title") || strings.EqualFold(p.Name, a.Get("title")) {
			found = append(found, p)
		}
	}
	switch {
	case len(c.facts.Policies) == 0:
		return failed("that host ran without a code integrity policy", "install one, restart the host, and let it attest")
	case len(found) != 1:
		return failed("that host has measured several policies, or none of this title: "+Clean(strings.Join(titles, ", ")), "choose one with --title")
	}
	b.Title, b.Revision = clip(found[0].Name), found[0].Version
	b.Digests = []policy.HashValue{{Alg: uint16(found[0].Hash), Digest: found[0].Digest}}
	return nil
}

func ciPolicyList(_ context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	type value struct {
		Name     string               `json:"name"`
		Version  policy.PolicyVersion `json:"version"`
		Title    string               `json:"title,omitempty"`
		PolicyID string               `json:"policyId,omitempty"`
		Revision string               `json:"revision,omitempty"`
		Audit    bool                 `json:"audit"`
		Digests  map[string]string    `json:"digests"` // hex by hash
		Added    policy.Stamp         `json:"added"`
	}
	list := []value{}
	p := new(Page)
	for _, name := range slices.Sorted(maps.Keys(snap.State.CIPolicies)) {
		c := snap.State.CIPolicies[name]
		v := value{c.Name, c.Version, c.Title, c.PolicyID, c.Revision, c.Audit, map[string]string{}, c.Added}
		for _, d := range c.Digests {
			v.Digests[evidence.Bank(d.Alg).String()] = hex.EncodeToString(d.Digest)
		}
		list = append(list, v)
		mode := "enforced"
		if c.Audit {
			mode = "audit only"
		}
		p.Blank().Line("%s (%s), %s, added %s", c.Name, c.Version, mode, when(c.Added)).Field("  title", "%s", c.Title).Field("  id", "%s", c.PolicyID).
			Field("  version", "%s", c.Revision).Field("  SHA-256", "%s", v.Digests["sha256"])
	}
	if len(list) == 0 {
		p.Line("No code integrity policy is registered: in TPM mode every host fails %s.", policy.HgsCiPolicy)
		p.Line("Register one: ci-policy add NAME < SIPolicy.bin, or ci-policy add NAME --host HOST after it has tried to attest.")
	}
	return Output{Text: p, Value: struct {
		Policies []value `json:"policies"`
	}{list}}, nil
}

func dumpKeyAdd(ctx context.Context, s *Session, a Args, stdin []byte) (Output, error) {
	b := policy.DumpKeyAdd{Name: a.Get("name")}
	if a.Has("sha256") {
		var err error
		if b.SHA256, err = hex.DecodeString(strings.TrimSpace(a.Get("sha256"))); err != nil || len(b.SHA256) != sha256.Size {
			return Output{}, usage("--sha256 is not 64 hexadecimal digits", "give the SHA-256 of the dump key's public key")
		}
	} else {
		c, err := capture(ctx, s, a, stdin)
		if err != nil {
			return Output{}, err
		}
		if len(c.facts.DumpKey) == 0 {
			return Output{}, failed("that boot has measured no dump key", "give its hash: --sha256, or a log of a host that encrypts dumps")
		}
		b.SHA256 = c.facts.DumpKey
	}
	out, err := change(ctx, s, a, policy.CmdDumpKeyAdd, b)
	if err != nil {
		return Output{}, err
	}
	out.Text.Field("SHA-256", "%x", b.SHA256)
	s.modeNoteTPM(out.Text)
	return out, nil
}

func dumpKeyList(_ context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	type value struct {
		Name   string       `json:"name"`
		SHA256 string       `json:"sha256"`
		Added  policy.Stamp `json:"added"`
	}
	list := []value{}
	var rows [][]string
	for _, name := range slices.Sorted(maps.Keys(snap.State.DumpKeys)) {
		k := snap.State.DumpKeys[name]
		list = append(list, value{k.Name, hex.EncodeToString(k.SHA256), k.Added})
		rows = append(rows, []string{k.Name, hex.EncodeToString(k.SHA256)})
	}
	p := new(Page)
	if len(list) == 0 {
		p.Line("No dump key is registered: hosts that write encrypted dumps fail %s.", policy.HgsDumpEncryptionKey)
	} else {
		p.Table([]string{"NAME", "SHA-256 OF THE PUBLIC KEY"}, rows)
	}
	return Output{Text: p, Value: struct {
		Keys []value `json:"keys"`
	}{list}}, nil
}

// removal removes a named record after showing what that does to hosts.
func removal(kind policy.Kind) func(context.Context, *Session, Args, []byte) (Output, error) {
	return func(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
		return change(ctx, s, a, kind, policy.ByName{Name: a.Get("name")})
	}
}
