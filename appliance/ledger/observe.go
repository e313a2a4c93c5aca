package ledger

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"guardhouse/appliance/policy"
)

const observedFlush = time.Minute

// observations are what the node saw: in memory, written to a database of their own now and then, lost without harm.
type observations struct {
	db   *bolt.DB // nil: memory only
	logs *logStore
	log  func(string, ...any)

	mu    sync.Mutex
	kinds map[policy.ObservationKind]map[string]policy.Observation
	dirty map[observedKey]bool // true: gone
	quiet map[observedKey]bool // evidence of which only the time is newer than on the disk; written at the end
}

type observedKey struct {
	kind    policy.ObservationKind
	subject string
}

// openObservations reads the file; one that is damaged is thrown away.
func openObservations(ctx context.Context, path string, cfg Config) *observations {
	o := &observations{log: cfg.Log, kinds: map[policy.ObservationKind]map[string]policy.Observation{}, dirty: map[observedKey]bool{}, quiet: map[observedKey]bool{}}
	for kind := range policy.ObservedBounds {
		o.kinds[kind] = map[string]policy.Observation{}
	}
	var err error
	if o.logs, err = newLogStore(filepath.Join(filepath.Dir(path), "bootlogs"), bootLogQuota(filepath.Dir(path))); err != nil {
		o.log("boot logs are not kept: %v", err)
	}
	check := cfg.CheckStore
	if check == nil {
		check = func(_ context.Context, path string) error { return CheckStore(path) }
	}
	if err := check(ctx, path); err != nil {
		o.log("observations are begun anew: %v", err)
		os.Remove(path)
	}
	err = guard(func() (err error) {
		if o.db, err = openDB(path); err != nil {
			return err
		}
		return o.db.Update(o.read)
	})
	if err != nil {
		o.log("observations stay in memory: %v", err)
		o.db = nil
	}
	return o
}

func (o *observations) read(tx *bolt.Tx) error {
	for kind := range policy.ObservedBounds {
		b, err := tx.CreateBucketIfNotExists([]byte(kind))
		if err != nil {
			return err
		}
		err = b.ForEach(func(k, v []byte) error {
			var one policy.Observation
			if json.Unmarshal(v, &one) == nil && one.Kind == kind && one.Subject == string(k) {
				o.kinds[kind][one.Subject] = one
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// add takes in what this node saw; Count is how many times more. It touches no disk. Those of unknown kinds or beyond the bounds are
// dropped.
func (o *observations) add(list []policy.Observation) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, one := range list {
		m := o.kinds[one.Kind]
		if m == nil || !one.Fits() {
			continue
		}
		key := observedKey{one.Kind, one.Subject}
		old, ok := m[one.Subject]
		if ok {
			one.Count += min(old.Count, math.MaxUint64-one.Count)
			one = mergeObservations(old, one)
		}
		m[one.Subject] = one
		if ok && o.sameBoot(old, one) {
			if _, waits := o.dirty[key]; !waits {
				o.quiet[key] = true
			}
		} else {
			o.dirty[key] = false
			delete(o.quiet, key)
		}
		if len(m) > policy.ObservedBounds[one.Kind].Count {
			o.evict(one.Kind)
		}
	}
}

// sameBoot reports whether evidence is shown again without news, so that the disk need not hear of it: the same facts, and nothing of the
// host's other kind of evidence in between, whose order counts. After a crash its time is the one when it was news.
func (o *observations) sameBoot(old, now policy.Observation) bool {
	if !slices.Contains(evidenceKinds, now.Kind) || !maps.Equal(old.Facts, now.Facts) {
		return false
	}
	for _, kind := range evidenceKinds {
		if other, ok := o.kinds[kind][now.Subject]; ok && kind != now.Kind && compareStamps(other.Last, old.Last) >= 0 {
			return false
		}
	}
	return true
}

// evict drops the sixteenth whose Last is the oldest, so that it runs rarely.
func (o *observations) evict(kind policy.ObservationKind) {
	m := o.kinds[kind]
	all := slices.SortedFunc(maps.Values(m), func(a, b policy.Observation) int {
		return cmp.Or(compareStamps(a.Last, b.Last), cmp.Compare(a.Subject, b.Subject))
	})
	for _, one := range all[:len(all)/16+1] {
		delete(m, one.Subject)
		o.dirty[observedKey{kind, one.Subject}] = true
		delete(o.quiet, observedKey{kind, one.Subject})
	}
}

// mergeObservations joins two of the same kind and subject: newer Last with its facts, older First, larger Count. The order of merging
// never matters (commutative, associative, idempotent), so nodes can exchange them in any order.
func mergeObservations(a, b policy.Observation) policy.Observation {
	newer := a
	if c := cmp.Or(compareStamps(a.Last, b.Last), cmp.Compare(factsText(a.Facts), factsText(b.Facts))); c < 0 {
		newer = b
	}
	newer.First = older(a.First, b.First)
	newer.Count = max(a.Count, b.Count)
	return newer
}

func factsText(f map[string]string) string {
	b, _ := json.Marshal(f) // sorted by key
	return string(b)
}

// compareStamps is a total order; a stamp from before trusted time is the oldest.
func compareStamps(a, b policy.Stamp) int {
	return cmp.Or(cmp.Compare(a.Latest, b.Latest), cmp.Compare(a.Earliest, b.Earliest), cmp.Compare(a.Boot, b.Boot))
}

// older is the smaller stamp; one without a time says nothing and loses to any other.
func older(a, b policy.Stamp) policy.Stamp {
	if (a.Latest == 0) != (b.Latest == 0) {
		if a.Latest == 0 {
			return b
		}
		return a
	}
	if compareStamps(a, b) <= 0 {
		return a
	}
	return b
}

// list gives at most limit observations of a kind and a subject ("" = all), newest first; 0 = 200.
func (o *observations) list(kind policy.ObservationKind, subject string, limit int) []policy.Observation {
	if limit <= 0 {
		limit = 200
	}
	o.mu.Lock()
	all := []policy.Observation{}
	for k, m := range o.kinds {
		if kind != "" && kind != k {
			continue
		}
		if subject == "" {
			all = slices.AppendSeq(all, maps.Values(m))
		} else if one, ok := m[subject]; ok {
			all = append(all, one)
		}
	}
	o.mu.Unlock()
	slices.SortFunc(all, func(a, b policy.Observation) int {
		return cmp.Or(compareStamps(b.Last, a.Last), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Subject, b.Subject))
	})
	return all[:min(limit, len(all))]
}

// lastOfHost finds what was last seen of a host, by its id.
func (o *observations) lastOfHost() func(id string) (policy.Observation, bool) {
	return func(id string) (policy.Observation, bool) {
		o.mu.Lock()
		defer o.mu.Unlock()
		one, ok := o.kinds[policy.ObservedHost][id]
		return one, ok
	}
}

func (o *observations) run(ctx context.Context) {
	tick := time.NewTicker(observedFlush)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := o.flush(); err != nil {
				o.log("observations: %v", err)
			}
		}
	}
}

func (o *observations) flush() error {
	var err error
	if o.logs != nil {
		if err = o.logs.flush(o.references()); err != nil {
			err = fmt.Errorf("boot logs: %w", err)
		}
	}
	return cmp.Or(o.flushRecords(), err)
}

func (o *observations) flushRecords() error {
	o.mu.Lock()
	dirty := o.dirty
	o.dirty = map[observedKey]bool{}
	put := make(map[observedKey][]byte, len(dirty))
	for k, gone := range dirty {
		if gone {
			continue
		}
		b, err := json.Marshal(o.kinds[k.kind][k.subject])
		if err != nil {
			o.mu.Unlock()
			return fmt.Errorf("encode observation: %w", err)
		}
		put[k] = b
	}
	o.mu.Unlock()
	if len(dirty) == 0 || o.db == nil {
		return nil
	}
	return guard(func() error {
		return o.db.Update(func(tx *bolt.Tx) error {
			for k, gone := range dirty {
				b := tx.Bucket([]byte(k.kind))
				var err error
				if gone {
					err = b.Delete([]byte(k.subject))
				} else {
					err = b.Put([]byte(k.subject), put[k])
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	})
}

func (o *observations) close() error {
	o.mu.Lock()
	for key := range o.quiet {
		o.dirty[key] = false
	}
	clear(o.quiet)
	o.mu.Unlock()
	err := o.flush()
	if o.db != nil {
		if cerr := guard(o.db.Close); err == nil {
			err = cerr
		}
	}
	return err
}
