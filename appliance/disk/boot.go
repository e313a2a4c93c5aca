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

func readFrom(device, dir, name string, limit int64) (b []byte, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	flags := uintptr(unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if err := unix.Mount(device, dir, "vfat", flags, ""); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unix.Unmount(dir, 0)) }()
	file, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if b, err = io.ReadAll(io.LimitReader(file, limit+1)); err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", name, limit)
	}
	return b, err
}
