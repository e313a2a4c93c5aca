// Package quote is what a node says of its own boot and how somebody else checks it: the boot log in plain words, compared with the
// TPM's registers and with the boot that the image's builder signed; a quote of these registers by an attestation key; and the proof
// that this key lies in the TPM of a known endorsement key.
//
// Promise of [Explain]. Each register from 0 to 15 is either as the log and the node's own doing lead to, or named with what is wrong.
// Promise of [Unsigned]. It gives a reason why a boot is not a signed one only where the registers bear the log out.
// Promise of [Verify]. It says "genuine" only for a quote over the nonce that was asked for, of registers that the log leads to, by a key
// that [Finish] saw activated in the TPM of the endorsement key on record; and with an image only where the registers are those that
// were predicted from the image's own bytes.
//
// Limits: bytes in, values out; no files, sockets, clocks. The log's texts are quoted, not proved: digests of programs are compared, not
// the programs. What firmware says of itself (PCR 0 to 3) is as true as the firmware. A quote tells what booted, not what an attacker
// did to the running node afterwards. An endorsement key without a certificate proves only that it is the same TPM again.
package quote

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/tpm"
)

// MaxLog bounds a boot log, in bytes.
const MaxLog = evidence.MaxLog

// Registers is how many registers are looked at: PCR 0 to 15 of the SHA-256 bank.
const Registers = tpm.QuotePCRs

// Kinds of problems of a boot log.
const (
	KindLogMismatch = "boot-log-mismatch" // the registers hold what the log does not lead to
	KindLogMissing  = "boot-log-missing"  // there is no log that can be read
	KindUnpredicted = "boot-unpredicted"  // a register is not as in the policy that opened the volume
	KindNotCapped   = "boot-not-capped"   // PCR 11 does not show that the volume key is out of reach
)

// States of a register.
const (
	StateLogged  = "as logged"
	StateCapped  = "as logged, then capped by the node" // PCR 11
	StateKernel  = "as the kernel's own log tells"      // PCR 10, by IMA
	StateForgive = "as logged, but for a known quirk"   // evidence.Quirk
	StateDiffers = "not as logged"
)

// Register is one PCR. Values are lower-case hex.
type Register struct {
	PCR    int
	Value  string
	Logged string // what the log leads to
	State  string
	Quirk  string // where State is StateForgive
	Signed string // "", "as signed" or "not as signed": against the policy that opened the volume
}

// Event is one measurement in plain words.
type Event struct {
	PCR    int
	Type   string // the specification's, as people say it
	Digest string // lower-case hex; empty where nothing was measured
	What   string
}

// Report is what the log and the registers say together.
type Report struct {
	Registers []Register
	Events    []Event
	Problems  []policy.Problem
}

// Opened is the policy under which the volume opened in this boot; PCRs are lower-case hex.
type Opened struct {
	Policy  string
	Release uint64
	PCRs    map[int]string
}

// Logs are the two logs of a boot: the firmware's (TCG), and the kernel's own of PCR 10 (IMA), empty where the kernel has none.
type Logs struct {
	Firmware []byte `json:"firmware"`
	Kernel   []byte `json:"kernel,omitempty"`
}

// Explain compares the registers (number -> lower-case hex, 0 to 15) with the logs and, where opened is not nil, with the policy.
func Explain(logs Logs, pcrs map[int]string, opened *Opened) Report {
	var r Report
	kernel, err := parseKernelLog(logs.Kernel)
	if err != nil {
		r.problem(KindLogMismatch, err.Error(), mismatchRemedy)
	}
	l, f := evidence.ParseLog(logs.Firmware)
	var replayed evidence.PCRs
	if f == nil {
		replayed, f = l.Replay(evidence.SHA256)
	}
	if f != nil {
		r.problem(KindLogMissing, "the boot log can't be read: "+f.Error(), "update the machine's firmware; PCR values can still be compared with mkimage measure")
		return r
	}
	for i := range l.Events {
		e := Event{PCR: int(l.Events[i].PCR), Type: l.Events[i].Type.String(), Digest: digestOf(l, i), What: meaning(l, i)}
		if !fits(l, i) {
			r.problem(KindLogMismatch, fmt.Sprintf("event %d of the boot log, in PCR %d, does not say what was measured", i, e.PCR), mismatchRemedy)
			e.What = "not what was measured: " + e.What
		}
		r.Events = append(r.Events, e)
	}
	for _, e := range kernel {
		r.Events = append(r.Events, Event{PCR: 10, Type: "IMA", Digest: hex.EncodeToString(e.digest[:]), What: e.what()})
	}
	for pcr := range Registers {
		value, err := hex.DecodeString(pcrs[pcr])
		if err != nil || len(value) != sha256.Size {
			r.problem(KindLogMismatch, fmt.Sprintf("PCR %d could not be read", pcr), mismatchRemedy)
			continue
		}
		g := Register{PCR: pcr, Value: pcrs[pcr], Logged: hex.EncodeToString(replayed[pcr])}
		g.State, g.Quirk = state(l, &replayed, kernel, pcr, value)
		if g.State == StateDiffers {
			r.problem(KindLogMismatch, fmt.Sprintf("PCR %d holds %.16s.., and the boot log leads to %.16s..: something was measured that the log does not tell, or the log was changed", pcr, g.Value, g.Logged), mismatchRemedy)
		}
		r.Registers = append(r.Registers, g)
	}
	if opened != nil {
		r.compare(opened)
	}
	if slices.ContainsFunc(r.Registers, func(g Register) bool { return g.State == StateCapped }) {
		sum := sha256.Sum256([]byte(tpm.CapEvent))
		r.Events = append(r.Events, Event{PCR: 11, Type: "by the node", Digest: hex.EncodeToString(sum[:]), What: "init opened the data volume: from here on the TPM gives its key to nothing in this boot (not in the firmware's log)"})
	}
	return r
}

const mismatchRemedy = "restart the node; if it stays, compare node explain with another machine of the same kind before you trust this one"

func (r *Report) problem(kind, what, remedy string) {
	r.Problems = append(r.Problems, policy.Problem{Kind: kind, What: what, Remedy: remedy})
}

// compare checks the registers of the policy as they were when the volume opened, which is before the cap.
func (r *Report) compare(opened *Opened) {
	for i := range r.Registers {
		g := &r.Registers[i]
		want, ok := opened.PCRs[g.PCR]
		if !ok {
			continue
		}
		at := g.Value
		if g.State == StateCapped {
			at = g.Logged
		}
		if g.Signed = "as signed"; at != want {
			g.Signed = "not as signed"
			r.problem(KindUnpredicted, fmt.Sprintf("PCR %d is %.16s.., and policy %.64q that opened the volume says %.16s..", g.PCR, at, opened.Policy, want), mismatchRemedy)
		}
		if g.PCR == 11 && g.State != StateCapped {
			r.problem(KindNotCapped, "PCR 11 does not show the cap that init makes once the volume is open", "power the machine off; do not use this TPM")
		}
	}
}

// state says how a register came to its value.
func state(l *evidence.Log, replayed *evidence.PCRs, kernel []kernelEntry, pcr int, value []byte) (state, quirk string) {
	q, f := l.LeadsTo(pcr, value, evidence.SHA256)
	switch {
	case f == nil && q == "":
		return StateLogged, ""
	case f == nil:
		return StateForgive, string(q)
	case pcr == 11:
		if capped := tpm.Capped([32]byte(replayed[11])); bytes.Equal(capped[:], value) {
			return StateCapped, ""
		}
	case pcr == 10:
		unlogged := !slices.ContainsFunc(l.Events, func(e evidence.Event) bool { return e.PCR == 10 && e.Type != evidence.EventNoAction })
		if v := kernelRegister(kernel); unlogged && bytes.Equal(v[:], value) {
			return StateKernel, ""
		}
	}
	return StateDiffers, ""
}

// fits reports whether the event's text is what its digest is of, where that is known: of settings in PCR 7 and actions (authorities that a shim logs are not what it measured). Of
// most others the digest is of something that is not in the log.
func fits(l *evidence.Log, event int) bool {
	e := &l.Events[event]
	switch e.Type {
	case evidence.EventEFIAction, evidence.EventAction:
		return e.PCR != 4 && e.PCR != 5 || l.HashesTo(event, evidence.SHA256)
	case evidence.EventVariable:
		return e.PCR != 7 || l.HashesTo(event, evidence.SHA256)
	}
	return true
}

func digestOf(l *evidence.Log, event int) string {
	if l.Events[event].Type == evidence.EventNoAction {
		return ""
	}
	return hex.EncodeToString(l.Digest(event, evidence.SHA256))
}
