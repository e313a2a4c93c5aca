package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/rpc"
)

// Confinement is what the kernel keeps a process to, whatever its code comes to do: Landlock for files, seccomp for system calls. Both
// hold for all its threads and children, and nothing takes them back. A kernel without one of them is an error, not less confinement.
type Confinement struct {
	Files      []Reach  `json:"files,omitempty"`      // all that it may open; its own program, which it may also start, is always among them
	AnyFile    bool     `json:"anyFile,omitempty"`    // it may open what its uid may; Files is empty
	AnyProgram bool     `json:"anyProgram,omitempty"` // it may start any program, not only its own; needs AnyFile
	Calls      []string `json:"calls,omitempty"`      // all system calls that it may make, by name; the others fail with EPERM
	Filter     *Filter  `json:"filter,omitempty"`     // or what it may not call; neither: any
}

// At is the confinement for a run with the processes' doors in another folder than rpc.SocketDir.
func (c *Confinement) At(runDir string) *Confinement {
	if c == nil {
		return nil
	}
	moved := *c
	moved.Files = slices.Clone(c.Files)
	for i, f := range moved.Files {
		if below, ok := strings.CutPrefix(f.Path, rpc.SocketDir+"/"); ok {
			moved.Files[i].Path = filepath.Join(runDir, below)
		}
	}
	return &moved
}

// Reach is a file, or a folder with all in it. It is read only; with Write everything but starting programs may be done there.
type Reach struct {
	Path  string `json:"path"`
	Write bool   `json:"write,omitempty"`
}

// GoCalls are the system calls of a static Go program that reads and writes what it holds already and opens files. Nothing in it makes
// sockets, processes or memory that is both data and code: see conditions.
var GoCalls = []string{
	"read", "write", "readv", "writev", "pread64", "pwrite64", "lseek", "close", "fcntl", "fstat", "newfstatat", "openat", "readlinkat",
	"mmap", "munmap", "mprotect", "madvise", "mincore", "brk",
	"clone", "exit", "exit_group", "futex", "sched_yield", "sched_getaffinity", "set_robust_list", "set_tid_address", "rseq", "arch_prctl",
	"rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "tgkill", "gettid", "getpid", "getuid", "geteuid", "getgid", "getegid", "restart_syscall",
	"nanosleep", "clock_gettime", "clock_nanosleep", "timer_create", "timer_settime", "timer_delete", "getrandom", "prlimit64", "uname",
	"epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "eventfd2", "pipe2",
	"execve", // the shim's own last one; Landlock leaves it nothing to start but the program itself
}

// conditions narrow system calls that are too much in whole: a thread is no process, and memory never becomes code.
var conditions = map[string]branch{
	"clone":    {[]test{{arg: 0, mask: unix.CLONE_THREAD, want: 0}}, refuse},
	"mmap":     {[]test{{arg: 2, mask: unix.PROT_EXEC, want: unix.PROT_EXEC}}, refuse},
	"mprotect": {[]test{{arg: 2, mask: unix.PROT_EXEC, want: unix.PROT_EXEC}}, refuse},
}

// enter confines this thread, and so the program it becomes. no_new_privs must be set.
func (c *Confinement) enter(program string) error {
	if c == nil {
		return nil
	}
	if len(c.Calls) > 0 && c.Filter != nil || len(c.Files) > 0 && c.AnyFile || c.AnyProgram && !c.AnyFile {
		return errors.New("the confinement contradicts itself")
	}
	if !c.AnyProgram {
		if err := c.limitFiles(program); err != nil {
			return err
		}
	}
	var p callPolicy
	switch {
	case c.Filter != nil:
		var err error
		if p, err = c.Filter.policy(); err != nil {
			return fmt.Errorf("limit system calls: %w", err)
		}
	case len(c.Calls) > 0:
		p = only(c.Calls)
	default:
		return nil
	}
	if err := p.load(0); err != nil {
		return fmt.Errorf("limit system calls: %w", err)
	}
	return nil
}

// only allows the named calls. Refusing the others instead of killing leaves the process able to say what went wrong, and it gains as
// little by it.
func only(names []string) callPolicy {
	p := callPolicy{otherwise: refuse, calls: map[string]verdict{}}
	for _, name := range names {
		v := verdict{otherwise: allow}
		if narrow, ok := conditions[name]; ok {
			v.branches = []branch{narrow}
		}
		p.calls[name] = v
	}
	return p
}

// Rights of Landlock by what they are for, and the version of its interface that brought the later ones.
const (
	readRights  = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	startRights = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_EXECUTE
	fileRights  = startRights | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV // all that a file can have
)

// landlockRights are all rights on files that Landlock's interface of this version knows.
func landlockRights(version int) uint64 {
	all := uint64(unix.LANDLOCK_ACCESS_FS_MAKE_SYM<<1 - 1) // version 1: the thirteen up to MAKE_SYM
	for _, later := range []struct {
		since int
		right uint64
	}{{2, unix.LANDLOCK_ACCESS_FS_REFER}, {3, unix.LANDLOCK_ACCESS_FS_TRUNCATE}, {5, unix.LANDLOCK_ACCESS_FS_IOCTL_DEV}} {
		if version >= later.since {
			all |= later.right
		}
	}
	return all
}

func (c *Confinement) limitFiles(program string) error {
	version, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if e != 0 {
		return fmt.Errorf("limit files: this kernel has no Landlock: %w", e)
	}
	all := landlockRights(int(version))
	rules := map[string]uint64{program: startRights}
	if c.AnyFile {
		// Nothing is asked about but starting. Moving a file to another folder is always forbidden where no rule allows it.
		all &= unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_REFER
		rules["/"] = unix.LANDLOCK_ACCESS_FS_REFER
	}
	set, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&all)), unsafe.Sizeof(all), 0)
	if e != 0 {
		return fmt.Errorf("limit files: %w", e)
	}
	defer unix.Close(int(set))
	for _, f := range c.Files {
		rules[f.Path] |= readRights
		if f.Write {
			rules[f.Path] |= all &^ unix.LANDLOCK_ACCESS_FS_EXECUTE
		}
	}
	for path, rights := range rules {
		if err := allowFile(int(set), path, rights&all); err != nil {
			return fmt.Errorf("limit files: %s: %w", path, err)
		}
	}
	if _, _, e := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, set, 0, 0); e != 0 {
		return fmt.Errorf("limit files: %w", e)
	}
	return nil
}

// allowFile adds a rule. A path that is not there needs none.
func allowFile(set int, path string, rights uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		rights &= fileRights
	}
	rule := unix.LandlockPathBeneathAttr{Allowed_access: rights, Parent_fd: int32(fd)}
	if _, _, e := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(set), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0); e != 0 {
		return e
	}
	return nil
}

// withCalls is GoCalls and more.
func withCalls(more ...string) []string { return slices.Concat(GoCalls, more) }
