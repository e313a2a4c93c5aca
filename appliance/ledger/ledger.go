// Package ledger is the node's memory: the records that the cluster agrees on, what became of each request, the audit, what the node
// saw, and the node's own secrets and keys.
//
// Promise. A command that Propose acknowledged, and its audit entry, survive kill -9 and power cuts; a command is applied once however
// often its request id is sent; a reply never leaves before the audit entry is on the disk. Who may do what is decided here by
// policy.Apply over the records, whatever the console claims. What is damaged or full becomes a named problem in Status while
// everything else goes on: a process that panics in a loop helps nobody. No secret enters a command, a snapshot, the audit or a log.
//
// The attestation signer gets its successor here, by itself and in time; everything else is an administrator's to ask for.
//
// Other nodes. The ledger keeps the links to the peers on record (appliance/cluster), on sockets that init opens, so it is reached from the
// network, by whoever holds a recorded peer's key, and before that by the bytes of a TLS 1.3 handshake. What a ledger that was taken over
// gains by it: it may connect to at most policy.MaxPeers machines, at policy.PeerPort only, and answer who connects to its own port; before,
// nothing held it at all. Since the records are its own, it may name those machines itself; init logs each change, and lets it reach no
// service of this machine. It gets nothing from a peer but a time that never leads.
//
// Order of a command: one bbolt transaction holds the changed records, the log index, the request id's result and the audit entry (the
// outbox); then the entry goes into the chain; then the caller is answered. A crash in between is repaired at the next start.
//
// Limits. One node so far: Log is where a replicated log slips in. Snapshots are whole. The newest 10,000 request ids are remembered.
// Observations are kept in memory and written once a minute: a crash loses the last minute of them, and the last second of the record of
// which key protectors use which key.
package ledger

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
	"weak"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"guardhouse/appliance/audit"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/tpm"
)

// Config is what a ledger needs from its process. All fields but HSMs, CheckStore, BootLog and Image are required.
type Config struct {
	Dir      string                    // folder of its own on the data disk, mode 0700
	TPM      string                    // as tpm.Open takes it
	Policy   tpm.SealPolicy            // what the root key is sealed to; nil: nothing, Dir lies on a sealed volume
	Boot     string                    // boot id
	BootTime func() time.Duration      // CLOCK_BOOTTIME
	Time     func() policy.TrustedTime // newest value of the clock; zero = none
	// TimeEvent is closed at the next event of the time (rpc.TimeSource.Event); nil where there are none.
	TimeEvent func() <-chan struct{}
	// TimeFloor has the time's floor kept in the TPM; nil where nobody can.
	TimeFloor func(context.Context, time.Time) error
	// Clock is this node's; nil where approvals and the floor have nobody to go to.
	Clock *rpc.Client
	Rand  io.Reader
	Epoch time.Time   // when the image was built: no certificate of ours begins before it
	HSM   *rpc.Client // this node's
	// HSMs are those of the other nodes by node id, for tests of keys: a key counts only if every node can use it.
	HSMs map[string]*rpc.Client
	// BootLog asks init for the firmware's log; nil outside an image.
	BootLog func(context.Context) (rpc.InitBootReply, error)
	Image   string                                      // version of the image, for people
	Network func(context.Context, policy.Network) error // hands the node's network to init
	// Reach has init let the process forward connect to HOST:PORT and nothing else ("" = nothing at all) and gives the addresses; nil
	// outside an image, where nothing holds it.
	Reach func(ctx context.Context, address string) ([]string, error)
	// Peers are the sockets on which other nodes are heard; the ledger closes them. ReachPeers has init let this process connect to these
	// addresses, IP:PORT, and to no other; nil outside an image, where nothing holds it.
	Peers      []net.Listener
	ReachPeers func(ctx context.Context, addresses []string) error
	Log        func(format string, args ...any)
	// CheckStore looks at a database file before it is opened; nil does it in this process, which a badly damaged file can kill.
	CheckStore func(ctx context.Context, path string) error

	argonKiB  uint32        // memory of new passphrase hashes; tests take less
	testPause time.Duration // between two tests of a new key that found no answer; shortened by tests
}

const (
	storeRemedy = "keep the data disk for analysis, put in an empty one and set the node up again"
	sealRemedy  = "see the other problems"
)

// Ledger is one node's ledger. Make it with Open, start its background work with Run.
type Ledger struct {
	cfg      Config
	store    *store // nil when the file is damaged
	log      Log
	audit    *audit.Log
	tpm      *tpm.TPM     // nil when there is none
	secrets  *tpm.Secrets // nil when they can't be unsealed
	observed *observations
	used     *usage

	deliverMu sync.Mutex // one audit entry of a command at a time
	setupMu   sync.Mutex
	keysMu    sync.Mutex
	attestMu  sync.Mutex          // the attestation key is made once
	renewNow  chan struct{}       // wakes keepSigner; holds one
	sealKey   *age.X25519Identity // opens what administrators encrypt to this node, of this start only
	logins    *logins
	refusals  refusalTable
	forward   *forward
	peers     peers
	shares    shares
	onceMu    sync.Mutex // held by auditOnce from its look at the chain to its entry
	proposals proposals
	floor     floor
	started   sync.WaitGroup

	mu        sync.Mutex // guards all below; never held over I/O
	state     policy.State
	index     uint64
	node      string
	outbox    map[uint64]outgoing
	delivered []uint64
	identity  *age.X25519Identity // opens the secrets file; nil once the node is set up
	problems  []policy.Problem
	changed   chan struct{} // closed and replaced at each new snapshot
	encoded   encoded
}

// Open opens the ledger in cfg.Dir or begins one. A damaged database, an unusable TPM or secrets that don't open are problems of the
// Status; errors are those of a folder that can't be used at all.
func Open(ctx context.Context, cfg Config) (*Ledger, error) {
	if cfg.argonKiB == 0 {
		cfg.argonKiB = argonMemory
	}
	if cfg.testPause == 0 {
		cfg.testPause = 2 * time.Second
	}
	records, observed := filepath.Join(cfg.Dir, "state.db"), filepath.Join(cfg.Dir, "observed.db")
	if cfg.CheckStore != nil {
		cfg.CheckStore = ahead(ctx, cfg.CheckStore, records, observed) // meanwhile the audit is read and the TPM opens the secrets
	}
	l := &Ledger{cfg: cfg, state: policy.NewState(), outbox: map[uint64]outgoing{}, changed: make(chan struct{}), refusals: newRefusalTable()}
	for _, dir := range []string{"audit", "secrets"} {
		if err := os.MkdirAll(filepath.Join(cfg.Dir, dir), 0o700); err != nil {
			return nil, fmt.Errorf("ledger: %w", err)
		}
	}
	l.renewNow = make(chan struct{}, 1)
	quota, err := auditQuota(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	if l.audit, err = audit.Open(filepath.Join(cfg.Dir, "audit"), audit.Options{Quota: quota, Stamp: l.stamp}); err != nil {
		return nil, err
	}
	l.forward = openForward(filepath.Join(cfg.Dir, "forward.json"), l.audit, cfg.BootTime)
	l.openSecrets()
	l.openRecords(ctx, records)
	l.openFloor()
	l.observed = openObservations(ctx, observed, cfg)
	l.used = openUsage(l.observed.db, cfg.Log)
	if l.logins, err = openLogins(filepath.Join(cfg.Dir, "logins.json"), cfg.BootTime); err != nil {
		return nil, err
	}
	if err := l.adoptKeys(); err != nil {
		l.setProblem(policy.Problem{Kind: "secrets", What: err.Error(), Remedy: sealRemedy})
	}
	if err := l.repairAudit(); err != nil {
		l.setProblem(policy.Problem{Kind: "audit-outbox", What: "audit entries of applied commands are not in the chain yet: " + err.Error(), Remedy: "cure the audit; they follow at the next start"})
	}
	if l.sealKey, err = age.GenerateX25519Identity(); err != nil {
		return nil, fmt.Errorf("key for secrets: %w", err)
	}
	if !l.state.SetUp() {
		if l.identity, err = age.GenerateX25519Identity(); err != nil {
			return nil, fmt.Errorf("setup key: %w", err)
		}
	}
	return l, nil
}

// auditQuota is half of the data disk, at most 256 MiB.
func auditQuota(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return min(256<<20, max(int64(st.Blocks)*st.Bsize/2, 4<<20)), nil
}

func (l *Ledger) openSecrets() {
	var err error
	if l.tpm, err = tpm.Open(l.cfg.TPM); err != nil {
		l.secretsProblem(err, "enable the TPM 2.0 in the firmware's settings and reboot")
		return
	}
	if dir := filepath.Join(l.cfg.Dir, "secrets"); l.cfg.Policy == nil {
		l.secrets, err = tpm.OpenVolumeSecrets(dir, l.cfg.Rand)
	} else {
		l.secrets, err = tpm.OpenSecrets(dir, l.tpm, l.cfg.Policy, l.cfg.Rand)
	}
	if err == nil {
		return
	}
	l.secretsProblem(fmt.Errorf("the node's secrets can't be opened: %w", err), "reboot the node; if it comes again, the TPM is failing")
}

// secretsProblem notes why the secrets are not open; remedy is for errors that bring none.
func (l *Ledger) secretsProblem(err error, remedy string) {
	p := policy.Problem{Kind: tpm.KindNoTPM, What: err.Error(), Remedy: remedy}
	var e *tpm.Error
	if errors.As(err, &e) {
		p = policy.Problem{Kind: e.Kind, What: e.What, Remedy: e.Remedy}
	}
	l.setProblem(p)
}

func (l *Ledger) openRecords(ctx context.Context, records string) {
	s, c, err := openStore(ctx, records, l.cfg.CheckStore)
	if err != nil {
		l.setProblem(policy.Problem{Kind: "store-damaged", What: "the records can't be read: " + err.Error(), Remedy: storeRemedy})
		return
	}
	l.store, l.state, l.index, l.node, l.outbox, l.floor.at = s, c.state, c.index, c.node, c.outbox, c.floor
	l.log = NewSingleLog(machine{l})
}

func (l *Ledger) setProblem(p policy.Problem) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if slices.Contains(l.problems, p) {
		return
	}
	l.cfg.Log("problem %s: %s; %s", p.Kind, p.What, p.Remedy)
	l.problems = slices.DeleteFunc(l.problems, func(o policy.Problem) bool { return o.Kind == p.Kind })
	l.problems = append(l.problems, p)
}

func (l *Ledger) clearProblem(kind string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.problems = slices.DeleteFunc(l.problems, func(o policy.Problem) bool { return o.Kind == kind })
}

// ready is nil where commands can be applied.
func (l *Ledger) ready() error {
	if l.store == nil {
		return rpc.ErrUnavailable.With("the records can't be read; %s", storeRemedy)
	}
	return nil
}

// secret opens one of the node's secrets; the caller wipes it.
func (l *Ledger) secret(name string) ([]byte, error) {
	if l.secrets == nil {
		return nil, rpc.ErrUnavailable.With("the node's secrets are sealed: %s", l.whySealed().What)
	}
	b, err := l.secrets.Get(name)
	if errors.Is(err, tpm.ErrNoSecret) {
		return nil, rpc.ErrUnavailable.With("the node has no %s yet", name)
	}
	return b, err
}

// sealing is a line for people on the root key.
func (l *Ledger) sealing() string {
	if l.secrets != nil {
		return l.secrets.Describe()
	}
	return "not open: " + l.whySealed().What
}

// whySealed is why the secrets are not open.
func (l *Ledger) whySealed() policy.Problem {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.problems {
		switch p.Kind {
		case tpm.KindImageChanged, tpm.KindOtherTPM, tpm.KindNoTPM, tpm.KindDamaged:
			return p
		}
	}
	return policy.Problem{Kind: tpm.KindDamaged, What: "the secrets are not open", Remedy: "see log show ledger"}
}

// Snapshot is the newest state and a channel that is closed when there is a newer one.
func (l *Ledger) Snapshot() (policy.Snapshot, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return policy.Snapshot{Index: l.index, NodeID: l.node, State: l.state, Floor: l.floor.at}, l.changed
}

func (l *Ledger) publish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.changed = make(chan struct{})
}

// encoded is the snapshot that was shared last, as long as somebody sends it, and what it was made of.
type encoded struct {
	last    weak.Pointer[rpc.Shared[policy.Snapshot]]
	index   uint64
	changed <-chan struct{}
}

// shared is Snapshot for those who send it on: the same to all, so that it is encoded once. A large one is kept only while it is sent.
func (l *Ledger) shared() (*rpc.Shared[policy.Snapshot], <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := &l.encoded
	s := e.last.Value()
	if s == nil || e.index != l.index || e.changed != l.changed {
		s = rpc.Share(policy.Snapshot{Index: l.index, NodeID: l.node, State: l.state})
		*e = encoded{weak.Make(s), l.index, l.changed}
	}
	return s, l.changed
}

// Watch gives each snapshot to send: the present one, then newer ones. A slow receiver misses those in between, never the newest. Where the
// records can't be read it gives none: an empty state would pass for a node that was never set up.
func (l *Ledger) Watch(ctx context.Context, send func(*rpc.Shared[policy.Snapshot]) error) error {
	if l.store == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	for {
		s, changed := l.shared()
		if err := send(s); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// Alive is the self-check for the watchdog: the store answers a read and the audit answers. A damaged store is a problem, not a hang.
func (l *Ledger) Alive() error {
	done := make(chan error, 1)
	go func() {
		l.audit.Status()
		if l.store == nil {
			done <- nil
			return
		}
		done <- l.store.alive()
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(time.Second):
		return errors.New("the records did not answer within a second")
	}
}

// Status is the ledger's own health.
func (l *Ledger) Status() rpc.LedgerStatusReply {
	a, peers := l.audit.Status(), l.peerProblems()
	r := rpc.LedgerStatusReply{Sealing: l.sealing(), AuditSeq: a.Last, AuditBytes: a.Bytes, AuditLimit: a.Quota}
	l.mu.Lock()
	defer l.mu.Unlock()
	r.Index, r.NodeID, r.SetUp, r.Format = l.index, l.node, l.state.SetUp(), l.state.Version
	r.Problems = slices.Clone(l.problems)
	if a.Problem != nil {
		r.Problems = append(r.Problems, *a.Problem)
	}
	r.Problems = append(r.Problems, peers...)
	if l.state.SetUp() && l.state.Service.Syslog != nil {
		s, problem := l.forward.status(*l.state.Service.Syslog, l.state.Nodes[l.node].SyslogCertificates(), a)
		r.Syslog = &s
		if problem != nil {
			r.Problems = append(r.Problems, *problem)
		}
	}
	return r
}

// Run does the background work until ctx ends: sums of refusals, observations to the disk, the network to init, a first check of the
// whole audit chain, successors of the attestation signer and of an audit key that the TPM lost, tests of the keys, wiping of software
// keys that were removed.
func (l *Ledger) Run(ctx context.Context) {
	for _, work := range []func(context.Context){l.writeRefusals, l.keepNetwork, l.observed.run, l.checkAudit, l.emptyOutbox, l.keepSigner, l.keepTested, l.keepSoftware, l.checkBoot, l.keepAuditKey, l.keepFloor, l.keepPeers,
		func(ctx context.Context) { l.used.run(ctx, l.cfg.Log) }} {
		l.started.Add(1)
		go func() {
			defer l.started.Done()
			work(ctx)
		}()
	}
	l.started.Wait()
}

// emptyOutbox tries again what the audit did not take when its command was applied: it may have been cured meanwhile.
func (l *Ledger) emptyOutbox(ctx context.Context) {
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		l.mu.Lock()
		waiting := slices.Sorted(maps.Keys(l.outbox))
		l.mu.Unlock()
		for _, index := range waiting {
			if l.deliver(index) != nil {
				break
			}
		}
	}
}

func (l *Ledger) checkAudit(ctx context.Context) {
	for {
		if err := l.audit.Check(ctx); err != nil && ctx.Err() == nil {
			l.cfg.Log("%v", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(24 * time.Hour):
		}
	}
}

// forgetDelivered empties the outbox on the disk of what the chain holds. Otherwise that waits for the next command.
func (l *Ledger) forgetDelivered() error {
	l.deliverMu.Lock()
	defer l.deliverMu.Unlock()
	l.mu.Lock()
	delivered := slices.Clone(l.delivered)
	l.mu.Unlock()
	if err := l.store.forget(delivered); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.delivered = slices.DeleteFunc(l.delivered, func(i uint64) bool { return slices.Contains(delivered, i) })
	return nil
}

// Close ends everything cleanly; call it after Run has returned and no request is under way.
func (l *Ledger) Close() error {
	var err error
	if l.store != nil {
		err = errors.Join(l.recordFloor(floorAtEnd), l.forgetDelivered(), guard(l.store.db.Close))
	}
	err = errors.Join(err, l.forward.close(), l.used.flush(), l.observed.close(), l.audit.Close())
	if l.secrets != nil {
		err = errors.Join(err, l.secrets.Close())
	}
	if l.tpm != nil {
		err = errors.Join(err, l.tpm.Close())
	}
	return err
}
