package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Damage is a place of the open volume that gives no data.
type Damage struct {
	Sector  int64 // of 512 bytes within the encrypted volume, the first of the 4096 bytes that are lost
	Changed bool  // the check value is wrong: the sector was changed, or decayed unnoticed; else the disk itself reports an error
}

// Messages of the kernel (drivers/md/dm-crypt.c, fs/ext4/super.c).
var (
	reIntegrity = regexp.MustCompile(`^device-mapper: crypt: (?:dm-\d+: )?INTEGRITY AEAD ERROR, sector (\d{1,18})$`)
	reFSError   = regexp.MustCompile(`^EXT4-fs error \(device dm-\d+\):? (.*)$`)
	reReadOnly  = regexp.MustCompile(`^EXT4-fs \(dm-\d+\): (Remounting filesystem read-only)$`)
)

// KernelDamage reads a line of the kernel's log that says that a sector of the volume was refused. Where there are many in a short time
// the kernel leaves lines out.
func KernelDamage(line string) (Damage, bool) {
	m := reIntegrity.FindStringSubmatch(line)
	if m == nil {
		return Damage{}, false
	}
	sector, err := strconv.ParseInt(m[1], 10, 64)
	return Damage{Sector: sector &^ (sectorSize/512 - 1), Changed: true}, err == nil
}

// KernelTrouble reads a line of the kernel's log about the volume's file system: what is wrong with it, "" where nothing is.
func KernelTrouble(line string) string {
	for _, re := range []*regexp.Regexp{reFSError, reReadOnly} {
		if m := re.FindStringSubmatch(line); m != nil {
			return m[1]
		}
	}
	return ""
}

// scrubChunk is what Scrub reads at once.
const scrubChunk = 256 << 10

// Scrub reads the whole device at path (as Open gave it) below the page cache and reports every place that gives no data. It rests idle
// times as long as it reads, so that others get at the disk. It ends early with ctx.
func Scrub(ctx context.Context, path string, idle int, found func(Damage)) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return fmt.Errorf("check the volume: %w", err)
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	if err != nil {
		return fmt.Errorf("check the volume: %w", err)
	}
	buf, err := unix.Mmap(-1, 0, scrubChunk, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned, as O_DIRECT wants it
	if err != nil {
		return fmt.Errorf("check the volume: %w", err)
	}
	defer unix.Munmap(buf)
	defer clear(buf)
	for at := int64(0); at < size; at += scrubChunk {
		start := time.Now()
		n := min(scrubChunk, size-at)
		if _, err := f.ReadAt(buf[:n], at); err != nil {
			for piece := at; piece < at+n; piece += sectorSize {
				if _, err := f.ReadAt(buf[:sectorSize], piece); err != nil {
					found(Damage{Sector: piece / 512, Changed: errors.Is(err, unix.EILSEQ)})
				}
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(idle) * time.Since(start)):
		}
	}
	return nil
}

// FileAt names the file or folder below dir, which is where the volume is mounted, that has a sector of 512 bytes of the volume; "" where
// none has: it is free, or the file system's own.
func FileAt(dir string, sector int64) string {
	var name string
	filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() && !e.IsDir() {
			return nil // what can't be looked at is not named
		}
		if covers(path, uint64(sector)*512) {
			name = path
			return fs.SkipAll
		}
		return nil
	})
	return name
}

// The kernel's Documentation/filesystems/fiemap.rst: a header of 32 bytes, extents of 56.
const (
	fiemapCall   = 0xc020660b // _IOWR('f', 11, struct fiemap)
	fiemapHead   = 32
	fiemapExtent = 56
	fiemapMost   = 64 // extents asked for at once
	fiemapLast   = 1
)

// covers reports whether the file at path has the byte of the device.
func covers(path string, at uint64) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	le := binary.NativeEndian
	b := make([]byte, fiemapHead+fiemapMost*fiemapExtent)
	for from := uint64(0); ; {
		clear(b)
		le.PutUint64(b, from)
		le.PutUint64(b[8:], 1<<63-1-from)
		le.PutUint32(b[24:], fiemapMost)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fiemapCall, uintptr(unsafe.Pointer(&b[0]))); errno != 0 {
			return false
		}
		mapped := int(le.Uint32(b[20:]))
		for i := range mapped {
			e := b[fiemapHead+i*fiemapExtent:]
			logical, physical, length, flags := le.Uint64(e), le.Uint64(e[8:]), le.Uint64(e[16:]), le.Uint32(e[40:])
			if at >= physical && at < physical+length {
				return true
			}
			if flags&fiemapLast != 0 {
				return false
			}
			from = logical + length
		}
		if mapped == 0 {
			return false
		}
	}
}
