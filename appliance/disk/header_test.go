package disk

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
)

// tornDevice is a disk that can lose power: what was not flushed is lost sector by sector, as it likes.
type tornDevice struct {
	flushed []byte
	held    []byte // flushed with everything written since
	left    int    // writes and flushes until the power goes; negative: never
	r       *rand.Rand
}

var errCut = errors.New("no power")

func newTorn(seed uint64, left int) *tornDevice {
	return &tornDevice{make([]byte, 1<<20), make([]byte, 1<<20), left, rand.New(rand.NewPCG(seed, 1))}
}

func (d *tornDevice) step() bool { d.left--; return d.left != -1 }

func (d *tornDevice) ReadAt(b []byte, at int64) (int, error) { return copy(b, d.held[at:]), nil }

func (d *tornDevice) WriteAt(b []byte, at int64) (int, error) {
	copy(d.held[at:], b)
	if !d.step() {
		d.cut()
		return 0, errCut
	}
	return len(b), nil
}

func (d *tornDevice) Sync() error {
	if !d.step() {
		d.cut()
		return errCut
	}
	copy(d.flushed, d.held)
	return nil
}

func (d *tornDevice) cut() {
	for at := 0; at < len(d.held); at += 512 {
		if d.r.IntN(2) == 0 {
			copy(d.flushed[at:at+512], d.held[at:at+512])
		}
	}
	copy(d.held, d.flushed)
	d.left = -1
}

var testKey = bytes.Repeat([]byte{5}, KeySize)

func newHeader(t testing.TB) *Header {
	t.Helper()
	h, err := NewHeader()
	if err != nil {
		t.Fatal(err)
	}
	h.SetSlot("tpm", []byte("sealed"))
	return h
}

func TestPowerCutLeavesTheOldHeaderOrTheNew(t *testing.T) {
	for seed := range uint64(200) {
		for left := range 5 { // two writes and two flushes, or no cut
			d := newTorn(seed, -1)
			h := newHeader(t)
			if err := WriteHeader(d, h, testKey); err != nil {
				t.Fatal(err)
			}
			for range seed % 3 { // so that either copy is the newer one
				if err := WriteHeader(d, h, testKey); err != nil {
					t.Fatal(err)
				}
			}
			before := h.Sequence
			d.left = left
			h.Generation = 77
			err := WriteHeader(d, h, testKey)
			got, damaged, rerr := ReadHeader(d)
			if rerr != nil {
				t.Fatalf("seed %d, cut after %d: %v", seed, left, rerr)
			}
			if perr := got.Prove(testKey); perr != nil {
				t.Fatal(perr)
			}
			switch {
			case err == nil && (got.Generation != 77 || damaged != ""):
				t.Fatalf("seed %d: acknowledged and lost: %+v %q", seed, got, damaged)
			case got.Sequence != before && got.Sequence != before+1:
				t.Fatalf("seed %d, cut after %d: sequence %d after %d", seed, left, got.Sequence, before)
			case (got.Generation == 77) != (got.Sequence == before+1):
				t.Fatalf("seed %d, cut after %d: a mixture: %+v", seed, left, got)
			}
			d.left = -1
			// The next write repairs what the cut damaged.
			if err := WriteHeader(d, got, testKey); err != nil {
				t.Fatal(err)
			}
			if _, damaged, err := ReadHeader(d); err != nil || damaged != "" {
				t.Fatalf("not repaired: %q %v", damaged, err)
			}
		}
	}
}

func TestDamagedCopyIsNamedAndTheOtherServes(t *testing.T) {
	for _, at := range []int64{copyA, copyB} {
		d := newTorn(1, -1)
		if err := WriteHeader(d, newHeader(t), testKey); err != nil {
			t.Fatal(err)
		}
		d.held[at+100] ^= 1
		h, damaged, err := ReadHeader(d)
		if err != nil || damaged == "" || h.Prove(testKey) != nil {
			t.Errorf("copy at %d: %v %q", at, err, damaged)
		}
	}
	d := newTorn(1, -1)
	_, _, err := ReadHeader(d)
	wantVolumeKind(t, err, KindHeader)
}

func wantVolumeKind(t *testing.T, err error, kind string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Kind != kind || e.Remedy == "" {
		t.Errorf("got %v, want kind %s with a remedy", err, kind)
	}
}

func TestForeignVolumeWithTheRightLabelIsRefused(t *testing.T) {
	h := newHeader(t)
	mac, err := h.mac(testKey)
	if err != nil {
		t.Fatal(err)
	}
	h.MAC = mac
	if err := h.Prove(testKey); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(h *Header){
		"other volume":     func(h *Header) { h.Volume = strings.Repeat("00", 16) },
		"older generation": func(h *Header) { h.Generation-- },
		"sequence":         func(h *Header) { h.Sequence++ },
		"slot changed":     func(h *Header) { h.SetSlot("tpm", []byte("another")) },
		"slot added":       func(h *Header) { h.SetSlot("recovery", []byte("theirs")) },
		"no MAC":           func(h *Header) { h.MAC = nil },
	} {
		c := *h
		c.Slots = append([]Slot(nil), h.Slots...)
		change(&c)
		wantVolumeKind(t, c.Prove(testKey), KindUnproved)
		if t.Failed() {
			t.Fatal(name)
		}
	}
	wantVolumeKind(t, h.Prove(bytes.Repeat([]byte{6}, KeySize)), KindUnproved)
}

func TestHeaderKeepsItsBounds(t *testing.T) {
	h := newHeader(t)
	h.SetSlot("big", make([]byte, MaxSlotSize+1))
	if WriteHeader(newTorn(1, -1), h, testKey) == nil {
		t.Error("took a slot that is too large")
	}
	h = newHeader(t)
	for i := range MaxSlots + 1 {
		h.SetSlot(fmt.Sprint(i), []byte{1})
	}
	if WriteHeader(newTorn(1, -1), h, testKey) == nil {
		t.Error("took too many slots")
	}
	if WriteHeader(newTorn(1, -1), newHeader(t), testKey[:16]) == nil {
		t.Error("took a short key")
	}
}

func TestDerivedKeysDiffer(t *testing.T) {
	seen := map[string]bool{}
	for _, label := range []string{LabelDisk, LabelHeader} {
		k, err := Derive(testKey, label, 32)
		if err != nil || len(k) != 32 || seen[hex.EncodeToString(k)] || bytes.Equal(k, testKey) {
			t.Errorf("%s: %x %v", label, k, err)
		}
		seen[hex.EncodeToString(k)] = true
	}
}

func FuzzReadHeader(f *testing.F) {
	h := newHeader(f)
	h.MAC = make([]byte, 32)
	good, err := h.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good[:400])
	f.Add(append([]byte(nil), headerMagic...))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := newTorn(1, -1)
		copy(d.held, b)
		if h, _, err := ReadHeader(d); err == nil && (len(h.Slots) > MaxSlots || h.Prove(testKey) == nil) {
			t.Errorf("accepted %+v", h)
		}
	})
}

var _ io.ReaderAt = (*tornDevice)(nil)
