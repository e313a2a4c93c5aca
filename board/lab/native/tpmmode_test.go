package native

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"guardhouse/appliance/appraise"
	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// secondHGS runs another hgs process on the stack's ledger and token; it gives its address.
func secondHGS(t *testing.T, s *Stack) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	var list []string
	for name, uid := range uids {
		list = append(list, fmt.Sprintf("%s=%d", name, uid))
	}
	cmd := exec.Command(filepath.Join(programs(t, rpc.HGS), rpc.HGS), "--run-dir", s.run(), "--uids", strings.Join(list, ","), "--http", addr)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uids[rpc.HGS], Gid: uids[rpc.HGS]}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return addr
}

// modeOf is what getinfo says, -1 while there is no answer.
func modeOf(addr string) int {
	c := http.Client{Timeout: time.Second}
	r, err := c.Get("http://" + addr + "/Attestation/getinfo")
	if err != nil {
		return -1
	}
	defer r.Body.Close()
	var v struct{ OperationMode int }
	b, _ := io.ReadAll(io.LimitReader(r.Body, 1<<16))
	if json.Unmarshal(b, &v) != nil {
		return -1
	}
	return v.OperationMode
}

// waitMode waits until all processes say the mode, and gives how long that took.
func waitMode(t *testing.T, mode policy.Mode, limit time.Duration, addrs ...string) time.Duration {
	t.Helper()
	start := time.Now()
	for _, a := range addrs {
		for modeOf(a) != int(mode) {
			if time.Since(start) > limit {
				t.Fatalf("%s is in mode %d after %s, want %d", a, modeOf(a), limit, mode)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return time.Since(start)
}

// registerTPM does what host add-tpm --force, baseline add and ci-policy add do.
func registerTPM(t *testing.T, s *Stack, p *people) {
	t.Helper()
	p.must("tpm", "identifier", "--dir", p.dir, "--name", "host1", "--out", p.path("id.xml"))
	p.must("tpm", "baseline", "--dir", p.dir, "--out", p.path("base.tcglog"))
	read := func(name string) []byte {
		b, err := os.ReadFile(p.path(name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	id, err := evidence.ParsePlatform(read("id.xml"))
	if err != nil {
		t.Fatal(err)
	}
	facts, failure := evidence.ParseBaseline(read("base.tcglog"))
	if failure != nil {
		t.Fatal(failure)
	}
	ci, err := evidence.ParseCIPolicy(read("sipolicy.bin"))
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(id.EK.Public)
	if err != nil {
		t.Fatal(err)
	}
	base := policy.BaselineAdd{Name: "base", Version: policy.Version1, LogDigest: strings.Repeat("0", 64)}
	base.Variables, base.Authorities, base.NoDMA = appraise.Baseline(facts)
	ledger := s.Client(rpc.Ledger)
	defer ledger.Close()
	for kind, body := range map[policy.Kind]any{
		policy.CmdHostAddTPM:  policy.TPMHostAdd{Name: "host1", EK: spki, NameAlg: uint16(id.EK.NameAlg), Symmetric: id.EK.Symmetric, Version: policy.Version1, Force: true, Reason: "lab"},
		policy.CmdBaselineAdd: base,
		policy.CmdCIPolicyAdd: policy.CIPolicyAdd{Name: "ci", Version: policy.Version1,
			Digests: []policy.HashValue{{Alg: uint16(evidence.SHA256), Digest: ci.Digest(evidence.SHA256)}}},
	} {
		if _, err := s.Propose(t.Context(), ledger, "", kind, body); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
	}
}

// keptLogs wants the ledger to hold the boot that a host just showed, as it was judged: what the log proves again is what is on record.
func keptLogs(t *testing.T, ledger *rpc.Client, kind policy.ObservationKind) {
	t.Helper()
	list, err := rpc.LedgerEvidence.Call(t.Context(), ledger, rpc.EvidenceRequest{})
	if err != nil || len(list) != 1 || list[0].Kind != kind {
		t.Errorf("evidence %+v, %v", list, err)
		return
	}
	r, err := rpc.LedgerBootLog.Call(t.Context(), ledger, rpc.BootLogRequest{Digest: list[0].Facts["log"]})
	if err != nil {
		t.Error(err)
		return
	}
	if _, err := appraise.Reprove(list[0].Facts, r.Log); err != nil {
		t.Error(err)
	}
}

// TestRoundsOfOneConversationAreAnsweredByTwoProcesses: each round of a TPM conversation goes to the other of two hgs processes, which share
// nothing but the context keys. And a change of the mode holds on both within a second, there and back.
func TestRoundsOfOneConversationAreAnsweredByTwoProcesses(t *testing.T) {
	s, p := running(t)
	p = &people{t: t, s: s, hostsim: p.hostsim, dir: t.TempDir()}
	tpm, err := s.Lab.NewHostTPM(t.Context(), "host1")
	if err != nil {
		t.Fatal(err)
	}
	one, two := s.Addr["http"], secondHGS(t, s)
	waitMode(t, policy.ModeHostKey, 10*time.Second, one, two)
	ledger := s.Client(rpc.Ledger)
	defer ledger.Close()
	switchTo := func(mode policy.Mode) time.Duration {
		if _, err := s.Propose(t.Context(), ledger, "", policy.CmdServiceSet, policy.ServiceSet{Mode: &mode}); err != nil {
			t.Fatal(err)
		}
		return waitMode(t, mode, time.Second, one, two)
	}
	there := switchTo(policy.ModeTPM)
	p.must("tpm", "new", "--dir", p.dir, "--name", "host1", "--tpm", tpm.Spec)
	registerTPM(t, s, p)

	var rounds [2]atomic.Int64
	var turn atomic.Int64
	proxy := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		n := turn.Add(1) % 2
		if strings.HasSuffix(r.In.URL.Path, "/attest") {
			rounds[n].Add(1)
		}
		r.SetURL(&url.URL{Scheme: "http", Host: []string{one, two}[n]})
	}})
	defer proxy.Close()
	attest := func(more ...string) error {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		_, err := p.try(ctx, append([]string{"tpm", "attest", "--dir", p.dir, "--tpm", tpm.Spec, "--version", "v1.0", "--url", proxy.URL + "/Attestation"}, more...)...)
		return err
	}
	if err := attest(); err != nil {
		t.Error(err)
	}
	if rounds[0].Load() < 2 || rounds[1].Load() < 2 {
		t.Errorf("rounds went to %d and %d", rounds[0].Load(), rounds[1].Load())
	}
	keptLogs(t, ledger, policy.ObservedGood)
	if err := attest("--misbehave", "dumps"); err == nil {
		t.Error("a host with dumps passes")
	}
	keptLogs(t, ledger, policy.ObservedFindings)
	back := switchTo(policy.ModeHostKey)
	if err := attest(); err == nil {
		t.Error("TPM attestation in host key mode")
	}
	again := switchTo(policy.ModeTPM)
	if err := attest(); err != nil {
		t.Errorf("after the way there and back: %v", err)
	}
	t.Logf("the mode changed on both in %s, %s and %s", there, back, again)
}
