package systemd

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
	"guardhouse/appliance/supervise"
)

func TestMain(m *testing.M) {
	sandbox.Shim() // sets LISTEN_PID, as systemd does in its own child
	os.Exit(m.Run())
}

// TestProgramsStartUnderBareSystemdProtocol starts the real programs with nothing but NOTIFY_SOCKET, WATCHDOG_USEC and LISTEN_FDS, and
// with what their rows leave them of the system calls.
func TestProgramsStartUnderBareSystemdProtocol(t *testing.T) {
	for program, sockets := range map[string][]string{rpc.Clock: nil, rpc.HGS: {"http", "https"}, rpc.Forward: nil} {
		t.Run(program, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "gh") // short: a socket's path has at most 107 bytes
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			build := exec.Command("go", "build", "-o", dir+"/program", "../../cmd/"+program)
			build.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("build cmd/%s: %v\n%s", program, err, out)
			}
			start(t, dir, program, sockets)
		})
	}
}

func start(t *testing.T, dir, program string, sockets []string) {
	if err := os.MkdirAll(filepath.Dir(rpc.SocketPath(dir, program)), 0o755); err != nil {
		t.Fatal(err)
	}
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: dir + "/notify", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	var files []*os.File
	for range sockets {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
		l.Close()
	}
	uids := supervise.FormatUIDs(sandbox.UIDs())
	row, _ := sandbox.Find(program)
	cmd, err := sandbox.Command(sandbox.Launch{Confine: row.Confine.At(dir), Program: dir + "/program", Args: []string{"--run-dir", dir, "--uids", uids}, Sockets: sockets,
		Env: []string{"NOTIFY_SOCKET=" + dir + "/notify", "WATCHDOG_USEC=900000"}}, files)
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer cmd.Process.Kill()
	waitNotes(t, notify, "READY=1", "WATCHDOG=1")
	cmd.Process.Signal(unix.SIGTERM)
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("after SIGTERM: %v\n%s", err, said.String())
		}
	case <-time.After(3 * time.Second):
		t.Errorf("still running 3 s after SIGTERM")
	}
}

func waitNotes(t *testing.T, conn *net.UnixConn, want ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	heard := ""
	for buf := make([]byte, 4096); ; {
		missing := false
		for _, w := range want {
			missing = missing || !strings.Contains(heard, w)
		}
		if !missing {
			return
		}
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("heard only %q", heard)
		}
		heard += string(buf[:n]) + "\n"
	}
}
