package audit

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/policy"
)

func testKey() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32)) }

func testNode() (string, ed25519.PrivateKey) {
	k := testKey()
	return NodeID(PublicKey(k.Public().(ed25519.PublicKey))), k
}

func openTest(t testing.TB, dir string, opt Options) *Log {
	t.Helper()
	l, err := Open(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if err := l.SetNode(testNode()); err != nil {
		t.Fatal(err)
	}
	return l
}

func entry(kind policy.AuditKind, i int) policy.AuditEntry {
	return policy.AuditEntry{Kind: kind, Action: "test", Outcome: "ok", Subject: fmt.Sprintf("subject <%d>", i), Facts: map[string]string{"n": fmt.Sprint(i)}}
}

func mustAppend(t testing.TB, l *Log, e policy.AuditEntry) Receipt {
	t.Helper()
	r, err := l.Append(context.Background(), e)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func export(t testing.TB, l *Log) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := l.Export(context.Background(), 0, 0, func(p []byte) error { b.Write(p); return nil }); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func newest(t testing.TB, dir string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
	if err != nil || len(names) == 0 {
		t.Fatalf("segments: %v %v", names, err)
	}
	return names[len(names)-1]
}

func TestEveryAppenderGetsItsOwnDurableRecord(t *testing.T) {
	dir := t.TempDir()
	l := openTest(t, dir, Options{SegmentSize: 8 << 10})
	const n = 200
	receipts := make([]Receipt, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			receipts[i], _ = l.Append(context.Background(), entry(policy.AuditGrant, i))
		}()
	}
	wg.Wait()
	seen := map[uint64]int{}
	for i, r := range receipts {
		if r.Seq == 0 {
			t.Fatalf("append %d failed", i)
		}
		seen[r.Seq] = i
	}
	if len(seen) != n {
		t.Fatalf("%d numbers for %d appends", len(seen), n)
	}
	l.Close()
	l = openTest(t, dir, Options{SegmentSize: 8 << 10})
	if err := l.Check(context.Background()); err != nil {
		t.Fatal(err)
	}
	all, err := l.Since(1)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		i, ok := seen[r.Seq]
		if !ok {
			if r.Entry.Kind != policy.AuditContinue {
				t.Errorf("record %d is nobody's", r.Seq)
			}
			continue
		}
		if r.Hash != receipts[i].Hash || r.Entry.Facts["n"] != fmt.Sprint(i) {
			t.Errorf("record %d is not what its appender was told", r.Seq)
		}
		delete(seen, r.Seq)
	}
	if len(seen) > 0 {
		t.Errorf("%d acknowledged records are gone", len(seen))
	}
	if tail, err := l.Tail(7); err != nil || len(tail) != 7 || tail[6].Seq != l.Status().Last {
		t.Errorf("tail: %d records, %v", len(tail), err)
	}
}

func TestVerifyFindsEveryFlippedByte(t *testing.T) {
	for name, key := range testKeys(t) {
		t.Run(name, func(t *testing.T) { flipEveryByte(t, key) })
	}
}

// testKeys are the kinds of keys that a node may have.
func testKeys(t *testing.T) map[string]crypto.Signer {
	k, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]crypto.Signer{"P-256": k, "Ed25519": testKey()}
}

func flipEveryByte(t *testing.T, key crypto.Signer) {
	l := openTest(t, t.TempDir(), Options{})
	pub, err := EncodeKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	id := NodeID(pub)
	if err := l.SetNode(id, key); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		mustAppend(t, l, entry(policy.AuditGrant, i))
	}
	file := export(t, l)
	fingerprint, _ := hex.DecodeString(pub.Fingerprint())
	if _, err := Verify(bytes.NewReader(file), fingerprint); err != nil {
		t.Fatalf("against the fingerprint: %v", err)
	}
	s, err := Verify(bytes.NewReader(file), pub)
	if err != nil || s.Records != 7 || s.Last != 7 || s.Node != id || s.Kinds[policy.AuditGrant] != 5 {
		t.Fatalf("%+v, %v", s, err)
	}
	for i := range file {
		bad := bytes.Clone(file)
		bad[i] ^= 1
		if _, err := Verify(bytes.NewReader(bad), pub); err == nil {
			t.Errorf("flipped byte %d of %d was not found: %q", i, len(file), bad[max(0, i-20):min(len(bad), i+20)])
		}
	}
	for i := range file {
		if _, err := Verify(bytes.NewReader(file[:i]), nil); err == nil {
			t.Errorf("file cut at byte %d of %d was not found", i, len(file))
		}
	}
}

func TestVerifyFindsRemovedMovedAndForeignRecords(t *testing.T) {
	l := openTest(t, t.TempDir(), Options{})
	for i := range 5 {
		mustAppend(t, l, entry(policy.AuditGrant, i))
	}
	lines := bytes.SplitAfter(export(t, l), []byte("\n"))
	lines = lines[:len(lines)-1]
	join := func(idx ...int) []byte {
		var b []byte
		for _, i := range idx {
			b = append(b, lines[i]...)
		}
		return b
	}
	_, other, _ := ed25519.GenerateKey(nil)
	for name, c := range map[string]struct {
		file []byte
		key  ed25519.PublicKey
		want string
	}{
		"removed":    {join(0, 1, 2, 4, 5, 6, 7, 8), nil, "record 3 is missing"},
		"moved":      {join(0, 1, 3, 2, 4, 5, 6, 7, 8), nil, "missing"},
		"twice":      {join(0, 1, 2, 2, 3, 4, 5, 6, 7, 8), nil, "out of order"},
		"front cut":  {join(0, 2, 3, 4, 5, 6, 7, 8), nil, "record 1 is missing"},
		"end cut":    {join(0, 1, 2, 3, 4, 5, 6, 8), nil, "missing"},
		"no footer":  {join(0, 1, 2, 3, 4, 5, 6, 7), nil, "without a checkpoint"},
		"appended":   {join(0, 1, 2, 3, 4, 5, 6, 7, 8, 6), nil, "follows the checkpoint"},
		"other node": {join(0, 1, 2, 3, 4, 5, 6, 7, 8), other.Public().(ed25519.PublicKey), "not with the one given"},
		"empty":      {nil, nil, "no audit export"},
	} {
		if _, err := Verify(bytes.NewReader(c.file), c.key); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestAnotherKeyTakesOver: what the former key signed still counts where the records know that key, and nowhere else.
func TestAnotherKeyTakesOver(t *testing.T) {
	for _, c := range []struct {
		name   string
		former []PublicKey
		broken bool
	}{
		{"known", []PublicKey{{1, 2}, PublicKey(testKey().Public().(ed25519.PublicKey))}, false},
		{"unknown", []PublicKey{{1, 2}}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			l := openTest(t, dir, Options{})
			id, _ := testNode()
			mustAppend(t, l, entry(policy.AuditGrant, 1))
			l.Close() // the newest checkpoint is the former key's
			l, err := Open(dir, Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			next := testKeys(t)["P-256"]
			if err := l.SetNode(id, next, c.former...); err != nil {
				t.Fatal(err)
			}
			_, err = l.Append(t.Context(), entry(policy.AuditGrant, 2))
			if (err != nil) != c.broken {
				t.Fatal(err)
			}
			if c.broken {
				return
			}
			pub, _ := EncodeKey(next.Public())
			if s, err := Verify(bytes.NewReader(export(t, l)), pub); err != nil || s.Node != id || s.First != 1 {
				t.Errorf("%+v, %v", s, err)
			}
		})
	}
}

func TestRefusesKeysOfOtherKinds(t *testing.T) {
	k, err := ecdsa.GenerateKey(elliptic.P384(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := EncodeKey(k.Public()); err == nil {
		t.Error("a key on P-384 was taken")
	}
	der, _ := x509.MarshalPKIXPublicKey(k.Public())
	for _, bad := range []PublicKey{nil, {}, der, make([]byte, 31), make([]byte, 1000)} {
		if bad.valid() || bad.verifies([]byte("x"), []byte("y")) {
			t.Errorf("%d bytes are a key", len(bad))
		}
	}
}

// TestPowerCutAtEveryByteLosesNothingAcknowledged cuts the newest segment at every byte, as a power cut can, and in a second round
// leaves the file's length and loses the bytes.
func TestPowerCutAtEveryByteLosesNothingAcknowledged(t *testing.T) {
	dir := t.TempDir()
	l := openTest(t, dir, Options{})
	for i := range 3 {
		mustAppend(t, l, entry(policy.AuditGrant, i))
	}
	name := newest(t, dir)
	durable, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	// One batch of three that is on its way to the disk; nobody was told of it.
	at := chain{l.last, l.hash}
	whole := bytes.Clone(durable)
	for i := range 3 {
		b, _ := encodeEntry(entry(policy.AuditGrant, 10+i))
		whole, at.hash = appendRecord(whole, at.seq+1, l.last, at.hash, b)
		at.seq++
	}
	want := l.Status()
	d := t.TempDir()
	for cut := len(durable); cut <= len(whole); cut++ {
		for _, zeros := range []bool{false, true} {
			file := bytes.Clone(whole[:cut])
			if zeros {
				file = append(file, make([]byte, len(whole)-cut)...)
			}
			if zeros && cut%5 != 0 {
				continue
			}
			if err := os.WriteFile(filepath.Join(d, filepath.Base(name)), file, 0o600); err != nil {
				t.Fatal(err)
			}
			l, err := Open(d, Options{})
			if err != nil {
				t.Fatal(err)
			}
			s := l.Status()
			if s.Problem != nil || s.Last < want.Last {
				t.Fatalf("cut at %d of %d (zeros %v): last %d, want at least %d, problem %v", cut, len(whole), zeros, s.Last, want.Last, s.Problem)
			}
			if cut%11 == 0 {
				mustAppend(t, l, entry(policy.AuditGrant, 99))
				if err := l.Check(context.Background()); err != nil {
					t.Fatalf("cut at %d: %v", cut, err)
				}
			}
			l.Close()
		}
	}
}

func TestLostSectorInsideTheLastBatchIsAPowerCut(t *testing.T) {
	dir := t.TempDir()
	l := openTest(t, dir, Options{})
	r := mustAppend(t, l, entry(policy.AuditGrant, 0))
	at, buf := chain{l.last, l.hash}, []byte(nil)
	var second int
	for i := range 4 {
		if i == 1 {
			second = len(buf)
		}
		b, _ := encodeEntry(entry(policy.AuditGrant, i))
		buf, at.hash = appendRecord(buf, at.seq+1, r.Seq, at.hash, b)
		at.seq++
	}
	clear(buf[second+10 : second+200]) // the second record; the others arrived
	f, _ := os.OpenFile(newest(t, dir), os.O_WRONLY|os.O_APPEND, 0)
	f.Write(buf)
	f.Close()
	l2 := openTest(t, dir, Options{})
	if s := l2.Status(); s.Problem != nil || s.Last != r.Seq+1 {
		t.Errorf("last %d, want %d; problem %v", s.Last, r.Seq+1, s.Problem)
	}
}

func TestDamageBeforeTheEndIsNamedRefusesGrantsAndIsCuredByTrim(t *testing.T) {
	for _, clean := range []bool{true, false} {
		dir := t.TempDir()
		l := openTest(t, dir, Options{})
		for i := range 5 {
			mustAppend(t, l, entry(policy.AuditGrant, i))
		}
		if clean {
			l.Close()
		}
		name := newest(t, dir)
		b, _ := os.ReadFile(name)
		i := bytes.Index(b, []byte("subject \\u003c2"))
		b[i] ^= 1
		os.WriteFile(name, b, 0o600)

		l = openTest(t, dir, Options{})
		_, err := l.Append(context.Background(), entry(policy.AuditGrant, 6))
		var e *Error
		if !errors.As(err, &e) || e.Kind != KindBroken || e.Remedy == "" || !strings.Contains(e.What, "record 4 was changed") {
			t.Fatalf("clean %v: %v", clean, err)
		}
		mustAppend(t, l, entry(policy.AuditCommand, 7))
		last := l.Status().Last
		l.Close()

		l = openTest(t, dir, Options{}) // the damage is still known after a restart
		if _, err := l.Append(context.Background(), entry(policy.AuditGrant, 6)); !errors.As(err, &e) || e.Kind != KindBroken {
			t.Fatalf("after restart: %v", err)
		}
		if _, err := Verify(bytes.NewReader(export(t, l)), nil); err == nil || !strings.Contains(err.Error(), "record 4") {
			t.Errorf("the export does not show the damage: %v", err)
		}
		if _, _, err := l.Trim(context.Background(), last, entry(policy.AuditCommand, 8)); err != nil {
			t.Fatal(err)
		}
		mustAppend(t, l, entry(policy.AuditGrant, 9))
		if err := l.Check(context.Background()); err != nil {
			t.Error(err)
		}
		if _, err := Verify(bytes.NewReader(export(t, l)), nil); err != nil {
			t.Error(err)
		}
	}
}

func TestMissingPartsAreNamed(t *testing.T) {
	build := func(t *testing.T) (string, []string) {
		dir := t.TempDir()
		l := openTest(t, dir, Options{SegmentSize: 2 << 10})
		for i := range 40 {
			mustAppend(t, l, entry(policy.AuditGrant, i))
		}
		l.Close()
		names, _ := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
		if len(names) < 4 {
			t.Fatalf("%d segments", len(names))
		}
		return dir, names
	}
	for name, harm := range map[string]func(names []string){
		"first segment":  func(n []string) { os.Remove(n[0]) },
		"middle segment": func(n []string) { os.Remove(n[2]) },
		"last segment":   func(n []string) { os.Remove(n[len(n)-1]) },
		"all segments": func(n []string) {
			for _, n := range n {
				os.Remove(n)
			}
		},
		"end of a closed segment": func(n []string) { st, _ := os.Stat(n[1]); os.Truncate(n[1], st.Size()-3) },
		"end of the last":         func(n []string) { os.Truncate(n[len(n)-1], 3) },
		"checkpoint":              func(n []string) { os.WriteFile(filepath.Join(filepath.Dir(n[0]), headFile), []byte("{"), 0o600) },
		"checkpoint's signature": func(n []string) {
			p := filepath.Join(filepath.Dir(n[0]), headFile)
			b, _ := os.ReadFile(p)
			os.WriteFile(p, bytes.Replace(b, []byte(`"last":4`), []byte(`"last":3`), 1), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, names := build(t)
			harm(names)
			l := openTest(t, dir, Options{SegmentSize: 2 << 10})
			s := l.Status()
			if s.Problem == nil || s.Problem.Kind != KindBroken {
				t.Errorf("problem %+v", s.Problem)
			}
			mustAppend(t, l, entry(policy.AuditLogin, 1))
			export(t, l)
			if _, _, err := l.Trim(context.Background(), l.Status().Last+1, entry(policy.AuditCommand, 8)); err != nil {
				t.Fatalf("trim: %v", err)
			}
			mustAppend(t, l, entry(policy.AuditGrant, 9))
		})
	}
}

func TestTrimKeepsWhatWasNotExportedAndSurvivesARestart(t *testing.T) {
	dir := t.TempDir()
	l := openTest(t, dir, Options{SegmentSize: 2 << 10})
	for i := range 20 {
		mustAppend(t, l, entry(policy.AuditGrant, i))
	}
	if _, _, err := l.Trim(context.Background(), 1000, entry(policy.AuditCommand, 0)); err == nil {
		t.Error("trimmed without an export")
	}
	export(t, l)
	exported := l.Status().Exported
	for i := range 20 {
		mustAppend(t, l, entry(policy.AuditGrant, i))
	}
	n, size, err := l.Trim(context.Background(), 1000, entry(policy.AuditCommand, 0))
	if err != nil || n == 0 || size == 0 {
		t.Fatalf("%d segments, %d bytes, %v", n, size, err)
	}
	if first := l.Status().First; first > exported+1 {
		t.Errorf("record %d is the oldest kept, only up to %d was exported", first, exported)
	}
	before := l.Status()
	l.Close()
	l = openTest(t, dir, Options{SegmentSize: 2 << 10})
	if s := l.Status(); s.Problem != nil || s.First != before.First || s.Last != before.Last {
		t.Errorf("after restart %+v, before %+v", s, before)
	}
	if s, err := Verify(bytes.NewReader(export(t, l)), nil); err != nil || s.First != before.First {
		t.Errorf("%+v %v", s, err)
	}
}

// TestFloodOfRefusalsNeverKeepsAGrantOut: 1,000 refused requests a second for five minutes, from 3,000 sources, on a budget of 64 MiB.
func TestFloodOfRefusalsNeverKeepsAGrantOut(t *testing.T) {
	l := openTest(t, t.TempDir(), Options{Quota: 64 << 20})
	r := NewRefusals()
	rng := rand.New(rand.NewPCG(1, 2))
	counted, noted := 0, 0
	write := func(es ...policy.AuditEntry) {
		for _, e := range es {
			counted += e.Count
			noted++
			mustAppend(t, l, e)
		}
	}
	for ms := range 300_000 {
		now := time.Duration(ms) * time.Millisecond
		e, ok := r.Note(now, policy.Refusal{Source: fmt.Sprintf("10.0.%d.%d", rng.IntN(12), rng.IntN(250)), Action: "hostkeyattest", Outcome: "unknown-host",
			Detail: strings.Repeat("x", 600), Remedy: "register the host"})
		if ok {
			write(e)
		}
		if ms%2000 == 0 {
			write(r.Due(now)...)
		}
	}
	if len(r.sums) > maxSources+1 {
		t.Errorf("%d sums in memory", len(r.sums))
	}
	for _, s := range r.sums {
		counted += s.pending
	}
	if counted != 300_000 {
		t.Errorf("%d refusals accounted for, want 300000", counted)
	}
	if noted > refusalBurst+300/5+1 {
		t.Errorf("%d entries written", noted)
	}
	mustAppend(t, l, entry(policy.AuditGrant, 1))
	if s := l.Status(); s.Problem != nil || s.Bytes > 1<<20 {
		t.Errorf("%d bytes, %v", s.Bytes, s.Problem)
	}
}

// TestTellsWhenRoomBecomesScarce: before hosts are refused, so that somebody can export and trim in time.
func TestTellsWhenRoomBecomesScarce(t *testing.T) {
	l := openTest(t, t.TempDir(), Options{Quota: 1 << 20, SegmentSize: 64 << 10})
	told := int64(0)
	for {
		s := l.Status()
		if s.Problem != nil && told == 0 {
			if told = s.Bytes; s.Problem.Kind != KindMuch || s.Problem.Remedy == "" {
				t.Fatalf("%+v", s.Problem)
			}
		}
		if err := l.Admits(policy.AuditGrant); err != nil {
			break
		}
		e := entry(policy.AuditGrant, 1)
		e.Detail = strings.Repeat("x", 500)
		mustAppend(t, l, e)
	}
	if s := l.Status(); told == 0 || told > s.Bytes*4/5 || s.Problem.Kind != KindFull {
		t.Fatalf("told at %d of %d bytes; at last %+v", told, s.Bytes, s.Problem)
	}
}

// TestRefusedLoginsNeverKeepAnybodyOut: whoever knocks at the door for months must not use up what is kept for hosts and administrators.
func TestRefusedLoginsNeverKeepAnybodyOut(t *testing.T) {
	l := openTest(t, t.TempDir(), Options{Quota: 1 << 20, SegmentSize: 64 << 10})
	knock := policy.AuditEntry{Kind: policy.AuditLogin, Action: "login", Outcome: "unknown-key", Detail: strings.Repeat("x", 500)}
	var full *Error
	for n := 0; full == nil; n++ {
		if _, err := l.Append(t.Context(), knock); errors.As(err, &full) && full.Kind != KindFull {
			t.Fatal(err)
		} else if n > 4000 {
			t.Fatalf("%d bytes and still taken", l.Status().Bytes)
		}
	}
	if s := l.Status(); s.Problem != nil || s.Bytes > s.Quota/2+4096 {
		t.Errorf("refused logins took %d bytes of %d: %v", s.Bytes, s.Quota, s.Problem)
	}
	mustAppend(t, l, entry(policy.AuditGrant, 1))
	mustAppend(t, l, policy.AuditEntry{Kind: policy.AuditLogin, Action: "login", Outcome: "ok"})
	mustAppend(t, l, entry(policy.AuditCommand, 1))
}

func TestFirstRefusalOfASourceIsWrittenAtOnceAndLaterOnesWithTheirCount(t *testing.T) {
	r := NewRefusals()
	one := policy.Refusal{Source: "10.0.0.1", Action: "hostkeyattest", Outcome: "unknown-host"}
	if e, ok := r.Note(0, one); !ok || e.Count != 1 || e.Kind != policy.AuditUnknown {
		t.Fatalf("%+v %v", e, ok)
	}
	for i := range 59 {
		if _, ok := r.Note(time.Duration(i)*time.Second, one); ok {
			t.Fatal("written again within the minute")
		}
	}
	due := r.Due(61 * time.Second)
	if len(due) != 1 || due[0].Count != 59 {
		t.Errorf("%+v", due)
	}
	if due := r.Due(time.Hour); len(due) != 0 || len(r.sums) != 0 {
		t.Errorf("%+v, %d sums", due, len(r.sums))
	}
}

func TestFullAuditStillTakesAdministratorsAndIsCuredByExportAndTrim(t *testing.T) {
	l := openTest(t, t.TempDir(), Options{Quota: 256 << 10, Reserve: 64 << 10, SegmentSize: 32 << 10})
	ctx := context.Background()
	fill := func(kind policy.AuditKind) *Error {
		for i := range 5000 {
			e := entry(kind, i)
			e.Detail = strings.Repeat("d", 500)
			if _, err := l.Append(ctx, e); err != nil {
				var ae *Error
				if !errors.As(err, &ae) || ae.Kind != KindFull || ae.Remedy == "" {
					t.Fatalf("%s: %v", kind, err)
				}
				return ae
			}
		}
		t.Fatalf("%s is never full", kind)
		return nil
	}
	fill(policy.AuditUnknown)
	mustAppend(t, l, entry(policy.AuditGrant, 1))
	fill(policy.AuditGrant)
	if l.Admits(policy.AuditGrant) == nil || l.Status().Problem == nil {
		t.Error("nothing says that the audit is full")
	}
	for i := range 20 {
		mustAppend(t, l, entry(policy.AuditCommand, i))
		mustAppend(t, l, entry(policy.AuditLogin, i))
	}
	fill(policy.AuditCommand)
	file := export(t, l)
	if _, err := Verify(bytes.NewReader(file), nil); err != nil {
		t.Error(err)
	}
	if _, _, err := l.Trim(ctx, 1<<40, entry(policy.AuditCommand, 0)); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, entry(policy.AuditGrant, 2))
	if p := l.Status().Problem; p != nil {
		t.Error(p)
	}
}

func TestFullDiskRefusesGrantsKeepsCommandsAndLeavesTheChainWhole(t *testing.T) {
	dir := t.TempDir()
	full := false
	write := func(f *os.File, b []byte, off int64) (int, error) {
		if _, err := os.Stat(filepath.Join(dir, reserveFile)); full && err == nil {
			n, _ := f.WriteAt(b[:len(b)/2], off)
			return n, unix.ENOSPC
		}
		return f.WriteAt(b, off)
	}
	l := openTest(t, dir, Options{write: write})
	mustAppend(t, l, entry(policy.AuditGrant, 1))
	full = true
	var e *Error
	if _, err := l.Append(context.Background(), entry(policy.AuditGrant, 2)); !errors.As(err, &e) || e.Kind != KindFull {
		t.Fatalf("%v", err)
	}
	mustAppend(t, l, entry(policy.AuditCommand, 3))
	if err := l.Check(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestReorderedSegmentsAreFound(t *testing.T) {
	dir := t.TempDir()
	l := openTest(t, dir, Options{SegmentSize: 2 << 10})
	for i := range 30 {
		mustAppend(t, l, entry(policy.AuditGrant, i))
	}
	names, _ := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
	b, _ := os.ReadFile(names[1])
	lines := bytes.SplitAfter(b, []byte("\n"))
	lines[2], lines[3] = lines[3], lines[2]
	os.WriteFile(names[1], bytes.Join(lines, nil), 0o600)
	if err := l.Check(context.Background()); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("%v", err)
	}
	if l.Admits(policy.AuditGrant) == nil || l.Admits(policy.AuditCommand) != nil {
		t.Error("a broken chain must refuse grants and take commands")
	}
}

func TestLongFieldsAreCutAtACharacter(t *testing.T) {
	e := policy.AuditEntry{Detail: strings.Repeat("ü", 400)}
	bound(&e)
	if len(e.Detail) > policy.MaxAuditField || strings.ContainsRune(e.Detail, '\uFFFD') || !strings.HasSuffix(e.Detail, "ü…") {
		t.Errorf("%d bytes, %q", len(e.Detail), e.Detail[len(e.Detail)-8:])
	}
}

func FuzzVerify(f *testing.F) {
	l := openTest(f, f.TempDir(), Options{})
	for i := range 3 {
		mustAppend(f, l, entry(policy.AuditGrant, i))
	}
	file := export(f, l)
	whole, err := Verify(bytes.NewReader(file), nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(file)
	f.Add([]byte("{}\n"))
	f.Add(bytes.Replace(file, []byte(`"first":1`), []byte(`"first":18446744073709551615`), 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Verify(bytes.NewReader(b), whole.Key)
		if err == nil && (s.Hash != whole.Hash || s.Records != whole.Records || s.First != whole.First) {
			t.Errorf("a forged export was taken: %+v", s)
		}
	})
}

func TestPowerCutAtTheBeginningOfASegment(t *testing.T) {
	dir := t.TempDir()
	l := openTest(t, dir, Options{})
	mustAppend(t, l, entry(policy.AuditGrant, 1))
	l.Close()
	b, _ := encodeEntry(entry(policy.AuditContinue, 1))
	first, _ := appendRecord(nil, l.last+1, l.last, l.hash, b)
	for _, n := range []int{0, 1, len(first) / 2, len(first) - 1, len(first)} {
		os.WriteFile(filepath.Join(dir, segmentName(l.last+1)), first[:n], 0o600)
		again, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		want := l.last
		if n == len(first) {
			want++
		}
		if s := again.Status(); s.Problem != nil || s.Last != want {
			t.Errorf("%d bytes of the first record: %+v", n, s)
		}
		again.Close()
		os.Remove(filepath.Join(dir, segmentName(l.last+1)))
	}
}

// FuzzOpen: whatever lies in the folder, the log opens, takes an administrator's entry and can be cured.
func FuzzOpen(f *testing.F) {
	dir := f.TempDir()
	l := openTest(f, dir, Options{})
	for i := range 3 {
		mustAppend(f, l, entry(policy.AuditGrant, i))
	}
	l.Close()
	whole, _ := os.ReadFile(newest(f, dir))
	head, _ := os.ReadFile(filepath.Join(dir, headFile))
	f.Add(whole, head)
	f.Add(whole[:len(whole)-5], []byte("{}"))
	f.Add([]byte("\n\n"), []byte(""))
	f.Fuzz(func(t *testing.T, segment, head []byte) {
		dir := t.TempDir()
		os.WriteFile(filepath.Join(dir, segmentName(1)), segment, 0o600)
		os.WriteFile(filepath.Join(dir, headFile), head, 0o600)
		l := openTest(t, dir, Options{})
		mustAppend(t, l, entry(policy.AuditCommand, 1))
		export(t, l)
		if l.Admits(policy.AuditGrant) != nil {
			if _, _, err := l.Trim(context.Background(), ^uint64(0), entry(policy.AuditCommand, 2)); err != nil {
				t.Fatal(err)
			}
			mustAppend(t, l, entry(policy.AuditGrant, 3))
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	l := openTest(b, b.TempDir(), Options{Quota: 1 << 40})
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			mustAppend(b, l, entry(policy.AuditGrant, 1))
		}
	})
}
