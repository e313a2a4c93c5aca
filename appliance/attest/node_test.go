package attest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"io"
	"maps"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"guardhouse/appliance/health"
	"guardhouse/appliance/hgsa"
	"guardhouse/appliance/policy"
)

var noon = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

var testKeys = sync.OnceValue(func() [4]*rsa.PrivateKey {
	var k [4]*rsa.PrivateKey
	for i := range k {
		var err error
		if k[i], err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			panic(err)
		}
	}
	return k
})

// node is everything around the service, in memory.
type node struct {
	*Service
	mu        sync.Mutex
	snap      policy.Snapshot
	timeKnown bool
	auditErr  error
	signErr   error
	signPanic bool
	onSign    func()
	boot      time.Duration
	audit     []policy.AuditEntry
	refusals  []policy.Refusal
	observed  []policy.Observation
	logged    strings.Builder
	signerKey *rsa.PrivateKey
	hostKey   *rsa.PrivateKey
	vsmKey    *rsa.PrivateKey
	hostID    string
	signer    *x509.Certificate
}

func spki(t testing.TB, key *rsa.PrivateKey) []byte {
	t.Helper()
	b, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// addSigner records an attestation signer whose certificate begins at from.
func (n *node) addSigner(t testing.TB, key *rsa.PrivateKey, from time.Time, life time.Duration, primary, enabled bool) *x509.Certificate {
	t.Helper()
	der, err := health.NewSignerCertificate(rand.Reader, health.Between(from, from, true), "", life, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	ref := policy.RefOf(cert.Raw) // several certificates for one key in these tests
	n.edit(func(s *policy.State) {
		s.Keys = maps.Clone(s.Keys)
		s.Keys[ref] = policy.Key{Ref: ref, Role: policy.RoleAttestationSigner, Certificate: der, Primary: primary, Enabled: enabled}
	})
	return cert
}

// edit makes the next snapshot.
func (n *node) edit(f func(*policy.State)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.snap.Index++
	f(&n.snap.State)
}

func newNode(t testing.TB) *node {
	k := testKeys()
	n := &node{timeKnown: true, boot: time.Hour, signerKey: k[0], hostKey: k[1], vsmKey: k[2]}
	n.snap.State = policy.NewState()
	n.snap.State.Service = &policy.Service{Name: "hgs.example.test", Mode: policy.ModeHostKey, HTTP: true, HealthLife: policy.DefaultHealthLife}
	n.hostID = policy.HostID(spki(t, n.hostKey))
	n.snap.State.Hosts[n.hostID] = policy.Host{ID: n.hostID, Name: "host1", HostKey: spki(t, n.hostKey), Class: "default"}
	n.signer = n.addSigner(t, n.signerKey, noon.Add(-24*time.Hour), health.DefaultSignerLife, true, true)
	n.Service = New(Deps{
		Snapshot: func() policy.Snapshot { n.mu.Lock(); defer n.mu.Unlock(); return n.snap },
		Now: func() (time.Time, time.Time, bool) {
			n.mu.Lock()
			defer n.mu.Unlock()
			return noon, noon.Add(time.Second), n.timeKnown
		},
		Stamp:    func() policy.Stamp { return policy.Stamp{Earliest: noon.UnixMilli(), Latest: noon.UnixMilli() + 1000} },
		BootTime: func() time.Duration { n.mu.Lock(); defer n.mu.Unlock(); return n.boot },
		Signer:   func(policy.Key) (crypto.Signer, error) { return n, nil },
		Audit: func(_ context.Context, e policy.AuditEntry) (policy.AuditReceipt, error) {
			n.mu.Lock()
			defer n.mu.Unlock()
			if n.auditErr != nil {
				return policy.AuditReceipt{}, n.auditErr
			}
			n.audit = append(n.audit, e)
			return policy.AuditReceipt{Seq: uint64(len(n.audit))}, nil
		},
		Refuse: func(_ context.Context, r policy.Refusal) error {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.refusals = append(n.refusals, r)
			return nil
		},
		Observe: func(_ context.Context, o []policy.Observation) {
			n.mu.Lock()
			defer n.mu.Unlock()
			for i := range o {
				if !o[i].Fits() {
					t.Errorf("an observation that the ledger drops: %+v", o[i])
				}
			}
			n.observed = append(n.observed, o...)
		},
		Random: rand.Reader,
		Log: func(f string, a ...any) {
			n.mu.Lock()
			defer n.mu.Unlock()
			fmt.Fprintf(&n.logged, f+"\n", a...)
		},
	})
	return n
}

// Public and Sign make the node its own HSM.
func (n *node) Public() crypto.PublicKey { return &n.signerKey.PublicKey }

func (n *node) Sign(r io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	if n.signPanic {
		panic("the secret reason of a fault")
	}
	if n.onSign != nil {
		n.onSign()
	}
	if n.signErr != nil {
		return nil, n.signErr
	}
	return n.signerKey.Sign(r, digest, o)
}

func (n *node) do(method, path string, body []byte) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(method, path, bytes.NewReader(body))
	r.RemoteAddr = "192.0.2.7:4711"
	n.ServeHTTP(w, r)
	return w
}

const attestPath = "/Attestation/v2.0/hostkeyattest"

func (n *node) request(t testing.TB, q hgsa.HostKeyRequest) []byte {
	t.Helper()
	if q.VSMKey == nil {
		q.VSMKey = &n.vsmKey.PublicKey
	}
	if q.Requested == nil {
		q.Requested = []hgsa.AttestationResultType{1, 2}
	}
	body, err := hgsa.NewHostKeyRequest(rand.Reader, n.hostKey, q)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// takes is what a host makes of an answer.
func (n *node) takes(w *httptest.ResponseRecorder, wanted ...health.Purpose) error {
	reply, err := hgsa.ParseReply(w.Code, w.Body.Bytes())
	if err != nil {
		return err
	}
	var got []health.Certificate
	for _, c := range reply.(*hgsa.HealthCertificateReply).Content {
		got = append(got, health.Certificate{Purpose: health.Purpose(c.Item1), DER: c.Item2})
	}
	return health.CheckReply(got, wanted, &n.vsmKey.PublicKey, []*x509.Certificate{n.signer}, health.Between(noon, noon, true))
}

// rewrite changes a request after it was signed.
func rewrite(t *testing.T, body []byte, f func(*hgsa.AttestationRequest)) []byte {
	t.Helper()
	r, _, err := hgsa.DecodeHostKeyAttest(body)
	if err != nil {
		t.Fatal(err)
	}
	f(r)
	return hgsa.EncodeRequest(r, hgsa.Style{})
}
