package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxPartitions bounds how many partitions are looked at for a boot file.
const maxPartitions = 64

// BootFiles reads a file of at most limit bytes from every FAT partition of the machine that has it: what lies beside the boot images.
// Each is mounted read-only at dir while it is read. What can't be read is left out and told in notes; who uses a file must not trust
// it for where it lay.
func (f *Finder) BootFiles(dir, name string, limit int64) (files [][]byte, notes []string) {
	partitions, _ := filepath.Glob(filepath.Join(f.Sys, "block", "*", "*", "partition"))
	for _, p := range partitions[:min(len(partitions), maxPartitions)] {
		device := filepath.Join(f.Dev, filepath.Base(filepath.Dir(p)))
		b, err := readFrom(device, dir, name, limit)
		switch {
		case err == nil:
			files = append(files, b)
		case !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EINVAL): // EINVAL: not FAT
			notes = append(notes, fmt.Sprintf("%s: %v", filepath.Base(device), err))
		}
	}
	return files, notes
}

// Errors of BootFile.
var (
	ErrNoFile    = errors.New("no attached disk has such a file")
	ErrManyFiles = errors.New("several files fit")
)

// BootFile gives read the one file whose name fits the pattern (path.Match) in the root of the first FAT file system that has one, whole
// disks included, since sticks often have no partitions. It is mounted read-only at dir meanwhile. ErrNoFile, or ErrManyFiles where the
// first file system with one has more.
func (f *Finder) BootFile(dir, pattern string, read func(name string, r io.Reader) error) error {
	devices, _ := filepath.Glob(filepath.Join(f.Sys, "block", "*", "*", "partition"))
	for i := range devices {
		devices[i] = filepath.Base(filepath.Dir(devices[i]))
	}
	whole, _ := filepath.Glob(filepath.Join(f.Sys, "block", "*"))
	for _, d := range whole {
		devices = append(devices, filepath.Base(d))
	}
	for _, d := range devices[:min(len(devices), maxPartitions)] {
		found, err := readWith(filepath.Join(f.Dev, d), dir, pattern, read)
		if found {
			return err
		}
	}
	return fmt.Errorf("%w: %s in the root of a FAT file system", ErrNoFile, pattern)
}

// readWith gives read the file of a device that fits the pattern.
func readWith(device, dir, pattern string, read func(name string, r io.Reader) error) (found bool, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return false, err
	}
	flags := uintptr(unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if err := unix.Mount(device, dir, "vfat", flags, ""); err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, unix.Unmount(dir, 0)) }()
	names, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(names) == 0 {
		return false, errors.Join(err, os.ErrNotExist)
	}
	if len(names) > 1 {
		return true, fmt.Errorf("%w: %s has %d, among them %q and %q", ErrManyFiles, filepath.Base(device), len(names), filepath.Base(names[0]), filepath.Base(names[1]))
	}
	file, err := os.Open(names[0])
	if err != nil {
		return false, err
	}
	defer file.Close()
	return true, read(filepath.Base(names[0]), file)
}

func readFrom(device, dir, name string, limit int64) (b []byte, err error) {
	found, err := readWith(device, dir, name, func(_ string, r io.Reader) error {
		if b, err = io.ReadAll(io.LimitReader(r, limit+1)); err == nil && int64(len(b)) > limit {
			err = fmt.Errorf("%s is larger than %d bytes", name, limit)
		}
		return err
	})
	if err == nil && !found {
		err = os.ErrNotExist
	}
	return b, err
}
