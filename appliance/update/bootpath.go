package update

import (
	"encoding/binary"
	"fmt"
	"strings"

	"guardhouse/appliance/disk"
	"guardhouse/appliance/evidence"
)

// BootPath is how firmware came to our image, by its log of PCR 4.
type BootPath struct {
	Slot  int    // which slot it was read from; -1 where the log doesn't say
	Clean bool   // our image was the first thing it tried
	Did   string // what it tried, for people
}

// ReadBootPath reads the firmware's event log (securityfs binary_bios_measurements). The log is only believed for what to try next: what
// the TPM gives out follows from its registers.
func ReadBootPath(raw []byte, d disk.BootDisk) (BootPath, error) {
	log, failure := evidence.ParseLog(raw)
	if failure != nil {
		return BootPath{Slot: -1}, fmt.Errorf("boot log: %v", failure)
	}
	p := BootPath{Slot: -1}
	var seen []evidence.EventType
	var did []string
	for _, e := range log.Events {
		if e.PCR != 4 {
			continue
		}
		seen = append(seen, e.Type)
		switch e.Type {
		case evidence.EventBootApp:
			p.Slot = -1
			if guid, ok := imagePartition(e.Data); ok {
				for i, s := range d.Slots {
					if s.GUID == guid {
						p.Slot = i
					}
				}
			}
			if p.Slot >= 0 {
				did = append(did, "image of "+EntryNames[p.Slot])
			} else {
				did = append(did, "an image elsewhere")
			}
		case evidence.EventAction, evidence.EventEFIAction:
			did = append(did, fmt.Sprintf("%.60q", e.Data))
		}
	}
	p.Did = strings.Join(did, ", ")
	p.Clean = len(seen) == 3 && (seen[0] == evidence.EventAction || seen[0] == evidence.EventEFIAction) && seen[1] == evidence.EventSeparator && seen[2] == evidence.EventBootApp
	return p, nil
}

// imagePartition finds the partition in a UEFI_IMAGE_LOAD_EVENT (PFP 10.2.3): three numbers, the length of the device path, and the path.
func imagePartition(b []byte) (guid [16]byte, ok bool) {
	const head = 4 * 8
	if len(b) < head {
		return guid, false
	}
	n := binary.LittleEndian.Uint64(b[24:])
	if n > uint64(len(b)-head) {
		return guid, false
	}
	for b = b[head : head+int(n)]; len(b) >= 4; {
		size := int(binary.LittleEndian.Uint16(b[2:]))
		if size < 4 || size > len(b) {
			return guid, false
		}
		if b[0] == 4 && b[1] == 1 && size == 42 && b[40] == 2 && b[41] == 2 { // hard drive, GPT
			return [16]byte(b[24:40]), true
		}
		b = b[size:]
	}
	return guid, false
}
