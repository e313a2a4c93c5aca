package disk

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ext4 superblock fields, offsets from the start of the device (the kernel's Documentation/filesystems/ext4/super.rst).
const (
	superMagic    = 1024 + 0x38
	superState    = 1024 + 0x3a
	superIncompat = 1024 + 0x60
	superSize     = 2048 // bytes to read
	stateClean    = 1
	stateErrors   = 2
	needsRecovery = 4
)

// MakeFS makes an empty file system on the device at path.
func (f *Finder) MakeFS(ctx context.Context, path string) error {
	out, err := f.Run(ctx, tool("mkfs.ext4"), "-q", "-F", "-L", Label, "-m", "1", path)
	if err != nil {
		return failed("format", path, out, err)
	}
	return nil
}

// CheckFS repairs the file system at path where it was not unmounted cleanly. It says in a few words what it did.
func (f *Finder) CheckFS(ctx context.Context, path string) (string, error) {
	unclean, err := fsUnclean(path)
	if err != nil {
		return "", err
	}
	if !unclean {
		return "clean", nil
	}
	return f.repair(ctx, path)
}

// fsUnclean is true for a file system that was not unmounted cleanly or has errors noted.
func fsUnclean(path string) (bool, error) {
	file, err := os.Open(path)
	if err != nil {
		return false, failed("look at", path, nil, err)
	}
	defer file.Close()
	b := make([]byte, superSize)
	if _, err := file.ReadAt(b, 0); err != nil {
		return false, failed("look at", path, nil, err)
	}
	if b[superMagic] != 0x53 || b[superMagic+1] != 0xef {
		return false, &Error{KindDamaged, "the volume holds no file system", "restore the node from a backup or from its cluster"}
	}
	state := uint16(b[superState]) | uint16(b[superState+1])<<8
	return state&stateClean == 0 || state&stateErrors != 0 || b[superIncompat]&needsRecovery != 0, nil
}

// repair runs e2fsck -p. Its exit code is a sum of bits (e2fsck(8)): 1 and 2 mean corrected, 4 left uncorrected, 8 can't be opened as a
// file system although its superblock is one.
func (f *Finder) repair(ctx context.Context, path string) (string, error) {
	out, err := f.Run(ctx, tool("e2fsck"), "-p", path)
	var exit interface{ ExitCode() int }
	switch {
	case err == nil:
		return "recovered after a hard stop", nil
	case errors.As(err, &exit) && exit.ExitCode() > 0 && exit.ExitCode()&^3 == 0:
		return "repaired after a hard stop", nil
	case errors.As(err, &exit) && exit.ExitCode()&(4|8) != 0:
		return "", &Error{KindDamaged, fmt.Sprintf("the file system on %s is damaged beyond automatic repair: %s", path, firstLine(out)),
			"keep the disk as it is; replace it by a blank one and restore, or have the file system repaired elsewhere with e2fsck"}
	}
	return "", failed("check", path, out, err)
}

func failed(verb, path string, out []byte, err error) error {
	return &Error{KindFailed, fmt.Sprintf("can't %s %s: %v: %s", verb, path, err, firstLine(out)), "restart the node; if it stays, replace the disk"}
}

// Mount mounts the file system of the device at path. A file system error stops writing instead of the machine.
func Mount(path, target string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return failed("mount", path, nil, err)
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME)
	if err := unix.Mount(path, target, "ext4", flags, "errors=remount-ro"); err != nil {
		return failed("mount", path, nil, err)
	}
	return nil
}
