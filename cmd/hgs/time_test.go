package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// clockSays is a clock process that says what it is told to say, beginning with nothing.
type clockSays struct {
	dir  string
	next chan policy.TrustedTime
}

func newClockSays(t *testing.T) *clockSays {
	c := &clockSays{dir: t.TempDir(), next: make(chan policy.TrustedTime)}
	if err := os.Mkdir(filepath.Join(c.dir, "clock.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := rpc.NewServer(rpc.UIDs{rpc.HGS: uint32(os.Getuid())})
	rpc.ServeTime(s, func(ctx context.Context, _ rpc.Caller, _ rpc.Empty, send func(policy.TrustedTime) error) error {
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case v := <-c.next:
				if err := send(v); err != nil {
					return err
				}
			}
		}
	}, rpc.HGS)
	l, err := rpc.Listen(rpc.SocketPath(c.dir, rpc.Clock))
	if err != nil {
		t.Fatal(err)
	}
	done, ctx := make(chan struct{}), t.Context()
	go func() { defer close(done); s.Serve(ctx, l) }()
	t.Cleanup(func() { <-done })
	return c
}

// say waits until src has it.
func (c *clockSays) say(t *testing.T, src *rpc.TimeSource, fields map[string]any) {
	t.Helper()
	j, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	var v policy.TrustedTime
	if err := json.Unmarshal(j, &v); err != nil {
		t.Fatal(err)
	}
	had := src.Changes()
	select {
	case c.next <- v:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody listens to the clock")
	}
	for end := time.Now().Add(10 * time.Second); src.Changes() == had; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the clock was not heard")
		}
	}
}

// TestDateAndTLSAreOfTheTrustedTime: whatever the clock of the machine that runs this says. Without a trusted time handshakes go on, for
// what needs no clock.
func TestDateAndTLSAreOfTheTrustedTime(t *testing.T) {
	clock := newClockSays(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	then := time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"hgs.example.test"}, NotBefore: then.Add(-time.Hour), NotAfter: then.Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	snap := policy.Snapshot{NodeID: "n1", State: policy.NewState()}
	snap.State.Service = &policy.Service{Name: "hgs.example.test", HTTPS: true}
	snap.State.Nodes["n1"] = policy.Node{ID: "n1", Certificate: der}
	n := &node{clock: rpc.WatchTime(t.Context(), clock.dir, uint32(os.Getuid())), ledger: signingLedger(t, key)}
	n.snap.Store(&snap)
	s := newServer(n, fine)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.serve(ctx, map[string][]net.Listener{"https": {l}}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	c := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "hgs.example.test", ClientSessionCache: tls.NewLRUClientSessionCache(8), Time: func() time.Time { return then }}}}
	date := func() string {
		t.Helper()
		for range 2 { // the second one comes with the ticket of the first
			r, err := c.Get("https://" + l.Addr().String() + "/")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				t.Fatal(err)
			}
			r.Body.Close()
			if d := r.Header.Get("Date"); d != "" {
				return d
			}
		}
		return ""
	}
	if d := date(); d != "" {
		t.Errorf("Date: %s before the clock has said anything", d)
	}
	boot := rpc.BootTime()
	clock.say(t, n.clock, map[string]any{"boot": "b", "bootTime": boot, "utc": then, "bound": 30 * time.Second, "driftPPM": 100, "expires": boot + time.Hour})
	d, err := http.ParseTime(date())
	if err != nil || d.Before(then) || d.Sub(then) > 20*time.Second {
		t.Errorf("Date: %s, %v; %s was said", d, err, then)
	}
	if now := s.tlsConfig().Time(); now.Before(then.Add(-31*time.Second)) || now.After(then.Add(-10*time.Second)) {
		t.Errorf("TLS is judged at %s, not by the earliest that it may be", now)
	}
	clock.say(t, n.clock, map[string]any{"boot": "b"})
	if d := date(); d != "" {
		t.Errorf("Date: %s after the time was taken back", d)
	}
}
