package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Each of orphanShells shells leaves orphansEach orphans behind and ends with a code of its own.
const (
	orphanShells = 100
	orphansEach  = 100
)

// orphanMaker is a process that inherits orphans, as PID 1 does, and owns children besides. It prints what it found.
func orphanMaker() {
	unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	r := NewReaper()
	ctx, cancel := context.WithCancel(context.Background())
	go r.Run(ctx)
	var wg sync.WaitGroup
	var mu sync.Mutex
	wrong, right := 0, 0
	slots := make(chan bool, 8)
	for i := range orphanShells {
		wg.Add(1)
		slots <- true
		go func() {
			defer func() { <-slots; wg.Done() }()
			// A subshell that starts another one and ends makes that one an orphan.
			cmd := exec.Command("/bin/sh", "-c", fmt.Sprintf("i=0; while [ $i -lt %d ]; do ( ( : ) & ); i=$((i+1)); done; exit %d", orphansEach, i%200+1))
			err := r.Start(cmd)
			if err == nil {
				err = r.Wait(cmd)
			}
			var exit *exec.ExitError
			mu.Lock()
			defer mu.Unlock()
			if errors.As(err, &exit) && exit.ExitCode() == i%200+1 {
				right++
			} else {
				wrong++
				fmt.Println("lost:", i, err)
			}
		}()
	}
	wg.Wait()
	zombies := -1
	for end := time.Now().Add(10 * time.Second); zombies != 0 && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		zombies = children()
	}
	cancel()
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Printf("right %d wrong %d children %d orphans %d\n", right, wrong, zombies, r.orphans)
}

// children counts the processes whose parent we are.
func children() (n int) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid()))
	list, _ := os.ReadDir("/proc")
	me := fmt.Sprintf(" %d ", os.Getpid())
	for _, e := range list {
		st, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		if _, rest, ok := strings.Cut(string(st), ") "); ok && len(rest) > 2 && strings.HasPrefix(rest[1:], me) {
			n++
		}
	}
	return max(n, len(strings.Fields(string(b))))
}

func TestTenThousandOrphansLeaveNoZombieAndTakeNoExitCode(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{"ROLE=orphans"}
	out, err := cmd.CombinedOutput()
	want := fmt.Sprintf("right %d wrong 0 children 0 orphans %d\n", orphanShells, orphanShells*orphansEach)
	if err != nil || string(out) != want {
		t.Errorf("%v: got %q, want %q", err, out, want)
	}
}

func TestOutputIsBoundedAndEndsWithItsContext(t *testing.T) {
	r := NewReaper()
	out, err := r.Output(t.Context(), "/bin/sh", "-c", "exec /usr/bin/head -c 200000 /dev/zero")
	if err != nil || len(out) != 64<<10 {
		t.Errorf("%d bytes, %v", len(out), err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := r.Output(ctx, "/bin/sleep", "30"); err == nil || time.Since(start) > 5*time.Second {
		t.Errorf("%v after %s", err, time.Since(start))
	}
	if len(r.owned) != 0 {
		t.Errorf("still owns %v", r.owned)
	}
}
