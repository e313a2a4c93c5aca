package disk

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

func TestZeroisedDiskIsBlankAndHoldsNothingOfItsHeader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	content := bytes.Repeat([]byte("cipher text "), 1<<20)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := WriteHeader(f, testHeader(t), testKey); err != nil {
		t.Fatal(err)
	}
	d := Disk{Name: "disk", Path: path, Size: int64(len(content))}
	if inspect(&d, f); d.Content != Ours {
		t.Fatalf("holds %s", d.Holds)
	}
	if err := Zeroise(d); err != nil {
		t.Fatal(err)
	}
	if inspect(&d, f); d.Content != Blank || d.Holds != "nothing" {
		t.Errorf("holds %s", d.Holds)
	}
}

func testHeader(t *testing.T) *Header {
	t.Helper()
	h, err := NewHeader()
	if err != nil {
		t.Fatal(err)
	}
	h.Generation = 7
	h.SetSlot("tpm", []byte("wrapped key"))
	return h
}

// Whatever write or flush the power fails at, the disk is the volume still or counts as blank, and never anything that is left untouched.
func TestPowerCutWhileZeroisingLeavesTheVolumeOrABlankDisk(t *testing.T) {
	const size = 8 << 20
	ours, blank := 0, 0
	noise := make([]byte, size-bodyStart)
	rand.NewChaCha8([32]byte{}).Read(noise)
	for left := range 16 {
		d := newTorn(uint64(left), -1)
		d.flushed, d.held = make([]byte, size), make([]byte, size)
		copy(d.held[bodyStart:], noise)
		for range 3 {
			if err := WriteHeader(d, testHeader(t), testKey); err != nil {
				t.Fatal(err)
			}
		}
		d.left = left
		err := zeroise(d, size)
		found := Disk{Size: size}
		d.left = -1
		switch inspect(&found, d); found.Content {
		case Ours:
			ours++
			if h, _, err := ReadHeader(d); err != nil || h.Prove(testKey) != nil {
				t.Errorf("cut at %d: the volume is still there and does not open (%v)", left, err)
			}
		case Blank:
			blank++
		default:
			t.Errorf("cut at %d (%v): the disk holds %s", left, err, found.Holds)
		}
	}
	if ours == 0 || blank < 8 {
		t.Errorf("%d times the volume, %d times blank", ours, blank)
	}
}
