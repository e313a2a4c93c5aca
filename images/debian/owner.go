package debian

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Owners returns the installed packages that the workstation's files come
// from, sorted by name, each once, with copyright text.
func Owners(ctx context.Context, files []string) ([]Package, error) {
	names := map[string]bool{}
	for _, f := range files {
		n, err := owner(ctx, f)
		if err != nil {
			return nil, err
		}
		names[n] = true
	}
	var out []Package
	for n := range names {
		p, err := installed(ctx, n)
		if err != nil {
			return nil, err
		}
		out = append(out, *p)
	}
	slices.SortFunc(out, func(a, b Package) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// owner asks dpkg under every name the file may have been packed as: since
// the merge of /lib into /usr both spellings are in use.
func owner(ctx context.Context, file string) (string, error) {
	tries := []string{file}
	if real, err := filepath.EvalSymlinks(file); err == nil {
		tries = append(tries, real)
	}
	for _, f := range slices.Clone(tries) {
		if rest, ok := strings.CutPrefix(f, "/usr/"); ok {
			tries = append(tries, "/"+rest)
		} else {
			tries = append(tries, "/usr"+f)
		}
	}
	for _, f := range tries {
		out, err := run(ctx, "", "dpkg-query", "-S", f)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(out)) {
			if n, path, ok := strings.Cut(strings.TrimSpace(line), ": "); ok && path == f && !strings.HasPrefix(n, "diversion ") {
				return strings.TrimSpace(strings.Split(n, ",")[0]), nil
			}
		}
	}
	return "", fmt.Errorf("%w: %s; its licence is unknown, so it may not be shipped", ErrOwner, file)
}

func installed(ctx context.Context, name string) (*Package, error) {
	out, err := run(ctx, "", "dpkg-query", "-W", "-f", "${Package}\t${Version}\t${source:Package}\t${source:Version}", name)
	if err != nil {
		return nil, err
	}
	f := strings.Split(string(out), "\t")
	if len(f) != 4 {
		return nil, fmt.Errorf("dpkg-query: unexpected answer %q", out)
	}
	p := &Package{Name: f[0], Version: f[1], Source: f[2], SourceVersion: f[3]}
	if p.Copyright, err = os.ReadFile(filepath.Join("/usr/share/doc", p.Name, "copyright")); err != nil || len(p.Copyright) == 0 {
		return nil, fmt.Errorf("%w: %s (%v)", ErrLicence, p.Name, err)
	}
	return p, nil
}

var commonLicence = regexp.MustCompile(`/usr/share/common-licenses/([A-Za-z0-9][A-Za-z0-9.+-]*)`)

// CommonLicences returns the names of the licence texts that copyright files
// refer to instead of repeating, sorted; the texts are in
// /usr/share/common-licenses.
func CommonLicences(copyrights ...[]byte) []string {
	var out []string
	for _, c := range copyrights {
		for _, m := range commonLicence.FindAllSubmatch(c, -1) {
			out = append(out, strings.TrimRight(string(m[1]), "."))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
