package supervise

import (
	"context"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Reaper collects orphans that the kernel gives to PID 1 without ever taking an exit code that os/exec waits for. Everything that
// starts a child in this process must start it with Start and wait for it with Wait.
//
// It looks at the next dead child without collecting it (waitid with WNOWAIT) and collects it only where nobody owns its pid. Start
// holds the same lock from before the fork until the pid is known, so a child can't be taken for an orphan in between.
type Reaper struct {
	mu      sync.Mutex
	owned   map[int]int // pid -> owners; two for a moment where a pid is used again before Wait has forgotten it
	orphans int         // collected so far
}

// NewReaper makes a reaper that owns nothing yet.
func NewReaper() *Reaper { return &Reaper{owned: map[int]int{}} }

// Start is cmd.Start.
func (r *Reaper) Start(cmd *exec.Cmd) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return err
	}
	r.owned[cmd.Process.Pid]++
	return nil
}

// Wait is cmd.Wait for a command that Start started. It must be called exactly once for each.
func (r *Reaper) Wait(cmd *exec.Cmd) error {
	err := cmd.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	pid := cmd.Process.Pid
	if r.owned[pid]--; r.owned[pid] <= 0 {
		delete(r.owned, pid)
	}
	return err
}

// Output runs a command to its end and gives what it wrote, at most 64 KiB of it, for tools like mkfs. It is killed when ctx ends.
func (r *Reaper) Output(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = []string{"PATH=/nowhere", "LANG=C"}
	out := &capped{max: 64 << 10}
	cmd.Stdout, cmd.Stderr = out, out
	if err := r.Start(cmd); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	defer stop()
	err := r.Wait(cmd)
	return out.b, err
}

// capped keeps the first max bytes.
type capped struct {
	b   []byte
	max int
}

func (c *capped) Write(p []byte) (int, error) {
	c.b = append(c.b, p[:min(len(p), c.max-len(c.b))]...)
	return len(p), nil
}

// Run collects orphans until ctx ends. It wakes at SIGCHLD, and every second because signals of many children merge into one.
func (r *Reaper) Run(ctx context.Context) {
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	defer signal.Stop(died)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		r.collect(ctx)
		select {
		case <-ctx.Done():
			return
		case <-died:
		case <-tick.C:
		}
	}
}

// collect empties the queue of dead children. Where an owned one is at its head, it gives the owner time to collect it, because the
// kernel shows no other before that.
func (r *Reaper) collect(ctx context.Context) {
	const first, most = 200 * time.Microsecond, 20 * time.Millisecond
	pause := first
	for ctx.Err() == nil {
		pid := deadChild()
		if pid == 0 {
			return
		}
		if r.take(pid) {
			pause = first
			continue
		}
		time.Sleep(pause)
		pause = min(2*pause, most)
	}
}

// deadChild is the pid of some child that has ended and was not collected, or 0.
func deadChild() int {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0
		}
		return siginfoPID(&info)
	}
}

// siginfoPID reads si_pid, which x/sys does not name. It follows signo, errno, code and, on 64-bit machines, 4 bytes of padding.
func siginfoPID(info *unix.Siginfo) int {
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(info), 16)))
}

func (r *Reaper) take(pid int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.owned[pid] > 0 {
		return false
	}
	if got, _ := unix.Wait4(pid, nil, unix.WNOHANG, nil); got == pid {
		r.orphans++
	}
	return true
}
