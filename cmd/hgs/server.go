package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/netutil"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// Limits of the public server. A connection that is slow or silent is cut by these, not by the memory it would take.
const (
	maxConnections  = 1024            // each of http and https
	headerDeadline  = 5 * time.Second // also bounds the TLS handshake
	requestDeadline = 20 * time.Second
	replyDeadline   = 60 * time.Second
	idleDeadline    = 60 * time.Second
	maxHeaderBytes  = 16 << 10
	drain           = 2 * time.Second // for requests in flight at the end
	selfCheck       = time.Second
)

type server struct {
	node *node
	http *http.Server
}

func newServer(n *node, h http.Handler) *server {
	s := &server{node: n}
	s.http = &http.Server{
		Handler:           s.dated(h),
		ReadHeaderTimeout: headerDeadline,
		ReadTimeout:       requestDeadline,
		WriteTimeout:      replyDeadline,
		IdleTimeout:       idleDeadline,
		MaxHeaderBytes:    maxHeaderBytes,
		// net/http's own answer to OPTIONS * would be dated by the machine's clock.
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     log.New(io.Discard, "", 0), // what strangers do wrong at the transport is theirs, and unbounded
	}
	return s
}

// dated gives Date the time that the node trusts, so that a host sees the same clock as in the certificates; without one there is no
// Date (RFC 9110 section 6.6.1 allows that to a server without a clock). One answer is out of reach here: 417, which net/http gives by
// itself to an Expect that it does not know, bears the machine's clock.
func (s *server) dated(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if earliest, latest, ok := s.node.clock.Now(); ok {
			w.Header().Set("Date", earliest.Add(latest.Sub(earliest)/2).UTC().Format(http.TimeFormat))
		} else {
			w.Header()["Date"] = nil
		}
		w.Header().Set("X-Content-Type-Options", "nosniff")
		h.ServeHTTP(w, r)
	})
}

// serve answers on all listeners until ctx ends, then lets requests in flight finish.
func (s *server) serve(ctx context.Context, listeners map[string][]net.Listener) error {
	var all []net.Listener
	for _, l := range listeners["http"] {
		all = append(all, s.switched(l, func(v *policy.Service) bool { return v.HTTP }))
	}
	for _, l := range listeners["https"] {
		all = append(all, tls.NewListener(s.switched(l, func(v *policy.Service) bool { return v.HTTPS }), s.tlsConfig()))
	}
	if len(all) == 0 {
		return errors.New("no socket to serve on: init passes \"http\" and \"https\", or give --http or --https")
	}
	errs := make(chan error, len(all))
	for _, l := range all {
		go func() { errs <- s.http.Serve(l) }()
	}
	select {
	case <-ctx.Done():
		end, cancel := context.WithTimeout(context.Background(), drain)
		defer cancel()
		s.http.Shutdown(end)
		return nil
	case err := <-errs:
		return fmt.Errorf("serve: %w", err)
	}
}

// gate is a listener that hangs up on everybody while its door is switched off: the socket itself is init's and stays open.
type gate struct {
	net.Listener
	open func() bool
}

func (g gate) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil || g.open() {
			return c, err
		}
		c.Close()
	}
}

// switched is l with the connection limits and the administrator's switch. Before setup the doors are open and say that they can't serve.
func (s *server) switched(l net.Listener, on func(*policy.Service) bool) net.Listener {
	return gate{netutil.LimitListener(newFair(l, maxPerSource), maxConnections), func() bool {
		v := s.node.snapshot().State.Service
		return v == nil || on(v)
	}}
}

// tlsConfig uses the certificate that the newest records name; its key is the ledger's, which signs each handshake. A certificate that is
// replaced counts from the next handshake on: open connections stay. Dynamic record sizing is off because the JDBC driver reads only the
// first record of an answer (recipes: SQL drivers).
func (s *server) tlsConfig() *tls.Config {
	var mu sync.Mutex
	var cert *tls.Certificate
	old := &oldTLS{bootTime: rpc.BootTime, stamp: s.node.clock.Stamp, observe: s.node.observe}
	return &tls.Config{
		GetConfigForClient:          old.look,
		MinVersion:                  tls.VersionTLS12,
		DynamicRecordSizingDisabled: true,
		Time: func() time.Time {
			earliest, _, _ := s.node.clock.Now()
			return earliest
		},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			snap := s.node.snapshot()
			now := snap.State.HTTPSCertificate(snap.NodeID)
			mu.Lock()
			defer mu.Unlock()
			if cert != nil && slices.EqualFunc(cert.Certificate, now, bytes.Equal) {
				return cert, nil
			}
			if len(now) == 0 {
				return nil, errors.New("the node has no HTTPS certificate yet")
			}
			leaf, err := x509.ParseCertificate(now[0])
			if err != nil {
				return nil, fmt.Errorf("the node's HTTPS certificate: %w", err)
			}
			cert = &tls.Certificate{Certificate: now, Leaf: leaf, PrivateKey: &rpc.NodeSigner{Ledger: s.node.ledger, Name: "tls",
				Ref: policy.RefOf(leaf.RawSubjectPublicKeyInfo), Pub: leaf.PublicKey}}
			return cert, nil
		},
	}
}

// check is the watchdog's self-check: a request of our own must come out of the handlers in time. It fails when they hang, which no
// answer of another process can excuse.
func (s *server) check() error {
	ctx, cancel := context.WithTimeout(context.Background(), selfCheck)
	defer cancel()
	path := "/Attestation/getinfo"
	if !s.node.snapshot().State.SetUp() {
		path = "/Attestation/none" // before setup getinfo is refused, and refusals are written down
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	req.RemoteAddr = "127.0.0.1:0"
	done := make(chan int, 1)
	go func() {
		w := &discard{header: http.Header{}}
		s.http.Handler.ServeHTTP(w, req)
		done <- w.status
	}()
	select {
	case status := <-done:
		if status == 0 {
			return errors.New("getinfo gave no answer")
		}
		return nil
	case <-ctx.Done():
		return errors.New("getinfo hangs")
	}
}

// discard takes an answer and keeps its status only.
type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header { return d.header }

func (d *discard) WriteHeader(status int) { d.status = status }

func (d *discard) Write(b []byte) (int, error) {
	if d.status == 0 {
		d.status = http.StatusOK
	}
	return len(b), nil
}

// contextKeys holds the keys under which protocol state travels through hosts, for the rounds of TPM attestation. Old ones are wiped.
type contextKeys struct {
	mu   sync.Mutex
	keys rpc.ContextKeys
}

func (k *contextKeys) replace(next rpc.ContextKeys) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.keys.Current)
	clear(k.keys.Previous)
	k.keys = next
	return nil
}

// get gives a copy, which the caller wipes.
func (k *contextKeys) get() (evidence.ContextKeys, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return evidence.ContextKeys{Epoch: k.keys.Epoch, Current: bytes.Clone(k.keys.Current), Previous: bytes.Clone(k.keys.Previous)}, len(k.keys.Current) > 0
}

func (k *contextKeys) wipe() { k.replace(rpc.ContextKeys{}) }
