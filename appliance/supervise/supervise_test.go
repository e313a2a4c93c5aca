package supervise

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
)

func ignore(sigs ...os.Signal) { signal.Ignore(sigs...) }

func TestKilledServiceIsBackWithoutLosingAConnection(t *testing.T) {
	tm := DefaultTiming
	n := native(t, tm, role("good", "http"))
	ready(t, n, "good")
	get := func() string {
		c := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		r, err := c.Get("http://" + n.Addr["http"])
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, _ := io.ReadAll(r.Body)
		return string(b)
	}
	first := get()
	start := time.Now()
	unix.Kill(status(n, "good").PID, unix.SIGKILL)
	eventually(t, time.Second, "death noticed", func() bool { return status(n, "good").State != StateReady })
	if second := get(); second == first || second == "" { // queued by the socket that outlives the service
		t.Errorf("answered by %q, then by %q", first, second)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("back after %s", took)
	}
	ready(t, n, "good")
	if s := status(n, "good"); s.Restarts != 1 || s.LastExit != "killed by SIGKILL" || s.Status != "serving" || s.RSS == 0 {
		t.Errorf("status %+v", s)
	}
}

func TestCrashLoopSlowsDownAndKeepsLastWords(t *testing.T) {
	n := native(t, quick, role("crash"))
	start := time.Now()
	eventually(t, 20*time.Second, "six restarts", func() bool { return status(n, "crash").Restarts >= 6 })
	// The waits alone are 20+40+80+160+200 ms; how long the starts take depends on the machine.
	if took := time.Since(start); took < 450*time.Millisecond {
		t.Errorf("six restarts in %s", took)
	}
	s := status(n, "crash")
	if s.LastExit != "exit code 7" {
		t.Errorf("ended with %q", s.LastExit)
	}
	if text := logText(t, n.Log, rpc.LogRequest{Service: "crash"}); !strings.Contains(text, "the reason \ufffd[31mis\ufffd this") {
		t.Errorf("log says %q", text)
	}
}

func TestSilentServiceIsEndedAndStartedAgain(t *testing.T) {
	mute := role("mute")
	mute.Watchdog = 150 * time.Millisecond
	n := native(t, quick, mute)
	ready(t, n, "mute")
	if s := status(n, "mute").Status; s != "about to\ufffd[2J hang" {
		t.Errorf("status line is %q", s)
	}
	eventually(t, 5*time.Second, "restart", func() bool { return status(n, "mute").Restarts > 0 })
	if text := logText(t, n.Log, rpc.LogRequest{Service: LogInit}); !strings.Contains(text, "silent for more than 150ms") {
		t.Errorf("log says %q", text)
	}
	if text := logText(t, n.Log, rpc.LogRequest{Service: "mute"}); !strings.Contains(text, "SIGABRT") {
		t.Errorf("no stacks in its last words: %q", text)
	}
}

func TestOnlyTheMainProcessSpeaksForItsService(t *testing.T) {
	n := native(t, quick, role("liar"))
	eventually(t, 5*time.Second, "claim", func() bool { return strings.Contains(logText(t, n.Log, rpc.LogRequest{}), "claimed") })
	time.Sleep(50 * time.Millisecond)
	if s := status(n, "liar"); s.State != StateStarting {
		t.Errorf("a child's READY=1 made it %s", s.State)
	}
}

func TestEndOfAServiceEndsItsChildren(t *testing.T) {
	n := native(t, quick, role("parent"))
	ready(t, n, "parent")
	child := 0
	eventually(t, 5*time.Second, "child", func() bool {
		_, rest, ok := strings.Cut(logText(t, n.Log, rpc.LogRequest{Service: "parent"}), "child ")
		if ok {
			child, _ = strconv.Atoi(strings.Fields(rest)[0])
		}
		return child > 0
	})
	unix.Kill(status(n, "parent").PID, unix.SIGKILL)
	eventually(t, 5*time.Second, "child dead", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child))
		return err != nil || strings.Contains(string(b), ") Z ")
	})
}

func TestStopKillsWhoIgnoresSIGTERM(t *testing.T) {
	n := native(t, quick, role("good", "http"), role("stubborn"))
	ready(t, n, "good", "stubborn")
	start := time.Now()
	n.Close()
	if took := time.Since(start); took < 300*time.Millisecond || took > 3*time.Second {
		t.Errorf("stopped after %s", took)
	}
	for _, s := range n.Status() {
		if s.State != StateStopped || s.PID != 0 {
			t.Errorf("%+v", s)
		}
	}
	if err := n.Supervisor.Add(Service{Name: "late"}); err == nil {
		t.Error("a service was added after the stop")
	}
}

func TestHeldServiceWaitsForItsRelease(t *testing.T) {
	n := native(t, quick)
	started := make(chan bool, 10)
	n.Supervisor.Add(Service{Name: "held", Hold: "waits for the data disk", Command: func([]string) (*exec.Cmd, error) {
		started <- true
		return nil, fmt.Errorf("no")
	}})
	time.Sleep(20 * time.Millisecond)
	if s := status(n, "held"); s.State != StateWaiting || s.Status != "waits for the data disk" || len(started) > 0 {
		t.Errorf("%+v", s)
	}
	n.Release("held")
	select {
	case <-started:
	case <-time.After(5 * time.Second):
		t.Fatal("not started")
	}
}

func TestWatchdogIsFedOnlyWhileServicesAreWell(t *testing.T) {
	good := role("good", "http")
	good.Watchdog = 300 * time.Millisecond
	tm := quick
	tm.FirstRestart, tm.MostRestart, tm.StartLimit = time.Hour, time.Hour, time.Hour // once down it stays down
	n := native(t, tm, good)
	ready(t, n, "good")
	fed, sick := make(chan bool, 10000), make(chan error, 100)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go Chain(ctx, 5*time.Millisecond, func() error { fed <- true; return nil }, n.Healthy, func(err error) { sick <- err })
	time.Sleep(50 * time.Millisecond)
	if len(fed) < 3 || len(sick) != 0 {
		t.Fatalf("fed %d times, sick %d times", len(fed), len(sick))
	}
	unix.Kill(status(n, "good").PID, unix.SIGKILL)
	select {
	case err := <-sick:
		if !strings.Contains(err.Error(), "good has not been ready") {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("still fed")
	}
	before := len(fed)
	time.Sleep(50 * time.Millisecond)
	if len(fed) != before {
		t.Error("fed although a service is away")
	}
}

func TestServiceThatNeverCameUpDoesNotResetTheMachine(t *testing.T) {
	n := native(t, quick, role("crash"))
	time.Sleep(400 * time.Millisecond)
	if err := n.Healthy(); err != nil {
		t.Error(err)
	}
}

func TestServicesRunUnderBareSystemdProtocol(t *testing.T) {
	// No supervisor of ours: only what systemd would set.
	dir, err := os.MkdirTemp("", "gh")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	notes := make(chan note, 100)
	sock, err := listenNotify(dir + "/n")
	if err != nil {
		t.Fatal(err)
	}
	defer sock.conn.Close()
	go sock.serve(func(_ int, n note) { notes <- n })
	f, err := ListenTCP(t.Context(), 0, "")
	if err != nil {
		t.Fatal(err)
	}
	cmd, err := sandbox.Command(sandbox.Launch{Program: "/proc/self/exe", Sockets: []string{"http"},
		Env: []string{"ROLE=good", "NOTIFY_SOCKET=" + dir + "/n", "WATCHDOG_USEC=60000"}}, []*os.File{f})
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	seen := note{}
	for !seen.ready || !seen.watchdog {
		select {
		case n := <-notes:
			seen.ready, seen.watchdog = seen.ready || n.ready, seen.watchdog || n.watchdog
		case <-time.After(10 * time.Second):
			t.Fatalf("heard %+v", seen)
		}
	}
	cmd.Process.Signal(unix.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
}

func FuzzNotifyMessage(f *testing.F) {
	f.Add([]byte("READY=1\nSTATUS=x"))
	f.Add([]byte("STATUS=\x1b[2J\xff\nWATCHDOG=1\n\n=="))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := parseNote(b)
		if n.status != nil {
			harmless(t, *n.status)
		}
	})
}

// A vendor's helper says nothing: it must neither be ended for that nor find our socket.
func TestForeignProgramIsReadyWhileItRuns(t *testing.T) {
	tm := quick
	tm.StartLimit = 100 * time.Millisecond
	foreign := Service{Name: "foreign", Mute: true, Command: func(env []string) (*exec.Cmd, error) {
		if len(env) > 0 {
			return nil, fmt.Errorf("environment %q", env)
		}
		return exec.Command("/bin/sleep", "60"), nil
	}}
	n := native(t, tm)
	if err := n.Add(foreign); err != nil {
		t.Fatal(err)
	}
	ready(t, n, "foreign")
	time.Sleep(3 * tm.StartLimit)
	if s := status(n, "foreign"); s.State != StateReady || s.Restarts != 0 {
		t.Errorf("%+v", s)
	}
	unix.Kill(status(n, "foreign").PID, unix.SIGKILL)
	eventually(t, 5*time.Second, "restart", func() bool { s := status(n, "foreign"); return s.Restarts == 1 && s.State == StateReady })
}
