package disk

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Zeroise ends the volume on d for ever: nobody who knows its key, its recovery secret or its TPM gets anything out of it again, because
// all that wrapped the key is gone. Then it makes the disk blank, and proves it by reading again. Power may fail at any step: the disk
// holds the volume still, or counts as blank. The volume must be closed.
func Zeroise(d Disk) error {
	f, err := os.OpenFile(d.Path, os.O_RDWR, 0)
	if err != nil {
		return volumeFailed("zeroise", d, err)
	}
	defer f.Close()
	if err := zeroise(f, d.Size); err != nil {
		return volumeFailed("zeroise", d, err)
	}
	_ = unix.IoctlSetInt(int(f.Fd()), unix.BLKFLSBUF, 0) // read from the disk, not from memory; a test's plain file has no such call
	if inspect(&d, f); d.Content != Blank || d.Holds != "nothing" {
		return &Error{KindFailed, fmt.Sprintf("disk %s was zeroised and still holds %s", d.Name, d.Holds), "destroy the disk"}
	}
	return nil
}

// zeroise first puts a header without slots in the place of the old one, which makes the disk count as blank at once.
func zeroise(f HeaderDevice, size int64) error {
	h, err := NewHeader()
	if err != nil {
		return err
	}
	if old, _, err := ReadHeader(f); err == nil {
		h.Sequence = old.Sequence // the newer of two copies counts
	}
	h.Preparing = true
	key := make([]byte, KeySize)
	if _, err := io.ReadFull(rand.Reader, key); err != nil {
		return err
	}
	if err := WriteHeader(f, h, key); err != nil {
		return err
	}
	zeros := make([]byte, copyB)
	// Copy A goes before B, so that one of them says that the disk is blank until its first MiB does.
	for _, at := range []int64{bodyStart, size - edge, size - edge + copyB, copyA, copyB} {
		_, err := f.WriteAt(zeros, at)
		if err := errors.Join(err, f.Sync()); err != nil {
			return err
		}
	}
	return nil
}
