package initramfs

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/ldd"
)

// loaderDir is where the image keeps shared libraries: one of the folders
// the Debian loader searches without a cache file.
const loaderDir = "/lib/x86_64-linux-gnu"

// systemDirs are the workstation folders whose libraries move to loaderDir.
var systemDirs = []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib", "/usr/lib"}

// AddClosure adds every shared library that the given workstation files need
// when they are loaded, and the loader itself, and returns the workstation
// paths it used, sorted. Libraries of the system's folders are gathered in
// one folder; others (a vendor's own) keep their path.
//
// It asks the workstation's loader for the list (ld.so --list), which maps
// the file but runs nothing in it. Files opened later by dlopen are invisible
// to it and must be added by name.
func (l *List) AddClosure(files ...string) ([]string, error) {
	libs, err := ldd.List(files...)
	if err != nil {
		return nil, fmt.Errorf("libraries of %s: %w", strings.Join(files, " "), err)
	}
	slices.Sort(libs)
	for _, lib := range libs {
		if err := l.AddFile(libraryPath(lib), lib, 0o755); err != nil {
			return nil, err
		}
	}
	return libs, nil
}

// libraryPath maps a workstation path to the path in the image.
func libraryPath(lib string) string {
	dir := path.Clean(filepath.ToSlash(filepath.Dir(lib)))
	if slices.Contains(systemDirs, dir) {
		return path.Join(loaderDir, path.Base(lib))
	}
	return path.Clean(lib) // "/lib64/ld-linux-x86-64.so.2" is fixed by the ABI
}
