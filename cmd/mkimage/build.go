package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"guardhouse/images"
	"guardhouse/images/esp"
	"guardhouse/initramfs"
)

func buildImage(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("mkimage build", flag.ContinueOnError)
	out := fs.String("o", "", "output `folder`")
	hsm := fs.String("hsm", "attached", "HSM pack inside: attached, embedded, a pack `file`, or a vendor's module of which one is made")
	licence := fs.String("hsm-licence", "", "`file` with the licence text of a vendor's module")
	cache := fs.String("cache", "", "cache `folder` (default: guardhouse in the user's cache folder)")
	version := fs.String("version", "", "version `text` (default: from git)")
	epoch := fs.Int64("epoch", 0, "build time in unix `seconds` (default: SOURCE_DATE_EPOCH, else the last commit)")
	commands := fs.String("commands", "", "comma separated `programs` to include, or \"existing\" (default: all; a release needs all)")
	number := fs.Uint64("release", 0, "release `number`, which must rise with each release (default: the number of commits)")
	keySet := fs.String("keys", "", "`folder` of the key set that signs (default: an evaluation set in the cache folder, made when missing)")
	var dbx, also list
	fs.Var(&also, "also-sign", "`folder` of the key set that machines still trust while --keys follows it; may be repeated")
	fs.Var(&dbx, "dbx", "`file` with a content of dbx that machines may have, as the firmware keeps it; may be repeated")
	source := fs.String("source", ".", "`folder` with go.mod")
	var config list
	fs.Var(&config, "hsm-config", "`SOURCE:PATH-IN-IMAGE` of a vendor module's configuration file; may be repeated")
	rest, err := parse(fs, args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err == nil && (*out == "" || len(rest) > 0) {
		fmt.Fprintln(os.Stderr, "mkimage build: want -o DIR and no other arguments")
		err = errUsage
	}
	if err != nil {
		return err
	}
	opt := images.Options{Out: *out, HSM: images.HSM{Variant: *hsm, Config: config, Licence: *licence}, Logf: func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }}
	if opt.Source, err = filepath.Abs(*source); err != nil {
		return err
	}
	if opt.Release, err = releaseOf(ctx, opt.Source, *version, *epoch, *number); err != nil {
		return err
	}
	opt.Commit = commit(ctx, opt.Source)
	if opt.Cache, err = cacheFolder(*cache); err != nil {
		return err
	}
	switch *commands {
	case "":
	case "existing":
		opt.Commands = images.ExistingPrograms(opt.Source)
	default:
		opt.Commands = strings.Split(*commands, ",")
	}
	if opt.Keys, err = keySetFor(*keySet, opt.Cache); err != nil {
		return err
	}
	if opt.Also, err = loadSets(also); err != nil {
		return err
	}
	if opt.DBX, err = readFiles(dbx); err != nil {
		return err
	}
	// The FAT library takes its time from this variable and no other way.
	if err := os.Setenv(esp.EpochVariable, strconv.FormatInt(opt.Release.Epoch, 10)); err != nil {
		return err
	}
	r, err := images.Build(ctx, opt)
	if err != nil {
		return fmt.Errorf("build: %w", err)
	}
	if opt.Keys.Evaluation {
		fmt.Fprintln(os.Stderr, "signed with an evaluation key set: every screen of the node will say so; for production see mkimage keys -h")
	}
	fmt.Printf("%s  %.1f MiB (archive %.1f MiB, packed %.1f MiB), kernel %s, %d modules, %.1fs\nsha256 %s\n",
		filepath.Join(*out, images.UKIFile), mib(r.UKISize), mib(r.ArchiveSize), mib(r.InitrdSize), r.KernelVersion, r.Modules, r.Took.Seconds(), r.UKISHA256)
	return nil
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func cacheFolder(given string) (string, error) {
	if given != "" {
		return filepath.Abs(given)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no cache folder (%w): give --cache DIR", err)
	}
	return filepath.Join(dir, "guardhouse"), nil
}

// releaseOf fills in version, build time and number from git when they are not given,
// so that the same commit gives the same image.
func releaseOf(ctx context.Context, source, version string, epoch int64, number uint64) (initramfs.Release, error) {
	if epoch == 0 {
		if v := os.Getenv(esp.EpochVariable); v != "" {
			n, err := strconv.ParseInt(v, 10, 64)
			if err != nil {
				return initramfs.Release{}, fmt.Errorf("%s=%q: want unix seconds", esp.EpochVariable, v)
			}
			epoch = n
		}
	}
	if epoch == 0 {
		text, err := git(ctx, source, "log", "-1", "--format=%ct")
		if err == nil {
			epoch, err = strconv.ParseInt(text, 10, 64)
		}
		if err != nil {
			return initramfs.Release{}, fmt.Errorf("build time unknown (%w): give --epoch", err)
		}
	}
	if version == "" {
		id, err := git(ctx, source, "describe", "--tags", "--always", "--dirty")
		if err != nil {
			return initramfs.Release{}, fmt.Errorf("version unknown (%w): give --version", err)
		}
		version = id
	}
	if number == 0 {
		text, err := git(ctx, source, "rev-list", "--count", "HEAD")
		if err == nil {
			number, err = strconv.ParseUint(text, 10, 64)
		}
		if err != nil {
			return initramfs.Release{}, fmt.Errorf("release number unknown (%w): give --release", err)
		}
	}
	r := initramfs.Release{Version: version, Epoch: epoch, Number: number}
	return r, r.Validate()
}

// commit names the source: "" outside git, with a mark when files differ from it.
func commit(ctx context.Context, source string) string {
	id, err := git(ctx, source, "rev-parse", "HEAD")
	if err != nil {
		return ""
	}
	if changed, err := git(ctx, source, "status", "--porcelain"); err != nil || changed != "" {
		id += "-dirty"
	}
	return id
}

func git(ctx context.Context, dir string, args ...string) (string, error) {
	c := exec.CommandContext(ctx, "git", args...)
	c.Dir = dir
	out, err := c.Output()
	return strings.TrimSpace(string(out)), err
}
