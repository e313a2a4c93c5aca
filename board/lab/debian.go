package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// unpack fetches a Debian package with apt's own tools and unpacks it below the cache, without installing it (so
// that no daemon of it starts). It returns the folder. The file SOURCE beside the tree records name, version and
// SHA-256 of the package used; versions are not pinned, since mirrors drop old ones.
func (l *Lab) unpack(ctx context.Context, pkg string) (string, error) {
	root := filepath.Join(l.opts.Cache, "deb", pkg)
	if _, err := os.Stat(filepath.Join(root, "SOURCE")); err == nil {
		return root, nil
	}
	if err := os.MkdirAll(filepath.Dir(root), 0o755); err != nil {
		return "", err
	}
	// A folder of its own and a rename at the end: several labs may do this at once.
	work, err := os.MkdirTemp(filepath.Dir(root), pkg+".*")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	l.logf("fetching the Debian package %s", pkg)
	get := exec.CommandContext(ctx, "apt-get", "download", pkg)
	get.Dir = work
	get.Env = append(os.Environ(), "TMPDIR="+work)
	if out, err := get.CombinedOutput(); err != nil {
		return "", fmt.Errorf("apt-get download %s: %w: %.300s (try: apt-get update)", pkg, err, out)
	}
	debs, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil || len(debs) != 1 {
		return "", fmt.Errorf("apt-get download %s: got %d files", pkg, len(debs))
	}
	tree := filepath.Join(work, "tree")
	if out, err := exec.CommandContext(ctx, "dpkg", "-x", debs[0], tree).CombinedOutput(); err != nil {
		return "", fmt.Errorf("dpkg -x %s: %w: %.300s", pkg, err, out)
	}
	b, err := os.ReadFile(debs[0])
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	note := strings.TrimSuffix(filepath.Base(debs[0]), ".deb") + " sha256 " + hex.EncodeToString(sum[:]) + "\n"
	if err := os.WriteFile(filepath.Join(tree, "SOURCE"), []byte(note), 0o644); err != nil {
		return "", err
	}
	if err := os.Chmod(tree, 0o755); err != nil {
		return "", err
	}
	if err := os.Rename(tree, root); err != nil {
		if _, there := os.Stat(filepath.Join(root, "SOURCE")); there == nil {
			return root, nil // somebody else was first
		}
		return "", err
	}
	return root, nil
}
