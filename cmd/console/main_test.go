package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"guardhouse/appliance/policy"
	"guardhouse/console/verb/verbtest"
)

// TestMain lets the test binary be the program.
func TestMain(m *testing.M) {
	if os.Getenv("CONSOLE_TEST_AS_PROGRAM") == "1" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestServesAnInheritedSocket starts the program as init or systemd would: a listening socket, a notify socket, SIGTERM at the end.
func TestServesAnInheritedSocket(t *testing.T) {
	f := verbtest.Start(t, true)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	socket, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	notify := filepath.Join(f.Dir, "notify")
	n, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	uid := os.Getuid()
	uids := fmt.Sprintf("ledger=%d,hsm=%d,clock=%d,init=%d", uid, uid, uid, uid)
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, os.Args[0], "--run-dir", f.Dir, "--uids", uids)
	cmd.Env = append(os.Environ(), "CONSOLE_TEST_AS_PROGRAM=1", "LISTEN_FDS=1", "LISTEN_FDNAMES=ssh", "NOTIFY_SOCKET="+notify, "WATCHDOG_USEC=300000")
	cmd.ExtraFiles = []*os.File{socket}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	var said strings.Builder
	n.SetReadDeadline(time.Now().Add(10 * time.Second))
	for buf := make([]byte, 4096); !strings.Contains(said.String(), "READY=1") || !strings.Contains(said.String(), "WATCHDOG=1"); {
		k, err := n.Read(buf)
		if err != nil {
			t.Fatalf("%v after %q", err, said.String())
		}
		said.Write(append(buf[:k], '\n'))
	}
	c, err := dial(l.Addr().String(), f)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := s.Output("status --json"); err != nil || !strings.Contains(string(out), `"name": "node1"`) {
		t.Errorf("%v: %s", err, out)
	}
	if a := f.Audit(); a[len(a)-1].Kind != policy.AuditLogin {
		t.Errorf("the login was not audited: %+v", a)
	}
	began := time.Now()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || time.Since(began) > 3*time.Second {
		t.Errorf("SIGTERM: %v after %s", err, time.Since(began))
	}
}

// dial tries until the program has the records: before that it drops connections.
func dial(address string, f *verbtest.Fake) (c *ssh.Client, err error) {
	config := &ssh.ClientConfig{User: "ada", Auth: []ssh.AuthMethod{ssh.PublicKeys(f.Admin)}, HostKeyCallback: ssh.FixedHostKey(f.HostKey()), Timeout: 5 * time.Second}
	for limit := time.Now().Add(5 * time.Second); time.Now().Before(limit); time.Sleep(10 * time.Millisecond) {
		if c, err = ssh.Dial("tcp", address, config); err == nil {
			return c, nil
		}
	}
	return nil, errors.Join(errors.New("never let in"), err)
}
