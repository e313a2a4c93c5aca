//go:build qemu

package site

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"guardhouse/appliance/sandbox"
	"guardhouse/board/lab"
	"guardhouse/images"
)

// listener is a TCP port of the workstation, and its address for a guest.
func listener(t *testing.T) (net.Listener, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return l, net.JoinHostPort(lab.HostAddress, port)
}

// control is the lab's end of the helper's second connection (command relay).
type control struct {
	mu   sync.Mutex
	conn net.Conn
	in   *bufio.Reader
	came int
}

func (c *control) serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		c.mu.Lock()
		c.conn, c.in = conn, bufio.NewReader(conn)
		c.came++
		c.mu.Unlock()
	}
}

// times says how many helper processes have called so far.
func (c *control) times() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.came
}

func (c *control) ask(t *testing.T, question string) string {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		t.Fatal("the helper has not called")
	}
	c.conn.SetDeadline(time.Now().Add(15 * time.Second))
	fmt.Fprintln(c.conn, question)
	text, err := c.in.ReadString('\n')
	if err != nil {
		return "gone"
	}
	return strings.TrimSpace(text)
}

// relayPack makes a pack of p11-kit's client and our relay, as a person would.
func relayPack(t *testing.T, token, control string) string {
	t.Helper()
	dir := t.TempDir()
	relay, licence, file := filepath.Join(dir, "relay"), filepath.Join(dir, "LICENCE"), filepath.Join(dir, "relay.hsmpack")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", relay, "guardhouse/board/lab/relay")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.WriteFile(licence, []byte("terms of the relay\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	const socket = "/run/hsm-daemon/p11.sock"
	out, err := exec.CommandContext(t.Context(), "go", "run", "guardhouse/cmd/mkimage", "hsm-pack", "-o", file, "--name", "relay", "--version", "1.0", "--licence", licence,
		"--module", "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so", "--env", "P11_KIT_SERVER_ADDRESS=unix:path="+socket,
		"--daemon", relay, "--daemon-arg", socket, "--daemon-arg", token, "--daemon-arg", control, "--connect", token, "--connect", control,
		"--site-data", "client.pem").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return file
}

// TestPackWithAHelperOverTCP sets up a node whose HSM is reached by a helper process over the network: it starts when its site data is
// there, sees nothing of the node, reaches nothing but its addresses, and comes back when it is killed.
func TestPackWithAHelperOverTCP(t *testing.T) {
	t.Parallel()
	tokenPort, tokenAddr := listener(t)
	controlPort, controlAddr := listener(t)
	forbidden, forbiddenAddr := listener(t)
	pack := relayPack(t, tokenAddr, controlAddr)
	build := buildDir(t)
	img, err := buildImage(t.Context(), build, "image-pack", "--hsm", pack)
	if err != nil {
		t.Fatal(err)
	}
	inManifest(t, filepath.Join(build, "image-pack"))
	st, err := Open(t.Context(), Options{Build: build, Name: "test-pack", HSM: pack, Fresh: true, Logf: t.Logf}, img)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	s := &stage{Site: st, hostsim: filepath.Join(build, "bin", "hostsim"), people: filepath.Join(st.Lab.Dir, "people")}
	compile(t, s.hostsim, "guardhouse/cmd/hostsim")
	st.Token.Serve(tokenPort)
	helper := &control{}
	go helper.serve(controlPort)
	if err := s.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.ready(t, false)
	if _, err := s.SetUp(within(t, 60*time.Second)); err != nil {
		t.Fatal(err)
	}
	s.expect(t, "login: ")
	const content = "a client's certificate and key"
	s.siteData(t, helper, content)
	eventually(t, 60*time.Second, func(ctx context.Context) error {
		text, err := s.Verb(ctx, nil, "hsm", "status")
		if err == nil && (!strings.Contains(string(text), "ready") || !strings.Contains(string(text), "relay 1.0")) {
			err = errors.New(squeeze(string(text)))
		}
		return err
	})
	s.verb(t, "key", "new", "--roles", "all")
	s.guest(t)
	if err := s.roll(within(t, 30*time.Second)); err != nil {
		t.Error(err)
	}
	caged(t, helper, content, forbidden, forbiddenAddr)
	before := helper.times()
	killed := time.Now()
	helper.ask(t, "die")
	eventually(t, 60*time.Second, s.roll)
	t.Logf("a roll succeeded %v after the helper was killed", time.Since(killed).Round(10*time.Millisecond))
	eventually(t, 20*time.Second, func(context.Context) error {
		if helper.times() <= before {
			return errors.New("the helper has not called again")
		}
		return nil
	})
	stat, err := s.status(within(t, 20*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	for _, svc := range stat.Init.Services {
		if svc.Name == sandbox.HSMDaemon && svc.Restarts != 1 {
			t.Errorf("init counts %d restarts of the helper", svc.Restarts)
		}
		if !svc.Confined {
			t.Errorf("%s runs without its filter of system calls", svc.Name)
		}
	}
	if t.Failed() {
		t.Log(s.verb(t, "log", "show", "init"))
	}
}

// siteData has the helper wait for what it lacks, and gives it that.
func (s *stage) siteData(t *testing.T, helper *control, content string) {
	t.Helper()
	eventually(t, 30*time.Second, func(ctx context.Context) error {
		st, err := s.status(ctx)
		if err == nil && !strings.Contains(strings.Join(kinds(st.Problems), " "), "lacks site data: client.pem") {
			err = fmt.Errorf("problems: %+v", st.Problems)
		}
		return err
	})
	if helper.times() != 0 {
		t.Error("the helper started without its site data")
	}
	var exit *ExitError
	if _, err := s.Verb(within(t, 20*time.Second), []byte(content), "hsm", "site-data", "put", "other.pem"); !errors.As(err, &exit) || exit.Code != 1 {
		t.Errorf("an undeclared name: %v", err)
	}
	if _, err := s.Verb(within(t, 20*time.Second), []byte(content), "hsm", "site-data", "put", "client.pem"); err != nil {
		t.Fatal(err)
	}
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte(content)))
	if list := s.verb(t, "hsm", "site-data", "list"); !strings.Contains(list, sum[:16]) {
		t.Errorf("list: %s", list)
	}
	audit := s.verb(t, "audit", "tail", "--json")
	if !strings.Contains(audit, "hsm.site-data.put") || !strings.Contains(audit, sum) || strings.Contains(audit, content) {
		t.Errorf("the audit does not tell the hash, or tells the contents: %s", audit)
	}
	eventually(t, 30*time.Second, func(context.Context) error {
		if helper.times() == 0 {
			return errors.New("the helper does not start")
		}
		return nil
	})
}

// caged looks at the node with the helper's eyes.
func caged(t *testing.T, helper *control, content string, forbidden net.Listener, forbiddenAddr string) {
	t.Helper()
	got := make(chan struct{}, 1)
	go func() {
		if c, err := forbidden.Accept(); err == nil {
			c.Close()
			got <- struct{}{}
		}
	}()
	for _, c := range []struct{ question, want string }{ // in this order: the list of /tmp comes before something is written there
		{"who", fmt.Sprintf("ok uid %d gid %[1]d", sandbox.HSMDaemonProcess.UID)},
		{"dial " + forbiddenAddr, "error: dial tcp " + forbiddenAddr + ": connect: connection refused"},
		{"dial 127.0.0.1:22", "error: dial tcp 127.0.0.1:22: connect: connection refused"},
		{"dial " + lab.GuestAddress + ":80", "error: dial tcp " + lab.GuestAddress + ":80: connect: connection refused"},
		{"list /data", "ok hsm-site"},
		{"list /run", "ok hsm-daemon"},
		{"list /tmp", "ok"},
		{"hash /data/hsm-site/client.pem", fmt.Sprintf("ok %x", sha256.Sum256([]byte(content)))},
		{"write /data/hsm-site/client.pem", "error: open /data/hsm-site/client.pem: read-only file system"},
		{"hash /proc/1/environ", "error: open /proc/1/environ: no such file or directory"},
		{"write /tmp/x", "ok"},
		{"dial 192.0.2.1:53", "error: dial tcp 192.0.2.1:53: connect: connection refused"},
	} {
		if answer := helper.ask(t, c.question); answer != c.want {
			t.Errorf("%s: %q, want %q", c.question, answer, c.want)
		}
	}
	select {
	case <-got:
		t.Error("somebody reached the forbidden port")
	default:
	}
}

// inManifest looks for the pack in what the build says of the image.
func inManifest(t *testing.T, dir string) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, images.ManifestFile))
	if err != nil {
		t.Fatal(err)
	}
	var m images.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	if m.HSM.Title() != "relay 1.0" || len(m.HSM.SHA256) != 64 || len(m.HSM.Daemon) != 4 || len(m.HSM.Site) != 1 {
		t.Errorf("the manifest says %+v", m.HSM)
	}
	files := map[string]string{}
	for _, f := range m.Files {
		files[f.Path] = f.SHA256
	}
	for _, f := range m.HSM.Files {
		if files[f.Path] != f.SHA256 {
			t.Errorf("%s is not in the image as in the pack", f.Path)
		}
	}
	notice, err := os.ReadFile(filepath.Join(dir, images.NoticeFile))
	if err != nil || !strings.Contains(string(notice), "HSM pack relay 1.0") || !strings.Contains(string(notice), "terms of the relay") {
		t.Errorf("the notice lacks the pack's terms (%v)", err)
	}
}
