package forward

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"guardhouse/appliance/audit"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// authority issues the collectors' certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) authority {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	c, _ := x509.ParseCertificate(der)
	return authority{c, k}
}

func (a authority) issue(t testing.TB, name string, end time.Time) tls.Certificate {
	t.Helper()
	k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: end}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, k.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}
}

// collector is a syslog receiver of RFC 5425.
type collector struct {
	t    testing.TB
	cert tls.Certificate
	addr string

	clients *x509.Certificate // the CA of its clients; nil = it asks for no certificate
	version uint16            // newest TLS; 0 = any

	mu       sync.Mutex
	listener net.Listener
	conns    []net.Conn
	messages []string
	stall    bool // read nothing
}

func (c *collector) start() {
	c.t.Helper()
	l, err := net.Listen("tcp", c.addr)
	for i := 0; err != nil && c.addr != "127.0.0.1:0" && i < 200; i++ { // the port of its earlier life
		time.Sleep(5 * time.Millisecond)
		l, err = net.Listen("tcp", c.addr)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	c.addr = l.Addr().String()
	c.mu.Lock()
	c.listener = l
	c.mu.Unlock()
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			nc.(*net.TCPConn).SetReadBuffer(16 << 10)
			c.mu.Lock()
			c.conns = append(c.conns, nc)
			c.mu.Unlock()
			conf := &tls.Config{Certificates: []tls.Certificate{c.cert}, MaxVersion: c.version}
			if c.clients != nil {
				conf.ClientAuth, conf.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
				conf.ClientCAs.AddCert(c.clients)
			}
			go c.serve(tls.Server(nc, conf))
		}
	}()
}

func (c *collector) stopped() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stall
}

func (c *collector) serve(nc net.Conn) {
	defer nc.Close()
	if nc.(*tls.Conn).Handshake() != nil {
		return
	}
	r := bufio.NewReader(nc)
	for {
		for c.stopped() {
			time.Sleep(time.Millisecond)
		}
		length, err := r.ReadString(' ')
		n, perr := strconv.Atoi(strings.TrimSuffix(length, " "))
		if err != nil || perr != nil || n > audit.MaxSyslog {
			if err == nil {
				c.t.Errorf("frame of %q bytes", length)
			}
			return
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			return
		}
		c.mu.Lock()
		c.messages = append(c.messages, string(b))
		c.mu.Unlock()
	}
}

func (c *collector) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.listener.Close()
	for _, nc := range c.conns {
		nc.Close()
	}
	c.conns = nil
}

var seqParam = regexp.MustCompile(`\[audit@32473 seq="(\d+)"`)

// seen is which records came, in the order of their first arrival.
func (c *collector) seen() (order []int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.messages {
		if f := seqParam.FindStringSubmatch(m); f != nil {
			if n, _ := strconv.Atoi(f[1]); !slices.Contains(order, n) {
				order = append(order, n)
			}
		}
	}
	return order
}

// book is the ledger's side over a real chain.
type book struct {
	log     *audit.Log
	mu      sync.Mutex
	target  rpc.ForwardReply
	changed chan struct{}
	report  rpc.ForwardRequest
	acked   uint64
	reader  *audit.Reader
}

func (b *book) fetch(ctx context.Context, req rpc.ForwardRequest) (rpc.ForwardReply, error) {
	ctx, cancel := context.WithTimeout(ctx, min(req.Wait, 50*time.Millisecond))
	defer cancel()
	b.mu.Lock()
	if req.Target == b.target.Target && !req.Start {
		b.report, b.acked = req, max(b.acked, req.Acked)
	}
	r, changed := b.target, b.changed
	r.Position = b.acked
	b.mu.Unlock()
	if req.Start || req.Target != r.Target {
		return r, nil
	}
	for {
		var more <-chan struct{}
		if !req.Idle {
			var read []audit.Record
			if b.reader == nil || b.reader.At() != req.After {
				b.reader = b.log.NewReader(req.After)
			}
			read, _, more, _ = b.reader.Next(100, 64<<10)
			for _, x := range read {
				r.Records = append(r.Records, rpc.AuditRecord{Seq: x.Seq, Prev: x.Prev, Hash: x.Hash, Entry: x.Entry})
			}
			if len(read) > 0 {
				return r, nil
			}
		}
		select {
		case <-ctx.Done():
			return r, nil
		case <-changed:
			return r, nil
		case <-more:
		}
	}
}

func (b *book) set(s *policy.Syslog, name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.target = rpc.ForwardReply{Syslog: s, Target: name, Host: "node1.hgs.example.test", Node: "node1", Client: b.target.Client}
	b.report = rpc.ForwardRequest{}
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *book) state() (rpc.ForwardRequest, uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.report, b.acked
}

type stage struct {
	t    *testing.T
	ca   authority
	book *book
	col  *collector
	deps Deps
	big  bool // records
}

func newStage(t *testing.T) *stage {
	log, err := audit.Open(t.TempDir(), audit.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	s := &stage{t: t, ca: newAuthority(t), book: &book{log: log, changed: make(chan struct{})}}
	s.col = &collector{t: t, cert: s.ca.issue(t, "siem.example.test", time.Now().Add(time.Hour)), addr: "127.0.0.1:0"}
	s.deps = Deps{Fetch: s.book.fetch, Dial: new(net.Dialer).DialContext, Now: time.Now, Log: t.Logf, Settle: 30 * time.Millisecond, Timeout: 5 * time.Second, Pause: 5 * time.Millisecond}
	t.Cleanup(func() {
		if s.col.listener != nil {
			s.col.stop()
		}
	})
	return s
}

// add appends from several goroutines, as hosts do.
func (s *stage) add(n int) {
	s.t.Helper()
	var wg sync.WaitGroup
	for part := range 10 {
		wg.Go(func() {
			for i := part; i < n; i += 10 {
				e := policy.AuditEntry{Kind: policy.AuditGrant, Action: "rolltransportkey", Outcome: "ok", Subject: fmt.Sprint("host", i)}
				if s.big {
					e.Facts = map[string]string{"a": strings.Repeat("x", 500), "b": strings.Repeat("x", 500), "c": strings.Repeat("x", 500), "d": strings.Repeat("x", 500)}
				}
				if _, err := s.book.log.Append(s.t.Context(), e); err != nil {
					s.t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func (s *stage) run() (stop func()) {
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan struct{})
	f := New(s.deps)
	go func() { defer close(done); f.Run(ctx) }()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	s.t.Cleanup(stop)
	return stop
}

func (s *stage) point() {
	s.book.set(&policy.Syslog{Address: s.col.addr, Name: "siem.example.test", CAs: [][]byte{s.ca.cert.Raw}}, s.col.addr)
}

func (s *stage) until(what string, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			r, acked := s.book.state()
			s.t.Fatalf("never: %s; %d messages, acked %d, %+v", what, len(s.col.seen()), acked, r)
		}
	}
}

// complete: every record up to the chain's end came, in order, and counts as delivered.
func (s *stage) complete() {
	s.t.Helper()
	last := s.book.log.Status().Last
	s.until("all delivered", func() bool { _, acked := s.book.state(); return acked == last })
	order := s.col.seen()
	if len(order) != int(last) || !slices.IsSorted(order) || order[0] != 1 {
		s.t.Errorf("%d of %d records came: %v", len(order), last, order)
	}
}

func TestEveryRecordArrivesInOrder(t *testing.T) {
	s := newStage(t)
	s.col.start()
	s.add(300)
	s.run()
	s.point()
	s.complete()
	s.add(3)
	s.complete()
	if r, _ := s.book.state(); !r.Connected || r.Error != "" {
		t.Errorf("%+v", r)
	}
}

// TestADeadCollectorGetsEverythingOnceItIsBack: it dies with records unread in its buffers, and later so does the sender.
func TestADeadCollectorGetsEverythingOnceItIsBack(t *testing.T) {
	s := newStage(t)
	s.deps.Settle = 500 * time.Millisecond // far longer than from here to its death
	s.col.start()
	s.point()
	stop := s.run()
	s.add(20)
	s.complete()
	s.col.mu.Lock()
	s.col.stall = true
	s.col.mu.Unlock()
	s.add(50)
	time.Sleep(20 * time.Millisecond)
	s.col.stop()
	s.until("the loss is told", func() bool { r, _ := s.book.state(); return !r.Connected && r.Error != "" })
	s.add(50)
	s.col.mu.Lock()
	s.col.stall = false
	s.col.mu.Unlock()
	s.col.start()
	s.complete()

	stop()
	before := len(s.col.messages)
	s.add(30)
	s.run()
	s.complete()
	if again := len(s.col.messages) - before; again > 30 {
		t.Errorf("after a clean restart %d messages came for 30 records", again)
	}
}

// TestACollectorThatTakesNothingHoldsNobodyUp: appending goes on as before, and the page it did not take is sent again.
func TestACollectorThatTakesNothingHoldsNobodyUp(t *testing.T) {
	s := newStage(t)
	s.col.stall = true
	s.deps.Timeout = 300 * time.Millisecond
	s.col.start()
	s.point()
	s.run()
	s.big = true
	s.add(3000) // more than the buffers of two kernels hold
	s.until("the collector is called slow", func() bool {
		r, _ := s.book.state()
		return strings.Contains(r.Error, "took nothing") || strings.Contains(r.Error, "confirmed nothing") || strings.Contains(r.Error, "does not prove")
	})
	if r, acked := s.book.state(); r.Connected || acked == s.book.log.Status().Last {
		t.Errorf("%d acknowledged, %+v", acked, r)
	}
}

func TestOnlyTheRightCollectorGetsAnything(t *testing.T) {
	other := newAuthority(t)
	for name, c := range map[string]struct {
		cert func(s *stage) tls.Certificate
		want string
	}{
		"other CA":   {func(s *stage) tls.Certificate { return other.issue(t, "siem.example.test", time.Now().Add(time.Hour)) }, "unknown authority"},
		"other name": {func(s *stage) tls.Certificate { return s.ca.issue(t, "evil.example.test", time.Now().Add(time.Hour)) }, "evil.example.test"},
		"expired":    {func(s *stage) tls.Certificate { return s.ca.issue(t, "siem.example.test", time.Now().Add(-time.Hour)) }, "expired"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			s.col.cert = c.cert(s)
			s.col.start()
			s.add(3)
			s.point()
			s.run()
			s.until("it is refused", func() bool { r, _ := s.book.state(); return strings.Contains(r.Error, c.want) })
			s.col.mu.Lock()
			defer s.col.mu.Unlock()
			if _, acked := s.book.state(); acked != 0 || len(s.col.messages) != 0 {
				t.Errorf("%d acknowledged, %d messages", acked, len(s.col.messages))
			}
		})
	}
}

func TestAnotherCollectorGoesOnWhereTheFirstEnded(t *testing.T) {
	s := newStage(t)
	s.col.start()
	s.point()
	s.run()
	s.add(5)
	s.complete()
	first := s.col
	second := &collector{t: t, cert: first.cert, addr: "127.0.0.1:0"}
	second.start()
	defer second.stop()
	s.col = second
	s.point()
	s.add(5)
	last := s.book.log.Status().Last
	s.until("the second has the rest", func() bool { _, acked := s.book.state(); return acked == last })
	if order := second.seen(); len(order) != 5 || order[0] != int(last)-4 {
		t.Errorf("%v of %d", order, last)
	}
	s.book.set(nil, "")
	s.add(5)
	time.Sleep(100 * time.Millisecond)
	if order := second.seen(); len(order) != 5 {
		t.Errorf("after it was switched off: %v", order)
	}
	first.stop()
	s.col = second
}

func TestTheTestSaysWhoAnswered(t *testing.T) {
	s := newStage(t)
	f := New(s.deps)
	if _, err := f.Test(t.Context()); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("without a collector: %v", err)
	}
	s.col.start()
	s.point()
	if _, err := f.fetch(t.Context(), rpc.ForwardRequest{Start: true}); err != nil {
		t.Fatal(err)
	}
	r, err := f.Test(t.Context())
	if err != nil || r.Address != s.col.addr || r.SHA256 != policy.Thumbprint(s.col.cert.Certificate[0]) || len(r.SHA1) != 40 || !strings.Contains(r.Subject, "siem.example.test") {
		t.Errorf("%+v, %v", r, err)
	}
	s.until("it came", func() bool {
		s.col.mu.Lock()
		defer s.col.mu.Unlock()
		return len(s.col.messages) == 1 && strings.Contains(s.col.messages[0], "no audit record")
	})
	s.col.stop()
	if _, err := f.Test(t.Context()); !errors.Is(err, rpc.ErrUnavailable) {
		t.Errorf("a dead one: %v", err)
	}
}

// TestACollectorThatAsksWhoSendsIsToldWithACertificate: with the node's client certificate, over both versions of TLS; without one, or with
// one that it does not take, nothing is called delivered, and test and status say why.
func TestACollectorThatAsksWhoSendsIsToldWithACertificate(t *testing.T) {
	clients, stranger := newAuthority(t), newAuthority(t)
	for name, c := range map[string]struct {
		issuer  *authority
		version uint16
	}{"TLS 1.3": {&clients, 0}, "TLS 1.2": {&clients, tls.VersionTLS12}, "no certificate": {nil, 0}, "no certificate, TLS 1.2": {nil, tls.VersionTLS12}, "another CA's": {&stranger, 0}, "another CA's, TLS 1.2": {&stranger, tls.VersionTLS12}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t)
			s.deps.Settle = 300 * time.Millisecond // an alert comes within
			s.col.clients, s.col.version = clients.cert, c.version
			s.col.start()
			s.add(3)
			good := c.issuer == &clients
			var own tls.Certificate
			if c.issuer != nil {
				own = c.issuer.issue(t, "node1.hgs.example.test", time.Now().Add(time.Hour))
				s.book.target.Client = own.Certificate
			}
			s.deps.Key = func(leaf *x509.Certificate) crypto.Signer {
				if !bytes.Equal(leaf.Raw, own.Certificate[0]) {
					t.Error("another certificate's key is asked for")
				}
				return own.PrivateKey.(crypto.Signer)
			}
			s.point()
			f := New(s.deps)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { defer close(done); f.Run(ctx) }()
			defer func() { cancel(); <-done }()
			const says = "does not accept this node's client certificate, or wants one"
			if good {
				s.complete()
				if _, err := f.Test(t.Context()); err != nil {
					t.Error(err)
				}
				return
			}
			s.until("the reason is told", func() bool { r, _ := s.book.state(); return strings.Contains(r.Error, says) })
			if _, err := f.Test(t.Context()); err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("the test says: %v", err)
			}
			if _, acked := s.book.state(); acked != 0 {
				t.Errorf("%d records count as delivered", acked)
			}
		})
	}
}

// TestOnlyAddressesThatInitNamedAreDialled: each is tried; where there is none the reason is told, and nothing is dialled.
func TestOnlyAddressesThatInitNamedAreDialled(t *testing.T) {
	s := newStage(t)
	s.col.start()
	s.add(3)
	var mu sync.Mutex
	var dialled []string
	s.deps.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		mu.Lock()
		dialled = append(dialled, address)
		mu.Unlock()
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	point := func(peers []string, unreachable, target string) {
		s.book.set(&policy.Syslog{Address: "siem.example.test:6514", Name: "siem.example.test", CAs: [][]byte{s.ca.cert.Raw}}, target)
		s.book.mu.Lock()
		s.book.target.Peers, s.book.target.Unreachable = peers, unreachable
		s.book.mu.Unlock()
	}
	point(nil, "the address of siem.example.test can't be found", "first")
	s.run()
	s.until("the reason is told", func() bool { r, _ := s.book.state(); return strings.Contains(r.Error, "can't be found") })
	mu.Lock()
	if len(dialled) != 0 {
		t.Errorf("dialled %v", dialled)
	}
	mu.Unlock()
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	point([]string{dead.Addr().String(), s.col.addr}, "", "second")
	s.complete()
	mu.Lock()
	defer mu.Unlock()
	if !slices.Contains(dialled, dead.Addr().String()) || slices.Contains(dialled, "siem.example.test:6514") {
		t.Errorf("dialled %v", dialled)
	}
}
