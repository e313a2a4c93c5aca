package verb

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
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
	good  *evidence.Facts // of the host's last boot that passed, if this is another one
}

// capture takes the last evidence of --host, the failed one if that is newer, or the log on standard input.
func capture(ctx context.Context, s *Session, a Args, stdin []byte) (captured, error) {
	if a.Has("host") {
		return captureHost(ctx, s, a.Get("host"))
	}
	if len(stdin) == 0 {
		return captured{}, usage("nothing came on standard input", "give the .tcglog of Get-HgsAttestationBaselinePolicy, or --host NAME")
	}
	stdin = fromBase64(stdin)
	facts, failure := evidence.ParseBaseline(stdin)
	if failure != nil {
		return captured{}, failed("this is no usable boot log: "+failure.Error(), "capture it on the host with Get-HgsAttestationBaselinePolicy -Path FILE")
	}
	sum := sha256.Sum256(stdin)
	return captured{facts: facts, log: hex.EncodeToString(sum[:])}, nil
}

// fromBase64 undoes what somebody did to a binary file in order to paste it; other input stays as it is.
func fromBase64(data []byte) []byte {
	if text := fromUTF16(data); len(text) > 0 && text[0] >= '+' {
		if b, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(string(text)), "")); err == nil {
			return b
		}
	}
	return data
}

func captureHost(ctx context.Context, s *Session, name string) (captured, error) {
	h, err := tpmHost(s, name)
	if err != nil {
		return captured{}, err
	}
	c := captured{host: h}
	var last policy.Stamp
	var on policy.Observation
	for _, kind := range []policy.ObservationKind{policy.ObservedGood, policy.ObservedFindings} {
		e, err := evidenceOf(ctx, s, kind, h.ID)
		if err != nil {
			return captured{}, err
		}
		if e.facts != nil && !newer(last, e.at.At) {
			c.facts, c.log, last, on = e.facts, e.at.Log, e.at.At, e.on
		}
		if kind == policy.ObservedGood {
			c.good = e.facts
		}
	}
	if c.facts == nil {
		return captured{}, failed("this node has seen no boot of that host", "wait until it attests here, or give its .tcglog as a file")
	}
	if on.Kind == policy.ObservedGood {
		c.good = nil
	}
	// What is registered is what the log itself proves now, not what was noted of it.
	if c.facts, err = reprove(ctx, s, on); err != nil {
		f := evidenceFinding(policy.State{}, on, err)
		return captured{}, failed("the last boot of "+h.Name+" can't be proved again: "+f.What, f.Remedy+"; or give its .tcglog as a file")
	}
	return c, nil
}

// measuredHex is a policy.Measured with its digest in hexadecimal.
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
	c.changes(out.Text)
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

// removal removes a named record after showing what that does to hosts.
func removal(kind policy.Kind) func(context.Context, *Session, Args, []byte) (Output, error) {
	return func(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
		return change(ctx, s, a, kind, policy.Removal{Name: a.Get("name"), Phrase: a.Get("phrase")})
	}
}
