package native

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// people runs hostsim for one host and one tenant against a stack.
type people struct {
	t       testing.TB
	s       *Stack
	hostsim string
	dir     string
}

// try runs hostsim; the error holds what it said.
func (p *people) try(ctx context.Context, args ...string) (map[string]any, error) {
	cmd := exec.CommandContext(ctx, p.hostsim, append(args, "--json")...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("hostsim %v: %w: %s", args[:2], err, errOut.String())
	}
	var f map[string]any
	return f, json.Unmarshal(out.Bytes(), &f)
}

func (p *people) must(args ...string) map[string]any {
	p.t.Helper()
	f, err := p.try(p.t.Context(), args...)
	if err != nil {
		p.t.Fatal(err)
	}
	return f
}

func (p *people) path(name string) string { return filepath.Join(p.dir, name) }

func (p *people) attest(ctx context.Context) error {
	_, err := p.try(ctx, "host-key", "attest", "--dir", p.dir, "--url", p.s.URL("/Attestation"))
	return err
}

func (p *people) roll(ctx context.Context) error {
	_, err := p.try(ctx, "protector", "roll", "--dir", p.dir, "--url", p.s.URL("/KeyProtection"), "--in", p.path("protector.xml"))
	return err
}

// running is a stack that is set up, has keys, one registered host with a health certificate, and one key protector.
func running(t testing.TB) (*Stack, *people) {
	t.Helper()
	needNative(t)
	ctx := t.Context()
	s, err := Open(ctx, Options{Dir: shortDir(t), Cache: cache(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if err := s.Start(ctx, programs(t, Programs...)); err != nil {
		t.Fatal(err)
	}
	if err := s.SetUp(ctx); err != nil {
		t.Fatal(err)
	}
	kctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	if err := s.MakeKeys(kctx); err != nil {
		t.Fatal(err)
	}
	p := &people{t: t, s: s, hostsim: filepath.Join(programs(t, "hostsim"), "hostsim"), dir: t.TempDir()}
	p.must("host-key", "new", "--dir", p.dir, "--name", "host1")
	ledger := s.Client(rpc.Ledger)
	defer ledger.Close()
	if _, err := s.Propose(ctx, ledger, "", policy.CmdHostAdd, policy.HostAdd{Name: "host1", HostKey: spkiOf(t, p.path("host.cer"))}); err != nil {
		t.Fatal(err)
	}
	p.must("host-key", "attest", "--dir", p.dir, "--url", s.URL("/Attestation"))
	p.must("guardian", "new", "--dir", p.dir)
	p.must("protector", "new", "--dir", p.dir, "--metadata", s.URL("/KeyProtection"), "--out", p.path("protector.xml"))
	return s, p
}

// TestKilledServicesAreBackWithinTwoSeconds kills each service under load. It must be back in 2 s (and answer hosts again), and nothing
// that was acknowledged may be lost.
func TestKilledServicesAreBackWithinTwoSeconds(t *testing.T) {
	s, p := running(t)
	if err := p.roll(t.Context()); err != nil {
		t.Fatal(err)
	}
	prom := &promises{hosts: map[string]string{}, receipts: map[uint64]string{}}
	for _, name := range []string{rpc.HGS, rpc.Clock, rpc.HSM, rpc.Ledger} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			var load sync.WaitGroup
			var answered atomic.Int64
			load.Go(func() { prom.work(ctx, t, s, 0) })
			load.Go(func() {
				for ctx.Err() == nil {
					if p.attest(ctx) == nil {
						answered.Add(1)
					}
				}
			})
			defer load.Wait()
			defer cancel()
			time.Sleep(300 * time.Millisecond)
			old := pidOf(t, s, name)
			if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			killed := time.Now()
			for !s.Ready(name) || pidOf(t, s, name) == old || pidOf(t, s, name) == 0 {
				if time.Since(killed) > 10*time.Second {
					t.Fatalf("%s did not come back: %+v", name, s.Status())
				}
				time.Sleep(5 * time.Millisecond)
			}
			back := time.Since(killed)
			before := answered.Load()
			for answered.Load() == before {
				if time.Since(killed) > 15*time.Second {
					t.Fatalf("hosts are not answered again after %s was killed", name)
				}
				time.Sleep(10 * time.Millisecond)
			}
			t.Logf("%s ready after %v, a host attested after %v", name, back, time.Since(killed))
			if back > 2*time.Second {
				t.Errorf("%s needed %v to come back", name, back)
			}
		})
	}
	ledger := s.Client(rpc.Ledger)
	defer ledger.Close()
	if err := prom.check(t.Context(), ledger); err != nil {
		t.Fatal(err)
	}
	if err := p.roll(t.Context()); err != nil {
		t.Fatal(err)
	}
	allConfined(t, s)
	if len(prom.hosts) == 0 || len(prom.receipts) == 0 {
		t.Fatal("nothing was acknowledged: the load did not run")
	}
}

func pidOf(t testing.TB, s *Stack, name string) int {
	t.Helper()
	for _, st := range s.Status() {
		if st.Name == name {
			return st.PID
		}
	}
	t.Fatalf("no service %s", name)
	return 0
}

// TestTheDoorsBetweenProcessesRefuseAWrongUID calls a method of each socket from a uid that belongs to nobody.
func TestTheDoorsBetweenProcessesRefuseAWrongUID(t *testing.T) {
	s, _ := running(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{rpc.Ledger, rpc.HSM, rpc.Clock} {
		t.Run(name, func(t *testing.T) {
			f, err := os.Open(exe)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			cmd := exec.Command("/proc/self/fd/3", "-test.run=^TestHelperStranger$", "-test.v")
			cmd.ExtraFiles, cmd.Dir = []*os.File{f}, "/"
			cmd.Env = []string{"NATIVE_STRANGER=" + rpc.SocketPath(s.run(), name)}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 64999, Gid: 64999}}
			out, err := cmd.CombinedOutput()
			if err != nil || bytes.Count(out, []byte("REFUSED")) != 3 {
				t.Fatalf("%v: %s", err, out)
			}
		})
	}
}

// TestHelperStranger is the other process of the test above.
func TestHelperStranger(t *testing.T) {
	path := os.Getenv("NATIVE_STRANGER")
	if path == "" {
		return
	}
	c := rpc.NewClient(path)
	refused := func(err error) {
		if err != nil {
			fmt.Println("REFUSED")
		}
	}
	_, err := rpc.LedgerStatus.Call(t.Context(), c, rpc.Empty{})
	refused(err)
	_, err = rpc.LedgerPIN.Call(t.Context(), c, rpc.Empty{})
	refused(err)
	_, err = rpc.HSMSign.Call(t.Context(), c, rpc.HSMSignRequest{})
	refused(err)
}
