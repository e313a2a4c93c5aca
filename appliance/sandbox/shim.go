package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ShimName is argv[0] of the shim: the running program itself, started again to give up its rights and become a service.
const ShimName = "guardhouse-shim"

// Launch is what the shim does before it becomes the program. It holds nothing secret: it is in argv until the exec.
type Launch struct {
	Program      string       `json:"program"`
	Argv0        string       `json:"argv0,omitempty"` // "" = Program
	Args         []string     `json:"args"`
	Env          []string     `json:"env"` // the whole environment of the program, but for LISTEN_* and WATCHDOG_PID
	UID          *uint32      `json:"uid,omitempty"`
	GID          *uint32      `json:"gid,omitempty"` // both nil: stay who we are, for runs without root
	Capabilities []Capability `json:"capabilities,omitempty"`
	Limits       Limits       `json:"limits"`
	OOMScore     *int         `json:"oomScore,omitempty"`
	Sockets      []string     `json:"sockets,omitempty"` // names of the descriptors from 3 on
	NewSession   bool         `json:"newSession"`
	View         View         `json:"view"`
	Umask        int          `json:"umask,omitempty"` // 0 = the caller's
	Confine      *Confinement `json:"confine,omitempty"`
}

// LaunchOf is the Launch of a row, with more environment.
func LaunchOf(p Process, env ...string) Launch {
	l := Launch{Program: p.Program, Args: p.Args, Env: append(BaseEnv(p), env...), UID: &p.UID, GID: &p.GID,
		Capabilities: p.Capabilities, Limits: p.Limits, OOMScore: &p.OOMScore, NewSession: true, View: p.View, Umask: p.Umask, Confine: p.Confine}
	return l
}

// BaseEnv is the environment every process gets: nothing is inherited from init.
func BaseEnv(p Process) []string {
	env := []string{"PATH=/nowhere", "HOME=/nowhere", "LANG=C.UTF-8", "TERM=vt102", "GOTRACEBACK=all"}
	if p.Limits.Heap > 0 {
		env = append(env, "GOMEMLIMIT="+strconv.FormatInt(p.Limits.Heap, 10))
	}
	return env
}

// Command starts l through the shim. files become descriptors 3, 4, ... and must match l.Sockets. The program that calls this must have
// called Shim first thing in its main (or TestMain).
func Command(l Launch, files []*os.File) (*exec.Cmd, error) {
	if len(files) != len(l.Sockets) {
		return nil, fmt.Errorf("%d descriptors for %d socket names", len(files), len(l.Sockets))
	}
	spec, err := json.Marshal(l)
	if err != nil {
		return nil, fmt.Errorf("describe the launch: %w", err)
	}
	return &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{ShimName, string(spec)}, Env: []string{}, ExtraFiles: files,
		SysProcAttr: &syscall.SysProcAttr{Setsid: l.NewSession},
	}, nil
}

// IsShim reports whether this process was started by Command.
func IsShim() bool { return len(os.Args) == 2 && os.Args[0] == ShimName }

// Shim becomes the service if this process was started by Command: it then never returns, and exits with 125 where it can't give up a
// right or start the program. In any other process it does nothing.
func Shim() {
	if !IsShim() {
		return
	}
	err := become([]byte(os.Args[1]))
	fmt.Fprintln(os.Stderr, "can't start:", err)
	os.Exit(125)
}

// become gives up rights on this thread and replaces the process from the same thread: an exec takes the credentials of the thread that
// calls it and ends all the others, so theirs never matter.
func become(spec []byte) error {
	runtime.LockOSThread()
	var l Launch
	if err := json.Unmarshal(spec, &l); err != nil {
		return fmt.Errorf("read the launch: %w", err)
	}
	env := append([]string{}, l.Env...)
	pid := strconv.Itoa(os.Getpid())
	if len(l.Sockets) > 0 {
		env = append(env, "LISTEN_PID="+pid, "LISTEN_FDS="+strconv.Itoa(len(l.Sockets)), "LISTEN_FDNAMES="+strings.Join(l.Sockets, ":"))
	}
	env = append(env, "WATCHDOG_PID="+pid)
	if l.OOMScore != nil && l.UID != nil {
		// A score may be lowered only with CAP_SYS_RESOURCE, so it comes first. A container may lack it; then the score just stays.
		err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(*l.OOMScore)), 0)
		if err != nil && !(errors.Is(err, unix.EACCES) && *l.OOMScore < 0) {
			return fmt.Errorf("set the out-of-memory score: %w", err)
		}
	}
	if err := l.View.enter(); err != nil {
		return err
	}
	if l.Umask != 0 {
		unix.Umask(l.Umask)
	}
	if l.UID == nil {
		l.Limits.Tasks = 0 // it would count everything else that runs under our own uid
	}
	if err := limit(l.Limits); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid new rights: %w", err)
	}
	if l.UID != nil && l.GID != nil {
		if err := dropTo(*l.UID, *l.GID, l.Capabilities); err != nil {
			return err
		}
	}
	// A program file its user may not read keeps this over the exec; the services set it again themselves.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid dumps: %w", err)
	}
	unix.CloseRange(uint(3+len(l.Sockets)), ^uint(0)>>32, unix.CLOSE_RANGE_CLOEXEC)
	argv0 := l.Argv0
	if argv0 == "" {
		argv0 = l.Program
	}
	if err := l.Confine.enter(l.Program); err != nil {
		return err
	}
	err := unix.Exec(l.Program, append([]string{argv0}, l.Args...), env)
	return fmt.Errorf("run %s: %w", l.Program, err)
}

func limit(l Limits) error {
	set := []struct {
		what  int
		name  string
		value uint64
	}{
		{unix.RLIMIT_CORE, "core", 0}, {unix.RLIMIT_NOFILE, "open files", l.Files},
		{unix.RLIMIT_DATA, "data", l.Data}, {unix.RLIMIT_MEMLOCK, "locked memory", l.Locked},
		{unix.RLIMIT_NPROC, "tasks", l.Tasks},
	}
	for _, s := range set {
		if s.value == 0 && s.what != unix.RLIMIT_CORE {
			continue
		}
		// Not unix.Setrlimit: Go remembers the file limit it found at start and puts it back in an exec; the raw call is final.
		lim := unix.Rlimit{Cur: s.value, Max: s.value}
		if err := unix.Prlimit(0, s.what, &lim, nil); err != nil {
			return fmt.Errorf("limit %s: %w", s.name, err)
		}
	}
	return nil
}

// highestCapability is the last bit tried; the kernel answers EINVAL for those it does not have.
const highestCapability = 63

func dropTo(uid, gid uint32, keep []Capability) error {
	var mask uint64
	for _, c := range keep {
		mask |= 1 << c
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	for c := 0; c <= highestCapability; c++ {
		if mask&(1<<c) != 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	// Permitted capabilities survive the change of uid only with KEEPCAPS; capset below cuts them down to the mask.
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities over the change of uid: %w", err)
	}
	// Raw calls: those of package syscall would change all threads; this thread alone goes on.
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); e != 0 {
		return fmt.Errorf("leave all groups: %w", e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)); e != 0 {
		return fmt.Errorf("become group %d: %w", gid, e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
		return fmt.Errorf("become user %d: %w", uid, e)
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	for i := range data {
		bits := uint32(mask >> (32 * i))
		data[i] = unix.CapUserData{Effective: bits, Permitted: bits, Inheritable: bits}
	}
	if err := unix.Capset(&head, &data[0]); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	for _, c := range keep {
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(c), 0, 0); err != nil {
			return fmt.Errorf("keep capability %d: %w", c, err)
		}
	}
	return nil
}
