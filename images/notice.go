package images

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"guardhouse/images/debian"
)

// GoModule is a module linked into at least one program of the image.
type GoModule struct {
	Path    string `json:"path"`
	Version string `json:"version"`
	Sum     string `json:"sum,omitempty"` // go.sum's hash
	dir     string
}

// ErrLicence reports a component without a licence text.
var ErrLicence = errors.New("no licence text found")

// licenceName matches the files that hold terms, at the top of a module.
var licenceName = regexp.MustCompile(`(?i)^(un)?(licen[cs]e|copying|copyright|notice|patents)([._-].*)?$`)

// notice collects every component with its licence text and writes the file.
func (b *build) notice(ctx context.Context) error {
	var out bytes.Buffer
	fmt.Fprintf(&out, "NOTICE of guardhouse %s\n\nThe image holds the components below, each with its exact source version and its terms.\n", b.Release.Version)
	if own, err := os.ReadFile(filepath.Join(b.Source, "LICENSE")); err == nil {
		section(&out, "guardhouse "+b.Release.Version, string(own))
	}
	if err := b.goNotices(ctx, &out); err != nil {
		return err
	}
	if err := b.debianNotices(ctx, &out); err != nil {
		return err
	}
	b.packNotice(&out)
	return replace(filepath.Join(b.Out, NoticeFile), out.Bytes())
}

func section(out *bytes.Buffer, title, text string) {
	fmt.Fprintf(out, "\n%s\n%s\n%s\n\n%s\n", strings.Repeat("=", 78), title, strings.Repeat("=", 78), strings.TrimSpace(text))
}

func (b *build) goNotices(ctx context.Context, out *bytes.Buffer) error {
	root, err := b.goTool(ctx, "0", "env", "GOROOT", "GOVERSION")
	if err != nil {
		return err
	}
	env := strings.Fields(string(root))
	if len(env) != 2 {
		return fmt.Errorf("go env: unexpected answer %q", root)
	}
	text, err := licenceTexts(env[0])
	if err != nil {
		return fmt.Errorf("the standard library of Go: %w", err)
	}
	section(out, "Go standard library and runtime "+env[1], text)
	if err := b.linkedModules(ctx); err != nil {
		return err
	}
	for _, m := range b.goModules {
		text, err := licenceTexts(m.dir)
		if err != nil {
			return fmt.Errorf("module %s %s: %w", m.Path, m.Version, err)
		}
		section(out, "Go module "+m.Path+" "+m.Version, text)
	}
	return nil
}

// linkedModules reads from the programs themselves which modules they hold.
func (b *build) linkedModules(ctx context.Context) error {
	found := map[string]GoModule{}
	for _, file := range b.programs {
		info, err := buildinfo.ReadFile(file)
		if err != nil {
			return fmt.Errorf("modules of %s: %w", filepath.Base(file), err)
		}
		for _, d := range info.Deps {
			if d.Replace != nil {
				d = d.Replace
			}
			found[d.Path] = GoModule{Path: d.Path, Version: d.Version, Sum: d.Sum}
		}
	}
	if len(found) == 0 {
		return nil
	}
	args := []string{"list", "-m", "-json"}
	for p := range found {
		args = append(args, p)
	}
	slices.Sort(args[3:])
	text, err := b.goTool(ctx, "0", args...)
	if err != nil {
		return err
	}
	for dec := json.NewDecoder(bytes.NewReader(text)); dec.More(); {
		var m struct {
			Path, Version, Dir string
			Replace            *struct{ Path, Version, Dir string }
		}
		if err := dec.Decode(&m); err != nil {
			return fmt.Errorf("go list: %w", err)
		}
		g := found[m.Path]
		if g.dir = m.Dir; g.dir == "" {
			return fmt.Errorf("module %s: source is not in the module cache; run `go mod download`", m.Path)
		}
		b.goModules = append(b.goModules, g)
	}
	slices.SortFunc(b.goModules, func(x, y GoModule) int { return strings.Compare(x.Path, y.Path) })
	return nil
}

func licenceTexts(dir string) (string, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrLicence, err)
	}
	var out strings.Builder
	for _, e := range list {
		if !e.Type().IsRegular() || !licenceName.MatchString(e.Name()) || strings.HasSuffix(e.Name(), ".go") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&out, "--- %s\n%s\n", e.Name(), strings.TrimSpace(string(text)))
	}
	if out.Len() == 0 {
		return "", fmt.Errorf("%w: add one, or replace the component", ErrLicence)
	}
	return out.String(), nil
}

func (b *build) debianNotices(ctx context.Context, out *bytes.Buffer) error {
	files := slices.Concat(b.hostFiles, []string{StubPath})
	slices.Sort(files)
	var err error
	if b.pkgs, err = debian.Owners(ctx, slices.Compact(files)); err != nil {
		return err
	}
	for _, p := range b.packDebian() {
		if !slices.ContainsFunc(b.pkgs, func(q debian.Package) bool { return q.Name == p.Name && q.Version == p.Version }) {
			b.pkgs = append(b.pkgs, p)
		}
	}
	b.pkgs = append(b.pkgs, *b.kernelPkg)
	var texts [][]byte
	for _, p := range b.pkgs {
		section(out, fmt.Sprintf("Debian package %s %s (source %s %s)", p.Name, p.Version, p.Source, p.SourceVersion), string(p.Copyright))
		texts = append(texts, p.Copyright)
	}
	for _, n := range debian.CommonLicences(texts...) {
		text, err := os.ReadFile(filepath.Join("/usr/share/common-licenses", n))
		if err != nil {
			return fmt.Errorf("%w: licence text %s named by a package: %w", ErrLicence, n, err)
		}
		section(out, "Licence text "+n, string(text))
	}
	return nil
}
