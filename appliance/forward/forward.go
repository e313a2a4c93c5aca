// Package forward sends the node's audit to a syslog collector: RFC 5424 messages, RFC 5425 over TLS.
//
// Promise. Nothing waits for the collector: the durable chain is the queue, and this package holds one page of it. Every record is sent at
// least once and in order; a connection that breaks, a restart, a dead or slow collector only delay it, and what may have been lost on the
// way is sent again. The collector must prove the name on record with a certificate of one of the CAs on record; nothing else is trusted,
// and there is no way to send without TLS. What is wrong is told in one line, which the ledger shows with a remedy.
//
// How far a collector has got. Syslog has no acknowledgement. A record counts as delivered once the collector's TCP has confirmed the last
// byte of it and the connection has stayed whole for Settle after that. A collector that confirms and then loses what it had not read for
// longer than Settle has a gap, visible in the records' numbers; audit export is the record.
//
// A collector that asks who sends is shown the node's client certificate; its key stays in the ledger, which signs the handshake.
//
// Limits. One collector. Clock and dialler are passed in; Run and Test may be used at the same time.
package forward

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"guardhouse/appliance/audit"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// Deps is what a Forwarder needs; zero durations take the defaults.
type Deps struct {
	Fetch func(context.Context, rpc.ForwardRequest) (rpc.ForwardReply, error) // the ledger
	Dial  func(ctx context.Context, network, address string) (net.Conn, error)
	Now   func() time.Time // for the collector's certificate
	Log   func(format string, args ...any)
	// Key is the private half of the client certificate's key.
	Key func(*x509.Certificate) crypto.Signer

	Settle  time.Duration // how long a connection must stay whole after the last byte was confirmed; 2 s
	Timeout time.Duration // for connecting, and for the collector to take one page; 30 s
	Pause   time.Duration // before the second try; doubled up to 32 times as long; 1 s
}

// Forwarder sends. Make it with New.
type Forwarder struct {
	d Deps

	mu     sync.Mutex
	target rpc.ForwardReply // the newest collector, without records
}

// New fills in the defaults.
func New(d Deps) *Forwarder {
	for _, v := range []struct {
		at  *time.Duration
		def time.Duration
	}{{&d.Settle, 2 * time.Second}, {&d.Timeout, 30 * time.Second}, {&d.Pause, time.Second}} {
		if *v.at == 0 {
			*v.at = v.def
		}
	}
	return &Forwarder{d: d}
}

// idleWait is how long the ledger is asked to wait where nothing can be reported meanwhile.
const idleWait = 10 * time.Second

// Run sends until ctx ends.
func (f *Forwarder) Run(ctx context.Context) {
	pause, told := f.d.Pause, ""
	for ctx.Err() == nil {
		start, err := f.fetch(ctx, rpc.ForwardRequest{Start: true})
		if err != nil { // the ledger starts, or is away
			sleep(ctx, f.d.Pause)
			continue
		}
		if start.Syslog == nil {
			pause = f.d.Pause
			if _, err := f.fetch(ctx, rpc.ForwardRequest{Idle: true, Wait: idleWait}); err != nil {
				sleep(ctx, f.d.Pause)
			}
			continue
		}
		sent, err := f.session(ctx, start)
		if err == nil { // another collector, or the end
			continue
		}
		if sent {
			pause = f.d.Pause
		}
		if why := err.Error(); why != told && ctx.Err() == nil {
			f.d.Log("syslog: %s: %s", start.Syslog.Address, why)
			told = why
		}
		until := time.Now().Add(pause)
		pause = min(2*pause, 32*f.d.Pause)
		for wait := time.Until(until); wait > 0 && ctx.Err() == nil; wait = time.Until(until) {
			r, ferr := f.fetch(ctx, rpc.ForwardRequest{Idle: true, Target: start.Target, Error: err.Error(), Wait: wait})
			if ferr != nil {
				sleep(ctx, f.d.Pause)
			} else if r.Target != start.Target {
				break
			}
		}
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (f *Forwarder) fetch(ctx context.Context, req rpc.ForwardRequest) (rpc.ForwardReply, error) {
	r, err := f.d.Fetch(ctx, req)
	if err == nil {
		f.mu.Lock()
		if r.Target != f.target.Target || req.Start { // only the answer to Start knows the addresses
			f.target = rpc.ForwardReply{Syslog: r.Syslog, Target: r.Target, Host: r.Host, Node: r.Node, Client: r.Client, Peers: r.Peers, Unreachable: r.Unreachable}
		}
		f.mu.Unlock()
	}
	return r, err
}

// session sends on one connection until it breaks, ctx ends or another collector is set. sent tells whether anything left at all.
func (f *Forwarder) session(ctx context.Context, start rpc.ForwardReply) (sent bool, err error) {
	c, err := f.connect(ctx, start)
	if err != nil {
		return false, err
	}
	defer c.close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go c.watch(cancel)
	w := window{last: start.Position, settle: f.d.Settle}
	after := start.Position
	for {
		now := time.Now()
		w.confirmed(c.confirmed(), now)
		if w.stuck(now, f.d.Timeout) {
			return sent, fmt.Errorf("the collector's machine confirmed nothing for %s", f.d.Timeout)
		}
		req := rpc.ForwardRequest{After: after, Acked: w.settled(now), Target: start.Target, Connected: true, Wait: idleWait}
		if w.waits() {
			req.Wait = max(f.d.Settle/4, 10*time.Millisecond)
		}
		r, err := f.fetch(ctx, req)
		if ctx.Err() != nil {
			return sent, context.Cause(ctx)
		}
		if err != nil {
			return sent, err
		}
		if r.Target != start.Target {
			return sent, nil
		}
		if len(r.Records) == 0 {
			continue
		}
		if err := c.send(f.d.Timeout, r); err != nil {
			return sent, lastWord(ctx, err)
		}
		sent, after = true, r.Records[len(r.Records)-1].Seq
		w.add(after, c.written())
	}
}

// send writes one page.
func (c *conn) send(limit time.Duration, r rpc.ForwardReply) error {
	c.SetWriteDeadline(time.Now().Add(limit))
	var buf []byte
	for _, rec := range r.Records {
		buf = append(buf, audit.Frame(audit.Syslog(audit.Record{Seq: rec.Seq, Prev: rec.Prev, Hash: rec.Hash, Entry: rec.Entry}, r.Host, r.Node))...)
	}
	_, err := c.Write(buf)
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		return fmt.Errorf("the collector took nothing for %s", limit)
	}
	return plain(err)
}

// connect proves the collector, and this node where it is asked.
func (f *Forwarder) connect(ctx context.Context, to rpc.ForwardReply) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, f.d.Timeout)
	defer cancel()
	s := *to.Syslog
	pool := x509.NewCertPool()
	for _, der := range s.CAs {
		ca, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("a CA certificate on record does not parse: %w", err)
		}
		pool.AddCert(ca)
	}
	var own tls.Certificate
	if len(to.Client) > 0 {
		leaf, err := x509.ParseCertificate(to.Client[0])
		if err != nil {
			return nil, fmt.Errorf("the client certificate on record does not parse: %w", err)
		}
		own = tls.Certificate{Certificate: to.Client, Leaf: leaf, PrivateKey: f.d.Key(leaf)}
	}
	nc, err := f.dial(ctx, to)
	if err != nil {
		return nil, err
	}
	raw := &counted{Conn: nc}
	// The one certificate is shown whatever CAs the collector names: it says itself what it does not like.
	t := tls.Client(raw, &tls.Config{ServerName: s.Name, RootCAs: pool, MinVersion: tls.VersionTLS12, Time: f.d.Now,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own, nil }})
	if err := t.HandshakeContext(ctx); err != nil {
		nc.Close()
		if cause := aboutClient(err); cause != nil {
			return nil, cause
		}
		return nil, fmt.Errorf("the collector does not prove to be %s: %w", s.Name, plain(err))
	}
	return &conn{Conn: t, raw: raw}, nil
}

// dial tries the collector's addresses in order.
func (f *Forwarder) dial(ctx context.Context, to rpc.ForwardReply) (nc net.Conn, err error) {
	if to.Unreachable != "" {
		return nil, errors.New(to.Unreachable)
	}
	addresses := to.Peers
	if len(addresses) == 0 {
		addresses = []string{to.Syslog.Address}
	}
	for i, a := range addresses {
		// Each has its part of the time that is left, so that one that swallows everything leaves the others theirs.
		part, cancel := ctx, context.CancelFunc(func() {})
		if end, ok := ctx.Deadline(); ok {
			part, cancel = context.WithTimeout(ctx, time.Until(end)/time.Duration(len(addresses)-i))
		}
		nc, err = f.d.Dial(part, "tcp", a)
		cancel()
		if err == nil {
			return nc, nil
		}
	}
	return nil, plain(err)
}

// aboutClient is what a collector says of the client certificate, or that it wants one; nil where err is about something else. In TLS 1.3
// it comes after the handshake. The text is that of crypto/tls, which has no type for it.
func aboutClient(err error) error {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return nil
	}
	switch why := op.Err.Error(); why {
	case "tls: certificate required", "tls: handshake failure", "tls: bad certificate", "tls: unsupported certificate", "tls: revoked certificate", "tls: expired certificate",
		"tls: unknown certificate", "tls: unknown certificate authority", "tls: access denied":
		return fmt.Errorf("the collector does not accept this node's client certificate, or wants one (%s); see audit syslog csr", why)
	}
	return nil
}

// lastWord is why a connection ended whose write failed with err: what the collector said before it hung up may still be on its way through
// watch, which ends over.
func lastWord(over context.Context, err error) error {
	select {
	case <-over.Done():
		return context.Cause(over)
	case <-time.After(500 * time.Millisecond):
		return err
	}
}

// plain drops the addresses that net puts before the cause, because they hold our own port, which is another one each time.
func plain(err error) error {
	if cause := aboutClient(err); cause != nil {
		return cause
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return fmt.Errorf("%s: %w", op.Op, op.Err)
	}
	return err
}

// Test sends one message that is no record on a connection of its own and waits until the collector's TCP has confirmed it and the
// connection has stayed whole for Settle: in TLS 1.3 a collector refuses a client only after that.
func (f *Forwarder) Test(ctx context.Context) (rpc.ForwardTestReply, error) {
	f.mu.Lock()
	t := f.target
	f.mu.Unlock()
	if t.Syslog == nil {
		return rpc.ForwardTestReply{}, rpc.ErrRefused.With("no collector is set; use audit syslog set")
	}
	r := rpc.ForwardTestReply{Address: t.Syslog.Address}
	begin := time.Now()
	c, err := f.connect(ctx, t)
	if err != nil {
		return r, rpc.ErrUnavailable.With("%s: %v", t.Syslog.Address, err)
	}
	defer c.close()
	over, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go c.watch(cancel)
	message := audit.TestMessage(f.d.Now(), t.Host, t.Node)
	c.SetWriteDeadline(time.Now().Add(f.d.Timeout))
	if _, err := c.Write(audit.Frame(message)); err != nil {
		return r, rpc.ErrUnavailable.With("%s: %v", t.Syslog.Address, lastWord(over, plain(err)))
	}
	for c.confirmed() < c.written() && over.Err() == nil {
		if time.Since(begin) > f.d.Timeout {
			return r, rpc.ErrUnavailable.With("%s is connected but does not take the message", t.Syslog.Address)
		}
		sleep(over, 5*time.Millisecond)
	}
	sleep(over, f.d.Settle)
	if over.Err() != nil {
		return r, rpc.ErrUnavailable.With("%s: %v", t.Syslog.Address, context.Cause(over))
	}
	state := c.ConnectionState()
	cert := state.PeerCertificates[0]
	r.Subject, r.SHA1, r.SHA256 = cert.Subject.String(), thumbprint1(cert.Raw), policy.Thumbprint(cert.Raw)
	r.TLS, r.Took = tls.VersionName(state.Version), time.Since(begin)
	return r, nil
}
