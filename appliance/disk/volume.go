package disk

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Names of the two layers in the device mapper.
const (
	integrityName = "guardhouse-integrity"
	cryptName     = "guardhouse-data"
	keyName       = "guardhouse:data"
)

// The stack: each sector of 4096 bytes carries a random IV and an HMAC, and the integrity layer's journal writes both with their
// sector or not at all (Documentation/admin-guide/device-mapper/dm-integrity.rst and dm-crypt.rst). The key holds 64 bytes for
// AES-256-XTS and 32 for HMAC-SHA256.
const (
	cipher      = "capi:authenc(hmac(sha256),xts(aes))-random"
	cipherKey   = 96
	tagSize     = 48 // IV 16, HMAC 32
	sectorSize  = 4096
	integrityID = "integrt\x00"
)

// Progress is told how much of a volume was prepared, in bytes. It may be nil.
type Progress func(done, total int64)

// NewHeader is the header of a new volume with a random name.
func NewHeader() (*Header, error) {
	id := make([]byte, 16)
	if _, err := io.ReadFull(rand.Reader, id); err != nil {
		return nil, err
	}
	return &Header{Volume: hex.EncodeToString(id)}, nil
}

// Create makes an encrypted volume on a blank disk: an integrity layer, an encrypted layer above it, and every sector written once,
// because a sector that was never written has no valid check value. It leaves the volume open and gives the path of the device to put
// a file system on. It does not touch the header.
func Create(ctx context.Context, d Disk, key []byte, progress Progress) (string, error) {
	if err := wipeStart(d.Path); err != nil {
		return "", volumeFailed("prepare", d, err)
	}
	m, err := openMapper()
	if err != nil {
		return "", volumeFailed("prepare", d, err)
	}
	defer m.Close()
	// The first load writes the layer's own superblock, which tells how much room is left for data.
	if _, err := m.create(integrityName, "integrity", integrityParams(d), 8); err != nil {
		return "", volumeFailed("prepare", d, err)
	}
	if err := m.remove(integrityName); err != nil {
		return "", volumeFailed("prepare", d, err)
	}
	path, err := openLayers(m, d, key)
	if err != nil {
		return "", volumeFailed("prepare", d, err)
	}
	if err := wipe(ctx, path, progress); err != nil {
		return "", volumeFailed("prepare", d, errors.Join(err, closeLayers(m)))
	}
	return path, nil
}

// Open opens the encrypted layers with the volume key and gives the path of the device with the file system. A disk whose sectors do
// not carry this key's check values is KindIntegrity.
func Open(d Disk, key []byte) (string, error) {
	m, err := openMapper()
	if err != nil {
		return "", volumeFailed("open", d, err)
	}
	defer m.Close()
	path, err := openLayers(m, d, key)
	if err != nil {
		return "", volumeFailed("open", d, err)
	}
	// One read proves the key: every sector has a check value.
	f, err := os.Open(path)
	if err == nil {
		_, err = f.ReadAt(make([]byte, sectorSize), 0)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		cerr := closeLayers(m)
		if isCorrupt(err) {
			return "", &Error{KindIntegrity, fmt.Sprintf("the first sector of the volume on %s was not written with this node's key, or was changed", d.Name),
				"restore the node from a backup or from its cluster"}
		}
		return "", volumeFailed("open", d, errors.Join(err, cerr))
	}
	return path, nil
}

// Close takes the encrypted layers down; the key is gone from the kernel then. Nothing may be mounted from them.
func Close() error {
	m, err := openMapper()
	if err != nil {
		return err
	}
	defer m.Close()
	return closeLayers(m)
}

func closeLayers(m *mapper) error {
	var failed error
	for _, name := range []string{cryptName, integrityName} {
		if m.exists(name) {
			failed = errors.Join(failed, m.remove(name))
		}
	}
	return failed
}

func volumeFailed(verb string, d Disk, err error) error {
	var known *Error
	if errors.As(err, &known) {
		return known
	}
	return &Error{KindFailed, fmt.Sprintf("can't %s the volume on %s: %v", verb, d.Name, err), "restart the node; if it stays, replace the disk"}
}

// openLayers needs the integrity layer's superblock to be there.
func openLayers(m *mapper, d Disk, key []byte) (string, error) {
	sectors, err := dataSectors(d.Path)
	if err != nil {
		return "", err
	}
	lower, err := m.create(integrityName, "integrity", integrityParams(d), sectors)
	if err != nil {
		return "", err
	}
	k, err := Derive(key, LabelDisk, cipherKey)
	if err != nil {
		return "", errors.Join(err, closeLayers(m))
	}
	defer clear(k)
	var path string
	params := fmt.Sprintf("%s :%d:logon:%s 0 %s 0 2 integrity:%d:aead sector_size:%d", cipher, cipherKey, keyName, lower, tagSize, sectorSize)
	err = withKey(keyName, k, func() (err error) {
		path, err = m.create(cryptName, "crypt", params, sectors)
		return err
	})
	if err != nil {
		return "", errors.Join(err, closeLayers(m))
	}
	return path, nil
}

// integrityParams: journal mode, tags of tagSize, after the header's megabyte.
func integrityParams(d Disk) string {
	return fmt.Sprintf("%s %d %d J 1 block_size:%d", d.Path, bodyStart/512, tagSize, sectorSize)
}

// dataSectors reads the integrity layer's superblock: provided_data_sectors, 64 bits at offset 16.
func dataSectors(path string) (uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	// The integrity layer writes below the page cache of its device, which may still hold what was there before.
	if err := unix.IoctlSetInt(int(f.Fd()), unix.BLKFLSBUF, 0); err != nil {
		return 0, fmt.Errorf("forget cached blocks: %w", err)
	}
	b := make([]byte, 512)
	if _, err := f.ReadAt(b, bodyStart); err != nil {
		return 0, err
	}
	n := binary.LittleEndian.Uint64(b[16:])
	if string(b[:8]) != integrityID || n == 0 || n > 1<<40 {
		return 0, &Error{KindIntegrity, "the volume's integrity layer has no valid superblock", "restore the node from a backup or from its cluster"}
	}
	return n &^ (sectorSize/512 - 1), nil
}

// wipeStart zeroes what tells the integrity layer that it was used before.
func wipeStart(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(make([]byte, 64<<10), bodyStart)
	return errors.Join(err, f.Sync(), f.Close())
}

// wipe writes zeros to the whole device.
func wipe(ctx context.Context, path string, progress Progress) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	total, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	chunk := make([]byte, 4<<20)
	for at := int64(0); at < total; at += int64(len(chunk)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := f.WriteAt(chunk[:min(int64(len(chunk)), total-at)], at); err != nil {
			return err
		}
		if progress != nil {
			progress(min(at+int64(len(chunk)), total), total)
		}
		// The page cache must not hold the disk's size in memory.
		_ = unix.SyncFileRange(int(f.Fd()), at, int64(len(chunk)), unix.SYNC_FILE_RANGE_WRITE)
	}
	return f.Sync()
}
