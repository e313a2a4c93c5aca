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
	if len(files) == 0 {
		return nil, nil
	}
	names, err := owners(ctx, files)
	if err != nil {
		return nil, err
	}
	args := []string{"-W", "-f", "${Package}\t${Version}\t${source:Package}\t${source:Version}\n"}
	out, err := run(ctx, "", "dpkg-query", append(args, names...)...)
	if err != nil {
		return nil, err
	}
	var list []Package
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimSpace(line), "\t")
		if len(f) != 4 {
			return nil, fmt.Errorf("dpkg-query: unexpected answer %q", line)
		}
		p := Package{Name: f[0], Version: f[1], Source: f[2], SourceVersion: f[3]}
		if p.Copyright, err = os.ReadFile(filepath.Join("/usr/share/doc", p.Name, "copyright")); err != nil || len(p.Copyright) == 0 {
			return nil, fmt.Errorf("%w: %s (%v)", ErrLicence, p.Name, err)
		}
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b Package) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// owners asks dpkg once for all files and returns the packages' names as dpkg
// spells them, sorted.
func owners(ctx context.Context, files []string) ([]string, error) {
	var ask []string
	for _, f := range files {
		ask = append(ask, spellings(f)...)
	}
	// dpkg-query fails when any path is unknown, which is normal here: what
	// counts is that each file was found under one of its spellings.
	out, _ := run(ctx, "", "dpkg-query", append([]string{"-S"}, ask...)...)
	found := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if n, p, ok := strings.Cut(strings.TrimSpace(line), ": "); ok && !strings.HasPrefix(n, "diversion ") {
			found[p] = strings.TrimSpace(strings.Split(n, ",")[0])
		}
	}
	var names []string
	for _, f := range files {
		i := slices.IndexFunc(spellings(f), func(p string) bool { return found[p] != "" })
		if i < 0 {
			return nil, fmt.Errorf("%w: %s; its licence is unknown, so it may not be shipped", ErrOwner, f)
		}
		names = append(names, found[spellings(f)[i]])
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// spellings are the names under which a file may have been packed: since the
// merge of /lib into /usr both are in use, and links are packed as links.
func spellings(file string) []string {
	out := []string{file}
	if real, err := filepath.EvalSymlinks(file); err == nil && real != file {
		out = append(out, real)
	}
	for _, f := range slices.Clone(out) {
		if rest, ok := strings.CutPrefix(f, "/usr/"); ok {
			out = append(out, "/"+rest)
		} else {
			out = append(out, "/usr"+f)
		}
	}
	return out
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
