// Package verbtest is a node for tests of the console: real sockets, the real policy.Apply over records in memory, and plausible
// answers of the other processes. It promises nothing about durability, keys or time; no program imports it.
package verbtest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/console/verb"
)

// Passphrase opens the serial line for the administrator ada.
const Passphrase = "correct horse battery"

// Recipient is the setup key shown before setup.
const Recipient = "age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq"

// At is the moment at which the node stands still.
var At = policy.Stamp{Earliest: 1795363200000, Latest: 1795363200020, Boot: "boot"}

// Fake is the node.
type Fake struct {
	Node  *verb.Node
	Admin ssh.Signer // key of ada, owner
	Dir   string     // where the sockets are, as --run-dir

	KillLedger context.CancelFunc // the ledger answers no more

	mu        sync.Mutex
	state     policy.State
	index     uint64
	nodeID    string
	done      map[string]policy.Result
	changed   chan struct{}
	audit     []policy.AuditEntry
	power     []string
	unlocked  []string
	pending   []policy.Observation
	observed  []policy.Observation
	logs      map[string][]byte // by SHA-256
	uses      []policy.ProtectorUse
	hostKey   ed25519.PrivateKey
	ca        *rsa.PrivateKey
	fail      map[string]error
	site      []rpc.HSMSiteFile
	boot      time.Duration
	born      map[policy.KeyRef]born           // pairs in the token that were not made here
	sick      map[policy.KeyRef]policy.Problem // what tests find
	sealed    []byte
	syslogKey crypto.Signer
	vol       rpc.VolumeReply

	recovered []rpc.TimeRecoverRequest

	resetKeys rpc.ResetKeysReply
	fate      *rpc.DestroyKeysReply // nil: all that were asked for are gone
	destroyed []policy.KeyRef
	clocked   *rpc.ClockStatusReply
	asked     []rpc.TimeAskRequest
	timeKeys  []rpc.TimeKeyRequest

	peered    map[string]rpc.PeerStatus
	strangers uint64
}

// Start runs the node until the test ends; setUp decides whether setup was done.
func Start(t testing.TB, setUp bool) *Fake {
	t.Helper()
	dir, err := os.MkdirTemp("", "gh") // a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	seed := bytes.Repeat([]byte{7}, ed25519.SeedSize)
	f := &Fake{Dir: dir, state: policy.NewState(), done: map[string]policy.Result{}, changed: make(chan struct{}), hostKey: ed25519.NewKeyFromSeed(seed),
		fail: map[string]error{}, boot: 90 * time.Second, vol: rpc.VolumeReply{State: rpc.VolumeTPM}}
	if f.Admin, err = ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{9}, ed25519.SeedSize))); err != nil {
		t.Fatal(err)
	}
	if setUp {
		f.SetUp(t)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		os.RemoveAll(dir)
	})
	uids := rpc.UIDs{rpc.Console: uint32(os.Getuid())}
	var alive context.Context
	alive, f.KillLedger = context.WithCancel(ctx)
	client := func(name string, register func(*rpc.Server)) *rpc.Client {
		ctx := ctx
		if name == rpc.Ledger {
			ctx = alive
		}
		path := rpc.SocketPath(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		l, err := rpc.Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		s := rpc.NewServer(uids)
		register(s)
		wg.Go(func() { s.Serve(ctx, l) })
		return rpc.NewProvedClient(path, uint32(os.Getuid()))
	}
	f.Node = &verb.Node{Ledger: client(rpc.Ledger, f.ledger), HSM: client(rpc.HSM, f.hsm), Clock: client(rpc.Clock, f.clock),
		Init: client(rpc.Init, f.init), Forward: client(rpc.Forward, f.forward), Stamp: func() policy.Stamp { return At }, Boottime: f.boottime, Random: rand.Reader}
	wg.Go(func() { f.Node.Watch(ctx) })
	for limit := time.Now().Add(5 * time.Second); ; {
		if _, known := f.Node.Snapshot(); known {
			return f
		}
		if time.Now().After(limit) {
			t.Fatal("no snapshot arrived")
		}
		time.Sleep(time.Millisecond)
	}
}

func (f *Fake) boottime() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.boot
}

// Pass lets time go by.
func (f *Fake) Pass(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.boot += d
}

// Clocked has the clock answer this.
func (f *Fake) Clocked(st rpc.ClockStatusReply) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clocked = &st
}

// Asked is what was decided about the time; the fake never carries it out before it is confirmed.
func (f *Fake) Asked() []rpc.TimeAskRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.asked)
}

// TimeKeys are the calls of ledger.TimeKeySet.
func (f *Fake) TimeKeys() []rpc.TimeKeyRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.timeKeys)
}

// Fail makes a method fail with err; nil heals it.
func (f *Fake) Fail(method string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail[method] = err
}

func (f *Fake) failure(method string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fail[method]
}

// Audit is what was audited so far.
func (f *Fake) Audit() []policy.AuditEntry {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]policy.AuditEntry{}, f.audit...)
}

// Power is what init was asked to do with the machine.
func (f *Fake) Power() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string{}, f.power...)
}

// Pending makes an unknown host ask.
func (f *Fake) Pending(spki []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pending = append(f.pending, policy.Observation{Kind: policy.ObservedPending, Subject: policy.HostID(spki), First: At, Last: At, Count: 3,
		Facts: map[string]string{"source": "10.0.2.77", "spki": base64.StdEncoding.EncodeToString(spki)}})
}

// PendingTPM makes an unknown host ask with its TPM; facts as the attestation service keeps them.
func (f *Fake) PendingTPM(id string, facts map[string]string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pending = append(f.pending, policy.Observation{Kind: policy.ObservedPending, Subject: id, First: At, Last: At, Count: 1, Facts: facts})
}

// Observe notes what a node saw.
func (f *Fake) Observe(kind policy.ObservationKind, subject string, facts map[string]string) {
	f.ObserveAt(At, kind, subject, facts)
}

// ObserveAt is Observe at another moment than the one at which the node stands still.
func (f *Fake) ObserveAt(at policy.Stamp, kind policy.ObservationKind, subject string, facts map[string]string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.observed = append(f.observed, policy.Observation{Kind: kind, Subject: subject, First: at, Last: at, Count: 1, Facts: facts})
}

// KeepLog has the node keep a boot log, nil for one that it has lost.
func (f *Fake) KeepLog(digest string, log []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.logs == nil {
		f.logs = map[string][]byte{}
	}
	if f.logs[digest] = log; log == nil {
		delete(f.logs, digest)
	}
}

// EditState changes the records without a command, whatever the policy says of it.
func (f *Fake) EditState(edit func(*policy.State)) {
	f.mu.Lock()
	next := f.state
	f.mu.Unlock()
	next.Hosts, next.Baselines = maps.Clone(next.Hosts), maps.Clone(next.Baselines)
	edit(&next)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state, f.index = next, f.index+1
	close(f.changed)
	f.changed = make(chan struct{})
}

// HostKey is the node's SSH host key.
func (f *Fake) HostKey() ssh.PublicKey {
	key, _ := ssh.NewPublicKey(f.hostKey.Public())
	return key
}

// Session is ada at a door.
func (f *Fake) Session(door policy.Door) *verb.Session {
	return &verb.Session{Node: f.Node, Actor: policy.Actor{Name: "ada", Key: ssh.FingerprintSHA256(f.Admin.PublicKey()), Door: door, Session: "s1"}}
}

// SetUp applies the setup command.
func (f *Fake) SetUp(t testing.TB) {
	t.Helper()
	body, err := json.Marshal(f.setupBody())
	if err == nil {
		_, err = f.propose(policy.Command{ID: "setup", Kind: policy.CmdSetup, Actor: policy.Actor{Door: policy.DoorSetup}, At: At, Body: body})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (f *Fake) setupBody() policy.Setup {
	line := func(k ssh.PublicKey) string { return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k))) }
	return policy.Setup{
		Service: policy.Service{Name: "hgs.example.test", Mode: policy.ModeHostKey, HTTP: true, HTTPS: true, HealthLife: policy.DefaultHealthLife},
		Node: policy.Node{ID: "0123456789abcdef", Name: "node1", AuditKey: bytes.Repeat([]byte{1}, 32), SSHHostKey: line(f.HostKey()),
			TimeServers: []string{"10.0.2.2:11123"},
			Network: policy.Network{Resolvers: []string{"10.0.2.3"}, Interfaces: []policy.Interface{{Name: "front", MAC: []string{"any"},
				Addresses: []string{"10.0.2.15/24"}, Gateways: []string{"10.0.2.2"}, Roles: []policy.NetworkRole{policy.NetService, policy.NetManagement}}}}},
		Admins: []policy.Admin{{Name: "ada", Role: policy.AdminOwner, Key: line(f.Admin.PublicKey())}},
	}
}

func (f *Fake) propose(c policy.Command) (policy.Result, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r, ok := f.done[c.ID]; ok {
		return r, nil
	}
	c.Stragglers = f.state.Stragglers(c, func(id string) (last policy.Observation, ok bool) {
		for _, o := range f.observed {
			if o.Kind == policy.ObservedHost && o.Subject == id {
				last, ok = o, true
			}
		}
		return last, ok
	})
	next, r, err := policy.Apply(f.state, c)
	if err != nil {
		return r, err
	}
	f.index++
	r.Index = f.index
	f.state, f.done[c.ID] = next, r
	if c.Kind == policy.CmdSetup {
		f.nodeID = "0123456789abcdef"
	}
	actor := c.Actor
	f.audit = append(f.audit, policy.AuditEntry{Kind: policy.AuditCommand, At: c.At, Actor: &actor, Action: string(c.Kind), Subject: r.Subject, Outcome: "ok"})
	close(f.changed)
	f.changed = make(chan struct{})
	return r, nil
}

// Do applies a command as ada, for tests that need records.
func (f *Fake) Do(t testing.TB, kind policy.Kind, body any) {
	t.Helper()
	b, err := json.Marshal(body)
	id, iderr := f.Node.ID()
	if err != nil || iderr != nil {
		t.Fatal(err, iderr)
	}
	r, err := f.propose(policy.Command{ID: id, Kind: kind, Actor: f.Session(policy.DoorSSH).Actor, At: At, Body: b})
	if err != nil {
		t.Fatal(err)
	}
	for s, _ := f.Node.Snapshot(); s.Index < r.Index; s, _ = f.Node.Snapshot() {
		time.Sleep(time.Millisecond)
	}
}

// Edit changes the service's record to what setup could have made of it.
func (f *Fake) Edit(edit func(*policy.Service)) {
	f.mu.Lock()
	service := *f.state.Service
	edit(&service)
	f.state.Service = &service
	f.index++
	index := f.index
	close(f.changed)
	f.changed = make(chan struct{})
	f.mu.Unlock()
	for s, _ := f.Node.Snapshot(); s.Index < index; s, _ = f.Node.Snapshot() {
		time.Sleep(time.Millisecond)
	}
}

// Certificate is a self-signed RSA certificate; the same key each time within one node.
func (f *Fake) Certificate(t testing.TB, cn string) []byte {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ca == nil {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		f.ca = key
	}
	return certificate(t, f.ca, cn)
}

func certificate(t testing.TB, key *rsa.PrivateKey, cn string) []byte {
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: cn}, NotBefore: time.UnixMilli(At.Earliest),
		NotAfter: time.UnixMilli(At.Earliest).AddDate(10, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// Unlocked is what hsm.Unlock got: the PIN, a blank and whether the last try was confirmed.
func (f *Fake) Unlocked() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.unlocked)
}
