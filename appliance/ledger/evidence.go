package ledger

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"guardhouse/appliance/disk"
	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// logStore keeps the boot logs of the hosts' last good and last bad boots, so that what was judged can be proved again. What a log proved
// is in the observation that refers to it by digest; a log that no observation refers to goes.
//
// A log is a file of its own, named by the SHA-256 of the log and compressed; it is written whole under another name first, and each
// reading of it is checked against its name. Like the observations, logs lie in memory until the next flush: a crash loses the last minute
// of them, and a log that is lost or damaged comes again with the next attestation that shows it. The bytes of a log are never looked into
// here: this process has the node's secrets.
//
// What is written is bounded: one file for each new boot of a host and kind, however often it is shown; a host that shows ever new logs
// replaces its own before they are written; and all hosts together write at most maxLogsPerFlush bytes a minute. What is more is not kept
// now: the face offers it again.
type logStore struct {
	dir   string
	limit int64 // bytes of all files
	pack  *zstd.Encoder
	open  *zstd.Decoder

	mu      sync.Mutex
	files   map[string]int64 // size by digest; nil until the folder was read
	waiting map[observedKey]waitingLog
	bytes   int64 // of waiting
}

// waitingLog is a compressed log that no file holds yet.
type waitingLog struct {
	digest string
	packed []byte
}

const (
	maxLogs         = 13 << 10  // files: those of all observations
	maxLogBytes     = 256 << 20 // of all files, on a disk that is eight times as large
	maxLogsPerFlush = 8 << 20   // in memory and on their way to the disk
	logSuffix       = ".zst"
)

// bootLogQuota is an eighth of the data disk, at most maxLogBytes.
func bootLogQuota(dir string) int64 {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return maxLogsPerFlush
	}
	return min(maxLogBytes, int64(st.Blocks)*st.Bsize/8)
}

func newLogStore(dir string, limit int64) (*logStore, error) {
	pack, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(1<<20))
	if err != nil {
		return nil, fmt.Errorf("store of boot logs: %w", err)
	}
	open, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(2*evidence.MaxLog))
	if err != nil {
		return nil, fmt.Errorf("store of boot logs: %w", err)
	}
	return &logStore{dir: dir, limit: limit, pack: pack, open: open, waiting: map[observedKey]waitingLog{}}, nil
}

// load reads the folder once; mu is held. It takes no part in the node's start.
func (s *logStore) load() {
	if s.files != nil {
		return
	}
	s.files = map[string]int64{}
	if os.MkdirAll(s.dir, 0o700) != nil {
		return // writing will tell
	}
	entries, _ := os.ReadDir(s.dir)
	for _, e := range entries {
		digest, ok := strings.CutSuffix(e.Name(), logSuffix)
		info, err := e.Info()
		if !ok || !isDigest(digest) || err != nil || info.Size() == 0 || !info.Mode().IsRegular() {
			os.RemoveAll(filepath.Join(s.dir, e.Name()))
			continue
		}
		s.files[digest] = info.Size()
	}
}

func isDigest(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == sha256.Size && s == strings.ToLower(s)
}

func (s *logStore) path(digest string) string { return filepath.Join(s.dir, digest+logSuffix) }

// keep takes a log for a host's last boot of a kind. have is whether it is there already, or now; with an empty log it only asks.
func (s *logStore) keep(key observedKey, digest string, log []byte) (have bool, err error) {
	var packed []byte
	if len(log) > 0 {
		sum := sha256.Sum256(log)
		if len(log) > evidence.MaxLog || hex.EncodeToString(sum[:]) != digest {
			return false, rpc.ErrRefused.With("this is not the log that it is said to be")
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.load()
	if s.has(digest) {
		return true, nil
	}
	if len(log) == 0 {
		return false, nil
	}
	packed = s.pack.EncodeAll(log, nil)
	old := int64(len(s.waiting[key].packed))
	if s.bytes-old+int64(len(packed)) > maxLogsPerFlush {
		return false, nil
	}
	s.bytes += int64(len(packed)) - old
	s.waiting[key] = waitingLog{digest, packed}
	return true, nil
}

func (s *logStore) has(digest string) bool {
	if _, ok := s.files[digest]; ok {
		return true
	}
	for _, w := range s.waiting {
		if w.digest == digest {
			return true
		}
	}
	return false
}

// get gives a log, ErrUnavailable if it is not there. One that is damaged is removed, so that it is taken again.
func (s *logStore) get(digest string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.load()
	packed, err := s.packed(digest)
	if err != nil {
		return nil, err
	}
	log, err := s.open.DecodeAll(packed, nil)
	sum := sha256.Sum256(log)
	if err != nil || hex.EncodeToString(sum[:]) != digest {
		s.remove(digest)
		return nil, rpc.ErrUnavailable.With("the boot log %.16s was damaged on the disk and is removed; it comes again when the host attests", digest)
	}
	return log, nil
}

func (s *logStore) packed(digest string) ([]byte, error) {
	for _, w := range s.waiting {
		if w.digest == digest {
			return w.packed, nil
		}
	}
	missing := rpc.ErrUnavailable.With("the boot log %.16s is not kept here; it comes again when the host attests", digest)
	size, ok := s.files[digest]
	if !ok {
		return nil, missing
	}
	b, err := os.ReadFile(s.path(digest))
	if err != nil || int64(len(b)) != size {
		s.remove(digest)
		return nil, missing
	}
	return b, nil
}

func (s *logStore) remove(digest string) {
	os.Remove(s.path(digest))
	delete(s.files, digest)
}

// reference is an observation that names a log.
type reference struct {
	digest string
	last   policy.Stamp
}

// flush writes what waits and is still referred to, and removes what is not, the oldest first where there is too much. What can't be
// written is lost and comes again; the error is the first of those. One caller at a time; nobody waits for the disk meanwhile.
func (s *logStore) flush(references []reference) error {
	slices.SortStableFunc(references, func(a, b reference) int { return compareStamps(b.last, a.last) }) // the newest first
	wanted := map[string]bool{}
	for _, r := range references {
		wanted[r.digest] = true
	}
	s.mu.Lock()
	s.load()
	for digest := range s.files {
		if !wanted[digest] {
			s.remove(digest)
		}
	}
	write := maps.Clone(s.waiting)
	s.mu.Unlock()
	var failed error
	written := map[string]int64{}
	for _, w := range write {
		if _, ok := written[w.digest]; ok || !wanted[w.digest] {
			continue
		}
		if err := disk.ReplaceFile(s.path(w.digest), w.packed); err != nil {
			failed = cmp.Or(failed, err)
			continue
		}
		written[w.digest] = int64(len(w.packed))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.Copy(s.files, written)
	for key, w := range write {
		if s.waiting[key].digest == w.digest {
			s.bytes -= int64(len(w.packed))
			delete(s.waiting, key)
		}
	}
	s.trim(references)
	return failed
}

// trim removes the logs of the oldest observations until the rest is within bounds. references come newest first.
func (s *logStore) trim(references []reference) {
	var total int64
	kept := 0
	seen := map[string]bool{}
	for _, r := range references {
		size, ok := s.files[r.digest]
		if !ok || seen[r.digest] {
			continue
		}
		seen[r.digest] = true
		if kept == maxLogs || total+size > s.limit {
			s.remove(r.digest)
			continue
		}
		kept++
		total += size
	}
}

// KeepLog takes a host's boot log, if an observation names it: nothing else can make this node write files.
func (l *Ledger) KeepLog(req rpc.KeepLogRequest) (rpc.KeepLogReply, error) {
	kind, ok := l.observed.names(req.Host, req.Digest)
	if !ok {
		return rpc.KeepLogReply{}, rpc.ErrRefused.With("no observation of this host names this log")
	}
	if l.observed.logs == nil {
		return rpc.KeepLogReply{}, rpc.ErrUnavailable.With("boot logs are not kept; see log show ledger")
	}
	have, err := l.observed.logs.keep(observedKey{kind, req.Host}, req.Digest, req.Log)
	return rpc.KeepLogReply{Have: have}, err
}

// names is the kind of evidence of the host that names the log.
func (o *observations) names(host, digest string) (policy.ObservationKind, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, kind := range evidenceKinds {
		if one, ok := o.kinds[kind][host]; ok && isDigest(digest) && one.Facts["log"] == digest {
			return kind, true
		}
	}
	return "", false
}

// evidenceKinds are the observations that refer to a log.
var evidenceKinds = []policy.ObservationKind{policy.ObservedGood, policy.ObservedFindings}

// references are all logs that observations name.
func (o *observations) references() (list []reference) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, kind := range evidenceKinds {
		for _, one := range o.kinds[kind] {
			if digest := one.Facts["log"]; digest != "" {
				list = append(list, reference{digest, one.Last})
			}
		}
	}
	return list
}

// evidencePage bounds one reply of Evidence.
const evidencePage = 256

// evidence gives the newest evidence of each host, in the order of host ids, of those after one; both is whether also the older of a
// host's good and bad boot is given.
func (o *observations) evidence(after string, limit int, both bool) []policy.Observation {
	if limit <= 0 || limit > evidencePage {
		limit = evidencePage
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	ids := map[string]bool{}
	for _, kind := range evidenceKinds {
		for id := range o.kinds[kind] {
			if id > after {
				ids[id] = true
			}
		}
	}
	sorted := make([]string, 0, len(ids))
	for id := range ids {
		sorted = append(sorted, id)
	}
	slices.Sort(sorted)
	list := []policy.Observation{}
	for _, id := range sorted[:min(limit, len(sorted))] {
		good, ok := o.kinds[policy.ObservedGood][id]
		bad, failed := o.kinds[policy.ObservedFindings][id]
		newerGood := ok && (!failed || compareStamps(good.Last, bad.Last) >= 0)
		if ok && (both || newerGood) {
			list = append(list, good)
		}
		if failed && (both || !newerGood) {
			list = append(list, bad)
		}
	}
	return list
}

// registerEvidence puts the methods of the evidence on the server.
func (l *Ledger) registerEvidence(s *rpc.Server) {
	rpc.Handle(s, rpc.LedgerKeepLog, func(_ context.Context, _ rpc.Caller, req rpc.KeepLogRequest) (rpc.KeepLogReply, error) {
		return l.KeepLog(req)
	}, rpc.HGS)
	rpc.Handle(s, rpc.LedgerEvidence, func(_ context.Context, _ rpc.Caller, req rpc.EvidenceRequest) ([]policy.Observation, error) {
		return l.observed.evidence(req.After, req.Limit, req.Both), nil
	}, rpc.Console)
	rpc.Handle(s, rpc.LedgerBootLog, func(_ context.Context, _ rpc.Caller, req rpc.BootLogRequest) (rpc.BootLogReply, error) {
		if !isDigest(req.Digest) {
			return rpc.BootLogReply{}, rpc.ErrRefused.With("a boot log is named by its SHA-256")
		}
		if l.observed.logs == nil {
			return rpc.BootLogReply{}, rpc.ErrUnavailable.With("boot logs are not kept; see log show ledger")
		}
		log, err := l.observed.logs.get(req.Digest)
		return rpc.BootLogReply{Log: log}, err
	}, rpc.Console)
}
