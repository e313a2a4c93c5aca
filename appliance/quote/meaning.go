package quote

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf16"

	"guardhouse/appliance/evidence"
)

// maxText bounds what is taken over from the log, in characters.
const maxText = 120

// Event types beside those of package evidence (PFP 10.4.1).
const (
	typePostCode   evidence.EventType = 0x00000001
	typeBootDriver evidence.EventType = 0x80000004
	typeRunDriver  evidence.EventType = 0x80000005
	typeBlob       evidence.EventType = 0x80000008
	typeHandoff    evidence.EventType = 0x80000009
	typeBlob2      evidence.EventType = 0x8000000a
	typeHandoff2   evidence.EventType = 0x8000000b
	typeHCRTM      evidence.EventType = 0x80000010
)

// sections says what the parts of the image are; the boot stub names them in PCR 11.
var sections = map[string]string{
	".linux": "the kernel", ".osrel": "the image's os-release: version and release number", ".cmdline": "the kernel's command line",
	".initrd": "the initial file system: every program of the node", ".splash": "a picture", ".dtb": "a device tree",
	".pcrpkey": "the key that signs which boots open the volume",
}

// variables says what firmware measures into PCR 7.
var variables = map[string]string{
	"PK": "the key that owns the firmware's Secure Boot settings (PK)", "KEK": "the keys that may change db and dbx (KEK)",
	"db": "the keys whose programs may start (db)", "dbx": "the programs that may not start (dbx)", "dbt": "time stamp authorities (dbt)", "dbr": "recovery keys (dbr)",
	"DeployedMode": "whether Secure Boot's mode is \"deployed\"", "AuditMode": "whether Secure Boot only records", "SecureBoot": "Secure Boot",
}

// meaning says in plain words what an event is. Text from the log is cleaned and bounded.
func meaning(l *evidence.Log, event int) string {
	e := &l.Events[event]
	switch e.Type {
	case evidence.EventNoAction:
		return "nothing measured: a note of the firmware" + quoted(text(e.Data))
	case evidence.EventSeparator:
		if len(e.Data) == 4 && binary.LittleEndian.Uint32(e.Data) == 1 {
			return "firmware reports that it could not measure"
		}
		return "end of what firmware does before it starts the boot entry"
	case evidence.EventEFIAction, evidence.EventAction:
		return action(string(e.Data))
	case evidence.EventVariable, evidence.EventBootVariable:
		return variable(e)
	case evidence.EventVariableAuthz:
		return "why firmware accepted the program it starts: " + clean(e.Authority())
	case evidence.EventBootApp:
		return "a program that firmware started from the boot entry" + quoted(imagePath(e.Data))
	case typeBootDriver, typeRunDriver:
		return "a driver that firmware loaded" + quoted(imagePath(e.Data))
	case evidence.EventGPT:
		return "the partition table of the boot disk"
	case evidence.EventCRTMVersion:
		return "the firmware's version" + quoted(text(e.Data))
	case typePostCode, typeBlob, typeBlob2, typeHCRTM:
		return "a part of the firmware" + quoted(text(e.Data))
	case typeHandoff, typeHandoff2:
		return "tables that firmware hands to the operating system"
	case evidence.EventIPL:
		return stub(l, event)
	case evidence.EventTag:
		return tagged(e)
	}
	return clean(l.Describe(event))
}

func action(s string) string {
	switch {
	case strings.HasPrefix(s, "Calling EFI Application"):
		return "firmware starts a boot entry"
	case strings.HasPrefix(s, "Returning from EFI Application"):
		return "the boot entry before ended or failed: firmware tries another one"
	case s == "Exit Boot Services Invocation":
		return "the kernel takes over from the firmware"
	case s == "Exit Boot Services Returned with Success":
		return "the kernel has taken over"
	}
	return "firmware says" + quoted(s)
}

func variable(e *evidence.Event) string {
	name, contents, ok := e.Variable()
	if !ok {
		return "a setting of the firmware that can't be read"
	}
	if e.PCR != 7 {
		return "a boot setting of the firmware" + quoted(name)
	}
	what, known := variables[name]
	switch {
	case !known:
		return "a setting of Secure Boot" + quoted(name)
	case name == "SecureBoot" && len(contents) == 1:
		return what + map[bool]string{true: " is on", false: " is off"}[contents[0] == 1]
	case len(contents) == 0:
		return what + ": none"
	}
	return fmt.Sprintf("%s: %d bytes", what, len(contents))
}

// stub is what systemd's boot stub measures: of each section the name, then the contents, both with the name as their text; what it finds
// beside the image goes into PCR 12 and 13.
func stub(l *evidence.Log, event int) string {
	e := &l.Events[event]
	name := text(e.Data)
	switch e.PCR {
	case 11:
		what, known := sections[name]
		if !known {
			return "a part of the image that this node does not know" + quoted(name)
		}
		if event > 0 && l.Events[event-1].PCR == 11 && l.Events[event-1].Type == evidence.EventIPL && text(l.Events[event-1].Data) == name {
			return "the image's " + name + ": " + what
		}
		return "the image has a part " + name
	case 12:
		return "something from beside the image, such as another command line; a signed boot has none" + quoted(name)
	case 13:
		return "a system extension from beside the image; a signed boot has none" + quoted(name)
	case 9:
		return "the initial file system or command line as the kernel's own loader took it" + quoted(name)
	case 8:
		return "a command of a boot loader" + quoted(name)
	}
	return "a step of the boot loader" + quoted(name)
}

// tagged is what Linux's own loader measures into PCR 9: an identifier, a length, a text.
func tagged(e *evidence.Event) string {
	if e.PCR == 9 && len(e.Data) > 8 {
		switch s := text(e.Data[8:]); {
		case strings.Contains(s, "initrd"):
			return "the initial file system, measured by the kernel"
		case strings.Contains(s, "LoadOptions"):
			return "the kernel's command line, measured by the kernel"
		}
	}
	return "a note of the operating system's loader"
}

// imagePath is the file in the device path of a UEFI_IMAGE_LOAD_EVENT (PFP 10.2.3): four 64-bit numbers, then nodes of type, subtype,
// length. Empty where there is none.
func imagePath(b []byte) string {
	if len(b) < 32 {
		return ""
	}
	var parts []string
	for rest := b[32:]; len(rest) >= 4; {
		n := int(binary.LittleEndian.Uint16(rest[2:]))
		if n < 4 || n > len(rest) {
			break
		}
		if rest[0] == 4 && rest[1] == 4 { // media device path, file path
			parts = append(parts, text(rest[4:n]))
		}
		rest = rest[n:]
	}
	return strings.Join(parts, "")
}

// text is what people can read of bytes that are ASCII or UTF-16LE up to a NUL; empty where that is nothing.
func text(b []byte) string {
	b = b[:min(len(b), 4*maxText)]
	var s string
	if len(b) >= 4 && b[1] == 0 && b[3] == 0 {
		var u []uint16
		for i := 0; i+1 < len(b); i += 2 {
			c := binary.LittleEndian.Uint16(b[i:])
			if c == 0 {
				break
			}
			u = append(u, c)
		}
		s = string(utf16.Decode(u))
	} else {
		head, _, _ := bytes.Cut(b, []byte{0})
		s = string(head)
	}
	for _, r := range s {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return ""
		}
	}
	return clean(s)
}

func clean(s string) string {
	r := []rune(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s))
	if len(r) > maxText {
		return string(r[:maxText-2]) + ".."
	}
	return string(r)
}

func quoted(s string) string {
	if s = clean(s); s == "" {
		return ""
	}
	return fmt.Sprintf(" %q", s)
}
