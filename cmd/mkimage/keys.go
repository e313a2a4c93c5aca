package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"guardhouse/images/keys"
)

func makeKeys(w io.Writer, args []string) error {
	fs := flag.NewFlagSet("mkimage keys", flag.ContinueOnError)
	out := fs.String("o", "", "new `folder` for the key set")
	name := fs.String("name", "", "the `customer`, as the certificates will say")
	rest, err := parse(fs, args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err == nil && (*out == "" || *name == "" || len(rest) > 0) {
		fmt.Fprintln(os.Stderr, "mkimage keys: want -o DIR and --name CUSTOMER")
		err = errUsage
	}
	if err != nil {
		return err
	}
	set, err := keys.Make(*out, *name, false, time.Now())
	if err != nil {
		return fmt.Errorf("keys: %w", err)
	}
	for _, role := range keys.Roles {
		fmt.Fprintf(w, "%-8s SHA-256 %s\n", role, set.Fingerprint(role))
	}
	fmt.Fprintf(w, "read %s first: where to keep each key, and what losing or leaking it means\n", filepath.Join(*out, "README.txt"))
	return nil
}

// keySetFor opens the set that was named, or an evaluation set in the cache folder, which it makes once.
func keySetFor(named, cache string) (*keys.Set, error) {
	if named != "" {
		return keys.Load(named)
	}
	dir := filepath.Join(cache, "keys-evaluation")
	set, err := keys.Load(dir)
	if errors.Is(err, os.ErrNotExist) {
		return keys.Make(dir, "", true, time.Now())
	}
	return set, err
}
