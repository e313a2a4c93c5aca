package lab

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// launcher starts every child of a lab from one operating system thread that lives as long as the lab.
//
// Reason: PR_SET_PDEATHSIG fires when the *thread* that forked ends, not when the process does, and Go ends threads
// as it likes. A goroutine locked to its thread forks for everybody, and leaves only after the last child is gone.
type launcher struct {
	work chan func()

	mu     sync.Mutex
	procs  map[*process]struct{}
	closed bool
}

// process is one child, leader of its own process group. Done is closed after it was reaped; err is then final.
type process struct {
	cmd  *exec.Cmd
	name string
	done chan struct{}
	err  error
}

func newLauncher() *launcher {
	s := &launcher{work: make(chan func()), procs: map[*process]struct{}{}}
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for f := range s.work {
			f()
		}
	}()
	return s
}

// start runs cmd in a new process group that dies with this process. The caller sets files; name is for messages.
func (s *launcher) start(name string, cmd *exec.Cmd) (*process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if cmd.WaitDelay == 0 {
		cmd.WaitDelay = 2 * time.Second
	}
	p := &process{cmd: cmd, name: name, done: make(chan struct{})}

	// The lock is held over the fork, so that killAll sees every child that was started before it.
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	started := make(chan error)
	s.work <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	s.procs[p] = struct{}{}
	go func() {
		p.err = cmd.Wait()
		s.mu.Lock()
		delete(s.procs, p)
		s.mu.Unlock()
		close(p.done)
	}()
	return p, nil
}

// killAll kills every child, waits for each, and refuses new ones. It is called once.
func (s *launcher) killAll() {
	s.mu.Lock()
	s.closed = true
	list := make([]*process, 0, len(s.procs))
	for p := range s.procs {
		list = append(list, p)
	}
	s.mu.Unlock()
	for _, p := range list {
		p.signal(syscall.SIGKILL)
	}
	for _, p := range list {
		<-p.done
	}
	close(s.work)
}

// signal sends sig to the child's whole group; a child that is gone is no error. (Signals of a group whose leader
// was reaped could reach a stranger: Process.Signal refuses after the reaping, so it is asked first.)
func (p *process) signal(sig syscall.Signal) {
	if p.cmd.Process.Signal(syscall.Signal(0)) == nil {
		_ = syscall.Kill(-p.cmd.Process.Pid, sig)
	}
}

// kill ends the child at once and waits for it.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.done
}

// tail returns the last lines of a log file, at most 2 kB, control bytes removed: for error messages.
func tail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return ""
	}
	const most = 2048
	buf := make([]byte, most)
	off := max(0, st.Size()-most)
	n, _ := f.ReadAt(buf, off)
	clean := strings.Map(func(r rune) rune {
		if r == '\n' || r >= ' ' && r != 0x7f {
			return r
		}
		return -1
	}, string(buf[:n]))
	lines := strings.Split(strings.TrimSpace(clean), "\n")
	if len(lines) > 8 {
		lines = lines[len(lines)-8:]
	}
	return strings.Join(lines, "\n")
}
