package update

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"guardhouse/appliance/disk"
)

// Where a slot has its files.
const (
	ImagePath  = "/EFI/BOOT/BOOTX64.EFI"   // UEFI specification 3.5.1.1
	PolicyPath = "/guardhouse/policy.json" // the signed boots
)

// Device is a slot's partition. After Sync what was written is durable, and ReadAt reads from the disk itself.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// ErrReadBack: the disk does not hold what was written to it.
var ErrReadBack = errors.New("the boot disk does not give back what was written; replace it")

const chunk = 1 << 20

// PlanSlot is the file system of a slot of size bytes that holds the release: the same bytes, wherever it is written.
func PlanSlot(m Manifest, size int64) (*disk.FAT, error) {
	var files []disk.FATFile
	for _, f := range []struct {
		path string
		part Part
	}{{ImagePath, m.UKI}, {PolicyPath, m.Policy}} {
		sum, err := hex.DecodeString(f.part.SHA256)
		if err != nil || len(sum) != sha256.Size {
			return nil, fmt.Errorf("%w: %s has no hash", ErrBundle, f.path)
		}
		files = append(files, disk.FATFile{Path: f.path, Size: f.part.Size, SHA256: [32]byte(sum)})
	}
	plan, err := disk.PlanFAT(size, files, m.BuildEpoch)
	if err != nil {
		return nil, fmt.Errorf("the release does not fit the slot: %w", err)
	}
	return plan, nil
}

// WriteSlot reads the rest of the bundle and writes its release into the slot. The first thing that goes is what makes the slot a file
// system, and it comes back only when every byte has been verified against the manifest, made durable and read back: at any other time
// firmware finds nothing there.
func WriteSlot(d Device, size int64, b *Bundle) error {
	plan, err := PlanSlot(b.Manifest, size)
	if err != nil {
		return err
	}
	if err := errors.Join(disk.WritePieces(d, plan.NoBoot()), d.Sync()); err != nil {
		return fmt.Errorf("empty the slot: %w", err)
	}
	out := &filler{d: d, at: plan.Offset(0)}
	if err := b.UKI(out); err != nil {
		return err
	}
	pieces := append(plan.Frame(), disk.Piece{Offset: plan.Offset(1), Data: sectors(b.Policy)})
	if err := errors.Join(out.flush(), disk.WritePieces(d, pieces), d.Sync()); err != nil {
		return fmt.Errorf("write the slot: %w", err)
	}
	if err := verifyFile(d, plan.Offset(0), b.Manifest.UKI); err != nil {
		return err
	}
	if err := verifyPieces(d, pieces); err != nil {
		return err
	}
	if err := errors.Join(disk.WritePieces(d, plan.Boot()), d.Sync()); err != nil {
		return fmt.Errorf("write the slot: %w", err)
	}
	return verifyPieces(d, plan.Boot())
}

// VerifySlot reads a slot that WriteSlot wrote, and refuses one that differs in a byte that counts.
func VerifySlot(d Device, size int64, m Manifest, policy []byte) error {
	plan, err := PlanSlot(m, size)
	if err != nil {
		return err
	}
	if err := verifyFile(d, plan.Offset(0), m.UKI); err != nil {
		return err
	}
	return verifyPieces(d, append(append(plan.Frame(), disk.Piece{Offset: plan.Offset(1), Data: sectors(policy)}), plan.Boot()...))
}

func verifyFile(d io.ReaderAt, at int64, p Part) error {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(d, at, p.Size)); err != nil {
		return fmt.Errorf("read the slot back: %w", err)
	}
	if hex.EncodeToString(h.Sum(nil)) != p.SHA256 {
		return ErrReadBack
	}
	return nil
}

func verifyPieces(d io.ReaderAt, pieces []disk.Piece) error {
	for _, p := range pieces {
		b := make([]byte, len(p.Data))
		if _, err := d.ReadAt(b, p.Offset); err != nil {
			return fmt.Errorf("read the slot back: %w", err)
		}
		if !bytes.Equal(b, p.Data) {
			return ErrReadBack
		}
	}
	return nil
}

// filler writes a stream in large pieces.
type filler struct {
	d   io.WriterAt
	at  int64
	buf []byte
}

func (f *filler) Write(p []byte) (int, error) {
	f.buf = append(f.buf, p...)
	if len(f.buf) < chunk {
		return len(p), nil
	}
	whole := len(f.buf) / 512 * 512
	rest := bytes.Clone(f.buf[whole:])
	f.buf = f.buf[:whole]
	err := f.flush()
	f.buf = append(f.buf, rest...)
	return len(p), err
}

// flush writes what is left.
func (f *filler) flush() error {
	f.buf = sectors(f.buf)
	_, err := f.d.WriteAt(f.buf, f.at)
	f.at += int64(len(f.buf))
	f.buf = f.buf[:0]
	return err
}

// sectors fills b up with zeros: a disk takes nothing less than whole sectors.
func sectors(b []byte) []byte {
	if pad := len(b) % 512; pad != 0 {
		return append(bytes.Clone(b), make([]byte, 512-pad)...)
	}
	return b
}

// bootSectors is how much of a slot's beginning makes it a file system: boot sector, its companion and the copies of both.
const bootSectors = 8 * 512

// CopySlot makes to the same as from, both of size bytes, and compares. At any time in between, firmware finds no file system in to. It
// returns false where they were the same already, and nothing was written.
func CopySlot(to, from Device, size int64) (bool, error) {
	same, err := SameSlots(to, from, size)
	if err != nil || same {
		return false, err
	}
	if _, err := to.WriteAt(make([]byte, bootSectors), 0); err != nil {
		return true, fmt.Errorf("empty the slot: %w", err)
	}
	if err := to.Sync(); err != nil {
		return true, fmt.Errorf("empty the slot: %w", err)
	}
	err = pairs(to, from, size, func(at int64, have, want []byte) error {
		if at == 0 {
			want, at = want[bootSectors:], bootSectors
		}
		if bytes.Equal(have[len(have)-len(want):], want) {
			return nil
		}
		_, err := to.WriteAt(want, at)
		return err
	})
	if err == nil {
		err = to.Sync()
	}
	first := make([]byte, bootSectors)
	if err == nil {
		_, err = from.ReadAt(first, 0)
	}
	if err == nil {
		_, err = to.WriteAt(first, 0)
	}
	if err == nil {
		err = to.Sync()
	}
	if err != nil {
		return true, fmt.Errorf("copy the slot: %w", err)
	}
	if same, err := SameSlots(to, from, size); err != nil || !same {
		return true, errors.Join(err, ErrReadBack)
	}
	return true, nil
}

// SameSlots compares two slots byte by byte.
func SameSlots(a, b io.ReaderAt, size int64) (bool, error) {
	err := pairs(a, b, size, func(_ int64, x, y []byte) error {
		if !bytes.Equal(x, y) {
			return errDiffers
		}
		return nil
	})
	if errors.Is(err, errDiffers) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("compare the slots: %w", err)
	}
	return true, nil
}

var errDiffers = errors.New("the slots differ")

// pairs walks through both slots in large pieces.
func pairs(a, b io.ReaderAt, size int64, each func(at int64, x, y []byte) error) error {
	x, y := make([]byte, chunk), make([]byte, chunk)
	for at := int64(0); at < size; at += chunk {
		n := min(chunk, size-at)
		if _, err := a.ReadAt(x[:n], at); err != nil {
			return err
		}
		if _, err := b.ReadAt(y[:n], at); err != nil {
			return err
		}
		if err := each(at, x[:n], y[:n]); err != nil {
			return err
		}
	}
	return nil
}
