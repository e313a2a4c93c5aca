package disk

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
)

// KeySize is the length of a volume key in bytes.
const KeySize = 32

// Where things lie on an encrypted volume, in bytes. Two copies of the header, far enough apart that no torn write reaches both.
const (
	headerSize = 64 << 10
	copyA      = 0
	copyB      = 512 << 10
	bodyStart  = 1 << 20
)

// Limits of a header.
const (
	MaxSlots    = 8
	MaxSlotSize = 8 << 10 // bytes
)

const headerVersion = 1

var headerMagic = []byte("guardhouse vol\r\n") // 16 bytes; the line end shows a copy that went through a text tool

// Kinds of errors of an encrypted volume.
const (
	KindHeader    = "volume-header"    // neither copy of the header can be read
	KindUnproved  = "volume-unproved"  // the header was not made by whoever knows this volume key
	KindIntegrity = "volume-integrity" // the encrypted part does not open, or a sector was changed
)

// Slot is the volume key wrapped for one way of opening: by the TPM, by a recovery secret. What is in it is its owner's business.
type Slot struct {
	Kind string `json:"kind"`
	Data []byte `json:"data"`
}

// Header is what lies in clear before an encrypted volume. Nothing in it is secret; the MAC proves that it was written by somebody who
// knew the volume key, so that a foreign volume with the right magic is refused before its file system is looked at.
type Header struct {
	Volume     string `json:"volume"`              // random name of the volume, hex
	Sequence   uint64 `json:"sequence"`            // rises with each write
	Generation uint64 `json:"generation"`          // rises with each boot: see package volume
	Preparing  bool   `json:"preparing,omitempty"` // nothing is kept yet: a power cut before the end means that the disk is prepared anew
	Slots      []Slot `json:"slots"`
	MAC        []byte `json:"mac"` // HMAC-SHA256 of the rest under a key derived from the volume key
}

// Slot is the slot of a kind; nil for none.
func (h *Header) Slot(kind string) *Slot {
	for i := range h.Slots {
		if h.Slots[i].Kind == kind {
			return &h.Slots[i]
		}
	}
	return nil
}

// SetSlot adds a slot or replaces that of the same kind; nil data removes it.
func (h *Header) SetSlot(kind string, data []byte) {
	h.Slots = slices.DeleteFunc(h.Slots, func(s Slot) bool { return s.Kind == kind })
	if data != nil {
		h.Slots = append(h.Slots, Slot{kind, data})
	}
}

// Prove checks the MAC with the volume key.
func (h *Header) Prove(key []byte) error {
	mac, err := h.mac(key)
	if err != nil {
		return err
	}
	if !hmac.Equal(mac, h.MAC) {
		return &Error{KindUnproved, "the volume's header was not written by whoever knows its key: it was changed, or put together from two volumes",
			"attach the disk that belongs to this node; if this is it, open nothing on it and restore from a backup"}
	}
	return nil
}

func (h *Header) mac(key []byte) ([]byte, error) {
	k, err := Derive(key, LabelHeader, sha256.Size)
	if err != nil {
		return nil, err
	}
	defer clear(k)
	rest := *h
	rest.MAC = nil
	b, err := json.Marshal(rest)
	if err != nil {
		return nil, err
	}
	m := hmac.New(sha256.New, k)
	m.Write(b)
	return m.Sum(nil), nil
}

// Labels of the keys that are derived from a volume key.
const (
	LabelDisk   = "guardhouse disk"   // encryption and integrity of the disk
	LabelHeader = "guardhouse header" // MAC of the header
)

// Derive makes a key of n bytes for a label (HKDF-SHA256, RFC 5869). The caller wipes it.
func Derive(key []byte, label string, n int) ([]byte, error) {
	if len(key) != KeySize {
		return nil, fmt.Errorf("a volume key has %d bytes, not %d", KeySize, len(key))
	}
	return hkdf.Key(sha256.New, key, nil, label, n)
}

// encode is one copy: magic, version, length, SHA-256 of the payload, payload. The sum finds torn writes; the MAC finds people.
func (h *Header) encode() ([]byte, error) {
	if len(h.Slots) > MaxSlots || slices.ContainsFunc(h.Slots, func(s Slot) bool { return len(s.Data) > MaxSlotSize }) {
		return nil, fmt.Errorf("a header has at most %d slots of %d bytes", MaxSlots, MaxSlotSize)
	}
	payload, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(payload)
	b := append([]byte(nil), headerMagic...)
	b = binary.BigEndian.AppendUint32(b, headerVersion)
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	b = append(append(b, sum[:]...), payload...)
	if len(b) > headerSize {
		return nil, fmt.Errorf("a header of %d bytes is larger than its place", len(b))
	}
	return append(b, make([]byte, headerSize-len(b))...), nil
}

var errNoHeader = errors.New("no header")

func decodeHeader(b []byte) (*Header, error) {
	if len(b) < len(headerMagic)+40 || !bytes.HasPrefix(b, headerMagic) {
		return nil, errNoHeader
	}
	rest := b[len(headerMagic):]
	if v := binary.BigEndian.Uint32(rest); v != headerVersion {
		return nil, fmt.Errorf("version %d is not known", v)
	}
	n := binary.BigEndian.Uint32(rest[4:])
	if int64(n) > int64(len(rest)-40) {
		return nil, errors.New("it is cut off")
	}
	payload := rest[40 : 40+n]
	if sum := sha256.Sum256(payload); !bytes.Equal(sum[:], rest[8:40]) {
		return nil, errors.New("its sum is wrong")
	}
	var h Header
	d := json.NewDecoder(bytes.NewReader(payload))
	d.DisallowUnknownFields()
	if err := d.Decode(&h); err != nil {
		return nil, err
	}
	if id, err := hex.DecodeString(h.Volume); err != nil || len(id) != 16 || len(h.Slots) > MaxSlots {
		return nil, errors.New("its fields are out of range")
	}
	return &h, nil
}

// hasHeader is true where a copy begins with our magic, readable or not.
func hasHeader(r io.ReaderAt) bool {
	b := make([]byte, len(headerMagic))
	for _, at := range []int64{copyA, copyB} {
		if _, err := r.ReadAt(b, at); err == nil && bytes.Equal(b, headerMagic) {
			return true
		}
	}
	return false
}

// ReadHeader gives the newer of the two copies that can be read; damaged says what is wrong with the other one, "" where nothing is.
func ReadHeader(r io.ReaderAt) (h *Header, damaged string, err error) {
	var why []string
	for i, at := range []int64{copyA, copyB} {
		b := make([]byte, headerSize)
		if _, err := r.ReadAt(b, at); err != nil {
			why = append(why, fmt.Sprintf("copy %d: %v", i+1, err))
			continue
		}
		c, err := decodeHeader(b)
		if err != nil {
			why = append(why, fmt.Sprintf("copy %d: %v", i+1, err))
			continue
		}
		if h == nil || c.Sequence > h.Sequence {
			h = c
		}
	}
	if h == nil {
		return nil, "", &Error{KindHeader, fmt.Sprintf("the volume's header can't be read: %v", why), "restore the node from a backup or from its cluster; the disk's content is lost without the header"}
	}
	if len(why) > 0 {
		damaged = why[0]
	}
	return h, damaged, nil
}

// HeaderDevice is what a header lies on.
type HeaderDevice interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// WriteHeader stores the header with the next sequence number and a fresh MAC: first the copy that is older or damaged, then the other,
// each flushed, so that a power cut leaves the old header or the new one.
func WriteHeader(d HeaderDevice, h *Header, key []byte) error {
	next := *h
	next.Sequence++
	var err error
	if next.MAC, err = next.mac(key); err != nil {
		return err
	}
	b, err := next.encode()
	if err != nil {
		return err
	}
	order := []int64{copyB, copyA}
	if a, errA := readCopy(d, copyA); errA != nil {
		order = []int64{copyA, copyB}
	} else if c, errB := readCopy(d, copyB); errB == nil && c.Sequence > a.Sequence {
		order = []int64{copyA, copyB}
	}
	for _, at := range order {
		if _, err := d.WriteAt(b, at); err != nil {
			return fmt.Errorf("write volume header: %w", err)
		}
		if err := d.Sync(); err != nil {
			return fmt.Errorf("write volume header: %w", err)
		}
	}
	*h = next
	return nil
}

func readCopy(r io.ReaderAt, at int64) (*Header, error) {
	b := make([]byte, headerSize)
	if _, err := r.ReadAt(b, at); err != nil {
		return nil, err
	}
	return decodeHeader(b)
}
