//go:build qemu

package site

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/crypto/ssh"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/sandbox"
	"guardhouse/board/lab"
	"guardhouse/console/verb"
)

// closedPorts are ports that others would leave open; nothing may answer there.
var closedPorts = []int{21, 23, 111, 2222, 5985, 8080, 8443, 9000}

// TestNodeLife is the life of one node: blank, set up wrongly and rightly, in service, in trouble, cut off, replaced.
func TestNodeLife(t *testing.T) {
	t.Parallel()
	s := openStage(t, "test-life", Attached)
	if err := s.BootWith(t.Context(), func(o *lab.NodeOptions) { o.Forwards = append([]int{22, 80, 443, policy.PeerPort}, closedPorts...) }); err != nil {
		t.Fatal(err)
	}
	s.ready(t, false)
	for _, step := range []struct {
		name string
		run  func(*testing.T, *stage)
		base bool // the steps after it stand on it
	}{
		{"BlankOffersOnlySetupStatusHelp", blankOffersLittle, false},
		{"RefusesBadAnswers", refusesBadAnswers, false},
		{"RefusesSecretsForAnotherNode", refusesForeignSecrets, false},
		{"SetUp", setUpRightly, true},
		{"SerialLogin", serialLogin, false},
		{"RefusesUnknownSSHKey", refusesUnknownKey, false},
		{"OnlyItsPortsAreOpen", onlyItsPorts, false},
		{"Peers", knowsAnotherNode, false},
		{"HTTPS", httpsAnswers, false},
		{"HTTPSwitch", httpSwitch, false},
		{"BadRequests", badRequests, false},
		{"HSMFaults", hsmFaults, true},
		{"Reboot", rebootKeepsSecrets, true},
		{"PowerCuts", powerCuts, false},
		{"AnotherImage", anotherImage, false},
	} {
		start := time.Now()
		if !t.Run(step.name, func(t *testing.T) { step.run(t, s) }) && step.base {
			t.Fatalf("the steps after %s stand on it; the node's log is %s", step.name, s.Node.Serial.LogPath())
		}
		t.Logf("%-32s %5.1f s", step.name, time.Since(start).Seconds())
	}
}

func blankOffersLittle(t *testing.T, s *stage) {
	help := s.answered(t, "help")
	for _, v := range verb.All() {
		offered := strings.Contains(help, v.Help)
		if want := v.Name == "status" || v.Name == "help" || v.Name == "setup" || v.Name == "time recover"; offered != want {
			t.Errorf("help offers %s: %v", v.Name, offered)
		}
	}
	for _, v := range []string{"host list", "key new", "service show", "log show", "audit tail", "admin list", "reboot", "poweroff", "logout"} {
		if a := s.answered(t, v); !strings.Contains(a, "not-allowed: the node is not set up") {
			t.Errorf("%s before setup: %s", v, a)
		}
	}
	if c, err := net.DialTimeout("tcp", s.Node.Addr(22), time.Second); err == nil {
		defer c.Close()
		c.SetReadDeadline(time.Now().Add(time.Second))
		if n, err := c.Read(make([]byte, 1)); n > 0 {
			t.Errorf("SSH speaks before an administrator is enrolled: %v", err)
		}
	}
}

// refused gives the reason and remedy that the node shows after what was typed.
func (s *stage) refused(t *testing.T) string {
	t.Helper()
	return squeeze(s.expect(t, `(?s)refused: (.*?)guardhouse> `)[1])
}

// setupKey is the key that status shows.
func (s *stage) setupKey(t *testing.T) string {
	t.Helper()
	m := reSetupKey.FindString(s.answered(t, "status"))
	if m == "" {
		t.Fatal("status shows no setup key")
	}
	return m
}

func refusesBadAnswers(t *testing.T, s *stage) {
	text, err := s.Answers()
	if err != nil {
		t.Fatal(err)
	}
	key := s.setupKey(t)
	for name, c := range map[string]struct{ old, now, want string }{
		"unknown key": {"http = true", "htp = true", `there is no setting "service.htp"`},
		"secret":      {`token = "guardhouse"`, `pin = "31415926"`, `"pin" is a secret`},
		"wrong type":  {"https = true", `https = "yes"`, "the value of"},
	} {
		line := 1 + bytes.Count(text[:max(0, bytes.Index(text, []byte(c.old)))], []byte("\n"))
		c.want = fmt.Sprintf("answer file, line %d: %s", line, c.want)
		bad := bytes.Replace(text, []byte(c.old), []byte(c.now), 1)
		if bytes.Equal(bad, text) {
			t.Fatalf("%s: the answer file has no %q", name, c.old)
		}
		s.typed(t, "setup", reAnswers.String())
		if err := s.paste(bad); err != nil {
			t.Fatal(err)
		}
		if got := s.refused(t); !strings.Contains(got, c.want) || strings.Contains(got, "31415926") {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
		if now := s.setupKey(t); now != key {
			t.Errorf("%s: the setup key changed", name)
		}
	}
}

func refusesForeignSecrets(t *testing.T, s *stage) {
	text, err := s.Answers()
	if err != nil {
		t.Fatal(err)
	}
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := EncryptSecrets(other.Recipient().String(), s.Token.PIN(), "a passphrase of ada")
	if err != nil {
		t.Fatal(err)
	}
	plain := []byte("version = 1\nhsm-pin = \"31415926\"\n")
	for name, secrets := range map[string][]byte{"for another node": foreign, "not encrypted": plain} {
		s.typed(t, "setup", reAnswers.String())
		if err := s.paste(text); err != nil {
			t.Fatal(err)
		}
		s.expect(t, reSecrets.String())
		if err := s.paste(secrets); err != nil {
			t.Fatal(err)
		}
		if got := s.refused(t); strings.Contains(got, "31415926") || !strings.Contains(got, "setup key") {
			t.Errorf("secrets %s: %s", name, got)
		}
	}
	if a := s.answered(t, "status"); !strings.Contains(a, "not set up") {
		t.Errorf("after refused secrets: %s", a)
	}
}

func setUpRightly(t *testing.T, s *stage) {
	r, err := s.SetUp(within(t, 60*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if r.AnswerHash != r.LocalHash {
		t.Errorf("the node shows hash %s of an answer file with %s", r.AnswerHash, r.LocalHash)
	}
	s.expect(t, "login: ")
	var st status
	eventually(t, 40*time.Second, func(ctx context.Context) (err error) {
		if st, err = s.status(ctx); err == nil && (len(st.Problems) != 1 || st.Problems[0].Kind != "no-keys") {
			err = errors.New(strings.TrimSpace(strings.Join(kinds(st.Problems), " ")))
		}
		return err
	})
	if !strings.Contains(st.Problems[0].Remedy, "key new --roles all") {
		t.Errorf("remedy for missing keys: %q", st.Problems[0].Remedy)
	}
	s.verb(t, "key", "new", "--roles", "all")
	confined := 0
	for _, svc := range s.wellNow(t).Init.Services {
		if svc.Restarts > 0 {
			t.Errorf("%s was restarted %d times", svc.Name, svc.Restarts)
		}
		if svc.Confined { // as the node's kernel says in /proc
			confined++
		}
	}
	if confined != len(sandbox.Table) {
		t.Errorf("%d processes of %d run under their filter of system calls", confined, len(sandbox.Table))
	}
	if log := s.verb(t, "log", "show"); strings.Contains(log, "problem network") {
		t.Errorf("setup left a trace of trouble with the network")
	}
}

func kinds(list []problem) (out []string) {
	for _, p := range list {
		out = append(out, p.Kind+": "+p.What)
	}
	return out
}

func serialLogin(t *testing.T, s *stage) {
	s.typed(t, AdminName, "passphrase: ")
	start := time.Now()
	s.typed(t, "not the passphrase", `not accepted; wait 1 s`)
	s.expect(t, "login: ")
	first := time.Since(start)
	s.typed(t, AdminName, "passphrase: ")
	start = time.Now()
	s.typed(t, "not it either", `not accepted; wait 2 s`)
	s.expect(t, "login: ")
	if second := time.Since(start); first < time.Second || second < 2*time.Second {
		t.Errorf("wrong passphrases cost %v and %v", first, second)
	}
	s.typed(t, AdminName, "passphrase: ")
	s.typed(t, s.Admin.Passphrase, `You are `+AdminName+`.*\r\nguardhouse> `)
	if a := s.answered(t, "host list"); strings.HasPrefix(a, "not-allowed") {
		t.Errorf("host list after login: %s", a)
	}
	s.typed(t, "logout", "logged out")
	s.expect(t, "login: ")
	tail := s.verb(t, "audit", "tail", "--lines", "20")
	for _, want := range []string{"login: wrong-passphrase", "login: ok", "logout: ok"} {
		if !strings.Contains(tail, want) {
			t.Errorf("the audit does not tell of %q:\n%s", want, tail)
		}
	}
	if strings.Contains(s.Node.Serial.Transcript(), s.Admin.Passphrase) {
		t.Error("the passphrase was echoed")
	}
}

func refusesUnknownKey(t *testing.T, s *stage) {
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	for name, auth := range map[string]ssh.AuthMethod{"key": ssh.PublicKeys(signer), "passphrase": ssh.Password(s.Admin.Passphrase)} {
		c, err := ssh.Dial("tcp", s.Node.Addr(22), &ssh.ClientConfig{User: AdminName, Auth: []ssh.AuthMethod{auth}, Timeout: 20 * time.Second, HostKeyCallback: ssh.InsecureIgnoreHostKey()})
		if err == nil {
			c.Close()
			t.Errorf("SSH took a %s that was never enrolled", name)
		} else if !strings.Contains(err.Error(), "unable to authenticate") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// onlyItsPorts: QEMU's user network takes each connection itself and hangs up when the guest refuses.
func onlyItsPorts(t *testing.T, s *stage) {
	for _, port := range closedPorts {
		c, err := net.DialTimeout("tcp", s.Node.Addr(port), 5*time.Second)
		if err != nil {
			continue
		}
		c.Write([]byte("GET / HTTP/1.0\r\n\r\n"))
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if n, err := c.Read(make([]byte, 1)); n > 0 || errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
			t.Errorf("port %d was not refused: %d bytes, %v", port, n, err)
		}
		c.Close()
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
