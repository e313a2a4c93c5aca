package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"guardhouse/images/keys"
	"guardhouse/images/measure"
	"guardhouse/images/uki"
)

// measurement is the --json form; registers are lower case hexadecimal.
type measurement struct {
	File       string  `json:"file"`
	Stub       string  `json:"stub"`
	SecureBoot bool    `json:"secure_boot"`
	PCR4       string  `json:"pcr4"`
	PCR7       string  `json:"pcr7,omitempty"` // only with --keys
	PCR11      string  `json:"pcr11"`
	Events     []event `json:"events"`
}

type event struct {
	PCR    int    `json:"pcr"`
	What   string `json:"what"`
	Digest string `json:"digest"`
}

func measureImage(w io.Writer, args []string) error {
	fs := flag.NewFlagSet("mkimage measure", flag.ContinueOnError)
	asJSON := fs.Bool("json", false, "print JSON")
	secure := fs.Bool("secure-boot", false, "predict for firmware with Secure Boot on (default: off)")
	keySet := fs.String("keys", "", "`folder` of the key set that the firmware trusts: predicts PCR 7 too (implies --secure-boot)")
	dbx := fs.String("dbx", "", "`file` with the firmware's dbx (with --keys; default: none)")
	files, err := parse(fs, args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err == nil && len(files) != 1 {
		fmt.Fprintln(os.Stderr, "mkimage measure: want one image file, for instance build/guardhouse.efi")
		err = errUsage
	}
	if err != nil {
		return err
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		return fmt.Errorf("measure: %w", err)
	}
	opt := measure.Options{SecureBoot: *secure || *keySet != ""}
	if opt.Firmware, err = firmware(*keySet, *dbx, data); err != nil {
		return err
	}
	p, err := measure.Predict(data, opt)
	if err != nil {
		return fmt.Errorf("measure %s: %w", files[0], err)
	}
	m := measurement{File: files[0], Stub: p.Stub, SecureBoot: opt.SecureBoot, PCR4: hex.EncodeToString(p.PCR4[:]), PCR11: hex.EncodeToString(p.PCR11[:])}
	if opt.Firmware != nil {
		m.PCR7 = hex.EncodeToString(p.PCR7[:])
	}
	for _, e := range p.Events {
		m.Events = append(m.Events, event{e.PCR, e.What, hex.EncodeToString(e.Digest[:])})
	}
	if *asJSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", " ")
		return enc.Encode(m)
	}
	fmt.Fprintf(w, "PCR 4   %s\n", m.PCR4)
	if m.PCR7 != "" {
		fmt.Fprintf(w, "PCR 7   %s\n", m.PCR7)
	}
	fmt.Fprintf(w, "PCR 11  %s\n\nbehind them (systemd-stub %s, Secure Boot %s):\n", m.PCR11, m.Stub, map[bool]string{true: "on", false: "off"}[m.SecureBoot])
	for _, e := range m.Events {
		fmt.Fprintf(w, "  %2d  %s  %s\n", e.PCR, e.Digest, e.What)
	}
	return nil
}

// firmware is what a machine with this key set measures; nil without a set. An image that it would not start is refused.
func firmware(keySet, dbx string, image []byte) (*measure.Firmware, error) {
	if keySet == "" {
		return nil, nil
	}
	set, err := keys.Load(keySet)
	if err != nil {
		return nil, err
	}
	if err := uki.Verify(image, set.Certs[keys.DB]); err != nil {
		return nil, fmt.Errorf("a machine with this key set does not start the image: %w", err)
	}
	var content []byte
	if dbx != "" {
		if content, err = os.ReadFile(dbx); err != nil {
			return nil, err
		}
	}
	return measure.FirmwareOf(set, content), nil
}
