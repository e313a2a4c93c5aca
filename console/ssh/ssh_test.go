package ssh

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"guardhouse/appliance/policy"
	"guardhouse/console/verb"
	"guardhouse/console/verb/verbtest"
)

// door serves f on a loopback port until the test ends and gives its address.
func door(t *testing.T, f *verbtest.Fake, idle time.Duration) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{Node: f.Node, Idle: idle}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return l.Addr().String()
}

func client(f *verbtest.Fake, user string, key ssh.Signer) *ssh.ClientConfig {
	return &ssh.ClientConfig{User: user, Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, HostKeyCallback: ssh.FixedHostKey(f.HostKey()), Timeout: 5 * time.Second}
}

func connect(t *testing.T, f *verbtest.Fake, address string) *ssh.Client {
	t.Helper()
	c, err := ssh.Dial("tcp", address, client(f, "ada", f.Admin))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// runVerb is `ssh ada@node command`.
func runVerb(t *testing.T, c *ssh.Client, command, stdin string) (stdout, stderr string, code int) {
	t.Helper()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var out, errs bytes.Buffer
	s.Stdin, s.Stdout, s.Stderr = strings.NewReader(stdin), &out, &errs
	err = s.Run(command)
	var exit *ssh.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitStatus()
	} else if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return out.String(), errs.String(), code
}

func newKey(t *testing.T) ssh.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestVerbsRunWithJSONAndFilesOnStdin(t *testing.T) {
	f := verbtest.Start(t, true)
	c := connect(t, f, door(t, f, 0))
	pemCert := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate(t, "hv7")}))
	out, errs, code := runVerb(t, c, "host add hv7 --class gold --json", pemCert)
	var added struct{ ID, SHA1, SHA256 string }
	if err := json.Unmarshal([]byte(out), &added); code != 0 || err != nil || len(added.ID) != 64 || len(added.SHA1) != 40 || len(added.SHA256) != 64 {
		t.Fatalf("code %d, %v, out %s, err %s", code, err, out, errs)
	}
	out, _, code = runVerb(t, c, "host list --json", "")
	var list struct{ Hosts []verb.HostValue }
	if err := json.Unmarshal([]byte(out), &list); code != 0 || err != nil || len(list.Hosts) != 1 || list.Hosts[0].Name != "hv7" || list.Hosts[0].Class != "gold" {
		t.Fatalf("code %d, %v: %s", code, err, out)
	}
	if out, _, code = runVerb(t, c, "status", ""); code != 0 || !strings.Contains(out, "node1") {
		t.Fatalf("code %d: %s", code, out)
	}
	if out, _, code = runVerb(t, c, "audit export", ""); code != 0 || out != "first\x00second\n" {
		t.Fatalf("code %d: %q", code, out)
	}
}

func TestExitCodesAreStable(t *testing.T) {
	f := verbtest.Start(t, true)
	reader := newKey(t)
	f.Do(t, policy.CmdAdminAdd, policy.AdminAdd{Name: "rita", Role: policy.AdminReviewer, Key: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(reader.PublicKey())))})
	address := door(t, f, 0)
	owner := connect(t, f, address)
	rita, err := ssh.Dial("tcp", address, client(f, "rita", reader))
	if err != nil {
		t.Fatal(err)
	}
	defer rita.Close()
	f.Fail("hsm.Status", errors.New("broken"))
	for _, c := range []struct {
		who     *ssh.Client
		command string
		code    int
		says    string
	}{
		{owner, "host list", 0, ""},
		{owner, "host revoke nobody", 1, "there is no host"},
		{owner, "hsm status", 1, "broken"},
		{owner, "host nonsense", 2, "host list"},
		{owner, "host revoke", 2, "missing NAME"},
		{owner, "'open quote", 2, "partner"},
		{owner, "setup", 3, "can't be done over ssh"},
		{owner, "passphrase set", 3, "can't be done over ssh"},
		{rita, "host list", 0, ""},
		{rita, "host revoke hv7", 3, "needs operator"},
		{rita, "reboot", 3, "needs operator"},
	} {
		out, errs, code := runVerb(t, c.who, c.command, "")
		if code != c.code || !strings.Contains(errs, c.says) {
			t.Errorf("%s: code %d, want %d; out %q, err %q, want it to say %q", c.command, code, c.code, out, errs, c.says)
		}
		out, errs, code = runVerb(t, c.who, c.command+" --json", "")
		var failure struct {
			Error *verb.Failure
		}
		if err := json.Unmarshal([]byte(out), &failure); c.command[0] != '\'' && (err != nil || code != c.code || (code != 0) != (failure.Error != nil) || errs != "") {
			t.Errorf("%s --json: code %d, %v, out %q, err %q", c.command, code, err, out, errs)
		}
	}
	if len(f.Power()) != 0 {
		t.Error("the machine was rebooted by a reviewer")
	}
}

func TestRefusesKeysThatAreNotEnrolled(t *testing.T) {
	f := verbtest.Start(t, true)
	address := door(t, f, 0)
	stranger := newKey(t)
	for name, config := range map[string]*ssh.ClientConfig{
		"unknown key":  client(f, "ada", stranger),
		"unknown name": client(f, "bob", f.Admin),
		"password":     {User: "ada", Auth: []ssh.AuthMethod{ssh.Password(verbtest.Passphrase)}, HostKeyCallback: ssh.FixedHostKey(f.HostKey())},
		"no proof":     {User: "ada", HostKeyCallback: ssh.FixedHostKey(f.HostKey())},
		"known key offered, another used": {User: "ada", HostKeyCallback: ssh.FixedHostKey(f.HostKey()),
			Auth: []ssh.AuthMethod{ssh.PublicKeys(liar{f.Admin, stranger}, stranger)}},
	} {
		if c, err := ssh.Dial("tcp", address, config); err == nil {
			c.Close()
			t.Errorf("%s: logged in", name)
		}
	}
	refused := 0
	for _, e := range f.Audit() {
		if e.Kind == policy.AuditLogin && e.Outcome == "unknown-key" && e.Source == "127.0.0.1" {
			refused++
		}
	}
	if refused != 1 {
		t.Errorf("%d audit entries for a burst of refused logins from one source, want 1", refused)
	}
}

// liar shows one public key and signs with another.
type liar struct {
	shown ssh.Signer
	used  ssh.Signer
}

func (l liar) PublicKey() ssh.PublicKey { return l.shown.PublicKey() }
func (l liar) Sign(r io.Reader, data []byte) (*ssh.Signature, error) {
	return l.used.Sign(r, data)
}

func TestStaysClosedUntilSetUp(t *testing.T) {
	f := verbtest.Start(t, false)
	address := door(t, f, 0)
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if b, err := io.ReadAll(conn); err == nil && len(b) != 0 {
		t.Fatalf("a node that is not set up says %q", b)
	}
	f.SetUp(t)
	for s, _ := f.Node.Snapshot(); !s.State.SetUp(); s, _ = f.Node.Snapshot() {
		time.Sleep(time.Millisecond)
	}
	connect(t, f, address)
}

func TestOffersNothingButVerbs(t *testing.T) {
	f := verbtest.Start(t, true)
	c := connect(t, f, door(t, f, 0))
	if conn, err := c.Dial("tcp", "127.0.0.1:80"); err == nil {
		conn.Close()
		t.Error("forwards TCP")
	}
	if conn, err := c.Dial("unix", "/run/guardhouse/ledger.d/rpc.sock"); err == nil {
		conn.Close()
		t.Error("forwards unix sockets")
	}
	if l, err := c.Listen("tcp", "127.0.0.1:0"); err == nil {
		l.Close()
		t.Error("forwards TCP back")
	}
	for _, channel := range []string{"direct-tcpip", "x11", "auth-agent@openssh.com", "tun@openssh.com"} {
		if ch, _, err := c.OpenChannel(channel, nil); err == nil {
			ch.Close()
			t.Errorf("opens a channel of type %s", channel)
		}
	}
	for name, try := range map[string]func(*ssh.Session) error{
		"shell without a terminal": func(s *ssh.Session) error { return s.Shell() },
		"sftp":                     func(s *ssh.Session) error { return s.RequestSubsystem("sftp") },
		"environment":              func(s *ssh.Session) error { return s.Setenv("LANG", "C") },
		"agent": func(s *ssh.Session) error {
			ok, err := s.SendRequest("auth-agent-req@openssh.com", true, nil)
			if err == nil && !ok {
				err = errors.New("refused")
			}
			return err
		},
	} {
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		if err := try(s); err == nil {
			t.Errorf("%s is granted", name)
		}
		s.Close()
	}
}

func TestRemovedAdministratorLosesOpenSession(t *testing.T) {
	f := verbtest.Start(t, true)
	grace := newKey(t)
	f.Do(t, policy.CmdAdminAdd, policy.AdminAdd{Name: "grace", Role: policy.AdminOwner, Key: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(grace.PublicKey())))})
	c, err := ssh.Dial("tcp", door(t, f, 0), client(f, "grace", grace))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, _, code := runVerb(t, c, "host list", ""); code != 0 {
		t.Fatalf("code %d before removal", code)
	}
	f.Do(t, policy.CmdAdminRemove, policy.ByName{Name: "grace"})
	if _, errs, code := runVerb(t, c, "host list", ""); code != verb.ExitNotAllowed {
		t.Fatalf("code %d after removal: %s", code, errs)
	}
}

// terminal opens a session with a PTY and no command.
func terminal(t *testing.T, c *ssh.Client) (io.Writer, *bytes.Buffer, func() error) {
	t.Helper()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	s.Stdout = &out
	in, err := s.StdinPipe()
	if err == nil {
		err = s.RequestPty("xterm", 24, 80, nil)
	}
	if err == nil {
		err = s.Shell()
	}
	if err != nil {
		t.Fatal(err)
	}
	return in, &out, s.Wait
}

func TestTerminalWithoutCommandGetsTheDialogue(t *testing.T) {
	f := verbtest.Start(t, true)
	in, out, wait := terminal(t, connect(t, f, door(t, f, 0)))
	io.WriteString(in, "status\rlogout\r")
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	if text := out.String(); !strings.Contains(text, "guardhouse> ") || !strings.Contains(text, "node1 (0123456789abcdef)\r\n") || !strings.Contains(text, "logged out") {
		t.Fatalf("dialogue: %q", text)
	}
	var logins []string
	for _, e := range f.Audit() {
		if e.Kind == policy.AuditLogin {
			logins = append(logins, e.Action+" "+e.Actor.Name+" "+e.Outcome)
		}
	}
	if strings.Join(logins, ", ") != "login ada ok, logout ada ok" {
		t.Errorf("audited: %v", logins)
	}
}

func TestIdleSessionsEnd(t *testing.T) {
	f := verbtest.Start(t, true)
	c := connect(t, f, door(t, f, 200*time.Millisecond))
	_, out, wait := terminal(t, c)
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "logged out: nobody typed") {
		t.Errorf("dialogue: %q", out)
	}
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	if err := s.Run("log follow"); err == nil || time.Since(started) > 5*time.Second {
		t.Errorf("an idle stream ended with %v after %s", err, time.Since(started))
	}
}

func TestOneSourceCannotTakeAllConnections(t *testing.T) {
	f := verbtest.Start(t, true)
	address := door(t, f, 0)
	open := 0
	for range MaxPerSource + 4 {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(2 * time.Second))
		if n, _ := conn.Read(make([]byte, 4)); n == 4 {
			open++
		}
	}
	if open != MaxPerSource {
		t.Errorf("%d connections served from one source, want %d", open, MaxPerSource)
	}
}

func TestSilentConnectionsAreCut(t *testing.T) {
	f := verbtest.Start(t, true)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go (&Server{Node: f.Node, Handshake: 100 * time.Millisecond}).Serve(ctx, l)
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadAll(conn); err != nil {
		t.Errorf("a client that says nothing was cut with %v", err)
	}
	// One that logged in but opens no session holds a place too.
	c, err := ssh.Dial("tcp", l.Addr().String(), client(f, "ada", f.Admin))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("a connection without a session is kept")
	}
}

func TestOldAlgorithmsAreRefused(t *testing.T) {
	f := verbtest.Start(t, true)
	address := door(t, f, 0)
	for name, weaken := range map[string]func(*ssh.Config){
		"key exchange": func(c *ssh.Config) { c.KeyExchanges = []string{ssh.KeyExchangeDH14SHA256, ssh.KeyExchangeECDHP256} },
		"cipher":       func(c *ssh.Config) { c.Ciphers = []string{ssh.CipherAES128CTR} },
	} {
		config := client(f, "ada", f.Admin)
		weaken(&config.Config)
		if c, err := ssh.Dial("tcp", address, config); err == nil {
			c.Close()
			t.Errorf("an old %s was accepted", name)
		}
	}
}

func TestGuardBarsSourcesThatGuessAndStaysSmall(t *testing.T) {
	var g guard
	now := time.Hour
	written := 0
	for range triesPerMin {
		if _, write := g.failed("192.0.2.1", now); write {
			written++
		}
		now += time.Second
	}
	if !g.barred("192.0.2.1", now) || g.barred("192.0.2.2", now) {
		t.Error("bars the wrong source")
	}
	if g.barred("192.0.2.1", now+2*time.Minute) {
		t.Error("bars for ever")
	}
	for i := range 5 * maxSources {
		if _, write := g.failed(string(rune('a'+i%26))+strings.Repeat("x", i/26), now); write {
			written++
		}
	}
	if len(g.failures) > maxSources || written > 2*writeAll {
		t.Errorf("%d sources in memory, %d entries written", len(g.failures), written)
	}
}

func TestEvaluationImageSaysSoBeforeTheLogin(t *testing.T) {
	for _, evaluation := range []bool{true, false} {
		f := verbtest.Start(t, true)
		f.Node.Evaluation = evaluation
		address := door(t, f, 0)
		banner := ""
		config := client(f, "ada", f.Admin)
		config.BannerCallback = func(message string) error { banner += message; return nil }
		c, err := ssh.Dial("tcp", address, config)
		if err != nil {
			t.Fatal(err)
		}
		out, errs, _ := runVerb(t, c, "status", "")
		_, refused, _ := runVerb(t, c, "host show nobody", "")
		c.Close()
		for what, text := range map[string]string{"banner": banner, "status": out, "failure": refused} {
			if strings.HasPrefix(text, verb.EvaluationLine+"\n") != evaluation || strings.Contains(text, "EVALUATION") != evaluation {
				t.Errorf("evaluation %v, %s: %q", evaluation, what, text)
			}
		}
		if errs != "" {
			t.Errorf("standard error: %q", errs)
		}
	}
}
