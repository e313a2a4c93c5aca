// Package measure predicts, from the bytes of a Unified Kernel Image alone,
// the values that firmware and boot stub leave in PCR 4 and PCR 11 of the
// TPM's SHA-256 bank; and, from the keys that the firmware trusts, PCR 7. It
// signs what it predicted (SignPolicies).
//
// Promise: pure functions; nothing here opens a file, a socket or a TPM, so
// a prediction can never be an echo of what a machine reported. An image
// whose stub is of another version than the one whose behaviour was proved
// by a real boot is refused, not guessed at.
//
// Limits: systemd-stub 252, the image booted directly by UEFI firmware as a
// file on the EFI system partition, with no failed boot attempt before it
// (each adds events to PCR 4). PCR 7 is predicted for machines that hold our keys alone
// (of one set, or of two while one follows the other) and measure as OVMF
// does. A stub that finds
// credentials or system extensions beside the image extends PCR 12 and 13;
// a policy should therefore hold PCR 12 at zero. Without Secure Boot the
// stub lets the boot entry replace the command line; it then measures the
// replacement into PCR 12 (and leaves PCR 11 as predicted).
package measure

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"

	"guardhouse/images/uki"
)

// StubVersion is the major version of systemd-stub that this package knows.
const StubVersion = "252"

// Errors of Predict; both are wrapped with detail.
var (
	ErrStub    = errors.New("unknown boot stub")
	ErrMissing = errors.New("section missing")
)

// PCR numbers predicted here. TCG PC Client Platform Firmware Profile 3.3.4
// for 4; systemd-stub(7) for 11.
const (
	BootPCR  = 4
	ImagePCR = 11
)

// stubSections is the order in which stub 252 measures what it finds:
// systemd v252, src/fundamental/tpm-pcr.c, unified_sections. It must not be
// reordered. .uname is not known to this version; .pcrsig is left out on
// purpose by the stub because it signs the result.
var stubSections = []string{uki.Linux, uki.OSRel, uki.Cmdline, uki.Initrd, ".splash", ".dtb", uki.PCRPKey}

// Event is one extend operation: PCR = SHA-256(PCR before || Digest).
type Event struct {
	PCR    int
	What   string // for people: what the digest is taken over
	Digest [32]byte
}

// Options are the facts about the machine that a file cannot tell.
type Options struct {
	// SecureBoot is true when firmware verifies signatures. Stub 252 then
	// vouches for the inner kernel itself and firmware does not measure it;
	// without Secure Boot firmware measures the inner kernel into PCR 4 too.
	SecureBoot bool
	// Firmware is what the machine trusts; nil leaves PCR 7 unpredicted. Only with SecureBoot.
	Firmware *Firmware
}

// Prediction is what the TPM holds when the kernel starts.
type Prediction struct {
	Stub   string // the stub's own version string
	PCR4   [32]byte
	PCR7   [32]byte // zero where Options.Firmware is nil
	PCR11  [32]byte
	Events []Event // in the order in which they happen
}

// Predict computes the two registers for an image file.
func Predict(file []byte, opt Options) (*Prediction, error) {
	sections, err := uki.Parse(file)
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	stub, err := stubVersion(sections)
	if err != nil {
		return nil, err
	}
	p := &Prediction{Stub: stub}
	if err := p.boot(file); err != nil {
		return nil, err
	}
	if err := p.image(sections); err != nil {
		return nil, err
	}
	if !opt.SecureBoot {
		if err := p.innerKernel(sections); err != nil {
			return nil, err
		}
	}
	if opt.SecureBoot && opt.Firmware != nil {
		p.secureBoot(opt.Firmware)
	}
	p.PCR4, p.PCR7, p.PCR11 = Replay(p.Events, BootPCR), Replay(p.Events, SecureBootPCR), Replay(p.Events, ImagePCR)
	return p, nil
}

// Replay folds the events of one PCR, starting from zero as after reset.
func Replay(events []Event, pcr int) [32]byte {
	var v [32]byte
	for _, e := range events {
		if e.PCR == pcr {
			v = sha256.Sum256(append(v[:], e.Digest[:]...))
		}
	}
	return v
}

// boot adds what firmware does before it jumps into the image.
func (p *Prediction) boot(file []byte) error {
	const calling = "Calling EFI Application from Boot Option"
	p.add(BootPCR, "EV_EFI_ACTION "+calling, sha256.Sum256([]byte(calling)))
	p.add(BootPCR, "EV_SEPARATOR 00000000", sha256.Sum256(make([]byte, 4)))
	d, err := uki.AuthenticodeSHA256(file)
	if err != nil {
		return fmt.Errorf("image hash: %w", err)
	}
	p.add(BootPCR, "EV_EFI_BOOT_SERVICES_APPLICATION the image file", d)
	return nil
}

// image adds what the stub measures: for each section its name with the
// closing zero byte, then its contents.
func (p *Prediction) image(sections []uki.Section) error {
	for _, need := range []string{uki.Linux, uki.Initrd, uki.Cmdline, uki.OSRel} {
		if _, ok := uki.Find(sections, need); !ok {
			return fmt.Errorf("%w: %s", ErrMissing, need)
		}
	}
	for _, name := range stubSections {
		data, ok := uki.Find(sections, name)
		if !ok {
			continue
		}
		p.add(ImagePCR, "EV_IPL name "+name, sha256.Sum256(append([]byte(name), 0)))
		p.add(ImagePCR, fmt.Sprintf("EV_IPL %d bytes of %s", len(data), name), sha256.Sum256(data))
	}
	return nil
}

// innerKernel adds firmware's measurement of the kernel that the stub hands
// to LoadImage.
func (p *Prediction) innerKernel(sections []uki.Section) error {
	kernel, _ := uki.Find(sections, uki.Linux)
	d, err := uki.AuthenticodeSHA256(kernel)
	if err != nil {
		return fmt.Errorf("hash of the inner kernel: %w", err)
	}
	p.add(BootPCR, "EV_EFI_BOOT_SERVICES_APPLICATION the kernel in .linux", d)
	return nil
}

func (p *Prediction) add(pcr int, what string, d [32]byte) {
	p.Events = append(p.Events, Event{PCR: pcr, What: what, Digest: d})
}

// stubVersion reads the .sdmagic section, for instance
// "#### LoaderInfo: systemd-stub 252.39-1~deb12u2 ####".
func stubVersion(sections []uki.Section) (string, error) {
	raw, ok := uki.Find(sections, uki.SDMagic)
	if !ok || len(raw) > 512 {
		return "", fmt.Errorf("%w: the image has no usable %s section; was it built by mkimage?", ErrStub, uki.SDMagic)
	}
	text := strings.TrimRight(string(raw), "\x00")
	_, v, ok := strings.Cut(text, "systemd-stub ")
	if !ok {
		return "", fmt.Errorf("%w: %q names no version", ErrStub, text)
	}
	v, _, _ = strings.Cut(v, " ")
	major, _, _ := strings.Cut(v, ".")
	major, _, _ = strings.Cut(major, "-")
	if major != StubVersion {
		return "", fmt.Errorf("%w: version %q, but predictions are proved for %s only; build with that version's stub", ErrStub, v, StubVersion)
	}
	return v, nil
}
