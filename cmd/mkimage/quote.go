package main

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/quote"
	"guardhouse/appliance/tpm"
	"guardhouse/images"
	"guardhouse/images/measure"
)

// enrol is `mkimage enroll`: the challenge, and with --answer the record.
func enrol(w io.Writer, args []string, now time.Time) error {
	fs := flag.NewFlagSet("mkimage enroll", flag.ContinueOnError)
	out := fs.String("o", "", "`name` of the files: NAME.challenge.json and NAME.pending.json, or NAME.ak.json")
	answer := fs.String("answer", "", "`file` with what the node said to the challenge (node activate)")
	roots := fs.String("roots", "", "`file` with certificates of TPM makers (PEM or DER): the endorsement key must lead to one of the self-signed ones")
	files, err := parse(fs, args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err == nil && (len(files) != 1 || *out == "" || *answer != "" && *roots != "") {
		fmt.Fprintln(os.Stderr, "mkimage enroll: want IDENTITY.json -o NAME [--roots FILE], or NAME.pending.json --answer ANSWER.json -o NAME")
		err = errUsage
	}
	if err != nil {
		return err
	}
	if *answer != "" {
		err = finishEnrolment(w, files[0], *answer, *out)
	} else {
		err = beginEnrolment(w, files[0], *roots, *out, now)
	}
	if err != nil {
		return fmt.Errorf("enroll: %w", err)
	}
	return nil
}

func beginEnrolment(w io.Writer, file, roots, out string, now time.Time) error {
	id, err := readQuoteFile[quote.Identity](file)
	if err != nil {
		return err
	}
	trust, err := makers(roots)
	if err != nil {
		return err
	}
	challenge, pending, err := quote.Begin(id, trust, now, rand.Reader)
	if err != nil {
		return err
	}
	if err := errors.Join(writeJSON(out+".challenge.json", challenge), writeJSON(out+".pending.json", pending)); err != nil {
		return err
	}
	describe(w, pending.Enrolment)
	fmt.Fprintf(w, "not proved yet. Next:\n  ssh ADMIN@NODE node activate < %[1]s.challenge.json > %[1]s.answer.json\n  mkimage enroll %[1]s.pending.json --answer %[1]s.answer.json -o %[1]s\n", out)
	return nil
}

func finishEnrolment(w io.Writer, file, answer, out string) error {
	p, err := readQuoteFile[quote.Pending](file)
	if err != nil {
		return err
	}
	a, err := readQuoteFile[quote.Answer](answer)
	if err != nil {
		return err
	}
	e, err := quote.Finish(p, a)
	if err != nil {
		return err
	}
	if err := writeJSON(out+".ak.json", e); err != nil {
		return err
	}
	describe(w, e)
	fmt.Fprintf(w, "proved: the attestation key lies in this TPM. Recorded in %s.ak.json\n", out)
	return nil
}

func describe(w io.Writer, e quote.Enrolment) {
	fmt.Fprintf(w, "node             %s\nattestation key  %s\nendorsement key  %s\n", e.Node, e.Name, e.Endorsement)
	if e.Maker != "" {
		fmt.Fprintf(w, "TPM              %s\n", e.Maker)
	}
	if a, b := e.Thumbprints(); a != "" {
		fmt.Fprintf(w, "  SHA-1          %s\n  SHA-256        %s\n", a, b)
	}
	if e.Root != "" {
		fmt.Fprintf(w, "vouched for by   %s\n", e.Root)
	}
	if e.Warning != "" {
		fmt.Fprintf(w, "warning          %s\n", e.Warning)
	}
}

// makers reads trusted makers' certificates: those that signed themselves are roots. No file gives no trust.
func makers(file string) (*evidence.Trust, error) {
	if file == "" {
		return nil, nil
	}
	b, err := readLimited(file, evidence.MaxBundle)
	if err != nil {
		return nil, err
	}
	all, bad, err := evidence.ReadBundle(b)
	if err == nil && len(bad) > 0 {
		err = bad[0]
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	var roots, others []*evidence.Certificate
	for _, c := range all {
		if string(c.RawSubject) == string(c.RawIssuer) {
			roots = append(roots, c)
		} else {
			others = append(others, c)
		}
	}
	if len(roots) == 0 {
		return nil, fmt.Errorf("%s: holds no self-signed certificate", file)
	}
	return evidence.NewTrust(roots, others), nil
}

func readLimited(file string, limit int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit+1)) // whoever parses it refuses what is longer
}

func readQuoteFile[T quote.Identity | quote.Challenge | quote.Answer | quote.Pending | quote.Enrolment | quote.File](file string) (T, error) {
	var v T
	b, err := readLimited(file, quote.MaxFile)
	if err != nil {
		return v, err
	}
	if v, err = quote.Parse[T](b); err != nil {
		return v, fmt.Errorf("%s: %w", file, err)
	}
	return v, nil
}

func writeJSON(file string, v any) error {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}

// verdict is the --json form.
type verdict struct {
	Genuine  bool            `json:"genuine"`
	Findings []quote.Finding `json:"findings"`
	Events   []event         `json:"events,omitempty"`
}

// errNotGenuine asks for exit code 1; the findings are already printed.
var errNotGenuine = errors.New("the quote does not prove what it should")

func verifyQuote(w io.Writer, args []string) error {
	fs := flag.NewFlagSet("mkimage verify-quote", flag.ContinueOnError)
	nonceText := fs.String("nonce", "", "the nonce that the quote was asked for, in `hex`")
	ak := fs.String("ak", "", "`file` that mkimage enroll recorded for this node")
	image := fs.String("image", "", "`folder` of mkimage build, or an image file: the node must have booted it with Secure Boot")
	keySet := fs.String("keys", "", "`folder` of the key set that the firmware trusts: predicts PCR 7 (default: from the image's signed policies)")
	dbx := fs.String("dbx", "", "`file` with the firmware's dbx (with --keys; default: none)")
	events := fs.Bool("events", false, "print the boot in plain words")
	asJSON := fs.Bool("json", false, "print JSON")
	files, err := parse(fs, args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	nonce, hexErr := hex.DecodeString(*nonceText)
	if err == nil && (len(files) != 1 || hexErr != nil || len(nonce) < quote.MinNonce) {
		fmt.Fprintf(os.Stderr, "mkimage verify-quote: want one quote file and --nonce with at least %d bytes in hex\n", quote.MinNonce)
		err = errUsage
	}
	if err != nil {
		return err
	}
	v, err := judgeQuote(files[0], nonce, *ak, *image, *keySet, *dbx)
	if err != nil {
		return fmt.Errorf("verify-quote: %w", err)
	}
	if err := printVerdict(w, v, *events, *asJSON); err != nil {
		return err
	}
	if !v.Genuine() {
		return errNotGenuine
	}
	return nil
}

func judgeQuote(file string, nonce []byte, ak, image, keySet, dbx string) (quote.Verdict, error) {
	f, err := readQuoteFile[quote.File](file)
	if err != nil {
		return quote.Verdict{}, err
	}
	var enrolment *quote.Enrolment
	if ak != "" {
		e, err := readQuoteFile[quote.Enrolment](ak)
		if err != nil {
			return quote.Verdict{}, err
		}
		enrolment = &e
	}
	var want *quote.Prediction
	if image != "" {
		if want, err = predict(image, keySet, dbx, f.PCRs); err != nil {
			return quote.Verdict{}, err
		}
	}
	return quote.Verify(f, nonce, enrolment, want), nil
}

func printVerdict(w io.Writer, v quote.Verdict, events, asJSON bool) error {
	if asJSON {
		out := verdict{Genuine: v.Genuine(), Findings: v.Findings}
		for _, e := range v.Report.Events {
			out.Events = append(out.Events, event{e.PCR, e.What, e.Digest})
		}
		enc := json.NewEncoder(w)
		enc.SetIndent("", " ")
		return enc.Encode(out)
	}
	for _, f := range v.Findings {
		fmt.Fprintf(w, "%-5s %s\n", map[bool]string{true: "ok", false: "WRONG"}[f.OK], f.What)
	}
	if events {
		for _, e := range v.Report.Events {
			fmt.Fprintf(w, "  %2d  %.16s  %s\n", e.PCR, e.Digest, e.What)
		}
	}
	if v.Genuine() {
		fmt.Fprintln(w, "genuine")
	}
	return nil
}

// predict computes PCR 4 and 11 from the image's own bytes. PCR 7, 12 and 13 come from the key set, or from the image's policy whose PCR 7
// fits the quote: the builder signed that one too.
func predict(path, keySet, dbx string, have map[int]string) (*quote.Prediction, error) {
	file, policyPath := path, ""
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if info.IsDir() {
		file, policyPath = filepath.Join(path, images.UKIFile), filepath.Join(path, images.PolicyFile)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	opt := measure.Options{SecureBoot: true}
	if opt.Firmware, err = firmware(keySet, dbx, data); err != nil {
		return nil, err
	}
	p, err := measure.Predict(data, opt)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	zero := hex.EncodeToString(make([]byte, 32))
	want := &quote.Prediction{Name: file, PCRs: map[int]string{4: hex.EncodeToString(p.PCR4[:]), 11: hex.EncodeToString(p.PCR11[:]), 12: zero, 13: zero}}
	switch {
	case opt.Firmware != nil:
		want.PCRs[7] = hex.EncodeToString(p.PCR7[:])
	case policyPath != "":
		if want.PCRs[7], err = signedPCR7(policyPath, want.PCRs, have[7]); err != nil {
			return nil, err
		}
	}
	return want, nil
}

// signedPCR7 is the value of PCR 7 in those of the image's policies that are for this image, and the quoted one where it is among them.
func signedPCR7(file string, image map[int]string, have string) (string, error) {
	b, err := readLimited(file, tpm.MaxPolicyFile)
	if err != nil {
		return "", err
	}
	f, err := tpm.ParsePolicyFile(b)
	if err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	found := ""
	for _, p := range f.Policies {
		if p.PCRs[4] == image[4] && p.PCRs[11] == image[11] && (found == "" || p.PCRs[7] == have) {
			found = p.PCRs[7]
		}
	}
	if found == "" {
		return "", fmt.Errorf("%s: no policy is for this image", file)
	}
	return found, nil
}
