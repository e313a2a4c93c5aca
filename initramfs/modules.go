package initramfs

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"guardhouse/board/kernel"
)

// ModuleTree is an unpacked /lib/modules/VERSION folder.
type ModuleTree struct {
	Version string            // the folder's name, uname -r
	root    string            // the folder on the workstation
	file    map[string]string // module name -> path below root
	builtin map[string]bool   // module names compiled into the kernel
}

// Module is one kernel object in load order.
type Module struct {
	Name   string // as in /proc/modules
	Path   string // in the image
	Params string // parameters for finit_module(2); may be empty
	Wanted string // the reason, or "needed by NAME"
	// Match holds PCI alias patterns: load the module only when the machine
	// has a device that one of them fits. Empty means always.
	Match []string

	always bool
	needs  []string
	data   []byte
}

// ErrModule reports a module that does not exist or lacks a dependency.
var ErrModule = errors.New("kernel module")

// OpenModules reads the index of the one kernel below libModules.
func OpenModules(libModules string) (*ModuleTree, error) {
	list, err := os.ReadDir(libModules)
	if err != nil || len(list) != 1 {
		return nil, fmt.Errorf("%w tree %s: want exactly one kernel version, found %d (%v)", ErrModule, libModules, len(list), err)
	}
	t := &ModuleTree{Version: list[0].Name(), root: filepath.Join(libModules, list[0].Name()), file: map[string]string{}, builtin: map[string]bool{}}
	err = filepath.WalkDir(t.root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || path.Ext(p) != ".ko" {
			return err
		}
		rel, err := filepath.Rel(t.root, p)
		t.file[moduleName(p)] = rel
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%w tree: %w", ErrModule, err)
	}
	text, err := os.ReadFile(filepath.Join(t.root, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("%w tree: %w", ErrModule, err)
	}
	for _, line := range strings.Fields(string(text)) {
		t.builtin[moduleName(line)] = true
	}
	return t, nil
}

// moduleName is the kernel's spelling: no folder, no suffix, no dash.
func moduleName(p string) string {
	return strings.ReplaceAll(strings.TrimSuffix(path.Base(p), ".ko"), "-", "_")
}

// Resolve returns the wanted modules and everything they need in an order in
// which each can be loaded. Modules compiled into the kernel are left out.
// A soft dependency ("softdep: pre:") is not followed, because the kernel
// asks for it by an alias that a machine without modprobe cannot answer: it
// must be in the table, before its user, or be built in; else it is an error.
func (t *ModuleTree) Resolve(wanted []kernel.Module) ([]Module, error) {
	r := resolver{tree: t, index: map[string]int{}, provided: map[string]bool{}, pci: map[string][]string{}}
	for _, w := range wanted {
		for _, n := range w.Needs {
			if err := r.add(moduleName(n), "", "needed by "+w.Name, 0); err != nil {
				return nil, err
			}
		}
		name := moduleName(w.Name)
		if err := r.add(name, w.Params, w.Reason, 0); err != nil {
			return nil, err
		}
	}
	for _, w := range wanted {
		match := r.pci[moduleName(w.Name)]
		if !w.Probe {
			match = nil
		} else if len(match) == 0 {
			continue // it waits for what needs it
		}
		for _, n := range append([]string{w.Name}, w.Needs...) {
			r.gate(moduleName(n), match)
		}
	}
	for _, w := range wanted {
		if i, ok := r.index[moduleName(w.Name)]; ok && w.Probe && !r.out[i].always && len(r.out[i].Match) == 0 {
			return nil, fmt.Errorf("%w %s: neither it nor what needs it drives a PCI device, so it cannot wait for one", ErrModule, w.Name)
		}
	}
	for i := range r.out {
		slices.Sort(r.out[i].Match)
		r.out[i].Match = slices.Compact(r.out[i].Match)
	}
	return r.out, nil
}

type resolver struct {
	tree     *ModuleTree
	index    map[string]int      // module name -> place in out
	provided map[string]bool     // names and aliases loaded so far
	pci      map[string][]string // module name -> its PCI aliases
	out      []Module
}

// gate tells a module and what it needs when to load: match nil means always,
// which nothing takes back.
func (r *resolver) gate(name string, match []string) {
	i, ok := r.index[name]
	if !ok || r.out[i].always {
		return
	}
	m := &r.out[i]
	if match == nil {
		m.always, m.Match = true, nil
	} else {
		m.Match = append(m.Match, match...)
	}
	for _, dep := range m.needs {
		r.gate(dep, match)
	}
}

func (r *resolver) add(name, params, why string, depth int) error {
	if _, done := r.index[name]; done || r.tree.builtin[name] {
		return nil
	}
	rel, ok := r.tree.file[name]
	if !ok {
		return fmt.Errorf("%w %s (%s): kernel %s has no such module", ErrModule, name, why, r.tree.Version)
	}
	if depth > 32 {
		return fmt.Errorf("%w %s: dependencies go round in a circle", ErrModule, name)
	}
	m := Module{Name: name, Path: path.Join("/lib/modules", r.tree.Version, rel), Params: params, Wanted: why}
	var err error
	if m.data, err = os.ReadFile(filepath.Join(r.tree.root, rel)); err != nil {
		return fmt.Errorf("%w: %w", ErrModule, err)
	}
	info, err := modinfo(m.data)
	if err != nil {
		return fmt.Errorf("%w %s: %w", ErrModule, name, err)
	}
	for _, line := range info["depends"] {
		for _, dep := range strings.FieldsFunc(line, func(c rune) bool { return c == ',' }) {
			if err := r.add(moduleName(dep), "", "needed by "+name, depth+1); err != nil {
				return err
			}
			m.needs = append(m.needs, moduleName(dep))
		}
	}
	if err := r.checkSoft(name, info["softdep"]); err != nil {
		return err
	}
	r.note(name, info["alias"])
	r.index[name] = len(r.out)
	r.out = append(r.out, m)
	return nil
}

// note records what a module answers to.
func (r *resolver) note(name string, aliases []string) {
	r.provided[name] = true
	for _, a := range aliases {
		r.provided[moduleName(a)] = true
		// crypto_alloc("x") asks for "crypto-x"; some softdeps say plain "x".
		r.provided[strings.TrimPrefix(moduleName(a), "crypto_")] = true
		if strings.HasPrefix(a, "pci:") {
			r.pci[name] = append(r.pci[name], a)
		}
	}
}

func (r *resolver) checkSoft(name string, lines []string) error {
	for _, line := range lines {
		pre := false
		for _, word := range strings.Fields(line) {
			if strings.HasSuffix(word, ":") {
				pre = word == "pre:"
				continue
			}
			n := moduleName(word)
			if pre && !r.provided[n] && !r.tree.builtin[n] {
				return fmt.Errorf("%w %s wants %q loaded before it: name a module that provides it earlier in the board's table", ErrModule, name, word)
			}
		}
	}
	return nil
}

// modinfo reads the NUL-separated key=value strings of a .modinfo section.
func modinfo(object []byte) (map[string][]string, error) {
	f, err := elf.NewFile(bytes.NewReader(object))
	if err != nil {
		return nil, fmt.Errorf("not an object file: %w", err)
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errors.New("no .modinfo section")
	}
	raw, err := s.Data()
	if err != nil {
		return nil, fmt.Errorf(".modinfo: %w", err)
	}
	out := map[string][]string{}
	for _, kv := range strings.Split(string(raw), "\x00") {
		if k, v, ok := strings.Cut(kv, "="); ok && (k == "depends" || k == "softdep" || k == "alias") && v != "" {
			out[k] = append(out[k], v)
		}
	}
	return out, nil
}

// AddModules adds the objects and the two lists that board/kernel reads:
// kernel.ListFile and kernel.MatchFile.
func (l *List) AddModules(list []Module) error {
	var text, match strings.Builder
	for _, m := range list {
		if err := l.Add(Entry{Path: m.Path, Kind: File, Perm: 0o644, Data: m.data, Origin: "kernel"}); err != nil {
			return err
		}
		text.WriteString(m.Path)
		if m.Params != "" {
			text.WriteString(" " + m.Params)
		}
		text.WriteByte('\n')
		for _, p := range m.Match {
			match.WriteString(m.Path + " " + p + "\n")
		}
	}
	if err := l.Add(Entry{Path: kernel.ListFile, Kind: File, Perm: 0o644, Data: []byte(text.String()), Origin: "made"}); err != nil {
		return err
	}
	return l.Add(Entry{Path: kernel.MatchFile, Kind: File, Perm: 0o644, Data: []byte(match.String()), Origin: "made"})
}
