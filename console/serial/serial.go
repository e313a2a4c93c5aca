// Package serial is the door at the machine itself: the serial line. It promises that before setup it offers only status, help, setup
// and, for whoever has the recovery secret, a time; that after setup nothing but status and help answers until somebody proves to be an administrator, by passphrase or by a
// signature of their SSH key over a fresh challenge; that every login and every failed one is audited; and that a session ends after
// 10 minutes without a key, on a BREAK and when the line is lost.
//
// Limits: whoever holds the line before setup may set the node up: possession of the machine is the proof. The passphrase is checked by
// the ledger, which waits longer after each wrong one; a signature is checked here, against the records.
package serial

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/console/plain"
	"guardhouse/console/verb"
)

// Namespace is the sshsig namespace of a login signature.
const Namespace = "guardhouse-serial"

// WaitingPrompt is not plain.Prompt, so that a script which waits for that one starts only when the node is ready for it.
const WaitingPrompt = "waiting> "

// ChallengeLife is how long a challenge may be answered.
const ChallengeLife = 5 * time.Minute

// Console is the door. Fill in Node and Open, then Run. Wait pauses after a refused login and before the line is opened again; nil
// means real time.
type Console struct {
	Node *verb.Node
	Open func() (io.ReadWriteCloser, error) // the line, in raw mode
	Logf func(format string, args ...any)
	Idle time.Duration // 0 = plain.Idle
	Wait func(ctx context.Context, d time.Duration)

	failures int // logins refused in a row
}

// Run serves the line until ctx ends, opening it again whenever it is lost.
func (c *Console) Run(ctx context.Context) error {
	pause := time.Second
	for ctx.Err() == nil {
		line, err := c.Open()
		if err != nil {
			c.Logf("serial line: %v", err)
			pause = min(2*pause, time.Minute)
		} else {
			if err = c.serve(ctx, line); ctx.Err() == nil {
				c.Logf("serial line: %v", err)
			}
			line.Close()
			pause = time.Second
		}
		c.pause(ctx, pause)
	}
	return nil
}

func (c *Console) pause(ctx context.Context, d time.Duration) {
	if c.Wait != nil {
		c.Wait(ctx, d)
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// serve holds one opened line until it is lost or ctx ends.
func (c *Console) serve(ctx context.Context, line io.ReadWriter) error {
	t := plain.NewTerminal(line, c.Idle)
	defer t.Close()
	for {
		snap, known := c.Node.Snapshot()
		var err error
		switch {
		case !known:
			err = c.waiting(ctx, t)
		case !snap.State.SetUp():
			err = c.firstBoot(ctx, t)
		default:
			err = c.login(ctx, t)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		switch {
		case errors.Is(err, plain.ErrGone):
			return err
		case err != nil && !errors.Is(err, plain.ErrIdle) && !errors.Is(err, plain.ErrBreak) && !errors.Is(err, plain.ErrInterrupted) &&
			!errors.Is(err, plain.ErrEnd) && !errors.Is(err, context.Canceled):
			c.Logf("serial line: %v", err)
			c.pause(ctx, time.Second) // never a loop without a pause
		}
	}
}

func (c *Console) session(door policy.Door) *verb.Session {
	return &verb.Session{Node: c.Node, Actor: policy.Actor{Door: door}}
}

// waiting is the time before the ledger has sent the records.
func (c *Console) waiting(ctx context.Context, t *plain.Terminal) error {
	changed := c.Node.Changed()
	if _, known := c.Node.Snapshot(); known {
		return nil
	}
	select { // usually it takes a moment only
	case <-changed:
		return nil
	case <-ctx.Done():
		return nil
	case <-time.After(3 * time.Second):
	}
	if err := t.Say("\n" + c.Node.Banner() + "guardhouse: waiting for the ledger; only status and help answer\n" + c.recoverable(ctx)); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-changed:
			cancel()
		case <-ctx.Done():
		}
	}()
	return plain.LoopAt(ctx, t, c.session(policy.DoorSetup), WaitingPrompt)
}

// recoverable is the way out where the ledger waits for a data volume that only its recovery secret opens.
func (c *Console) recoverable(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	v, err := rpc.InitVolume.Call(ctx, c.Node.Init, rpc.Empty{})
	if err != nil || v.State != rpc.VolumeShut || v.Secret == "" {
		return ""
	}
	return "The data volume is shut: see status. recover opens it with recovery secret " + v.Secret + ".\n"
}

// firstBoot is the page of a node that is not set up.
func (c *Console) firstBoot(ctx context.Context, t *plain.Terminal) error {
	s := c.session(policy.DoorSetup)
	id, err := c.Node.ID()
	if err != nil {
		return err
	}
	s.Actor.Session = id[:16]
	if err := t.Say("\nguardhouse: this node is not set up\n\n"); err != nil {
		return err
	}
	if _, err := plain.One(ctx, t, s, "status"); err != nil {
		return err
	}
	if err := t.Say("\n"); err != nil {
		return err
	}
	return plain.LoopMenu(ctx, t, s)
}

// login shows the status, asks who is there and, once that is proved, runs their session.
func (c *Console) login(ctx context.Context, t *plain.Terminal) error {
	visitor := c.session(policy.DoorSerial)
	if err := t.Say("\n"); err != nil {
		return err
	}
	if _, err := plain.One(ctx, t, visitor, "status"); err != nil {
		return err
	}
	say := "\nLog in with your name; an empty passphrase asks for a signature instead.\n"
	if c.Node.Silent() {
		say += "The ledger does not answer, so nobody can log in; with the recovery secret: time recover TIME.\n"
	}
	if err := t.Say(say); err != nil {
		return err
	}
	for {
		name, err := t.Line(ctx, "login: ")
		if err != nil {
			return err
		}
		name = strings.TrimSpace(name)
		first, rest, _ := strings.Cut(name, " ")
		if first == "time" && rest != "" && c.Node.Silent() {
			if _, err := plain.One(ctx, t, c.session(policy.DoorSetup), name); err != nil {
				return err
			}
			continue
		}
		switch first {
		case "":
			return nil
		case "status", "help":
			if _, err := plain.One(ctx, t, visitor, name); err != nil {
				return err
			}
			continue
		}
		// After a refusal the page is not drawn again: it would scroll the reason away.
		if again, err := c.prove(ctx, t, name); err != nil || !again {
			return err
		}
	}
}

// prove checks who it is and runs the session. again is true where there was none, and why is on the screen.
func (c *Console) prove(ctx context.Context, t *plain.Terminal, name string) (again bool, err error) {
	passphrase, err := t.Secret(ctx, "passphrase: ")
	if err != nil {
		return false, err
	}
	defer clear(passphrase)
	var wrong string // the reason's kind
	var wait time.Duration
	if len(passphrase) > 0 {
		wrong, wait, err = c.checkPassphrase(ctx, name, passphrase)
	} else {
		wrong, err = c.checkSignature(ctx, t, name)
	}
	if errors.Is(err, plain.ErrGone) || errors.Is(err, plain.ErrBreak) || errors.Is(err, plain.ErrIdle) || errors.Is(err, plain.ErrInterrupted) {
		return false, err
	}
	if err != nil {
		return true, t.Say(verb.FailurePage(verb.Explain(err)).String())
	}
	s := c.session(policy.DoorSerial)
	if wrong != "" {
		return true, c.refuse(ctx, t, s, name, wrong, wait)
	}
	c.failures = 0
	id, err := c.Node.ID()
	if err != nil {
		return false, err
	}
	if s.Actor, err = c.actor(name, id[:16]); err != nil {
		return true, t.Say(verb.FailurePage(verb.Explain(err)).String())
	}
	if err := s.AuditLogin(ctx, "login", "ok", ""); err != nil {
		t.Say("this login could not be written to the audit: " + verb.Explain(err).Error() + "\n")
	}
	if err := t.Say(c.Node.Banner() + "You are " + name + ". Type status, help or menu.\n"); err != nil {
		return false, err
	}
	return false, c.logout(t, s, plain.Loop(ctx, t, s))
}

func (c *Console) logout(t *plain.Terminal, s *verb.Session, reason error) error {
	detail := ""
	if reason != nil {
		detail = reason.Error()
		t.Say("\nlogged out: " + detail + "\n")
	}
	s.AuditLogin(context.Background(), "logout", "ok", detail)
	return reason
}

const maxPause = 30 * time.Second

// refuse says no, records it and waits: 1 s, 2 s, 4 s up to 30 s. The ledger may look at no passphrase for longer; a signature is still
// taken then. A name that is no administrator's is not recorded, because people type their passphrase there by mistake.
func (c *Console) refuse(ctx context.Context, t *plain.Terminal, s *verb.Session, name, wrong string, wait time.Duration) error {
	c.failures++
	wait = max(wait, min(maxPause, time.Second<<min(c.failures-1, 5)))
	detail := "unknown name"
	if snap, _ := c.Node.Snapshot(); snap.State.Admins[name].Name != "" {
		s.Actor.Name, detail = name, ""
	}
	s.AuditLogin(ctx, "login", wrong, detail)
	if err := t.Say(fmt.Sprintf("not accepted; wait %d s\n", int(wait.Round(time.Second).Seconds()))); err != nil {
		return err
	}
	c.pause(ctx, min(wait, maxPause))
	return nil
}

// actor is the administrator as the records know them now.
func (c *Console) actor(name, session string) (policy.Actor, error) {
	snap, _ := c.Node.Snapshot()
	admin, ok := snap.State.Admins[name]
	if !ok {
		return policy.Actor{}, errors.New("the administrator was removed meanwhile")
	}
	fp, err := policy.KeyFingerprint(admin.Key)
	return policy.Actor{Name: name, Key: fp, Door: policy.DoorSerial, Session: session}, err
}

func (c *Console) checkPassphrase(ctx context.Context, name string, passphrase []byte) (wrong string, wait time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	r, err := rpc.LedgerPassphrase.Call(ctx, c.Node.Ledger, rpc.PassphraseRequest{Admin: name, Passphrase: passphrase})
	if err != nil || r.OK {
		return "", 0, err
	}
	return "wrong-passphrase", r.Delay, nil
}

// checkSignature shows a fresh challenge and verifies what is pasted. Unknown names see the same dialogue.
func (c *Console) checkSignature(ctx context.Context, t *plain.Terminal, name string) (wrong string, err error) {
	snap, _ := c.Node.Snapshot()
	var nonce [20]byte
	if _, err := io.ReadFull(c.Node.Random, nonce[:]); err != nil {
		return "", fmt.Errorf("read randomness: %w", err)
	}
	challenge := snap.NodeID + "-" + hex.EncodeToString(nonce[:])
	since := c.Node.Boottime()
	if err := t.Say("within 5 minutes, sign with your enrolled key:\n  printf %s " + challenge + " |\n    ssh-keygen -Y sign -n " + Namespace +
		" -f ~/.ssh/id_ed25519\n"); err != nil {
		return "", err
	}
	pasted, err := t.Paste(ctx, "the signature")
	if err != nil {
		return "", err
	}
	if c.Node.Boottime()-since > ChallengeLife {
		return "challenge-expired", nil
	}
	if snap, _ = c.Node.Snapshot(); !signed(snap.State.Admins[name], challenge, pasted) {
		return "wrong-signature", nil
	}
	return "", nil
}

// signed reports whether armored is the administrator's signature over the challenge, with or without a newline after it.
func signed(admin policy.Admin, challenge string, armored []byte) bool {
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(admin.Key))
	if err != nil {
		return false
	}
	sig, err := sshsig.Unarmor(bytes.TrimLeft(armored, " \n"))
	if err != nil || sig.HashAlgorithm.Supported() != nil {
		return false
	}
	for _, message := range []string{challenge, challenge + "\n"} {
		if sshsig.Verify(strings.NewReader(message), sig, key, sig.HashAlgorithm, Namespace) == nil {
			return true
		}
	}
	return false
}
