package ledger

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"runtime/debug"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"guardhouse/appliance/policy"
)

// Buckets of state.db. Records lie one to a key, as JSON; numbers are 8 bytes big-endian.
var (
	bucketMeta    = []byte("meta")    // version, index, service
	bucketLocal   = []byte("local")   // node: this node's id, floor: newest trusted moment; never part of what nodes agree on
	bucketNodes   = []byte("nodes")   // by id
	bucketAdmins  = []byte("admins")  // by name
	bucketHosts   = []byte("hosts")   // by id
	bucketKeys    = []byte("keys")    // by ref
	bucketSigners = []byte("signers") // by thumbprint
	bucketTenants = []byte("tenants") // by name
	bucketDenials = []byte("denials") // by name
	bucketOffline = []byte("offline") // by host class
	bucketPeers   = []byte("peers")   // by name
	bucketResults = []byte("results") // request id -> result
	bucketOrder   = []byte("order")   // index -> request id, to forget the oldest
	bucketMade    = []byte("made")    // ref -> madeHere: the keys that this node had its HSM make; never part of what nodes agree on
	bucketOutbox  = []byte("outbox")  // index -> audit entry that may not be in the chain yet

	bucketBaselines  = []byte("baselines")   // by name
	bucketCIPolicies = []byte("ci-policies") // by name
	bucketDumpKeys   = []byte("dump-keys")   // by name
	bucketPolicySets = []byte("policy-sets") // "class " and the class, which may be empty
	bucketAnchors    = []byte("anchors")     // by thumbprint
	bucketVendorsOff = []byte("vendors-off") // by vendor label

	buckets = [][]byte{bucketMeta, bucketLocal, bucketMade, bucketNodes, bucketAdmins, bucketHosts, bucketKeys, bucketSigners, bucketTenants, bucketDenials, bucketOffline, bucketResults, bucketOrder,
		bucketOutbox, bucketBaselines, bucketCIPolicies, bucketDumpKeys, bucketPolicySets, bucketAnchors, bucketVendorsOff, bucketPeers}

	keyVersion  = []byte("version")
	keyIndex    = []byte("index")
	keyService  = []byte("service")
	keyDraft    = []byte("draft")
	keyUndo     = []byte("undo")
	keyNode     = []byte("node")
	keyFloor    = []byte("floor")
	keyRotation = []byte("rotation")
)

// maxResults is how many request ids are remembered.
const maxResults = 10000

// store is state.db.
type store struct {
	db      *bolt.DB
	results int
}

// stored is the result of a command, kept under its request id.
type stored struct {
	Index   uint64        `json:"index"`
	Digest  []byte        `json:"digest"` // of the command without its time: the same id for another command is refused
	Result  policy.Result `json:"result"`
	Refused string        `json:"refused,omitempty"`
	Audit   []byte        `json:"audit"` // SHA-256 of the audit entry's JSON
}

// outgoing is an audit entry on its way from the store to the chain.
type outgoing struct {
	After uint64            `json:"after"` // newest record of the chain before the commit: the entry can only be behind it
	Entry policy.AuditEntry `json:"entry"`
}

// contents is all that openStore reads.
type contents struct {
	state  policy.State
	index  uint64
	node   string
	floor  int64
	outbox map[uint64]outgoing
}

// guard turns a panic or a memory fault of bbolt, which is how it meets a damaged file, into an error. It can't catch one in another
// goroutine; CheckStore in a child process is for those.
func guard(f func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the database is damaged: %v", r)
		}
	}()
	return f()
}

// CheckStore reads every page of a bbolt file that no process has open. It may crash the process that calls it on a damaged file, so
// cmd/ledger runs it in a child. A missing file is fine.
func CheckStore(path string) error {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	// A sector that gives no data is an error of a read and only a fault of a mapped file.
	f, err := os.Open(path)
	if err == nil {
		_, err = io.Copy(io.Discard, f)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return err
	}
	return guard(func() error {
		db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
		if err != nil {
			return err
		}
		defer db.Close()
		return db.View(func(tx *bolt.Tx) error {
			var all []error
			for err := range tx.Check() {
				if len(all) < 10 {
					all = append(all, err)
				}
			}
			return errors.Join(all...)
		})
	})
}

// CheckInChild gives a Config.CheckStore that runs the program with the arguments and the file's path, and takes any exit but 0 as
// damage. The program calls CheckStore and prints its error.
func CheckInChild(program string, args ...string) func(context.Context, string) error {
	return func(ctx context.Context, path string) error {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, program, append(args, path)...).CombinedOutput()
		if err == nil {
			return nil
		}
		first, _, _ := bytes.Cut(bytes.TrimSpace(out), []byte("\n"))
		return fmt.Errorf("%.300s (%w)", first, err)
	}
}

// ahead starts the checks of all files at once and gives a check that waits for the one that is asked for. Each file is checked once: a
// second question about it, or one about another file, is a new check.
func ahead(ctx context.Context, check func(context.Context, string) error, paths ...string) func(context.Context, string) error {
	results := map[string]chan error{}
	for _, path := range paths {
		done := make(chan error, 1)
		results[path] = done
		go func() { done <- check(ctx, path) }()
	}
	var mu sync.Mutex
	return func(ctx context.Context, path string) error {
		mu.Lock()
		done := results[path]
		delete(results, path)
		mu.Unlock()
		if done == nil {
			return check(ctx, path)
		}
		return <-done
	}
}

func openDB(path string) (*bolt.DB, error) {
	// The free list is rebuilt at open instead of written at each commit: fewer pages to write and none to lose.
	return bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second, NoFreelistSync: true, FreelistType: bolt.FreelistMapType})
}

// openStore opens or makes state.db and reads it.
func openStore(ctx context.Context, path string, check func(context.Context, string) error) (*store, contents, error) {
	c := contents{state: policy.NewState(), outbox: map[uint64]outgoing{}}
	if check == nil {
		check = func(_ context.Context, path string) error { return CheckStore(path) }
	}
	if err := check(ctx, path); err != nil {
		return nil, c, err
	}
	s := &store{}
	err := guard(func() (err error) {
		if s.db, err = openDB(path); err != nil {
			return err
		}
		if err := s.db.Update(makeBuckets); err != nil {
			return err
		}
		return s.db.View(func(tx *bolt.Tx) error {
			s.results = tx.Bucket(bucketResults).Stats().KeyN
			return c.read(tx)
		})
	})
	if err != nil && s.db != nil {
		guard(s.db.Close)
	}
	return s, c, err
}

func makeBuckets(tx *bolt.Tx) error {
	for _, b := range buckets {
		if _, err := tx.CreateBucketIfNotExists(b); err != nil {
			return err
		}
	}
	meta := tx.Bucket(bucketMeta)
	if meta.Get(keyVersion) == nil {
		return meta.Put(keyVersion, number(policy.Version))
	}
	return nil
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func readNumber(b []byte) uint64 {
	if len(b) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

// change is one command's whole effect.
type change struct {
	index     uint64
	old, new  policy.State
	node      string // set by the setup command
	id        string
	result    stored
	audit     outgoing
	delivered []uint64 // outbox entries that are in the chain by now
}

// commit writes a change in one transaction; when it returns nil the change is on the disk.
func (s *store) commit(c change) error {
	return guard(func() error {
		dropped := 0
		err := s.db.Update(func(tx *bolt.Tx) error {
			if err := writeState(tx, c.old, c.new); err != nil {
				return err
			}
			if c.node != "" {
				if err := tx.Bucket(bucketLocal).Put(keyNode, []byte(c.node)); err != nil {
					return err
				}
			}
			for _, i := range c.delivered {
				if err := tx.Bucket(bucketOutbox).Delete(number(i)); err != nil {
					return err
				}
			}
			var err error
			dropped, err = s.writeResult(tx, c)
			return err
		})
		if err == nil {
			s.results += 1 - dropped
		}
		return err
	})
}

func (s *store) writeResult(tx *bolt.Tx, c change) (dropped int, err error) {
	entry, err := json.Marshal(c.audit)
	if err != nil {
		return 0, err
	}
	digest, err := json.Marshal(c.audit.Entry)
	if err != nil {
		return 0, err
	}
	sum := sha256.Sum256(digest)
	c.result.Audit = sum[:]
	result, err := json.Marshal(c.result)
	if err != nil {
		return 0, err
	}
	order := tx.Bucket(bucketOrder)
	if err := errors.Join(
		tx.Bucket(bucketMeta).Put(keyIndex, number(c.index)),
		tx.Bucket(bucketOutbox).Put(number(c.index), entry),
		tx.Bucket(bucketResults).Put([]byte(c.id), result),
		order.Put(number(c.index), []byte(c.id)),
	); err != nil {
		return 0, err
	}
	for s.results+1-dropped > maxResults {
		k, id := order.Cursor().First()
		if k == nil {
			break
		}
		if err := errors.Join(tx.Bucket(bucketResults).Delete(id), order.Delete(k)); err != nil {
			return dropped, err
		}
		dropped++
	}
	return dropped, nil
}

// result finds what became of a request id.
func (s *store) result(id string) (r stored, ok bool, err error) {
	err = guard(func() error {
		return s.db.View(func(tx *bolt.Tx) error {
			b := tx.Bucket(bucketResults).Get([]byte(id))
			if b == nil {
				return nil
			}
			ok = true
			return json.Unmarshal(b, &r)
		})
	})
	return r, ok, err
}

// setFloor keeps the newest moment that is known to be over, in unix milliseconds.
func (s *store) setFloor(at int64) error {
	return guard(func() error {
		return s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketLocal).Put(keyFloor, number(uint64(at))) })
	})
}

// forget removes outbox entries that are in the chain; used at a clean stop.
func (s *store) forget(indexes []uint64) error {
	if len(indexes) == 0 {
		return nil
	}
	return guard(func() error {
		return s.db.Update(func(tx *bolt.Tx) error {
			for _, i := range indexes {
				if err := tx.Bucket(bucketOutbox).Delete(number(i)); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// reread gives what is on the disk, after a commit that failed in a way that leaves that open.
func (s *store) reread() (contents, error) {
	c := contents{state: policy.NewState(), outbox: map[uint64]outgoing{}}
	err := guard(func() error { return s.db.View(c.read) })
	return c, err
}

// alive is the self-check: one read of the store.
func (s *store) alive() error {
	return guard(func() error {
		return s.db.View(func(tx *bolt.Tx) error { tx.Bucket(bucketMeta).Get(keyIndex); return nil })
	})
}
