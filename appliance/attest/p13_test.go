package attest

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/hgsa"
	"guardhouse/appliance/policy"
)

// What we decided where the public record is silent; see p13_test.go of package
// hgsa.

func TestP13_01_RepliesAreJSONWhateverTheRequestSaysItIs(t *testing.T) {
	n := newNode(t)
	body := n.request(t, hgsa.HostKeyRequest{})
	for _, sent := range []string{"", "application/json", "text/xml", "application/octet-stream", "nonsense"} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("POST", attestPath, bytes.NewReader(body))
		r.Header.Set("Content-Type", sent)
		n.ServeHTTP(w, r)
		if err := n.takes(w, 1, 2); err != nil || w.Header().Get("Content-Type") != "application/json; charset=utf-8" {
			t.Errorf("%q: %v %v", sent, err, w.Header())
		}
	}
	for _, w := range []*httptest.ResponseRecorder{n.do("GET", "/Attestation/Getinfo", nil), n.do("GET", "/Attestation/v2.0/signingCertificates", nil),
		n.do("POST", attestPath, []byte("<x/>")), n.do("GET", "/Attestation/nothing", nil)} {
		if got := w.Header().Get("Content-Type"); got != "application/json; charset=utf-8" {
			t.Errorf("%d: %q", w.Code, got)
		}
	}
}

func TestP13_02_ErrorsOfTheProtocolHaveStatus200AndOthersTheirOwn(t *testing.T) {
	good := newNode(t).request(t, hgsa.HostKeyRequest{})
	for name, c := range map[string]struct {
		prepare      func(*node)
		method, path string
		body         []byte
		status       int
		reply        string
	}{
		"wrong mode":       {nil, "POST", tpmV1, good, 200, "OperationModeErrorReply"},
		"payload":          {nil, "POST", attestPath, []byte("{}"), 200, "PayloadErrorReply"},
		"unknown host":     {func(n *node) { n.edit(func(s *policy.State) { s.Hosts = nil }) }, "POST", attestPath, good, 200, "UnauthorizedErrorReply"},
		"not JSON":         {nil, "POST", attestPath, []byte("x"), 400, "PayloadErrorReply"},
		"unknown path":     {nil, "POST", "/Attestation/x", good, 404, "PayloadErrorReply"},
		"unknown method":   {nil, "DELETE", attestPath, nil, 405, "PayloadErrorReply"},
		"oversize":         {nil, "POST", attestPath, make([]byte, hgsa.MaxBody+1), 413, "PayloadErrorReply"},
		"fault":            {func(n *node) { n.signPanic = true }, "POST", attestPath, good, 500, "UnavailableErrorReply"},
		"token gone":       {func(n *node) { n.signErr = errors.New("x") }, "POST", attestPath, good, 503, "UnavailableErrorReply"},
		"time not trusted": {func(n *node) { n.timeKnown = false }, "POST", attestPath, good, 503, "UnavailableErrorReply"},
	} {
		n := newNode(t)
		if c.prepare != nil {
			c.prepare(n)
		}
		w := n.do(c.method, c.path, c.body)
		var f hgsa.Failure
		if _, err := hgsa.ParseReply(w.Code, w.Body.Bytes()); !errors.As(err, &f) || f.Type() != c.reply || w.Code != c.status || w.Code >= 500 && !f.CanRetry() {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
}

func TestP13_06_BothVersionsContinueWithTpmReplyContinueAndAnEmptyContextBegins(t *testing.T) {
	n := inTPMMode(t)
	ek, certificate := spki(t, n.hostKey), ekCertificate(t, n)
	for name, c := range map[string]struct {
		path string
		body []byte
	}{
		"v1.0 initial":             {tpmV1, initial(ek, 1)},
		"v1.0 continue with empty": {tpmV1, goOn(ek, nil)},
		"v2.0 without context":     {tpmV2, version2(4, certificate)},
		"v2.0 with empty":          {tpmV2, version2(4, certificate, 2, []byte{})},
	} {
		w := n.do("POST", c.path, c.body)
		reply, err := hgsa.ParseReply(w.Code, w.Body.Bytes())
		r, ok := reply.(*hgsa.TpmReplyContinue)
		if err != nil || !ok || len(r.RtpmActiveContext) == 0 {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
}

func TestP13_07_AContextThatDoesNotParseIsAnRtpmError(t *testing.T) {
	n := inTPMMode(t)
	ek, certificate := spki(t, n.hostKey), ekCertificate(t, n)
	for _, context := range [][]byte{{0}, make([]byte, 16), make([]byte, 4096), []byte("genuine framing"), bytes.Repeat([]byte{0xff}, 200)} {
		for path, body := range map[string][]byte{tpmV1: goOn(ek, context), tpmV2: version2(4, certificate, 2, context)} {
			var f *hgsa.RtpmErrorReply
			if w := n.do("POST", path, body); w.Code != 200 || !as(w, &f) || !f.Retryable {
				t.Errorf("%s, %d bytes: %d %s", path, len(context), w.Code, w.Body)
			}
		}
	}
}

// as reads an error reply.
func as[F hgsa.Failure](w *httptest.ResponseRecorder, into *F) bool {
	_, err := hgsa.ParseReply(w.Code, w.Body.Bytes())
	return errors.As(err, into)
}

func TestP13_09_OneCertificateForEachRequestedTypeAndOneVSMKey(t *testing.T) {
	n := newNode(t)
	for _, types := range [][]hgsa.AttestationResultType{{1}, {2}, {1, 2}, {2, 1}, {2, 2}} {
		w := n.do("POST", attestPath, n.request(t, hgsa.HostKeyRequest{Requested: types}))
		reply, err := hgsa.ParseReply(w.Code, w.Body.Bytes())
		if err != nil {
			t.Errorf("%v: %v", types, err)
			continue
		}
		content := reply.(*hgsa.HealthCertificateReply).Content
		if len(content) != len(types) {
			t.Errorf("%v: %d certificates", types, len(content))
			continue
		}
		for i, c := range content {
			cert, err := x509.ParseCertificate(c.Item2)
			if err != nil || c.Item1 != types[i] || !n.vsmKey.PublicKey.Equal(cert.PublicKey) {
				t.Errorf("%v: certificate %d is type %d (%v)", types, i, c.Item1, err)
			}
		}
	}
	// A second VSM key, which the signature does not cover, is refused: the strict choice.
	twice := rewrite(t, n.request(t, hgsa.HostKeyRequest{}), func(r *hgsa.AttestationRequest) {
		other := r.ProvidedContent[0]
		other.Item2 = spki(t, testKeys()[3])
		r.ProvidedContent = append(r.ProvidedContent, other)
	})
	var f *hgsa.PayloadErrorReply
	if w := n.do("POST", attestPath, twice); !as(w, &f) {
		t.Errorf("two VSM keys: %s", w.Body)
	}
}

func TestP13_10_NothingOrTheUnknownRequestedIsAPayloadError(t *testing.T) {
	for _, types := range [][]hgsa.AttestationResultType{{}, {0}, {4}, {1, 99}} {
		n, m := inTPMMode(t), newNode(t)
		hostKey := rewrite(t, m.request(t, hgsa.HostKeyRequest{}), func(r *hgsa.AttestationRequest) { r.RequestedContent = types })
		for name, w := range map[string]*httptest.ResponseRecorder{"TPM": n.do("POST", tpmV1, initial(spki(t, n.hostKey), types...)), "host key": m.do("POST", attestPath, hostKey)} {
			var f *hgsa.PayloadErrorReply
			if !as(w, &f) || f.Retryable || w.Code != 200 {
				t.Errorf("%s %v: %d %s", name, types, w.Code, w.Body)
			}
		}
	}
}

func TestP13_12_ReasonsNameTheFailedPoliciesOnly(t *testing.T) {
	n, s := withBoot(t, 0)
	n.edit(func(st *policy.State) {
		st.CIPolicies = nil
		st.PolicySets = map[string]policy.PolicySet{policy.FabricWide: {Enabled: map[string]bool{policy.HgsBitLockerEnabled: true}}}
	})
	var f *hgsa.PolicyEvaluationErrorReply
	w, _, _ := n.converse(t, s, 1)
	if !as(w, &f) || f.Retryable || len(f.Reasons) != 2 {
		t.Fatal(w.Body)
	}
	for i, want := range []string{"81f110ba", "347da547"} { // Hgs_CiPolicy, Hgs_BitLockerEnabled
		if f.Reasons[i].Result || !strings.HasPrefix(f.Reasons[i].Reason.String(), want) {
			t.Errorf("reason %d: %+v, want %s", i, f.Reasons[i], want)
		}
	}
	if strings.Contains(w.Body.String(), "true") {
		t.Errorf("a policy that is met is told: %s", w.Body)
	}
}

func TestP13_16_TheSubjectIsTheHostsKeyHash(t *testing.T) {
	n := newNode(t)
	tpm, s := withBoot(t, 0)
	last, _, _ := tpm.converse(t, s, 1)
	sum := sha256.Sum256(spki(t, n.hostKey)) // both nodes' hosts have this key, as host key and as EK
	want := fmt.Sprintf("%X", sum)
	for name, w := range map[string]*httptest.ResponseRecorder{"host key": n.do("POST", attestPath, n.request(t, hgsa.HostKeyRequest{})), "TPM": last} {
		reply, err := hgsa.ParseReply(w.Code, w.Body.Bytes())
		if err != nil {
			t.Fatal(name, err)
		}
		cert, err := x509.ParseCertificate(reply.(*hgsa.HealthCertificateReply).Content[0].Item2)
		if err != nil || cert.Subject.String() != "CN="+want {
			t.Errorf("%s: %s %v, want %s", name, cert.Subject, err, want)
		}
	}
}

func TestP13_17_TheCATrustletIsNotServed(t *testing.T) {
	n, m := inTPMMode(t), newNode(t)
	certificate := ekCertificate(t, n)
	good := m.request(t, hgsa.HostKeyRequest{})
	var f *hgsa.PayloadErrorReply
	for _, typ := range []int{3, 5, 6, 7} {
		with := rewrite(t, good, func(r *hgsa.AttestationRequest) {
			r.ProvidedContent = append(r.ProvidedContent, hgsa.TupleOfAttestationProvidedContentTypebase64Binary{
				Item1: hgsa.AttestationProvidedContentType(typ), Item2: []byte{1}})
		})
		for name, w := range map[string]*httptest.ResponseRecorder{"TPM": n.do("POST", tpmV2, version2(4, certificate, typ, []byte{1})), "host key": m.do("POST", attestPath, with)} {
			if !as(w, &f) || f.Retryable {
				t.Errorf("%s, content type %d: %s", name, typ, w.Body)
			}
		}
	}
	for name, w := range map[string]*httptest.ResponseRecorder{"TPM": n.do("POST", tpmV1, initial(spki(t, n.hostKey), 3)),
		"host key": m.do("POST", attestPath, rewrite(t, good, func(r *hgsa.AttestationRequest) { r.RequestedContent[0] = 3 }))} {
		if !as(w, &f) || f.Retryable {
			t.Errorf("%s, result type 3: %s", name, w.Body)
		}
	}
}

// TestP13_19_TheChainIsValidatedAtEachAttestation: what counts is the
// certificate on record, for the key on record, under the roots of this moment.
func TestP13_19_TheChainIsValidatedAtEachAttestation(t *testing.T) {
	n, s := withBoot(t, 0)
	certificate := ekCertificate(t, n) // self-signed: it is its own root
	anchor := policy.Anchor{Thumbprint: policy.Thumbprint(certificate), Vendor: "lab", Root: true, Name: "TPM", Certificate: certificate}
	n.edit(func(st *policy.State) {
		h := st.Hosts[n.hostID]
		identity := *h.TPM
		identity.Version, identity.EKCert = policy.Version2, certificate
		h.TPM = &identity
		st.Hosts = map[string]policy.Host{n.hostID: h}
		base, ci := st.Baselines["base"], st.CIPolicies["ci"]
		base.Version, ci.Version = policy.Version2, policy.Version2
		st.Baselines, st.CIPolicies = map[string]policy.Baseline{"base": base}, map[string]policy.CIPolicy{"ci": ci}
	})
	trust := func(anchors map[string]policy.Anchor, off map[string]bool) {
		n.edit(func(st *policy.State) { st.Anchors, st.VendorsOff = anchors, off })
	}
	attests := func() bool { w, _, _ := n.converse(t, s, 1); n.boot += time.Minute; return n.takes(w, 1) == nil }
	step := func(what string, want bool) {
		t.Helper()
		if attests() != want {
			t.Errorf("%s: passes %t", what, !want)
		}
	}
	step("no roots", false)
	trust(map[string]policy.Anchor{anchor.Thumbprint: anchor}, nil)
	step("root imported", true)
	trust(map[string]policy.Anchor{anchor.Thumbprint: anchor}, map[string]bool{"lab": true})
	step("vendor switched off", false)
	trust(map[string]policy.Anchor{anchor.Thumbprint: anchor}, nil)
	step("and on", true)
	// A certificate that leads to a root, but for another key than the registered one.
	n.edit(func(st *policy.State) {
		c := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "TPM"}, NotAfter: noon, IsCA: true, BasicConstraintsValid: true}
		der, err := x509.CreateCertificate(rand.Reader, c, c, &testKeys()[3].PublicKey, testKeys()[3])
		if err != nil {
			t.Fatal(err)
		}
		h := st.Hosts[n.hostID]
		identity := *h.TPM
		identity.EKCert = der
		h.TPM = &identity
		st.Hosts = maps.Clone(st.Hosts)
		st.Hosts[n.hostID] = h
		other := policy.Anchor{Thumbprint: policy.Thumbprint(der), Vendor: "lab", Root: true, Name: "TPM", Certificate: der}
		st.Anchors = map[string]policy.Anchor{other.Thumbprint: other}
	})
	step("another key's certificate", false)
}

func TestP13_21_EveryIssuanceIsAuditedWithSessionAndHost(t *testing.T) {
	n := newNode(t)
	session := hgsa.GUID{1, 2, 3}
	n.do("POST", attestPath, n.request(t, hgsa.HostKeyRequest{SessionId: session}))
	tpm, s := withBoot(t, 0)
	tpm.converse(t, s, 1, 2)
	for name, c := range map[string]struct {
		n       *node
		session hgsa.GUID
	}{"host key": {n, session}, "TPM": {tpm, hgsa.GUID{}}} {
		e := c.n.audit
		if len(e) != 1 || e[0].Kind != policy.AuditGrant || e[0].Subject != c.n.hostID || e[0].Facts["session"] != c.session.String() || e[0].Facts["certificate1"] == "" {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

// TestATPMWithoutABankIsToldWhichOneToSwitchOn: SHA-384 serves in place of
// SHA-256; with SHA-1 alone a host is refused by name.
func TestATPMWithoutABankIsToldWhichOneToSwitchOn(t *testing.T) {
	n, s := withBoot(t, 0)
	w := windowsBootIn(t, n, 0, evidence.SHA384)
	s.log, s.bank, s.pcrs = w.Log(), evidence.SHA384, w.PCRs(evidence.SHA384)
	answer, _, rounds := n.converse(t, s, 1)
	if err := n.takes(answer, 1); err != nil || rounds != 6 || !strings.HasSuffix(n.audit[0].Facts["device"], "bank sha384") {
		t.Errorf("SHA-384: %v after %d rounds, %+v", err, rounds, n.audit)
	}
	n.audit = nil
	w = windowsBootIn(t, n, 0, evidence.SHA1)
	s.log, s.bank, s.pcrs = w.Log(), evidence.SHA1, w.PCRs(evidence.SHA1)
	answer, _, _ = n.converse(t, s, 1)
	var f *hgsa.RtpmErrorReply
	if !as(answer, &f) || len(n.audit) != 1 || n.audit[0].Outcome != "tpm-bank-missing" || !strings.Contains(n.audit[0].Remedy, "SHA-256") {
		t.Errorf("SHA-1: %s %+v", answer.Body, n.audit)
	}
	// The TPM has the bank, but firmware of before 2019 logs SHA-1 only.
	n.audit = nil
	s.bank, s.pcrs = evidence.SHA256, windowsBoot(t, n, 0).PCRs(evidence.SHA256)
	answer, _, _ = n.converse(t, s, 1)
	var refused *hgsa.TcgLogValidationErrorReply
	if !as(answer, &refused) || len(n.audit) != 1 || !strings.Contains(n.audit[0].Facts["finding01"], "bank-missing") || !strings.Contains(n.audit[0].Remedy, "SHA-1 only") {
		t.Errorf("log in SHA-1: %s %+v", answer.Body, n.audit)
	}
}
