// Package esp writes a disk image that UEFI firmware boots from: a GPT with
// two FAT32 partitions of the same size, disk.SlotNames, that hold the same
// files. Firmware starts the first; the second is what the node updates, and
// what it falls back to when the first is damaged.
//
// Promise: the same files and time give the same bytes. Disk and partition
// identifiers are derived from the content, and file times are
// SOURCE_DATE_EPOCH, the environment variable by which
// reproducible-builds.org hands build tools their time; without it Write
// refuses to work. The finished image replaces the old one in a single
// rename, so a half written disk never lies under the final name.
//
// Limits: sectors of 512 bytes; names must fit disk.FATFile. The file is
// sparse where it is empty.
package esp

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/partition/gpt"

	"guardhouse/appliance/disk"
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
	firstLBA  = 2048      // 1 MiB, the usual alignment
	tailBytes = 1 << 20   // for the second GPT, and to end on a whole MiB
	slack     = 8 << 20   // FAT tables and the small files
	minSlot   = 64 << 20  // comfortably above FAT32's least number of clusters
	maxSlot   = 512 << 20 //
)

// EpochVariable names the environment variable with the time of all files,
// in unix seconds.
const EpochVariable = "SOURCE_DATE_EPOCH"

// ErrTooLarge is returned when the files need more than 512 MiB.
var ErrTooLarge = errors.New("files do not fit the system partition")

// SlotSize returns the size in bytes of each of the two partitions for these
// files: at least 64 MiB, with room for files twice their size, since
// releases grow and slots don't.
func SlotSize(files []File) (int64, error) {
	var n int64
	for _, f := range files {
		n += int64(len(f.Data))
	}
	if n > (maxSlot-slack)/2 {
		return 0, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, n, (maxSlot-slack)/2)
	}
	return max(minSlot, (2*n+slack+(1<<20)-1)>>20<<20), nil
}

// Write creates the disk image at name.
func Write(name string, files []File) error {
	epoch, err := strconv.ParseInt(os.Getenv(EpochVariable), 10, 64)
	if err != nil {
		return fmt.Errorf("disk image: set %s to the build time in unix seconds: %w", EpochVariable, err)
	}
	size, err := SlotSize(files)
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
	if err := write(tmp, size, files, epoch); err != nil {
		return fmt.Errorf("disk image: %w", err)
	}
	if err := os.Chmod(tmp, 0o644); err != nil {
		return fmt.Errorf("disk image: %w", err)
	}
	return os.Rename(tmp, name)
}

func write(tmp string, slot int64, files []File, epoch int64) (err error) {
	size := firstLBA*sector + 2*slot + tailBytes
	image, err := file.CreateFromPath(tmp, size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, image.Close()) }()
	w, err := image.Writable()
	if err != nil {
		return err
	}
	table := &gpt.Table{LogicalSectorSize: sector, PhysicalSectorSize: sector, ProtectiveMBR: true, GUID: guid("disk", files)}
	for i, name := range disk.SlotNames {
		start := firstLBA + uint64(i)*uint64(slot)/sector
		table.Partitions = append(table.Partitions, &gpt.Partition{Index: i + 1, Start: start, End: start + uint64(slot)/sector - 1, Size: uint64(slot),
			Type: gpt.EFISystemPartition, Name: name, GUID: guid(name, files)})
	}
	if err := table.Write(w, size); err != nil {
		return fmt.Errorf("partition table: %w", err)
	}
	var plan []disk.FATFile
	var contents [][]byte
	for _, f := range files {
		plan, contents = append(plan, disk.FATFile{Path: f.Path, Size: int64(len(f.Data)), SHA256: sha256.Sum256(f.Data)}), append(contents, f.Data)
	}
	fs, err := disk.PlanFAT(slot, plan, epoch)
	if err != nil {
		return err
	}
	for i := range disk.SlotNames {
		if err := fs.Write(offset{w, firstLBA*sector + int64(i)*slot}, contents); err != nil {
			return fmt.Errorf("file system: %w", err)
		}
	}
	return nil
}

// offset writes from a place in the image on.
type offset struct {
	w interface {
		WriteAt(p []byte, off int64) (int, error)
	}
	at int64
}

func (o offset) WriteAt(p []byte, off int64) (int, error) { return o.w.WriteAt(p, o.at+off) }

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
