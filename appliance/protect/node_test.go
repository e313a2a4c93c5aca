package protect

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"guardhouse/appliance/health"
	"guardhouse/appliance/kps"
	"guardhouse/appliance/policy"
)

// Keys of all tests, made once.
const (
	signing = iota
	encryption
	communications
	attestation
	foreign // attestation signer of another service
	ownerSigning
	ownerEncryption
	vsm // the host's encryption identity key
	spareSigning
	spareEncryption
	keyCount
)

var testKeys = sync.OnceValue(func() []*rsa.PrivateKey {
	keys := make([]*rsa.PrivateKey, keyCount)
	for i := range keys {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		keys[i] = k
	}
	return keys
})

var now = time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)

var hostID = strings.ToUpper(strings.Repeat("0f", 32))

// node is a node in memory: records, a token, an audit.
type node struct {
	t       testing.TB
	mu      sync.Mutex
	snap    policy.Snapshot
	time    bool
	boot    time.Duration
	entries []policy.AuditEntry
	refused []policy.Refusal
	seen    []policy.ProtectorUse
	noted   []policy.Observation
	log     bytes.Buffer

	auditErr   error
	token      func() error                 // nil, or what the token does instead
	decrypt    func([]byte) ([]byte, error) // nil, or another decryption
	onAudit    func(policy.AuditEntry)      // called before the entry is durable
	signatures atomic.Int64
	service    *Service
}

func certify(t testing.TB, name string, k *rsa.PrivateKey) *x509.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(int64(len(name))), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(1000 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func window() health.Window { return health.Between(now.Add(-time.Second), now.Add(time.Second), true) }

func signerCertificate(t testing.TB, k *rsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := health.NewSignerCertificate(rand.Reader, window(), "", health.DefaultSignerLife, k)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func record(role policy.KeyRole, c *x509.Certificate) policy.Key {
	return policy.Key{Ref: policy.RefOf(c.RawSubjectPublicKeyInfo), Role: role, Certificate: c.Raw, Primary: true, Enabled: true}
}

func newNode(t testing.TB) *node {
	n := &node{t: t, time: true, boot: time.Hour}
	s := policy.NewState()
	s.Service = &policy.Service{Name: "hgs.example.test", Mode: policy.ModeHostKey}
	k := testKeys()
	for role, c := range map[policy.KeyRole]*x509.Certificate{
		policy.RoleSigning: certify(t, "guardian signing", k[signing]), policy.RoleEncryption: certify(t, "guardian encryption", k[encryption]),
		policy.RoleCommunications: certify(t, "communications", k[communications]), policy.RoleAttestationSigner: signerCertificate(t, k[attestation]),
	} {
		r := record(role, c)
		s.Keys[r.Ref] = r
	}
	s.Hosts[hostID] = policy.Host{ID: hostID, Name: "host1"}
	n.snap = policy.Snapshot{Index: 7, NodeID: "node", State: s}
	n.service = New(n.deps())
	return n
}

func (n *node) deps() Deps {
	return Deps{
		Snapshot: func() policy.Snapshot { n.mu.Lock(); defer n.mu.Unlock(); return n.snap },
		Now: func() (time.Time, time.Time, bool) {
			return now.Add(-time.Second), now.Add(time.Second), n.time
		},
		Stamp:    func() policy.Stamp { return policy.Stamp{Earliest: now.UnixMilli(), Latest: now.UnixMilli()} },
		BootTime: func() time.Duration { return n.boot },
		Signer: func(k policy.Key) (crypto.Signer, error) {
			return tokenSigner{n, n.private(k)}, nil
		},
		Decrypter: func(k policy.Key) (kps.Decrypter, error) { return tokenDecrypter{n, n.private(k)}, nil },
		Audit: func(ctx context.Context, e policy.AuditEntry) (policy.AuditReceipt, error) {
			n.mu.Lock()
			defer n.mu.Unlock()
			if n.onAudit != nil {
				n.onAudit(e)
			}
			if n.auditErr != nil {
				return policy.AuditReceipt{}, n.auditErr
			}
			n.entries = append(n.entries, e)
			return policy.AuditReceipt{Seq: uint64(len(n.entries))}, ctx.Err()
		},
		Refuse: func(_ context.Context, r policy.Refusal) error {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.refused = append(n.refused, r)
			return nil
		},
		Observe: func(_ context.Context, o []policy.Observation) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.noted = append(n.noted, o...)
		},
		Used: func(_ context.Context, u policy.ProtectorUse) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.seen = append(n.seen, u)
		},
		Random: rand.Reader,
		Log: func(f string, a ...any) {
			n.mu.Lock()
			defer n.mu.Unlock()
			fmt.Fprintf(&n.log, f+"\n", a...)
		},
	}
}

// private finds the key by its public half, as a token would.
func (n *node) private(k policy.Key) *rsa.PrivateKey {
	for _, p := range testKeys() {
		spki, err := x509.MarshalPKIXPublicKey(p.Public())
		if err == nil && policy.RefOf(spki) == k.Ref {
			return p
		}
	}
	return nil
}

type tokenSigner struct {
	n *node
	*rsa.PrivateKey
}

func (s tokenSigner) Sign(r io.Reader, d []byte, o crypto.SignerOpts) ([]byte, error) {
	s.n.signatures.Add(1)
	if s.n.token != nil {
		if err := s.n.token(); err != nil {
			return nil, err
		}
	}
	return s.PrivateKey.Sign(r, d, o)
}

type tokenDecrypter struct {
	n *node
	k *rsa.PrivateKey
}

func (d tokenDecrypter) Decrypt(ctx context.Context, c []byte, o kps.OAEP) ([]byte, error) {
	if d.n.token != nil {
		if err := d.n.token(); err != nil {
			return nil, err
		}
	}
	if d.n.decrypt != nil {
		return d.n.decrypt(c)
	}
	return kps.MemoryKey{Key: d.k}.Decrypt(ctx, c, o)
}

var errToken = errors.New("token removed")

// change edits a copy of the records and gives it a new index.
func (n *node) change(edit func(s *policy.State)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := policy.NewState()
	service := *n.snap.State.Service
	s.Service = &service
	for k, v := range n.snap.State.Keys {
		s.Keys[k] = v
	}
	for k, v := range n.snap.State.Hosts {
		s.Hosts[k] = v
	}
	s.Denials, s.Offline = n.snap.State.Denials, n.snap.State.Offline
	for k, v := range n.snap.State.Signers {
		s.Signers[k] = v
	}
	s.Tenants = n.snap.State.Tenants
	edit(&s)
	n.snap = policy.Snapshot{Index: n.snap.Index + 1, NodeID: "node", State: s}
}

func (n *node) changeKey(role policy.KeyRole, edit func(k *policy.Key)) {
	n.change(func(s *policy.State) {
		for ref, k := range s.Keys {
			if k.Role == role {
				edit(&k)
				s.Keys[ref] = k
			}
		}
	})
}

func (n *node) changeHost(edit func(h *policy.Host)) {
	n.change(func(s *policy.State) {
		h := s.Hosts[hostID]
		edit(&h)
		s.Hosts[hostID] = h
	})
}

func (n *node) do(method, path string, body []byte, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, bytes.NewReader(body))
	r.RemoteAddr = "192.0.2.1:50000"
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	n.service.ServeHTTP(w, r)
	return w
}

func (n *node) roll(protector, certificate []byte) *httptest.ResponseRecorder {
	return n.do(http.MethodPost, kps.RollPathV2, kps.NewRequest(protector, certificate).Marshal(), "Content-Type", "application/xml")
}

// metadata imports the guardian as a tenant would.
func (n *node) guardian() kps.Guardian {
	n.t.Helper()
	w := n.do(http.MethodGet, kps.MetadataPath, nil)
	m, err := kps.ParseMetadata(w.Body.Bytes())
	if err != nil {
		n.t.Fatalf("%d %s: %v", w.Code, w.Body, err)
	}
	g, _, err := m.Import(kps.ImportOptions{AllowUntrustedRoot: true, Now: now})
	if err != nil || m.Signature != kps.SignatureValid {
		n.t.Fatalf("%v, signature %v", err, m.Signature)
	}
	return *g
}

func owner(t testing.TB) kps.Owner {
	k := testKeys()
	return kps.Owner{SigningCertificate: certify(t, "owner signing", k[ownerSigning]), EncryptionCertificate: certify(t, "owner encryption", k[ownerEncryption]),
		Signer: k[ownerSigning], Decrypter: kps.MemoryKey{Key: k[ownerEncryption]}}
}

func (n *node) protector() ([]byte, []byte) {
	n.t.Helper()
	p, tk, err := kps.New(owner(n.t), []kps.Guardian{n.guardian()}, rand.Reader)
	if err != nil {
		n.t.Fatal(err)
	}
	return p.Bytes(), tk
}

// healthy makes a health certificate by a signer whose certificate is cert.
func healthy(t testing.TB, o health.Order, cert *x509.Certificate, k *rsa.PrivateKey) []byte {
	t.Helper()
	if o.Key == nil {
		o.Key = &testKeys()[vsm].PublicKey
	}
	if o.HostID == "" {
		o.HostID = hostID
	}
	if o.Purpose == 0 {
		o.Purpose = health.Encryption
	}
	if o.Life == 0 {
		o.Life = time.Hour
	}
	der, err := health.Issue(rand.Reader, window(), o, cert, k)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (n *node) signerCert() *x509.Certificate {
	for _, k := range n.snap.State.Keys {
		if k.Role == policy.RoleAttestationSigner {
			c, err := x509.ParseCertificate(k.Certificate)
			if err != nil {
				n.t.Fatal(err)
			}
			return c
		}
	}
	n.t.Fatal("no attestation signer")
	return nil
}

func (n *node) certificate() []byte {
	return healthy(n.t, health.Order{}, n.signerCert(), testKeys()[attestation])
}

// opened is the host's side of a roll.
func opened(t testing.TB, protector []byte, w *httptest.ResponseRecorder) (*kps.Rolled, error) {
	t.Helper()
	if w.Code != http.StatusOK {
		e, err := kps.ParseError(w.Body.Bytes())
		if err != nil {
			t.Fatalf("%d %q: %v", w.Code, w.Body, err)
		}
		return nil, e
	}
	resp, err := kps.ParseResponse(w.Body.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return kps.NewRequest(protector, nil).OpenReply(t.Context(), resp, kps.MemoryKey{Key: testKeys()[vsm]})
}

// wantRefusal checks code, status and that nobody was told a secret.
func wantRefusal(t testing.TB, w *httptest.ResponseRecorder, status int, code kps.Code, message string) {
	t.Helper()
	e, err := kps.ParseError(w.Body.Bytes())
	if err != nil {
		t.Fatalf("%d %q: %v", w.Code, w.Body, err)
	}
	if w.Code != status || e.Code != code || !strings.Contains(e.Message, message) {
		t.Errorf("got %d %s %q, want %d %s %q", w.Code, e.Code, e.Message, status, code, message)
	}
	if got := w.Header().Get("Content-Type"); got != "application/xml; charset=utf-8" {
		t.Errorf("content type %q", got)
	}
	if (status == http.StatusServiceUnavailable) != (w.Header().Get("Retry-After") != "") {
		t.Errorf("status %d, Retry-After %q", status, w.Header().Get("Retry-After"))
	}
}

func sum(b []byte) string { s := sha256.Sum256(b); return hex.EncodeToString(s[:]) }
