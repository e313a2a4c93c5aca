package supervise

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
)

// The test binary is also the services that the tests run: ROLE says which.
func TestMain(m *testing.M) {
	if os.Getpid() == 1 {
		guestMain()
	}
	sandbox.Shim()
	if role := os.Getenv("ROLE"); role != "" {
		roles[role]()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var roles = map[string]func(){
	// good serves HTTP on its socket and is a well-behaved service.
	"good": func() {
		ctx, cancel := Context()
		defer cancel()
		ls, err := activation.ListenersWithNames()
		if err != nil || len(ls["http"]) != 1 {
			fmt.Fprintln(os.Stderr, "no socket", err)
			os.Exit(3)
		}
		fmt.Println("pid", os.Getpid(), "serves")
		go http.Serve(ls["http"][0], http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, os.Getpid()) }))
		Ready(ctx, "serving", func() error { return nil })
	},
	// mute is ready once and then says nothing.
	"mute": func() {
		daemon.SdNotify(false, "READY=1\nSTATUS=about to\x1b[2J hang")
		time.Sleep(time.Hour)
	},
	// crash ends at once.
	"crash": func() {
		fmt.Fprintln(os.Stderr, "the reason \x1b[31mis\x07 this")
		os.Exit(7)
	},
	// stubborn ignores SIGTERM.
	"stubborn": func() {
		sigs := []os.Signal{unix.SIGTERM, unix.SIGINT}
		ignore(sigs...)
		daemon.SdNotify(false, "READY=1")
		time.Sleep(time.Hour)
	},
	// parent leaves a child behind that keeps the output open.
	"parent": func() {
		p, err := os.StartProcess("/proc/self/exe", []string{"child"}, &os.ProcAttr{Env: []string{"ROLE=sleep"}, Files: []*os.File{nil, os.Stdout, os.Stderr}})
		fmt.Println("child", p.Pid, err)
		daemon.SdNotify(false, "READY=1")
		time.Sleep(time.Hour)
	},
	// liar lets a child claim its readiness.
	"liar": func() {
		p, _ := os.StartProcess("/proc/self/exe", []string{"child"}, &os.ProcAttr{Env: []string{"ROLE=claim", "NOTIFY_SOCKET=" + os.Getenv("NOTIFY_SOCKET")}})
		p.Wait()
		fmt.Println("claimed")
		time.Sleep(time.Hour)
	},
	"claim":   func() { daemon.SdNotify(false, "READY=1") },
	"sleep":   func() { time.Sleep(time.Hour) },
	"orphans": orphanMaker,
}

var quick = Timing{FirstRestart: 20 * time.Millisecond, MostRestart: 200 * time.Millisecond, Settled: time.Minute, StartLimit: 5 * time.Second,
	StopLimit: 300 * time.Millisecond, AbortLimit: 300 * time.Millisecond, Grace: 200 * time.Millisecond}

// role is a service of this test binary.
func role(name string, sockets ...string) NativeService {
	return NativeService{Name: name, Program: "/proc/self/exe", Plain: true, Env: []string{"ROLE=" + name}, Sockets: sockets}
}

func native(t *testing.T, tm Timing, services ...NativeService) *Native {
	t.Helper()
	dir, err := os.MkdirTemp("", "gh") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	n, err := RunNative(dir, rpc.UIDs{}, tm, services...)
	if err != nil {
		os.RemoveAll(dir)
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.Close()
		os.RemoveAll(dir)
	})
	return n
}

func ready(t *testing.T, n *Native, names ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := n.WaitReady(ctx, names...); err != nil {
		t.Fatal(err)
	}
}

func status(n *Native, name string) rpc.ServiceStatus {
	for _, s := range n.Status() {
		if s.Name == name {
			return s
		}
	}
	return rpc.ServiceStatus{}
}

// eventually waits for ok.
func eventually(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

func logText(t *testing.T, l *Log, req rpc.LogRequest) string {
	t.Helper()
	var b strings.Builder
	if err := l.Read(t.Context(), req, func(line rpc.LogLine) error {
		fmt.Fprintf(&b, "%s: %s\n", line.Service, line.Text)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
