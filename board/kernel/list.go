package kernel

import (
	"fmt"
	"path"
	"strings"
)

// Paths in the image of the two lists the build writes and PID 1 reads.
const (
	// ListFile has one module a line in load order: its path, then (after a
	// blank) its parameters, if any. Loading every line is always correct.
	ListFile = "/etc/modules.list"
	// MatchFile has lines "PATH PATTERN": the module is needed only when the
	// machine has a device whose modalias fits one of its patterns. A module
	// without a line here is always needed.
	MatchFile = "/etc/modules.match"
	// AliasGlob finds the modalias files of the machine's devices.
	AliasGlob = "/sys/bus/pci/devices/*/modalias"
)

// Load is one module to load: the file, and the parameters for
// finit_module(2).
type Load struct{ Path, Params string }

// Select returns the lines of a ListFile that a machine with these modaliases
// needs, in load order. list and match are the contents of the two files;
// match may be empty. A malformed pattern or line is an error: the image was
// built wrong.
func Select(list, match string, modaliases []string) ([]Load, error) {
	patterns := map[string][]string{}
	for line := range strings.Lines(match) {
		p, pattern, ok := strings.Cut(strings.TrimRight(line, "\n"), " ")
		if _, err := path.Match(pattern, ""); !ok || err != nil {
			return nil, fmt.Errorf("%s: bad line %q", MatchFile, line)
		}
		patterns[p] = append(patterns[p], pattern)
	}
	var out []Load
	for line := range strings.Lines(list) {
		p, params, _ := strings.Cut(strings.TrimRight(line, "\n"), " ")
		if !path.IsAbs(p) {
			return nil, fmt.Errorf("%s: bad line %q", ListFile, line)
		}
		if want := patterns[p]; len(want) == 0 || anyMatch(want, modaliases) {
			out = append(out, Load{Path: p, Params: params})
		}
	}
	return out, nil
}

// anyMatch compares as the kernel does: shell patterns without folders, which
// a modalias never has. Most of the several hundred patterns name another
// device in their fixed beginning, so that is looked at first: it makes the
// whole search ten times faster, and this is on the way of every boot.
func anyMatch(patterns, aliases []string) bool {
	for _, p := range patterns {
		fixed := p
		if i := strings.IndexAny(p, "*?[\\"); i >= 0 {
			fixed = p[:i]
		}
		for _, a := range aliases {
			if !strings.HasPrefix(a, fixed) {
				continue
			}
			if ok, err := path.Match(p, strings.TrimSpace(a)); err == nil && ok {
				return true
			}
		}
	}
	return false
}
