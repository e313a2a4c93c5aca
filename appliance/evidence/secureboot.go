package evidence

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"unicode/utf16"
)

// efiGlobal is EFI_GLOBAL_VARIABLE, the owner of SecureBoot, PK and KEK; imageSecurity owns db and dbx.
const (
	efiGlobal     = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
	imageSecurity = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
)

// required lists what firmware measures into PCR 7 at every boot, existing or not (PFP 3.3.4.8).
var required = [...]struct{ name, guid string }{
	{"SecureBoot", efiGlobal}, {"PK", efiGlobal}, {"KEK", efiGlobal}, {"db", imageSecurity}, {"dbx", imageSecurity},
}

// deviceVariable holds the certificates that devices are checked with; it has event types of its own (PFP 1.06, SPDM).
const deviceVariable = "devdb"

// Texts that firmware measures into PCR 7 (PFP 3.3.4.8).
const (
	textDebug = "UEFI Debug Mode"
	textNoDMA = "DMA Protection Disabled"
)

// secureBoot reads PCR 7. Configuration comes before the separator, authorities after it; drivers in firmware may use a db entry before.
// The data says which of both it is, so an event can't be relabelled: all of required must be there exactly once as configuration.
func (p *prover) secureBoot(e *Event) *Failure {
	switch e.Type {
	case EventSeparator:
		ok, failed := separator(e)
		if failed {
			return p.fail(KindFirmware, "firmware reports that a measurement failed")
		}
		if !ok {
			return p.fail(KindContent, "not a separator")
		}
		if p.capped[7] {
			return p.fail(KindAfterCap, "a second separator")
		}
		p.capped[7] = true
		return nil
	case EventEFIAction:
		return p.action(e)
	}
	name, guid, data, rest, ok := efiVariable(e.Data)
	if !ok || rest > 0 && !p.shim {
		return p.fail(KindContent, "not a UEFI variable")
	}
	device := e.Type == EventDevicePolicy || e.Type == EventDeviceAuthz
	if device != (name == deviceVariable) {
		return p.fail(KindType, "%q measured by an event of type 0x%08x", name, uint32(e.Type))
	}
	if e.Type == EventVariable || e.Type == EventDevicePolicy {
		return p.variable(name, guid, data)
	}
	if !p.capped[7] && !device && (name != "db" || guid != imageSecurity) {
		return p.fail(KindType, "authority %q before the separator", name)
	}
	if len(p.facts.Authorities) == 64 {
		return p.fail(KindContent, "more than 64 authorities")
	}
	sum := sha256.Sum256(data)
	p.facts.Authorities = append(p.facts.Authorities, Authority{Variable: name, GUID: guid, SHA256: sum[:], Event: p.index})
	return nil
}

func (p *prover) action(e *Event) *Failure {
	id := settingCount
	switch string(e.Data) {
	case textDebug, textDebug + "\x00":
		id = UEFIDebug
	case textNoDMA, textNoDMA + "\x00":
		id = DMAProtectionOff
	default:
		return p.fail(KindContent, "unknown action %q", clip(e.Data))
	}
	p.facts.Settings[id].add(1, 7, p.index)
	return nil
}

func clip(b []byte) []byte { return b[:min(len(b), 64)] }

func (p *prover) variable(name, guid string, data []byte) *Failure {
	if p.capped[7] {
		return p.fail(KindAfterCap, "variable %q measured after the separator", name)
	}
	if len(p.facts.Variables) == 16 {
		return p.fail(KindContent, "more than 16 variables")
	}
	for i := range p.facts.Variables {
		if v := &p.facts.Variables[i]; v.Name == name && v.GUID == guid {
			return p.fail(KindConflict, "variable %q measured twice", name)
		}
	}
	sum := sha256.Sum256(data)
	p.facts.Variables = append(p.facts.Variables, Variable{Name: name, GUID: guid, Size: len(data), SHA256: sum[:], Event: p.index})
	if name != "SecureBoot" || guid != efiGlobal {
		return nil
	}
	switch {
	case len(data) == 0 || len(data) == 1 && data[0] == 0:
		p.facts.Settings[SecureBoot].add(0, 7, p.index)
	case len(data) == 1 && data[0] == 1:
		p.facts.Settings[SecureBoot].add(1, 7, p.index)
	default:
		return p.fail(KindContent, "SecureBoot is %x", clip(data))
	}
	return nil
}

func (p *prover) variablesComplete() *Failure {
	for _, want := range required {
		found := false
		for i := range p.facts.Variables {
			found = found || p.facts.Variables[i].Name == want.name && p.facts.Variables[i].GUID == want.guid
		}
		if !found {
			return fail(KindVariables, 7, -1, "firmware did not measure the variable %s", want.name)
		}
	}
	if !p.capped[7] {
		return fail(KindUncapped, 7, -1, "firmware's separator is missing")
	}
	return nil
}

// efiVariable reads UEFI_VARIABLE_DATA (PFP 10.4.3): GUID, length of the name in characters, length of the contents, both u64, then both.
// rest counts the bytes after them.
func efiVariable(b []byte) (name, guid string, data []byte, rest int, ok bool) {
	if len(b) < 32 {
		return "", "", nil, 0, false
	}
	chars, size := binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])
	if chars > 128 || size > MaxLog || uint64(len(b)) < 32+2*chars+size {
		return "", "", nil, 0, false
	}
	end := 32 + 2*chars + size
	return utf16String(b[32 : 32+2*chars]), guidString(b), b[32+2*chars : end], len(b) - int(end), true
}

// guidString formats the 16 bytes of a GUID, whose first three groups are little-endian.
func guidString(b []byte) string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), b[8:10], b[10:16])
}

// utf16String decodes little-endian UTF-16 and drops what follows the first NUL.
func utf16String(b []byte) string {
	u := make([]uint16, 0, len(b)/2)
	for i := 0; i+1 < len(b); i += 2 {
		c := binary.LittleEndian.Uint16(b[i:])
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return string(utf16.Decode(u))
}
