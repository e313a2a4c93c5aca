package main

import (
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/hgsa"
)

// banks are those of the boot log that hostsim writes, as on most machines of the last years.
var banks = []evidence.Bank{evidence.SHA1, evidence.SHA256}

// boot is what a Windows-like start of a host measures. Its zero values are those of goodBoot.
type boot struct {
	settings  map[evidence.SettingID]uint64
	dbx       string
	authority string
	ciPolicy  []byte // as in sipolicy.bin
	dumpKey   []byte // digest
	idk, idks *rsa.PublicKey
}

// goodBoot satisfies every policy, if the host's baseline, code integrity policy and dump key are registered.
func (h *tpmHost) goodBoot() *boot {
	key := sha256.Sum256(h.dump)
	b := &boot{settings: map[evidence.SettingID]uint64{}, dbx: "revocations of the lab", authority: "lab boot authority", ciPolicy: h.ciPolicy,
		dumpKey: key[:], idk: &h.vsm.PublicKey, idks: &h.vsmSigning.PublicKey}
	for _, id := range []evidence.SettingID{evidence.SecureBoot, evidence.CodeIntegrity, evidence.PageFileEncryption, evidence.HibernationDisabled,
		evidence.DumpsDisabled, evidence.DumpEncryption, evidence.VBSRequired, evidence.VBSSecureBoot, evidence.VBSIOMMU, evidence.VSMLaunch,
		evidence.HVCI, evidence.HypervisorLaunch, evidence.HypervisorIOMMU, evidence.TransferControl} {
		b.settings[id] = 1
	}
	for _, id := range []evidence.SettingID{evidence.BootDebug, evidence.KernelDebug, evidence.HypervisorDebug, evidence.TestSigning, evidence.FlightSigning,
		evidence.SafeMode, evidence.WinPE} {
		b.settings[id] = 0
	}
	b.settings[evidence.BitLockerUnlock] = 4 // by the TPM
	return b
}

// Where and how wide each setting is measured. The boot manager's go into PCR 12, the loader's into 12 and 13.
var (
	managerSettings = []evidence.SettingID{evidence.BootDebug, evidence.TransferControl, evidence.BitLockerUnlock}
	wideSettings    = map[evidence.SettingID]int{evidence.TransferControl: 4, evidence.BitLockerUnlock: 4, evidence.VSMLaunch: 8, evidence.HVCI: 8,
		evidence.HypervisorLaunch: 8, evidence.HypervisorIOMMU: 8}
)

// write measures the whole start.
func (b *boot) write() (*evidence.Writer, error) {
	w := evidence.NewWriter(banks...)
	b.firmware(w)
	if err := b.loader(w); err != nil {
		return nil, err
	}
	for pcr := 12; pcr <= 14; pcr++ {
		w.Separator(pcr)
	}
	return w, nil
}

func (b *boot) firmware(w *evidence.Writer) {
	w.Event(0, evidence.EventCRTMVersion, []byte{'1', 0, 0, 0})
	w.Event(7, evidence.EventVariable, evidence.UEFIVariable("SecureBoot", []byte{byte(b.settings[evidence.SecureBoot])}))
	for _, v := range []string{"PK", "KEK", "db"} {
		w.Event(7, evidence.EventVariable, evidence.UEFIVariable(v, []byte(v+" of the lab")))
	}
	w.Event(7, evidence.EventVariable, evidence.UEFIVariable("dbx", []byte(b.dbx)))
	for pcr := range 8 {
		w.Separator(pcr)
	}
	w.Event(7, evidence.EventVariableAuthz, evidence.UEFIVariable("db", []byte(b.authority)))
	w.Measure(4, evidence.EventBootApp, []byte("boot manager"), []byte(`\EFI\Microsoft\Boot\bootmgfw.efi`))
}

func (b *boot) loader(w *evidence.Writer) error {
	w.Event(11, evidence.EventCompactHash, []byte{0x10, 0, 0, 0}) // disk keys are open
	var manager, system [][]byte
	for _, id := range evidence.SettingIDs() {
		v, ok := b.settings[id]
		if !ok || id.SIPA() == 0 {
			continue
		}
		size := max(1, wideSettings[id])
		if slices.Contains(managerSettings, id) {
			manager = append(manager, id.Tagged(v, size))
		} else {
			system = append(system, id.Tagged(v, size))
		}
	}
	for i, k := range []*rsa.PublicKey{b.idk, b.idks} {
		if k == nil {
			continue
		}
		payload, err := hgsa.EncodePublicKey(k, hgsa.KeySIPA)
		if err != nil {
			return err
		}
		system = append(system, evidence.TaggedIDK(payload, i == 1))
	}
	if b.ciPolicy != nil {
		digest := sha256.Sum256(b.ciPolicy)
		system = append(system, evidence.TaggedPolicy("lab policy", [4]uint16{10, 0, 0, 1}, evidence.SHA256, digest[:]))
	}
	if b.dumpKey != nil {
		system = append(system, evidence.TaggedDumpKey(b.dumpKey))
	}
	w.Event(12, evidence.EventTag, evidence.TrustBoundary(manager...))
	all := evidence.TrustBoundary(system...)
	w.Event(12, evidence.EventTag, all)
	w.Event(13, evidence.EventTag, all)
	w.Event(14, evidence.EventTag, evidence.TrustBoundary(evidence.Tagged(0x00060002, 1))) // an authority, which gives no fact
	w.Event(11, evidence.EventCompactHash, []byte{0xff, 0xff, 0, 0})                       // and closed
	return nil
}

// newCIPolicy makes a small binary code integrity policy (format 5) that allows nothing; only its digest counts here.
func newCIPolicy(name string, id [16]byte) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, 5)
	b = append(append(b, id[:]...), id[:]...)
	b = le.AppendUint32(b, 1<<31) // valid, enforced
	b = append(b, make([]byte, 16)...)
	for _, v := range []uint16{1, 0, 0, 10} {
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(b, uint32(len(b)))
	b = append(b, make([]byte, 12)...) // update signers, CI signers, hypervisor options
	b = le.AppendUint32(b, 1)          // settings
	for _, s := range []string{"PolicyInfo", "Information", "Name"} {
		b = appendText(b, s)
	}
	b = appendText(le.AppendUint32(b, 3), name)
	return le.AppendUint32(le.AppendUint32(le.AppendUint32(b, 3), 4), 5)
}

// appendText writes a length and UTF-16, padded to 4 bytes.
func appendText(b []byte, s string) []byte {
	u := utf16.Encode([]rune(s))
	b = binary.LittleEndian.AppendUint32(b, uint32(2*len(u)))
	for _, c := range u {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return append(b, make([]byte, -len(b)&3)...)
}

// misbehaviour is one way of not being a good host. boot changes what is measured; log changes what is sent; late extends a PCR that the
// log does not tell of.
type misbehaviour struct {
	kind, help string
	boot       func(*boot)
	log        func([]byte) ([]byte, error)
	late       bool
	otherEK    bool // present a key that is not this TPM's
}

func with(id evidence.SettingID, v uint64) func(*boot) {
	return func(b *boot) { b.settings[id] = v }
}

var misbehaviours = []misbehaviour{
	{kind: "", help: "a good host"},
	{kind: "secure-boot", help: "Secure Boot is off", boot: with(evidence.SecureBoot, 0)},
	{kind: "secure-boot-settings", help: "another dbx than in the baseline", boot: func(b *boot) { b.dbx = "no revocations" }},
	{kind: "authority", help: "the boot manager was allowed by another certificate than in the baseline", boot: func(b *boot) { b.authority = "somebody else" }},
	{kind: "debug", help: "the kernel debugger is on", boot: with(evidence.KernelDebug, 1)},
	{kind: "boot-debug", help: "the boot debugger is on", boot: with(evidence.BootDebug, 1)},
	{kind: "ci-policy", help: "another code integrity policy", boot: func(b *boot) { b.ciPolicy = append(slices.Clone(b.ciPolicy), 0) }},
	{kind: "no-ci-policy", help: "no code integrity policy", boot: func(b *boot) { b.ciPolicy = nil }},
	{kind: "test-signing", help: "test signing is on", boot: with(evidence.TestSigning, 1)},
	{kind: "hvci", help: "code integrity is not enforced by the hypervisor", boot: with(evidence.HVCI, 0)},
	{kind: "resumed", help: "resumed from hibernation", boot: with(evidence.TransferControl, 2)},
	{kind: "no-idk", help: "no VSM identity key", boot: func(b *boot) { b.idk, b.idks = nil, nil }},
	{kind: "no-idks", help: "no VSM identity key for signing", boot: func(b *boot) { b.idks = nil }},
	{kind: "vsm", help: "VSM does not run", boot: with(evidence.VSMLaunch, 0)},
	{kind: "iommu", help: "VSM starts without requiring an IOMMU", boot: with(evidence.VBSIOMMU, 0)},
	{kind: "pagefile", help: "the page file is not encrypted", boot: with(evidence.PageFileEncryption, 0)},
	{kind: "bitlocker", help: "the system volume is not encrypted", boot: with(evidence.BitLockerUnlock, 0)},
	{kind: "hibernation", help: "hibernation is possible", boot: with(evidence.HibernationDisabled, 0)},
	{kind: "dumps", help: "crash dumps are written, encrypted to the registered key", boot: with(evidence.DumpsDisabled, 0)},
	{kind: "dump-encryption", help: "crash dumps are written, not encrypted", boot: func(b *boot) {
		b.settings[evidence.DumpsDisabled], b.settings[evidence.DumpEncryption], b.dumpKey = 0, 0, nil
	}},
	{kind: "dump-key", help: "crash dumps are encrypted to another key", boot: func(b *boot) {
		b.settings[evidence.DumpsDisabled], b.dumpKey = 0, make([]byte, 32)
	}},
	{kind: "no-dump-events", help: "an old host that does not measure the dump settings", boot: func(b *boot) {
		delete(b.settings, evidence.DumpsDisabled)
		delete(b.settings, evidence.DumpEncryption)
		b.dumpKey = nil
	}},
	{kind: "log-edited", help: "one byte of the log is changed after the boot", log: editLog},
	{kind: "log-relabelled", help: "one event of the log gets another type", log: relabelLog},
	{kind: "log-cut", help: "the log lacks its end", log: func(l []byte) ([]byte, error) { return l[:len(l)*2/3], nil }},
	{kind: "extended", help: "a PCR is extended after the log", late: true},
	{kind: "other-ek", help: "the host claims the endorsement key in --dir, and its TPM has another", otherEK: true},
}

func findMisbehaviour(kind string) (misbehaviour, error) {
	var kinds []string
	for _, m := range misbehaviours {
		if m.kind == kind {
			return m, nil
		}
		kinds = append(kinds, m.kind)
	}
	return misbehaviour{}, fmt.Errorf("%w: --misbehave %q is none of%s", errUsage, kind, strings.Join(kinds, " "))
}

// editLog turns a setting in the log's last measured settings.
func editLog(log []byte) ([]byte, error) {
	at := strings.LastIndex(string(log), string(evidence.DumpsDisabled.Tagged(1, 1)))
	if at < 0 {
		return nil, fmt.Errorf("there is nothing to edit in this log")
	}
	log = slices.Clone(log)
	log[at+8] ^= 1
	return log, nil
}

// relabelLog makes the last tagged event a separator: the digests still fit.
func relabelLog(log []byte) ([]byte, error) {
	head := append([]byte{13, 0, 0, 0}, byte(evidence.EventTag), 0, 0, 0)
	at := strings.LastIndex(string(log), string(head))
	if at < 0 {
		return nil, fmt.Errorf("there is no tagged event in this log")
	}
	log = slices.Clone(log)
	log[at+4] = byte(evidence.EventSeparator)
	return log, nil
}
