package sandbox

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// View is what a process with file systems of its own sees: an empty Tmp that nobody else sees, and of the folders in Hide nothing but
// Keep. Paths are absolute. The view is empty for a process that shares those of the node.
type View struct {
	Tmp  string   `json:"tmp,omitempty"`
	Hide []string `json:"hide,omitempty"`
	Keep []Kept   `json:"keep,omitempty"`
}

// Kept is a folder below a hidden one that stays.
type Kept struct {
	Path  string `json:"path"`
	Write bool   `json:"write,omitempty"`
}

// viewTmp is the size of a view's Tmp.
const viewTmp = "mode=1777,size=8m"

const viewFlags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// enter gives this thread, and so the program it becomes, mounts and System V memory of its own. It needs root.
func (v View) enter() error {
	if v.Tmp == "" && len(v.Hide) == 0 {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWIPC); err != nil {
		return fmt.Errorf("own mounts: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("own mounts: %w", err)
	}
	kept := make([]int, len(v.Keep)) // what stays is held by descriptor while its parent is covered
	for i, k := range v.Keep {
		fd, err := unix.OpenTree(unix.AT_FDCWD, k.Path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return fmt.Errorf("own mounts: %s: %w", k.Path, err)
		}
		defer unix.Close(fd)
		kept[i] = fd
	}
	for _, dir := range v.Hide {
		if err := unix.Mount("tmpfs", dir, "tmpfs", viewFlags, "mode=0755,size=64k"); err != nil {
			return fmt.Errorf("hide %s: %w", dir, err)
		}
	}
	for i, k := range v.Keep {
		if err := k.restore(kept[i]); err != nil {
			return fmt.Errorf("keep %s: %w", k.Path, err)
		}
	}
	for _, dir := range v.Hide {
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY|viewFlags, ""); err != nil {
			return fmt.Errorf("hide %s: %w", dir, err)
		}
	}
	if v.Tmp != "" {
		if err := unix.Mount("tmpfs", v.Tmp, "tmpfs", viewFlags, viewTmp); err != nil {
			return fmt.Errorf("own %s: %w", v.Tmp, err)
		}
	}
	return nil
}

func (k Kept) restore(fd int) error {
	flags := uintptr(unix.MS_BIND | unix.MS_REMOUNT | viewFlags)
	if !k.Write {
		flags |= unix.MS_RDONLY
	}
	return errors.Join(os.MkdirAll(k.Path, 0o755), unix.MoveMount(fd, "", unix.AT_FDCWD, k.Path, unix.MOVE_MOUNT_F_EMPTY_PATH),
		unix.Mount("", k.Path, "", flags, ""))
}
