package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/hsm"
	"guardhouse/appliance/hsm/pack"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// node is the hsm process with a ledger and an init of the test's. The test's
// uid counts as `as` there.
type node struct {
	cmd    *exec.Cmd
	client *rpc.Client
	notes  chan string
	audit  chan policy.AuditEntry
	stderr bytes.Buffer
	exited chan error
}

func startNode(t *testing.T, as, env string, pin func() (rpc.PINReply, error)) *node {
	t.Helper()
	return startNodeWith(t, as, env, pin, func() ([]rpc.SoftwareKey, error) { return nil, nil })
}

// startNodeWith has the ledger hold software keys too.
func startNodeWith(t *testing.T, as, env string, pin func() (rpc.PINReply, error), soft func() ([]rpc.SoftwareKey, error)) *node {
	t.Helper()
	dir := t.TempDir()
	for _, p := range []string{rpc.HSM, rpc.Ledger} {
		if err := os.Mkdir(filepath.Join(dir, p+".d"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	me := uint32(os.Getuid())
	l, err := rpc.Listen(rpc.SocketPath(dir, rpc.Ledger))
	if err != nil {
		t.Fatal(err)
	}
	ledger := rpc.NewServer(rpc.UIDs{rpc.HSM: me})
	rpc.Handle(ledger, rpc.LedgerPIN, func(context.Context, rpc.Caller, rpc.Empty) (rpc.PINReply, error) { return pin() }, rpc.HSM)
	rpc.Handle(ledger, rpc.LedgerSoftwareKeys, func(context.Context, rpc.Caller, rpc.Empty) ([]rpc.SoftwareKey, error) { return soft() }, rpc.HSM)
	rpc.Handle(ledger, rpc.LedgerHSM, func(context.Context, rpc.Caller, rpc.Empty) (policy.HSM, error) {
		r, err := pin()
		return r.HSM, err
	}, rpc.HSM)
	n := &node{client: rpc.NewClient(rpc.SocketPath(dir, rpc.HSM)), notes: make(chan string, 100), exited: make(chan error, 1), audit: make(chan policy.AuditEntry, 100)}
	rpc.Handle(ledger, rpc.LedgerAudit, func(_ context.Context, _ rpc.Caller, e policy.AuditEntry) (policy.AuditReceipt, error) {
		n.audit <- e
		return policy.AuditReceipt{}, nil
	}, rpc.HSM)
	var wg sync.WaitGroup
	wg.Go(func() { _ = ledger.Serve(ctx, l) })

	sock, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() {
		buf := make([]byte, 4096)
		for {
			m, err := sock.Read(buf)
			if err != nil {
				return
			}
			for line := range strings.Lines(string(buf[:m])) {
				select {
				case n.notes <- strings.TrimSpace(line):
				default:
				}
			}
		}
	})
	list := fmt.Sprintf("%s=%d", as, me)
	if as != rpc.Ledger {
		list += fmt.Sprintf(",%s=%d", rpc.Ledger, me+1)
	}
	n.cmd = exec.Command(os.Args[0], "--run-dir", dir, "--attach-dir", dir, "--uids", list)
	n.cmd.Env = append(os.Environ(), asMain+"=1", env, "NOTIFY_SOCKET="+filepath.Join(dir, "notify"), "WATCHDOG_USEC=300000")
	n.cmd.Stderr = &n.stderr
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { n.exited <- n.cmd.Wait() }()
	t.Cleanup(func() {
		_ = n.cmd.Process.Kill()
		cancel()
		sock.Close()
		wg.Wait()
	})
	n.await(t, "READY=1")
	return n
}

func (n *node) await(t *testing.T, note string) {
	t.Helper()
	timeout := time.After(5 * time.Second)
	for {
		select {
		case got := <-n.notes:
			if got == note {
				return
			}
		case <-timeout:
			t.Fatalf("no %q within 5 s", note)
		}
	}
}

func TestProcessServesTheLedger(t *testing.T) {
	var mu sync.Mutex
	setUp := false
	n := startNode(t, rpc.Ledger, newSoftHSM(t), func() (rpc.PINReply, error) {
		mu.Lock()
		defer mu.Unlock()
		if !setUp {
			return rpc.PINReply{}, rpc.ErrUnavailable
		}
		return rpc.PINReply{PIN: []byte(userPIN), HSM: policy.HSM{Module: softHSM, Token: label}}, nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if s, err := rpc.HSMStatus.Call(ctx, n.client, rpc.Empty{}); err != nil || s.State != "locked" {
		t.Errorf("before setup: %+v, %v", s, err)
	}
	if _, err := rpc.HSMKeys.Call(ctx, n.client, rpc.Empty{}); !errors.Is(err, rpc.ErrUnavailable) {
		t.Errorf("before setup: %v", err)
	}
	mu.Lock()
	setUp = true
	mu.Unlock()
	n.await(t, "STATUS=token ready")
	n.await(t, "WATCHDOG=1")

	key, err := rpc.HSMGenerate.Call(ctx, n.client, rpc.HSMGenerateRequest{Role: policy.RoleSigning, Bits: 2048})
	if err != nil || !key.Sensitive || !key.NeverExtractable || key.Extractable || !key.Sign || key.Decrypt {
		t.Fatalf("generate: %+v, %v", key, err)
	}
	digest := sha256.Sum256([]byte("m"))
	request := rpc.HSMSignRequest{Ref: key.Ref, Role: policy.RoleSigning, Digest: digest[:], Hash: uint(crypto.SHA256)}
	got, err := rpc.HSMSign.Call(ctx, n.client, request)
	pub, perr := x509.ParsePKIXPublicKey(key.SPKI)
	if err != nil || perr != nil || rsa.VerifyPKCS1v15(pub.(*rsa.PublicKey), crypto.SHA256, digest[:], got.Signature) != nil {
		t.Errorf("sign: %v, %v", err, perr)
	}
	request.Role = policy.RoleAttestationSigner
	if _, err := rpc.HSMSign.Call(ctx, n.client, request); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("another role: %v", err)
	}
	keys, err := rpc.HSMKeys.Call(ctx, n.client, rpc.Empty{})
	if err != nil || len(keys) != 1 || keys[0].Ref != key.Ref {
		t.Errorf("keys: %+v, %v", keys, err)
	}
	if _, err := rpc.HSMDecrypt.Call(ctx, n.client, rpc.HSMDecryptRequest{Ref: key.Ref}); !errors.Is(err, rpc.ErrNotAllowed) {
		t.Errorf("the ledger decrypts: %v", err)
	}
	s, err := rpc.HSMStatus.Call(ctx, n.client, rpc.Empty{})
	if err != nil || s.State != "ready" || s.Token != label || len(s.Problems) != 0 {
		t.Errorf("status %+v, %v", s, err)
	}
	checkSecrecy(t, n)
	select {
	case e := <-n.audit:
		if e.Kind != policy.AuditSystem || e.Action != "hsm" || e.Outcome != "ok" || e.Subject != label || e.BootTime == 0 {
			t.Errorf("audit entry %+v", e)
		}
	case <-time.After(2 * time.Second):
		t.Error("the audit chain was not told that the token is ready")
	}

	worker := childOf(t, n.cmd.Process.Pid)
	began := time.Now()
	_ = n.cmd.Process.Signal(unix.SIGTERM)
	if err := <-n.exited; err != nil || time.Since(began) > 3*time.Second {
		t.Errorf("SIGTERM: %v after %v", err, time.Since(began))
	}
	gone(t, worker)
	if strings.Contains(n.stderr.String(), userPIN) {
		t.Error("the log shows the PIN")
	}
}

// checkSecrecy looks at the keeper and its worker from outside.
func checkSecrecy(t *testing.T, n *node) {
	t.Helper()
	for name, pid := range map[string]int{"keeper": n.cmd.Process.Pid, "worker": childOf(t, n.cmd.Process.Pid)} {
		dir := fmt.Sprintf("/proc/%d/", pid)
		for _, file := range []string{"cmdline", "environ"} {
			b, err := os.ReadFile(dir + file)
			if err == nil && bytes.Contains(b, []byte(userPIN)) {
				t.Errorf("%s: %s shows the PIN", name, file)
			}
		}
		if b, err := os.ReadFile(dir + "status"); err == nil {
			for line := range strings.Lines(string(b)) {
				if strings.HasPrefix(line, "VmRSS:") || strings.HasPrefix(line, "VmData:") {
					t.Logf("%s %s", name, strings.Join(strings.Fields(line), " "))
				}
			}
		}
		maps, err := os.ReadFile(dir + "maps")
		if err != nil {
			t.Fatal(err)
		}
		if loaded := bytes.Contains(maps, []byte("libsofthsm2")); loaded != (name == "worker") {
			t.Errorf("%s: module loaded: %v", name, loaded)
		}
	}
	smaps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", n.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	flags := false
	for _, line := range strings.Split(string(smaps), "\n") {
		if strings.HasPrefix(line, "VmFlags:") && strings.Contains(line, " lo") && strings.Contains(line, " dd") && strings.Contains(line, " wf") {
			flags = true
		}
	}
	if !flags {
		t.Error("the keeper has no memory that is locked, not dumped and wiped on fork")
	}
}

func gone(t *testing.T, pid int) {
	t.Helper()
	for range 300 {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || bytes.Contains(b, []byte(") Z ")) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("process %d lives", pid)
}

func TestWorkerDoesNotOutliveAKilledKeeper(t *testing.T) {
	n := startNode(t, rpc.Ledger, newSoftHSM(t), func() (rpc.PINReply, error) {
		return rpc.PINReply{PIN: []byte(userPIN), HSM: policy.HSM{Module: softHSM, Token: label}}, nil
	})
	n.await(t, "STATUS=token ready")
	worker := childOf(t, n.cmd.Process.Pid)
	_ = n.cmd.Process.Kill()
	<-n.exited
	gone(t, worker)
}

func TestEachMethodHasItsCallers(t *testing.T) {
	// The real ledger's uid is another one here, so this node's ledger is not
	// believed and the token stays locked; a caller's right is judged before that.
	n := startNode(t, rpc.HGS, newSoftHSM(t), func() (rpc.PINReply, error) {
		return rpc.PINReply{PIN: []byte(userPIN), HSM: policy.HSM{Module: softHSM, Token: label}}, nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	decrypt := rpc.HSMDecryptRequest{Ciphertext: make([]byte, 256), Hash: uint(crypto.SHA256), MGF: uint(crypto.SHA256)}
	if _, err := rpc.HSMDecrypt.Call(ctx, n.client, decrypt); !errors.Is(err, rpc.ErrUnavailable) {
		t.Errorf("decrypt: %v", err)
	}
	if _, err := rpc.HSMGenerate.Call(ctx, n.client, rpc.HSMGenerateRequest{Role: policy.RoleSigning, Bits: 2048}); !errors.Is(err, rpc.ErrNotAllowed) {
		t.Errorf("the service makes keys: %v", err)
	}
	if _, err := rpc.HSMDestroy.Call(ctx, n.client, rpc.HSMDestroyRequest{}); !errors.Is(err, rpc.ErrNotAllowed) {
		t.Errorf("the service destroys keys: %v", err)
	}
	if _, err := rpc.HSMKeys.Call(ctx, n.client, rpc.Empty{}); !errors.Is(err, rpc.ErrNotAllowed) {
		t.Errorf("the service lists keys: %v", err)
	}
	s, err := rpc.HSMStatus.Call(ctx, n.client, rpc.Empty{})
	if err != nil || s.State != "locked" {
		t.Errorf("a ledger of another uid was believed: %+v, %v", s, err)
	}
}

// attended is what the ledger of an attended node says.
func attended() (rpc.PINReply, error) {
	return rpc.PINReply{HSM: policy.HSM{Module: softHSM, Token: label, Attended: true}}, nil
}

// startInside runs keeper, settings and methods in this process, where the
// test's uid may be the ledger's and the console's at once.
func startInside(t *testing.T, env string, pin func() (rpc.PINReply, error)) (*rpc.Client, *hsm.Keeper) {
	t.Helper()
	dir := t.TempDir()
	me := uint32(os.Getuid())
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	serve := func(process string, s *rpc.Server) {
		if err := os.Mkdir(filepath.Join(dir, process+".d"), 0o700); err != nil {
			t.Fatal(err)
		}
		l, err := rpc.Listen(rpc.SocketPath(dir, process))
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() { _ = s.Serve(ctx, l) })
	}
	ledger := rpc.NewServer(rpc.UIDs{rpc.HSM: me})
	rpc.Handle(ledger, rpc.LedgerPIN, func(context.Context, rpc.Caller, rpc.Empty) (rpc.PINReply, error) { return pin() }, rpc.HSM)
	rpc.Handle(ledger, rpc.LedgerHSM, func(context.Context, rpc.Caller, rpc.Empty) (policy.HSM, error) {
		r, err := pin()
		return r.HSM, err
	}, rpc.HSM)
	serve(rpc.Ledger, ledger)
	k := hsm.NewKeeper(func() *exec.Cmd {
		cmd := workerCommand(os.Args[0], "worker")
		cmd.Env = append(cmd.Env, env)
		return cmd
	}, hsm.Timing{}, t.Logf)
	from := &source{ledger: rpc.NewClient(rpc.SocketPath(dir, rpc.Ledger)), k: k, c: &cable{dir: dir, log: t.Logf}, site: newSite(pack.Manifest{Module: softHSM, MakesToken: true}, dir)}
	server := rpc.NewServer(rpc.UIDs{rpc.Console: me})
	none := func(context.Context) ([]hsm.SoftwareKey, error) { return nil, nil }
	soft := hsm.NewSoftware(func() *exec.Cmd { return workerCommand(os.Args[0], "software") }, none, t.Logf)
	register(server, hsm.Keyring{Token: k, Software: soft}, from)
	serve(rpc.HSM, server)
	wg.Go(func() { soft.Run(ctx) })
	wg.Go(func() { _ = k.Run(ctx) })
	wg.Go(func() { from.run(ctx) })
	return rpc.NewClient(rpc.SocketPath(dir, rpc.HSM)), k
}

// awaitHSM waits for a status.
func awaitHSM(t *testing.T, c *rpc.Client, what string, good func(rpc.HSMStatusReply) bool) rpc.HSMStatusReply {
	t.Helper()
	var s rpc.HSMStatusReply
	for began := time.Now(); time.Since(began) < 8*time.Second; time.Sleep(10 * time.Millisecond) {
		var err error
		if s, err = rpc.HSMStatus.Call(t.Context(), c, rpc.Empty{}); err != nil {
			t.Fatal(err)
		}
		if good(s) {
			return s
		}
	}
	t.Fatalf("never %s: %+v", what, s)
	return s
}

func inState(want string) func(rpc.HSMStatusReply) bool {
	return func(s rpc.HSMStatusReply) bool { return s.State == want }
}

func waitsForPIN(s rpc.HSMStatusReply) bool {
	return s.Attended && s.State == "locked" && len(s.Problems) == 1 && s.Problems[0].What == "waiting for PIN: hsm unlock" && s.Problems[0].Remedy != ""
}

func TestAttendedNodeNeedsItsPINOnceInABoot(t *testing.T) {
	env := newSoftHSM(t)
	c, k := startInside(t, env, attended)
	awaitHSM(t, c, "waiting for its PIN", waitsForPIN)
	if line := statusLine(k.Status(), true); line != "token locked: waiting for PIN: hsm unlock" {
		t.Errorf("status line %q", line)
	}
	unlock := func(pin string) error {
		_, err := rpc.HSMUnlock.Call(t.Context(), c, rpc.HSMUnlockRequest{PIN: []byte(pin)})
		return err
	}
	if err := unlock(""); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("no PIN: %v", err)
	}
	if err := unlock("wrong-pin"); err != nil {
		t.Error(err)
	}
	awaitHSM(t, c, "failed", inState("failed"))
	if err := unlock(userPIN); err != nil {
		t.Fatal(err)
	}
	awaitHSM(t, c, "ready", inState("ready"))
	sign, signPub := generate(t, k, policy.RoleSigning)
	enc, encPub := generate(t, k, policy.RoleEncryption)
	for range 3 {
		before := k.Status().Restarts
		_ = unix.Kill(childOf(t, os.Getpid()), unix.SIGKILL)
		began := time.Now()
		for work(k, sign, enc, signPub, encPub) != nil || k.Status().Restarts == before {
			if time.Since(began) > 5*time.Second {
				t.Fatalf("rolls do not resume without a prompt: %+v", k.Status())
			}
		}
	}
	again, _ := startInside(t, env, attended) // a new boot knows no PIN
	awaitHSM(t, again, "waiting for its PIN", waitsForPIN)
}

func TestKeptPINIsNotTakenFromTheConsole(t *testing.T) {
	c, _ := startInside(t, newSoftHSM(t), func() (rpc.PINReply, error) {
		return rpc.PINReply{PIN: []byte(userPIN), HSM: policy.HSM{Module: softHSM, Token: label}}, nil
	})
	if _, err := rpc.HSMUnlock.Call(t.Context(), c, rpc.HSMUnlockRequest{PIN: []byte(userPIN)}); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("unlock of an unattended node: %v", err)
	}
}

func TestTakesUpChangedSettingsWhileItRuns(t *testing.T) {
	var mu sync.Mutex
	reply := rpc.PINReply{PIN: []byte("wrong-pin"), HSM: policy.HSM{Module: softHSM, Token: label}}
	set := func(token, pin string) {
		mu.Lock()
		defer mu.Unlock()
		reply = rpc.PINReply{PIN: []byte(pin), HSM: policy.HSM{Module: softHSM, Token: token}}
	}
	c, _ := startInside(t, newSoftHSM(t), func() (rpc.PINReply, error) {
		mu.Lock()
		defer mu.Unlock()
		r := reply
		r.PIN = bytes.Clone(reply.PIN)
		return r, nil
	})
	awaitHSM(t, c, "failed", inState("failed"))
	set("another", userPIN) // made on the spot
	awaitHSM(t, c, "on the other token", func(s rpc.HSMStatusReply) bool { return s.State == "ready" && s.Token == "another" })
	set(label, userPIN)
	awaitHSM(t, c, "back on the first token", func(s rpc.HSMStatusReply) bool { return s.State == "ready" && s.Token == label })
}

func TestRetryComesFromTheConsole(t *testing.T) {
	n := startNode(t, rpc.HGS, newSoftHSM(t), attended)
	if _, err := rpc.HSMRetry.Call(t.Context(), n.client, rpc.HSMRetryRequest{}); !errors.Is(err, rpc.ErrNotAllowed) {
		t.Errorf("the service retries: %v", err)
	}
	if _, err := rpc.HSMUnlock.Call(t.Context(), n.client, rpc.HSMUnlockRequest{PIN: []byte("1234")}); !errors.Is(err, rpc.ErrNotAllowed) {
		t.Errorf("the service unlocks: %v", err)
	}
	env := newSoftHSM(t)
	c, k := startInside(t, env, attended)
	awaitHSM(t, c, "waiting for its PIN", waitsForPIN)
	if _, err := rpc.HSMUnlock.Call(t.Context(), c, rpc.HSMUnlockRequest{PIN: []byte("wrong-pin")}); err != nil {
		t.Fatal(err)
	}
	awaitHSM(t, c, "failed", inState("failed"))
	before := k.Status().Restarts
	if _, err := rpc.HSMRetry.Call(t.Context(), c, rpc.HSMRetryRequest{}); err != nil {
		t.Fatal(err)
	}
	awaitHSM(t, c, "tried again", func(s rpc.HSMStatusReply) bool { return s.State == "failed" && s.Restarts > before })
}
