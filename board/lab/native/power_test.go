//go:build linux

package native

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/board/lab/fault"
)

func TestMain(m *testing.M) {
	fault.Front()
	Shim()
	code := m.Run()
	if bin.dir != "" {
		os.RemoveAll(bin.dir)
	}
	os.Exit(code)
}

// bin holds the compiled programs; all tests of the package share them.
var bin struct {
	sync.Mutex
	dir  string
	have map[string]bool
}

// programs gives a folder with the named commands in it.
func programs(t testing.TB, names ...string) string {
	t.Helper()
	bin.Lock()
	defer bin.Unlock()
	if bin.dir == "" {
		dir, err := os.MkdirTemp("", "gh-bin-")
		if err != nil {
			t.Fatal(err)
		}
		os.Chmod(dir, 0o755)
		bin.dir, bin.have = dir, map[string]bool{}
	}
	for _, name := range names {
		if !bin.have[name] {
			if err := Build(context.Background(), bin.dir, name); err != nil {
				t.Fatal(err)
			}
			bin.have[name] = true
		}
	}
	return bin.dir
}

// shortDir is a folder that every uid reaches and whose path leaves room for a socket's.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "gh-")
	if err != nil {
		t.Fatal(err)
	}
	os.Chmod(dir, 0o755)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func needNative(t testing.TB) {
	t.Helper()
	if why := Unavailable(); why != "" {
		t.Skip(why)
	}
}

// hostKey makes a distinct valid public key without the cost of a real one: nobody has its private half.
func hostKey(t testing.TB) []byte {
	t.Helper()
	b := make([]byte, 256)
	rand.Read(b)
	b[0] |= 0x80
	b[255] |= 1
	der, err := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: new(big.Int).SetBytes(b), E: 65537})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// promises is what the ledger acknowledged: it must hold after any cut.
type promises struct {
	mu       sync.Mutex
	hosts    map[string]string // name -> request id
	receipts map[uint64]string // audit sequence -> hash
}

func (p *promises) host(name, id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hosts[name] = id
}

func (p *promises) receipt(r policy.AuditReceipt) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.receipts[r.Seq] = r.Hash
}

// snapshot is the ledger's first snapshot after a start.
func snapshot(ctx context.Context, ledger *rpc.Client) (snap policy.Snapshot, err error) {
	stop := errors.New("one is enough")
	err = rpc.LedgerWatch.Open(ctx, ledger, rpc.Empty{}, func(s policy.Snapshot) error { snap = s; return stop })
	if errors.Is(err, stop) {
		err = nil
	}
	return snap, err
}

// check compares the ledger with what it had acknowledged.
func (p *promises) check(ctx context.Context, ledger *rpc.Client) error {
	snap, err := snapshot(ctx, ledger)
	if err != nil {
		return err
	}
	for name := range p.hosts {
		if _, ok := snap.State.HostByName(name); !ok {
			return fmt.Errorf("host %s was acknowledged and is gone (index %d, %d hosts)", name, snap.Index, len(snap.State.Hosts))
		}
	}
	v, err := rpc.LedgerAuditVerify.Call(ctx, ledger, rpc.Empty{})
	if err != nil {
		return err
	}
	if v.Problem != "" {
		return fmt.Errorf("audit chain: %s; %s", v.Problem, v.Remedy)
	}
	records, err := rpc.LedgerAuditTail.Call(ctx, ledger, rpc.AuditTailRequest{Limit: 1000})
	if err != nil {
		return err
	}
	have := map[uint64]string{}
	for _, r := range records {
		have[r.Seq] = r.Hash
	}
	for seq, hash := range p.receipts {
		if len(records) > 0 && seq < records[0].Seq {
			delete(p.receipts, seq) // older than what was asked for; the chain's own hashes cover it
			continue
		}
		if have[seq] != hash {
			return fmt.Errorf("audit entry %d was acknowledged as %.12s and is %.12s", seq, hash, have[seq])
		}
	}
	return nil
}

// work proposes and audits from several goroutines until ctx ends.
func (p *promises) work(ctx context.Context, t testing.TB, s *Stack, round int) {
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			ledger := s.Client(rpc.Ledger)
			defer ledger.Close()
			for i := 0; ctx.Err() == nil; i++ {
				name := fmt.Sprintf("h%d-%d-%d", round, w, i)
				id := NewID()
				if _, err := s.Propose(ctx, ledger, id, policy.CmdHostAdd, policy.HostAdd{Name: name, HostKey: hostKey(t)}); err == nil {
					p.host(name, id)
				}
			}
		})
		wg.Go(func() {
			ledger := s.Client(rpc.Ledger)
			defer ledger.Close()
			for ctx.Err() == nil {
				if r, err := rpc.LedgerAudit.Call(ctx, ledger, policy.AuditEntry{Kind: policy.AuditLogin, Action: "test", Outcome: "ok"}); err == nil {
					p.receipt(r)
				}
			}
		})
	}
	wg.Wait()
}

// TestPowerCutsLoseNothingAcknowledged cuts the power of the ledger's disk again and again in the middle of writes. After each cut the
// ledger must start, the audit chain must verify, and every command and entry that was acknowledged must be there.
// GUARDHOUSE_CUTS sets how many.
func TestPowerCutsLoseNothingAcknowledged(t *testing.T) {
	needNative(t)
	if why := fault.Unavailable(); why != "" {
		t.Skip(why)
	}
	cuts := 20 // make test asks for 200
	if v, err := strconv.Atoi(os.Getenv("GUARDHOUSE_CUTS")); err == nil {
		cuts = v
	}
	ctx := t.Context()
	dir := shortDir(t)
	vol, err := fault.OpenVolume(ctx, fault.VolumeOptions{Dir: filepath.Join(dir, "vol"), Size: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer vol.Close()
	if err := vol.Mount(ctx); err != nil {
		t.Fatal(err)
	}
	s, err := Open(ctx, Options{Dir: dir, Data: filepath.Join(vol.Dir, "ledger"), Services: []string{rpc.Ledger}, Cache: cache(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p := &promises{hosts: map[string]string{}, receipts: map[uint64]string{}}
	start := time.Now()
	for round := range cuts + 1 {
		if err := s.Start(ctx, programs(t, rpc.Ledger)); err != nil {
			t.Fatalf("after cut %d the ledger does not start: %v", round, err)
		}
		ledger := s.Client(rpc.Ledger)
		if round == 0 {
			if err := s.SetUp(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.check(ctx, ledger); err != nil {
			t.Fatalf("after cut %d (seed %d): %v", round, round, err)
		}
		ledger.Close()
		if round == cuts {
			break
		}
		wctx, cancel := context.WithTimeout(ctx, time.Duration(20+round%7*30)*time.Millisecond)
		p.work(wctx, t, s, round)
		cancel()
		if _, err := vol.Cut(ctx, uint64(round+1)); err != nil {
			t.Fatal(err)
		}
		s.StopPrograms()
		if err := vol.Unmount(ctx); err != nil {
			t.Fatal(err)
		}
		if err := vol.Mount(ctx); err != nil {
			t.Fatalf("after cut %d the file system does not mount: %v", round+1, err)
		}
	}
	t.Logf("%d cuts in %v, %d hosts and %d audit entries acknowledged", cuts, time.Since(start), len(p.hosts), len(p.receipts))
	if len(p.hosts) < cuts {
		t.Errorf("only %d hosts were acknowledged in %d rounds: the test cuts before anything happens", len(p.hosts), cuts)
	}
}

// cache is where unpacked Debian packages are kept between runs.
func cache(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("GUARDHOUSE_CACHE")
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(base, "guardhouse")
	}
	return dir
}

func spkiOf(t testing.TB, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(b)
	if err != nil {
		t.Fatal(err)
	}
	return cert.RawSubjectPublicKeyInfo
}
