package protect

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/intake"
	"guardhouse/appliance/kps"
	"guardhouse/appliance/policy"
)

func TestWrongPathsAndMethodsGetTypedReplies(t *testing.T) {
	n := newNode(t)
	for _, c := range []struct {
		method, path string
		status       int
		code         kps.Code
		allow        string
	}{
		{"GET", "/KeyProtection/", 404, kps.CodeNotFound, ""},
		{"GET", "/KeyProtection/service/metadata/2015-01/metadata.xml", 404, kps.CodeNotFound, ""},
		{"POST", "/KeyProtection/service/v9.0/rolltransportkey", 404, kps.CodeNotFound, ""},
		{"GET", kps.RollPathV2, 405, kps.CodeMethodNotAllowed, "POST"},
		{"PUT", kps.RollPathV1, 405, kps.CodeMethodNotAllowed, "POST"},
		{"DELETE", kps.MetadataPath, 405, kps.CodeMethodNotAllowed, "GET, POST, HEAD"},
	} {
		w := n.do(c.method, c.path, nil)
		wantRefusal(t, w, c.status, c.code, "")
		if got := w.Header().Get("Allow"); got != c.allow {
			t.Errorf("%s %s: Allow %q", c.method, c.path, got)
		}
	}
	if !strings.Contains(n.log.String(), `"v9.0"`) {
		t.Errorf("the unknown version is not in the log: %s", &n.log)
	}
}

func TestBodiesThatAreNoRequests(t *testing.T) {
	n := newNode(t)
	wantRefusal(t, n.do("POST", kps.RollPathV2, []byte("{}"), "Content-Type", "application/json"), 415, kps.CodeMediaType, "xml")
	wantRefusal(t, n.do("POST", kps.RollPathV2, []byte("{}"), "Content-Type", "TEXT/XML"), 400, kps.CodeInvalidRequest, "")
	wantRefusal(t, n.do("POST", kps.RollPathV2, nil), 400, kps.CodeInvalidRequest, "")
	wantRefusal(t, n.do("POST", kps.RollPathV2, make([]byte, kps.MaxRequest+1)), 413, kps.CodeTooLarge, "")

	r := httptest.NewRequest("POST", kps.RollPathV2, endless{})
	r.ContentLength = -1
	w := httptest.NewRecorder()
	n.service.ServeHTTP(w, r)
	wantRefusal(t, w, 413, kps.CodeTooLarge, "")

	r = httptest.NewRequest("POST", kps.RollPathV2, broken{})
	w = httptest.NewRecorder()
	n.service.ServeHTTP(w, r)
	wantRefusal(t, w, 400, kps.CodeInvalidRequest, "")
	if left := n.service.budget.Left(); left != bodyBudget {
		t.Errorf("%d bytes of the budget are lost", bodyBudget-left)
	}
	n.service.budget = intake.NewBudget(0, bodyStart)
	wantRefusal(t, n.do("POST", kps.RollPathV2, make([]byte, 4*bodyStart)), 503, kps.CodeUnavailable, "")
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("reset") }

func TestWithoutTimeOrSetupNothingIsSigned(t *testing.T) {
	n := newNode(t)
	protector, _ := n.protector()
	cert := n.certificate()
	before := n.signatures.Load()
	n.time = false
	w := n.roll(protector, cert)
	wantRefusal(t, w, 503, kps.CodeUnavailable, "the dates of the health certificate can't be judged")
	if w.Header().Get("Retry-After") == "" {
		t.Error("the host is not told to come back")
	}
	n.time = true
	n.snap = policy.Snapshot{State: policy.NewState()}
	wantRefusal(t, n.roll(protector, cert), 503, kps.CodeUnavailable, "set up")
	wantRefusal(t, n.do("GET", kps.MetadataPath, nil), 503, kps.CodeUnavailable, "set up")
	if n.signatures.Load() != before {
		t.Error("something was signed")
	}
}

// TestMetadataGoesOnWithoutTrustedTime: tenants need no clock of ours to learn the guardian's keys.
func TestMetadataGoesOnWithoutTrustedTime(t *testing.T) {
	n := newNode(t)
	n.time = false
	w := n.do("GET", kps.MetadataPath, nil)
	if w.Code != 200 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if _, err := kps.ParseMetadata(w.Body.Bytes()); err != nil {
		t.Error(err)
	}
}

func TestMetadataNamesWhatIsMissing(t *testing.T) {
	for role, want := range map[policy.KeyRole]kps.Code{
		policy.RoleEncryption: kps.CodeNoPrimaryEncryption, policy.RoleSigning: kps.CodeNoPrimarySigning, policy.RoleCommunications: kps.CodeInternal,
	} {
		n := newNode(t)
		n.changeKey(role, func(k *policy.Key) { k.Primary = false })
		w := n.do("GET", kps.MetadataPath, nil)
		message := string(want)
		if want == kps.CodeInternal {
			message = "communications"
		}
		wantRefusal(t, w, 500, want, message)
		if len(n.refused) != 1 {
			t.Errorf("%s: not noted", role)
		}
	}
}

func TestMetadataAnswersPostAndHeadAndSparesTheToken(t *testing.T) {
	n := newNode(t)
	first := n.do("GET", kps.MetadataPath, nil)
	signatures := n.signatures.Load()
	for _, method := range []string{"GET", "POST"} {
		w := n.do(method, strings.ToLower(kps.MetadataPath), nil)
		if w.Code != 200 || !bytes.Equal(w.Body.Bytes(), first.Body.Bytes()) {
			t.Errorf("%s: %d", method, w.Code)
		}
	}
	if w := n.do("HEAD", kps.MetadataPath, nil); w.Code != 200 || w.Body.Len() != 0 || w.Header().Get("Content-Length") == "0" {
		t.Errorf("HEAD: %d, %d bytes", w.Code, w.Body.Len())
	}
	if n.signatures.Load() != signatures {
		t.Errorf("%d signatures for the same document", n.signatures.Load()-signatures)
	}
	n.change(func(*policy.State) {})
	n.token = func() error { return errToken }
	wantRefusal(t, n.do("GET", kps.MetadataPath, nil), 503, kps.CodeUnavailable, "HSM")
	signatures = n.signatures.Load()
	wantRefusal(t, n.do("GET", kps.MetadataPath, nil), 503, kps.CodeUnavailable, "HSM")
	if n.signatures.Load() != signatures {
		t.Error("a token that just failed is asked again for everyone who waits")
	}
	n.token = nil
	n.boot += failureStands
	if w := n.do("GET", kps.MetadataPath, nil); w.Code != 200 {
		t.Errorf("after the token came back: %d", w.Code)
	}
}

func TestPanicBecomesAReplyWithoutDetails(t *testing.T) {
	n := newNode(t)
	protector, _ := n.protector()
	cert := n.certificate()
	n.decrypt = func([]byte) ([]byte, error) { panic("secret detail") }
	w := n.roll(protector, cert)
	wantRefusal(t, w, 500, kps.CodeInternal, "internal fault")
	if strings.Contains(w.Body.String(), "secret detail") || strings.Contains(w.Body.String(), ".go") {
		t.Errorf("the reply tells about the fault: %s", w.Body)
	}
	if !strings.Contains(n.log.String(), "secret detail") {
		t.Error("the fault is not in the log")
	}
}

func TestRule9_2_RateLimit_PerSourceAndHost(t *testing.T) {
	n := newNode(t)
	d := n.deps()
	d.RollsPerMinute = 2
	n.service = New(d)
	protector, _ := n.protector()
	cert := n.certificate()
	for i, want := range []int{200, 200, 503, 503} {
		if w := n.roll(protector, cert); w.Code != want {
			t.Errorf("request %d: %d, want %d", i, w.Code, want)
		}
	}
	n.boot += time.Minute
	if w := n.roll(protector, cert); w.Code != 200 {
		t.Errorf("a minute later: %d", w.Code)
	}
}

func TestStatusOfACodeCanBeSet(t *testing.T) {
	n := newNode(t)
	d := n.deps()
	d.Status = map[kps.Code]int{kps.CodeHealthCertificate: http.StatusForbidden, kps.CodeInvalidRequest: 200}
	n.service = New(d)
	wantRefusal(t, n.roll([]byte("x"), []byte("x")), http.StatusForbidden, kps.CodeHealthCertificate, "")
	wantRefusal(t, n.do("POST", kps.RollPathV2, nil), 400, kps.CodeInvalidRequest, "")
}

// A caller that hangs up after the key was unwrapped must not keep the grant
// out of the audit.
func TestHangingUpDoesNotHideAGrant(t *testing.T) {
	n := newNode(t)
	protector, _ := n.protector()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r := httptest.NewRequest("POST", kps.RollPathV2, bytes.NewReader(kps.NewRequest(protector, n.certificate()).Marshal())).WithContext(ctx)
	calls := 0
	n.token = func() error {
		if calls++; calls == 2 {
			cancel()
		}
		return nil
	}
	n.service.ServeHTTP(httptest.NewRecorder(), r)
	if len(n.entries) != 1 || n.entries[0].Kind != policy.AuditGrant {
		t.Errorf("audit %+v", n.entries)
	}
}

func FuzzRoll(f *testing.F) {
	n := newNode(f)
	protector, _ := n.protector()
	cert := n.certificate()
	f.Add(kps.NewRequest(protector, cert).Marshal())
	f.Add([]byte("<RollTransportKeyRequest xmlns=\"" + kps.ServiceNamespace + "\"/>"))
	f.Fuzz(func(t *testing.T, body []byte) {
		w := n.do("POST", kps.RollPathV2, body)
		if w.Code == http.StatusInternalServerError {
			t.Errorf("%s", &n.log)
		}
		if w.Code != http.StatusOK {
			if _, err := kps.ParseError(w.Body.Bytes()); err != nil {
				t.Errorf("%d %q: %v", w.Code, w.Body, err)
			}
		}
	})
}

func BenchmarkRoll(b *testing.B) {
	n := newNode(b)
	d := n.deps()
	d.RollsPerMinute = 1 << 30
	n.service = New(d)
	protector, _ := n.protector()
	body := kps.NewRequest(protector, n.certificate()).Marshal()
	b.ReportAllocs()
	for b.Loop() {
		if w := n.do("POST", kps.RollPathV2, body); w.Code != http.StatusOK {
			b.Fatal(w.Body)
		}
	}
}
