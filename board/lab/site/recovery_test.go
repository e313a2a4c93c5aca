//go:build qemu

package site

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestRecovery is the life of a sealed volume: shut for a TPM that is not its own, opened by people, given to another TPM, ended.
func TestRecovery(t *testing.T) {
	t.Parallel()
	s := openStage(t, "test-recovery", Attached)
	if err := s.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.ready(t, false)
	s.steps(t, []step{
		{"BlackStartBeforeAnybodyCanLogIn", blackStart},
		{"SetUpMakesTheSecret", setUpMakesTheSecret},
		{"OtherTPMOpensWithTheSecretAndIsResealed", otherTPM},
		{"FactoryResetTwiceOnOneTPM", factoryResetTwice},
	})
}

// blackStart: setup was given up after its recovery secret was confirmed. No time server is configured then, and nobody could log in.
func blackStart(t *testing.T, s *stage) {
	r, err := s.AskSetUp(within(t, 60*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	s.typed(t, "no", "nothing was changed")
	now := "time recover " + time.Now().UTC().Format(time.RFC3339)
	for _, try := range []struct{ line, secret, want string }{
		{"time recover 2011-01-01T00:00:00Z", "", "this lies before"},
		{now, "0000-0000-0000-0000-0000-0000-0000", `mistyped|this is not recovery secret`},
		{now, r.Recovery, "the time counts now, as manual"},
	} {
		s.typed(t, try.line, "type yes to go on: ")
		if try.secret == "" {
			s.typed(t, "yes", try.want)
			continue
		}
		s.typed(t, "yes", `recovery secret [0-9a-f]{8}: `)
		s.typed(t, try.secret, try.want)
		time.Sleep(2 * time.Second) // which a wrong one costs
	}
}

func setUpMakesTheSecret(t *testing.T, s *stage) {
	r, err := s.SetUp(within(t, 60*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	s.expect(t, "login: ")
	s.trusts(t) // a majority replaces the manual time
	st := s.verb(t, "recovery", "status")
	if !strings.Contains(st, "the TPM opens it") || !strings.Contains(st, "one passphrase") || strings.Contains(st, r.Recovery) {
		t.Errorf("recovery status: %s", st)
	}
	if log := s.verb(t, "log", "show"); strings.Contains(log, r.Recovery) || strings.Contains(s.verb(t, "audit", "tail"), r.Recovery) {
		t.Error("the secret was written down by the node")
	}
}

// trusts waits until the node trusts the time by its servers. A machine that a busy workstation let stand still is suspect, and stays so after a
// restart, until the administrator says that the servers are right.
func (s *stage) trusts(t *testing.T) {
	t.Helper()
	eventually(t, time.Minute, func(ctx context.Context) error {
		c, err := s.clock(ctx)
		if err != nil || c.State == "locked" && time.Since(c.Trusted.Earliest).Abs() < time.Minute {
			return err
		}
		if c.State == "suspect" {
			t.Logf("released: %s", c.Reason)
			s.Verb(ctx, nil, "time", "release") // refused while there is no majority; the next round tries again
		}
		return fmt.Errorf("the clock is %s (%s), from %s", c.State, c.Reason, c.Trusted.Earliest)
	})
}

func otherTPM(t *testing.T, s *stage) {
	s.off(t)
	if err := s.SwapTPM(); err != nil {
		t.Fatal(err)
	}
	if err := s.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.shut(t, "seal-other-tpm")
	secret, err := s.RecoverySecret()
	if err != nil {
		t.Fatal(err)
	}
	for _, try := range []struct {
		secret string
		opens  bool
	}{{"0000-0000-0000-0000-0000-0000-0000", false}, {strings.ToLower(secret), true}} {
		opened, reason, err := s.Recover(within(t, 60*time.Second), try.secret)
		if err != nil || opened != try.opens {
			t.Fatalf("opened: %v, %q %v", opened, reason, err)
		}
	}
	s.ready(t, true)
	if err := s.SerialLogin(within(t, 60*time.Second)); err != nil {
		t.Fatal(err)
	}
	preview, err := s.Reseal(within(t, 60*time.Second))
	if err != nil || !strings.Contains(preview, "another one than sealed the volume") {
		t.Fatalf("%q %v", preview, err)
	}
	s.trusts(t)
	time.Sleep(2 * time.Second) // the floor moves by at least one at a stop
	s.off(t)
	if err := s.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.ready(t, true)
	eventually(t, 40*time.Second, func(ctx context.Context) error {
		after, by, commands, err := s.Opened(ctx)
		t.Logf("open %v after PID 1 began, %d TPM commands, %s", after, commands, by)
		return err
	})
	if log := s.verb(t, "log", "show", "--boot", "-1", "--lines", "400"); !regexp.MustCompile(`(?s) off: .*the TPM keeps the time's floor at 20\d\d-`).MatchString(log) {
		t.Errorf("the TPM was not given the time's floor when the node stopped: %s", log)
	}
	if tail := s.verb(t, "audit", "tail", "--lines", "20"); !strings.Contains(tail, "recover") || !strings.Contains(tail, "reseal") {
		t.Errorf("the audit does not tell of it: %s", tail)
	}
}

func factoryResetTwice(t *testing.T, s *stage) {
	for round := range 2 {
		proofs := []string{`factory reset: HSM: no key was destroyed`}
		if round == 0 {
			eventually(t, 60*time.Second, func(ctx context.Context) error { // the time must be trusted
				_, err := s.Verb(ctx, nil, "key", "new", "--roles", "signing,encryption")
				return err
			})
			if n := s.objectsInToken(t); n != 4 {
				t.Errorf("the token holds %d objects of two pairs", n)
			}
			proofs = []string{`factory reset: HSM: key guardhouse-\S+, .* searched again: none`, `factory reset: HSM: key guardhouse-\S+, .* searched again: none`}
		}
		if err := s.SerialLogin(within(t, 60*time.Second)); err != nil {
			t.Fatal(err)
		}
		s.typed(t, "factory-reset", "type yes to go on: ")
		if round == 0 {
			s.typed(t, "yes", `(?s)that this node made:.*guardhouse-signing-.*type destroy the keys \(2\), or keep`)
			s.typed(t, "destroy the keys", "type end this node: ")
		} else {
			s.typed(t, "yes", "(?s)No key in the HSM.*type end this node: ")
		}
		s.typed(t, "end this node", `the node stops|reboot \(factory reset\)`) // init may be faster than the console
		if n := s.objectsInToken(t); n != 0 {
			t.Errorf("the token still holds %d objects", n)
		}
		for _, proof := range append(proofs, `factory reset: TPM: .* read again: gone`, `factory reset: disk \w+: .* read again: blank`, `factory reset: done`) {
			s.expect(t, proof)
		}
		s.ready(t, false)
		if round == 0 {
			setUpMakesTheSecret(t, s)
		}
	}
}

// objectsInToken counts the objects in the token's own files, outside the node.
func (s *stage) objectsInToken(t *testing.T) int {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(s.Token.Dir, "objects", "*", "*.object"))
	if err != nil || len(list) == 0 {
		t.Fatalf("the token keeps its files elsewhere: %v", err)
	}
	return len(slices.DeleteFunc(list, func(f string) bool { return filepath.Base(f) == "token.object" }))
}
