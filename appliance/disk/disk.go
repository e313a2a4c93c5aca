// Package disk finds, prepares and mounts the one data disk of a node. It promises never to write to a disk that holds anything it does
// not know: only a disk whose first and last MiB are zero is formatted, only one with our own file system is mounted, and where more
// than one disk could be meant it names them and touches none.
//
// A sector of the encrypted volume whose check value is wrong is never data: reading it is an error, [KernelDamage] reads in the kernel's
// log that somebody met one, and [Scrub] finds those that nobody asked for.
//
// Limits: a damaged file system is repaired only as far as e2fsck -p goes without asking. Whose a refused sector is, is told by where files
// lie now. The programs mkfs.ext4 and e2fsck come from the image.
package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Label marks our file system; Serial is the serial number that chooses a disk where several could be meant.
const (
	Label  = "guardhouse"
	Serial = "gh-data"
)

// Kinds of Error.
const (
	KindNone      = "disk-none"      // no disk at all
	KindForeign   = "disk-foreign"   // it holds something that is not ours
	KindAmbiguous = "disk-ambiguous" // several disks could be meant
	KindDamaged   = "disk-damaged"   // our file system can't be repaired without a person
	KindFailed    = "disk-failed"    // the device or a program failed
)

// Error is why there is no data disk, with what to do about it.
type Error struct {
	Kind   string
	What   string
	Remedy string
}

func (e *Error) Error() string { return e.What + "; " + e.Remedy }

// Content is what a disk was found to hold.
type Content string

// Contents.
const (
	Blank   Content = "blank"
	Ours    Content = "ours"
	Foreign Content = "foreign"
)

// Disk is one candidate.
type Disk struct {
	Name    string // as in /sys/block: "vda"
	Path    string // device file
	Serial  string
	Size    int64 // bytes
	Content Content
	Holds   string // for people: "a partition table"
}

// Finder looks for disks. Sys and Dev are "/sys" and "/dev" but in tests. Run runs a program to its end and gives its output; PID 1 must
// pass one that its reaper knows.
type Finder struct {
	Sys, Dev string
	Run      func(ctx context.Context, program string, args ...string) ([]byte, error)
}

// virtual are block devices that are never a data disk.
var virtual = []string{"loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd"}

// List describes every fixed, writable disk.
func (f *Finder) List() ([]Disk, error) {
	entries, err := os.ReadDir(filepath.Join(f.Sys, "block"))
	if err != nil {
		return nil, &Error{KindFailed, fmt.Sprintf("can't list disks: %v", err), "restart the node; if it stays, the image does not fit the machine"}
	}
	var list []Disk
	for _, e := range entries {
		name := e.Name()
		if slices.ContainsFunc(virtual, func(p string) bool { return strings.HasPrefix(name, p) }) {
			continue
		}
		if f.attr(name, "removable") == "1" || f.attr(name, "ro") == "1" {
			continue
		}
		sectors, _ := strconv.ParseInt(f.attr(name, "size"), 10, 64) // of 512 bytes, whatever the disk's own
		if sectors <= 0 {
			continue
		}
		d := Disk{Name: name, Path: filepath.Join(f.Dev, name), Size: sectors * 512, Serial: f.attr(name, "serial")}
		if d.Serial == "" {
			d.Serial = f.attr(name, "device/serial") // NVMe
		}
		f.look(&d)
		list = append(list, d)
	}
	return list, nil
}

func (f *Finder) attr(name, attr string) string {
	b, _ := os.ReadFile(filepath.Join(f.Sys, "block", name, attr))
	return strings.TrimSpace(string(b))
}

// look fills in what the disk holds. A disk that can't be read counts as foreign.
func (f *Finder) look(d *Disk) {
	if parts, _ := filepath.Glob(filepath.Join(f.Sys, "block", d.Name, d.Name+"*", "partition")); len(parts) > 0 {
		d.Content, d.Holds = Foreign, fmt.Sprintf("a partition table with %d partitions", len(parts))
		return
	}
	file, err := os.Open(d.Path)
	if err != nil {
		d.Content, d.Holds = Foreign, fmt.Sprintf("nothing readable (%v)", err)
		return
	}
	defer file.Close()
	inspect(d, file)
}

const edge = 1 << 20

// inspect decides from the header of a volume of ours, else from the first and last MiB.
func inspect(d *Disk, r io.ReaderAt) {
	if d.Size < 8*edge {
		d.Content, d.Holds = Foreign, "too little room (8 MiB is the least)"
		return
	}
	if h, _, err := ReadHeader(r); err == nil && h.Preparing {
		d.Content, d.Holds = Blank, "a preparation that was never finished"
		return
	}
	if hasHeader(r) {
		d.Content, d.Holds = Ours, "our encrypted volume"
		return
	}
	head, tail := make([]byte, edge), make([]byte, edge)
	if _, err := r.ReadAt(head, 0); err != nil {
		d.Content, d.Holds = Foreign, fmt.Sprintf("nothing readable (%v)", err)
		return
	}
	if _, err := r.ReadAt(tail, d.Size-edge); err != nil {
		d.Content, d.Holds = Foreign, fmt.Sprintf("an unreadable end (%v)", err)
		return
	}
	if zero(head) && zero(tail) {
		d.Content, d.Holds = Blank, "nothing"
		return
	}
	d.Content, d.Holds = Foreign, "data of unknown kind"
	if head[superMagic] == 0x53 && head[superMagic+1] == 0xef {
		d.Holds = "an unencrypted Linux file system"
	}
	if head[510] == 0x55 && head[511] == 0xaa {
		d.Holds = "a partition table or a boot sector"
	}
}

func zero(b []byte) bool {
	return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 })
}

// Choose picks the data disk: the one with our serial number, else the only one with our file system, else the only blank one.
func Choose(list []Disk) (Disk, error) {
	var chosen, ours, blank []Disk
	for _, d := range list {
		if d.Serial == Serial {
			chosen = append(chosen, d)
		}
		switch d.Content {
		case Ours:
			ours = append(ours, d)
		case Blank:
			blank = append(blank, d)
		}
	}
	for _, set := range [][]Disk{chosen, ours, blank} {
		switch {
		case len(set) > 1:
			return Disk{}, &Error{KindAmbiguous, fmt.Sprintf("%d disks could be the data disk: %s", len(set), names(set)),
				"leave one of them attached, or give the right one the serial number " + Serial}
		case len(set) == 1 && set[0].Content == Foreign:
			return Disk{}, &Error{KindForeign, fmt.Sprintf("the data disk %s holds %s, it is left untouched", set[0].Name, set[0].Holds),
				"attach another disk, or make its first and last MiB zero if nobody needs what it holds"}
		case len(set) == 1:
			return set[0], nil
		}
	}
	if len(list) == 0 {
		return Disk{}, &Error{KindNone, "there is no disk for the node's data", "attach a blank disk of at least 64 MiB"}
	}
	return Disk{}, &Error{KindForeign, fmt.Sprintf("no disk is blank or ours: %s; all are left untouched", names(list)),
		"attach a blank disk, or make the first and last MiB of one of them zero if nobody needs what it holds"}
}

func names(list []Disk) string {
	var parts []string
	for _, d := range list {
		s := fmt.Sprintf("%s (%d MiB, holds %s", d.Name, d.Size>>20, d.Holds)
		if d.Serial != "" {
			s += ", serial " + strconv.Quote(d.Serial)
		}
		parts = append(parts, s+")")
	}
	return strings.Join(parts, ", ")
}

func firstLine(out []byte) string {
	s, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return s
}

// tool is the first place where the image has the program.
func tool(name string) string {
	for _, dir := range []string{"/sbin", "/usr/sbin", "/bin"} {
		if p := dir + "/" + name; exists(p) {
			return p
		}
	}
	return "/sbin/" + name
}

func exists(p string) bool {
	_, err := os.Stat(p)
	return err == nil
}

// Unmount makes everything durable and unmounts target; where something still uses it, it is remounted read-only.
func Unmount(target string) error {
	unix.Sync()
	err := unix.Unmount(target, 0)
	if err == nil || errors.Is(err, unix.EINVAL) { // EINVAL: not mounted
		return nil
	}
	if rerr := unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); rerr != nil {
		return fmt.Errorf("unmount %s: %w", target, errors.Join(err, rerr))
	}
	return nil
}

// Folder makes path with exactly this owner and mode, whatever it was before. A link or file in its place is refused.
func Folder(path string, uid, gid uint32, mode fs.FileMode) error {
	if err := os.MkdirAll(path, mode); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	st, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	if !st.IsDir() {
		return fmt.Errorf("%s is not a folder", path)
	}
	if err := errors.Join(os.Lchown(path, int(uid), int(gid)), os.Chmod(path, mode)); err != nil {
		return fmt.Errorf("hand over folder: %w", err)
	}
	return nil
}

// Size is the room of the file system at target, in bytes: all, and free for services.
func Size(target string) (all, free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(target, &st); err != nil {
		return 0, 0, fmt.Errorf("look at %s: %w", target, err)
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil
}
