// Package debian takes files out of Debian packages for the image and says
// which package, which version and which licence they come from.
//
// Promise: nothing is installed on the workstation; packages are fetched with
// apt's own tools (which check signatures and hashes), unpacked below the
// given cache folder, and every fact the notice needs is recorded. No version
// is pinned: mirrors drop old ones.
//
// Limits: needs apt-cache, apt-get, dpkg and dpkg-query in PATH and fresh
// package lists; amd64 only.
package debian

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Package is a Debian binary package as used for a build.
type Package struct {
	Name          string `json:"name"`
	Version       string `json:"version"`
	Source        string `json:"source"`         // source package
	SourceVersion string `json:"source_version"` // its version: what to fetch for the source code
	SHA256        string `json:"sha256,omitempty"`
	Copyright     []byte `json:"-"` // the copyright file, complete
}

// Errors of this package; wrapped with detail and a remedy.
var (
	ErrLists   = errors.New("apt does not know the package")
	ErrOwner   = errors.New("file belongs to no Debian package")
	ErrLicence = errors.New("package has no copyright file")
)

const remedy = "run `make deps`, or `apt-get update` as root, and try again"

// listsFolder changes whenever apt's knowledge of the mirror does.
const listsFolder = "/var/lib/apt/lists"

// Candidate returns what apt would download for a name. A package that only
// depends on one versioned package (linux-image-amd64) is followed to it. The
// answer is kept in the cache folder until apt's lists change, because asking
// takes a second.
func Candidate(ctx context.Context, name, cache string) (*Package, error) {
	memo := filepath.Join(cache, "candidate-"+name+".json")
	var kept struct {
		Lists   string
		Package Package
	}
	state := listsState()
	if text, err := os.ReadFile(memo); err == nil && json.Unmarshal(text, &kept) == nil && kept.Lists == state && state != "" {
		return &kept.Package, nil
	}
	p, err := candidate(ctx, name)
	if err != nil {
		return nil, err
	}
	kept.Lists, kept.Package = state, *p
	text, err := json.Marshal(kept)
	if err != nil {
		return nil, err
	}
	return p, os.WriteFile(memo, text, 0o644)
}

// listsState names the state of apt's lists; empty when it cannot be told.
func listsState() string {
	info, err := os.Stat(listsFolder)
	if err != nil {
		return ""
	}
	return info.ModTime().UTC().Format(time.RFC3339Nano)
}

func candidate(ctx context.Context, name string) (*Package, error) {
	for range 3 {
		fields, err := show(ctx, name)
		if err != nil {
			return nil, err
		}
		if next, ok := onlyDependency(fields["Depends"]); ok && strings.HasPrefix(next, "linux-image-") && !strings.HasPrefix(name, "linux-image-6.") {
			name = next
			continue
		}
		p := &Package{Name: name, Version: fields["Version"], Source: name, SourceVersion: fields["Version"], SHA256: fields["SHA256"]}
		if s := fields["Source"]; s != "" {
			p.Source = s
			if a, b, ok := strings.Cut(s, " ("); ok {
				p.Source, p.SourceVersion = a, strings.TrimSuffix(b, ")")
			}
		}
		if p.Version == "" || len(p.SHA256) != 64 {
			return nil, fmt.Errorf("%w: %s: apt shows neither version nor hash; %s", ErrLists, name, remedy)
		}
		return p, nil
	}
	return nil, fmt.Errorf("%w: %s leads nowhere; %s", ErrLists, name, remedy)
}

// show returns the first paragraph that apt-cache prints for a package.
func show(ctx context.Context, name string) (map[string]string, error) {
	out, err := run(ctx, "", "apt-cache", "show", "--no-all-versions", name)
	if err != nil {
		return nil, fmt.Errorf("%w: %s (%v); %s", ErrLists, name, err, remedy)
	}
	fields := map[string]string{}
	sc := bufio.NewScanner(bytes.NewReader(out))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() && sc.Text() != "" {
		if k, v, ok := strings.Cut(sc.Text(), ": "); ok && !strings.HasPrefix(k, " ") {
			fields[k] = v
		}
	}
	return fields, sc.Err()
}

func onlyDependency(depends string) (string, bool) {
	if depends == "" || strings.ContainsAny(depends, ",|") {
		return "", false
	}
	return strings.Fields(depends)[0], true
}

// Unpacked fetches the package, unless the cache holds it, and returns the
// folder with its files. The folder is named by the package's hash and must
// not be changed. keep, when given, decides which files stay (paths as in the
// package, with a leading slash); Copyright of p is filled in.
func Unpacked(ctx context.Context, p *Package, cache string, keep func(path string) bool) (string, error) {
	dir := filepath.Join(cache, "deb-"+p.Name+"-"+p.SHA256[:16])
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		if err := fetch(ctx, p, cache, dir, keep); err != nil {
			return "", err
		}
	} else if err != nil {
		return "", fmt.Errorf("cache: %w", err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "usr/share/doc", p.Name, "copyright"))
	if err != nil || len(text) == 0 {
		return "", fmt.Errorf("%w: %s (%v)", ErrLicence, p.Name, err)
	}
	p.Copyright = text
	return dir, nil
}

func fetch(ctx context.Context, p *Package, cache, dir string, keep func(string) bool) error {
	tmp, err := os.MkdirTemp(cache, ".fetch-")
	if err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	defer os.RemoveAll(tmp)
	if _, err := run(ctx, tmp, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", p.Name+"="+p.Version); err != nil {
		return fmt.Errorf("download %s %s: %w; %s", p.Name, p.Version, err, remedy)
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("download %s: want one file, got %d", p.Name, len(debs))
	}
	if err := checkHash(debs[0], p.SHA256); err != nil {
		return err
	}
	files := filepath.Join(tmp, "files")
	if _, err := run(ctx, tmp, "dpkg", "-x", debs[0], files); err != nil {
		return fmt.Errorf("unpack %s: %w", p.Name, err)
	}
	if keep != nil {
		if err := prune(files, keep); err != nil {
			return fmt.Errorf("unpack %s: %w", p.Name, err)
		}
	}
	return os.Rename(files, dir)
}

func checkHash(name, want string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		return fmt.Errorf("%s: sha256 is %s, the package list says %s", filepath.Base(name), got, want)
	}
	return nil
}

func prune(root string, keep func(string) bool) error {
	return filepath.Walk(root, func(p string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		if keep("/" + strings.TrimPrefix(strings.TrimPrefix(p, root), "/")) {
			return nil
		}
		return os.Remove(p)
	})
}

// run executes one of apt's or dpkg's programs in dir with plain messages and
// a private folder for its temporary files.
func run(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	c := exec.CommandContext(ctx, name, args...)
	c.Dir = dir
	c.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")
	if dir != "" {
		c.Env = append(c.Env, "TMPDIR="+dir)
	}
	var out, diag bytes.Buffer
	c.Stdout, c.Stderr = &out, &diag
	if err := c.Run(); err != nil {
		return out.Bytes(), fmt.Errorf("%s %s: %w: %s", name, args[0], err, lastLine(diag.String()))
	}
	return out.Bytes(), nil
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}
