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
	if _, err := rpc.HSMKeys.Call(ctx, n.client, rpc.Empty{}); !errors.Is(err, rpc.ErrNotAllowed) {
		t.Errorf("the service lists keys: %v", err)
	}
	s, err := rpc.HSMStatus.Call(ctx, n.client, rpc.Empty{})
	if err != nil || s.State != "locked" {
		t.Errorf("a ledger of another uid was believed: %+v, %v", s, err)
	}
}
