package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Programs are the commands of a complete image; init is also PID 1.
var Programs = []string{"clock", "console", "forward", "hgs", "hsm", "init", "ledger"}

// cgoProgram is the only program that may load foreign code.
const cgoProgram = "hsm"

// ErrPrograms reports a program that is not in the source tree.
var ErrPrograms = errors.New("no such program")

// ExistingPrograms returns those of Programs that are in the source tree:
// for trying an unfinished tree, never for a release.
func ExistingPrograms(source string) []string {
	var out []string
	for _, p := range Programs {
		if files, _ := filepath.Glob(filepath.Join(source, "cmd", p, "*.go")); len(files) > 0 {
			out = append(out, p)
		}
	}
	return out
}

// ldflags drop symbols and identifiers that differ between builds.
const ldflags = "-s -w -buildid="

// compile builds the programs. Linked programs are kept in the cache under a
// hash of everything that was compiled into them, because linking is slow and
// cannot be skipped by the go command without its build identifiers.
func (b *build) compile(ctx context.Context) error {
	want := b.Commands
	if len(want) == 0 {
		want = Programs
	}
	var static, cgo []string
	for _, p := range want {
		if !slices.Contains(Programs, p) || !slices.Contains(ExistingPrograms(b.Source), p) {
			return fmt.Errorf("%w: cmd/%s (an image has %s)", ErrPrograms, p, strings.Join(Programs, " "))
		}
		if p == cgoProgram {
			cgo = append(cgo, p)
		} else {
			static = append(static, p)
		}
	}
	b.programs = map[string]string{}
	if err := b.compileGroup(ctx, static, "0"); err != nil {
		return err
	}
	return b.compileGroup(ctx, cgo, "1")
}

func (b *build) compileGroup(ctx context.Context, names []string, cgo string) error {
	if len(names) == 0 {
		return nil
	}
	flags := []string{"-trimpath", "-buildvcs=false", "-ldflags", ldflags}
	if cgo == "1" {
		flags = append(flags, "-tags", "netgo,osusergo")
	}
	var pkgs []string
	for _, n := range names {
		pkgs = append(pkgs, "./cmd/"+n)
	}
	list, err := b.goTool(ctx, cgo, slices.Concat([]string{"list", "-export", "-deps", "-f", "{{.ImportPath}} {{.BuildID}}"}, flags, pkgs)...)
	if err != nil {
		return err
	}
	version, err := b.goTool(ctx, cgo, "env", "GOVERSION", "CC", "GOAMD64")
	if err != nil {
		return err
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n%s\n%s", version, strings.Join(flags, " "), linkerState(), list)
	dir := filepath.Join(b.Cache, "go-"+cgo+"-"+hex.EncodeToString(h.Sum(nil)[:16]))
	if _, err := os.Stat(dir); err != nil {
		tmp := dir + ".new"
		if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(tmp, 0o755)); err != nil {
			return err
		}
		if _, err := b.goTool(ctx, cgo, slices.Concat([]string{"build"}, flags, []string{"-o", tmp + "/"}, pkgs)...); err != nil {
			return err
		}
		if err := os.Rename(tmp, dir); err != nil {
			return err
		}
		if err := b.keepNewest("go-"+cgo+"-*", 3); err != nil {
			return err
		}
	}
	for _, n := range names {
		b.programs[n] = filepath.Join(dir, n)
	}
	return nil
}

// linkerState stands for what gcc links into the one cgo program from outside.
func linkerState() string {
	var b strings.Builder
	for _, f := range []string{"/usr/lib/x86_64-linux-gnu/crt1.o", "/usr/lib/x86_64-linux-gnu/libc_nonshared.a", "/usr/lib/x86_64-linux-gnu/libc.so.6"} {
		data, err := os.ReadFile(f)
		fmt.Fprintf(&b, "%s %x %v\n", f, sha256.Sum256(data), err != nil)
	}
	return b.String()
}

// goTool runs the go command in the source tree with a fixed environment.
func (b *build) goTool(ctx context.Context, cgo string, args ...string) ([]byte, error) {
	c := exec.CommandContext(ctx, "go", args...)
	c.Dir = b.Source
	c.Env = append(os.Environ(), "CGO_ENABLED="+cgo, "GOOS=linux", "GOARCH=amd64", "GOAMD64=v1", "GOFLAGS=-mod=readonly", "GOWORK=off", "CGO_CFLAGS=-O2", "CGO_LDFLAGS=-Wl,--build-id=none")
	var out, diag bytes.Buffer
	c.Stdout, c.Stderr = &out, &diag
	if err := c.Run(); err != nil {
		return nil, fmt.Errorf("go %s: %w\n%s", args[0], err, bytes.TrimSpace(diag.Bytes()))
	}
	return out.Bytes(), nil
}
