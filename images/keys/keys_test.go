package keys

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var moment = time.Unix(1795000000, 0)

func made(t *testing.T, name string, evaluation bool) *Set {
	t.Helper()
	s, err := Make(filepath.Join(t.TempDir(), "set"), name, evaluation, moment)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestNeverOverwritesAKeySet(t *testing.T) {
	s := made(t, "Contoso", false)
	before, err := os.ReadFile(filepath.Join(s.Dir, "db.key"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Make(s.Dir, "Contoso", false, moment); !errors.Is(err, ErrExists) {
		t.Errorf("made a second time: %v", err)
	}
	// A first try that was interrupted leaves keys without set.json: they may be in use nowhere, but they are not ours to destroy.
	if err := os.Remove(filepath.Join(s.Dir, "set.json")); err != nil {
		t.Fatal(err)
	}
	if _, err := Make(s.Dir, "Contoso", false, moment); !errors.Is(err, os.ErrExist) {
		t.Errorf("made over an interrupted one: %v", err)
	}
	if after, _ := os.ReadFile(filepath.Join(s.Dir, "db.key")); !bytes.Equal(before, after) {
		t.Error("the key was replaced")
	}
}

func TestPrivateKeysAreReadableByTheirOwnerOnly(t *testing.T) {
	s := made(t, "Contoso", false)
	for _, role := range Roles {
		info, err := os.Stat(filepath.Join(s.Dir, role+".key"))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", role, info.Mode(), err)
		}
	}
}

func TestOnlyAnEvaluationSetIsCalledSo(t *testing.T) {
	if s := made(t, "ignored", true); !s.Evaluation || !strings.Contains(s.Certs[DB].Subject.CommonName, EvaluationName) {
		t.Errorf("%+v", s)
	}
	for _, name := range []string{"Evaluation of Contoso", "", "two\nlines", strings.Repeat("x", 41)} {
		if _, err := Make(filepath.Join(t.TempDir(), "s"), name, false, moment); err == nil {
			t.Errorf("accepted the name %q", name)
		}
	}
}

func TestSignsByFileOrByCommand(t *testing.T) {
	s := made(t, "Contoso", false)
	sum := sha256.Sum256([]byte("image"))
	byFile, err := s.Signer(DB)
	if err != nil {
		t.Fatal(err)
	}
	want, err := byFile.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	// The command stands for a token: here a file with the one right answer.
	answer := filepath.Join(s.Dir, "answer")
	if err := os.WriteFile(answer, want, 0o600); err != nil {
		t.Fatal(err)
	}
	useCommand(t, s.Dir, "cat", answer)
	if err := os.Remove(filepath.Join(s.Dir, "db.key")); err != nil {
		t.Fatal(err)
	}
	byCommand, err := s.Signer(DB)
	if err != nil {
		t.Fatal(err)
	}
	got, err := byCommand.Sign(nil, sum[:], crypto.SHA256)
	if err != nil || !bytes.Equal(got, want) || rsa.VerifyPKCS1v15(byCommand.Public().(*rsa.PublicKey), crypto.SHA256, sum[:], got) != nil {
		t.Errorf("%v", err)
	}
	other := sha256.Sum256([]byte("another image"))
	if _, err := byCommand.Sign(nil, other[:], crypto.SHA256); err == nil {
		t.Error("took a signature of something else from the command")
	}
	useCommand(t, s.Dir, "false")
	if again, err := s.Signer(DB); err != nil {
		t.Error(err)
	} else if _, err := again.Sign(nil, sum[:], crypto.SHA256); err == nil {
		t.Error("took the answer of a command that failed")
	}
	if _, err := s.Signer(Policy); err != nil {
		t.Errorf("the other roles' files: %v", err)
	}
}

func useCommand(t *testing.T, dir string, args ...string) {
	t.Helper()
	f, err := readFile(dir)
	if err != nil {
		t.Fatal(err)
	}
	f.Commands = map[string][]string{DB: args}
	b, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "set.json"), b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestRefusesAKeyThatIsNotItsCertificates(t *testing.T) {
	s := made(t, "Contoso", false)
	other, err := os.ReadFile(filepath.Join(s.Dir, "kek.key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Dir, "db.key"), other, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Signer(DB); err == nil || !strings.Contains(err.Error(), "not the key of") {
		t.Errorf("%v", err)
	}
}

func TestPublicHalfLoadsAndHoldsNoKey(t *testing.T) {
	s := made(t, "Contoso", false)
	useCommand(t, s.Dir, "token-tool", "--pin-file", "x")
	dir := t.TempDir()
	for range 2 { // a second build writes it again
		if err := s.WritePublic(dir); err != nil {
			t.Fatal(err)
		}
	}
	p, err := Load(dir)
	if err != nil || p.Fingerprint(DB) != s.Fingerprint(DB) || p.Owner != s.Owner {
		t.Fatalf("%+v %v", p, err)
	}
	if _, err := p.Signer(DB); err == nil {
		t.Error("it signs")
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, name := range files {
		if b, err := os.ReadFile(name); err != nil || bytes.Contains(b, []byte("PRIVATE")) || bytes.Contains(b, []byte("token-tool")) {
			t.Errorf("%s: %v, holds what is nobody's business", name, err)
		}
	}
}

// The bytes of a signature list are those of UEFI specification 32.4.1, written out by hand.
func TestSignatureListIsTheSpecifications(t *testing.T) {
	owner := [16]byte{1, 2, 3}
	got := HashList(owner, [32]byte{0xaa})
	want := append([]byte{0x26, 0x16, 0xc4, 0xc1, 0x4c, 0x50, 0x92, 0x40, 0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43, 0x28,
		76, 0, 0, 0, 0, 0, 0, 0, 48, 0, 0, 0, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xaa}, make([]byte, 31)...)
	if !bytes.Equal(got, want) {
		t.Errorf("%x\n%x", got, want)
	}
}

// Whoever holds a set finds out what each key is for and how to leave the set.
func TestReadmeTellsOfEveryKeyAndOfTheChange(t *testing.T) {
	s := made(t, "Contoso", false)
	text, err := os.ReadFile(filepath.Join(s.Dir, "README.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for _, role := range Roles {
		_, about, found := strings.Cut(string(text), "\n"+role+".key ")
		about, _, _ = strings.Cut(about, ".key ")
		if !found || !strings.Contains(about, "Lost:") || !strings.Contains(about, "Leaked:") {
			t.Errorf("%s: %q", role, about)
		}
	}
	for _, verb := range []string{"--also-sign OLD", "firmware-update --keys OLD --to NEW", "--forbid-keys OLD", "mkimage release"} {
		if !strings.Contains(string(text), verb) {
			t.Errorf("not told: %s", verb)
		}
	}
}
