package evidence

import (
	"encoding/binary"
	"unicode/utf16"
)

// Writer builds a boot log as firmware and boot loader would, together with the PCR values that belong to it: for hostsim, which extends a
// TPM with the same digests, and for tests. A Writer without banks, or with SHA1 alone, writes the legacy format. Not safe for concurrent
// use. It checks nothing: what it is told to write wrongly, it writes wrongly.
type Writer struct {
	banks   []Bank
	log     []byte
	Extends []Extend // every measured event, in order
}

// Extend is what a TPM has to be told for one event: the PCR and one digest for each bank of the Writer, in its order.
type Extend struct {
	PCR     int
	Digests [][]byte
}

// NewWriter starts a log with digests of the given banks. A crypto-agile log begins with the specification event.
func NewWriter(banks ...Bank) *Writer {
	if len(banks) == 0 {
		banks = []Bank{SHA1}
	}
	w := &Writer{banks: banks}
	if w.legacy() {
		return w
	}
	spec := append([]byte(specIDSignature), 0, 0, 0, 0, 0, 2, 0, 2)
	spec = binary.LittleEndian.AppendUint32(spec, uint32(len(banks)))
	for _, b := range banks {
		spec = binary.LittleEndian.AppendUint16(spec, uint16(b))
		spec = binary.LittleEndian.AppendUint16(spec, uint16(b.Size()))
	}
	spec = append(spec, 0)
	w.log = appendHead(w.log, 0, EventNoAction)
	w.log = append(w.log, make([]byte, 20)...)
	w.log = appendSized(w.log, spec)
	return w
}

func (w *Writer) legacy() bool { return len(w.banks) == 1 && w.banks[0] == SHA1 }

func appendHead(b []byte, pcr uint32, t EventType) []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(b, pcr), uint32(t))
}

func appendSized(b, data []byte) []byte {
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(data))), data...)
}

// Event measures data and logs it.
func (w *Writer) Event(pcr int, t EventType, data []byte) { w.Measure(pcr, t, data, data) }

// Measure measures one thing and logs another, as for an image (its hash is measured, its path is logged). An EventNoAction is only logged.
func (w *Writer) Measure(pcr int, t EventType, measured, logged []byte) {
	x := Extend{PCR: pcr}
	for _, b := range w.banks {
		if t == EventNoAction {
			x.Digests = append(x.Digests, make([]byte, b.Size()))
		} else {
			x.Digests = append(x.Digests, b.sum(nil, measured))
		}
	}
	if t != EventNoAction {
		w.Extends = append(w.Extends, x)
	}
	w.log = appendHead(w.log, uint32(pcr), t)
	if w.legacy() {
		w.log = append(w.log, x.Digests[0]...)
	} else {
		w.log = binary.LittleEndian.AppendUint32(w.log, uint32(len(w.banks)))
		for i, b := range w.banks {
			w.log = append(binary.LittleEndian.AppendUint16(w.log, uint16(b)), x.Digests[i]...)
		}
	}
	w.log = appendSized(w.log, logged)
}

// Separator ends firmware's part of a PCR; in PCR 12 to 14 it is the one of the Windows boot loader.
func (w *Writer) Separator(pcr int) {
	data := make([]byte, 4)
	if pcr >= 12 && pcr <= 14 {
		copy(data, "WBCL")
	}
	w.Event(pcr, EventSeparator, data)
}

// Log is the log so far. It aliases the Writer.
func (w *Writer) Log() []byte { return w.log }

// PCRs are the values of a bank after the log so far, on a TPM started at locality 0.
func (w *Writer) PCRs(bank Bank) PCRs {
	var p PCRs
	for i := range p {
		p[i] = make([]byte, bank.Size())
		for j := range p[i] {
			if i >= 17 && i <= 22 {
				p[i][j] = 0xff
			}
		}
	}
	for i, b := range w.banks {
		if b != bank {
			continue
		}
		for _, x := range w.Extends {
			extend(bank, p[x.PCR], x.Digests[i], make([]byte, 0, 128))
		}
	}
	return p
}

// Tagged encodes one Windows event: type, length, payload. A container's payload is the events in it.
func Tagged(id uint32, payload ...byte) []byte {
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, 8+len(payload)), id)
	return appendSized(b, payload)
}

// TrustBoundary encodes the container of what one boot program measures.
func TrustBoundary(events ...[]byte) []byte {
	var all []byte
	for _, e := range events {
		all = append(all, e...)
	}
	return Tagged(sipaTrustBoundary, all...)
}

// Tagged encodes a setting as the boot loader does, in 1, 4 or 8 bytes; nil for a setting that is not measured in this way.
func (id SettingID) Tagged(value uint64, size int) []byte {
	if id.SIPA() == 0 {
		return nil
	}
	return Tagged(id.SIPA(), binary.LittleEndian.AppendUint64(nil, value)[:size]...)
}

// TaggedIDK encodes a VSM identity key: the payload of hgsa.md 9.3, for signing or for encryption.
func TaggedIDK(payload []byte, signing bool) []byte {
	if signing {
		return Tagged(sipaIDKS, payload...)
	}
	return Tagged(sipaIDK, payload...)
}

// TaggedDumpKey encodes the digest (32 bytes) of the key for crash dumps.
func TaggedDumpKey(digest []byte) []byte { return Tagged(sipaDumpKey, digest...) }

// TaggedPolicy encodes a code integrity policy; version holds its four numbers, the most significant first.
func TaggedPolicy(name string, version [4]uint16, hash Bank, digest []byte) []byte {
	le := binary.LittleEndian
	n := appendUTF16(nil, name+"\x00")
	var b []byte
	for i := range version {
		b = le.AppendUint16(b, version[3-i])
	}
	b = le.AppendUint16(le.AppendUint16(b, uint16(len(n))), uint16(hash))
	b = le.AppendUint32(b, uint32(len(digest)))
	return Tagged(sipaSIPolicy, append(append(b, n...), digest...)...)
}

// UEFIVariable encodes UEFI_VARIABLE_DATA for a variable of the image security database (db, dbx) or, any other name, of the global GUID.
func UEFIVariable(name string, contents []byte) []byte {
	guid := []byte{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}
	if name == "db" || name == "dbx" {
		guid = []byte{0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f}
	}
	n := appendUTF16(nil, name)
	b := binary.LittleEndian.AppendUint64(guid, uint64(len(n)/2))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(contents)))
	return append(append(b, n...), contents...)
}

func appendUTF16(b []byte, s string) []byte {
	for _, c := range utf16.Encode([]rune(s)) {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return b
}
