package supervise

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/rpc"
)

// service is one kept service. One goroutine (keep) owns its process; everything else only looks, signals, or asks keep to end.
type service struct {
	Service
	s *Supervisor

	ctx    context.Context // ends when the service is told to stop
	cancel context.CancelFunc
	done   chan struct{} // closed when keep has returned
	again  chan struct{} // asks keep to end the process and start it anew

	mu       sync.Mutex
	begun    bool
	pid      int // 0 = no process
	state    string
	status   string
	started  time.Time // of the running process; monotonic
	heard    time.Time // last READY=1 or WATCHDOG=1
	away     time.Time // since when it is not ready, if it was once
	wasReady bool
	restarts int
	lastExit string
}

func newService(s *Supervisor, svc Service) *service {
	ctx, cancel := context.WithCancel(context.Background())
	return &service{Service: svc, s: s, ctx: ctx, cancel: cancel, done: make(chan struct{}), again: make(chan struct{}, 1),
		state: StateWaiting, status: svc.Hold}
}

func (v *service) begin() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.begun {
		v.begun = true
		v.status = ""
		go v.keep()
	}
}

func (v *service) set(state string) {
	v.mu.Lock()
	if v.state == StateReady && state != StateReady {
		v.away = time.Now()
	}
	v.state = state
	v.mu.Unlock()
	if v.s.Changed != nil {
		v.s.Changed(v.Name, state)
	}
}

// keep runs the process again and again.
func (v *service) keep() {
	defer close(v.done)
	defer v.set(StateStopped)
	tm := v.s.Timing
	wait := tm.FirstRestart
	for {
		begin := time.Now()
		exit := v.runOnce()
		if v.ctx.Err() != nil {
			return
		}
		asked := false
		select {
		case <-v.again:
			asked = true
		default:
		}
		if asked || time.Since(begin) >= tm.Settled {
			wait = tm.FirstRestart
		}
		v.mu.Lock()
		v.restarts++
		v.lastExit = exit
		v.status = ""
		v.mu.Unlock()
		v.set(StateRestarting)
		v.s.Log.Add(LogInit, fmt.Sprintf("%s ended (%s), next start in %s", v.Name, exit, wait))
		if !asked {
			v.s.Log.LastWords(v.Name, exit)
		}
		select {
		case <-v.ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, tm.MostRestart)
	}
}

// runOnce starts the process, watches over it and returns how it ended.
func (v *service) runOnce() string {
	var env []string
	if !v.Mute {
		env = append(env, "NOTIFY_SOCKET="+v.s.NotifyPath)
	}
	if v.Watchdog > 0 {
		env = append(env, "WATCHDOG_USEC="+strconv.FormatInt(v.Watchdog.Microseconds(), 10))
	}
	cmd, err := v.Command(env)
	if err != nil {
		return "can't start: " + err.Error()
	}
	closeOut, err := v.capture(cmd)
	if err != nil {
		return "can't start: " + err.Error()
	}
	v.mu.Lock() // until the pid is known: its first message may be there already
	err = v.s.Reaper.Start(cmd)
	if err == nil {
		v.pid, v.started, v.status = cmd.Process.Pid, time.Now(), ""
	}
	v.mu.Unlock()
	closeOut()
	if err != nil {
		return "can't start: " + err.Error()
	}
	v.set(StateStarting)
	if v.Mute {
		v.mu.Lock()
		v.wasReady = true
		v.mu.Unlock()
		v.set(StateReady)
	}
	ended := make(chan string, 1)
	go func() { ended <- v.wait(cmd) }()
	return v.watch(ended)
}

// capture connects the process's output to the log. The pipe's reader ends when the last process that holds it does, so that a child
// that outlives its service can't block anything.
func (v *service) capture(cmd *exec.Cmd) (closeOurs func(), err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = w, w
	go func() {
		defer r.Close()
		v.s.Log.Capture(v.Name, r)
	}()
	return func() { w.Close() }, nil
}

// wait returns when the main process has ended and the rest of its session was killed. The kill comes before the collection: until
// then nobody else can have this process group's number.
func (v *service) wait(cmd *exec.Cmd) string {
	pid := cmd.Process.Pid
	for unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	if cmd.SysProcAttr != nil && (cmd.SysProcAttr.Setsid || cmd.SysProcAttr.Setpgid) {
		unix.Kill(-pid, unix.SIGKILL)
	}
	v.mu.Lock()
	v.pid = 0 // from here on the number may belong to somebody else
	v.mu.Unlock()
	v.s.Reaper.Wait(cmd)
	return describe(cmd.ProcessState)
}

func describe(st *os.ProcessState) string {
	if ws, ok := st.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		if ws.Signal() == unix.SIGSYS {
			return "killed by SIGSYS: it made a system call that it never makes by itself"
		}
		return "killed by " + unix.SignalName(ws.Signal())
	}
	return fmt.Sprintf("exit code %d", st.ExitCode())
}

// watch returns why the process ended, after it has.
func (v *service) watch(ended <-chan string) string {
	tm := v.s.Timing
	tick := time.NewTicker(max(min(tm.StartLimit, orForever(v.Watchdog))/8, 5*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case why := <-ended:
			return why
		case <-v.ctx.Done():
			return v.end(unix.SIGTERM, tm.StopLimit, ended)
		case <-v.again:
			select {
			case v.again <- struct{}{}: // keep looks at it, too
			default:
			}
			return "restart asked for, " + v.end(unix.SIGTERM, tm.StopLimit, ended)
		case <-tick.C:
			if why := v.late(); why != "" {
				// SIGABRT makes a Go program write its stacks: its last words.
				return why + ", " + v.end(unix.SIGABRT, tm.AbortLimit, ended)
			}
		}
	}
}

func orForever(d time.Duration) time.Duration {
	if d <= 0 {
		return time.Hour
	}
	return d
}

// late says what the process has failed to do in time.
func (v *service) late() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.state == StateStarting && time.Since(v.started) > v.s.Timing.StartLimit:
		return fmt.Sprintf("not ready after %s", v.s.Timing.StartLimit)
	case v.state == StateReady && v.Watchdog > 0 && time.Since(v.heard) > v.Watchdog:
		return fmt.Sprintf("silent for more than %s", v.Watchdog)
	}
	return ""
}

// end signals the main process and kills it after limit.
func (v *service) end(sig syscall.Signal, limit time.Duration, ended <-chan string) string {
	v.signal(sig)
	select {
	case why := <-ended:
		return why
	case <-time.After(limit):
		v.signal(unix.SIGKILL)
		return <-ended
	}
}

func (v *service) signal(sig syscall.Signal) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.pid > 0 {
		unix.Kill(v.pid, sig)
	}
}

// noted takes a message if it comes from the main process.
func (v *service) noted(pid int, n note) bool {
	v.mu.Lock()
	if v.pid != pid {
		v.mu.Unlock()
		return false
	}
	if n.status != nil {
		v.status = *n.status
	}
	if n.ready || n.watchdog {
		v.heard = time.Now()
	}
	ready := n.ready && v.state == StateStarting
	if ready {
		v.wasReady = true
	}
	v.mu.Unlock()
	if ready {
		v.set(StateReady)
	}
	return true
}

func (v *service) statusNow() rpc.ServiceStatus {
	v.mu.Lock()
	defer v.mu.Unlock()
	st := rpc.ServiceStatus{Name: v.Name, PID: v.pid, State: v.state, Status: v.status, Restarts: v.restarts, LastExit: v.lastExit}
	if v.pid > 0 {
		st.Up = time.Since(v.started)
		st.RSS = residentMemory(v.pid)
		st.Confined = confined(v.pid)
	}
	return st
}

// confined asks the kernel, not what the process was started with: a filter of system calls (mode 2) and no_new_privs.
func confined(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return err == nil && bytes.Contains(b, []byte("\nNoNewPrivs:\t1\n")) && bytes.Contains(b, []byte("\nSeccomp:\t2\n"))
}

// residentMemory reads the second field of statm, in pages.
func residentMemory(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(f[1], 10, 64)
	return pages * int64(os.Getpagesize())
}

func (v *service) healthy(grace time.Duration) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case !v.wasReady || v.state == StateStopped:
		return nil
	case v.state == StateReady && v.Watchdog > 0 && time.Since(v.heard) > v.Watchdog+grace:
		return fmt.Errorf("%s has been silent for %s", v.Name, time.Since(v.heard).Round(time.Second))
	case v.state != StateReady && time.Since(v.away) > grace:
		return fmt.Errorf("%s has not been ready for %s", v.Name, time.Since(v.away).Round(time.Second))
	}
	return nil
}

func (v *service) restart() {
	v.mu.Lock()
	pid := v.pid
	v.mu.Unlock()
	if pid == 0 {
		return // waits for its next start anyway
	}
	select {
	case v.again <- struct{}{}:
	default:
	}
	for range 1000 {
		v.mu.Lock()
		gone := v.pid != pid
		v.mu.Unlock()
		if gone {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// stop ends the service for good and closes its sockets.
func (v *service) stop(ctx context.Context) {
	v.mu.Lock()
	begun, state := v.begun, v.state
	v.begun = true // a held service can't begin any more
	v.mu.Unlock()
	v.cancel()
	if begun {
		kill := context.AfterFunc(ctx, func() { v.signal(unix.SIGKILL) })
		<-v.done
		kill()
	} else if state != StateStopped {
		v.set(StateStopped)
		close(v.done)
	}
	for _, f := range v.Sockets {
		f.Close()
	}
	v.Sockets = nil
}
