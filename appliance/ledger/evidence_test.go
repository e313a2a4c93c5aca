package ledger

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"testing"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// keeper is a ledger that does nothing but keep evidence.
func keeper(t *testing.T, dir string) *Ledger {
	t.Helper()
	cfg := Config{Log: func(string, ...any) {}, CheckStore: CheckInChild(os.Args[0], "--check-store")}
	o := openObservations(t.Context(), filepath.Join(dir, "observed.db"), cfg)
	t.Cleanup(func() { o.db.Close() })
	return &Ledger{observed: o}
}

func digestOf(log []byte) string {
	sum := sha256.Sum256(log)
	return hex.EncodeToString(sum[:])
}

func bootLog(seed int64, size int) []byte {
	log := make([]byte, size)
	rand.New(rand.NewSource(seed)).Read(log)
	return log
}

// boots notes that a host showed a log, and offers it.
func (l *Ledger) boots(t *testing.T, kind policy.ObservationKind, host string, at int64, log []byte) bool {
	t.Helper()
	digest := digestOf(log)
	l.observed.add([]policy.Observation{{Kind: kind, Subject: host, Last: policy.Stamp{Latest: at}, Count: 1, Facts: map[string]string{"log": digest, "verdict": "{}"}}})
	r, err := l.KeepLog(rpc.KeepLogRequest{Host: host, Digest: digest})
	if err != nil {
		t.Fatal(err)
	}
	if r.Have {
		return true
	}
	if r, err = l.KeepLog(rpc.KeepLogRequest{Host: host, Digest: digest, Log: log}); err != nil {
		t.Fatal(err)
	}
	return r.Have
}

func written(t *testing.T, dir string) map[string]os.FileInfo {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "bootlogs"))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]os.FileInfo{}
	for _, e := range entries {
		if files[e.Name()], err = e.Info(); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

func TestBootLogsAreKeptOnceAndGoWithTheirObservation(t *testing.T) {
	dir := t.TempDir()
	l := keeper(t, dir)
	log, other := bytes.Repeat([]byte("a real log repeats itself. "), 2000), bootLog(2, 9000)
	for i := range 20 { // one image, many hosts
		if !l.boots(t, policy.ObservedGood, fmt.Sprint("host", i), 1, log) {
			t.Fatal("not kept")
		}
	}
	if !l.boots(t, policy.ObservedFindings, "host3", 2, other) {
		t.Fatal("not kept")
	}
	for _, want := range [][]byte{log, other} { // before it is on the disk
		if got, err := l.observed.logs.get(digestOf(want)); err != nil || !bytes.Equal(got, want) {
			t.Fatal(err)
		}
	}
	if err := l.observed.flush(); err != nil {
		t.Fatal(err)
	}
	files := written(t, dir)
	if len(files) != 2 || files[digestOf(log)+logSuffix].Size() > 1000 {
		t.Fatalf("%d files: %v", len(files), files)
	}
	if err := l.observed.close(); err != nil {
		t.Fatal(err)
	}
	l = keeper(t, dir)
	if got, err := l.observed.logs.get(digestOf(other)); err != nil || !bytes.Equal(got, other) {
		t.Fatal("after a restart:", err)
	}
	l.boots(t, policy.ObservedFindings, "host3", 3, log) // now nothing refers to the other
	if err := l.observed.flush(); err != nil {
		t.Fatal(err)
	}
	if files := written(t, dir); len(files) != 1 {
		t.Fatalf("%d files are left", len(files))
	}
	if _, err := l.observed.logs.get(digestOf(other)); !errors.Is(err, rpc.ErrUnavailable) {
		t.Fatal(err)
	}
}

// TestTheSameBootAgainWritesNothing: neither the log nor the observation; the end of the process writes when it was last seen.
func TestTheSameBootAgainWritesNothing(t *testing.T) {
	dir := t.TempDir()
	l := keeper(t, dir)
	log := bootLog(1, 5000)
	l.boots(t, policy.ObservedGood, "host", 1, log)
	if err := l.observed.flush(); err != nil {
		t.Fatal(err)
	}
	before := written(t, dir)
	stats := l.observed.db.Stats()
	pages := stats.TxStats.GetWrite()
	for at := range int64(50) {
		l.boots(t, policy.ObservedGood, "host", 2+at, log)
		if err := l.observed.flush(); err != nil {
			t.Fatal(err)
		}
	}
	if stats = l.observed.db.Stats(); stats.TxStats.GetWrite() != pages {
		t.Errorf("%d writes of the database", stats.TxStats.GetWrite()-pages)
	}
	name := digestOf(log) + logSuffix
	if now := written(t, dir); len(now) != 1 || !os.SameFile(before[name], now[name]) {
		t.Errorf("the file was written again: %v", now)
	}
	// After a failure the same good boot is news: which of them is newer decides what can be adopted.
	l.boots(t, policy.ObservedFindings, "host", 100, bootLog(3, 5000))
	l.boots(t, policy.ObservedGood, "host", 101, log)
	if len(l.observed.dirty) != 2 {
		t.Errorf("%d observations wait for the disk", len(l.observed.dirty))
	}
	l.boots(t, policy.ObservedGood, "host", 200, log)
	if err := l.observed.close(); err != nil {
		t.Fatal(err)
	}
	l = keeper(t, dir)
	if got := l.observed.evidence("", 0, false); len(got) != 1 || got[0].Kind != policy.ObservedGood || got[0].Last.Latest != 200 {
		t.Errorf("%+v", got)
	}
	l.boots(t, policy.ObservedGood, "host", 300, log)
	if err := l.observed.close(); err != nil {
		t.Fatal(err)
	}
	if got := keeper(t, dir).observed.evidence("", 0, false); len(got) != 1 || got[0].Last.Latest != 300 {
		t.Errorf("%+v", got)
	}
}

// TestBootLogsAreBoundedWhateverTheFaceSends: the process that sends them talks to strangers.
func TestBootLogsAreBoundedWhateverTheFaceSends(t *testing.T) {
	dir := t.TempDir()
	l := keeper(t, dir)
	s := l.observed.logs
	log := bootLog(1, 1000)
	for name, r := range map[string]rpc.KeepLogRequest{
		"no observation": {Host: "host", Digest: digestOf(log), Log: log},
		"no digest":      {Host: "host", Digest: "../../etc/passwd", Log: log},
	} {
		if _, err := l.KeepLog(r); !errors.Is(err, rpc.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	l.boots(t, policy.ObservedGood, "host", 1, log)
	if _, err := l.KeepLog(rpc.KeepLogRequest{Host: "host", Digest: digestOf(log), Log: bootLog(2, 1000)}); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("another log: %v", err)
	}
	// One host with ever new logs replaces its own; many hosts get as much as can be written in a minute.
	for i := range int64(40) {
		if !l.boots(t, policy.ObservedFindings, "host", 2+i, bootLog(10+i, 1<<20)) {
			t.Fatalf("log %d of one host was not kept", i)
		}
	}
	kept := 0
	for i := range int64(20) {
		if l.boots(t, policy.ObservedGood, fmt.Sprint("other", i), 100+i, bootLog(100+i, 1<<20)) {
			kept++
		}
	}
	if kept != 6 || s.bytes > maxLogsPerFlush || len(s.waiting) != 8 {
		t.Errorf("%d kept, %d bytes in %d logs wait", kept, s.bytes, len(s.waiting))
	}
	if err := l.observed.flush(); err != nil {
		t.Fatal(err)
	}
	if s.bytes != 0 || len(written(t, dir)) != 8 {
		t.Errorf("%d bytes wait, %d files", s.bytes, len(written(t, dir)))
	}
	s.limit = 3 << 20 // the oldest go, but for one that fits beside the two newest
	if err := l.observed.flush(); err != nil {
		t.Fatal(err)
	}
	if files := written(t, dir); len(files) != 3 || files[digestOf(log)+logSuffix] == nil || files[digestOf(bootLog(105, 1<<20))+logSuffix] == nil {
		t.Errorf("%d files: %v", len(files), files)
	}
}

// TestDamagedBootLogIsMissingNotWrong: each byte of a file, and what a crash leaves.
func TestDamagedBootLogIsMissingNotWrong(t *testing.T) {
	dir := t.TempDir()
	l := keeper(t, dir)
	log := bytes.Repeat([]byte("log"), 100)
	digest := digestOf(log)
	l.boots(t, policy.ObservedGood, "host", 1, log)
	if err := l.observed.flush(); err != nil {
		t.Fatal(err)
	}
	path := l.observed.logs.path(digest)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 0x10
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		l.observed.logs.files[digest] = int64(len(good))
		if got, err := l.observed.logs.get(digest); err == nil && !bytes.Equal(got, log) || err != nil && l.observed.logs.has(digest) {
			t.Fatalf("byte %d: %q, %v", i, got, err)
		}
	}
	os.WriteFile(path, nil, 0o600)
	os.WriteFile(path+".new", good, 0o600)
	os.WriteFile(filepath.Join(dir, "bootlogs", "x"+logSuffix), good, 0o600)
	l = keeper(t, dir)
	l.boots(t, policy.ObservedGood, "host", 2, log)
	if err := l.observed.flush(); err != nil {
		t.Fatal(err)
	}
	if got, err := l.observed.logs.get(digest); err != nil || !bytes.Equal(got, log) || len(written(t, dir)) != 1 {
		t.Fatalf("%v, %v", err, written(t, dir))
	}
}

func TestEvidenceComesInPagesTheNewestOfEachHost(t *testing.T) {
	l := keeper(t, t.TempDir())
	for i := range 600 {
		host := fmt.Sprintf("host%03d", i)
		l.observed.add([]policy.Observation{{Kind: policy.ObservedGood, Subject: host, Last: policy.Stamp{Latest: 10}},
			{Kind: policy.ObservedFindings, Subject: host, Last: policy.Stamp{Latest: int64(i % 20)}}})
	}
	seen, pages := 0, 0
	for after := ""; ; pages++ {
		list := l.observed.evidence(after, 0, false)
		if len(list) == 0 {
			break
		}
		for _, one := range list {
			if one.Subject <= after || (one.Kind == policy.ObservedGood) != (seen%20 <= 10) {
				t.Fatalf("%d: %+v after %s", seen, one, after)
			}
			after = one.Subject
			seen++
		}
	}
	if seen != 600 || pages != 3 || len(l.observed.evidence("", 10, true)) != 20 {
		t.Errorf("%d hosts in %d pages", seen, pages)
	}
}
