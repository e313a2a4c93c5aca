package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"guardhouse/images/measure"
)

// measurement is the --json form; registers are lower case hexadecimal.
type measurement struct {
	File       string  `json:"file"`
	Stub       string  `json:"stub"`
	SecureBoot bool    `json:"secure_boot"`
	PCR4       string  `json:"pcr4"`
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
	p, err := measure.Predict(data, measure.Options{SecureBoot: *secure})
	if err != nil {
		return fmt.Errorf("measure %s: %w", files[0], err)
	}
	m := measurement{File: files[0], Stub: p.Stub, SecureBoot: *secure, PCR4: hex.EncodeToString(p.PCR4[:]), PCR11: hex.EncodeToString(p.PCR11[:])}
	for _, e := range p.Events {
		m.Events = append(m.Events, event{e.PCR, e.What, hex.EncodeToString(e.Digest[:])})
	}
	if *asJSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", " ")
		return enc.Encode(m)
	}
	fmt.Fprintf(w, "PCR 4   %s\nPCR 11  %s\n\nbehind them (systemd-stub %s, Secure Boot %s):\n", m.PCR4, m.PCR11, m.Stub, map[bool]string{true: "on", false: "off"}[*secure])
	for _, e := range m.Events {
		fmt.Fprintf(w, "  %2d  %s  %s\n", e.PCR, e.Digest, e.What)
	}
	return nil
}
