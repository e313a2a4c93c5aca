package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"guardhouse/images/keys"
	"guardhouse/images/measure"
	"guardhouse/images/uki"
)

// firmwareUpdate signs changes of a machine's Secure Boot variables, and says which release must be there first.
func firmwareUpdate(w io.Writer, args []string, now time.Time) error {
	fs := flag.NewFlagSet("mkimage firmware-update", flag.ContinueOnError)
	set := fs.String("keys", "", "`folder` of the key set that the machines trust")
	to := fs.String("to", "", "`folder` of the key set that follows: writes all steps into the folder -o")
	add := fs.String("dbx", "", "`file` with signature lists to add to dbx (EFI_SIGNATURE_LIST); none of their entries may be in it already")
	image := fs.String("forbid", "", "image `file` whose hash to add to dbx")
	forbidKeys := fs.String("forbid-keys", "", "`folder` of a former key set whose db certificate to add to dbx")
	present := fs.String("present", "", "`file` with the present content of dbx (default: empty)")
	epoch := fs.Int64("epoch", now.Unix(), "time of the update in unix `seconds`, later than that of the last one (default: now)")
	out := fs.String("o", "", "`file` to write, or with --to a folder")
	rest, err := parse(fs, args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	chosen := 0
	for _, s := range []string{*to, *add, *image, *forbidKeys} {
		if s != "" {
			chosen++
		}
	}
	if err == nil && (*set == "" || *out == "" || chosen != 1 || len(rest) > 0) {
		fmt.Fprintln(os.Stderr, "mkimage firmware-update: want --keys DIR, -o, and one of --to, --dbx, --forbid and --forbid-keys")
		err = errUsage
	}
	if err != nil {
		return err
	}
	trusted, err := keys.Load(*set)
	if err != nil {
		return err
	}
	when := time.Unix(*epoch, 0)
	if *to != "" {
		return rollover(w, trusted, *set, *to, *out, when)
	}
	content, err := forbidden(trusted, *add, *image, *forbidKeys)
	if err != nil {
		return err
	}
	var before []byte
	if *present != "" {
		if before, err = os.ReadFile(*present); err != nil {
			return err
		}
	}
	return dbxUpdate(w, trusted, before, keys.Update{Name: "dbx", Append: true, Data: content, Time: when}, *out)
}

// forbidden is what goes into dbx.
func forbidden(trusted *keys.Set, lists, image, former string) ([]byte, error) {
	switch {
	case lists != "":
		return os.ReadFile(lists)
	case image != "":
		file, err := os.ReadFile(image)
		if err != nil {
			return nil, err
		}
		sum, err := uki.AuthenticodeSHA256(file)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", image, err)
		}
		return keys.HashList(trusted.Owner, sum), nil
	}
	old, err := keys.Load(former)
	if err != nil {
		return nil, err
	}
	if old.Fingerprint(keys.DB) == trusted.Fingerprint(keys.DB) {
		return nil, errors.New("the db certificate of the set that the machines trust: forbidding it would leave nothing that starts")
	}
	return keys.CertList(trusted.Owner, old.Certs[keys.DB]), nil
}

// dbxUpdate writes the update and, beside it, what dbx will hold, which mkimage build wants for --dbx.
func dbxUpdate(w io.Writer, trusted *keys.Set, before []byte, u keys.Update, out string) error {
	if bytes.Contains(before, u.Data) { // firmware adds nothing twice, and what it holds then would not be what we predict
		return errors.New("dbx has all of that already")
	}
	file, err := trusted.SignUpdate(u)
	if err != nil {
		return err
	}
	after, content := append(before, u.Data...), out+".dbx"
	if err := errors.Join(os.WriteFile(out, file, 0o644), os.WriteFile(content, after, 0o644)); err != nil {
		return err
	}
	fmt.Fprintf(w, "%s  adds %d bytes to dbx, signed by %s\n", out, len(u.Data), trusted.Certs[keys.KEK].Subject.CommonName)
	fmt.Fprintf(w, "%s  what dbx holds then, SHA-256 %.8x\n", content, sha256.Sum256(after))
	firmware := measure.FirmwareOf(trusted, after)
	fmt.Fprintf(w, "PCR 7 then  %x\n", measure.PCR7(firmware))
	fmt.Fprintf(w, "First install on every node a release built with --dbx %s; without it the node asks for its recovery secret after the update.\n", content)
	return nil
}

func rollover(w io.Writer, old *keys.Set, oldDir, nextDir, out string, when time.Time) error {
	next, err := keys.Load(nextDir)
	if err != nil {
		return err
	}
	if err := keys.Unmixed(old, next); err != nil {
		return err
	}
	updates, files, err := keys.RolloverSteps(old, next, when)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	fmt.Fprintf(w, "First install on every node a release built with --keys %s --also-sign %s; it opens the disk in each of these states.\n", nextDir, oldDir)
	for i, u := range updates {
		name := filepath.Join(out, fmt.Sprintf("%d-%s.auth", i+1, u.Name))
		if err := os.WriteFile(name, files[i], 0o644); err != nil {
			return err
		}
		what := "replaces " + u.Name
		if u.Append {
			what = "adds to " + u.Name
		}
		firmware := measure.FirmwareIn(keys.Rollover(old, next)[i+1], nil, next, old)
		fmt.Fprintf(w, "%s  %s; PCR 7 then (dbx empty) %x\n", name, what, measure.PCR7(firmware))
	}
	fmt.Fprintf(w, "When every node has made all %d steps, build the next release with --keys %s alone. Only after that may --forbid-keys %s follow:\nan image with the old signature starts no more under it.\n", len(updates), nextDir, oldDir)
	return nil
}
