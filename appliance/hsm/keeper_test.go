package hsm

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/policy"
)

// The tests' worker is this test program again, with a token that does what the
// digest tells it.
const fakeWorker = "GUARDHOUSE_FAKE_WORKER"

func TestMain(m *testing.M) {
	if os.Getenv(fakeWorker) == "" {
		os.Exit(m.Run())
	}
	if err := Serve(openFake); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

const rightPIN, wrongPIN, deadlyPIN, hangingPIN = "right", "wrong", "deadly", "hanging"

func openFake(c ModuleConfig, pin []byte, login func()) (Token, error) {
	f, err := os.OpenFile(c.Module, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600) // counts logins
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for _, v := range append(os.Args, os.Environ()...) {
		if strings.Contains(v, string(pin)) {
			return nil, errors.New("the PIN is in arguments or environment")
		}
	}
	if _, err := os.Stat(c.Module + downFile); err == nil {
		return nil, Classify("open token", 0xe0)
	}
	if b, err := os.ReadFile(c.Module + lockedFile); err == nil {
		fmt.Fprintln(f, "looked")
		return nil, Classify(string(b), codePINLocked)
	}
	if c.TokenSerial != "" && c.TokenSerial != serial(c.Module) {
		return nil, Classify("open token", 0xe0)
	}
	login()
	fmt.Fprintln(f, "login")
	switch string(pin) {
	case rightPIN:
		return fakeToken{c.Module}, nil
	case deadlyPIN:
		os.Exit(3)
	case hangingPIN:
		select {}
	}
	return nil, Classify("login", 0xa0)
}

// What the first byte of a digest makes the fake do.
const (
	doSign = iota
	doHang
	doDie
	doPanic
	doDeviceError
	doSessionError
	doRefuse
)

// Files beside the fake's module that change what it does.
const downFile, lockedFile, serialFile, hangFile = ".down", ".locked", ".serial", ".hang"

func serial(module string) string {
	if b, err := os.ReadFile(module + serialFile); err == nil {
		return string(b)
	}
	return "1"
}

type fakeToken struct{ module string }

func (f fakeToken) Info() TokenInfo                   { return TokenInfo{Label: "fake", Serial: serial(f.module)} }
func (fakeToken) List() ([]Key, error)                { return []Key{{Ref: "r", Label: "l"}}, nil }
func (fakeToken) Destroy(DestroyRequest) (int, error) { return 3, nil }

func (f fakeToken) Check() error {
	for {
		if _, err := os.Stat(f.module + hangFile); err != nil {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
}
func (fakeToken) Request(policy.KeyRef, []byte) ([]byte, error) {
	return nil, badRequest("no request here")
}
func (fakeToken) Generate(role policy.KeyRole, bits int) (Key, error) {
	time.Sleep(time.Duration(bits) * time.Millisecond)
	return Key{Ref: "new", Role: role, Bits: bits}, nil
}
func (fakeToken) Sign(r SignRequest) ([]byte, error) {
	switch r.Digest[0] {
	case doHang:
		time.Sleep(time.Hour)
	case doDie:
		os.Exit(4)
	case doPanic:
		panic("binding")
	case doDeviceError:
		return nil, Classify("sign", 0x30)
	case doSessionError:
		return nil, Classify("sign", 0xb3)
	case doRefuse:
		return nil, ErrUsage
	}
	return append([]byte("signed "), r.Digest...), nil
}
func (fakeToken) Decrypt(_ policy.KeyRef, ct []byte, _ OAEP) ([]byte, error) {
	if len(ct) == 0 {
		return nil, ErrDecrypt
	}
	return bytes.ToUpper(ct), nil
}

// quick are deadlines for tests.
var quick = Timing{Call: 300 * time.Millisecond, Generate: 2 * time.Second, Open: 3 * time.Second, Check: 50 * time.Millisecond, Pause: 5 * time.Millisecond}

type rig struct {
	*Keeper
	logins string // file with a line for each login
	log    syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) addf(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(&s.b, format+"\n", args...)
}

func newRig(t *testing.T, timing Timing) *rig {
	t.Helper()
	r := &rig{logins: filepath.Join(t.TempDir(), "logins")}
	r.Keeper = NewKeeper(func() *exec.Cmd {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), fakeWorker+"=1")
		return cmd
	}, timing, r.log.addf)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { _ = r.Run(ctx); close(done) }()
	t.Cleanup(func() {
		cancel()
		<-done
		for _, pin := range []string{wrongPIN, deadlyPIN, hangingPIN} {
			if strings.Contains(r.log.b.String(), pin+"PIN") {
				t.Errorf("the log shows the PIN: %s", r.log.b.String())
			}
		}
	})
	if err := r.Configure(ModuleConfig{Module: r.logins, TokenLabel: "fake"}, nil); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) countLogins() int {
	b, _ := os.ReadFile(r.logins)
	return strings.Count(string(b), "login")
}

// await waits for a state.
func (r *rig) await(t *testing.T, want State) Status {
	t.Helper()
	for range 1000 {
		if s := r.Status(); s.State == want {
			return s
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("state %+v, want %s", r.Status(), want)
	return Status{}
}

func (r *rig) workerPID() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current == nil {
		return 0
	}
	return r.current.cmd.Process.Pid
}

func sign(r *rig, what byte) ([]byte, error) {
	return r.Sign(context.Background(), SignRequest{Ref: "r", Digest: []byte{what}, Hash: crypto.SHA256, Scheme: PSS})
}

func TestServesThroughTheWorker(t *testing.T) {
	r := newRig(t, quick)
	if _, err := sign(r, doSign); !errors.Is(err, ErrLocked) {
		t.Errorf("without PIN: %v", err)
	}
	pin := []byte(rightPIN)
	if err := r.SetPIN(pin); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(pin, make([]byte, len(pin))) {
		t.Error("the caller's copy of the PIN was not wiped")
	}
	if sig, err := sign(r, doSign); err != nil || string(sig) != "signed \x00" {
		t.Errorf("sign: %q, %v", sig, err)
	}
	if _, err := sign(r, doRefuse); !errors.Is(err, ErrUsage) {
		t.Errorf("refused: %v", err)
	}
	p := OAEP{Hash: crypto.SHA256, MGF: crypto.SHA256}
	if got, err := r.Decrypt(t.Context(), "r", []byte("abc"), p); err != nil || string(got) != "ABC" {
		t.Errorf("decrypt: %q, %v", got, err)
	}
	if _, err := r.Decrypt(t.Context(), "r", nil, p); !errors.Is(err, ErrDecrypt) {
		t.Errorf("bad ciphertext: %v", err)
	}
	if keys, err := r.Keys(t.Context()); err != nil || len(keys) != 1 {
		t.Errorf("keys: %v, %v", keys, err)
	}
	s := r.await(t, StateReady)
	if s.Token.Label != "fake" || s.Restarts != 0 || s.Last != nil {
		t.Errorf("status %+v", s)
	}
	if err := r.Alive(); err != nil {
		t.Error(err)
	}
}

func TestTriesAWrongPINOnce(t *testing.T) {
	r := newRig(t, quick)
	for range 3 { // the ledger gives the same PIN again and again
		if err := r.SetPIN([]byte(wrongPIN)); err != nil {
			t.Fatal(err)
		}
		r.await(t, StateFailed)
		time.Sleep(50 * time.Millisecond)
	}
	if n := r.countLogins(); n != 1 {
		t.Errorf("%d logins with a wrong PIN", n)
	}
	s := r.Status()
	if s.Last == nil || s.Last.Class != ClassFatal || s.Last.Remedy == "" {
		t.Errorf("status %+v", s.Last)
	}
	if _, err := sign(r, doSign); !errors.Is(err, ErrFailed) {
		t.Errorf("sign: %v", err)
	}
	if err := r.SetPIN([]byte(rightPIN)); err != nil {
		t.Fatal(err)
	}
	r.await(t, StateReady)
	if _, err := sign(r, doSign); err != nil {
		t.Errorf("after the right PIN: %v", err)
	}
}

func TestStopsWhenWorkersDieWithAnUnprovenPIN(t *testing.T) {
	for _, pin := range []string{deadlyPIN, hangingPIN} {
		timing := quick
		timing.Open = 400 * time.Millisecond
		r := newRig(t, timing)
		if err := r.SetPIN([]byte(pin)); err != nil {
			t.Fatal(err)
		}
		r.await(t, StateFailed)
		if n := r.countLogins(); n != maxLoginDeaths {
			t.Errorf("%s: %d logins", pin, n)
		}
		r.Retry(false) // a person insists
		r.await(t, StateStarting)
		r.await(t, StateFailed)
	}
}

func TestReplacesTheWorkerAndKeepsThePIN(t *testing.T) {
	for name, what := range map[string]byte{"hang": doHang, "death": doDie, "panic": doPanic, "device error": doDeviceError, "session error": doSessionError} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, quick)
			if err := r.SetPIN([]byte(rightPIN)); err != nil {
				t.Fatal(err)
			}
			r.await(t, StateReady)
			old := r.workerPID()
			began := time.Now()
			_, err := sign(r, what)
			e := AsError(err)
			if e == nil || !e.Retryable() || e.Class == ClassNone {
				t.Errorf("the call got %+v", e)
			}
			if sig, err := sign(r, doSign); err != nil || len(sig) == 0 {
				t.Errorf("next call: %v", err)
			}
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("back after %v", took)
			}
			s := r.Status()
			if r.workerPID() == old || s.Restarts == 0 || s.Last == nil {
				t.Errorf("no new worker: %+v", s)
			}
			if unix.Kill(old, 0) == nil && name == "hang" {
				time.Sleep(100 * time.Millisecond)
				if unix.Kill(old, 0) == nil {
					t.Error("the old worker lives")
				}
			}
		})
	}
}

// TestSurvivesKilledAndStoppedWorkersUnderLoad: a call fails only with the worker that had it, or after it has waited its whole patience.
// On a slow machine healthy workers miss their deadline too; that is why the limit is per worker that was lost, whoever killed it.
func TestSurvivesKilledAndStoppedWorkersUnderLoad(t *testing.T) {
	r := newRig(t, quick)
	if err := r.SetPIN([]byte(rightPIN)); err != nil {
		t.Fatal(err)
	}
	r.await(t, StateReady)
	const slots = 4 // of a worker: ModuleConfig.Sessions by default
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var good, lost atomic.Int64
	for range 2 * slots {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				began := time.Now()
				sig, err := sign(r, doSign)
				switch e := AsError(err); {
				case err == nil && string(sig) == "signed \x00":
					good.Add(1)
				case e == nil || !e.Retryable():
					t.Errorf("got %q, %v", sig, err)
					return
				case time.Since(began) < quick.Call:
					lost.Add(1)
				}
			}
		})
	}
	for _, sig := range []unix.Signal{unix.SIGKILL, unix.SIGSTOP, unix.SIGKILL} {
		time.Sleep(50 * time.Millisecond)
		pid := r.workerPID()
		if pid == 0 {
			r.await(t, StateReady)
			pid = r.workerPID()
		}
		before := good.Load()
		if err := unix.Kill(pid, sig); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for good.Load() < before+50 || r.workerPID() == pid {
			if time.Since(began) > 2*time.Second {
				t.Fatalf("not back 2 s after %v: %+v", sig, r.Status())
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	close(stop)
	wg.Wait()
	if n, workers := lost.Load(), r.Status().Restarts; n > int64(slots*workers) || workers < 3 {
		t.Errorf("%d calls failed without waiting, and %d workers with at most %d calls each were lost", n, workers, slots)
	}
}

func TestKeyMakingDoesNotKillTheWorker(t *testing.T) {
	r := newRig(t, quick)
	if err := r.SetPIN([]byte(rightPIN)); err != nil {
		t.Fatal(err)
	}
	r.await(t, StateReady)
	pid := r.workerPID()
	made := make(chan error)
	go func() {
		_, err := r.Generate(context.Background(), policy.RoleSigning, 1000) // a second
		made <- err
	}()
	time.Sleep(100 * time.Millisecond)
	if _, err := sign(r, doHang); !errors.Is(err, ErrBusy) {
		t.Errorf("a call behind a slow generation: %v", err)
	}
	if err := <-made; err != nil { // it would be lost with its worker
		t.Errorf("the generation: %v", err)
	}
	// Now the hanging call is nobody's excuse any more.
	for range 400 {
		if r.workerPID() != pid {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Error("a call that hangs for ever was forgotten")
}

func TestLockWipesThePIN(t *testing.T) {
	r := newRig(t, quick)
	if err := r.SetPIN([]byte(rightPIN)); err != nil {
		t.Fatal(err)
	}
	r.await(t, StateReady)
	pid := r.workerPID()
	r.Lock()
	r.await(t, StateLocked)
	for range 200 {
		if unix.Kill(pid, 0) != nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if unix.Kill(pid, 0) == nil {
		t.Error("the worker lives")
	}
	if _, err := sign(r, doSign); !errors.Is(err, ErrLocked) {
		t.Errorf("sign: %v", err)
	}
}

func TestCallerMayGiveUp(t *testing.T) {
	timing := quick
	timing.Call = 5 * time.Second
	r := newRig(t, timing)
	if err := r.SetPIN([]byte(rightPIN)); err != nil {
		t.Fatal(err)
	}
	r.await(t, StateReady)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := r.Sign(ctx, SignRequest{Ref: "r", Digest: []byte{doHang}, Hash: crypto.SHA256, Scheme: PSS})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if _, err := sign(r, doSign); err != nil {
		t.Errorf("others suffer: %v", err)
	}
}

func TestSecretIsLockedAndWiped(t *testing.T) {
	src := []byte("secret")
	s, err := NewSecret(src)
	if err != nil {
		t.Fatal(err)
	}
	if string(s.Bytes()) != "secret" || !bytes.Equal(src, make([]byte, 6)) {
		t.Errorf("holds %d bytes, source wiped %v", len(s.Bytes()), src[0] == 0)
	}
	s.Wipe()
	s.Wipe()
	if s.Bytes() != nil {
		t.Error("readable after Wipe")
	}
	for _, bad := range [][]byte{nil, make([]byte, MaxPIN+1)} {
		if _, err := NewSecret(bad); err == nil {
			t.Errorf("%d bytes accepted", len(bad))
		}
	}
}

func FuzzReadFrame(f *testing.F) {
	var b bytes.Buffer
	l := &lane{conn: &b}
	_ = l.write(7, answer{Phase: phaseReady, Info: &TokenInfo{Label: "x"}}, []byte("body"))
	_ = l.write(8, nil, nil)
	f.Add(b.Bytes(), uint8(3))
	f.Add([]byte{0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, '{', '}'}, uint8(1))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, uint8(0))
	f.Fuzz(func(t *testing.T, in []byte, step uint8) {
		// However the bytes come in, the frames are the same.
		whole, parts := &lane{conn: bytes.NewBuffer(in)}, &lane{conn: &bitByBit{b: in, step: int(step)%9 + 1}}
		for range len(in)/frameHead + 1 {
			var a, again answer
			id, body, err := whole.receive(&a)
			id2, body2, err2 := parts.receive(&again)
			if id != id2 || !bytes.Equal(body, body2) || fmt.Sprint(err) != fmt.Sprint(err2) || !reflect.DeepEqual(a, again) {
				t.Fatalf("%d %q %v, in parts %d %q %v", id, body, err, id2, body2, err2)
			}
			if len(body) > maxBody {
				t.Fatal("too large")
			}
			if err != nil {
				return
			}
		}
	})
}

// bitByBit gives step bytes at a time.
type bitByBit struct {
	b    []byte
	step int
}

func (r *bitByBit) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
func (r *bitByBit) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.b[:min(r.step, len(r.b))])
	r.b = r.b[n:]
	return n, nil
}

func TestLabelsNameRoles(t *testing.T) {
	for _, r := range policy.KeyRoles {
		if got := RoleOf(LabelFor(r, []byte{1, 2, 3, 4})); got != r {
			t.Errorf("%s: %q", r, got)
		}
	}
	for _, bad := range []string{"", "guardhouse-owner-01020304", "guardhouse-signing-0102030", "x guardhouse-signing-01020304", "guardhouse-signing-0102030G"} {
		if got := RoleOf(bad); got != "" {
			t.Errorf("%q: %q", bad, got)
		}
	}
}

// BenchmarkRoundTrip is what keeper and worker add to a token's own time.
func BenchmarkRoundTrip(b *testing.B) {
	k := NewKeeper(func() *exec.Cmd {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), fakeWorker+"=1")
		return cmd
	}, Timing{}, func(string, ...any) {})
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan struct{})
	go func() { _ = k.Run(ctx); close(done) }()
	defer func() { cancel(); <-done }()
	if err := errors.Join(k.Configure(ModuleConfig{Module: filepath.Join(b.TempDir(), "logins"), TokenLabel: "fake"}, nil), k.SetPIN([]byte(rightPIN))); err != nil {
		b.Fatal(err)
	}
	r := SignRequest{Ref: policy.KeyRef(strings.Repeat("0", 64)), Digest: make([]byte, 32), Hash: crypto.SHA256, Scheme: PSS}
	for b.Loop() {
		if _, err := k.Sign(ctx, r); err != nil {
			b.Fatal(err)
		}
	}
}
