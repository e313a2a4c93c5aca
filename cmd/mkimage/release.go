package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"guardhouse/images/keys"
	"guardhouse/images/release"
)

// keyOptions are what release and verify-release have in common.
type keyOptions struct {
	set       *string
	also, dbx list
}

func (k *keyOptions) define(fs *flag.FlagSet) {
	k.set = fs.String("keys", "", "`folder` of the key set that the image was built with")
	fs.Var(&k.also, "also-sign", "`folder` of a key set that nodes still trust while keys change, as given to build; may be repeated")
	fs.Var(&k.dbx, "dbx", "`file` with a content of dbx that machines may have, as given to build; may be repeated")
}

func (k *keyOptions) load() (set *keys.Set, also []*keys.Set, dbx [][]byte, err error) {
	if set, err = keys.Load(*k.set); err != nil {
		return nil, nil, nil, err
	}
	if also, err = loadSets(k.also); err != nil {
		return nil, nil, nil, err
	}
	dbx, err = readFiles(k.dbx)
	return set, also, dbx, err
}

func loadSets(dirs []string) (sets []*keys.Set, err error) {
	for _, dir := range dirs {
		s, err := keys.Load(dir)
		if err != nil {
			return nil, err
		}
		sets = append(sets, s)
	}
	return sets, nil
}

func readFiles(names []string) (contents [][]byte, err error) {
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		contents = append(contents, b)
	}
	return contents, nil
}

func makeRelease(w io.Writer, args []string) (err error) {
	fs := flag.NewFlagSet("mkimage release", flag.ContinueOnError)
	var k keyOptions
	k.define(fs)
	image := fs.String("image", "", "`folder` that mkimage build wrote")
	out := fs.String("o", "", "bundle `file` to write, for instance "+release.BundleFile)
	notes := fs.String("notes", "", "text `file`: what changed, for the people who install it")
	rest, err := parse(fs, args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err == nil && (*image == "" || *k.set == "" || *out == "" || len(rest) > 0) {
		fmt.Fprintln(os.Stderr, "mkimage release: want --image DIR, --keys DIR and -o FILE")
		err = errUsage
	}
	if err != nil {
		return err
	}
	opt := release.Options{Image: *image}
	if opt.Keys, opt.Also, opt.DBX, err = k.load(); err != nil {
		return err
	}
	if *notes != "" {
		text, err := os.ReadFile(*notes)
		if err != nil {
			return err
		}
		opt.Notes = string(text)
	}
	tmp, err := os.CreateTemp(filepath.Dir(*out), ".release-")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // gone after the rename
	report, err := release.Make(tmp, opt)
	if err := errors.Join(err, tmp.Chmod(0o644), tmp.Close()); err != nil {
		return fmt.Errorf("release: %w", err)
	}
	if err := os.Rename(tmp.Name(), *out); err != nil {
		return err
	}
	report.Print(w)
	fmt.Fprintf(w, "%s and, beside the image, %s\n", *out, filepath.Join(*image, release.SBOMFile))
	return nil
}

func verifyRelease(w io.Writer, args []string) error {
	fs := flag.NewFlagSet("mkimage verify-release", flag.ContinueOnError)
	var k keyOptions
	k.define(fs)
	since := fs.String("since", "", "an earlier bundle `file`: tells which components changed since then")
	files, err := parse(fs, args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err == nil && (len(files) != 1 || *k.set == "") {
		fmt.Fprintln(os.Stderr, "mkimage verify-release: want one bundle file and --keys DIR (the public half is enough)")
		err = errUsage
	}
	if err != nil {
		return err
	}
	var want release.Expect
	if want.Keys, want.Also, want.DBX, err = k.load(); err != nil {
		return err
	}
	f, err := os.Open(files[0])
	if err != nil {
		return err
	}
	defer f.Close()
	report, err := release.Verify(f, want)
	if err != nil {
		return fmt.Errorf("%s: %w", files[0], err)
	}
	report.Print(w)
	if *since == "" {
		return nil
	}
	return printChanges(w, *since, report, append([]*keys.Set{want.Keys}, want.Also...))
}

// printChanges compares with an earlier bundle, which may be from before the keys changed.
func printChanges(w io.Writer, earlier string, now *release.Report, sets []*keys.Set) error {
	f, err := os.Open(earlier)
	if err != nil {
		return err
	}
	defer f.Close()
	m, before, err := release.Inventory(f, sets...)
	if err != nil {
		return fmt.Errorf("%s: %w", earlier, err)
	}
	changes := release.Changes(before, now.Components)
	fmt.Fprintf(w, "%d of the components changed since release %d (%s):\n", len(changes), m.Number, m.Version)
	for _, line := range changes {
		fmt.Fprintf(w, "  %s\n", line)
	}
	return nil
}
