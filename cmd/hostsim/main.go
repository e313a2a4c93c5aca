// Hostsim is the other side of the protocols, for a workstation: a guarded host that attests by its host key or its TPM and opens key
// protectors, a tenant that makes them, an auditor who verifies an export offline, and a load generator. It shares codecs with the server,
// never its logic, and checks everything it receives as hgsa.md 7 and 15 and kps.md 10 demand of a client.
//
// It keeps a host's or an owner's keys as PEM files in the folder --dir: good for a lab, not for a tenant's real owner keys.
//
// Exit codes: 0 done; 1 refused or failed; 2 wrong usage. With --json the last line on stdout is one JSON object.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
)

// verb is one thing hostsim can do.
type verb struct {
	name string // words separated by a blank
	args string
	help string
	run  func(o *options) error
}

var verbs []verb

// The list refers to functions that print it, so it is filled when main starts.
func table() []verb {
	return []verb{
		{"host-key new", "--dir D", "make a host key, its certificate and a VSM identity key", hostKeyNew},
		{"host-key attest", "--dir D --url BASE/Attestation", "attest with the host key, keep the health certificate", hostKeyAttest},
		{"tpm new", "--dir D --name N --tpm T", "make a host whose TPM attests: VSM keys, code integrity policy, and the TPM's endorsement key", tpmNew},
		{"tpm identifier", "--dir D --name N --out F", "write its platform identifier, as Get-PlatformIdentifier does", tpmIdentifier},
		{"tpm baseline", "--dir D --out F [--misbehave K]", "write its boot log, as Get-HgsAttestationBaselinePolicy does", tpmBaseline},
		{"tpm attest", "--dir D --tpm T --url BASE/Attestation [--misbehave K] [--version v1.0|v2.0] [--log F]", "start the host (not with --log) and attest with its TPM; T is swtpm:HOST:PORT or /dev/tpmrm0", tpmAttest},
		{"guardian new", "--dir D --name N", "make an owner: signing and encryption certificate with private keys", guardianNew},
		{"guardian import", "--dir D --name N --metadata FILE|URL [--allow-untrusted-root] [--allow-expired] [--roots F] [--communications F]",
			"keep a guardian's metadata under a name, as Import-HgsGuardian does", guardianImport},
		{"guardian export", "--dir OWNER --out F", "write the owner as guardian metadata, as Export-HgsGuardian does", guardianExport},
		{"protector new", "--dir OWNER --out F [--guardian N,N] [--metadata FILE|URL]", "make a key protector for imported guardians, or for the one in metadata.xml", protectorNew},
		{"protector grant", "--dir OWNER --in F --out F [--guardian N,N] [--metadata FILE|URL]", "add guardians to a key protector, as its owner", protectorGrant},
		{"protector revoke", "--dir OWNER --in F --out F [--guardian N,N] [--id WRAPPING]", "take guardians out of a key protector, as its owner", protectorRevoke},
		{"protector roll", "--dir HOST --url BASE/KeyProtection --in F --out F", "send a key protector to rolltransportkey, open the answer", protectorRoll},
		{"protector open", "--dir OWNER --in F", "open a key protector as its owner", protectorOpen},
		{"protector inspect", "--in F", "explain a key protector", protectorInspect},
		{"certificate new", "--dir D --kind self|signer|expired|foreign", "make certificates that a service must refuse, and the attestation signer behind them", certificateNew},
		{"status", "--dir D --url BASE/Attestation --kps BASE/KeyProtection [--tpm T] [--misbehave K] [--stored]", "attest and show what Get-HgsClientConfiguration shows, and what to do", status},
		{"load", "--dir D --url ... --kps ... --in F -n N -c C", "attest and roll N times with C at once", load},
		{"audit verify", "--in F [--key HEX]", "verify an audit export without the node", auditVerify},
		{"vectors", "", "check the codecs against vectors that they did not make", vectors},
	}
}

// options are the flags of all verbs; each verb says in its help which it reads.
type options struct {
	dir, url, kps, in, out, metadata, name, kind, health, key, ca string
	tpm, misbehave, version, log                                  string
	guardian, roots, communications                               string
	result, n, c, flip                                            int
	id                                                            uint
	json, stored, allowUntrusted, allowExpired                    bool
	lookup                                                        func(ctx context.Context, host string) ([]string, error) // nil: the resolver
	facts                                                         map[string]any
}

// say prints a line for people and keeps the fact for --json.
func (o *options) say(fact string, value any, format string, args ...any) {
	o.facts[fact] = value
	if !o.json {
		fmt.Printf(format+"\n", args...)
	}
}

var errUsage = errors.New("wrong usage")

func main() {
	verbs = table()
	o := &options{facts: map[string]any{}}
	err := o.main(os.Args[1:])
	if o.json {
		if err != nil {
			o.facts["error"] = err.Error()
		}
		json.NewEncoder(os.Stdout).Encode(o.facts)
	}
	switch {
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, err)
		usage()
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "hostsim:", err)
		os.Exit(1)
	}
}

func (o *options) main(args []string) error {
	words := 0
	for words < len(args) && words < 2 && !strings.HasPrefix(args[words], "-") {
		words++
	}
	for ; words > 0; words-- {
		name := strings.Join(args[:words], " ")
		for _, v := range verbs {
			if v.name == name {
				if err := o.parse(args[words:]); err != nil {
					return fmt.Errorf("%w: %s: %v", errUsage, name, err)
				}
				if err := v.run(o); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				return nil
			}
		}
	}
	return fmt.Errorf("%w: no verb %q", errUsage, strings.Join(args[:min(2, len(args))], " "))
}

func (o *options) parse(args []string) error {
	fs := flag.NewFlagSet("hostsim", flag.ContinueOnError)
	fs.SetOutput(new(strings.Builder))
	fs.StringVar(&o.dir, "dir", ".", "folder of keys")
	fs.StringVar(&o.url, "url", "", "base URL")
	fs.StringVar(&o.kps, "kps", "", "key protection base URL")
	fs.StringVar(&o.in, "in", "", "input file")
	fs.StringVar(&o.out, "out", "", "output file")
	fs.StringVar(&o.metadata, "metadata", "", "guardian metadata: a file or a URL")
	fs.StringVar(&o.name, "name", "lab", "name")
	fs.StringVar(&o.kind, "kind", "", "kind")
	fs.StringVar(&o.health, "health", "", "health certificate file to send instead of the host's own; \"none\" sends an empty one")
	fs.StringVar(&o.key, "key", "", "fingerprint of the node's audit key, 64 hex digits; without it the export's own key is shown, to be compared by hand")
	fs.StringVar(&o.ca, "ca", "", "PEM file of the service's HTTPS certificate")
	fs.StringVar(&o.tpm, "tpm", "", "the host's TPM: swtpm:HOST:PORT (control channel on the next port) or /dev/tpmrm0")
	fs.StringVar(&o.misbehave, "misbehave", "", "what to do wrong")
	fs.StringVar(&o.version, "version", "", "v1.0 or v2.0 only; without it as a host does")
	fs.StringVar(&o.log, "log", "", "boot log that belongs to the TPM's PCRs; without it a start is simulated")
	fs.IntVar(&o.result, "result", 1, "wanted certificate: 1 = VSM encryption key, 2 = VSM signing key")
	fs.IntVar(&o.n, "n", 100, "how many")
	fs.IntVar(&o.c, "c", 4, "how many at once")
	fs.IntVar(&o.flip, "flip", -1, "flip one bit of this byte of the key protector before sending it")
	fs.StringVar(&o.guardian, "guardian", "", "imported guardians by name, with commas")
	fs.StringVar(&o.roots, "roots", "", "PEM file of the roots that guardian certificates must lead to")
	fs.StringVar(&o.communications, "communications", "", "the communications certificate that must have signed the metadata")
	fs.BoolVar(&o.allowUntrusted, "allow-untrusted-root", false, "take certificates without a trusted root: compare their thumbprints instead")
	fs.BoolVar(&o.allowExpired, "allow-expired", false, "take certificates outside of their validity period")
	fs.UintVar(&o.id, "id", 0, "id of a wrapping")
	fs.BoolVar(&o.stored, "stored", false, "show what came of the last attestation instead of attesting now")
	fs.BoolVar(&o.json, "json", false, "print one JSON object")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("%q is not expected", fs.Arg(0))
	}
	return nil
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: hostsim VERB [flags]")
	for _, v := range verbs {
		fmt.Fprintf(os.Stderr, "  %-18s %s\n  %-18s   %s\n", v.name, v.help, "", v.args)
	}
	fmt.Fprintln(os.Stderr, "kinds of --misbehave:")
	for _, m := range misbehaviours[1:] {
		fmt.Fprintf(os.Stderr, "  %-20s %s\n", m.kind, m.help)
	}
}
