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
	source string
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
	r := resolver{tree: t, done: map[string]bool{}, provided: map[string]bool{}}
	for _, w := range wanted {
		if err := r.add(moduleName(w.Name), w.Params, w.Reason, 0); err != nil {
			return nil, err
		}
	}
	return r.out, nil
}

type resolver struct {
	tree     *ModuleTree
	done     map[string]bool
	provided map[string]bool // names and aliases loaded so far
	out      []Module
}

func (r *resolver) add(name, params, why string, depth int) error {
	if r.done[name] || r.tree.builtin[name] {
		return nil
	}
	rel, ok := r.tree.file[name]
	if !ok {
		return fmt.Errorf("%w %s (%s): kernel %s has no such module", ErrModule, name, why, r.tree.Version)
	}
	if depth > 32 {
		return fmt.Errorf("%w %s: dependencies go round in a circle", ErrModule, name)
	}
	m := Module{Name: name, Path: path.Join("/lib/modules", r.tree.Version, rel), Params: params, Wanted: why, source: filepath.Join(r.tree.root, rel)}
	var err error
	if m.data, err = os.ReadFile(m.source); err != nil {
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
		}
	}
	if err := r.checkSoft(name, info["softdep"]); err != nil {
		return err
	}
	r.done[name], r.provided[name] = true, true
	for _, a := range info["alias"] {
		r.provided[moduleName(a)] = true
		// crypto_alloc("x") asks for "crypto-x"; some softdeps say plain "x".
		r.provided[strings.TrimPrefix(moduleName(a), "crypto_")] = true
	}
	r.out = append(r.out, m)
	return nil
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

// ModulesList is the path of the load list in the image: one module a line
// in load order, the path, then (after a blank) its parameters if any.
const ModulesList = "/etc/modules.list"

// AddModules adds the objects and ModulesList.
func (l *List) AddModules(list []Module) error {
	var text strings.Builder
	for _, m := range list {
		if err := l.Add(Entry{Path: m.Path, Kind: File, Perm: 0o644, Data: m.data, Origin: "kernel"}); err != nil {
			return err
		}
		text.WriteString(m.Path)
		if m.Params != "" {
			text.WriteString(" " + m.Params)
		}
		text.WriteByte('\n')
	}
	return l.Add(Entry{Path: ModulesList, Kind: File, Perm: 0o644, Data: []byte(text.String()), Origin: "made"})
}

// Names returns the sorted names of modules.
func Names(list []Module) []string {
	var out []string
	for _, m := range list {
		out = append(out, m.Name)
	}
	slices.Sort(out)
	return out
}
