package evidence

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// typeNames are the events that people get to see most, without the EV_ of the specification.
var typeNames = map[EventType]string{
	EventNoAction: "no action", EventSeparator: "separator", EventAction: "action", EventTag: "tagged", EventCRTMVersion: "CRTM version",
	EventCompactHash: "compact hash", EventIPL: "IPL", EventVariable: "UEFI variable", EventBootVariable: "boot variable",
	EventBootApp: "boot application", EventGPT: "partition table", EventEFIAction: "firmware action", EventVariableAuthz: "authority",
	EventDevicePolicy: "device policy", EventDeviceAuthz: "device authority", 0x80000004: "boot driver", 0x80000005: "runtime driver",
	0x80000008: "firmware blob", 0x8000000a: "firmware blob", 0x00000001: "POST code", 0x00000007: "CRTM contents", 0x00000009: "microcode",
}

// String is a short name, or the number.
func (t EventType) String() string {
	if s, ok := typeNames[t]; ok {
		return s
	}
	return fmt.Sprintf("event type 0x%08x", uint32(t))
}

// Describe says in one line of at most some hundred characters what an event is. It is for findings and for people: nothing in it is
// proved, and text from the log is quoted.
func (l *Log) Describe(event int) string {
	if event < 0 || event >= len(l.Events) {
		return "no such event"
	}
	e := &l.Events[event]
	s := fmt.Sprintf("PCR %d, %s", e.PCR, e.Type)
	if e.PCR == trustPoint {
		s = "unmeasured, " + e.Type.String()
	}
	switch e.Type {
	case EventVariable, EventBootVariable, EventDevicePolicy:
		if name, _, data, _, ok := efiVariable(e.Data); ok {
			return fmt.Sprintf("%s %q, %d bytes", s, name, len(data))
		}
	case EventVariableAuthz, EventDeviceAuthz:
		return s + " " + describeAuthority(e.Data)
	case EventEFIAction, EventAction:
		return fmt.Sprintf("%s %q", s, clip(e.Data))
	case EventSeparator, EventCompactHash:
		return fmt.Sprintf("%s %x", s, clip(e.Data))
	case EventTag:
		var parts []string
		if others := describeTagged(e.Data, 0, &parts); others > 0 {
			parts = append(parts, fmt.Sprintf("%d more", others))
		}
		return s + ": " + strings.Join(parts, ", ")
	}
	return fmt.Sprintf("%s, %d bytes", s, len(e.Data))
}

// describeAuthority names the certificate: a db entry is its owner (16 bytes) and the certificate, a shim's is the certificate alone.
func describeAuthority(b []byte) string {
	name, _, data, _, ok := efiVariable(b)
	if !ok {
		return "unreadable"
	}
	for _, skip := range []int{16, 0} {
		if len(data) > skip && data[skip] == 0x30 {
			if c, err := ParseCertificate(data[skip:]); err == nil {
				return fmt.Sprintf("%q: %q", name, c.Name())
			}
		}
	}
	return fmt.Sprintf("%q, %d bytes", name, len(data))
}

// describeTagged lists settings and keys, and counts the rest, as far as maxParts and maxDepth allow.
func describeTagged(data []byte, depth int, parts *[]string) (others int) {
	const maxParts = 40
	for len(data) >= 8 && len(*parts) < maxParts {
		id, n := binary.LittleEndian.Uint32(data), binary.LittleEndian.Uint32(data[4:])
		if uint64(n) > uint64(len(data)-8) {
			return others
		}
		payload := data[8 : 8+n]
		data = data[8+n:]
		switch setting, known := settingOf[id]; {
		case id == sipaTrustBoundary && depth < maxDepth:
			others += describeTagged(payload, depth+1, parts)
		case id == sipaIDK:
			*parts = append(*parts, "identity key for encryption")
		case id == sipaIDKS:
			*parts = append(*parts, "identity key for signing")
		case id == sipaSIPolicy:
			*parts = append(*parts, "code integrity policy")
		case id == sipaDumpKey:
			*parts = append(*parts, "dump encryption key")
		case known:
			if v, ok := number(payload); ok {
				*parts = append(*parts, fmt.Sprintf("%s=%d", setting, v))
			}
		default:
			others++
		}
	}
	return others
}

// Variable is the name and the contents of the UEFI variable that an event is about. Nothing in it is proved.
func (e *Event) Variable() (name string, contents []byte, ok bool) {
	name, _, contents, _, ok = efiVariable(e.Data)
	return name, contents, ok
}

// Authority names the certificate, or what else stands for it, by which firmware accepted a program.
func (e *Event) Authority() string { return describeAuthority(e.Data) }
