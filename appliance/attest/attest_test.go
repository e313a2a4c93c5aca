package attest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/health"
	"guardhouse/appliance/hgsa"
	"guardhouse/appliance/intake"
	"guardhouse/appliance/policy"
)

func TestRegisteredHostGetsItsCertificates(t *testing.T) {
	n := newNode(t)
	cert, err := health.NewSignerCertificate(rand.Reader, health.Between(noon.AddDate(-9, 0, 0), noon, true), "host", time.Hour, n.hostKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, q := range map[string]hgsa.HostKeyRequest{
		"as our client sends it": {},
		"base64":                 {Style: hgsa.Style{Base64: true}},
		"BCRYPT and TPM forms":   {VSMForm: hgsa.KeyBcrypt, HostForm: hgsa.KeyTPM2B},
		"PKCS#1 host key":        {HostForm: hgsa.KeyPKCS1},
		"certificate, expired":   {HostCertificate: cert},
	} {
		w := n.do("POST", attestPath, n.request(t, q))
		if err := n.takes(w, health.Encryption, health.Signing); err != nil || w.Code != 200 {
			t.Errorf("%s: %d %v", name, w.Code, err)
		}
		if mirrored := strings.Contains(w.Body.String(), `"m_Item2":"`); mirrored != q.Style.Base64 {
			t.Errorf("%s: the style is not mirrored", name)
		}
		if h := w.Header(); h.Get("Content-Type") != hgsa.ContentType || h.Get("Content-Length") != fmt.Sprint(w.Body.Len()) {
			t.Errorf("%s: headers %v", name, h)
		}
	}
	e := n.audit[0]
	if len(n.audit) != 5 || e.Kind != policy.AuditGrant || e.Outcome != "ok" || e.Subject != n.hostID || e.Policy != n.snap.Index ||
		e.Source != "192.0.2.7" || e.Facts["host"] != "host1" || !strings.Contains(e.Facts["certificate2"], "type 2 sha256 ") || len(e.Facts) > policy.MaxAuditFacts {
		t.Errorf("%d entries, first %+v", len(n.audit), e)
	}
	if len(n.refusals) != 0 || len(n.observed) != 10 || n.observed[0].Kind != policy.ObservedHost || n.observed[0].Facts["verdict"] != "ok" ||
		n.observed[1].Kind != policy.ObservedIdentity || len(n.observed[1].Facts["vsmKey"]) != 64 {
		t.Errorf("refusals %v, observed %v", n.refusals, n.observed)
	}
}

func TestEveryRefusalHasItsReply(t *testing.T) {
	n := newNode(t)
	good := n.request(t, hgsa.HostKeyRequest{})
	edit := func(f func(*hgsa.AttestationRequest)) []byte { return rewrite(t, good, f) }
	small := bytes.Repeat([]byte{7}, 20)
	resign := func(vsm []byte) []byte { // a proof over something that is no key
		host := spki(t, n.hostKey)
		h := crypto.SHA256.New()
		h.Write(host)
		h.Write(vsm)
		sig, err := n.hostKey.Sign(rand.Reader, h.Sum(nil), crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		return edit(func(r *hgsa.AttestationRequest) {
			r.ProvidedContent = []hgsa.TupleOfAttestationProvidedContentTypebase64Binary{{Item1: 1, Item2: vsm}, {Item1: 8, Item2: host}, {Item1: 9, Item2: sig}}
		})
	}
	stranger, err := hgsa.NewHostKeyRequest(rand.Reader, testKeys()[3], hgsa.HostKeyRequest{VSMKey: &n.vsmKey.PublicKey, Requested: []hgsa.AttestationResultType{1}})
	if err != nil {
		t.Fatal(err)
	}
	item := func(typ hgsa.AttestationProvidedContentType, v []byte) hgsa.TupleOfAttestationProvidedContentTypebase64Binary {
		return hgsa.TupleOfAttestationProvidedContentTypebase64Binary{Item1: typ, Item2: v}
	}
	setUp := *n.snap.State.Service
	inMode := func(m policy.Mode) func(*node) {
		return func(n *node) { n.edit(func(s *policy.State) { v := setUp; v.Mode = m; s.Service = &v }) }
	}
	revoke := func(n *node) {
		n.edit(func(s *policy.State) {
			s.Hosts = maps.Clone(s.Hosts)
			h := s.Hosts[n.hostID]
			h.Revoked = true
			s.Hosts[n.hostID] = h
		})
	}
	for name, c := range map[string]struct {
		prepare      func(*node)
		method, path string
		body         []byte
		status       int
		reply        string // type and Retryable
		outcome      string
	}{
		"unknown path":               {nil, "POST", "/Attestation/v2.0/nothing", good, 404, "PayloadErrorReply:false", ""},
		"GET on attest":              {nil, "GET", attestPath, nil, 405, "PayloadErrorReply:false", ""},
		"POST on getinfo":            {nil, "POST", "/Attestation/getinfo", good, 405, "PayloadErrorReply:false", ""},
		"PUT on certificates":        {nil, "PUT", "/Attestation/v2.0/signingCertificates", good, 405, "PayloadErrorReply:false", ""},
		"before setup":               {func(n *node) { n.edit(func(s *policy.State) { s.Service = nil }) }, "POST", attestPath, good, 503, "UnavailableErrorReply:true", "not-set-up"},
		"getinfo before setup":       {func(n *node) { n.edit(func(s *policy.State) { s.Service = nil }) }, "GET", "/Attestation/getinfo", nil, 503, "UnavailableErrorReply:true", "not-set-up"},
		"TPM endpoint":               {nil, "POST", "/Attestation/v2.0/attest", good, 200, "OperationModeErrorReply:true", "wrong-mode"},
		"AD endpoint":                {nil, "POST", "/Attestation/v1.0/domainattest", []byte("not JSON"), 200, "OperationModeErrorReply:true", "wrong-mode"},
		"service in TPM mode":        {inMode(policy.ModeTPM), "POST", attestPath, good, 200, "OperationModeErrorReply:true", "wrong-mode"},
		"mode not served":            {inMode(policy.ModeTPM), "POST", "/Attestation/v2.0/attest", good, 503, "UnavailableErrorReply:true", "mode-not-served"},
		"no trusted time":            {func(n *node) { n.timeKnown = false }, "POST", attestPath, good, 503, "UnavailableErrorReply:true", "no-trusted-time"},
		"never any time for signers": {func(n *node) { n.timeKnown = false }, "GET", "/Attestation/v2.0/signingCertificates", nil, 503, "UnavailableErrorReply:true", "no-trusted-time"},
		"empty body":                 {nil, "POST", attestPath, nil, 400, "PayloadErrorReply:false", "body-not-json"},
		"XML":                        {nil, "POST", attestPath, []byte("<x/>"), 400, "PayloadErrorReply:false", "body-not-json"},
		"body cut off":               {nil, "POST", attestPath, good[:len(good)-1], 400, "PayloadErrorReply:false", "body-not-json"},
		"too large":                  {nil, "POST", attestPath, make([]byte, hgsa.MaxBody+1), 413, "PayloadErrorReply:false", "body-too-large"},
		"JSON of another kind":       {nil, "POST", attestPath, []byte("[1]"), 200, "PayloadErrorReply:false", "payload"},
		"no signature":               {nil, "POST", attestPath, edit(func(r *hgsa.AttestationRequest) { r.ProvidedContent = r.ProvidedContent[:2] }), 200, "PayloadErrorReply:false", "payload"},
		"two VSM keys":               {nil, "POST", attestPath, edit(func(r *hgsa.AttestationRequest) { r.ProvidedContent = append(r.ProvidedContent, r.ProvidedContent[0]) }), 200, "PayloadErrorReply:false", "payload"},
		"CA trustlet report":         {nil, "POST", attestPath, edit(func(r *hgsa.AttestationRequest) { r.ProvidedContent = append(r.ProvidedContent, item(6, small)) }), 200, "PayloadErrorReply:false", "payload"},
		"nothing requested":          {nil, "POST", attestPath, edit(func(r *hgsa.AttestationRequest) { r.RequestedContent = nil }), 200, "PayloadErrorReply:false", "payload"},
		"type 3 requested":           {nil, "POST", attestPath, edit(func(r *hgsa.AttestationRequest) { r.RequestedContent = []hgsa.AttestationResultType{1, 3} }), 200, "PayloadErrorReply:false", "payload"},
		"a hundred requested":        {nil, "POST", attestPath, edit(func(r *hgsa.AttestationRequest) { r.RequestedContent = make([]hgsa.AttestationResultType, 60) }), 200, "PayloadErrorReply:false", "payload"},
		"host key unreadable":        {nil, "POST", attestPath, edit(func(r *hgsa.AttestationRequest) { r.ProvidedContent[1].Item2 = small }), 200, "UnauthorizedErrorReply:false", "host-key-unreadable"},
		"unknown host":               {nil, "POST", attestPath, stranger, 200, "UnauthorizedErrorReply:false", "host-unknown"},
		"another VSM key":            {nil, "POST", attestPath, edit(func(r *hgsa.AttestationRequest) { r.ProvidedContent[0].Item2 = spki(t, testKeys()[3]) }), 200, "UnauthorizedErrorReply:false", "signature-wrong"},
		"signature with a flip":      {nil, "POST", attestPath, edit(func(r *hgsa.AttestationRequest) { r.ProvidedContent[2].Item2[9] ^= 1 }), 200, "UnauthorizedErrorReply:false", "signature-wrong"},
		"revoked":                    {revoke, "POST", attestPath, good, 200, "UnauthorizedErrorReply:false", "host-revoked"},
		"revoked while signing":      {func(n *node) { n.onSign = func() { revoke(n) } }, "POST", attestPath, good, 200, "UnauthorizedErrorReply:false", "host-revoked"},
		"VSM key unreadable":         {nil, "POST", attestPath, resign(small), 200, "VirtualSecureModeErrorReply:false", "vsm-key-unreadable"},
		"no attestation signer":      {func(n *node) { n.edit(func(s *policy.State) { s.Keys = nil }) }, "POST", attestPath, good, 503, "UnavailableErrorReply:true", "no-attestation-signer"},
		"HSM lost":                   {func(n *node) { n.signErr = errors.New("token gone") }, "POST", attestPath, good, 503, "UnavailableErrorReply:true", "signing-failed"},
		"audit full":                 {func(n *node) { n.auditErr = errors.New("disk full") }, "POST", attestPath, good, 503, "UnavailableErrorReply:true", ""},
		"fault in the HSM client":    {func(n *node) { n.signPanic = true }, "POST", attestPath, good, 500, "UnavailableErrorReply:true", ""},
	} {
		n := newNode(t)
		if c.prepare != nil {
			c.prepare(n)
		}
		w := n.do(c.method, c.path, c.body)
		checkRefusal(t, name, n, w, c.status, c.reply, c.outcome)
	}
}

func checkRefusal(t *testing.T, name string, n *node, w *httptest.ResponseRecorder, status int, want, outcome string) {
	t.Helper()
	_, err := hgsa.ParseReply(w.Code, w.Body.Bytes())
	var f hgsa.Failure
	if !errors.As(err, &f) || w.Code != status || fmt.Sprintf("%s:%v", f.Type(), f.CanRetry()) != want {
		t.Errorf("%s: %d %s (%v)", name, w.Code, w.Body, err)
		return
	}
	if (w.Header().Get("Retry-After") != "") != (status >= 500) || (w.Header().Get("Allow") != "") != (status == 405) {
		t.Errorf("%s: headers %v", name, w.Header())
	}
	for _, leak := range []string{"goroutine", "secret", "host1", ".go:", "token gone"} {
		if strings.Contains(w.Body.String(), leak) {
			t.Errorf("%s: the reply tells %q", name, leak)
		}
	}
	var got []string
	for _, r := range n.refusals {
		got = append(got, r.Outcome)
		if r.Remedy == "" || r.Detail == "" || r.Source != "192.0.2.7" {
			t.Errorf("%s: refusal without remedy, detail or source: %+v", name, r)
		}
	}
	for _, e := range n.audit {
		got = append(got, e.Outcome)
		if e.Kind != policy.AuditRefusal || e.Remedy == "" || e.Detail == "" || e.Subject != n.hostID {
			t.Errorf("%s: entry %+v", name, e)
		}
	}
	if strings.Join(got, " ") != outcome {
		t.Errorf("%s: noted %v, want %q", name, got, outcome)
	}
}

func TestStrangerIsNotedOnlyWithProofOfItsKey(t *testing.T) {
	n := newNode(t)
	n.edit(func(s *policy.State) { s.Hosts = nil })
	good := n.request(t, hgsa.HostKeyRequest{})
	n.do("POST", attestPath, rewrite(t, good, func(r *hgsa.AttestationRequest) { r.ProvidedContent[2].Item2[9] ^= 1 }))
	if len(n.observed) != 0 {
		t.Errorf("a key without proof is in the list: %+v", n.observed)
	}
	n.do("POST", attestPath, good)
	if len(n.observed) != 1 || n.observed[0].Kind != policy.ObservedPending || n.observed[0].Subject != n.hostID || n.observed[0].Facts["source"] != "192.0.2.7" {
		t.Errorf("%+v", n.observed)
	}
	if len(n.refusals) != 2 || n.refusals[1].Subject != n.hostID || !strings.Contains(n.refusals[1].Remedy, "host add") {
		t.Errorf("%+v", n.refusals)
	}
}

func TestReplayedRequestIsHarmless(t *testing.T) {
	n := newNode(t)
	n.d.GrantsPerMinute = 3
	good := n.request(t, hgsa.HostKeyRequest{})
	for i := range 5 {
		w := n.do("POST", attestPath, good)
		if err := n.takes(w, health.Encryption, health.Signing); (err == nil) != (i < 3) {
			t.Errorf("copy %d: %v", i, err) // what it gets is for the host's own key
		}
	}
	if len(n.audit) != 3 || len(n.refusals) != 2 || n.refusals[0].Outcome != outcomeTooOften {
		t.Errorf("%d entries, refusals %+v", len(n.audit), n.refusals)
	}
	n.boot += time.Minute
	if err := n.takes(n.do("POST", attestPath, good), health.Encryption, health.Signing); err != nil {
		t.Error(err)
	}
}

func TestFloodOfKnownHostsRefusalsIsSummed(t *testing.T) {
	n := newNode(t)
	bad := rewrite(t, n.request(t, hgsa.HostKeyRequest{}), func(r *hgsa.AttestationRequest) { r.ProvidedContent[2].Item2[9] ^= 1 })
	for range 20 {
		n.do("POST", attestPath, bad)
	}
	if len(n.audit) != 1 || len(n.refusals) != 19 || len(n.observed) != 0 {
		t.Errorf("%d entries, %d summed, %d observed", len(n.audit), len(n.refusals), len(n.observed))
	}
}

func TestRefusalsNeedNoAudit(t *testing.T) {
	n := newNode(t)
	n.d.Refuse = func(context.Context, policy.Refusal) error { return errors.New("ledger gone") }
	n.auditErr = errors.New("ledger gone")
	bad := rewrite(t, n.request(t, hgsa.HostKeyRequest{}), func(r *hgsa.AttestationRequest) { r.ProvidedContent[2].Item2[9] ^= 1 })
	for _, body := range [][]byte{bad, []byte("x")} {
		if w := n.do("POST", attestPath, body); w.Code >= 500 {
			t.Error(w.Code, w.Body)
		}
	}
}

func TestP13_13_FunctionalLevels(t *testing.T) {
	n := newNode(t)
	for _, path := range []string{"/Attestation/Getinfo", "/attestation/v2.0/GETINFO/", "/Attestation/attestationservice.svc/getinfo"} {
		w := n.do("GET", path, nil)
		want := `{"__type":"ServiceInfoReply:#Microsoft.Windows.RemoteAttestation.Core","FunctionalLevel":2,"OperationMode":3,"SupportedFunctionalLevels":[1,2]}`
		if w.Code != 200 || w.Body.String() != want {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	if w := n.do("HEAD", "/Attestation/Getinfo", nil); w.Code != 200 || w.Body.Len() != 0 {
		t.Error(w.Code, w.Body)
	}
}

func TestLargeBodiesShareOneBudget(t *testing.T) {
	n := newNode(t)
	n.budget = intake.NewBudget(100<<10, bodyStart)
	body := bytes.Repeat([]byte(" "), 200<<10)
	w := n.do("POST", attestPath, body)
	checkRefusal(t, "over budget", n, w, 503, "UnavailableErrorReply:true", outcomeBusy)
	for _, b := range [][]byte{body[:60<<10], []byte("x"), n.request(t, hgsa.HostKeyRequest{})} {
		n.do("POST", attestPath, b)
	}
	if left := n.budget.Left(); left != 100<<10 {
		t.Errorf("%d bytes of the budget are lost", 100<<10-left)
	}
}

func FuzzHostKeyAttest(f *testing.F) {
	n := newNode(f)
	good := n.request(f, hgsa.HostKeyRequest{})
	f.Add(good)
	f.Add([]byte(`{"ProvidedContent":[],"RequestedContent":[1]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		w := n.do("POST", attestPath, body)
		if w.Code >= 500 && w.Code != 503 {
			t.Fatalf("fault: %d %s", w.Code, n.logged.String())
		}
		if _, _, err := hgsa.DecodeReply(w.Body.Bytes()); err != nil {
			t.Fatal(err)
		}
		n.audit, n.refusals, n.observed = nil, nil, nil
	})
}

func BenchmarkHostKeyAttest(b *testing.B) {
	n := newNode(b)
	n.d.GrantsPerMinute = 1 << 30
	n.d.Audit = func(context.Context, policy.AuditEntry) (policy.AuditReceipt, error) {
		return policy.AuditReceipt{}, nil
	}
	n.d.Observe = func(context.Context, []policy.Observation) {}
	body := n.request(b, hgsa.HostKeyRequest{Requested: []hgsa.AttestationResultType{1}})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if w := n.do("POST", attestPath, body); w.Code != 200 || w.Body.Len() < 2000 {
				b.Error(w.Body)
				return
			}
		}
	})
}

// BenchmarkRawSignature is the token operation that an attestation needs, for
// comparison in the same run.
func BenchmarkRawSignature(b *testing.B) {
	key, digest := testKeys()[0], make([]byte, 32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := key.Sign(rand.Reader, digest, crypto.SHA256); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
