package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"guardhouse/appliance/appraise"
	"guardhouse/appliance/attest"
	"guardhouse/appliance/evidence"
	"guardhouse/appliance/health"
	"guardhouse/appliance/hgsa"
	"guardhouse/appliance/policy"
)

// startTPM runs a software TPM on loopback and gives its --tpm value. Its endorsement key is kept in it, as Windows does.
func startTPM(t testing.TB) string {
	t.Helper()
	for range 20 {
		spec, ok := tryTPM(t)
		if !ok {
			continue
		}
		d, err := openTPM(spec)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		r, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(tpm2.RSAEKTemplate)}.Execute(d)
		if err == nil {
			_, err = tpm2.EvictControl{Auth: tpm2.TPMRHOwner, ObjectHandle: &tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name}, PersistentHandle: persistentEK}.Execute(d)
		}
		if err != nil {
			t.Fatal(err)
		}
		return spec
	}
	t.Fatal("swtpm (Debian package swtpm) does not start")
	return ""
}

// tryTPM needs two ports in a row; somebody else may take one of them first.
func tryTPM(t testing.TB) (string, bool) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+t.TempDir(), "--flags", "not-need-init,startup-clear",
		"--server", fmt.Sprintf("type=tcp,bindaddr=127.0.0.1,port=%d", port), "--ctrl", fmt.Sprintf("type=tcp,bindaddr=127.0.0.1,port=%d", port+1))
	if err := cmd.Start(); err != nil {
		t.Fatalf("swtpm (Debian package swtpm): %v", err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
	for range 250 {
		select {
		case <-ended:
			return "", false
		case <-time.After(20 * time.Millisecond):
		}
		if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port+1)); err == nil {
			c.Close()
			return fmt.Sprintf("swtpm:127.0.0.1:%d", port), true
		}
	}
	return "", false
}

// service is a cluster of two nodes in memory that answer in turn; they share records and context keys only.
type service struct {
	mu       sync.Mutex
	snap     policy.Snapshot
	keys     evidence.ContextKeys
	offset   time.Duration // of the nodes' clock
	uptime   time.Duration // more than it is
	nodes    [2]*attest.Service
	turn     int
	only     *int     // a request goes to this node
	bodies   [][]byte // of /attest
	audit    []policy.AuditEntry
	refusals []policy.Refusal
	observed []policy.Observation
	logs     map[string][]byte // boot logs by SHA-256
	signer   *rsa.PrivateKey
	caKey    *rsa.PrivateKey
	caCert   *x509.Certificate
	url      string
}

func (s *service) Public() crypto.PublicKey { return &s.signer.PublicKey }

func (s *service) Sign(r io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	return s.signer.Sign(r, digest, o)
}

func (s *service) edit(f func(*policy.State)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.snap.Index++
	f(&s.snap.State)
}

func startService(t testing.TB) *service {
	t.Helper()
	s := &service{keys: evidence.ContextKeys{Epoch: 9, Current: bytes.Repeat([]byte{1}, 32), Previous: bytes.Repeat([]byte{2}, 32)}}
	for _, k := range []**rsa.PrivateKey{&s.signer, &s.caKey} {
		var err error
		if *k, err = newKey(); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	der, err := health.NewSignerCertificate(rand.Reader, health.Between(now.Add(-time.Hour), now, true), "", health.DefaultSignerLife, s.signer)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Lab TPM Vendor Root"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, s.caKey.Public(), s.caKey)
	if err != nil {
		t.Fatal(err)
	}
	if s.caCert, err = x509.ParseCertificate(caDER); err != nil {
		t.Fatal(err)
	}
	s.snap.State = policy.NewState()
	st := &s.snap.State
	st.Service = &policy.Service{Name: "hgs.example.test", Mode: policy.ModeTPM, HTTP: true, HealthLife: policy.DefaultHealthLife}
	st.Keys["signer"] = policy.Key{Ref: "signer", Role: policy.RoleAttestationSigner, Certificate: der, Primary: true, Enabled: true}
	st.Baselines, st.CIPolicies, st.DumpKeys = map[string]policy.Baseline{}, map[string]policy.CIPolicy{}, map[string]policy.DumpKey{}
	st.Anchors = map[string]policy.Anchor{"root": {Thumbprint: policy.Thumbprint(caDER), Vendor: "lab", Root: true, Name: "Lab TPM Vendor Root", Certificate: caDER}}
	st.PolicySets = map[string]policy.PolicySet{}
	for i := range s.nodes {
		s.nodes[i] = s.node()
	}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	s.url = server.URL + "/Attestation"
	return s
}

func (s *service) node() *attest.Service {
	boot := time.Now()
	return attest.New(attest.Deps{
		Snapshot: func() policy.Snapshot { s.mu.Lock(); defer s.mu.Unlock(); return s.snap },
		Now: func() (time.Time, time.Time, bool) {
			s.mu.Lock()
			defer s.mu.Unlock()
			now := time.Now().Add(s.offset)
			return now, now.Add(time.Millisecond), true
		},
		Stamp:    func() policy.Stamp { return policy.Stamp{Earliest: 1, Latest: 2} },
		BootTime: func() time.Duration { s.mu.Lock(); defer s.mu.Unlock(); return time.Since(boot) + s.uptime },
		Signer:   func(policy.Key) (crypto.Signer, error) { return s, nil },
		Audit: func(_ context.Context, e policy.AuditEntry) (policy.AuditReceipt, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.audit = append(s.audit, e)
			return policy.AuditReceipt{}, nil
		},
		Refuse: func(_ context.Context, r policy.Refusal) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.refusals = append(s.refusals, r)
			return nil
		},
		Observe: func(_ context.Context, o []policy.Observation) {
			s.mu.Lock()
			defer s.mu.Unlock()
			for i := range o {
				if !o[i].Fits() {
					panic(fmt.Sprintf("an observation that the ledger drops: %+v", o[i]))
				}
			}
			s.observed = append(s.observed, o...)
		},
		KeepLog: func(_ context.Context, host, digest string, log []byte) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if !slices.ContainsFunc(s.observed, func(o policy.Observation) bool { return o.Subject == host && o.Facts["log"] == digest }) {
				panic("a log that no observation names")
			}
			if s.logs == nil {
				s.logs = map[string][]byte{}
			}
			s.logs[digest] = bytes.Clone(log)
		},
		ContextKeys: func() (evidence.ContextKeys, bool) {
			s.mu.Lock()
			defer s.mu.Unlock()
			return evidence.ContextKeys{Epoch: s.keys.Epoch, Current: bytes.Clone(s.keys.Current), Previous: bytes.Clone(s.keys.Previous)}, true
		},
		Random: rand.Reader,
		Log:    func(string, ...any) {},
	})
}

// ServeHTTP gives each request to the next node.
func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	s.mu.Lock()
	s.turn++
	n := s.nodes[s.turn%2]
	if s.only != nil {
		n = s.nodes[*s.only]
	}
	if strings.HasSuffix(r.URL.Path, "/attest") {
		s.bodies = append(s.bodies, body)
	}
	s.mu.Unlock()
	n.ServeHTTP(w, r)
}

// host makes a host on a TPM; certified ones get a certificate of the lab's vendor.
func (s *service) host(t testing.TB, tpm string, certified bool) *options {
	t.Helper()
	o := &options{facts: map[string]any{}, json: true, dir: t.TempDir(), tpm: tpm, url: s.url, name: "host1"}
	if err := tpmNew(o); err != nil {
		t.Fatal(err)
	}
	if !certified {
		return o
	}
	h, err := o.tpmHost()
	if err != nil {
		t.Fatal(err)
	}
	ek, err := evidence.ParseEK(h.ek)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: s.caCert.NotBefore, NotAfter: s.caCert.NotAfter, Subject: pkix.Name{CommonName: "TPM"}, KeyUsage: x509.KeyUsageKeyEncipherment}
	der, err := x509.CreateCertificate(rand.Reader, c, s.caCert, ek.Public, s.caKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(o.path(fileEKCertificate), der, 0o644); err != nil {
		t.Fatal(err)
	}
	return o
}

// register does with a host's files what an administrator's verbs do.
func (s *service) register(t testing.TB, o *options, version policy.PolicyVersion) string {
	t.Helper()
	dir := t.TempDir()
	for name, verb := range map[string]func(*options) error{"identifier.xml": tpmIdentifier, "base.tcglog": tpmBaseline} {
		o.out = dir + "/" + name
		if err := verb(o); err != nil {
			t.Fatal(err)
		}
	}
	read := func(name string) []byte {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	p, err := evidence.ParsePlatform(read(dir + "/identifier.xml"))
	if err != nil {
		t.Fatal(err)
	}
	facts, failure := evidence.ParseBaseline(read(dir + "/base.tcglog"))
	if failure != nil {
		t.Fatal(failure)
	}
	ci, err := evidence.ParseCIPolicy(read(o.path(fileCIPolicy)))
	if err != nil || ci.Name != "policy of host1" {
		t.Fatal(ci, err)
	}
	spki, err := x509.MarshalPKIXPublicKey(p.EK.Public)
	if err != nil {
		t.Fatal(err)
	}
	identity := &policy.TPMIdentity{EK: spki, NameAlg: uint16(p.EK.NameAlg), Symmetric: p.EK.Symmetric, Version: version}
	if p.Certificate != nil {
		identity.EKCert = p.Certificate.Original
	}
	dump := sha256.Sum256(read(o.path(fileDump)))
	s.edit(func(st *policy.State) {
		st.Hosts[p.EK.ID()] = policy.Host{ID: p.EK.ID(), Name: "host1", Class: "default", TPM: identity}
		base := policy.Baseline{Name: "base", Version: version}
		base.Variables, base.Authorities, base.NoDMA = appraise.Baseline(facts)
		st.Baselines["base"] = base
		st.CIPolicies["ci"] = policy.CIPolicy{Name: "ci", Version: version, Digests: []policy.HashValue{{Alg: 0x000b, Digest: ci.Digest(evidence.SHA256)}}}
		st.DumpKeys["dump"] = policy.DumpKey{Name: "dump", SHA256: dump[:]}
	})
	return p.EK.ID()
}

// failureOf is the reply that made an attestation fail, and the policies it names.
func failureOf(err error) string {
	var f hgsa.Failure
	if err == nil {
		return "pass"
	}
	if !errors.As(err, &f) {
		return err.Error()
	}
	text := f.Type()
	var p *hgsa.PolicyEvaluationErrorReply
	if errors.As(err, &p) {
		text = ""
		for _, r := range p.Reasons {
			text += fmt.Sprintf("%.8s ", r.Reason)
		}
	}
	return strings.TrimSpace(text)
}

// shown is what the host shows after an attestation.
func shown(t *testing.T, o *options) (state, sub string) {
	t.Helper()
	stored := *o
	stored.stored = true
	if err := status(&stored); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(o.facts["AttestationStatus"]), fmt.Sprint(o.facts["AttestationSubstatus"])
}

// wantShown is hgsa.md 7.4 and rows F01 and F02 for an outcome as failureOf gives it.
func wantShown(outcome string) (state, sub string) {
	switch outcome {
	case "pass":
		return "Passed", "NoInformation"
	case "UnauthorizedErrorReply":
		return "UnauthorizedHost", "NoInformation"
	case "RtpmErrorReply":
		return "TpmError", "NoInformation"
	case "TcgLogValidationErrorReply":
		return "InsecureHostConfiguration", "TcgLogVerification"
	}
	var subs []string
	for _, guid := range strings.Fields(outcome) {
		for _, b := range policy.Builtins {
			if strings.HasPrefix(b.GUID, guid) {
				subs = append(subs, b.SubStatus)
			}
		}
	}
	return "InsecureHostConfiguration", strings.Join(subs, ", ")
}

func TestEveryMisbehaviourIsRefusedForItsOwnReason(t *testing.T) {
	s := startService(t)
	tpm := startTPM(t)
	o := s.host(t, tpm, true)
	id := s.register(t, o, policy.Version2)
	second := startTPM(t)
	relaxed := map[string]map[string]bool{ // what an administrator has switched
		"bitlocker":       {policy.HgsBitLockerEnabled: true},
		"dump-encryption": {policy.HgsNoDumps: false},
		"dump-key":        {policy.HgsNoDumps: false},
	}
	want := map[string]string{
		"": "pass", "secure-boot": "6a460ee1", "secure-boot-settings": "756dc455", "authority": "756dc455", "debug": "20188fda", "boot-debug": "20188fda",
		"ci-policy": "81f110ba", "no-ci-policy": "81f110ba", "test-signing": "81f110ba", "hvci": "5408bd30", "resumed": "75ad09c9", "no-idk": "75d595de",
		"no-idks": "75d595de", "vsm": "6c0a6d29", "iommu": "da0776e5", "pagefile": "12df0ee9", "bitlocker": "347da547", "hibernation": "a32022c6",
		"dumps": "2a796e36", "dump-encryption": "6f390a71", "dump-key": "85dac0a4", "no-dump-events": "2a796e36 6f390a71",
		"log-edited": "TcgLogValidationErrorReply", "log-relabelled": "TcgLogValidationErrorReply", "log-cut": "TcgLogValidationErrorReply",
		"extended": "TcgLogValidationErrorReply", "other-ek": "RtpmErrorReply",
	}
	for _, m := range misbehaviours {
		s.edit(func(st *policy.State) {
			s.uptime += time.Minute // entries about one host are bounded
			st.PolicySets = map[string]policy.PolicySet{}
			if e, ok := relaxed[m.kind]; ok {
				st.PolicySets[policy.FabricWide] = policy.PolicySet{Enabled: e}
			}
		})
		s.audit, s.observed = nil, nil
		o.misbehave, o.version, o.tpm = m.kind, "v2.0", tpm
		if m.otherEK {
			o.tpm = second
		}
		err := tpmAttest(o)
		if got := failureOf(err); got != want[m.kind] {
			t.Errorf("%q: %s, want %s (%v; %+v)", m.kind, got, want[m.kind], err, s.audit)
		}
		status, sub := shown(t, o)
		if wantStatus, wantSub := wantShown(want[m.kind]); status != wantStatus || sub != wantSub {
			t.Errorf("%q: the host shows %s %s, want %s %s", m.kind, status, sub, wantStatus, wantSub)
		}
		if len(s.audit) != 1 || s.audit[0].Subject != id || (m.kind == "") != (s.audit[0].Kind == policy.AuditGrant) || m.kind != "" && s.audit[0].Remedy == "" {
			t.Errorf("%q: audit %+v", m.kind, s.audit)
		}
		kind := policy.ObservedFindings
		if m.kind == "" {
			kind = policy.ObservedGood
		}
		kept := slices.IndexFunc(s.observed, func(o policy.Observation) bool { return o.Kind == kind && o.Subject == id })
		if (kept >= 0) == m.otherEK {
			t.Errorf("%q: observed %+v", m.kind, s.observed)
		}
		if kept >= 0 {
			if v, _, err := appraise.Recorded(s.observed[kept].Facts); err != nil || v.Passed != (m.kind == "") || !v.Passed && len(v.Findings) == 0 {
				t.Errorf("%q: kept %+v: %v", m.kind, v, err)
			}
			if _, err := appraise.Reprove(s.observed[kept].Facts, s.logs[s.observed[kept].Facts["log"]]); err != nil {
				t.Errorf("%q: the kept log does not prove what is on record: %v", m.kind, err)
			}
			if j, err := json.Marshal(s.observed[kept]); err != nil || m.kind == "" && len(j) > 4<<10 {
				t.Errorf("%q: %d bytes beside the log, %v", m.kind, len(j), err)
			}
		}
	}
}

// TestHostThatFailsInEverNewWaysCantFillTheAudit: each boot has another dump key, so each finding is another one.
func TestHostThatFailsInEverNewWaysCantFillTheAudit(t *testing.T) {
	s := startService(t)
	here := 0
	s.only = &here
	o := s.host(t, startTPM(t), true)
	o.version = "v2.0"
	s.register(t, o, policy.Version2)
	h, err := o.tpmHost()
	if err != nil {
		t.Fatal(err)
	}
	const times = 14
	for i := range times {
		m := misbehaviour{boot: func(b *boot) {
			b.settings[evidence.DumpsDisabled], b.dumpKey = 0, bytes.Repeat([]byte{byte(i)}, 32)
		}}
		c, err := h.converse(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.attestTPM(context.Background(), c); failureOf(err) != "2a796e36 85dac0a4" {
			t.Error(err)
		}
		c.device.Close()
	}
	if n := len(s.audit); n == 0 || n >= times || n+len(s.refusals) != times {
		t.Errorf("%d entries and %d summed refusals for %d", n, len(s.refusals), times)
	}
}

func TestBothVersionsOfTheProtocolAttest(t *testing.T) {
	s := startService(t)
	o := s.host(t, startTPM(t), true)
	id := s.register(t, o, policy.Version2)
	if err := tpmAttest(o); err != nil || o.facts["version"] != "v2.0" || o.facts["subject"] != id {
		t.Fatal(err, o.facts)
	}
	last := s.observed[len(s.observed)-1]
	if last.Kind != policy.ObservedGood {
		t.Errorf("the evidence was not kept: %+v", s.observed)
	}
	// Without a certificate there is only v1.0, and policy version v1.
	bare := s.host(t, o.tpm, false)
	if err := tpmAttest(bare); failureOf(err) != "81f110ba" {
		t.Error("another code integrity policy than the registered one:", err)
	}
	s.register(t, bare, policy.Version1)
	if err := tpmAttest(bare); err != nil || bare.facts["version"] != "v1.0" {
		t.Fatal(err, bare.facts)
	}
	// A v1 host without the signing key has nothing that could be certified for signing.
	bare.misbehave = "no-idks"
	if err := tpmAttest(bare); failureOf(err) != "VirtualSecureModeErrorReply" {
		t.Error(err)
	}
	// A v2 host whose certificate leads nowhere is not the registered one.
	s.register(t, o, policy.Version2)
	s.edit(func(st *policy.State) { st.Anchors = nil })
	if err := tpmAttest(o); failureOf(err) != "UnauthorizedErrorReply" {
		t.Error(err)
	}
	s.edit(func(st *policy.State) {
		h := st.Hosts[id]
		h.Revoked = true
		st.Hosts[id] = h
	})
	if err := tpmAttest(o); failureOf(err) != "UnauthorizedErrorReply" {
		t.Error(err)
	}
	s.edit(func(st *policy.State) { v := *st.Service; v.Mode = policy.ModeHostKey; st.Service = &v })
	if err := tpmAttest(o); err == nil || !strings.Contains(err.Error(), "mode HostKey") {
		t.Error(err)
	}
}

func TestUnknownTPMWaitsForAnAdministrator(t *testing.T) {
	s := startService(t)
	o := s.host(t, startTPM(t), true)
	if err := tpmAttest(o); failureOf(err) != "UnauthorizedErrorReply" {
		t.Fatal(err)
	}
	i := slices.IndexFunc(s.observed, func(o policy.Observation) bool { return o.Kind == policy.ObservedPending })
	if i < 0 || s.observed[i].Facts["spki"] == "" || s.observed[i].Facts["certificate"] == "" || !strings.Contains(s.observed[i].Facts["issuer"], "Lab TPM Vendor Root") {
		t.Errorf("%+v", s.observed)
	}
}

// talk runs an attestation in which meddle changes the answers.
func talk(t *testing.T, o *options, meddle func(round int, context []byte) []byte) error {
	t.Helper()
	h, err := o.tpmHost()
	if err != nil {
		t.Fatal(err)
	}
	c, err := h.converse(misbehaviour{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.device.Close()
	c.meddle = meddle
	_, err = h.attestTPM(context.Background(), c)
	return err
}

func TestSpoiledContextsAreRtpmErrors(t *testing.T) {
	s := startService(t)
	tpm := startTPM(t)
	o := s.host(t, tpm, true)
	s.register(t, o, policy.Version2)
	o.version = "v2.0"
	other := s.host(t, startTPM(t), true)
	var stolen []byte // a context of another host's conversation
	_ = talk(t, other, func(_ int, c []byte) []byte { return c })
	s.register(t, other, policy.Version2)
	if err := talk(t, other, func(round int, c []byte) []byte {
		if round == 1 {
			stolen = c
		}
		return c
	}); err != nil {
		t.Fatal(err)
	}
	s.register(t, o, policy.Version2) // its own baseline and policy again
	var kept [][]byte
	remember := func(_ int, c []byte) []byte { kept = append(kept, c); return c }
	if err := talk(t, o, remember); err != nil || len(kept) < 5 {
		t.Fatal(err, len(kept))
	}
	response := func(context []byte) ([]byte, *evidence.Answer) {
		a, err := evidence.PrivateCodec.DecodeAnswer(context)
		if err != nil || len(a.Responses) != 1 {
			t.Fatal(err)
		}
		return a.Responses[0], a
	}
	encode := func(a *evidence.Answer) []byte {
		b, err := evidence.PrivateCodec.EncodeAnswer(a)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	spoil := func(name string, meddle func(int, []byte) []byte) {
		t.Helper()
		if err := talk(t, o, meddle); failureOf(err) != "RtpmErrorReply" {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, meddle := range map[string]func(int, []byte) []byte{
		"truncated":                       func(_ int, c []byte) []byte { return c[:len(c)-1] },
		"truncated to its head":           func(_ int, c []byte) []byte { return c[:16] },
		"one byte more":                   func(_ int, c []byte) []byte { return append(c, 0) },
		"a bit of the state flipped":      func(_ int, c []byte) []byte { c[60] ^= 1; return c },
		"a bit of the TPM's HMAC flipped": func(r int, c []byte) []byte { flipAt(c, r >= 2); return c },
		"another host's context":          func(_ int, c []byte) []byte { return stolen },
		"its own context of before":       func(r int, c []byte) []byte { return kept[r] },
		"an answer to nothing":            func(_ int, c []byte) []byte { _, a := response(c); a.Responses = nil; return encode(a) },
		"the answer twice": func(_ int, c []byte) []byte {
			r, a := response(c)
			a.Responses = append(a.Responses, r)
			return encode(a)
		},
		"no log at the end": func(_ int, c []byte) []byte { _, a := response(c); a.Device, a.Log = nil, nil; return encode(a) },
	} {
		spoil(name, meddle)
	}
	var before []byte
	spoil("the answer of the round before", func(_ int, c []byte) []byte {
		r, a := response(c)
		if before != nil {
			a.Responses[0] = before
		}
		before = bytes.Clone(r)
		return encode(a)
	})
	spoil("three minutes between two rounds", func(r int, c []byte) []byte {
		if r == 2 {
			s.mu.Lock()
			s.offset += 3 * time.Minute
			s.mu.Unlock()
		}
		return c
	})
	s.offset = 0
	// Control: nothing of all this keeps the host from attesting properly, also over the turn of an hour.
	if err := talk(t, o, func(r int, c []byte) []byte {
		if r == 1 {
			s.mu.Lock()
			s.keys = evidence.ContextKeys{Epoch: 10, Current: bytes.Repeat([]byte{3}, 32), Previous: s.keys.Current}
			s.mu.Unlock()
		}
		return c
	}); err != nil {
		t.Error(err)
	}
	spoil("keys of another cluster", func(r int, c []byte) []byte {
		s.mu.Lock()
		s.keys = evidence.ContextKeys{Epoch: s.keys.Epoch + 1, Current: bytes.Repeat([]byte{byte(r + 9)}, 32), Previous: bytes.Repeat([]byte{77}, 32)}
		s.mu.Unlock()
		return c
	})
}

// flipAt flips a bit of the last byte, which is one of the TPM's HMAC from the first PCR_Read on.
func flipAt(c []byte, now bool) {
	if now {
		c[len(c)-1] ^= 1
	}
}

// TestRepeatedContextGivesNothingNew: on the node that answered it is refused; on another one it yields, for two minutes, certificates for
// the same keys that end when the first ones end.
func TestRepeatedContextGivesNothingNew(t *testing.T) {
	s := startService(t)
	o := s.host(t, startTPM(t), true)
	s.register(t, o, policy.Version2)
	here, there := 0, 1
	s.only = &here
	if err := tpmAttest(o); err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(o.path(fileHealth))
	if err != nil {
		t.Fatal(err)
	}
	copies := s.bodies[1:]
	send := func(body []byte) (hgsa.Reply, error) {
		status, answer, err := exchange(context.Background(), http.DefaultClient, "POST", s.url+"/v2.0/attest", hgsa.ContentType, body)
		if err != nil {
			t.Fatal(err)
		}
		return hgsa.ParseReply(status, answer)
	}
	for i, body := range copies {
		if _, err := send(body); failureOf(err) != "RtpmErrorReply" {
			t.Errorf("round %d again: %v", i+1, err)
		}
	}
	s.only = &there
	s.mu.Lock()
	s.offset = time.Minute
	s.mu.Unlock()
	reply, err := send(copies[len(copies)-1])
	if err != nil {
		t.Fatal(err)
	}
	again := reply.(*hgsa.HealthCertificateReply).Content[0].Item2
	a, err := x509.ParseCertificate(first)
	if err != nil {
		t.Fatal(err)
	}
	b, err := x509.ParseCertificate(again)
	if err != nil {
		t.Fatal(err)
	}
	if d := b.NotAfter.Sub(a.NotAfter); d < -2*time.Second || d > 2*time.Second || !bytes.Equal(a.RawSubjectPublicKeyInfo, b.RawSubjectPublicKeyInfo) {
		t.Errorf("the copy's certificate ends %s after the first one's", d)
	}
	if _, err := send(copies[len(copies)-1]); failureOf(err) != "RtpmErrorReply" {
		t.Errorf("a second time on the other node: %v", err)
	}
	s.mu.Lock()
	s.offset = 4 * time.Minute
	s.nodes[1] = s.node() // one that knows nothing of it
	s.mu.Unlock()
	if _, err := send(copies[len(copies)-1]); failureOf(err) != "RtpmErrorReply" {
		t.Errorf("after two minutes: %v", err)
	}
}

func TestHostRunsFiveCommandsOnly(t *testing.T) {
	tpm := startTPM(t)
	d, err := openTPM(tpm)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	c := &conversation{host: &tpmHost{}, device: d}
	clearOwner := []byte{0x80, 2, 0, 0, 0, 27, 0, 0, 1, 0x26, 0x40, 0, 0, 0xc, 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0}
	order, err := evidence.PrivateCodec.EncodeOrder(&evidence.Order{State: append([]byte("GHS1"), make([]byte, 28)...), Commands: [][]byte{clearOwner}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.answer(order); !errors.Is(err, evidence.ErrCommand) {
		t.Errorf("TPM2_Clear: %v", err)
	}
}
