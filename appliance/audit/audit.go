// Package audit keeps the node's own record of what it granted, refused and was told to do: a chain of hashes in files that a
// workstation can check without the node.
//
// Promise. Append returns only when the entry is on the disk (one fsync serves all who wait) and gives it a number and a hash that
// covers the entry, its number and the record before it. A record that was changed, removed, moved or cut off is found by [Verify]
// (offline, from an export file) and by [Log.Check] (on the node). After a power cut the chain ends with the last record that anybody
// was told of, or later. A flood of refusals never keeps a grant out, and a full quota never keeps an administrator's entry out:
// each kind has its share of the space. What is wrong is a named problem with a remedy that works from the console.
//
// Files in the folder, one chain over all of them: SEQ.jsonl segments (20 digits, the number of their first record), head.json (the
// newest signed checkpoint), base.json (what was trimmed, signed), exported.json, broken.json, reserve (space given back when the disk
// is full). Export format: see [Verify].
//
// Limits. A node that is taken over can write what it likes from then on; records before the newest checkpoint that left the machine
// stay provable. Damage to the newest batch of records, after it was acknowledged and before the next checkpoint, looks like a power
// cut and is cut off. Whoever can use the node's audit key can make another chain; it lies in the TPM, so that is
// the running node only.
package audit

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"guardhouse/appliance/policy"
)

// Kinds of problems and errors.
const (
	KindFull   = "audit-full"   // the space for this kind of entry is used up
	KindMuch   = "audit-much"   // three quarters of the space for grants are used
	KindBroken = "audit-broken" // a record before the end can't be trusted
	KindDisk   = "audit-disk"   // the disk refused a write or a flush
	KindKey    = "audit-key"    // there is no audit key, or a signature does not fit it
)

// Error says why the audit can't do something and what would help.
type Error struct{ policy.Problem }

func (e *Error) Error() string { return e.What + "; " + e.Remedy }

func problem(kind, remedy, format string, args ...any) *Error {
	return &Error{policy.Problem{Kind: kind, What: fmt.Sprintf(format, args...), Remedy: remedy}}
}

const (
	trimRemedy = "run audit export, then audit trim"
	diskRemedy = "check the data disk; reboot the node, and replace the disk if it comes again"
)

// ErrClosed is what appenders get after Close.
var ErrClosed = errors.New("the audit is closed")

// Options are sizes in bytes; zero takes the default.
type Options struct {
	Quota       int64 // all segments together; 256 MiB
	Reserve     int64 // part of Quota that only commands, accepted logins and system entries may use; Quota/16
	SegmentSize int64 // a segment that reached it is closed; 4 MiB
	// Stamp is the time now and CLOCK_BOOTTIME, for the entries that the chain makes itself; nil = they have none.
	Stamp func() (policy.Stamp, time.Duration)

	write func(f *os.File, b []byte, off int64) (int, error) // tests put a full disk here
}

func (o *Options) defaults() {
	if o.Quota == 0 {
		o.Quota = 256 << 20
	}
	if o.Reserve == 0 {
		o.Reserve = o.Quota / 16
	}
	if o.SegmentSize == 0 {
		o.SegmentSize = min(4<<20, max(o.Quota/8, 64<<10))
	}
	if o.write == nil {
		o.write = func(f *os.File, b []byte, off int64) (int, error) { return f.WriteAt(b, off) }
	}
}

// Receipt is policy.AuditReceipt: an entry's number and hash.
type Receipt = policy.AuditReceipt

// Record is an entry in its place. Hashes are lower-case hex SHA-256.
type Record struct {
	Seq   uint64
	Prev  string
	Hash  string
	Entry policy.AuditEntry
}

// Log is one node's chain. Safe for concurrent use.
type Log struct {
	dir string
	opt Options

	wmu  sync.Mutex // held by whoever changes files: the committer, Trim, Check's quarantine
	cur  *os.File   // the open segment
	emu  sync.Mutex // an export and a trim exclude each other
	wake chan struct{}
	done chan struct{}

	mu       sync.Mutex // guards all below; never held over I/O
	queue    []*waiting
	closed   bool
	segments []segment // in order; the last one is open
	last     uint64    // number of the newest durable record
	hash     string    // its hash
	bytes    int64     // all segments
	base     *base
	head     *Checkpoint
	exported uint64            // all records up to here have left in an export
	broken   map[uint64]string // first record of a segment -> what is wrong with it
	failed   *Error            // the disk failed: nothing more until the next start
	node     string
	signer   crypto.Signer
	key      PublicKey     // signer's
	more     chan struct{} // closed and replaced when the chain has grown
}

type waiting struct {
	kind   policy.AuditKind // whose share of the space it uses
	entry  []byte
	forced bool // Trim's own entry: no quota
	reply  chan answer
}

type answer struct {
	Receipt
	err error
}

// SetNode gives the log the name and the key of the node (see [PublicKey]); until then nothing can be signed, exported or trimmed. It
// proves the checkpoints found on the disk: one that neither key nor any of former signed, keys that the node had before, is a named
// problem. Where a former key signed the newest one, key signs it anew with the next checkpoint.
func (l *Log) SetNode(id string, key crypto.Signer, former ...PublicKey) error {
	pub, err := EncodeKey(key.Public())
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.node, l.signer, l.key = id, key, pub
	good := append([]PublicKey{pub}, former...)
	if l.head != nil && !l.head.signedBy(id, good...) {
		l.broken[0] = "the newest checkpoint on the disk is not signed by this node's audit key"
	}
	if l.base != nil && !l.base.Checkpoint.signedBy(id, good...) {
		l.broken[0] = "the note of what was trimmed is not signed by this node's audit key"
	}
	return nil
}

// Append puts the entry at the end of the chain and returns when it is on the disk. An *Error says why it was not taken. When ctx ends
// first, the entry may or may not be recorded.
func (l *Log) Append(ctx context.Context, e policy.AuditEntry) (Receipt, error) {
	return l.append(ctx, e, false)
}

func (l *Log) append(ctx context.Context, e policy.AuditEntry, forced bool) (Receipt, error) {
	b, err := encodeEntry(e)
	if err != nil {
		return Receipt{}, err
	}
	w := &waiting{kind: share(e), entry: b, forced: forced, reply: make(chan answer, 1)}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return Receipt{}, ErrClosed
	}
	l.queue = append(l.queue, w)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
	select {
	case a := <-w.reply:
		return a.Receipt, a.err
	case <-ctx.Done():
		return Receipt{}, ctx.Err()
	}
}

// Admits tells whether an entry of this kind would be taken now. A caller that changes state before it appends asks first.
func (l *Log) Admits(kind policy.AuditKind) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.admit(kind, 4096); err != nil {
		return err
	}
	return nil
}

// share is the kind whose space an entry uses. A refused login is a stranger's doing, so it must not fill what is kept for those who get
// in: it counts like a refusal of an unknown caller.
func share(e policy.AuditEntry) policy.AuditKind {
	if e.Kind == policy.AuditLogin && e.Outcome != "ok" {
		return policy.AuditUnknown
	}
	return e.Kind
}

// privileged kinds may use the reserve and are taken even when the chain is broken: they are how it is cured.
func privileged(kind policy.AuditKind) bool {
	switch kind {
	case policy.AuditCommand, policy.AuditLogin, policy.AuditSystem, policy.AuditContinue:
		return true
	}
	return false
}

// admit decides with l.mu held. more is what would be added.
func (l *Log) admit(kind policy.AuditKind, more int64) *Error {
	if l.failed != nil {
		return l.failed
	}
	if len(l.broken) > 0 && !privileged(kind) {
		return l.brokenError()
	}
	limit := l.opt.Quota - l.opt.Reserve
	switch {
	case privileged(kind):
		limit = l.opt.Quota
	case kind == policy.AuditUnknown:
		limit = l.opt.Quota / 2
	}
	if l.bytes+more > limit {
		return problem(KindFull, trimRemedy, "the audit holds %d KiB and its space for %q entries (%d KiB) is used up", l.bytes>>10, kind, limit>>10)
	}
	return nil
}

// Status is the log's size and health. Problem is nil where all is well.
type Status struct {
	First, Last  uint64 // numbers of the oldest and newest record kept; 0 = none
	Hash         string
	Segments     int
	Bytes, Quota int64
	Exported     uint64
	Problem      *policy.Problem
}

// Status never waits for the disk.
func (l *Log) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Status{Last: l.last, Hash: l.hash, Segments: len(l.segments), Bytes: l.bytes, Quota: l.opt.Quota, Exported: l.exported}
	if len(l.segments) > 0 {
		s.First = l.segments[0].first
	}
	for _, kind := range []policy.AuditKind{policy.AuditGrant, policy.AuditCommand} {
		if err := l.admit(kind, 4096); err != nil {
			p := err.Problem
			s.Problem = &p
		}
	}
	if room := l.opt.Quota - l.opt.Reserve; s.Problem == nil && l.bytes > room/4*3 {
		s.Problem = &policy.Problem{Kind: KindMuch, Remedy: trimRemedy,
			What: fmt.Sprintf("the audit uses %d of %d KiB; once it is full, no host gets anything", l.bytes>>10, room>>10)}
	}
	return s
}

// Close waits for the queue, signs a checkpoint over everything and closes the files.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	l.mu.Unlock()
	close(l.wake)
	<-l.done
	l.wmu.Lock()
	defer l.wmu.Unlock()
	err := l.checkpoint()
	if l.cur != nil {
		err = errors.Join(err, l.cur.Close())
	}
	return err
}
