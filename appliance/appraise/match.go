package appraise

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
)

// Baseline is what a boot log says about firmware and Secure Boot, in the form in which it is registered. SecureBoot itself is left out: it
// has its own policy.
func Baseline(f *evidence.Facts) (variables, authorities []policy.Measured, noDMA bool) {
	for i := range f.Variables {
		if v := &f.Variables[i]; v.Name != "SecureBoot" {
			variables = append(variables, policy.Measured{Name: v.Name, GUID: v.GUID, SHA256: bytes.Clone(v.SHA256)})
		}
	}
	for i := range f.Authorities {
		a := &f.Authorities[i]
		authorities = append(authorities, policy.Measured{Name: a.Variable, GUID: a.GUID, SHA256: bytes.Clone(a.SHA256)})
	}
	return variables, authorities, f.Settings.Get(evidence.DMAProtectionOff).Measured()
}

func (j *judge) baselines(b *policy.Builtin) {
	if j.foreign(b) {
		return
	}
	var best *policy.Baseline
	fewest, candidates, other := 0, 0, ""
	for _, name := range names(j.in.State.Baselines) {
		base := j.in.State.Baselines[name]
		n := j.distance(&base)
		if base.Version != j.v.Version {
			if n == 0 {
				other = name
			}
			continue
		}
		if n == 0 {
			j.v.Matched.Baseline = name
			return
		}
		if candidates++; best == nil || n < fewest {
			best, fewest = &base, n
		}
	}
	f := of(b, BaselineOther, "", "if this change is meant, look at the difference and register it; else undo it in the firmware's setup")
	f.PCR, f.Accept = 7, fmt.Sprintf("baseline add NAME --host %s --policy-version %s", j.in.Host.Name, j.v.Version)
	switch {
	case other != "":
		f.Kind = VersionsMixed
		f.What = fmt.Sprintf("baseline %s matches, but is of another policy version than this host, which is %s", other, j.v.Version)
		f.Remedy = "register baseline, code integrity policy and host with one policy version"
	case candidates == 0:
		f.Kind = NoBaseline
		f.What = fmt.Sprintf("no baseline of policy version %s is registered, and without one every host fails", j.v.Version)
		f.Remedy = "capture one on a host that you trust (Get-HgsAttestationBaselinePolicy) and register it"
	default:
		f.What = fmt.Sprintf("Secure Boot is set up otherwise than in every baseline of version %s (%d); %s is nearest", j.v.Version, candidates, best.Name)
		var diff []string
		f.Event, diff, f.Expected = j.compare(best)
		f.Measured = strings.Join(diff, "; ")
	}
	f.Changed = j.changedBoot()
	j.add(f)
}

// foreign refuses a boot in which another loader than Windows' took part: it can measure what it likes before Windows does.
func (j *judge) foreign(b *policy.Builtin) bool {
	if len(j.in.Facts.Foreign) == 0 {
		return false
	}
	f := of(b, ForeignLoader, "another boot loader than Windows' ran first", "boot Windows directly: remove other boot loaders from the boot order, and restart")
	f.PCR = j.in.Facts.Foreign[0]
	f.Measured = fmt.Sprintf("events in the PCRs %v", j.in.Facts.Foreign)
	f.Expected = []string{"no event in PCR 8 to 10 and 15 but firmware's own"}
	f.Changed = j.changedBoot()
	j.add(f)
	return true
}

// distance counts what differs between the host and a baseline, without allocating: most baselines are tried and left.
func (j *judge) distance(base *policy.Baseline) (n int) {
	variables := 0
	for i := range j.in.Facts.Variables {
		v := &j.in.Facts.Variables[i]
		if v.Name == "SecureBoot" {
			continue
		}
		variables++
		if m := find(base.Variables, v.Name, v.GUID); m == nil || !bytes.Equal(m.SHA256, v.SHA256) {
			n++
		}
	}
	n += max(0, len(base.Variables)-variables)
	have := j.in.Facts.Authorities
	for i := range max(len(have), len(base.Authorities)) {
		if i >= len(have) || i >= len(base.Authorities) || !sameAuthority(&have[i], &base.Authorities[i]) {
			n++
		}
	}
	if j.in.Facts.Settings.Get(evidence.DMAProtectionOff).Measured() && !base.NoDMA {
		n++
	}
	return n
}

func sameAuthority(a *evidence.Authority, m *policy.Measured) bool {
	return a.Variable == m.Name && a.GUID == m.GUID && bytes.Equal(a.SHA256, m.SHA256)
}

func find(list []policy.Measured, name, guid string) *policy.Measured {
	for i := range list {
		if list[i].Name == name && list[i].GUID == guid {
			return &list[i]
		}
	}
	return nil
}

// short is the beginning of a digest, enough for people to compare.
func short(digest []byte) string { return hex.EncodeToString(digest[:min(8, len(digest))]) }

// compare says what differs from a baseline: the first event that does, each difference in words, and what was expected.
func (j *judge) compare(base *policy.Baseline) (event int, diff, expected []string) {
	event = -1
	note := func(at int, measured, want string) {
		if event < 0 {
			event = at
		}
		diff = append(diff, measured)
		if want = base.Name + ": " + want; !slices.Contains(expected, want) {
			expected = append(expected, want)
		}
	}
	facts := j.in.Facts
	seen := map[string]bool{}
	for i := range facts.Variables {
		v := &facts.Variables[i]
		seen[v.Name+v.GUID] = true
		if v.Name == "SecureBoot" {
			continue
		}
		m := find(base.Variables, v.Name, v.GUID)
		if m == nil {
			note(v.Event, fmt.Sprintf("variable %s (%d bytes, %s) is new", v.Name, v.Size, short(v.SHA256)), "no variable "+v.Name)
		} else if !bytes.Equal(m.SHA256, v.SHA256) {
			note(v.Event, fmt.Sprintf("variable %s is %s (%d bytes), not %s", v.Name, short(v.SHA256), v.Size, short(m.SHA256)), "variable "+v.Name+" "+short(m.SHA256))
		}
	}
	for i := range base.Variables {
		if m := &base.Variables[i]; !seen[m.Name+m.GUID] {
			note(-1, "variable "+m.Name+" "+short(m.SHA256)+" is gone", "variable "+m.Name+" "+short(m.SHA256))
		}
	}
	j.compareAuthorities(base, note)
	if s := facts.Settings.Get(evidence.DMAProtectionOff); s.Measured() && !base.NoDMA {
		note(s.Event, "firmware started without DMA protection", "DMA protection")
	}
	return event, diff, expected
}

func (j *judge) compareAuthorities(base *policy.Baseline, note func(int, string, string)) {
	have := j.in.Facts.Authorities
	in := func(m *policy.Measured) bool {
		return slices.ContainsFunc(have, func(a evidence.Authority) bool { return sameAuthority(&a, m) })
	}
	differs := false
	for i := range have {
		a := &have[i]
		if !slices.ContainsFunc(base.Authorities, func(m policy.Measured) bool { return sameAuthority(a, &m) }) {
			note(a.Event, fmt.Sprintf("boot image allowed by %s %s", a.Variable, short(a.SHA256)), "authorities "+authorities(base))
			differs = true
		}
	}
	for i := range base.Authorities {
		if m := &base.Authorities[i]; !in(m) {
			note(-1, fmt.Sprintf("no boot image was allowed by %s %s", m.Name, short(m.SHA256)), "authorities "+authorities(base))
			differs = true
		}
	}
	if !differs && len(have) > 0 && !slices.EqualFunc(have, base.Authorities, func(a evidence.Authority, m policy.Measured) bool { return sameAuthority(&a, &m) }) {
		note(have[0].Event, "the authorities are used in another order or number", "authorities "+authorities(base))
	}
}

func authorities(base *policy.Baseline) string {
	text := make([]string, len(base.Authorities))
	for i, m := range base.Authorities {
		text[i] = m.Name + " " + short(m.SHA256)
	}
	return strings.Join(text, ", ")
}

// changedBoot is the difference from the last good boot's firmware settings.
func (j *judge) changedBoot() string {
	if j.in.LastGood == nil {
		return ""
	}
	was := policy.Baseline{Name: "last"}
	was.Variables, was.Authorities, was.NoDMA = Baseline(j.in.LastGood)
	_, diff, _ := j.compare(&was)
	if len(diff) == 0 {
		return "nothing: the last boot that passed was set up the same"
	}
	return "since the last boot that passed: " + strings.Join(diff, "; ")
}

func (j *judge) ciPolicies(b *policy.Builtin) {
	other, candidates := "", 0
	var expected []string
	for _, name := range names(j.in.State.CIPolicies) {
		p := j.in.State.CIPolicies[name]
		matches := slices.ContainsFunc(j.in.Facts.Policies, func(s evidence.SIPolicy) bool { return p.Matches(uint16(s.Hash), s.Digest) })
		if p.Version != j.v.Version {
			if matches {
				other = name
			}
			continue
		}
		if matches {
			j.v.Matched.CIPolicy = name
			return
		}
		if candidates++; candidates <= 8 {
			expected = append(expected, name+" "+short(sha256Of(&p)))
		}
	}
	f := of(b, CIPolicyOther, "none of the registered code integrity policies is in use",
		"install a registered policy on the host, or register the one that it has (the unsigned .bin: a signature is not measured)")
	f.Expected, f.Accept = expected, fmt.Sprintf("ci-policy add NAME --host %s --policy-version %s", j.in.Host.Name, j.v.Version)
	for _, s := range j.in.Facts.Policies {
		if f.PCR < 0 {
			f.PCR, f.Event = s.PCR, s.Event
		} else {
			f.Measured += "; "
		}
		f.Measured += fmt.Sprintf("%q %s, %s %x", s.Name, s.Version, s.Hash, []byte(s.Digest))
	}
	switch {
	case other != "":
		f.Kind = VersionsMixed
		f.What = fmt.Sprintf("code integrity policy %s is in use, but is of another policy version than this host, which is %s", other, j.v.Version)
		f.Remedy = "register baseline, code integrity policy and host with one policy version"
	case candidates == 0:
		f.Kind = NoCIPolicy
		f.What = fmt.Sprintf("no code integrity policy of version %s is registered, and without one every host fails", j.v.Version)
	case len(j.in.Facts.Policies) == 0:
		f.What = "no code integrity policy is in use"
		f.Measured = "no policy measured"
		f.Remedy, f.Accept = "install a registered policy on the host, and restart", ""
	}
	f.Changed = j.changedPolicies()
	j.add(f)
}

func sha256Of(p *policy.CIPolicy) []byte {
	for _, d := range p.Digests {
		if d.Alg == uint16(evidence.SHA256) {
			return d.Digest
		}
	}
	return nil
}

func (j *judge) changedPolicies() string {
	if j.in.LastGood == nil {
		return ""
	}
	same := func(a, b evidence.SIPolicy) bool { return a.Hash == b.Hash && bytes.Equal(a.Digest, b.Digest) }
	var diff []string
	for _, s := range j.in.Facts.Policies {
		if !slices.ContainsFunc(j.in.LastGood.Policies, func(o evidence.SIPolicy) bool { return same(s, o) }) {
			diff = append(diff, fmt.Sprintf("%q %s is new", s.Name, short(s.Digest)))
		}
	}
	for _, s := range j.in.LastGood.Policies {
		if !slices.ContainsFunc(j.in.Facts.Policies, func(o evidence.SIPolicy) bool { return same(s, o) }) {
			diff = append(diff, fmt.Sprintf("%q %s is gone", s.Name, short(s.Digest)))
		}
	}
	if len(diff) == 0 {
		return "nothing: the last boot that passed had the same policies"
	}
	return "since the last boot that passed: " + strings.Join(diff, "; ")
}

// names are the keys in order, so that verdicts never depend on a map's.
func names[V any](m map[string]V) []string {
	list := make([]string, 0, len(m))
	for name := range m {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

// Dumps (E19). DumpsDisabled passes both policies below; where dumps are written they must be encrypted, and to a registered key. The key
// is asked for only while Hgs_DumpEncryption is on, and only of dumps that are encrypted.

func (j *judge) dumpsOff() bool { return j.in.Facts.Settings.Get(evidence.DumpsDisabled).Only(1) }

func (j *judge) dumpEncryption(b *policy.Builtin) {
	s := j.in.Facts.Settings.Get(evidence.DumpEncryption)
	if j.dumpsOff() || s.Only(1) {
		return
	}
	f := of(b, DumpsPlain, "crash dumps are written without encryption", cryptDumps)
	if !s.Measured() {
		f.Kind, f.What, f.Remedy = DumpEventsMissing, "this host does not measure how it writes dumps", updateDumps
	}
	j.setting(&f, evidence.DumpEncryption)
	f.Expected = []string{"dumpsDisabled = 1, or dumpEncryption = 1"}
	f.Accept = j.disable(b)
	j.add(f)
}

func (j *judge) dumpKey(b *policy.Builtin) {
	s := j.in.Facts.Settings.Get(evidence.DumpEncryption)
	if !j.on(policy.HgsDumpEncryption) || j.dumpsOff() || !s.Only(1) {
		return
	}
	key := j.in.Facts.DumpKey
	var expected []string
	for _, name := range names(j.in.State.DumpKeys) {
		k := j.in.State.DumpKeys[name]
		if len(key) > 0 && bytes.Equal(k.SHA256, key) {
			j.v.Matched.DumpKey = name
			return
		}
		expected = append(expected, fmt.Sprintf("%s %x", name, k.SHA256))
	}
	f := of(b, DumpKeyOther, "crash dumps are encrypted to a key that is not registered", "encrypt dumps to a registered key, or register this one if its private half is in good hands")
	f.Expected = expected
	f.PCR, f.Event = s.PCR, s.Event
	f.Measured = fmt.Sprintf("key %x (event 0x00050027)", []byte(key))
	f.Accept = fmt.Sprintf("dump-key add NAME --sha256 %x", []byte(key))
	if len(key) == 0 {
		f.Measured, f.Accept = "no key measured", ""
		f.What, f.Remedy = "crash dumps are said to be encrypted, but no key was measured", cryptDumps
	} else if len(expected) == 0 {
		f.Kind, f.What = NoDumpKey, "crash dumps are encrypted, and no dump key is registered, so none can match"
	}
	if l := j.in.LastGood; l != nil && !bytes.Equal(l.DumpKey, key) {
		f.Changed = fmt.Sprintf("the last boot that passed had %x", []byte(l.DumpKey))
	}
	j.add(f)
}
