package fault

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// frontFile is the name of the disk in the FUSE folder.
const frontFile = "disk.img"

// Front turns this process into a volume's front when [OpenVolume] started it as one, and then never returns.
// Otherwise it does nothing. Call it first thing in TestMain of a package that uses volumes.
func Front() {
	text := os.Getenv(frontEnv)
	if text == "" {
		return
	}
	os.Unsetenv(frontEnv) // not for the programs that the front starts
	if err := runFront(text); err != nil {
		fmt.Fprintln(os.Stderr, "fault front:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// front is the state of the child process.
type front struct {
	cfg     frontConfig
	disk    *Disk
	mounted bool
}

// runFront serves requests until standard input ends, then unmounts everything.
func runFront(text string) error {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE)
	f := &front{}
	if err := json.Unmarshal([]byte(text), &f.cfg); err != nil {
		return err
	}
	var err error
	if f.disk, err = Open(f.cfg.Image, f.cfg.Size); err != nil {
		return err
	}
	defer f.disk.Close()
	server, err := mountFront(f.cfg.Front, f.disk)
	if err != nil {
		return fmt.Errorf("mount fuse: %w", err)
	}
	defer func() {
		if server.Unmount() != nil {
			_ = syscall.Unmount(f.cfg.Front, syscall.MNT_DETACH)
		}
	}()
	in, out := bufio.NewScanner(os.Stdin), json.NewEncoder(os.Stdout)
	for in.Scan() {
		var q frontRequest
		if err := json.Unmarshal(in.Bytes(), &q); err != nil {
			return err
		}
		reply := f.serve(q)
		if out.Encode(reply) != nil {
			break // nobody is there
		}
	}
	return f.unmount()
}

func (f *front) serve(q frontRequest) frontReply {
	var r frontReply
	var err error
	switch q.Op {
	case "mount":
		err = f.mount()
	case "unmount":
		err = f.unmount()
	case "cut":
		report := f.disk.Cut(q.Seed)
		r.Report = &report
	case "ready": // it has the disk, or it would not answer
	default:
		err = fmt.Errorf("unknown request %q", q.Op)
	}
	if err != nil {
		r.Error = err.Error()
	}
	return r
}

// mount checks or makes the file system and mounts it over a loop device that goes away with the mount.
func (f *front) mount() error {
	if f.mounted {
		return errors.New("it is mounted")
	}
	f.disk.PowerOn()
	file := filepath.Join(f.cfg.Front, frontFile)
	var magic [2]byte
	if _, err := f.disk.ReadAt(magic[:], 1024+56); err != nil {
		return err
	}
	if magic != [2]byte{0x53, 0xef} {
		if err := run("mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", file); err != nil {
			return err
		}
	} else if err := run("e2fsck", "-p", file); err != nil {
		// 1 means repaired, which a replay is; anything else is damage that a disk with working flushes never shows.
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 {
			return err
		}
	}
	if err := f.disk.Flush(); err != nil {
		return err
	}
	opts := "loop,errors=remount-ro"
	if f.cfg.Options != "" {
		opts += "," + f.cfg.Options
	}
	if err := run("mount", "-t", "ext4", "-o", opts, file, f.cfg.Mnt); err != nil {
		return err
	}
	f.mounted = true
	return nil
}

// unmount waits up to 5 s for the file system's users, then detaches it from them.
func (f *front) unmount() error {
	if !f.mounted {
		return nil
	}
	var err error
	for range 100 {
		if err = syscall.Unmount(f.cfg.Mnt, 0); !errors.Is(err, syscall.EBUSY) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		_ = syscall.Unmount(f.cfg.Mnt, syscall.MNT_DETACH)
		err = fmt.Errorf("unmount: %w: a program still uses it; detached", err)
	}
	f.mounted = false
	return err
}

func run(name string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %.300s", name, err, out)
	}
	return nil
}

// mountFront mounts a folder with the disk as its one file.
func mountFront(dir string, d *Disk) (*fuse.Server, error) {
	// A front that was killed leaves a dead mount behind.
	for syscall.Unmount(dir, syscall.MNT_DETACH) == nil {
		continue
	}
	root := &frontRoot{disk: d}
	forever := time.Hour
	return fs.Mount(dir, root, &fs.Options{
		AttrTimeout: &forever, EntryTimeout: &forever,
		MountOptions: fuse.MountOptions{
			DirectMountStrict: true, FsName: "guardhouse-fault", Name: "fault", MaxWrite: 1 << 20, DisableXAttrs: true,
		},
	})
}

// frontRoot is the FUSE folder.
type frontRoot struct {
	fs.Inode
	disk *Disk
}

// OnAdd puts the disk into the folder.
func (r *frontRoot) OnAdd(ctx context.Context) {
	child := r.NewPersistentInode(ctx, &frontDisk{disk: r.disk}, fs.StableAttr{Mode: syscall.S_IFREG})
	r.AddChild(frontFile, child, true)
}

// frontDisk is the FUSE file: reads and writes pass the page cache by, fsync is the disk's flush.
type frontDisk struct {
	fs.Inode
	disk *Disk
}

// Getattr gives the disk's size.
func (n *frontDisk) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size, out.Blksize = syscall.S_IFREG|0o600, uint64(n.disk.Size()), 4096
	out.Blocks = out.Size / 512
	return 0
}

// Setattr accepts changes of time and nothing else: a disk does not change its size.
func (n *frontDisk) Setattr(ctx context.Context, h fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok && size != uint64(n.disk.Size()) {
		return syscall.EPERM
	}
	return n.Getattr(ctx, h, out)
}

// Open keeps the kernel from caching, so that what the disk lost is not read from memory.
func (n *frontDisk) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

// Read reads up to the end of the disk.
func (n *frontDisk) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if off < 0 || off >= n.disk.Size() {
		return fuse.ReadResultData(nil), 0
	}
	dest = dest[:min(int64(len(dest)), n.disk.Size()-off)]
	if _, err := n.disk.ReadAt(dest, off); err != nil {
		return nil, syscall.EIO
	}
	return fuse.ReadResultData(dest), 0
}

// Write holds the data until Fsync.
func (n *frontDisk) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	if err := n.disk.Write(data, off, false); err != nil {
		if errors.Is(err, ErrRange) {
			return 0, syscall.ENOSPC
		}
		return 0, syscall.EIO
	}
	return uint32(len(data)), 0
}

// Fsync is the flush of the loop device above.
func (n *frontDisk) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	if n.disk.Flush() != nil {
		return syscall.EIO
	}
	return 0
}

// Flush is called at close(2) and means nothing to a disk.
func (n *frontDisk) Flush(context.Context, fs.FileHandle) syscall.Errno { return 0 }
