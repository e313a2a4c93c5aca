package ledger

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"
	"golang.org/x/crypto/ssh"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/tpm"
)

// TestMain lets the test program check database files in a child, as cmd/ledger does.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "--check-store" {
		if err := CheckStore(os.Args[2]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Setenv("GORACE", "atexit_sleep_ms=0") // children of a race build would each wait a second at their end
	os.Exit(m.Run())
}

// startTPM runs a software TPM until the test ends and gives its address as tpm.Open takes it.
func startTPM(t testing.TB) string {
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

// bench is a node on the bench: a ledger whose surroundings the test controls.
type bench struct {
	t    testing.TB
	cfg  Config
	l    *Ledger
	mu   sync.Mutex
	now  time.Duration
	time policy.TrustedTime
	net  []policy.Network
	logs bytes.Buffer
	// service is added to [service] of the answer file.
	service string
}

func (b *bench) clock() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.now
}

func (b *bench) pass(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now += d
}

// trust gives the ledger a trusted time as the clock would: through its JSON form.
func (b *bench) trust(utc time.Time) {
	j, _ := json.Marshal(map[string]any{"boot": "test-boot", "bootTime": b.clock(), "utc": utc, "bound": 20 * time.Millisecond, "driftPPM": 100, "expires": b.clock() + 100*time.Hour})
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := json.Unmarshal(j, &b.time); err != nil {
		b.t.Fatal(err)
	}
}

func newBench(t testing.TB) *bench {
	b := &bench{t: t, now: time.Minute}
	b.cfg = Config{Dir: t.TempDir(), TPM: startTPM(t), Policy: tpm.ImagePCRs, Boot: "test-boot", BootTime: b.clock, Rand: rand.Reader,
		Time:     func() policy.TrustedTime { b.mu.Lock(); defer b.mu.Unlock(); return b.time },
		argonKiB: 64, testPause: time.Millisecond,
		CheckStore: CheckInChild(os.Args[0], "--check-store"),
		Epoch:      time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		Network: func(_ context.Context, n policy.Network) error {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.net = append(b.net, n)
			return nil
		},
		Log: func(format string, args ...any) {
			b.mu.Lock()
			defer b.mu.Unlock()
			fmt.Fprintf(&b.logs, format+"\n", args...)
		},
	}
	b.open()
	t.Cleanup(func() { b.l.Close() })
	return b
}

func (b *bench) open() {
	b.t.Helper()
	l, err := Open(context.Background(), b.cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	b.l = l
}

func (b *bench) restart() { b.t.Helper(); b.l.Close(); b.open() }

// crash drops the ledger without its clean stop, as kill -9 would: files are closed, nothing is written.
func (b *bench) crash() {
	b.t.Helper()
	if b.l.store != nil {
		b.l.store.db.Close()
	}
	if b.l.observed.db != nil {
		b.l.observed.db.Close()
	}
	b.l.secrets.Close()
	b.l.tpm.Close()
	b.open()
}

func sshKey(t testing.TB) string {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	k, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k)))
}

const answerFile = `version = 1
[service]
name = "hgs.example.test"
mode = "HostKey"
http = true
https = true
health-life = "8h"
[node]
name = "node1"
time-servers = ["10.0.2.2:11123"]
[node.network]
resolvers = ["10.0.2.3"]
[[node.network.interface]]
name = "front"
mac = ["any"]
addresses = ["10.0.2.15/24"]
gateways = ["10.0.2.2"]
roles = ["service", "cluster", "management"]
[node.hsm]
module = "/usr/lib/pkcs11/p11-kit-client.so"
token = "guardhouse"
attach = "virtio:org.guardhouse.hsm"
[[admin]]
name = "ada"
role = "owner"
key = "KEY"
`

const (
	testPIN        = "1234-not-a-real-pin"
	testPassphrase = "correct horse battery"
	secretsFile    = "version = 1\nhsm-pin = \"" + testPIN + "\"\n[passphrase]\nada = \"" + testPassphrase + "\"\n"
)

func (b *bench) encrypt(text string) []byte {
	b.t.Helper()
	key, err := b.l.SetupKey()
	if err != nil {
		b.t.Fatal(err)
	}
	r, err := age.ParseX25519Recipient(key.Recipient)
	if err != nil {
		b.t.Fatal(err)
	}
	var out bytes.Buffer
	a := armor.NewWriter(&out)
	w, err := age.Encrypt(a, r)
	if err != nil {
		b.t.Fatal(err)
	}
	io.WriteString(w, text)
	if err := errors.Join(w.Close(), a.Close()); err != nil {
		b.t.Fatal(err)
	}
	return out.Bytes()
}

var setupActor = policy.Actor{Name: "setup", Door: policy.DoorSetup, Session: "s1"}

// setUp sets the node up and gives the owner.
func (b *bench) setUp() policy.Actor {
	b.t.Helper()
	key := sshKey(b.t)
	r, err := b.l.SetUp(context.Background(), rpc.SetupRequest{Answers: []byte(strings.NewReplacer("KEY", key, "[node]\n", b.service+"[node]\n").Replace(answerFile)), Secrets: b.encrypt(secretsFile), Actor: setupActor})
	if err != nil {
		b.t.Fatal(err)
	}
	if r.Index != 1 || r.Subject == "" {
		b.t.Fatalf("%+v", r)
	}
	fp, err := policy.KeyFingerprint(key)
	if err != nil {
		b.t.Fatal(err)
	}
	return policy.Actor{Name: "ada", Key: fp, Door: policy.DoorSSH, Session: "s2"}
}

func newID() string {
	id := make([]byte, 16)
	rand.Read(id)
	return hex.EncodeToString(id)
}

func command(a policy.Actor, kind policy.Kind, body any) policy.Command {
	b, _ := json.Marshal(body)
	return policy.Command{ID: newID(), Kind: kind, Actor: a, Body: b}
}

func admin(t testing.TB, name string) policy.AdminAdd {
	return policy.AdminAdd{Name: name, Role: policy.AdminReviewer, Key: sshKey(t)}
}

func TestSetupMakesTheNodeAndKeepsEverySecretOutOfSight(t *testing.T) {
	b := newBench(t)
	if _, err := b.l.PIN(context.Background()); !errors.Is(err, rpc.ErrUnavailable) {
		t.Errorf("PIN before setup: %v", err)
	}
	b.setUp()
	s, _ := b.l.Snapshot()
	n := s.State.Nodes[s.NodeID]
	if !s.State.SetUp() || n.Name != "node1" || len(n.Certificate) == 0 || n.SSHHostKey == "" || s.State.Service.HealthLife != 8*time.Hour {
		t.Errorf("%+v", s)
	}
	if len(b.net) != 1 || b.net[0].Interfaces[0].Name != "front" {
		t.Errorf("init was told %+v", b.net)
	}
	b.restart()
	pin, err := b.l.PIN(context.Background())
	if err != nil || string(pin.PIN) != testPIN || pin.HSM.Token != "guardhouse" {
		t.Fatalf("PIN after restart: %v", err)
	}
	if _, err := b.l.SetupKey(); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("setup key after setup: %v", err)
	}
	if _, err := b.l.SetUp(context.Background(), rpc.SetupRequest{Actor: setupActor}); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("second setup: %v", err)
	}
	snapshot, _ := json.Marshal(s)
	cluster, _ := b.l.secret(secretCluster)
	for _, secret := range []string{testPIN, testPassphrase, string(cluster), hex.EncodeToString(cluster)} {
		err := filepath.WalkDir(b.cfg.Dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			file, err := os.ReadFile(path)
			if bytes.Contains(file, []byte(secret)) {
				t.Errorf("%s holds a secret in the clear", path)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		if bytes.Contains(snapshot, []byte(secret)) || strings.Contains(b.logs.String(), secret) {
			t.Error("a secret is in the snapshot or the log")
		}
	}
	if p := b.l.Status().Problems; len(p) != 0 {
		t.Errorf("%v", p)
	}
}

func TestCommandIsDoneOnceHoweverOftenItsIDIsSent(t *testing.T) {
	b := newBench(t)
	ada := b.setUp()
	c := command(ada, policy.CmdAdminAdd, admin(t, "bob"))
	refused := command(ada, policy.CmdAdminAdd, policy.AdminAdd{Name: "b b", Role: policy.AdminReviewer, Key: sshKey(t)})
	var index uint64
	for round := range 3 {
		i, r, err := b.l.Propose(context.Background(), c)
		if err != nil || round > 0 && i != index || r.Subject != "bob" {
			t.Fatalf("round %d: %d %+v %v", round, i, r, err)
		}
		index = i
		if _, _, err := b.l.Propose(context.Background(), refused); !errors.Is(err, rpc.ErrRefused) {
			t.Fatalf("round %d: %v", round, err)
		}
		if round == 1 {
			b.restart()
		}
	}
	other := command(ada, policy.CmdAdminRemove, policy.ByName{Name: "bob"})
	other.ID = c.ID
	if _, _, err := b.l.Propose(context.Background(), other); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "another command") {
		t.Errorf("id reused: %v", err)
	}
	if s, _ := b.l.Snapshot(); len(s.State.Admins) != 2 {
		t.Errorf("%d administrators", len(s.State.Admins))
	}
	entries := commandEntries(t, b.l)
	if entries["admin.add ok"] != 1 || entries["admin.add refused"] != 1 || entries["setup ok"] != 1 {
		t.Errorf("%v", entries)
	}
}

func commandEntries(t testing.TB, l *Ledger) map[string]int {
	t.Helper()
	records, err := l.audit.Since(1)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]int{}
	for _, r := range records {
		if r.Entry.Kind == policy.AuditCommand {
			found[r.Entry.Action+" "+r.Entry.Outcome]++
		}
	}
	return found
}

// TestCrashBetweenCommitAndAuditIsRepaired stops after the commit, before the chain has the entry, and after the chain has it but before
// anybody was told.
func TestCrashBetweenCommitAndAuditIsRepaired(t *testing.T) {
	for _, inChain := range []bool{false, true} {
		b := newBench(t)
		ada := b.setUp()
		c := command(ada, policy.CmdAdminAdd, admin(t, "bob"))
		j, _ := json.Marshal(c)
		out, err := b.l.log.Append(context.Background(), j)
		if err != nil {
			t.Fatal(err)
		}
		if inChain {
			if err := b.l.deliver(out.Index); err != nil {
				t.Fatal(err)
			}
		}
		b.crash()
		if e := commandEntries(t, b.l); e["admin.add ok"] != 1 {
			t.Errorf("in chain %v: %v", inChain, e)
		}
		b.crash()
		if _, r, err := b.l.Propose(context.Background(), c); err != nil || r.Subject != "bob" {
			t.Errorf("%+v %v", r, err)
		}
		if e := commandEntries(t, b.l); e["admin.add ok"] != 1 {
			t.Errorf("after a second crash: %v", e)
		}
	}
}

func TestDamagedStoreIsAProblemNotAPanic(t *testing.T) {
	b := newBench(t)
	ada := b.setUp()
	for i := range 30 {
		if _, _, err := b.l.Propose(context.Background(), command(ada, policy.CmdAdminAdd, admin(t, fmt.Sprint("u", i)))); err != nil {
			t.Fatal(err)
		}
	}
	b.l.Close()
	path := filepath.Join(b.cfg.Dir, "state.db")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	harms := map[string]func(f []byte) []byte{
		"cut":     func(f []byte) []byte { return f[:3*4096+100] },
		"zeroed":  func(f []byte) []byte { clear(f[:8192]); return f },
		"garbage": func(f []byte) []byte { rand.Read(f[8192:]); return f },
		"text":    func([]byte) []byte { return []byte("hello") },
	}
	for name, harm := range harms {
		os.WriteFile(path, harm(bytes.Clone(whole)), 0o600)
		b.open()
		st := b.l.Status()
		if len(st.Problems) == 0 || st.Problems[0].Kind != "store-damaged" || st.Problems[0].Remedy == "" {
			t.Errorf("%s: %+v", name, st.Problems)
		}
		if _, _, err := b.l.Propose(context.Background(), command(ada, policy.CmdAdminAdd, admin(t, "x"))); !errors.Is(err, rpc.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		b.l.Watch(ctx, func(*rpc.Shared[policy.Snapshot]) error {
			t.Errorf("%s: gives out an empty state, as of a node that was never set up", name)
			return nil
		})
		cancel()
		if err := b.l.Alive(); err != nil {
			t.Errorf("%s: the watchdog would reboot for ever: %v", name, err)
		}
		b.l.Close()
	}
	os.WriteFile(path, whole, 0o600)
	b.open()
	if s, _ := b.l.Snapshot(); len(s.State.Admins) != 31 {
		t.Errorf("%d administrators", len(s.State.Admins))
	}
}

func TestOnlyTheNewestResultsAreRemembered(t *testing.T) {
	b := newBench(t)
	ada := b.setUp()
	first := command(ada, policy.CmdAdminAdd, admin(t, "first"))
	if _, _, err := b.l.Propose(context.Background(), first); err != nil {
		t.Fatal(err)
	}
	b.l.store.results = maxResults // as if there were so many
	if _, _, err := b.l.Propose(context.Background(), command(ada, policy.CmdAdminAdd, admin(t, "second"))); err != nil {
		t.Fatal(err)
	}
	if b.l.store.results != maxResults {
		t.Errorf("%d results", b.l.store.results)
	}
	if r, ok, _ := b.l.store.result(first.ID); !ok {
		t.Errorf("the second oldest is gone: %+v", r)
	}
}

// TestWatchersShareOneSnapshot as long as it is the newest.
func TestWatchersShareOneSnapshot(t *testing.T) {
	b := newBench(t)
	ada := b.setUp()
	one, _ := b.l.shared()
	two, changed := b.l.shared()
	if one != two {
		t.Error("two watchers got a snapshot each")
	}
	if _, _, err := b.l.Propose(context.Background(), command(ada, policy.CmdAdminAdd, admin(t, "second"))); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody hears of the change")
	}
	three, _ := b.l.shared()
	if three == one || three.Elem().Index != one.Elem().Index+1 || len(three.Elem().State.Admins) != 2 {
		t.Errorf("after a change: index %d, before %d", three.Elem().Index, one.Elem().Index)
	}
	runtime.KeepAlive(one)
}

func TestSlowWatcherGetsTheNewest(t *testing.T) {
	b := newBench(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	got := make(chan uint64)
	go b.l.Watch(ctx, func(s *rpc.Shared[policy.Snapshot]) error {
		select {
		case got <- s.Elem().Index:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	if i := <-got; i != 0 {
		t.Fatalf("first snapshot at %d", i)
	}
	ada := b.setUp()
	for i := range 5 {
		if _, _, err := b.l.Propose(ctx, command(ada, policy.CmdAdminAdd, admin(t, fmt.Sprint("u", i)))); err != nil {
			t.Fatal(err)
		}
	}
	last, seen := uint64(0), 0
	for last < 6 {
		last = <-got
		seen++
	}
	if seen > 3 {
		t.Errorf("%d snapshots were sent to a slow watcher", seen)
	}
}

func TestAnotherTPMLeavesRecordsReadableAndSaysWhy(t *testing.T) {
	b := newBench(t)
	ada := b.setUp()
	b.l.Close()
	b.cfg.TPM = startTPM(t)
	b.open()
	st := b.l.Status()
	if len(st.Problems) == 0 || st.Problems[0].Kind != tpm.KindOtherTPM || !strings.Contains(st.Sealing, "another TPM") {
		t.Errorf("%+v", st)
	}
	if _, err := b.l.PIN(context.Background()); !errors.Is(err, rpc.ErrUnavailable) {
		t.Errorf("%v", err)
	}
	if _, _, err := b.l.Propose(context.Background(), command(ada, policy.CmdAdminAdd, admin(t, "bob"))); err != nil {
		t.Errorf("%v", err)
	}
}
