package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// manyKeys is a ledger that signs handshakes with the key that is asked for, and with no other.
type manyKeys struct {
	mu   sync.Mutex
	keys map[policy.KeyRef]crypto.Signer
}

// certificate makes a key and its self-signed certificate.
func (m *manyKeys) certificate(t *testing.T, key crypto.Signer) []byte {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(int64(len(m.keys) + 1)), DNSNames: []string{"hgs.example.test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keys[policy.RefOf(leaf.RawSubjectPublicKeyInfo)] = key
	return der
}

func (m *manyKeys) sign(_ context.Context, _ rpc.Caller, r rpc.NodeSignRequest) (rpc.NodeSignReply, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	key, ok := m.keys[r.Ref]
	if !ok {
		return rpc.NodeSignReply{}, rpc.ErrRefused.With("no such key")
	}
	opts := crypto.SignerOpts(crypto.Hash(r.Hash))
	if r.PSS {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.Hash(r.Hash)}
	}
	sig, err := key.Sign(rand.Reader, r.Digest, opts)
	return rpc.NodeSignReply{Signature: sig}, err
}

func (m *manyKeys) client(t *testing.T) *rpc.Client {
	path := filepath.Join(t.TempDir(), "ledger.sock")
	s := rpc.NewServer(rpc.UIDs{rpc.HGS: uint32(os.Getuid())})
	rpc.Handle(s, rpc.LedgerSign, m.sign, rpc.HGS)
	l, err := rpc.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { s.Serve(ctx, l) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return rpc.NewClient(path)
}

// secured serves h by HTTPS; put replaces the certificate as new records do.
func secured(t *testing.T, m *manyKeys, h http.Handler) (addr string, put func(certificates ...[]byte)) {
	n := &node{clock: &rpc.TimeSource{}, ledger: m.client(t)}
	put = func(certificates ...[]byte) {
		s := policy.NewState()
		s.Service = &policy.Service{Name: "hgs.example.test", HTTPS: true}
		s.Nodes["n1"] = policy.Node{ID: "n1", Certificate: certificates[0], Chain: certificates[1:]}
		n.snap.Store(&policy.Snapshot{NodeID: "n1", State: s})
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s := newServer(n, h)
	go func() { done <- s.serve(ctx, map[string][]net.Listener{"https": {l}}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String(), put
}

// TestTheHTTPSCertificateIsReplacedWithoutDroppingAConnection: a request that is being answered and a connection that is kept alive go on;
// the next handshake shows the new certificate.
func TestTheHTTPSCertificateIsReplacedWithoutDroppingAConnection(t *testing.T) {
	m := &manyKeys{keys: map[policy.KeyRef]crypto.Signer{}}
	arrived, release := make(chan struct{}), make(chan struct{})
	addr, put := secured(t, m, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(arrived)
			<-release
		}
		io.WriteString(w, "fine")
	}))
	first, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	second, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	before, after := m.certificate(t, first), m.certificate(t, second)
	put(before)
	client := func() *http.Client {
		tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} // the test compares certificates itself
		t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr, Timeout: 10 * time.Second}
	}
	get := func(c *http.Client, path string) (shown []byte, reused bool) {
		t.Helper()
		req, _ := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { reused = i.Reused }}),
			http.MethodGet, "https://"+addr+path, nil)
		resp, err := c.Do(req)
		if err != nil {
			t.Error(err)
			return nil, false
		}
		defer resp.Body.Close()
		if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "fine" {
			t.Errorf("%s: %q, %v", path, body, err)
		}
		return resp.TLS.PeerCertificates[0].Raw, reused
	}
	kept, slow := client(), client()
	get(kept, "/")
	var wg sync.WaitGroup
	wg.Go(func() {
		if shown, _ := get(slow, "/slow"); string(shown) != string(before) {
			t.Error("the request in flight has another certificate")
		}
	})
	<-arrived
	put(after)
	m.mu.Lock()
	for ref, key := range m.keys {
		if key == crypto.Signer(first) {
			delete(m.keys, ref) // nothing needs the old key any more
		}
	}
	m.mu.Unlock()
	if shown, reused := get(kept, "/"); !reused || string(shown) != string(before) {
		t.Error("the connection that was kept alive was dropped")
	}
	if shown, _ := get(client(), "/"); string(shown) != string(after) {
		t.Error("a new handshake shows the old certificate")
	}
	close(release)
	wg.Wait()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} { // RSA: PKCS #1 and PSS
		c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, MinVersion: version, MaxVersion: version})
		if err != nil {
			t.Error(err)
			continue
		}
		c.Close()
	}
}

func TestSendsTheChainAndSaysWhyThereIsNoCertificate(t *testing.T) {
	m := &manyKeys{keys: map[policy.KeyRef]crypto.Signer{}}
	addr, put := secured(t, m, fine)
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	leaf := m.certificate(t, key)
	issuer, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	put(leaf, m.certificate(t, issuer))
	c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(c.ConnectionState().PeerCertificates); n != 2 {
		t.Errorf("%d certificates were sent", n)
	}
	c.Close()
	put([]byte(nil))
	if c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true}); err == nil {
		c.Close()
		t.Error("a handshake without a certificate")
	}
}
