package plain_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"guardhouse/appliance/policy"
	"guardhouse/console/plain"
	"guardhouse/console/verb"
	"guardhouse/console/verb/verbtest"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// typed is a line on which somebody has typed all their input beforehand.
type typed struct {
	io.Reader
	mu  sync.Mutex
	out bytes.Buffer
}

func (l *typed) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.Write(p)
}

func (l *typed) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.String()
}

// loop types input into a session and gives the dialogue and why it ended.
func loop(s *verb.Session, input string) (string, error) {
	line := &typed{Reader: strings.NewReader(input)}
	t := plain.NewTerminal(line, time.Minute)
	defer t.Close()
	err := plain.Loop(context.Background(), t, s)
	return line.String(), err
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	got = strings.ReplaceAll(got, "\r\n", "\n")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got {
		t.Errorf("%s differs (run with -update and review); got:\n%s", path, got)
	}
}

func TestSetupDialogue(t *testing.T) {
	f := verbtest.Start(t, false)
	s := &verb.Session{Node: f.Node, Actor: policy.Actor{Door: policy.DoorSetup, Session: "s1"}}
	text, err := loop(s, "menu\rsetup\rversion = 1\r[service]\r.\r-----BEGIN AGE ENCRYPTED FILE-----\rAAAA\r-----END AGE ENCRYPTED FILE-----\r.\r"+
		"neither\rpassphrase\rmistyped\raaaa bbbb cccc dddd\ryes\r")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "setup.txt", text)
	if snap, _ := f.Node.Snapshot(); !snap.State.SetUp() {
		t.Error("the node is not set up")
	}
}

func TestSetupStopsAtTheFirstWrongAnswer(t *testing.T) {
	f := verbtest.Start(t, false)
	s := &verb.Session{Node: f.Node, Actor: policy.Actor{Door: policy.DoorSetup, Session: "s1"}}
	const secrets = "-----BEGIN AGE ENCRYPTED FILE-----\r.\rshares\r1AAA\r2BBB\r3CCC\r"
	text, err := loop(s, "setup\rwrong = 1\r.\rsetup\rversion = 1\r.\rnot encrypted\r.\rsetup\rversion = 1\r.\r"+secrets+"no\r\x04")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "setup-refused.txt", text)
	if snap, _ := f.Node.Snapshot(); snap.State.SetUp() {
		t.Error("the node is set up")
	}
}

func TestDialogue(t *testing.T) {
	f := verbtest.Start(t, true)
	text, err := loop(f.Session(policy.DoorSerial), "menu\r4\r2\rhost revoke\rhv7\rno\rhost revoke hv7\ryes\radmin add\rgrace\roperator\rnot a key\r.\raudit export\r"+
		"log show hgs\rhots\r99\rkey list --json\rlogout\r")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "dialogue.txt", text)
}

func TestLineEditor(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSerial)
	for input, want := range map[string]string{
		"wrong\x15logout\r":            "logged out",
		"logoux\x7ft\r\n":              "logged out",
		"logouté\x08\r":                "logged out", // one backspace removes a whole character
		"\x1b[A\x1bOP\x1b[15~logout\r": "logged out",
		"\x03logout\r":                 "^C",
		"\x04":                         "guardhouse> \r\n",
		strings.Repeat("x", 70000) + "\rlogout\r": "too long",
	} {
		if text, err := loop(s, input); err != nil || !strings.Contains(text, want) {
			t.Errorf("%.30q: %v, %.200q", input, err, text)
		}
	}
}

func TestBreakAndLostLineEndTheSession(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSerial)
	if _, err := loop(s, "status\r\x00logout\r"); !errors.Is(err, plain.ErrBreak) {
		t.Errorf("a BREAK gave %v", err)
	}
	if _, err := loop(s, "admin add grace owner\r\x00"); !errors.Is(err, plain.ErrBreak) {
		t.Errorf("a BREAK inside a paste gave %v", err)
	}
	if _, err := loop(s, "stat"); !errors.Is(err, plain.ErrGone) {
		t.Errorf("a lost line gave %v", err)
	}
	r, w := io.Pipe()
	defer w.Close()
	line := &typed{Reader: r}
	term := plain.NewTerminal(line, 50*time.Millisecond)
	defer term.Close()
	if err := plain.Loop(context.Background(), term, s); !errors.Is(err, plain.ErrIdle) {
		t.Errorf("nobody typing gave %v", err)
	}
}

func TestKeyEndsAStream(t *testing.T) {
	f := verbtest.Start(t, true)
	r, w := io.Pipe()
	line := &typed{Reader: r}
	term := plain.NewTerminal(line, time.Minute)
	defer term.Close()
	ended := make(chan error, 1)
	go func() { ended <- plain.Loop(context.Background(), term, f.Session(policy.DoorSerial)) }()
	io.WriteString(w, "log follow\r")
	for limit := time.Now().Add(5 * time.Second); !strings.Contains(line.String(), "colour") && time.Now().Before(limit); {
		time.Sleep(time.Millisecond)
	}
	io.WriteString(w, "q")
	io.WriteString(w, "logout\r")
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatalf("the stream went on: %q", line.String())
	}
	w.Close()
	if text := line.String(); strings.ContainsAny(text, "\x1b") {
		t.Errorf("a log line commands the terminal: %q", text)
	}
}

func TestSecretsAreNotEchoed(t *testing.T) {
	f := verbtest.Start(t, true)
	text, err := loop(f.Session(policy.DoorSerial), "passphrase set\rcorrect horse\rcorrect horse\rpassphrase set\rone thing\ranother\rpassphrase set\rshort\rshort\rlogout\r")
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"horse", "thing", "another", "short\r"} {
		if strings.Contains(text, secret) {
			t.Errorf("%q was echoed: %q", secret, text)
		}
	}
	golden(t, "passphrase.txt", text)
}

func TestTooLargePasteIsNeverTakenForCommands(t *testing.T) {
	f := verbtest.Start(t, true)
	input := "host add hv7\r" + strings.Repeat(strings.Repeat("A", 1000)+"\r", 1100) + "reboot\ryes\r.\rlogout\r"
	text, err := loop(f.Session(policy.DoorSerial), input)
	if err != nil || !strings.Contains(text, "more than 1 MiB") {
		t.Errorf("%v: %.300q", err, text[max(0, len(text)-300):])
	}
	if len(f.Power()) > 0 {
		t.Error("the tail of a paste rebooted the machine")
	}
}

func FuzzLoop(f *testing.F) {
	node := verbtest.Start(f, true)
	visitor := &verb.Session{Node: node.Node, Actor: policy.Actor{Door: policy.DoorSerial}}
	f.Add([]byte("status\rhelp\r\x1b[2J\x00"))
	f.Add([]byte("menu\r1\r\x15\x7f\x03\x04"))
	f.Fuzz(func(t *testing.T, input []byte) {
		line := &typed{Reader: bytes.NewReader(input)}
		term := plain.NewTerminal(line, time.Minute)
		defer term.Close()
		plain.Loop(context.Background(), term, visitor)
		text := strings.NewReplacer("\r\n", "", "\b \b", "", "\n", "").Replace(line.String())
		for _, r := range text {
			if r == utf8.RuneError || !unicode.IsPrint(r) {
				t.Fatalf("wrote %U in %q", r, text)
			}
		}
	})
}

func FuzzPaste(f *testing.F) {
	f.Add([]byte("one\rtwo\r\n.\r"))
	f.Add([]byte(".\r"))
	f.Fuzz(func(t *testing.T, input []byte) {
		term := plain.NewTerminal(&typed{Reader: bytes.NewReader(input)}, time.Minute)
		defer term.Close()
		text, err := term.Paste(context.Background(), "it")
		if err == nil && len(text) > plain.MaxPaste {
			t.Fatalf("%d bytes", len(text))
		}
	})
}

func TestPINIsTypedUnseenAndReachesTheHSMAlone(t *testing.T) {
	f := verbtest.Start(t, true)
	for _, door := range []policy.Door{policy.DoorSerial, policy.DoorSSH} {
		text, err := loop(f.Session(door), "hsm unlock\rS3cret-4711\rhsm unlock --last-try\rS3cret-4711\rhsm retry\raudit tail\rlogout\r")
		if err != nil || strings.Contains(text, "S3cret") || strings.Count(text, "PIN of the token: ") != 2 || !strings.Contains(text, "hsm.unlock") {
			t.Errorf("%s: %v\n%s", door, err, text)
		}
	}
	if got := strings.Join(f.Unlocked(), ","); got != "S3cret-4711 false,S3cret-4711 true,S3cret-4711 false,S3cret-4711 true" {
		t.Errorf("the HSM process got %q", got)
	}
}

func TestEvaluationImageSaysSoInADialogue(t *testing.T) {
	f := verbtest.Start(t, true)
	f.Node.Evaluation = true
	text, err := loop(f.Session(policy.DoorSerial), "menu\rkey\rhost list\rhost show nobody\rhost list --json\rlogout\r")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "evaluation.txt", text)
}
