package lab

import (
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/hsm/attach"
)

const p11client = "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so"

// tool runs pkcs11-tool against the token behind a unix socket.
func tool(t *testing.T, sock string, timeout time.Duration, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "pkcs11-tool", append([]string{"--module", p11client}, args...)...)
	cmd.Env = append(os.Environ(), "P11_KIT_SERVER_ADDRESS=unix:path="+sock)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func shortDir(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("", "gh")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(d) })
	return d
}

func TestTokenSignsHangsDiesAndComesBack(t *testing.T) {
	l := testLab(t)
	tok, err := l.NewToken(t.Context(), "guardhouse")
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(filepath.Join(tok.Dir, "pin")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("pin file: %v %v", st.Mode(), err)
	}
	again, err := l.NewToken(t.Context(), "guardhouse")
	if err != nil || again.PIN() != tok.PIN() {
		t.Fatalf("the token was not found again: %v", err)
	}
	sock := filepath.Join(shortDir(t), "p11")
	stop, err := tok.ServeUnix(sock)
	if err != nil {
		t.Fatal(err)
	}
	out, err := tool(t, sock, 20*time.Second, "--login", "--pin", tok.PIN(), "--keypairgen", "--key-type", "EC:prime256v1", "--id", "01")
	if err != nil || !strings.Contains(out, "never extractable") {
		t.Fatalf("%v: %s", err, strings.ReplaceAll(out, tok.PIN(), "(pin)"))
	}
	tok.Stop()
	if _, err := tool(t, sock, 700*time.Millisecond, "-L"); err == nil {
		t.Error("a stopped token answered")
	}
	tok.Continue()
	if out, err := tool(t, sock, 10*time.Second, "-L"); err != nil || !strings.Contains(out, "guardhouse") {
		t.Errorf("after Continue: %v %s", err, out)
	}
	tok.Kill()
	if out, err := tool(t, sock, 10*time.Second, "-L"); err != nil || !strings.Contains(out, "guardhouse") {
		t.Errorf("after Kill: %v %s", err, out)
	}
	stop()
	if _, err := tool(t, sock, 5*time.Second, "-O"); err == nil {
		t.Error("a detached token answered")
	}
}

// The guest's side of the cable, played without a guest.
func TestTokenOverTheCable(t *testing.T) {
	l := testLab(t)
	tok, err := l.NewToken(t.Context(), "guardhouse")
	if err != nil {
		t.Fatal(err)
	}
	dir := shortDir(t)
	p, err := tok.plugInto(filepath.Join(dir, "cable"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	b := attach.NewBridge(func() (io.ReadWriteCloser, error) {
		return net.Dial("unix", filepath.Join(dir, "cable"))
	}, t.Logf)
	ln, err := net.Listen("unix", filepath.Join(dir, "p11"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = b.Run(ctx, ln) }()
	defer func() { cancel(); <-ended }()
	works := func(want bool) {
		t.Helper()
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			out, err := tool(t, filepath.Join(dir, "p11"), 5*time.Second, "-L")
			if (err == nil && strings.Contains(out, "guardhouse")) == want {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("want working %v: %v %s", want, err, out)
			}
		}
	}
	works(true)
	p.drop() // as when the guest reboots
	works(true)
	p.setOut(true)
	works(false)
	p.setOut(false)
	works(true)
	if tok.Clients() < 3 {
		t.Errorf("%d clients", tok.Clients())
	}
}
