package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"guardhouse/appliance/audit"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/tpm"
)

// uids stand for the processes; the ledger really runs under its own.
var uids = rpc.UIDs{rpc.Init: 65101, rpc.Ledger: 65102, rpc.HSM: 65103, rpc.HGS: 65104, rpc.Clock: 65105, rpc.Console: 65106}

// as runs f on a thread whose effective uid is uid: the kernel reports that uid to whoever f connects to. The thread ends with it.
func as(uid uint32, f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread with its uid is thrown away
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); e != 0 {
			panic("setresuid: " + e.Error())
		}
		f()
	}()
	<-done
}

// node is a ledger process with its TPM in a folder.
type node struct {
	t      *testing.T
	dir    string
	tpm    string
	cmd    *exec.Cmd
	stderr bytes.Buffer
}

func (n *node) socket() string { return rpc.SocketPath(filepath.Join(n.dir, "run"), rpc.Ledger) }

func (n *node) client() *rpc.Client { return rpc.NewProvedClient(n.socket(), uids[rpc.Ledger]) }

// newNode needs root, because a caller's uid is the whole proof of who calls and the test must take on several.
func newNode(t *testing.T) *node {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: the test takes on the uids of several processes")
	}
	dir, err := os.MkdirTemp("", "ledger")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	os.Chmod(dir, 0o755)
	n := &node{t: t, dir: dir, tpm: startTPM(t)}
	if out, err := exec.Command("go", "build", "-o", filepath.Join(dir, "ledger"), ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	for _, d := range []string{"data", "run", "run/ledger.d"} {
		if err := errors.Join(os.Mkdir(filepath.Join(dir, d), 0o755), os.Chown(filepath.Join(dir, d), int(uids[rpc.Ledger]), 0)); err != nil {
			t.Fatal(err)
		}
	}
	n.start()
	t.Cleanup(n.kill)
	return n
}

func startTPM(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") // finds a free port
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_, port, _ := net.SplitHostPort(addr)
	l.Close()
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+t.TempDir(), "--server", "type=tcp,bindaddr=127.0.0.1,port="+port,
		"--flags", "not-need-init,startup-clear")
	if err := cmd.Start(); err != nil {
		t.Fatalf("swtpm (Debian package swtpm): %v", err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for range 250 {
		if dev, err := tpm.Open("swtpm:" + addr); err == nil {
			dev.Close()
			return "swtpm:" + addr
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("swtpm does not answer")
	return ""
}

// start runs the process and waits until it answers; it gives the time that took.
func (n *node) start() time.Duration {
	n.t.Helper()
	var list []string
	for name, uid := range uids {
		list = append(list, fmt.Sprintf("%s=%d", name, uid))
	}
	begin := time.Now()
	n.cmd = exec.Command(filepath.Join(n.dir, "ledger"), "--run-dir", filepath.Join(n.dir, "run"), "--data", filepath.Join(n.dir, "data"),
		"--tpm", n.tpm, "--build-epoch", "1767225600", "--uids", strings.Join(list, ","))
	n.cmd.Stderr = &n.stderr
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uids[rpc.Ledger], Gid: uids[rpc.Ledger]}}
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	for time.Since(begin) < 10*time.Second {
		if _, err := n.status(); err == nil {
			return time.Since(begin)
		}
		time.Sleep(10 * time.Millisecond)
	}
	n.t.Fatalf("the ledger does not answer: %s", n.stderr.String())
	return 0
}

func (n *node) kill() {
	n.cmd.Process.Kill()
	n.cmd.Wait()
}

func (n *node) status() (st rpc.LedgerStatusReply, err error) {
	as(uids[rpc.Console], func() {
		c := n.client()
		defer c.Close()
		st, err = rpc.LedgerStatus.Call(context.Background(), c, rpc.Empty{})
	})
	return st, err
}

func newID() string {
	b := make([]byte, 16)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// setUp sets the node up through the console's door and gives its owner.
func (n *node) setUp() policy.Actor {
	n.t.Helper()
	pub, _, _ := ed25519.GenerateKey(nil)
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		n.t.Fatal(err)
	}
	answers := `version = 1
[service]
name = "hgs.example.test"
mode = "HostKey"
[node]
name = "node1"
time-servers = ["10.0.2.2"]
[[node.network.interface]]
name = "front"
mac = ["any"]
addresses = ["10.0.2.15/24"]
roles = ["service", "cluster", "management"]
[node.hsm]
module = "/usr/lib/pkcs11/p11-kit-client.so"
token = "guardhouse"
[[admin]]
name = "ada"
role = "owner"
key = "` + strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))) + "\"\n"
	as(uids[rpc.Console], func() {
		c := n.client()
		defer c.Close()
		var setupKey rpc.SetupKeyReply
		if setupKey, err = rpc.LedgerSetupKey.Call(context.Background(), c, rpc.Empty{}); err != nil {
			return
		}
		var r *age.X25519Recipient
		if r, err = age.ParseX25519Recipient(setupKey.Recipient); err != nil {
			return
		}
		var file bytes.Buffer
		a := armor.NewWriter(&file)
		w, _ := age.Encrypt(a, r)
		fmt.Fprint(w, "version = 1\nhsm-pin = \"1234567\"\n")
		w.Close()
		a.Close()
		_, err = rpc.LedgerSetupApply.Call(context.Background(), c, rpc.SetupRequest{Answers: []byte(answers), Secrets: file.Bytes(), Actor: policy.Actor{Door: policy.DoorSetup}})
	})
	if err != nil {
		n.t.Fatalf("setup: %v: %s", err, n.stderr.String())
	}
	return policy.Actor{Name: "ada", Key: ssh.FingerprintSHA256(key), Door: policy.DoorSSH, Session: "test"}
}

// hostKey is a public key of the right form whose private half nobody knows.
func hostKey() []byte {
	m := make([]byte, 256)
	rand.Read(m)
	m[0], m[255] = m[0]|0x80, m[255]|1
	spki, _ := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: new(big.Int).SetBytes(m), E: 65537})
	return spki
}

// acknowledged is what callers were told.
type acknowledged struct {
	mu       sync.Mutex
	requests map[string]string // request id -> host name
	receipts map[uint64]string // record -> hash
}

// load proposes and audits until ctx ends, through restarts of the ledger.
func (n *node) load(ctx context.Context, ada policy.Actor, acked *acknowledged) *sync.WaitGroup {
	var wg sync.WaitGroup
	for worker := range 3 {
		wg.Go(func() {
			as(uids[rpc.Console], func() {
				c := n.client()
				defer c.Close()
				for i := 0; ctx.Err() == nil; i++ {
					name := fmt.Sprintf("host-%d-%d-%.8s", worker, i, newID())
					body, _ := json.Marshal(policy.HostAdd{Name: name, HostKey: hostKey()})
					cmd := policy.Command{ID: newID(), Kind: policy.CmdHostAdd, Actor: ada, Body: body}
					for ctx.Err() == nil { // the same id until there is an answer
						if _, err := rpc.LedgerPropose.Call(ctx, c, cmd); err == nil {
							acked.mu.Lock()
							acked.requests[cmd.ID] = name
							acked.mu.Unlock()
							break
						}
						time.Sleep(5 * time.Millisecond)
					}
				}
			})
		})
		wg.Go(func() {
			as(uids[rpc.HGS], func() {
				c := n.client()
				defer c.Close()
				for i := 0; ctx.Err() == nil; i++ {
					r, err := rpc.LedgerAudit.Call(ctx, c, policy.AuditEntry{Kind: policy.AuditGrant, Action: "test", Outcome: "ok", Subject: fmt.Sprint(worker, " ", i)})
					if err != nil {
						time.Sleep(5 * time.Millisecond)
						continue
					}
					acked.mu.Lock()
					acked.receipts[r.Seq] = r.Hash
					acked.mu.Unlock()
				}
			})
		})
	}
	return &wg
}

// check compares the node with what was acknowledged: every host once, every record with its hash, one audit entry for each request,
// and the whole export proved offline.
func (n *node) check(acked *acknowledged) {
	n.t.Helper()
	var snap policy.Snapshot
	var file bytes.Buffer
	var err error
	as(uids[rpc.Console], func() {
		c := n.client()
		defer c.Close()
		stop := errors.New("enough")
		err = rpc.LedgerWatch.Open(context.Background(), c, rpc.Empty{}, func(s policy.Snapshot) error { snap = s; return stop })
		if errors.Is(err, stop) {
			err = rpc.LedgerAuditExport.Open(context.Background(), c, rpc.AuditRange{}, func(p rpc.AuditChunk) error { file.Write(p.Data); return nil })
		}
	})
	if err != nil {
		n.t.Fatalf("snapshot and export: %v", err)
	}
	names := map[string]bool{}
	for _, h := range snap.State.Hosts {
		names[h.Name] = true
	}
	entries, hashes := map[string]int{}, map[uint64]string{}
	sum, err := audit.VerifyEach(&file, snap.State.Nodes[snap.NodeID].AuditKey, func(r audit.Record) error {
		hashes[r.Seq] = r.Hash
		if r.Entry.Action == string(policy.CmdHostAdd) {
			entries[r.Entry.Facts["request"]]++
		}
		return nil
	})
	if err != nil {
		n.t.Errorf("the export does not verify: %v", err)
	}
	for id, name := range acked.requests {
		if !names[name] || entries[id] != 1 {
			n.t.Errorf("host %s: present %v, %d audit entries", name, names[name], entries[id])
		}
	}
	for seq, hash := range acked.receipts {
		if hashes[seq] != hash {
			n.t.Errorf("record %d was acknowledged and is not in the chain", seq)
		}
	}
	n.t.Logf("%d commands and %d entries acknowledged, %d records, all there", len(acked.requests), len(acked.receipts), sum.Records)
}

func TestKillUnderLoadLosesNothingAcknowledged(t *testing.T) {
	n := newNode(t)
	ada := n.setUp()
	acked := &acknowledged{requests: map[string]string{}, receipts: map[uint64]string{}}
	ctx, cancel := context.WithCancel(context.Background())
	workers := n.load(ctx, ada, acked)
	for round := range 4 {
		time.Sleep(time.Duration(150+70*round) * time.Millisecond)
		n.kill()
		if back := n.start(); back > 2*time.Second {
			t.Errorf("back after %s", back)
		}
	}
	time.Sleep(200 * time.Millisecond)
	cancel()
	workers.Wait()
	n.check(acked)
	if len(acked.requests) < 20 || len(acked.receipts) < 20 {
		t.Errorf("too little load: %d commands, %d entries", len(acked.requests), len(acked.receipts))
	}
	if st, err := n.status(); err != nil || len(st.Problems) > 1 || len(st.Problems) == 1 && st.Problems[0].Kind != "network" {
		t.Errorf("%+v %v", st.Problems, err)
	}
}

// TestTellsItsSupervisorAndStopsWithinThreeSeconds runs under a bare NOTIFY_SOCKET, as under systemd.
func TestTellsItsSupervisorAndStopsWithinThreeSeconds(t *testing.T) {
	n := newNode(t)
	n.setUp()
	n.kill()
	addr := &net.UnixAddr{Name: filepath.Join(n.dir, "notify"), Net: "unixgram"}
	notify, err := net.ListenUnixgram("unixgram", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	os.Chmod(addr.Name, 0o666)
	t.Setenv("NOTIFY_SOCKET", addr.Name)
	t.Setenv("WATCHDOG_USEC", "300000")
	n.start()
	notify.SetReadDeadline(time.Now().Add(5 * time.Second))
	var said string
	buf := make([]byte, 4096)
	for !strings.Contains(said, "WATCHDOG=1") {
		k, err := notify.Read(buf)
		if err != nil {
			t.Fatalf("%v after %q", err, said)
		}
		said += string(buf[:k]) + ";"
	}
	// Nobody answers as init here: where the ledger has found that out already, that is its status.
	if !strings.Contains(said, "READY=1") || !strings.Contains(said, "not update-safe") && !strings.Contains(said, "init.d") {
		t.Errorf("it said %q", said)
	}
	begin := time.Now()
	n.cmd.Process.Signal(syscall.SIGTERM)
	if err := n.cmd.Wait(); err != nil || time.Since(begin) > 3*time.Second {
		t.Errorf("%v after %s: %s", err, time.Since(begin), n.stderr.String())
	}
}

// TestEveryMethodRefusesEveryOtherProcess calls each method from each uid. Those in the list may call; everyone else, and a uid that is
// nobody's, is refused before the request is looked at.
func TestEveryMethodRefusesEveryOtherProcess(t *testing.T) {
	n := newNode(t)
	for method, allowed := range doors() {
		for caller, uid := range map[string]uint32{rpc.Init: uids[rpc.Init], rpc.HSM: uids[rpc.HSM], rpc.HGS: uids[rpc.HGS], rpc.Clock: uids[rpc.Clock],
			rpc.Console: uids[rpc.Console], rpc.Ledger: uids[rpc.Ledger], "nobody": 65534, "root": 0} {
			var err error
			as(uid, func() { err = n.raw(method) })
			refused := errors.Is(err, rpc.ErrNotAllowed)
			if _, known := uids[caller]; !known { // hung up on before the request was written
				refused = refused || errors.Is(err, rpc.ErrLost)
			}
			if refused == strings.Contains(" "+allowed+" ", " "+caller+" ") {
				t.Errorf("%s by %s: %v", method, caller, err)
			}
		}
	}
}

// raw calls a method with an empty request and gives the error; a stream is left after its first element.
func (n *node) raw(method string) error {
	c := n.client()
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	first := errors.New("first")
	return rpc.Stream[json.RawMessage, json.RawMessage]{Name: method}.Open(ctx, c, json.RawMessage("null"), func(json.RawMessage) error { return first })
}

func doors() map[string]string {
	return map[string]string{
		rpc.LedgerWatch.Name: "hgs hsm clock console init", rpc.LedgerPropose.Name: "console", rpc.LedgerMakeKeys.Name: "console",
		rpc.LedgerAudit.Name: "hgs console init hsm clock", rpc.LedgerRefusal.Name: "hgs", rpc.LedgerObserve.Name: "hgs", rpc.LedgerObserved.Name: "console",
		rpc.LedgerAuditTail.Name: "console", rpc.LedgerAuditExport.Name: "console", rpc.LedgerAuditTrim.Name: "console", rpc.LedgerAuditVerify.Name: "console",
		rpc.LedgerSetupKey.Name: "console", rpc.LedgerSetupApply.Name: "console", rpc.LedgerContextKeys.Name: "hgs", rpc.LedgerPIN.Name: "hsm", rpc.LedgerHSM.Name: "hsm",
		rpc.LedgerSign.Name: "hgs console", rpc.LedgerPassphrase.Name: "console", rpc.LedgerSetPassphrase.Name: "console", rpc.LedgerMeasure.Name: "console",
		rpc.LedgerStatus.Name: "console init", rpc.LedgerKeepLog.Name: "hgs", rpc.LedgerEvidence.Name: "console", rpc.LedgerBootLog.Name: "console",
		rpc.LedgerExplain.Name: "console", rpc.LedgerIdentity.Name: "console", rpc.LedgerActivate.Name: "console", rpc.LedgerQuote.Name: "console",
	}
}

func TestConsoleCannotSpeakForTheNodeOrTheFaceForAdministrators(t *testing.T) {
	n := newNode(t)
	n.setUp()
	for _, door := range []policy.Door{policy.DoorNode, policy.DoorSetup, ""} {
		for _, kind := range []policy.Kind{policy.CmdSetup, policy.CmdNodeSet, policy.CmdKeyAdd} {
			var err error
			as(uids[rpc.Console], func() {
				c := n.client()
				defer c.Close()
				_, err = rpc.LedgerPropose.Call(context.Background(), c, policy.Command{ID: newID(), Kind: kind, Actor: policy.Actor{Door: door}, Body: json.RawMessage("{}")})
			})
			if !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "door") {
				t.Errorf("%s through %q: %v", kind, door, err)
			}
		}
	}
	for _, kind := range []policy.AuditKind{policy.AuditCommand, policy.AuditLogin, policy.AuditSystem, policy.AuditContinue, policy.AuditUnknown, ""} {
		var err error
		as(uids[rpc.HGS], func() {
			c := n.client()
			defer c.Close()
			_, err = rpc.LedgerAudit.Call(context.Background(), c, policy.AuditEntry{Kind: kind})
		})
		if !errors.Is(err, rpc.ErrRefused) {
			t.Errorf("hgs recorded %q: %v", kind, err)
		}
	}
	var err error
	as(uids[rpc.HGS], func() {
		c := n.client()
		defer c.Close()
		_, err = rpc.LedgerSign.Call(context.Background(), c, rpc.NodeSignRequest{Key: "ssh", Digest: []byte("x")})
	})
	if !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("hgs used the SSH host key: %v", err)
	}
}

// TestConsoleCanNotBringKeysAlong: a console that was taken over knows every administrator's name and fingerprint; still no key of its
// own becomes the guardian's or an attestation signer, and no network that init would refuse is recorded.
func TestConsoleCanNotBringKeysAlong(t *testing.T) {
	n := newNode(t)
	ada := n.setUp()
	for name, c := range map[string]policy.Command{
		"a key of its own": {Kind: policy.CmdKeyAdd, Body: json.RawMessage(`{"role":"attestation-signer"}`)},
		"an odd network":   {Kind: policy.CmdNodeSet, Body: json.RawMessage(`{"node":"x","network":{"interfaces":[{"name":"front"}]}}`)},
	} {
		c.ID, c.Actor = newID(), ada
		var err error
		as(uids[rpc.Console], func() {
			client := n.client()
			defer client.Close()
			_, err = rpc.LedgerPropose.Call(context.Background(), client, c)
		})
		if !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "key new") && !strings.Contains(err.Error(), "interface[0]") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
