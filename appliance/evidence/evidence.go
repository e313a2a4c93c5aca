// Package evidence turns what a host says about itself into facts, or into the one reason why it can't: TCG and Windows boot logs against
// PCR values, endorsement keys and their certificates, code integrity policies, platform identifiers, and the TPM session by which the
// PCR values are authenticated.
//
// Promise: a fact in [Facts] comes only from event data that hashes to the digest in the log, in a PCR whose whole sequence of digests
// replays to the value the TPM reported, from an event of a type that belongs into that PCR, in the part of the sequence where firmware or
// boot loader and nobody later could have put it. Changing any bit of a log either leaves every fact as it was or makes [Prove] fail.
//
// Limits: bytes in, values out; no files, sockets, clocks. Nothing here decides: whether a fact is good enough is package appraise's
// affair. All inputs are bounded (see the Max constants). All functions are safe for concurrent use; the values they return alias their
// input where a doc comment says so. Logs of other systems than Windows replay, but do not prove: their events in PCR 11 to 14 are
// refused. PCR 16 to 23 (debug, DRTM, application) give no facts and need not replay.
//
// Banks: a log proves in any bank that it has digests of, SHA-1 included, for baselines of old firmware. An attestation reads SHA-256, or
// SHA-384 where the TPM says under the session that SHA-256 is off (Host.Fallback); SHA-1 alone can't attest ([ErrBank]), because who
// can choose what is measured can make two things with one SHA-1 digest. A log that lacks the bank that was read is [KindBank].
//
// Endorsement keys: RSA 2048 to 4096, P-256 and P-384 are known; those of the default templates L-1, L-2, H-3 and H-6 can attest. What is
// wrong with vendors' certificates and harmless is a [Workaround], with firmware's logs a [Quirk]: each is named where it is forgiven
// and has a test with a certificate or log that needs it, and one that goes beyond it.
//
// Sources: TCG PC Client Platform Firmware Profile ("PFP"), the Windows SDK header wbcl.h, hgsa.md section 9.3.
package evidence

import (
	"crypto"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
)

// PCRCount is the number of registers of a bank.
const PCRCount = 24

// Limits of what is parsed at all.
const (
	MaxLog         = 1 << 20 // bytes of a boot log
	MaxEvents      = 1 << 13 // events of a boot log
	MaxCertificate = 1 << 14 // bytes of an endorsement key certificate, padding included
	MaxBundle      = 4 << 20 // bytes of a certificate bundle
	MaxPolicy      = 4 << 20 // bytes of a code integrity policy
	MaxPlatform    = 1 << 18 // bytes of a platform identifier
)

// Bank is a PCR bank by its TCG algorithm identifier.
type Bank uint16

// The banks that can be proved.
const (
	SHA1   Bank = 0x0004
	SHA256 Bank = 0x000b
	SHA384 Bank = 0x000c
	SHA512 Bank = 0x000d
)

// Size is the length of a digest in bytes, 0 for a bank that is not known here.
func (b Bank) Size() int {
	switch b {
	case SHA1:
		return sha1.Size
	case SHA256:
		return sha256.Size
	case SHA384:
		return sha512.Size384
	case SHA512:
		return sha512.Size
	}
	return 0
}

// Hash is the bank's hash function, 0 for a bank that is not known here.
func (b Bank) Hash() crypto.Hash {
	switch b {
	case SHA1:
		return crypto.SHA1
	case SHA256:
		return crypto.SHA256
	case SHA384:
		return crypto.SHA384
	case SHA512:
		return crypto.SHA512
	}
	return 0
}

// String is the usual short name, like "sha256".
func (b Bank) String() string {
	switch b {
	case SHA1:
		return "sha1"
	case SHA256:
		return "sha256"
	case SHA384:
		return "sha384"
	case SHA512:
		return "sha512"
	}
	return fmt.Sprintf("algorithm 0x%04x", uint16(b))
}

// sum appends the digest of data to dst; the bank must be known.
func (b Bank) sum(dst, data []byte) []byte {
	switch b {
	case SHA1:
		s := sha1.Sum(data)
		return append(dst, s[:]...)
	case SHA256:
		s := sha256.Sum256(data)
		return append(dst, s[:]...)
	case SHA384:
		s := sha512.Sum384(data)
		return append(dst, s[:]...)
	default:
		s := sha512.Sum512(data)
		return append(dst, s[:]...)
	}
}

// PCRs are the 24 values of one bank, each of the bank's size.
type PCRs [PCRCount][]byte

// Kind says why evidence is refused. The strings are stable: they are stored and compared.
type Kind string

// The kinds of [Failure].
const (
	KindLog       Kind = "log-unreadable"       // the log is no TCG log, or is cut short
	KindBank      Kind = "bank-missing"         // the log has no digests of the wanted bank, or the PCR values are of another
	KindPCR       Kind = "pcr-mismatch"         // the log does not replay to the PCR value
	KindUnlogged  Kind = "pcr-extended-unseen"  // a PCR was extended and the log knows nothing of it
	KindDigest    Kind = "data-altered"         // an event's data does not hash to its digest
	KindType      Kind = "event-misplaced"      // an event type that has no business in its PCR or at this point of it
	KindContent   Kind = "event-malformed"      // an event's data does not have the form of its type
	KindConflict  Kind = "events-contradict"    // one thing that can have only one value was measured with two
	KindAfterCap  Kind = "event-after-cap"      // something was measured after the separator that ends the boot
	KindUncapped  Kind = "pcr-not-capped"       // the boot loader's separator is missing: anybody could have measured anything
	KindFirmware  Kind = "firmware-error"       // a separator says that firmware failed to measure
	KindVariables Kind = "variables-unmeasured" // PCR 7 lacks one of SecureBoot, PK, KEK, db, dbx
)

// Failure is the first reason why evidence proves nothing. PCR and Event are -1 where none is to blame; Event counts from 0.
type Failure struct {
	Kind   Kind
	PCR    int
	Event  int
	Detail string
}

// Error says everything the failure holds, in one line.
func (f *Failure) Error() string {
	s := string(f.Kind)
	if f.PCR >= 0 {
		s += fmt.Sprintf(", PCR %d", f.PCR)
	}
	if f.Event >= 0 {
		s += fmt.Sprintf(", event %d", f.Event)
	}
	return s + ": " + f.Detail
}

func fail(kind Kind, pcr, event int, format string, args ...any) *Failure {
	return &Failure{Kind: kind, PCR: pcr, Event: event, Detail: fmt.Sprintf(format, args...)}
}
