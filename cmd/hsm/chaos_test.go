package main

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/hsm"
	"guardhouse/appliance/policy"
)

// TestTokenStoppedForHalfAMinute is the one case at real length, with the
// timing of a node: whatever connects to the token meanwhile hangs.
func TestTokenStoppedForHalfAMinute(t *testing.T) {
	t.Parallel()
	const stopped = 30 * time.Second
	o, env := newOutside(t)
	k := startKeeper(t, p11Client, env, hsm.Timing{})
	sign, signPub := generate(t, k, policy.RoleSigning)
	enc, encPub := generate(t, k, policy.RoleEncryption)
	work := func() error { return work(k, sign, enc, signPub, encPub) }
	if err := work(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	var quick, slow, longest int64
	o.freeze(true)
	for time.Since(began) < stopped {
		start := time.Now()
		err := work()
		took := time.Since(start)
		longest = max(longest, int64(took))
		if e := hsm.AsError(err); e == nil || !e.Retryable() {
			t.Fatalf("while the token stands still: %v", err)
		}
		if took < 100*time.Millisecond {
			quick++
		} else {
			slow++
		}
		time.Sleep(20 * time.Millisecond)
	}
	// One call meets the hanging token, one waits for the new worker until the breaker opens.
	if limit := 2*5*time.Second + time.Second; time.Duration(longest) > limit || slow > 3 || quick < 100 {
		t.Errorf("%d quick answers, %d slow ones, the longest after %v", quick, slow, time.Duration(longest))
	}
	if s := k.Status(); s.Breaker == hsm.BreakerClosed {
		t.Errorf("status %+v", s)
	}
	o.freeze(false)
	back(t, k, 5*time.Second, work)
}

func TestLockedPINComesBackWhenTheOfficerResetsIt(t *testing.T) {
	p := newOpenCryptoki(t)
	k := p.keeper(t, faults)
	sign, signPub := generate(t, k, policy.RoleSigning)
	enc, encPub := generate(t, k, policy.RoleEncryption)
	work := func() error { return work(k, sign, enc, signPub, encPub) }
	if err := work(); err != nil {
		t.Fatal(err)
	}
	for range 4 { // somebody else tries
		_, _ = p.tool("--login", "--pin", "0000", "-O")
	}
	_ = unix.Kill(childOf(t, os.Getpid()), unix.SIGKILL) // the next worker has to log in
	for began := time.Now(); k.Status().State != hsm.StateFailed; time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > 5*time.Second {
			t.Fatalf("a locked PIN was not noticed: %+v", k.Status())
		}
	}
	if s := status(k.Status(), false, nil); len(s.Problems) == 0 || !strings.Contains(s.Problems[0].What, "PIN_LOCKED") || s.Problems[0].Remedy == "" || s.Breaker != "open" {
		t.Errorf("status %+v", s)
	}
	start := time.Now()
	if err := work(); !errors.Is(err, hsm.ErrFailed) || time.Since(start) > 100*time.Millisecond {
		t.Errorf("while locked: %v after %v", err, time.Since(start))
	}
	p.resetPIN(t)
	back(t, k, 5*time.Second, work)
	if s := k.Status(); s.Token.OAEP != hsm.OAEPToken {
		t.Errorf("opencryptoki decodes OAEP itself, but the mode is %q", s.Token.OAEP)
	}
}

func TestRemovedKeyIsNamedAndHurtsNoOther(t *testing.T) {
	env := newSoftHSM(t)
	k := startKeeper(t, softHSM, env, faults)
	sign, signPub := generate(t, k, policy.RoleSigning)
	before := objects(t, env)
	enc, encPub := generate(t, k, policy.RoleEncryption)
	work := func() error { return work(k, sign, enc, signPub, encPub) }
	if err := work(); err != nil {
		t.Fatal(err)
	}
	away := t.TempDir()
	var moved [][2]string
	for name := range objects(t, env) {
		if !before[name] {
			moved = append(moved, [2]string{name, filepath.Join(away, filepath.Base(name))})
		}
	}
	for _, m := range moved {
		if err := os.Rename(m[0], m[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := work(); !errors.Is(err, hsm.ErrNoKey) {
		t.Errorf("the removed key: %v", err)
	}
	digest := sha256.Sum256(nil)
	if _, err := k.Sign(t.Context(), hsm.SignRequest{Ref: sign, Digest: digest[:], Hash: crypto.SHA256, Scheme: hsm.PKCS1v15}); err != nil {
		t.Errorf("the other key suffers: %v", err)
	}
	if s := k.Status(); s.Breaker != hsm.BreakerClosed || s.Restarts > 1 {
		t.Errorf("status %+v", s)
	}
	// As from a backup: under other names, for SoftHSM2 remembers what it lost, and another program must say that it wrote.
	for _, m := range moved {
		dir, base := filepath.Split(m[0])
		if err := os.Rename(m[1], filepath.Join(dir, strings.NewReplacer("1", "2", "2", "3", "3", "1", "a", "b", "b", "a").Replace(strings.TrimSuffix(base, filepath.Ext(base))))+filepath.Ext(base)); err != nil {
			t.Fatal(err)
		}
	}
	note := exec.Command("pkcs11-tool", "--module", softHSM, "--token-label", label, "--login", "--pin", userPIN, "--write-object", "/dev/null", "--type", "data", "--label", "note")
	note.Env = append(os.Environ(), env)
	if out, err := note.CombinedOutput(); err != nil {
		t.Fatalf("pkcs11-tool (package opensc): %v: %s", err, out)
	}
	began := time.Now()
	for err := work(); err != nil; err = work() {
		if time.Since(began) > 5*time.Second {
			t.Fatalf("the key is there again, but: %v", err)
		}
	}
}

// objects lists the files of SoftHSM2's objects.
func objects(t *testing.T, env string) map[string]bool {
	t.Helper()
	names, err := filepath.Glob(softHSMDir(env) + "/*/*")
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]bool{}
	for _, n := range names {
		if strings.HasSuffix(n, ".object") || strings.HasSuffix(n, ".lock") {
			m[n] = true
		}
	}
	return m
}

func TestSwappedTokenNeverSeesThePIN(t *testing.T) {
	env := newSoftHSM(t)
	k := startKeeper(t, softHSM, env, faults)
	sign, signPub := generate(t, k, policy.RoleSigning)
	enc, encPub := generate(t, k, policy.RoleEncryption)
	work := func() error { return work(k, sign, enc, signPub, encPub) }
	if err := work(); err != nil {
		t.Fatal(err)
	}
	tokens, away := softHSMDir(env), t.TempDir()
	list, err := os.ReadDir(tokens)
	if err != nil || len(list) != 1 {
		t.Fatalf("%d tokens, %v", len(list), err)
	}
	ours := list[0].Name()
	if err := os.Rename(filepath.Join(tokens, ours), filepath.Join(away, ours)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", "so-4711", "--pin", "another-pin")
	cmd.Env = append(os.Environ(), env)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	_ = unix.Kill(childOf(t, os.Getpid()), unix.SIGKILL)
	for began := time.Now(); k.Status().Breaker == hsm.BreakerClosed; time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > 5*time.Second {
			t.Fatalf("another token was not noticed: %+v", k.Status())
		}
	}
	// The PIN is not this token's: had it been shown, the token would have refused it and the state were failed.
	if s := k.Status(); s.State != hsm.StateStarting || s.Last == nil || s.Last.Code != 0 || s.Last.Remedy == "" {
		t.Errorf("status %+v", s)
	}
	if err := os.RemoveAll(tokens); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(tokens, 0o700), os.Rename(filepath.Join(away, ours), filepath.Join(tokens, ours))); err != nil {
		t.Fatal(err)
	}
	back(t, k, 5*time.Second, work)
}

func TestSlotDaemonKilled(t *testing.T) {
	p := newOpenCryptoki(t)
	k := p.keeper(t, faults)
	sign, signPub := generate(t, k, policy.RoleSigning)
	enc, encPub := generate(t, k, policy.RoleEncryption)
	work := func() error { return work(k, sign, enc, signPub, encPub) }
	for range 2 {
		if err := work(); err != nil {
			t.Fatal(err)
		}
		_ = p.within("sh", "-c", `kill -9 $(cat /run/pkcsslotd.pid); rm -f /run/pkcsslotd.*`).Run()
		_ = unix.Kill(childOf(t, os.Getpid()), unix.SIGKILL)
		for began := time.Now(); k.Status().Breaker == hsm.BreakerClosed; time.Sleep(10 * time.Millisecond) {
			if time.Since(began) > 5*time.Second {
				t.Fatalf("a token without its daemon: %+v", k.Status())
			}
		}
		daemon := p.within("pkcsslotd", "-f")
		if err := daemon.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = daemon.Process.Kill(); _ = daemon.Wait() })
		back(t, k, 5*time.Second, work)
	}
}

// TestSlowTokenStaysFair floods the slowest token with one kind of call and
// looks at the other one.
func TestSlowTokenStaysFair(t *testing.T) {
	p := newNSS(t)
	k := p.keeper(t, hsm.Timing{Check: 200 * time.Millisecond})
	sign, _ := generate(t, k, policy.RoleAttestationSigner)
	enc, pub := generate(t, k, policy.RoleEncryption)
	digest := sha256.Sum256(nil)
	ctx, cancel := context.WithTimeout(hsm.WithCaller(t.Context(), "hgs"), 4*time.Second)
	defer cancel()
	var flood, rolls, busy atomic.Int64
	var wg sync.WaitGroup
	for range 60 {
		wg.Go(func() {
			for ctx.Err() == nil {
				_, err := k.Sign(ctx, hsm.SignRequest{Ref: sign, Role: policy.RoleAttestationSigner, Digest: digest[:], Hash: crypto.SHA256, Scheme: hsm.PKCS1v15})
				switch {
				case err == nil:
					flood.Add(1)
				case errors.Is(err, hsm.ErrBusy):
					busy.Add(1)
					time.Sleep(20 * time.Millisecond)
				case ctx.Err() == nil:
					t.Errorf("flood: %v", err)
					return
				}
			}
		})
	}
	time.Sleep(300 * time.Millisecond) // the flood stands
	ct := seal(t, pub, []byte("secret"))
	for range 4 { // and four hosts roll
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := k.Decrypt(ctx, enc, ct, p1); err == nil {
					rolls.Add(1)
				} else if ctx.Err() == nil {
					t.Errorf("roll: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d signatures of the flood, %d decryptions, %d told at once to come back", flood.Load(), rolls.Load(), busy.Load())
	if 3*rolls.Load() < flood.Load() || busy.Load() == 0 {
		t.Error("the flood starves the rolls, or nobody was turned away")
	}
	if s := k.Status(); s.Restarts != 0 || s.Breaker != hsm.BreakerClosed {
		t.Errorf("the breaker flaps on a slow token: %+v", s)
	}
}
