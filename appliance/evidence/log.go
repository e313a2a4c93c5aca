package evidence

import (
	"bytes"
	"encoding/binary"
)

// EventType is the type of a TCG event (PFP 10.4.1).
type EventType uint32

// The event types that matter here.
const (
	EventNoAction      EventType = 0x00000003
	EventSeparator     EventType = 0x00000004
	EventAction        EventType = 0x00000005
	EventTag           EventType = 0x00000006
	EventCRTMVersion   EventType = 0x00000008
	EventCompactHash   EventType = 0x0000000c
	EventIPL           EventType = 0x0000000d
	EventVariable      EventType = 0x80000001 // EV_EFI_VARIABLE_DRIVER_CONFIG
	EventBootVariable  EventType = 0x80000002
	EventBootApp       EventType = 0x80000003
	EventGPT           EventType = 0x80000006
	EventEFIAction     EventType = 0x80000007
	EventVariableAuthz EventType = 0x800000e0 // EV_EFI_VARIABLE_AUTHORITY
	EventDevicePolicy  EventType = 0x800000e3 // EV_EFI_SPDM_DEVICE_POLICY
	EventDeviceAuthz   EventType = 0x800000e4 // EV_EFI_SPDM_DEVICE_AUTHORITY
)

// Event is one entry of a log. Its slices are parts of the log.
type Event struct {
	PCR  uint32 // as in the log; 0xffffffff for Windows' unmeasured trust point
	Type EventType
	Data []byte

	digests []byte // crypto-agile: algorithm and digest, repeated; legacy: one SHA-1 digest
}

// Log is a parsed boot log.
type Log struct {
	Events  []Event
	Agile   bool   // crypto-agile, else SHA-1 legacy
	Banks   []Bank // with a digest in every measured event, in the log's order; unknown algorithms included
	Padding int    // bytes of 0x00 or 0xff after the last event, which some firmware leaves there

	sizes []uint16 // of the banks' digests
}

// trustPoint is the PCR index of what Windows appends to the log without measuring it.
const trustPoint = 0xffffffff

const specIDSignature = "Spec ID Event03\x00"

// ParseLog reads a TCG event log, SHA-1 legacy (PFP 10.2.1) or crypto-agile (10.2.2). It checks form only. The events alias raw.
func ParseLog(raw []byte) (*Log, *Failure) {
	if len(raw) > MaxLog {
		return nil, fail(KindLog, -1, -1, "%d bytes, more than %d", len(raw), MaxLog)
	}
	l := &Log{Banks: []Bank{SHA1}, sizes: []uint16{20}, Events: make([]Event, 0, 64)}
	for rest := raw; len(rest) > 0; {
		if l.Padding = padding(rest); l.Padding > 0 {
			break
		}
		if len(l.Events) == MaxEvents {
			return nil, fail(KindLog, -1, MaxEvents, "more than %d events", MaxEvents)
		}
		var e Event
		var ok bool
		if l.Agile {
			e, rest, ok = l.agileEvent(rest)
		} else {
			e, rest, ok = legacyEvent(rest)
		}
		if !ok {
			return nil, fail(KindLog, -1, len(l.Events), "cut short, or not an event")
		}
		if e.PCR >= PCRCount && (e.Type != EventNoAction || e.PCR != trustPoint) {
			return nil, fail(KindLog, -1, len(l.Events), "there is no PCR %d", e.PCR)
		}
		l.Events = append(l.Events, e)
		if len(l.Events) == 1 && e.Type == EventNoAction && bytes.HasPrefix(e.Data, []byte(specIDSignature)) {
			if f := l.specID(e.Data); f != nil {
				return nil, f
			}
		}
	}
	if len(l.Events) == 0 {
		return nil, fail(KindLog, -1, -1, "no events")
	}
	return l, nil
}

// padding is the length of rest if nothing but one repeated filler byte follows and it can't begin an event: an all-zero entry would be
// an event of type 0 (EV_PREBOOT_CERT) without digest, which no firmware writes.
func padding(rest []byte) int {
	b := rest[0]
	if b != 0 && b != 0xff {
		return 0
	}
	for _, c := range rest {
		if c != b {
			return 0
		}
	}
	return len(rest)
}

func legacyEvent(b []byte) (Event, []byte, bool) {
	if len(b) < 32 {
		return Event{}, nil, false
	}
	e := Event{PCR: binary.LittleEndian.Uint32(b), Type: EventType(binary.LittleEndian.Uint32(b[4:])), digests: b[8:28]}
	n := binary.LittleEndian.Uint32(b[28:])
	if uint64(n) > uint64(len(b)-32) {
		return Event{}, nil, false
	}
	e.Data = b[32 : 32+n]
	return e, b[32+n:], true
}

// specID reads the first event of a crypto-agile log: signature, platform class, versions, size of a native word, then the algorithms
// with their sizes, then vendor bytes (PFP 10.4.5.1).
func (l *Log) specID(d []byte) *Failure {
	if len(d) < 28 {
		return fail(KindLog, 0, 0, "specification event of %d bytes", len(d))
	}
	n := binary.LittleEndian.Uint32(d[24:])
	if n == 0 || n > 8 || len(d) < 28+int(n)*4+1 {
		return fail(KindLog, 0, 0, "specification event with %d algorithms", n)
	}
	l.Agile, l.Banks, l.sizes = true, l.Banks[:0], l.sizes[:0]
	for i := range int(n) {
		a := Bank(binary.LittleEndian.Uint16(d[28+4*i:]))
		size := binary.LittleEndian.Uint16(d[30+4*i:])
		if known := a.Size(); known != 0 && known != int(size) || size == 0 || size > 128 {
			return fail(KindLog, 0, 0, "%s digests of %d bytes", a, size)
		}
		for _, b := range l.Banks {
			if a == b {
				return fail(KindLog, 0, 0, "%s listed twice", a)
			}
		}
		l.Banks, l.sizes = append(l.Banks, a), append(l.sizes, size)
	}
	if vendor := d[28+4*n:]; int(vendor[0]) != len(vendor)-1 {
		return fail(KindLog, 0, 0, "specification event of the wrong length")
	}
	return nil
}

// agileEvent wants one digest of each listed algorithm, in any order.
func (l *Log) agileEvent(b []byte) (Event, []byte, bool) {
	if len(b) < 12 {
		return Event{}, nil, false
	}
	e := Event{PCR: binary.LittleEndian.Uint32(b), Type: EventType(binary.LittleEndian.Uint32(b[4:]))}
	if count := binary.LittleEndian.Uint32(b[8:]); int64(count) != int64(len(l.Banks)) {
		return Event{}, nil, false
	}
	b = b[12:]
	start, seen := b, 0
	for range l.Banks {
		if len(b) < 2 {
			return Event{}, nil, false
		}
		i := l.bank(Bank(binary.LittleEndian.Uint16(b)))
		if i < 0 || seen&(1<<i) != 0 || len(b) < 2+int(l.sizes[i]) {
			return Event{}, nil, false
		}
		seen |= 1 << i
		b = b[2+l.sizes[i]:]
	}
	e.digests = start[:len(start)-len(b)]
	if len(b) < 4 {
		return Event{}, nil, false
	}
	n := binary.LittleEndian.Uint32(b)
	if uint64(n) > uint64(len(b)-4) {
		return Event{}, nil, false
	}
	e.Data = b[4 : 4+n]
	return e, b[4+n:], true
}

func (l *Log) bank(b Bank) int {
	for i, a := range l.Banks {
		if a == b {
			return i
		}
	}
	return -1
}

// Digest is the event's digest in a bank, nil if it has none (as the first event of a crypto-agile log). It aliases the log.
func (l *Log) Digest(event int, bank Bank) []byte {
	d := l.Events[event].digests
	if !l.Agile || event == 0 {
		if bank == SHA1 {
			return d
		}
		return nil
	}
	for len(d) >= 2 {
		i := l.bank(Bank(binary.LittleEndian.Uint16(d)))
		if i < 0 {
			return nil
		}
		if l.Banks[i] == bank {
			return d[2 : 2+l.sizes[i]]
		}
		d = d[2+l.sizes[i]:]
	}
	return nil
}
