package native

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
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
	"guardhouse/appliance/hgsa"
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

// copied is a request that somebody has seen on the wire, with who answered it and who did not.
type copied struct {
	body            []byte
	answered, other string
}

// givesNothingNew repeats the last round of a conversation: the process that answered it refuses it; the other one, which can't know of it,
// gives a certificate for the same key that ends no later than the first, which is in the file, and refuses it from then on.
func (c *copied) givesNothingNew(t *testing.T, file string) {
	t.Helper()
	send := func(addr string) (hgsa.Reply, error) {
		r, err := http.Post("http://"+addr+"/Attestation/v1.0/attest", hgsa.ContentType, bytes.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		if err != nil {
			t.Fatal(err)
		}
		return hgsa.ParseReply(r.StatusCode, b)
	}
	refused := func(addr, what string) {
		t.Helper()
		var rtpm *hgsa.RtpmErrorReply
		if _, err := send(addr); !errors.As(err, &rtpm) {
			t.Errorf("%s: %v", what, err)
		}
	}
	der, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	first, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second) // by which the copy's end would be later if it were counted from its own time
	refused(c.answered, "again on the process that answered it")
	reply, err := send(c.other)
	if err != nil {
		t.Fatal(err)
	}
	content := reply.(*hgsa.HealthCertificateReply).Content
	same := 0
	for _, item := range content {
		again, err := x509.ParseCertificate(item.Item2)
		if err != nil {
			t.Fatal(err)
		}
		if d := again.NotAfter.Sub(first.NotAfter); d > time.Second {
			t.Errorf("the copy's certificate ends %s later", d)
		}
		if bytes.Equal(again.RawSubjectPublicKeyInfo, first.RawSubjectPublicKeyInfo) {
			same++
		}
	}
	if same == 0 {
		t.Errorf("none of %d certificates is for the same key", len(content))
	}
	refused(c.other, "a second time on the other process")
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
	var last atomic.Pointer[copied] // the last round
	proxy := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		n := turn.Add(1) % 2
		if strings.HasSuffix(r.In.URL.Path, "/attest") {
			rounds[n].Add(1)
			body, err := io.ReadAll(r.Out.Body)
			if err != nil {
				t.Error(err)
			}
			r.Out.Body = io.NopCloser(bytes.NewReader(body))
			last.Store(&copied{body, []string{one, two}[n], []string{two, one}[n]})
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
	last.Load().givesNothingNew(t, p.path("health.cer"))
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
