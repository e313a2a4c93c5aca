// Package pack describes the HSM pack inside an image: which PKCS#11 module is there, which helper process it needs, which addresses the
// two may reach, and which site data they expect. It also keeps that site data on the node's disk (Store).
//
// Promise: Parse accepts only a manifest whose every field was checked (Validate), so that init, hsm and mkimage judge it alike. Site data
// is stored under a declared name or not at all, bounded in size and number, whole or not at all, and is never part of an error.
//
// Limits: addresses are literal, because the fence of a node compares addresses and a name is whatever a resolver says. One module and at
// most one helper process in a pack.
package pack

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Places in the image and on the node.
const (
	ManifestPath = "/etc/hsm-pack.json" // the Manifest, in the image
	SiteDir      = "/data/hsm-site"     // site data, readable by hsm and the helper
	SocketDir    = "/run/hsm-daemon"    // the helper's own; hsm may connect to sockets in it
	Format       = 1                    // of Manifest
	maxManifest  = 1 << 20              // bytes
	maxFiles     = 512                  // of a pack
	maxList      = 32                   // of any other list
	maxWord      = 1024                 // bytes of one word of Daemon or Env
)

// Manifest is the description of a pack.
type Manifest struct {
	Format  int    `json:"format"`
	Name    string `json:"name"`
	Version string `json:"version"`
	Module  string `json:"module"` // path of the PKCS#11 module in the image
	// MakesToken is set for a software module that keeps its token on this node's disk: the node initialises a token that is missing.
	MakesToken bool      `json:"makesToken,omitempty"`
	Env        []string  `json:"env,omitempty"`      // NAME=VALUE for the module and the helper
	Daemon     []string  `json:"daemon,omitempty"`   // the helper: its path in the image, then its arguments; it stays in the foreground
	Connect    []string  `json:"connect,omitempty"`  // ADDRESS:PORT, TCP: all that module and helper may reach
	Site       []string  `json:"site,omitempty"`     // names of the site data they expect in SiteDir
	Files      []File    `json:"files"`              // sorted by path
	Packages   []Package `json:"packages,omitempty"` // Debian packages that files come from, sorted by name
}

// File is one file of a pack. SHA256 is lower-case hex.
type File struct {
	Path   string `json:"path"` // in the image
	Mode   uint32 `json:"mode"` // 0644 or 0755
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
	// From is the path in its Debian package; empty: the file came with the module and has its licence.
	From string `json:"from,omitempty"`
}

// Package is a Debian package that files of a pack come from.
type Package struct {
	Name          string `json:"name"`
	Version       string `json:"version"`
	Source        string `json:"source"`
	SourceVersion string `json:"source_version"`
}

// ErrManifest reports a manifest that may not be used; it is wrapped with the field.
var ErrManifest = errors.New("bad HSM pack manifest")

// Parse reads a manifest: strict JSON, at most 1 MiB, validated.
func Parse(text []byte) (Manifest, error) {
	if len(text) > maxManifest {
		return Manifest{}, fmt.Errorf("%w: %d bytes, %d are allowed", ErrManifest, len(text), maxManifest)
	}
	var m Manifest
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return Manifest{}, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	if d.More() {
		return Manifest{}, fmt.Errorf("%w: more than one value", ErrManifest)
	}
	return m, m.Validate()
}

// Read reads the manifest of this image. Outside an image there is none: that is the zero Manifest and no error.
func Read(file string) (Manifest, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return Manifest{}, nil
	}
	if err != nil {
		return Manifest{}, fmt.Errorf("HSM pack manifest: %w", err)
	}
	return Parse(text)
}

// Text is the manifest as Parse reads it; the same manifest gives the same bytes.
func (m Manifest) Text() ([]byte, error) {
	text, err := json.MarshalIndent(m, "", " ")
	return append(text, '\n'), err
}

var (
	nameForm    = regexp.MustCompile(`^[a-z0-9][a-z0-9.+-]{0,62}$`)
	versionForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.:+~-]{0,62}$`)
	siteForm    = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$`)
	envForm     = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,63}=`)
	hashForm    = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// noEnv are beginnings of variables that would change what a program is, not how a module is configured.
var noEnv = []string{"LD_", "GLIBC_", "GO", "PATH=", "NOTIFY_", "LISTEN_", "WATCHDOG_", "GCONV_", "LOCPATH"}

// Validate names the first field that may not be.
func (m Manifest) Validate() error {
	bad := func(field, format string, args ...any) error {
		return fmt.Errorf("%w: %s: %s", ErrManifest, field, fmt.Sprintf(format, args...))
	}
	switch {
	case m.Format != Format:
		return bad("format", "%d; this program reads %d", m.Format, Format)
	case !nameForm.MatchString(m.Name):
		return bad("name", "%.64q: want small letters, digits and . + -", m.Name)
	case !versionForm.MatchString(m.Version):
		return bad("version", "%.64q: want letters, digits and . : + ~ -", m.Version)
	case len(m.Files) == 0 || len(m.Files) > maxFiles:
		return bad("files", "%d, want 1 to %d", len(m.Files), maxFiles)
	case max(len(m.Env), len(m.Daemon), len(m.Connect), len(m.Site)) > maxList || len(m.Packages) > maxFiles:
		return bad("lists", "one has more than %d entries", maxList)
	}
	for i, f := range m.Files {
		if !clean(f.Path) || f.Mode != 0o644 && f.Mode != 0o755 || f.Size < 0 || !hashForm.MatchString(f.SHA256) {
			return bad("files", "%.128q: want a clean path where packs may put files, mode 0644 or 0755 and a SHA-256", f.Path)
		}
		if i > 0 && m.Files[i-1].Path >= f.Path {
			return bad("files", "%.128q is not in order, or is there twice", f.Path)
		}
	}
	if !m.holds(m.Module) {
		return bad("module", "%.128q is not among the files", m.Module)
	}
	if len(m.Daemon) > 0 && !m.holds(m.Daemon[0]) {
		return bad("daemon", "%.128q is not among the files", m.Daemon[0])
	}
	for _, w := range slices.Concat(m.Daemon, m.Env) {
		if len(w) > maxWord || strings.ContainsAny(w, "\x00\n") {
			return bad("daemon, env", "a word is too long or holds a line break")
		}
	}
	for _, e := range m.Env {
		if !envForm.MatchString(e) || slices.ContainsFunc(noEnv, func(p string) bool { return strings.HasPrefix(e, p) }) {
			return bad("env", "%.64q: want NAME=VALUE; variables of the loader and of the node itself are not for packs", e)
		}
	}
	if _, err := m.Addresses(); err != nil {
		return bad("connect", "%v", err)
	}
	for i, s := range m.Site {
		if !siteForm.MatchString(s) || slices.Contains(m.Site[:i], s) {
			return bad("site", "%.64q: want a plain file name, once", s)
		}
	}
	return nil
}

// homes are where the files of a pack may lie: nowhere else, so that no pack replaces a program or a setting of the node.
var homes = []string{"/usr/lib/", "/lib/x86_64-linux-gnu/", "/lib64/", "/opt/", "/etc/"}

// settings are the node's own below /etc.
var settings = []string{ManifestPath, "/etc/os-release", "/etc/modules.list", "/etc/modules.match", "/etc/resolv.conf", "/etc/ld.so.preload"}

func clean(p string) bool {
	home := slices.ContainsFunc(homes, func(h string) bool { return strings.HasPrefix(p, h) })
	return home && !slices.Contains(settings, p) && path.IsAbs(p) && path.Clean(p) == p && p != "/" && len(p) <= 512 && !strings.ContainsAny(p, "\x00\n")
}

func (m Manifest) holds(p string) bool {
	return slices.ContainsFunc(m.Files, func(f File) bool { return f.Path == p })
}

// Addresses are the entries of Connect, parsed.
func (m Manifest) Addresses() ([]netip.AddrPort, error) {
	var out []netip.AddrPort
	for _, c := range m.Connect {
		a, err := netip.ParseAddrPort(c)
		if err != nil {
			return nil, fmt.Errorf("%.128q: want ADDRESS:PORT with an IPv4 address or an IPv6 one in brackets; a name is whatever a resolver says, so the fence takes none", c)
		}
		if a.Port() == 0 || a.Addr().IsUnspecified() || a.Addr().IsMulticast() || a.Addr().Zone() != "" {
			return nil, fmt.Errorf("%.128q: that is no address of one machine", c)
		}
		out = append(out, netip.AddrPortFrom(a.Addr().Unmap(), a.Port()))
	}
	return out, nil
}

// Title is name and version for people; empty for no pack.
func (m Manifest) Title() string { return strings.TrimSpace(m.Name + " " + m.Version) }
