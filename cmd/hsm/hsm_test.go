package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/hsm"
	"guardhouse/appliance/hsm/attach"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/board/lab/native"
)

// This test program is also the program under test: with the argument worker, or
// with asMain in its environment.
const asMain = "GUARDHOUSE_HSM_MAIN"

func TestMain(m *testing.M) {
	native.Shim()
	if os.Getenv(asMain) != "" || len(os.Args) == 2 && (os.Args[1] == "worker" || os.Args[1] == "software") {
		main()
		os.Exit(0)
	}
	if os.Getenv(asRaw) != "" {
		fail(measureRaw())
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const (
	softHSM   = "/usr/lib/softhsm/libsofthsm2.so"
	p11Client = "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so"
	label     = "guardhouse-test"
	userPIN   = "4711-test"
)

// newSoftHSM makes an empty token in a folder of its own and returns the
// variable that leads to it.
func newSoftHSM(t testing.TB) (env string) {
	t.Helper()
	dir := t.TempDir()
	conf := filepath.Join(dir, "softhsm2.conf")
	tokens := filepath.Join(dir, "tokens")
	if err := os.Mkdir(tokens, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(conf, fmt.Appendf(nil, "directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", tokens), 0o600); err != nil {
		t.Fatal(err)
	}
	env = "SOFTHSM2_CONF=" + conf
	cmd := exec.Command("softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", "so-4711", "--pin", userPIN)
	cmd.Env = append(os.Environ(), env)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("softhsm2-util (package softhsm2): %v: %s", err, out)
	}
	return env
}

// outside is a token beyond a channel: `p11-kit remote` processes, as in the lab.
type outside struct {
	env string
	out chan net.Conn

	mu      sync.Mutex
	plugged bool
	frozen  bool // whatever connects stands still
	ends    []net.Conn
	pids    []int
}

func (o *outside) openChannel() (io.ReadWriteCloser, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.plugged {
		return nil, errors.New("unplugged")
	}
	a, b := net.Pipe()
	o.ends = append(o.ends, a, b)
	o.out <- b
	return a, nil
}

func (o *outside) plug(in bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.plugged = in
	if !in {
		for _, e := range o.ends {
			e.Close()
		}
		o.ends = nil
	}
}

// signal sends sig to the newest p11-kit remote.
func (o *outside) signal(t *testing.T, sig unix.Signal) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := unix.Kill(o.pids[len(o.pids)-1], sig); err != nil {
		t.Fatal(err)
	}
}

// freeze stops the token, or lets it go on: every p11-kit remote, those to come
// too.
func (o *outside) freeze(on bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	sig := unix.SIGCONT
	if o.frozen = on; on {
		sig = unix.SIGSTOP
	}
	for _, pid := range o.pids {
		_ = unix.Kill(pid, sig)
	}
}

// seal encrypts msg as a key protector does.
func seal(t testing.TB, pub *rsa.PublicKey, msg []byte) []byte {
	t.Helper()
	ct, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, pub, msg, nil)
	if err != nil {
		t.Fatal(err)
	}
	return ct
}

// newOutside connects a token through a bridge, and returns the variable that
// leads the module to it.
func newOutside(t testing.TB) (*outside, string) {
	t.Helper()
	o := &outside{env: newSoftHSM(t), out: make(chan net.Conn, 16), plugged: true}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	spawn := attach.Command(func(pid int) {
		o.mu.Lock()
		o.pids = append(o.pids, pid)
		if o.frozen {
			_ = unix.Kill(pid, unix.SIGSTOP)
		}
		o.mu.Unlock()
	}, append(os.Environ(), o.env), "p11-kit", "remote", softHSM)
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case c := <-o.out:
				wg.Go(func() { _ = attach.Serve(ctx, c, spawn) })
			}
		}
	})
	socket := filepath.Join(t.TempDir(), "p11.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	b := attach.NewBridge(o.openChannel, func(string, ...any) {})
	wg.Go(func() { _ = b.Run(ctx, l) })
	for range 1000 {
		if b.Problem() == nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	return o, "P11_KIT_SERVER_ADDRESS=unix:path=" + socket
}

// startKeeper runs a keeper whose worker is this program.
func startKeeper(t testing.TB, module, env string, timing hsm.Timing) *hsm.Keeper {
	t.Helper()
	k := hsm.NewKeeper(func() *exec.Cmd { return workerCommand(os.Args[0], "worker") }, timing, func(f string, a ...any) { t.Logf(f, a...) })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { _ = k.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	if err := errors.Join(k.Configure(hsm.ModuleConfig{Module: module, TokenLabel: label}, []string{env}), k.SetPIN([]byte(userPIN))); err != nil {
		t.Fatal(err)
	}
	return k
}

func generate(t testing.TB, k *hsm.Keeper, role policy.KeyRole) (policy.KeyRef, *rsa.PublicKey) {
	t.Helper()
	key, err := k.Generate(context.Background(), role, 2048)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := x509.ParsePKIXPublicKey(key.SPKI)
	if err != nil {
		t.Fatal(err)
	}
	return key.Ref, pub.(*rsa.PublicKey)
}

var p1 = hsm.OAEP{Hash: crypto.SHA256, MGF: crypto.SHA256}

// work makes one signature and one decryption and checks both.
func work(k *hsm.Keeper, sign, enc policy.KeyRef, signPub, encPub *rsa.PublicKey) error {
	digest := sha256.Sum256([]byte("message"))
	sig, err := k.Sign(context.Background(), hsm.SignRequest{Ref: sign, Digest: digest[:], Hash: crypto.SHA256, Scheme: hsm.PSS})
	if err != nil {
		return err
	}
	ct, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, encPub, digest[:], nil)
	if err != nil {
		return err
	}
	plain, err := k.Decrypt(context.Background(), enc, ct, p1)
	if err != nil {
		return err
	}
	if !bytes.Equal(plain, digest[:]) {
		return errors.New("wrong plaintext")
	}
	return rsa.VerifyPSS(signPub, crypto.SHA256, digest[:], sig, nil)
}

// faults is the timing of the fault tests.
var faults = hsm.Timing{Call: time.Second, Check: 200 * time.Millisecond}

func TestAttachedTokenSurvivesEveryFault(t *testing.T) {
	o, env := newOutside(t)
	k := startKeeper(t, p11Client, env, faults)
	sign, signPub := generate(t, k, policy.RoleSigning)
	enc, encPub := generate(t, k, policy.RoleEncryption)
	if err := work(k, sign, enc, signPub, encPub); err != nil {
		t.Fatal(err)
	}
	back := func(t *testing.T, limit time.Duration) {
		t.Helper()
		began := time.Now()
		for {
			err := work(k, sign, enc, signPub, encPub)
			if err == nil {
				t.Logf("back after %v", time.Since(began).Round(time.Millisecond))
				return
			}
			if e := hsm.AsError(err); !e.Retryable() {
				t.Fatalf("not a retryable error: %v", err)
			}
			if time.Since(began) > limit {
				t.Fatalf("not back after %v: %v; %+v", limit, err, k.Status())
			}
		}
	}
	t.Run("stopped remote", func(t *testing.T) {
		o.signal(t, unix.SIGSTOP)
		began := time.Now()
		err := work(k, sign, enc, signPub, encPub)
		if e := hsm.AsError(err); e == nil || e.Class != hsm.ClassModule || !e.Retryable() || time.Since(began) > 2*faults.Call {
			t.Errorf("a token that stands still: %v after %v", err, time.Since(began))
		}
		back(t, 5*time.Second)
	})
	t.Run("killed remote", func(t *testing.T) {
		o.signal(t, unix.SIGKILL)
		back(t, 5*time.Second)
		if s := k.Status(); s.Last == nil || s.Last.Class != hsm.ClassModule {
			t.Errorf("classified as %+v", s.Last)
		}
	})
	t.Run("pulled cord", func(t *testing.T) {
		o.plug(false)
		for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
			if s := k.Status(); s.State == hsm.StateStarting && s.Last != nil && s.Last.Remedy != "" {
				break
			}
			if time.Since(began) > 2*time.Second {
				t.Fatalf("the loss was not noticed: %+v", k.Status())
			}
		}
		if _, err := k.Keys(context.Background()); !errors.Is(err, hsm.ErrUnavailable) {
			t.Errorf("while unplugged: %v", err)
		}
		o.plug(true)
		back(t, 5*time.Second)
	})
}

func TestKilledWorkerUnderLoadIsBackInTwoSeconds(t *testing.T) {
	k := startKeeper(t, softHSM, newSoftHSM(t), hsm.Timing{})
	sign, signPub := generate(t, k, policy.RoleSigning)
	enc, encPub := generate(t, k, policy.RoleEncryption)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var good, failed atomic.Int64
	for range 6 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				switch e := hsm.AsError(work(k, sign, enc, signPub, encPub)); {
				case e == nil:
					good.Add(1)
				case e.Retryable():
					failed.Add(1)
				default:
					t.Errorf("got %v", e)
					return
				}
			}
		})
	}
	for range 3 {
		time.Sleep(200 * time.Millisecond)
		pid := childOf(t, os.Getpid())
		before, began := good.Load(), time.Now()
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for good.Load() < before+20 {
			if time.Since(began) > 2*time.Second {
				t.Fatalf("not back after 2 s: %+v", k.Status())
			}
			time.Sleep(5 * time.Millisecond)
		}
		t.Logf("20 calls answered %v after the kill", time.Since(began).Round(time.Millisecond))
	}
	close(stop)
	wg.Wait()
	if s := k.Status(); s.Restarts < 3 || failed.Load() > 3*6 {
		t.Errorf("%d restarts, %d calls failed (only those in flight may)", s.Restarts, failed.Load())
	}
}

// childOf finds the worker among the children of a process.
func childOf(t testing.TB, parent int) int {
	t.Helper()
	for range 200 {
		dirs, _ := filepath.Glob("/proc/[0-9]*")
		for _, d := range dirs {
			stat, err := os.ReadFile(d + "/stat")
			if err != nil {
				continue
			}
			f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
			cmdline, _ := os.ReadFile(d + "/cmdline")
			if len(f) > 1 && f[1] == strconv.Itoa(parent) && f[0] != "Z" && bytes.HasSuffix(cmdline, []byte("\x00worker\x00")) {
				pid, _ := strconv.Atoi(filepath.Base(d))
				return pid
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("no worker found")
	return 0
}

func TestWrongPINStopsUntilAnotherComes(t *testing.T) {
	env := newSoftHSM(t)
	k := startKeeper(t, softHSM, env, faults)
	if err := k.SetPIN([]byte("wrong")); err != nil {
		t.Fatal(err)
	}
	for range 500 {
		if k.Status().State == hsm.StateFailed {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	s := status(k.Status(), false, nil)
	if s.State != "failed" || len(s.Problems) != 1 || s.Problems[0].Kind != "hsm-fatal" || s.Problems[0].Remedy == "" {
		t.Errorf("status %+v", s)
	}
	_, err := k.Keys(context.Background())
	if !errors.Is(wireError(err), rpc.ErrUnavailable) || strings.Contains(err.Error(), "wrong") {
		t.Errorf("got %v", err)
	}
	if err := k.SetPIN([]byte(userPIN)); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Keys(context.Background()); err != nil {
		t.Errorf("with the right PIN: %v", err)
	}
}

func TestLockedTokenSaysWhatItWaitsFor(t *testing.T) {
	s := status(hsm.Status{State: hsm.StateLocked}, false, nil)
	if len(s.Problems) != 1 || s.Problems[0].Kind != "hsm-locked" || s.Problems[0].Remedy == "" {
		t.Errorf("%+v", s)
	}
}
