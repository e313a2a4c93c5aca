package tpm

import (
	"bytes"
	"crypto/rand"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// startTPM runs a software TPM with its state in dir until the test ends or stop is called.
func startTPM(t testing.TB, dir string) (tpm *TPM, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") // finds a free port; swtpm takes none of ours
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(addr)
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+dir, "--server", "type=tcp,bindaddr=127.0.0.1,port="+port,
		"--flags", "not-need-init,startup-clear")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatalf("swtpm (Debian package swtpm): %v", err)
	}
	stop = func() {
		if tpm != nil {
			tpm.Close()
		}
		cmd.Process.Kill()
		cmd.Wait()
	}
	for range 200 {
		if tpm, err = Open("swtpm:" + addr); err == nil {
			t.Cleanup(stop)
			return tpm, stop
		}
		time.Sleep(20 * time.Millisecond)
	}
	stop()
	t.Fatalf("swtpm: %v: %s", err, out.String())
	return nil, nil
}

func extend(t *testing.T, tpm *TPM, pcr uint32) {
	t.Helper()
	tpm.mu.Lock()
	defer tpm.mu.Unlock()
	_, err := tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: bytes.Repeat([]byte{1}, 32)}}},
	}.Execute(tpm.t)
	if err != nil {
		t.Fatal(err)
	}
}

func mustOpen(t *testing.T, dir string, tpm *TPM) *Secrets {
	t.Helper()
	s, err := OpenSecrets(dir, tpm, ImagePCRs, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func wantKind(t *testing.T, err error, kind string, words ...string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Kind != kind || e.Remedy == "" {
		t.Fatalf("got %v, want %s", err, kind)
	}
	for _, w := range words {
		if !strings.Contains(e.Error(), w) {
			t.Errorf("%q does not say %q", e.Error(), w)
		}
	}
}

func TestSecretsComeBackAfterARestartAndFromNowhereElse(t *testing.T) {
	state, dir := t.TempDir(), t.TempDir()
	tpm, stop := startTPM(t, state)
	s := mustOpen(t, dir, tpm)
	for range 2 { // the second replaces the first
		if err := s.Put("hsm-pin", []byte("not-the-pin")); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Put("passphrase.ada", []byte("other")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get("nothing"); !errors.Is(err, ErrNoSecret) {
		t.Errorf("%v", err)
	}
	if err := s.Put("../evil", nil); err == nil {
		t.Error("a name that leaves the folder was taken")
	}
	s.Close()
	if _, err := s.Get("hsm-pin"); err == nil {
		t.Error("a closed store opens boxes")
	}
	stop()

	tpm, _ = startTPM(t, state)
	s = mustOpen(t, dir, tpm)
	got, err := s.Get("hsm-pin")
	if err != nil || string(got) != "not-the-pin" {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if names, _ := s.Names(); len(names) != 2 {
		t.Errorf("%q", names)
	}
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		b, _ := os.ReadFile(filepath.Join(dir, e.Name()))
		if bytes.Contains(b, []byte("not-the-pin")) || bytes.Contains(b, s.root) {
			t.Errorf("%s holds a secret in the clear", e.Name())
		}
	}
}

func TestChangedImageIsNamedWithBothValues(t *testing.T) {
	for _, pcr := range []uint32{4, 11} {
		tpm, _ := startTPM(t, t.TempDir())
		dir := t.TempDir()
		mustOpen(t, dir, tpm)
		extend(t, tpm, 7) // not part of the policy
		mustOpen(t, dir, tpm)
		extend(t, tpm, pcr)
		_, err := OpenSecrets(dir, tpm, ImagePCRs, rand.Reader)
		wantKind(t, err, KindImageChanged, "sealed to PCR", "now ", "reset")
	}
}

func TestOtherTPMIsNamed(t *testing.T) {
	dir := t.TempDir()
	tpm, stop := startTPM(t, t.TempDir())
	mustOpen(t, dir, tpm)
	stop()
	tpm, _ = startTPM(t, t.TempDir())
	_, err := OpenSecrets(dir, tpm, ImagePCRs, rand.Reader)
	wantKind(t, err, KindOtherTPM, "another TPM")
}

func TestDamagedFilesAreNamedAndNoNewRootKeyIsMade(t *testing.T) {
	tpm, _ := startTPM(t, t.TempDir())
	dir := t.TempDir()
	s := mustOpen(t, dir, tpm)
	s.Put("a", []byte("1"))
	s.Put("b", []byte("2"))
	box := filepath.Join(dir, "a.box")
	b, _ := os.ReadFile(box)
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 1
		os.WriteFile(box, bad, 0o600)
		_, err := s.Get("a")
		wantKind(t, err, KindDamaged)
	}
	other, _ := os.ReadFile(filepath.Join(dir, "b.box"))
	os.WriteFile(box, other, 0o600)
	_, err := s.Get("a")
	wantKind(t, err, KindDamaged) // boxes can't be swapped
	root := filepath.Join(dir, rootFile)
	whole, _ := os.ReadFile(root)
	for _, n := range []int{0, 10, len(whole) / 2, len(whole) - 1} {
		os.WriteFile(root, whole[:n], 0o600)
		_, err := OpenSecrets(dir, tpm, ImagePCRs, rand.Reader)
		wantKind(t, err, KindDamaged)
	}
	os.Remove(root)
	_, err = OpenSecrets(dir, tpm, ImagePCRs, rand.Reader)
	wantKind(t, err, KindDamaged, "no root key")
}

func TestSealingLeavesNoHandleBehind(t *testing.T) {
	tpm, _ := startTPM(t, t.TempDir())
	dir := t.TempDir()
	for range 6 { // swtpm has three slots
		mustOpen(t, dir, tpm).Close()
	}
	extend(t, tpm, 4)
	for range 6 {
		_, err := OpenSecrets(dir, tpm, ImagePCRs, rand.Reader)
		wantKind(t, err, KindImageChanged)
	}
}

func TestMeasurementsAndMaker(t *testing.T) {
	tpm, _ := startTPM(t, t.TempDir())
	m, err := tpm.Measurements()
	if err != nil || len(m) != 16 || m[4] != strings.Repeat("0", 64) {
		t.Errorf("%v %v", m, err)
	}
	extend(t, tpm, 4)
	if m, _ := tpm.Measurements(); m[4] == strings.Repeat("0", 64) {
		t.Error("PCR 4 did not change")
	}
	if d, err := tpm.Describe(); err != nil || !strings.Contains(d, "firmware") {
		t.Errorf("%q %v", d, err)
	}
}

func BenchmarkUnseal(b *testing.B) {
	tpm, _ := startTPM(b, b.TempDir())
	dir := b.TempDir()
	for b.Loop() {
		s, err := OpenSecrets(dir, tpm, ImagePCRs, rand.Reader)
		if err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
}
