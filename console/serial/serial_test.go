package serial

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/console/verb"
	"guardhouse/console/verb/verbtest"
)

// person sits at the other end of a serial line.
type person struct {
	t    *testing.T
	keys io.Writer
	mu   sync.Mutex
	seen bytes.Buffer
	read int
}

type end struct {
	io.Reader
	io.Writer
	close func() error
}

func (e end) Close() error { return e.close() }

func (p *person) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen.Write(b)
}

func noWait(context.Context, time.Duration) {}

// sit starts the door with a line that never breaks.
func sit(t *testing.T, f *verbtest.Fake) *person {
	t.Helper()
	r, w := io.Pipe()
	p := &person{t: t, keys: w}
	ctx, cancel := context.WithCancel(context.Background())
	c := &Console{Node: f.Node, Logf: t.Logf, Wait: noWait, Open: func() (io.ReadWriteCloser, error) { return end{r, p, func() error { return nil }}, nil }}
	done := make(chan struct{})
	go func() { defer close(done); c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		w.Close()
		<-done
	})
	return p
}

// expect waits for text that was not seen before.
func (p *person) expect(text string) string {
	p.t.Helper()
	for limit := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		p.mu.Lock()
		all := p.seen.String()[p.read:]
		if i := strings.Index(all, text); i >= 0 {
			p.read += i + len(text)
			p.mu.Unlock()
			return all[:i+len(text)]
		}
		p.mu.Unlock()
		if time.Now().After(limit) {
			p.t.Fatalf("waited for %q, saw %q", text, all)
		}
	}
}

func (p *person) types(text string) {
	p.t.Helper()
	if _, err := io.WriteString(p.keys, text); err != nil {
		p.t.Fatal(err)
	}
}

func (p *person) login() {
	p.t.Helper()
	p.expect("login: ")
	p.types("ada\r")
	p.expect("passphrase: ")
	p.types(verbtest.Passphrase + "\r")
	p.expect("guardhouse> ")
}

func logins(f *verbtest.Fake) string {
	var all []string
	for _, e := range f.Audit() {
		if e.Kind == policy.AuditLogin {
			all = append(all, strings.TrimSpace(e.Actor.Name+" "+string(e.Actor.Door)+" "+e.Action+" "+e.Outcome+" "+e.Detail))
		}
	}
	return strings.Join(all, "\n")
}

func TestFirstBootToLoginOnOneLine(t *testing.T) {
	f := verbtest.Start(t, false)
	p := sit(t, f)
	page := p.expect("guardhouse> ")
	for _, want := range []string{"this node is not set up", verbtest.Recipient, "setup", "status"} {
		if !strings.Contains(page, want) {
			t.Errorf("the first page lacks %q: %s", want, page)
		}
	}
	p.types("host list\r")
	p.expect("not-allowed")
	p.expect("guardhouse> ")
	p.types("3\r") // as the menu on the first page numbers it
	p.expect("end with a line holding only a dot")
	p.types("version = 1\r.\r")
	p.expect("sha256")
	p.expect("end with a line holding only a dot")
	p.types("-----BEGIN AGE ENCRYPTED FILE-----\r.\r")
	p.expect("type passphrase or shares: ")
	p.types("passphrase\r")
	p.expect("type it back: ")
	p.types(verbtest.RecoveryText + "\r")
	p.expect("type yes to apply: ")
	p.types("yes\r")
	p.expect("fingerprint")
	p.login()
	p.types("host list\r")
	p.expect("No host is registered")
	p.types("logout\r")
	p.expect("login: ")
}

func TestEveryVerbNeedsALoginAfterSetup(t *testing.T) {
	f := verbtest.Start(t, true)
	p := sit(t, f)
	p.expect("login: ")
	for _, free := range []string{"help", "status", "help key list", "help get-hgsserver"} {
		p.types(free + "\r")
		if text := p.expect("login: "); !strings.Contains(text, "\r\n") || strings.Contains(text, "passphrase") {
			t.Errorf("%s gave %q", free, text)
		}
	}
	before := len(f.Audit())
	for _, v := range verb.All() {
		if v.Name == "help" || v.Name == "status" {
			continue
		}
		// Whatever stands in front of the passphrase prompt is a name, not a verb.
		p.types(v.Name + "\r")
		p.expect("passphrase: ")
		p.types("\x03")
		if text := p.expect("login: "); strings.Contains(text, "guardhouse> ") {
			t.Errorf("%s ran: %q", v.Name, text)
		}
	}
	if len(f.Audit()) != before || len(f.Power()) != 0 {
		t.Error("something happened without a login")
	}
}

func TestWrongPassphraseWaitsAndIsAudited(t *testing.T) {
	f := verbtest.Start(t, true)
	p := sit(t, f)
	for _, c := range []struct{ name, passphrase string }{{"ada", "wrong"}, {"my secret passphrase", "x"}} {
		p.expect("login: ")
		p.types(c.name + "\r")
		p.expect("passphrase: ")
		p.types(c.passphrase + "\r")
		p.expect("not accepted; wait ")
	}
	if text := p.seen.String(); strings.Contains(text, "wrong\r") {
		t.Error("the passphrase was echoed")
	}
	p.login()
	want := "ada serial login wrong-passphrase\nserial login wrong-passphrase unknown name\nada serial login ok"
	if got := logins(f); got != want {
		t.Errorf("audited:\n%s\nwant:\n%s", got, want)
	}
}

// challenge asks for a signature login and gives what is to be signed.
func (p *person) challenge(name string) string {
	p.t.Helper()
	p.expect("login: ")
	p.types(name + "\r")
	p.expect("passphrase: ")
	p.types("\r")
	p.expect("printf %s ")
	challenge := strings.TrimSuffix(p.expect(" |"), " |")
	p.expect("only a dot\r\n")
	return challenge
}

func sign(t *testing.T, key ssh.Signer, message, namespace string) string {
	t.Helper()
	sig, err := sshsig.Sign(strings.NewReader(message), key, sshsig.HashSHA512, namespace)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(sshsig.Armor(sig)), "\n", "\r") + ".\r"
}

func TestSignatureLogin(t *testing.T) {
	f := verbtest.Start(t, true)
	_, private, _ := ed25519.GenerateKey(rand.Reader)
	stranger, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	p := sit(t, f)
	first := p.challenge("ada")
	p.types(sign(t, f.Admin, first, Namespace))
	p.expect("You are ada")
	p.expect("guardhouse> ")
	p.types("logout\r")
	p.expect("logged out")
	if second := p.challenge("ada"); second == first {
		t.Fatal("the same challenge twice")
	}
	p.types(sign(t, f.Admin, first, Namespace)) // replayed
	p.expect("not accepted")
	p.types(sign(t, f.Admin, p.challenge("ada"), "file"))
	p.expect("not accepted")
	p.types(sign(t, stranger, p.challenge("ada"), Namespace))
	p.expect("not accepted")
	c := p.challenge("bob")
	p.types(sign(t, f.Admin, c, Namespace))
	p.expect("not accepted")
	c = p.challenge("ada")
	f.Pass(ChallengeLife + time.Second)
	p.types(sign(t, f.Admin, c, Namespace))
	p.expect("not accepted")
	if got := logins(f); !strings.HasSuffix(got, "ada serial login challenge-expired") || strings.Count(got, "wrong-signature") != 4 {
		t.Errorf("audited:\n%s", got)
	}
}

func TestSignatureOfOpenSSHIsAccepted(t *testing.T) {
	keygen, err := exec.LookPath("ssh-keygen")
	if err != nil {
		t.Skip("ssh-keygen is not installed on this machine")
	}
	path := filepath.Join(t.TempDir(), "key")
	if out, err := exec.Command(keygen, "-q", "-t", "ecdsa", "-N", "", "-f", path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	public, err := os.ReadFile(path + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	key := strings.Join(strings.Fields(string(public))[:2], " ")
	for _, message := range []string{"0123-abc", "0123-abc\n"} {
		cmd := exec.Command(keygen, "-Y", "sign", "-n", Namespace, "-f", path)
		cmd.Stdin = strings.NewReader(message)
		armored, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		if !signed(policy.Admin{Key: key}, "0123-abc", armored) {
			t.Errorf("the signature over %q was not accepted", message)
		}
		if signed(policy.Admin{Key: key}, "0123-abd", armored) {
			t.Error("a signature over another challenge was accepted")
		}
	}
}

func TestSignatureWorksWithoutTheLedger(t *testing.T) {
	f := verbtest.Start(t, true)
	f.Fail("ledger.Passphrase", rpc.ErrUnavailable)
	f.Fail("ledger.Audit", rpc.ErrUnavailable)
	p := sit(t, f)
	p.expect("login: ")
	p.types("ada\r")
	p.expect("passphrase: ")
	p.types(verbtest.Passphrase + "\r")
	p.expect("unavailable")
	p.types(sign(t, f.Admin, p.challenge("ada"), Namespace))
	p.expect("could not be written to the audit")
	p.expect("guardhouse> ")
}

func TestBreakLogsOut(t *testing.T) {
	f := verbtest.Start(t, true)
	p := sit(t, f)
	p.login()
	p.types("host add hv7\r")
	p.expect("only a dot")
	p.types("\x00")
	p.expect("logged out: BREAK on the line")
	p.expect("login: ")
	if got := logins(f); !strings.HasSuffix(got, "ada serial logout ok BREAK on the line") {
		t.Errorf("audited:\n%s", got)
	}
}

// TestLostLineLogsOut uses a real terminal device: its other end is closed in the middle of a session.
func TestLostLineLogsOut(t *testing.T) {
	f := verbtest.Start(t, true)
	opened := make(chan *os.File, 4)
	c := &Console{Node: f.Node, Logf: t.Logf, Wait: noWait, Open: func() (io.ReadWriteCloser, error) {
		master, path, err := pty()
		if err != nil {
			return nil, err
		}
		opened <- master
		return OpenTTY(path)
	}}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan struct{})
	go func() { defer close(done); c.Run(ctx) }()
	for round := range 2 {
		master := <-opened
		p := &person{t: t, keys: master}
		go io.Copy(p, master)
		p.expect("login: ")
		if round == 0 {
			p.types("ada\r")
			p.expect("passphrase: ")
			p.types(verbtest.Passphrase + "\r")
			p.expect("guardhouse> ")
		} else {
			cancel()
		}
		master.Close()
	}
	<-done
	if got := logins(f); got != "ada serial login ok\nada serial logout ok the line was lost" {
		t.Errorf("audited:\n%s", got)
	}
}

func pty() (*os.File, string, error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, "", err
	}
	raw, err := master.SyscallConn()
	if err != nil {
		return nil, "", err
	}
	var path string
	cerr := raw.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			var n int
			n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
			path = filepath.Join("/dev/pts", strconv.Itoa(n))
		}
	})
	if err == nil {
		err = cerr
	}
	return master, path, err
}

func FuzzSigned(f *testing.F) {
	_, private, _ := ed25519.GenerateKey(rand.Reader)
	key, err := ssh.NewSignerFromKey(private)
	if err != nil {
		f.Fatal(err)
	}
	admin := policy.Admin{Key: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key.PublicKey())))}
	sig, err := sshsig.Sign(strings.NewReader("other"), key, sshsig.HashSHA256, Namespace)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sshsig.Armor(sig))
	f.Add(pem.EncodeToMemory(&pem.Block{Type: sshsig.PEMType, Bytes: []byte("SSHSIG")}))
	f.Fuzz(func(t *testing.T, armored []byte) {
		if signed(admin, "challenge", armored) {
			t.Fatal("a signature over another message was accepted")
		}
	})
}
