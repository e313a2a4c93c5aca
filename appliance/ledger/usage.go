package ledger

import (
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"slices"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// Bounds of the record of use: key protectors beyond which the longest unseen sixteenth goes, versions made from one and the same version,
// and keys.
const (
	maxProtectors = 50000
	maxSiblings   = 64
	maxUsedKeys   = 4 * policy.MaxKeys
	usageFlush    = time.Second
)

var (
	bucketProtectors = []byte("use-protectors") // mark of the newest version -> rpc.ProtectorUsage
	bucketUsedKeys   = []byte("use-keys")       // key ref -> keyTotal
)

// keyTotal is how often a key was used, by all key protectors.
type keyTotal struct {
	Rolls uint64       `json:"rolls"`
	First policy.Stamp `json:"first"`
	Last  policy.Stamp `json:"last"`
}

// usage remembers which key protectors were last seen on which key.
//
// What counts. Each roll replaces a version by the next one: where the version that came is the newest one on record, its record moves on,
// also to another key of ours and over grants and revokes of its owner, which leave the transport key alone. Any other version begins a
// record: one that was never seen, a restored copy, and a second machine from the same shielding data. So a machine may count more than
// once, until the older record is out of the window, but never less than once: a key looks more used than it is, not less.
//
// It is written to the disk once a second: a crash loses the last second, which the audit still holds. Beyond the bounds the longest unseen
// is forgotten. Node-local: each node knows what it rolled itself.
type usage struct {
	db *bolt.DB // that of the observations; nil: memory only

	mu         sync.Mutex
	protectors map[string]rpc.ProtectorUsage // by mark of the newest version
	from       map[string][]string           // mark of the version that came -> newest ones, oldest first
	keys       map[policy.KeyRef]keyTotal
	dirty      map[string]bool // of protectors and keys ("key:" + ref); true: gone
}

func openUsage(db *bolt.DB, log func(string, ...any)) *usage {
	u := &usage{db: db, protectors: map[string]rpc.ProtectorUsage{}, from: map[string][]string{}, keys: map[policy.KeyRef]keyTotal{}, dirty: map[string]bool{}}
	if db == nil {
		return u
	}
	if err := guard(func() error { return db.Update(u.read) }); err != nil {
		log("the record of the use of keys stays in memory: %v", err)
		u.db = nil
	}
	return u
}

func (u *usage) read(tx *bolt.Tx) error {
	protectors, err := tx.CreateBucketIfNotExists(bucketProtectors)
	if err != nil {
		return err
	}
	keys, err := tx.CreateBucketIfNotExists(bucketUsedKeys)
	if err != nil {
		return err
	}
	err = protectors.ForEach(func(k, v []byte) error {
		var one rpc.ProtectorUsage
		if json.Unmarshal(v, &one) == nil && one.Valid() && one.Next == string(k) {
			u.protectors[one.Next] = one
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, one := range slices.SortedFunc(maps.Values(u.protectors), byLast) {
		u.from[one.Mark] = append(u.from[one.Mark], one.Next)
	}
	return keys.ForEach(func(k, v []byte) error {
		var one keyTotal
		if json.Unmarshal(v, &one) == nil {
			u.keys[policy.KeyRef(k)] = one
		}
		return nil
	})
}

// byLast sorts the longest unseen first.
func byLast(a, b rpc.ProtectorUsage) int {
	return cmp.Or(compareStamps(a.At, b.At), cmp.Compare(a.Next, b.Next))
}

// add notes one use; it touches no disk. What is malformed, or names keys that are not on record, is dropped.
func (u *usage) add(one policy.ProtectorUse, recorded map[policy.KeyRef]policy.Key) {
	if !one.Valid() || recorded[one.Encryption].Role != policy.RoleEncryption || recorded[one.Signing].Role != policy.RoleSigning {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	now := rpc.ProtectorUsage{ProtectorUse: one, First: one.At, Rolls: 1}
	if before, ok := u.protectors[one.Mark]; ok {
		now.First, now.Rolls = before.First, before.Rolls+1
		u.forget(before)
	} else if siblings := u.from[one.Mark]; len(siblings) >= maxSiblings {
		u.forget(u.protectors[siblings[0]])
	}
	if same, ok := u.protectors[one.Next]; ok { // a replay of the message itself
		u.forget(same)
	}
	u.protectors[one.Next] = now
	u.from[one.Mark] = append(u.from[one.Mark], one.Next)
	u.dirty[one.Next] = false
	for _, ref := range []policy.KeyRef{one.Encryption, one.Signing} {
		t, ok := u.keys[ref]
		if !ok {
			t.First = one.At
		}
		t.Rolls, t.Last = t.Rolls+1, one.At
		u.keys[ref] = t
		u.dirty["key:"+string(ref)] = false
	}
	u.bound()
}

// forget removes a record; u.mu is held.
func (u *usage) forget(one rpc.ProtectorUsage) {
	delete(u.protectors, one.Next)
	u.dirty[one.Next] = true
	rest := slices.DeleteFunc(u.from[one.Mark], func(next string) bool { return next == one.Next })
	if u.from[one.Mark] = rest; len(rest) == 0 {
		delete(u.from, one.Mark)
	}
}

// bound drops what was not seen for longest; u.mu is held.
func (u *usage) bound() {
	if len(u.protectors) > maxProtectors {
		all := slices.SortedFunc(maps.Values(u.protectors), byLast)
		for _, one := range all[:len(all)/16+1] {
			u.forget(one)
		}
	}
	for len(u.keys) > maxUsedKeys {
		var oldest policy.KeyRef
		for ref, t := range u.keys {
			if o, ok := u.keys[oldest]; !ok || compareStamps(t.Last, o.Last) < 0 {
				oldest = ref
			}
		}
		delete(u.keys, oldest)
		u.dirty["key:"+string(oldest)] = true
	}
}

// report answers a UsageRequest. Without a trusted time everything is recent.
func (u *usage) report(req rpc.UsageRequest, earliest time.Time, timed bool) rpc.UsageReply {
	days, limit := req.Days, req.Limit
	if days <= 0 {
		days = rpc.DefaultUsageDays
	}
	if limit <= 0 {
		limit = 200
	}
	limit = min(limit, 5000)
	begin := earliest.Add(-time.Duration(min(days, 36500)) * 24 * time.Hour).UnixMilli()
	r := rpc.UsageReply{Days: days, Keys: []rpc.KeyUsage{}}
	u.mu.Lock()
	byKey := make(map[policy.KeyRef]*rpc.KeyUsage, len(u.keys))
	for ref, t := range u.keys {
		byKey[ref] = &rpc.KeyUsage{Ref: ref, Rolls: t.Rolls, First: t.First, Last: t.Last}
	}
	for _, one := range u.protectors {
		recent := !timed || one.At.Latest == 0 || one.At.Latest >= begin
		for _, ref := range []policy.KeyRef{one.Encryption, one.Signing} {
			if k := byKey[ref]; k != nil {
				k.Protectors++
				if recent {
					k.Recent++
				}
			}
		}
		if slices.Contains(req.Keys, one.Encryption) || slices.Contains(req.Keys, one.Signing) {
			r.Protectors = append(r.Protectors, one)
			r.Total++
			if recent {
				r.Recent++
			}
		}
	}
	u.mu.Unlock()
	for _, k := range byKey {
		r.Keys = append(r.Keys, *k)
	}
	slices.SortFunc(r.Keys, func(a, b rpc.KeyUsage) int { return cmp.Compare(a.Ref, b.Ref) })
	slices.SortFunc(r.Protectors, func(a, b rpc.ProtectorUsage) int { return byLast(b, a) })
	if len(r.Protectors) > 0 {
		r.Newest = r.Protectors[0].At
	}
	r.Protectors = r.Protectors[:min(limit, len(r.Protectors))]
	return r
}

func (u *usage) run(ctx context.Context, log func(string, ...any)) {
	tick := time.NewTicker(usageFlush)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := u.flush(); err != nil {
				log("the record of the use of keys: %v", err)
			}
		}
	}
}

// flush writes what changed; what can't be written is tried again with the next change of the same record.
func (u *usage) flush() error {
	u.mu.Lock()
	if len(u.dirty) == 0 || u.db == nil {
		u.mu.Unlock()
		return nil
	}
	dirty := u.dirty
	u.dirty = map[string]bool{}
	put := make(map[string][]byte, len(dirty))
	for id, gone := range dirty {
		if gone {
			continue
		}
		if ref, isKey := usedKey(id); isKey {
			put[id], _ = json.Marshal(u.keys[ref]) // numbers and text only
		} else {
			put[id], _ = json.Marshal(u.protectors[id])
		}
	}
	u.mu.Unlock()
	return guard(func() error {
		return u.db.Update(func(tx *bolt.Tx) error {
			for id, gone := range dirty {
				b, name := tx.Bucket(bucketProtectors), []byte(id)
				if ref, isKey := usedKey(id); isKey {
					b, name = tx.Bucket(bucketUsedKeys), []byte(ref)
				}
				var err error
				if gone {
					err = b.Delete(name)
				} else {
					err = b.Put(name, put[id])
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	})
}

func usedKey(id string) (policy.KeyRef, bool) {
	const mark = "key:"
	if len(id) > len(mark) && id[:len(mark)] == mark {
		return policy.KeyRef(id[len(mark):]), true
	}
	return "", false
}

// Usage tells how keys are used.
func (l *Ledger) Usage(req rpc.UsageRequest) rpc.UsageReply {
	earliest, _, ok := l.cfg.Time().At(l.cfg.BootTime())
	return l.used.report(req, earliest, ok)
}

func (l *Ledger) registerUsage(s *rpc.Server) {
	rpc.Handle(s, rpc.LedgerUsed, func(_ context.Context, _ rpc.Caller, one policy.ProtectorUse) (rpc.Empty, error) {
		snap, _ := l.Snapshot()
		l.used.add(one, snap.State.Keys)
		return rpc.Empty{}, nil
	}, rpc.HGS)
	rpc.Handle(s, rpc.LedgerUsage, func(_ context.Context, _ rpc.Caller, req rpc.UsageRequest) (rpc.UsageReply, error) {
		return l.Usage(req), nil
	}, rpc.Console)
}
