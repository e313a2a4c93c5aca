//go:build qemu

package site

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestRecovery is the life of a sealed volume: shut for boots and TPMs that are not its own, opened by people, given to another TPM, ended.
func TestRecovery(t *testing.T) {
	t.Parallel()
	s := openStage(t, "test-recovery", Attached)
	if err := s.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.ready(t, false)
	for _, step := range []struct {
		name string
		run  func(*testing.T, *stage)
	}{
		{"SetUpMakesTheSecret", setUpMakesTheSecret},
		{"RefusesSecureBootOff", refusesSecureBootOff},
		{"OtherTPMOpensWithTheSecretAndIsResealed", otherTPM},
		{"FactoryResetTwiceOnOneTPM", factoryResetTwice},
	} {
		start := time.Now()
		if !t.Run(step.name, func(t *testing.T) { step.run(t, s) }) {
			t.Fatalf("the steps after %s stand on it; the node's log is %s", step.name, s.Node.Serial.LogPath())
		}
		t.Logf("%-32s %5.1f s", step.name, time.Since(start).Seconds())
	}
}

func setUpMakesTheSecret(t *testing.T, s *stage) {
	r, err := s.SetUp(within(t, 60*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	s.expect(t, "login: ")
	st := s.verb(t, "recovery", "status")
	if !strings.Contains(st, "the TPM opens it") || !strings.Contains(st, "one passphrase") || strings.Contains(st, r.Recovery) {
		t.Errorf("recovery status: %s", st)
	}
	if log := s.verb(t, "log", "show"); strings.Contains(log, r.Recovery) || strings.Contains(s.verb(t, "audit", "tail"), r.Recovery) {
		t.Error("the secret was written down by the node")
	}
}

// shut waits for the five lines that say why the volume stays shut, and gives reason and remedy.
func (s *stage) shut(t *testing.T, kind string) (what, remedy string) {
	t.Helper()
	m, err := s.Node.Serial.Expect(within(t, 90*time.Second), regexp.MustCompile(`can't be set up yet +\[([a-z-]+)\]\s+what: ([^\r\n]*)\s+do: +([^\r\n]*)[\r\n]`))
	if err != nil {
		t.Fatal(err)
	}
	if m[1] != kind {
		t.Errorf("shut for %q: %s; want %s", m[1], m[2], kind)
	}
	t.Logf("shut %.1f s after power-on [%s]: %s / %s", time.Since(s.Node.Started).Seconds(), m[1], strings.TrimSpace(m[2]), strings.TrimSpace(m[3]))
	s.expect(t, "waiting> ")
	return m[2], m[3]
}

func refusesSecureBootOff(t *testing.T, s *stage) {
	if err := s.Node.Stop(within(t, 40*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := s.Lab.EnrollFirmware(s.Name, s.Image.Keys.Variables(nil), false); err != nil {
		t.Fatal(err)
	}
	if err := s.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if what, remedy := s.shut(t, "seal-no-policy"); !strings.Contains(what, "PCR 7 (Secure Boot keys and state)") || !strings.Contains(remedy, "undo") {
		t.Errorf("%s / %s", what, remedy)
	}
	s.Node.Kill()
	if err := s.Lab.EnrollFirmware(s.Name, s.Image.Keys.Variables(nil), true); err != nil {
		t.Fatal(err)
	}
	if err := s.Boot(t.Context()); err != nil { // undone: it opens by itself
		t.Fatal(err)
	}
	s.ready(t, true)
}

// secret is what setup had shown.
func (s *stage) secret(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.Lab.Dir, "recovery-secret"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func (s *stage) serialLogin(t *testing.T) {
	t.Helper()
	s.typed(t, AdminName, "passphrase: ")
	s.typed(t, s.Admin.Passphrase, `You are `+AdminName+`.*\r\nguardhouse> `)
}

func otherTPM(t *testing.T, s *stage) {
	if err := s.Node.Stop(within(t, 40*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(s.Node.Dir, "tpm"), filepath.Join(s.Node.Dir, "tpm-before")); err != nil {
		t.Fatal(err)
	}
	if err := s.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.shut(t, "seal-other-tpm")
	s.typed(t, "recover", `recovery secret [0-9a-f]{8}: `)
	s.typed(t, "0000-0000-0000-0000-0000-0000-0000", "mistyped")
	s.expect(t, "waiting> ")
	s.typed(t, "recover", `recovery secret [0-9a-f]{8}: `)
	s.typed(t, s.secret(t), "the services start")
	s.expect(t, "login: ")
	s.serialLogin(t)
	s.typed(t, "reseal", "another one than sealed the volume")
	s.expect(t, "type yes to give")
	s.typed(t, "yes", "opens the data volume again")
	s.expect(t, "guardhouse> ")
	if err := s.Node.Stop(within(t, 40*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := s.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.ready(t, true)
	if tail := s.verb(t, "audit", "tail", "--lines", "20"); !strings.Contains(tail, "recover") || !strings.Contains(tail, "reseal") {
		t.Errorf("the audit does not tell of it: %s", tail)
	}
}

func factoryResetTwice(t *testing.T, s *stage) {
	for round := range 2 {
		s.serialLogin(t)
		s.typed(t, "factory-reset", "type yes to go on: ")
		s.typed(t, "yes", "type end this node: ")
		s.typed(t, "end this node", "the node stops")
		for _, proof := range []string{`factory reset: TPM: .* read again: gone`, `factory reset: disk \w+: .* read again: blank`, `factory reset: done`} {
			s.expect(t, proof)
		}
		s.ready(t, false)
		if round == 0 {
			setUpMakesTheSecret(t, s)
		}
	}
}
