// Command mkimage builds a guardhouse boot image on the workstation and
// predicts what a TPM will measure when it boots.
//
//	mkimage keys -o DIR --name CUSTOMER
//	mkimage build -o DIR [--keys DIR] [--also-sign DIR] [--hsm attached|embedded|PACK|MODULE] [--cache DIR] [--version V] [--release N] [--epoch N]
//	mkimage hsm-pack -o FILE --module LIB [--config SRC:PATH] [--daemon PROGRAM] [--connect ADDRESS:PORT] [--licence FILE]
//	mkimage measure FILE.efi [--json] [--secure-boot] [--keys DIR] [--dbx FILE]
//	mkimage release --image DIR --keys DIR -o FILE [--notes FILE] [--also-sign DIR] [--dbx FILE]
//	mkimage verify-release FILE --keys DIR [--also-sign DIR] [--dbx FILE] [--since FILE]
//	mkimage firmware-update --keys DIR --to DIR|--dbx FILE|--forbid IMAGE|--forbid-keys DIR -o FILE|DIR
//	mkimage enroll IDENTITY.json -o NAME [--roots FILE]
//	mkimage enroll NAME.pending.json --answer ANSWER.json -o NAME
//	mkimage verify-quote QUOTE.json --nonce HEX [--ak NAME.ak.json] [--image DIR] [--keys DIR] [--dbx FILE] [--events]
//
// keys makes a customer's key set, once. build writes guardhouse.efi (the
// signed image), policy.json (the boots that open the disk, signed),
// guardhouse.img (a disk that boots it), manifest.json and NOTICE. hsm-pack
// collects a vendor's PKCS#11 module and what it needs into a file for build.
// measure reads a finished image file and, for PCR 7, the public half of a key
// set. release makes the update bundle that nodes install, and a bill of
// materials beside the image; verify-release checks such a bundle and tells on
// which machines it will open the disk. --also-sign names the key set that
// nodes still trust while they change to a new one; firmware-update signs the
// changes of Secure Boot's variables for that, or for dbx, as firmware takes
// them (.auth), and says which release must be installed before.
// enroll makes a challenge from what `node identity` gives, which the node
// answers with `node activate`, and records the attestation key that the
// answer proves. verify-quote checks what `node quote` gives, offline.
// Exit codes: 0 done, 1 failed, 2 wrong usage.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const usage = `usage:
  mkimage keys -o DIR --name CUSTOMER
  mkimage build -o DIR [--keys DIR] [--also-sign DIR] [--hsm attached|embedded|PACK|MODULE] [--cache DIR] [--version V] [--release N] [--epoch N]
  mkimage hsm-pack -o FILE --module LIB [--config SRC:PATH] [--daemon PROGRAM] [--connect ADDRESS:PORT] [--licence FILE]
  mkimage measure FILE.efi [--json] [--secure-boot] [--keys DIR] [--dbx FILE]
  mkimage release --image DIR --keys DIR -o FILE [--notes FILE] [--also-sign DIR] [--dbx FILE]
  mkimage verify-release FILE --keys DIR [--also-sign DIR] [--dbx FILE] [--since FILE]
  mkimage firmware-update --keys DIR --to DIR|--dbx FILE|--forbid IMAGE|--forbid-keys DIR -o FILE|DIR
  mkimage enroll IDENTITY.json -o NAME [--roots FILE]
  mkimage enroll NAME.pending.json --answer ANSWER.json -o NAME
  mkimage verify-quote QUOTE.json --nonce HEX [--ak NAME.ak.json] [--image DIR] [--keys DIR] [--dbx FILE] [--events]
"mkimage VERB -h" lists all options.
`

// errUsage asks for exit code 2; the message is already printed.
var errUsage = errors.New("usage")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:])
	switch {
	case errors.Is(err, errUsage):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "build":
			return buildImage(ctx, args[1:])
		case "hsm-pack":
			return makePack(ctx, args[1:])
		case "keys":
			return makeKeys(os.Stdout, args[1:])
		case "enroll":
			return enrol(os.Stdout, args[1:], time.Now())
		case "verify-quote":
			return verifyQuote(os.Stdout, args[1:])
		case "measure":
			return measureImage(os.Stdout, args[1:])
		case "release":
			return makeRelease(os.Stdout, args[1:])
		case "verify-release":
			return verifyRelease(os.Stdout, args[1:])
		case "firmware-update":
			return firmwareUpdate(os.Stdout, args[1:], time.Now())
		case "help", "-h", "--help":
			fmt.Print(usage)
			return nil
		}
	}
	fmt.Fprint(os.Stderr, usage)
	return errUsage
}

// parse reads flags that may stand before or after the other arguments.
func parse(fs *flag.FlagSet, args []string) ([]string, error) {
	var rest []string
	for {
		if err := fs.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return nil, err
			}
			return nil, errUsage
		}
		if fs.NArg() == 0 {
			return rest, nil
		}
		rest, args = append(rest, fs.Arg(0)), fs.Args()[1:]
	}
}
