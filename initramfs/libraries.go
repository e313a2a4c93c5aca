package initramfs

import (
	"cmp"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// loaderDir is where the image keeps shared libraries: one of the folders
// the Debian loader searches without a cache file.
const loaderDir = "/lib/x86_64-linux-gnu"

// loader is the path of the dynamic loader, fixed by the ABI.
const loader = "/lib64/ld-linux-x86-64.so.2"

// systemDirs are where a loader looks when a file says nothing else.
var systemDirs = []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib", "/usr/lib", "/lib64", "/usr/lib64"}

// Library is a shared library that some file needs.
type Library struct {
	From string // file of the workstation
	Path string // in the image
}

// Errors of Closure; wrapped with the file.
var (
	ErrLibrary = errors.New("a library is missing")
	ErrELF     = errors.New("not an x86-64 ELF file")
)

// Closure returns every shared library that files of the workstation need when
// they are loaded, and the loader itself, sorted by path. It reads the files
// (DT_NEEDED, DT_RPATH, DT_RUNPATH, PT_INTERP) and runs nothing. roots are the
// trees in which libraries are looked for, the first that has one wins; none
// means the workstation's. Whatever folder a library comes from, in the image
// it lies where the loader looks by itself: two different libraries of one
// name are ErrConflict when they are added.
//
// Files opened later by dlopen are invisible to it and must be given by name.
func Closure(roots []string, files ...string) ([]Library, error) {
	if len(roots) == 0 {
		roots = []string{"/"}
	}
	found := map[string]Library{} // by path in the image
	todo := slices.Clone(files)
	for len(todo) > 0 {
		file := todo[0]
		todo = todo[1:]
		needs, err := needsOf(file)
		if err != nil {
			return nil, err
		}
		for _, name := range needs.names {
			at := imagePath(name)
			if _, ok := found[at]; ok {
				continue
			}
			from, err := find(roots, name, needs.dirs)
			if err != nil {
				return nil, fmt.Errorf("%w: %s, which %s needs; name its tree with --root, or install its package", ErrLibrary, name, file)
			}
			found[at] = Library{from, at}
			todo = append(todo, from)
		}
	}
	out := make([]Library, 0, len(found))
	for _, l := range found {
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b Library) int { return cmp.Compare(a.Path, b.Path) })
	return out, nil
}

// imagePath is where a library that is asked for by name lies in the image.
func imagePath(name string) string {
	if path.Base(name) == path.Base(loader) {
		return loader
	}
	if path.IsAbs(name) {
		return path.Clean(name)
	}
	return path.Join(loaderDir, path.Base(name))
}

type needs struct {
	names []string // as the file asks for them
	dirs  []string // where it wants them looked for first
}

func needsOf(file string) (n needs, err error) {
	f, err := elf.Open(file)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return n, err
		}
		return n, fmt.Errorf("%w: %s (%v)", ErrELF, file, err)
	}
	defer f.Close()
	if f.Class != elf.ELFCLASS64 || f.Machine != elf.EM_X86_64 {
		return n, fmt.Errorf("%w: %s", ErrELF, file)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP && p.Filesz < 4096 {
			b := make([]byte, p.Filesz)
			if _, err := p.ReadAt(b, 0); err != nil {
				return n, fmt.Errorf("%w: %s (%v)", ErrELF, file, err)
			}
			n.names = append(n.names, strings.TrimRight(string(b), "\x00"))
		}
	}
	for _, tag := range []elf.DynTag{elf.DT_NEEDED, elf.DT_RPATH, elf.DT_RUNPATH} {
		list, err := f.DynString(tag)
		if err != nil {
			return n, fmt.Errorf("%w: %s (%v)", ErrELF, file, err)
		}
		if tag == elf.DT_NEEDED {
			n.names = append(n.names, list...)
			continue
		}
		for _, dirs := range list {
			for dir := range strings.SplitSeq(dirs, ":") {
				n.dirs = append(n.dirs, strings.NewReplacer("$ORIGIN", filepath.Dir(file), "${ORIGIN}", filepath.Dir(file), "$LIB", "lib", "${LIB}", "lib").Replace(dir))
			}
		}
	}
	return n, nil
}

// find looks in the folders that the asking file names, as they are and below
// each root, then in each root's system folders.
func find(roots []string, name string, dirs []string) (string, error) {
	var places []string
	if strings.Contains(name, "/") {
		for _, r := range roots {
			places = append(places, filepath.Join(r, name))
		}
	} else {
		for _, d := range dirs {
			if filepath.IsAbs(d) {
				places = append(places, filepath.Join(d, name))
			}
		}
		for _, r := range roots {
			for _, d := range slices.Concat(dirs, systemDirs) {
				if filepath.IsAbs(d) {
					places = append(places, filepath.Join(r, d, name))
				}
			}
		}
	}
	for _, p := range places {
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() {
			return p, nil
		}
	}
	return "", fs.ErrNotExist
}

// AddClosure adds the closure of files to the list and returns the
// workstation's paths it used, sorted.
func (l *List) AddClosure(roots []string, files ...string) ([]string, error) {
	libs, err := Closure(roots, files...)
	if err != nil {
		return nil, err
	}
	var from []string
	for _, lib := range libs {
		if err := l.AddFile(lib.Path, lib.From, 0o755); err != nil {
			return nil, err
		}
		from = append(from, lib.From)
	}
	slices.Sort(from)
	return from, nil
}
