package measure

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"guardhouse/images/keys"
)

// SecureBootPCR is where firmware measures which keys it trusts and which of them it used.
const SecureBootPCR = 7

// Firmware is what a machine with Secure Boot on holds: the variables PK, KEK, db and dbx in this order, and the db entry that verifies
// our image.
type Firmware struct {
	Variables []keys.Variable
	Authority []byte // EFI_SIGNATURE_DATA
}

// FirmwareOf is a machine that trusts one key set, with this content of dbx (nil: never written).
func FirmwareOf(set *keys.Set, dbx []byte) *Firmware {
	return &Firmware{Variables: set.Variables(dbx), Authority: set.Authority()}
}

// FirmwareIn is a machine that trusts as t says, with this content of dbx, and an image that signers have signed in this order: firmware
// measures the db entry of the first signature that it accepts. nil means that it does not start the image.
func FirmwareIn(t keys.Trust, dbx []byte, signers ...*keys.Set) *Firmware {
	var first *keys.Set
	for _, s := range signers {
		if keys.Forbids(dbx, s) {
			return nil
		}
		if first == nil && slices.ContainsFunc(t.DB, func(d *keys.Set) bool { return d.Fingerprint(keys.DB) == s.Fingerprint(keys.DB) }) {
			first = s
		}
	}
	if first == nil {
		return nil
	}
	return &Firmware{Variables: t.Variables(dbx), Authority: first.Authority()}
}

// secureBoot adds the events of PCR 7: TCG PC Client Platform Firmware Profile 3.3.4.8. The authority comes after the separator because
// firmware verifies the image once it has left its own code.
func (p *Prediction) secureBoot(f *Firmware) {
	on := keys.Variable{Name: "SecureBoot", GUID: keys.GlobalVariable, Data: []byte{1}}
	for _, v := range append([]keys.Variable{on}, f.Variables...) {
		p.add(SecureBootPCR, "EV_EFI_VARIABLE_DRIVER_CONFIG "+v.Name, variableDigest(v))
	}
	p.add(SecureBootPCR, "EV_SEPARATOR 00000000", sha256.Sum256(make([]byte, 4)))
	p.add(SecureBootPCR, "EV_EFI_VARIABLE_AUTHORITY db", variableDigest(keys.Variable{Name: "db", GUID: keys.SecurityDatabase, Data: f.Authority}))
}

// PCR7 is what a machine measures of its Secure Boot, whatever the image.
func PCR7(f *Firmware) [32]byte {
	var p Prediction
	p.secureBoot(f)
	return Replay(p.Events, SecureBootPCR)
}

// variableDigest hashes a UEFI_VARIABLE_DATA (same profile, 10.2.6).
func variableDigest(v keys.Variable) [32]byte {
	name := keys.UTF16(v.Name)
	b := append([]byte(nil), v.GUID[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(name)/2))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(v.Data)))
	return sha256.Sum256(append(append(b, name...), v.Data...))
}
