// Package hsmpack makes and reads HSM packs: a vendor's PKCS#11 module, the libraries it loads, a helper process it may need and their
// configuration, in one archive with the hash, the origin and the licence of each file. An image holds exactly one.
//
// Promise: the same inputs give the same archive, byte for byte; nothing of the inputs is run; a private key or a PIN in any of them stops
// the making and is named by file and line (scan); what Read accepts has the files that its manifest names, with those hashes, and no
// others. What belongs to one site never goes in: it enters each node by `hsm site-data put`.
//
// Limits: x86-64. Files that the module opens by dlopen are invisible and must be named (Options.Extra). The search for secrets knows
// their usual forms; it is a net, not a proof. A library that comes with the module and has the name of another one in the image but other
// bytes is refused when the image is built.
package hsmpack

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"guardhouse/appliance/hsm/pack"
	"guardhouse/images/debian"
	"guardhouse/initramfs"
)

// ModuleDir is where a pack's module and helper lie in the image.
const ModuleDir = "/usr/lib/pkcs11"

// Options say what goes into a pack. Module is needed, and Licence unless everything comes from installed Debian packages.
type Options struct {
	Name    string // default: the module's file name without .so
	Version string // default: that of its Debian package, else the beginning of its hash
	Module  string
	// MakesToken: the module keeps its token on the node's disk, where it is made when missing (SoftHSM2).
	MakesToken bool
	Config     []File   // configuration files
	Extra      []string // libraries opened by dlopen; with their closure
	Daemon     []string // the helper's program, then its arguments
	Env        []string // NAME=VALUE
	Connect    []string // ADDRESS:PORT
	Site       []string // names of the site data that module and helper expect
	Licence    string   // file with the vendor's terms
	Root       string   // tree with the vendor's libraries, looked at before the workstation's
}

// File is a configuration file: From on the workstation, or Data, and its path in the image.
type File struct {
	From, At string
	Data     []byte
}

// ParseFile reads "SOURCE:/PATH/IN/IMAGE".
func ParseFile(s string) (File, error) {
	from, at, ok := strings.Cut(s, ":")
	if !ok || from == "" || !path.IsAbs(at) {
		return File{}, fmt.Errorf("configuration file %q: want SOURCE:/PATH/IN/IMAGE", s)
	}
	return File{From: from, At: at}, nil
}

// Pack is a pack in memory.
type Pack struct {
	pack.Manifest
	Licence []byte            // the vendor's terms; empty when every file is Debian's
	Terms   map[string][]byte // Debian package -> its copyright file
	Data    map[string][]byte // path in the image -> contents
}

// Errors of Make, wrapped with what they are about.
var (
	ErrSecret  = errors.New("a secret must not go into an image")
	ErrLicence = errors.New("the terms of a file are unknown")
)

// maker collects one pack.
type maker struct {
	Options
	list    initramfs.List
	origins map[string]string // path in the image -> file of the workstation
}

// Make collects a pack from files of this workstation.
func Make(ctx context.Context, o Options) (*Pack, error) {
	m := &maker{Options: o, origins: map[string]string{}}
	if err := m.collect(); err != nil {
		return nil, fmt.Errorf("HSM pack: %w", err)
	}
	p, err := m.describe(ctx)
	if err != nil {
		return nil, fmt.Errorf("HSM pack: %w", err)
	}
	return p, nil
}

func (m *maker) collect() error {
	if m.Module == "" {
		return errors.New("no module given")
	}
	for i, w := range slices.Concat(m.Env, m.Daemon[min(1, len(m.Daemon)):]) {
		if found := scanText([]byte(w)); len(found) > 0 {
			return fmt.Errorf("%w: word %d of environment and arguments: %s", ErrSecret, i+1, found[0].what)
		}
	}
	if err := m.add(path.Join(ModuleDir, filepath.Base(m.Module)), m.Module, 0o755); err != nil {
		return err
	}
	loaded := []string{m.Module}
	for _, x := range m.Extra {
		if err := m.add(path.Join("/lib/x86_64-linux-gnu", filepath.Base(x)), x, 0o755); err != nil {
			return err
		}
		loaded = append(loaded, x)
	}
	if len(m.Daemon) > 0 {
		if err := m.add(path.Join(ModuleDir, filepath.Base(m.Daemon[0])), m.Daemon[0], 0o755); err != nil {
			return err
		}
		loaded = append(loaded, m.Daemon[0])
	}
	roots := []string{"/"}
	if m.Root != "" {
		roots = []string{m.Root, "/"}
	}
	libs, err := initramfs.Closure(roots, loaded...)
	if err != nil {
		return err
	}
	for _, l := range libs {
		if err := m.add(l.Path, l.From, 0o755); err != nil {
			return err
		}
	}
	for _, c := range m.Config {
		if err := m.addConfig(c); err != nil {
			return err
		}
	}
	return nil
}

func (m *maker) add(at, from string, perm uint32) error {
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s: not a plain file", from)
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if found := scan(data); len(found) > 0 {
		return fmt.Errorf("%w: %s, line %d: %s; take it out and put it on each node with `hsm site-data put`, or for a PIN with the node's secrets",
			ErrSecret, from, found[0].line, found[0].what)
	}
	m.origins[at] = from
	return m.list.Add(initramfs.Entry{Path: at, Kind: initramfs.File, Perm: perm, Data: data, Origin: "file " + from})
}

func (m *maker) addConfig(c File) error {
	if c.From != "" {
		return m.add(c.At, c.From, 0o644)
	}
	return m.list.Add(initramfs.Entry{Path: c.At, Kind: initramfs.File, Perm: 0o644, Data: c.Data, Origin: "made"})
}

// describe makes the manifest and finds the terms of each file.
func (m *maker) describe(ctx context.Context) (*Pack, error) {
	p := &Pack{Terms: map[string][]byte{}, Data: map[string][]byte{}}
	p.Manifest = pack.Manifest{Format: pack.Format, Name: m.Name, Version: m.Version, Module: path.Join(ModuleDir, filepath.Base(m.Module)),
		MakesToken: m.MakesToken, Env: m.Env, Connect: m.Connect, Site: m.Site}
	if len(m.Daemon) > 0 {
		p.Daemon = append([]string{path.Join(ModuleDir, filepath.Base(m.Daemon[0]))}, m.Daemon[1:]...)
	}
	var debians []string
	for _, e := range m.list.Entries() {
		if e.Kind != initramfs.File {
			continue
		}
		sum := sha256.Sum256(e.Data)
		f := pack.File{Path: e.Path, Mode: e.Perm, Size: int64(len(e.Data)), SHA256: hex.EncodeToString(sum[:])}
		if from := m.origins[e.Path]; from != "" && !m.ours(from) {
			f.From = from
			debians = append(debians, from)
		}
		p.Files, p.Data[e.Path] = append(p.Files, f), e.Data
	}
	if err := m.terms(ctx, p, debians); err != nil {
		return nil, err
	}
	if p.Name == "" {
		p.Name = strings.ToLower(strings.TrimSuffix(filepath.Base(m.Module), ".so"))
	}
	if p.Version == "" {
		if err := m.defaultVersion(ctx, p); err != nil {
			return nil, err
		}
	}
	return p, p.Validate()
}

// ours is true for a file that the vendor's terms cover: what was named, and what lies beside the module or in the vendor's tree.
func (m *maker) ours(from string) bool {
	if m.Licence == "" {
		return false
	}
	named := slices.Concat([]string{m.Module}, m.Extra, m.Daemon[:min(1, len(m.Daemon))])
	for _, c := range m.Config {
		named = append(named, c.From)
	}
	return slices.Contains(named, from) || filepath.Dir(from) == filepath.Dir(m.Module) || m.Root != "" && strings.HasPrefix(from, filepath.Clean(m.Root)+"/")
}

func (m *maker) terms(ctx context.Context, p *Pack, files []string) error {
	slices.Sort(files)
	list, err := debian.Owners(ctx, slices.Compact(files))
	if err != nil {
		return fmt.Errorf("%w: %w; give the vendor's with --licence FILE", ErrLicence, err)
	}
	for _, d := range list {
		p.Packages = append(p.Packages, pack.Package{Name: d.Name, Version: d.Version, Source: d.Source, SourceVersion: d.SourceVersion})
		p.Terms[d.Name] = d.Copyright
	}
	if m.Licence == "" {
		return nil
	}
	if p.Licence, err = os.ReadFile(m.Licence); err != nil {
		return err
	}
	if strings.TrimSpace(string(p.Licence)) == "" {
		return fmt.Errorf("%w: %s is empty", ErrLicence, m.Licence)
	}
	return nil
}

// defaultVersion is the version of the Debian package that the module comes from; a vendor's module is named by its hash.
func (m *maker) defaultVersion(ctx context.Context, p *Pack) error {
	i := slices.IndexFunc(p.Files, func(f pack.File) bool { return f.Path == p.Module })
	p.Version = "sha256-" + p.Files[i].SHA256[:12]
	if p.Files[i].From == "" {
		return nil
	}
	list, err := debian.Owners(ctx, []string{m.Module})
	if err == nil && len(list) == 1 {
		p.Version = list[0].Version
	}
	return err
}
