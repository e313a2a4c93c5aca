// Package esp writes a disk image that UEFI firmware boots from: a GPT with
// one EFI system partition (FAT32) that holds the given files.
//
// Promise: the same files give the same bytes. Disk and partition identifiers
// are derived from the content, and file times are SOURCE_DATE_EPOCH, the
// environment variable by which reproducible-builds.org hands build tools
// their time. Without it Write refuses to work, because the FAT library would
// then take the clock. The finished image replaces the old one in a
// single rename, so a half written disk never lies under the final name.
//
// Limits: sectors of 512 bytes; one partition; names must fit FAT's rules.
// The file is sparse where it is empty.
package esp

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/fat32"
	"github.com/diskfs/go-diskfs/partition/gpt"
)

// BootPath is where firmware looks on a disk that has no boot entry: UEFI
// specification 3.5.1.1, removable media boot behaviour, x86-64.
const BootPath = "/EFI/BOOT/BOOTX64.EFI"

// File is one file on the partition.
type File struct {
	Path string // absolute, with slashes
	Data []byte
}

const (
	sector    = 512
	firstLBA  = 2048             // 1 MiB, the usual alignment
	tailBytes = 1 << 20          // for the second GPT, and to end on a whole MiB
	slack     = 8 << 20          // FAT tables and growth
	minSize   = int64(128) << 20 // comfortably above FAT32's least number of clusters, and room for a second image
	maxSize   = int64(2) << 30
)

// EpochVariable names the environment variable with the time of all files,
// in unix seconds.
const EpochVariable = "SOURCE_DATE_EPOCH"

// ErrTooLarge is returned when the files need more than 2 GiB.
var ErrTooLarge = errors.New("files do not fit the system partition")

// Size returns the size in bytes of the disk image for these files: at least
// 128 MiB, with room for a second copy of everything, since an update keeps
// the old image beside the new one.
func Size(files []File) (int64, error) {
	var n int64
	for _, f := range files {
		n += int64(len(f.Data))
	}
	if n > maxSize/2-slack {
		return 0, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, n, maxSize/2-slack)
	}
	return max(minSize, (2*n+slack+firstLBA*sector+tailBytes+(1<<20)-1)>>20<<20), nil
}

// Write creates the disk image at name.
func Write(name string, files []File) error {
	if _, err := strconv.ParseInt(os.Getenv(EpochVariable), 10, 64); err != nil {
		return fmt.Errorf("disk image: set %s to the build time in unix seconds: %w", EpochVariable, err)
	}
	size, err := Size(files)
	if err != nil {
		return err
	}
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	dir, err := os.MkdirTemp(filepath.Dir(name), ".esp-")
	if err != nil {
		return fmt.Errorf("disk image: %w", err)
	}
	defer os.RemoveAll(dir)
	tmp := filepath.Join(dir, "disk")
	if err := write(tmp, size, files); err != nil {
		return fmt.Errorf("disk image: %w", err)
	}
	if err := os.Chmod(tmp, 0o644); err != nil {
		return fmt.Errorf("disk image: %w", err)
	}
	return os.Rename(tmp, name)
}

func write(tmp string, size int64, files []File) (err error) {
	disk, err := file.CreateFromPath(tmp, size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	w, err := disk.Writable()
	if err != nil {
		return err
	}
	bytes := size - firstLBA*sector - tailBytes
	table := &gpt.Table{
		LogicalSectorSize: sector, PhysicalSectorSize: sector, ProtectiveMBR: true, GUID: guid("disk", files),
		Partitions: []*gpt.Partition{{
			Index: 1, Start: firstLBA, End: firstLBA + uint64(bytes)/sector - 1, Size: uint64(bytes),
			Type: gpt.EFISystemPartition, Name: "guardhouse", GUID: guid("partition", files),
		}},
	}
	if err := table.Write(w, size); err != nil {
		return fmt.Errorf("partition table: %w", err)
	}
	fs, err := fat32.Create(disk, bytes, firstLBA*sector, sector, "GUARDHOUSE", true)
	if err != nil {
		return fmt.Errorf("file system: %w", err)
	}
	for _, f := range files {
		if err := put(fs, f); err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	return nil
}

func put(fs *fat32.FileSystem, f File) error {
	if !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || f.Path == "/" {
		return errors.New("path must be absolute and clean")
	}
	if dir := path.Dir(f.Path); dir != "/" {
		if err := fs.Mkdir(strings.TrimPrefix(dir, "/")); err != nil {
			return err
		}
	}
	out, err := fs.OpenFile(strings.TrimPrefix(f.Path, "/"), os.O_CREATE|os.O_RDWR)
	if err != nil {
		return err
	}
	_, err = out.Write(f.Data)
	return errors.Join(err, out.Close())
}

// guid derives a version 8 UUID (RFC 9562, custom) from the content.
func guid(what string, files []File) string {
	h := sha256.New()
	fmt.Fprintf(h, "guardhouse %s\n", what)
	for _, f := range files {
		fmt.Fprintf(h, "%d %s %d\n", len(f.Path), f.Path, len(f.Data))
		h.Write(f.Data)
	}
	b := h.Sum(nil)[:16]
	b[6], b[8] = b[6]&0x0f|0x80, b[8]&0x3f|0x80
	return strings.ToUpper(fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16]))
}
