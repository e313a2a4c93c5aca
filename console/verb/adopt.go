package verb

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"guardhouse/appliance/appraise"
	"guardhouse/appliance/evidence"
)

// bootChanges says what a boot proved otherwise than an earlier one of the same host, in the words of what was measured: what somebody
// accepts who registers something of it.
func bootChanges(old, now *evidence.Facts) (diff []string) {
	oldVariables, oldAuthorities, oldNoDMA := appraise.Baseline(old)
	variables, authorities, noDMA := appraise.Baseline(now)
	diff = append(differences(oldVariables, variables, "variable"), differences(oldAuthorities, authorities, "authority")...)
	if noDMA != oldNoDMA {
		diff = append(diff, map[bool]string{true: "+ firmware starts without DMA protection", false: "- firmware starts without DMA protection"}[noDMA])
	}
	same := func(a, b evidence.SIPolicy) bool { return a.Hash == b.Hash && bytes.Equal(a.Digest, b.Digest) }
	missing := func(sign string, from, in []evidence.SIPolicy) {
		for _, p := range from {
			if !slices.ContainsFunc(in, func(o evidence.SIPolicy) bool { return same(o, p) }) {
				diff = append(diff, fmt.Sprintf("%s code integrity policy %q %s, %s %x", sign, p.Name, p.Version, p.Hash, p.Digest[:min(8, len(p.Digest))]))
			}
		}
	}
	missing("+", now.Policies, old.Policies)
	missing("-", old.Policies, now.Policies)
	if !bytes.Equal(old.DumpKey, now.DumpKey) {
		diff = append(diff, fmt.Sprintf("dump key: %s, now %s", keyOrNone(old.DumpKey), keyOrNone(now.DumpKey)))
	}
	for _, id := range evidence.SettingIDs() {
		if was, is := measured(old, id), measured(now, id); was != is {
			diff = append(diff, fmt.Sprintf("%s: %s, now %s", id, was, is))
		}
	}
	return diff
}

func keyOrNone(digest []byte) string {
	if len(digest) == 0 {
		return "none"
	}
	return fmt.Sprintf("%x", digest[:min(8, len(digest))])
}

func measured(f *evidence.Facts, id evidence.SettingID) string {
	s := f.Settings.Get(id)
	if !s.Measured() {
		return "not measured"
	}
	return strings.Trim(fmt.Sprint(s.Values()), "[]")
}

// changes tells what is different in a host's captured boot from its last boot that passed.
func (c *captured) changes(p *Page) {
	if c.good == nil {
		return
	}
	diff := bootChanges(c.good, c.facts)
	if len(diff) == 0 {
		p.Field("changed", "nothing since the last boot of %s that passed", c.host.Name)
		return
	}
	p.Field("changed", "since the last boot of %s that passed:", c.host.Name)
	for _, d := range diff {
		p.Line("  %s", d)
	}
}
