package ledger

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/crypto/argon2"
	"golang.org/x/sys/unix"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/tpm"
)

// passphrasePrefix begins the names of the secrets that hold hashes. They are boxed although they are hashes: nobody who copies the
// disk can try passphrases.
const passphrasePrefix = "passphrase."

func passphraseName(admin string) string {
	// ValidName allows 64 characters and so does the name of a secret; a long name keeps its end off the prefix's cost.
	const most = policy.MaxNameLength - len(passphrasePrefix)
	if len(admin) <= most {
		return passphrasePrefix + admin
	}
	return passphrasePrefix + admin[:most-17] + "." + policy.Thumbprint([]byte(admin))[:16]
}

// hashed is the record of one passphrase. It is bound to the administrator's key: when the name is given to somebody else later, the old
// passphrase opens nothing.
type hashed struct {
	Algorithm string `json:"algorithm"` // argon2id
	Time      uint32 `json:"time"`      // passes
	Memory    uint32 `json:"memory"`    // KiB
	Threads   uint8  `json:"threads"`
	Salt      []byte `json:"salt"`
	Hash      []byte `json:"hash"`
	Key       string `json:"key"` // fingerprint of the SSH key
}

// Parameters of new hashes; 32 MiB fits a node with 512 MiB beside everything else.
const (
	argonTime    = 3
	argonMemory  = 32 << 10
	argonThreads = 1
	argonLength  = 32
)

// errPassphrase is a hash record that can't be used.
var errPassphrase = errors.New("the record of the passphrase does not parse")

func (l *Ledger) hashPassphrase(passphrase []byte, sshKey string) ([]byte, error) {
	defer clear(passphrase)
	fp, err := policy.KeyFingerprint(sshKey)
	if err != nil {
		return nil, err
	}
	h := hashed{Algorithm: "argon2id", Time: argonTime, Memory: l.cfg.argonKiB, Threads: argonThreads, Salt: make([]byte, 16), Key: fp}
	if _, err := io.ReadFull(l.cfg.Rand, h.Salt); err != nil {
		return nil, fmt.Errorf("randomness: %w", err)
	}
	h.Hash = l.logins.derive(h, passphrase)
	return json.Marshal(h)
}

// derive runs argon2id, one at a time.
func (g *logins) derive(h hashed, passphrase []byte) []byte {
	g.one.Lock()
	defer g.one.Unlock()
	defer runtime.GC() // the work area is garbage now; don't carry 32 MiB until the next login
	return argon2.IDKey(passphrase, h.Salt, h.Time, h.Memory, h.Threads, argonLength)
}

// CheckPassphrase verifies what was typed on the serial line. Each wrong try doubles the wait of that name, from 1 s to 15 minutes;
// during the wait nothing is looked at. The count is on the disk before the passphrase is compared, so a power cut does not reset it.
// A name that is not enrolled, or has no passphrase, costs the same time and the same wait.
func (l *Ledger) CheckPassphrase(ctx context.Context, req rpc.PassphraseRequest) (rpc.PassphraseReply, error) {
	defer clear(req.Passphrase)
	if err := l.ready(); err != nil {
		return rpc.PassphraseReply{}, err
	}
	s, _ := l.Snapshot()
	admin, enrolled := s.State.Admins[req.Admin]
	name := req.Admin
	if !enrolled {
		name = "" // all unknown names share one wait, so that guessing names fills no table
	}
	if len(req.Passphrase) > maxPassphrase {
		return rpc.PassphraseReply{}, rpc.ErrRefused.With("the passphrase is longer than %d bytes", maxPassphrase)
	}
	wait, err := l.logins.begin(name)
	if wait > 0 || err != nil {
		return rpc.PassphraseReply{Delay: wait}, err
	}
	record, known := hashed{Time: argonTime, Memory: l.cfg.argonKiB, Threads: argonThreads, Salt: make([]byte, 16), Hash: make([]byte, argonLength)}, false
	if enrolled {
		if record, known, err = l.passphraseRecord(admin, record); err != nil {
			return rpc.PassphraseReply{}, err
		}
	}
	got := l.logins.derive(record, req.Passphrase)
	defer clear(got)
	if subtle.ConstantTimeCompare(got, record.Hash) == 1 && known {
		return rpc.PassphraseReply{OK: true}, l.logins.succeeded(name)
	}
	return rpc.PassphraseReply{Delay: l.logins.wait(name)}, nil
}

// passphraseRecord gives the administrator's record, or the stand-in and false.
func (l *Ledger) passphraseRecord(admin policy.Admin, standIn hashed) (hashed, bool, error) {
	if l.secrets == nil {
		return standIn, false, rpc.ErrUnavailable.With("the node's secrets are sealed: %s; log in with your SSH key", l.whySealed().What)
	}
	b, err := l.secrets.Get(passphraseName(admin.Name))
	if errors.Is(err, tpm.ErrNoSecret) {
		return standIn, false, nil
	}
	if err != nil {
		return standIn, false, err
	}
	defer clear(b)
	var h hashed
	if err := json.Unmarshal(b, &h); err != nil || h.Algorithm != "argon2id" || h.Memory > 1<<20 || h.Time == 0 || h.Time > 64 || h.Threads == 0 || len(h.Hash) != argonLength {
		return standIn, false, errPassphrase
	}
	if fp, err := policy.KeyFingerprint(admin.Key); err != nil || fp != h.Key {
		return standIn, false, nil
	}
	return h, true, nil
}

// SetPassphrase replaces the actor's own passphrase and records that.
func (l *Ledger) SetPassphrase(ctx context.Context, req rpc.PassphraseRequest) error {
	defer clear(req.Passphrase)
	s, _ := l.Snapshot()
	if req.Actor == nil || req.Actor.Name != req.Admin {
		return rpc.ErrRefused.With("a passphrase is changed by its owner only")
	}
	if err := policy.Allowed(s.State, *req.Actor, policy.AdminReviewer); err != nil {
		return rpc.ErrRefused.With("%v", err)
	}
	if n := len(req.Passphrase); n < minPassphrase || n > maxPassphrase {
		return rpc.ErrRefused.With("a passphrase has %d to %d characters", minPassphrase, maxPassphrase)
	}
	if err := l.setupReady(); err != nil {
		return err
	}
	if err := l.audit.Admits(policy.AuditCommand); err != nil {
		return rpc.ErrUnavailable.With("nothing may be changed that can't be recorded: %v", err)
	}
	h, err := l.hashPassphrase(req.Passphrase, s.State.Admins[req.Admin].Key)
	if err != nil {
		return err
	}
	defer clear(h)
	if err := l.secrets.Put(passphraseName(req.Admin), h); err != nil {
		return rpc.ErrUnavailable.With("%v", err)
	}
	_, err = l.audit.Append(ctx, l.stamped(policy.AuditEntry{Kind: policy.AuditCommand, Actor: req.Actor, Subject: req.Admin, Action: "passphrase.set", Outcome: "ok"}))
	return err
}

// logins counts wrong tries; the file survives restarts.
type logins struct {
	path     string
	bootTime func() time.Duration
	one      sync.Mutex // one hash at a time

	mu    sync.Mutex
	Wrong map[string]int // since the last success
	until map[string]time.Duration
}

const maxWait = 15 * time.Minute

// openLogins reads the counts. A damaged file counts as many wrong tries of everyone: it must not be a way in.
func openLogins(path string, bootTime func() time.Duration) (*logins, error) {
	g := &logins{path: path, bootTime: bootTime, Wrong: map[string]int{}, until: map[string]time.Duration{}}
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("logins: %w", err)
	}
	if err == nil {
		if err := json.Unmarshal(b, &g.Wrong); err != nil || g.Wrong == nil {
			g.Wrong = map[string]int{"": 10}
		}
	}
	now := bootTime()
	for name, n := range g.Wrong {
		g.until[name] = now + waitAfter(n)
	}
	return g, nil
}

func waitAfter(wrong int) time.Duration {
	if wrong <= 0 {
		return 0
	}
	if wrong > 10 {
		return maxWait
	}
	return min(time.Second<<(wrong-1), maxWait)
}

// begin counts the try as wrong, on the disk, or says how long to wait.
func (g *logins) begin(name string) (time.Duration, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.bootTime()
	if left := g.until[name] - now; left > 0 {
		return left, nil
	}
	g.Wrong[name]++
	g.until[name] = now + waitAfter(g.Wrong[name])
	if err := g.save(); err != nil && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return 0, err
	}
	// On a full disk the count lives in memory: somebody must be able to come in and make room.
	return 0, nil
}

func (g *logins) wait(name string) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return max(g.until[name]-g.bootTime(), 0)
}

func (g *logins) succeeded(name string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.Wrong, name)
	delete(g.until, name)
	if err := g.save(); err != nil && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	return nil
}

// save replaces the file; g.mu is held.
func (g *logins) save() error {
	b, err := json.Marshal(g.Wrong)
	if err != nil {
		return err
	}
	tmp := g.path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("logins: %w", err)
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, g.path)
	}
	if err == nil {
		var d *os.File
		if d, err = os.Open(filepath.Dir(g.path)); err == nil {
			err = errors.Join(d.Sync(), d.Close())
		}
	}
	if err != nil {
		return fmt.Errorf("logins: %w", err)
	}
	return nil
}
