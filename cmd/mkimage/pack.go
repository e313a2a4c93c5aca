package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"

	"guardhouse/images/hsmpack"
)

// makePack is `mkimage hsm-pack`.
func makePack(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("mkimage hsm-pack", flag.ContinueOnError)
	out := fs.String("o", "", "output `file`, for instance vendor.hsmpack")
	var o hsmpack.Options
	fs.StringVar(&o.Module, "module", "", "the vendor's PKCS#11 `library`")
	fs.StringVar(&o.Name, "name", "", "the pack's `name` (default: the module's)")
	fs.StringVar(&o.Version, "version", "", "the pack's `version` (default: of the module's Debian package, else the beginning of its hash)")
	fs.StringVar(&o.Licence, "licence", "", "`file` with the vendor's terms, for the image's NOTICE")
	fs.StringVar(&o.Root, "root", "", "`folder` in which the vendor's package was unpacked: its libraries are looked for there first")
	var config, extra, env, connect, site, daemonArgs list
	daemon := fs.String("daemon", "", "helper `program` that the node keeps running under a uid of its own")
	fs.Var(&daemonArgs, "daemon-arg", "one `argument` of the helper, which must stay in the foreground; may be repeated")
	fs.Var(&config, "config", "configuration file as `SOURCE:PATH-IN-IMAGE`; may be repeated")
	fs.Var(&extra, "extra", "`library` that the module opens by itself (dlopen); may be repeated")
	fs.Var(&env, "env", "`NAME=VALUE` for module and helper; may be repeated")
	fs.Var(&connect, "connect", "`ADDRESS:PORT` (TCP) that module and helper may reach, and no other; may be repeated")
	fs.Var(&site, "site-data", "`name` of a file that each site puts into /data/hsm-site by `hsm site-data put`; may be repeated")
	rest, err := parse(fs, args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err == nil && (*out == "" || o.Module == "" || len(rest) > 0 || len(daemonArgs) > 0 && *daemon == "") {
		fmt.Fprintln(os.Stderr, "mkimage hsm-pack: want -o FILE, --module LIBRARY and no other arguments; --daemon-arg goes with --daemon")
		err = errUsage
	}
	if err != nil {
		return err
	}
	for _, c := range config {
		f, err := hsmpack.ParseFile(c)
		if err != nil {
			return fmt.Errorf("hsm-pack: %w", err)
		}
		o.Config = append(o.Config, f)
	}
	if *daemon != "" {
		o.Daemon = append([]string{*daemon}, daemonArgs...)
	}
	o.Extra, o.Env, o.Connect, o.Site = extra, env, connect, site
	p, err := hsmpack.Make(ctx, o)
	if err != nil {
		return err
	}
	sum, err := save(p, *out)
	if err != nil {
		return fmt.Errorf("hsm-pack: %w", err)
	}
	fmt.Printf("%s  %s, %d files, module %s\nsha256 %s\n", *out, p.Title(), len(p.Files), p.Module, sum)
	return nil
}

// save writes the pack beside its place first: a pack is whole or not there.
func save(p *hsmpack.Pack, name string) (sum string, err error) {
	f, err := os.Create(name + ".new")
	if err != nil {
		return "", err
	}
	if err = errors.Join(p.Write(f), f.Close()); err == nil {
		err = os.Rename(name+".new", name)
	}
	if err != nil {
		os.Remove(name + ".new")
		return "", err
	}
	return p.SHA256()
}
