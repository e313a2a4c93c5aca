//go:build qemu

package release

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"guardhouse/images"
	"guardhouse/images/esp"
	"guardhouse/initramfs"
)

// Somebody with the same source, packages and keys, in another folder and with nothing kept from an earlier build, gets the same bytes: the
// signed image, its signed boots, the disk, the manifest, the SBOM and the bundle. Go's own build cache is shared: with -trimpath its keys
// and contents know no folder, and filling a second one takes minutes. (It needs no QEMU, only its time.)
func TestTwoFoldersGiveTheSameRelease(t *testing.T) {
	t.Setenv(esp.EpochVariable, "1795000000")
	ours := set(t, "Contoso 2026")
	var outs [2]string
	files := sourceFiles(t)
	for i, deep := range []string{"a", "another/much/deeper/folder"} {
		source := filepath.Join(t.TempDir(), deep)
		for name, data := range files {
			p := filepath.Join(source, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, data, 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		outs[i] = t.TempDir()
		r, err := images.Build(t.Context(), images.Options{Source: source, Out: outs[i], Cache: kernelOnly(t), Release: initramfs.Release{Version: "test", Epoch: 1795000000, Number: 1},
			Commit: "0123abcd", HSM: images.HSM{Variant: "attached"}, Keys: ours, Logf: t.Logf})
		if err != nil {
			t.Fatal(err)
		}
		if r.Reused {
			t.Error("the archive was taken from an earlier build: this proves nothing")
		}
		f, err := os.Create(filepath.Join(outs[i], BundleFile))
		if err != nil {
			t.Fatal(err)
		}
		_, err = Make(f, Options{Image: outs[i], Keys: ours, Notes: "none"})
		if f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	names, total := []string{}, int64(0)
	err := filepath.WalkDir(outs[0], func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			names = append(names, strings.TrimPrefix(p, outs[0]))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		a, b := must(os.ReadFile(outs[0]+name))(t), must(os.ReadFile(outs[1]+name))(t)
		if total += int64(len(a)); !bytes.Equal(a, b) {
			t.Errorf("%s differs: %d and %d bytes", name, len(a), len(b))
		}
	}
	for _, want := range []string{images.UKIFile, images.DiskFile, images.PolicyFile, images.ManifestFile, images.NoticeFile, SBOMFile, BundleFile} {
		if !strings.Contains(strings.Join(names, "\n"), "/"+want) {
			t.Errorf("no %s was made", want)
		}
	}
	t.Logf("%d files, %d MiB compared", len(names), total>>20)
}

// sourceFiles is what belongs to the source, as a fresh clone of it would have; read once, so that nobody edits it between the two builds.
func sourceFiles(t *testing.T) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	list := must(exec.Command("git", "-C", "../..", "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output())(t)
	for name := range strings.SplitSeq(strings.TrimRight(string(list), "\x00"), "\x00") {
		data, err := os.ReadFile(filepath.Join("../..", name))
		if os.IsNotExist(err) {
			continue // deleted and not yet committed
		}
		if err != nil {
			t.Fatal(err)
		}
		files[name] = data
	}
	return files
}

// kernelOnly is a cache folder that holds nothing of ours: only Debian's kernel, if the shared one has it, since fetching it proves nothing.
func kernelOnly(t *testing.T) string {
	t.Helper()
	shared, cache := os.Getenv("GUARDHOUSE_CACHE"), t.TempDir()
	if shared == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return cache
		}
		shared = filepath.Join(dir, "guardhouse")
	}
	for _, pattern := range []string{"candidate-*", "deb*"} {
		found, err := filepath.Glob(filepath.Join(shared, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			if err := os.Symlink(must(filepath.Abs(f))(t), filepath.Join(cache, filepath.Base(f))); err != nil {
				t.Fatal(err)
			}
		}
	}
	return cache
}
