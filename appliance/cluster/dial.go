package cluster

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"guardhouse/appliance/rpc"
)

// keep holds a connection to the peer, or tries to, until it is taken off the record.
func (l *Link) keep(p *peer) {
	pause := l.cfg.limits.retry
	for {
		switch state, why, node := l.visit(p); {
		case p.ctx.Err() != nil:
			return
		case state == rpc.PeerConnected: // it was, and ended
			pause = l.cfg.limits.retry
			l.tell(p, why)
		default:
			p.failed(state, why, node, l.cfg.BootTime())
			l.tell(p, why)
			if state == rpc.PeerWaiting {
				pause = l.cfg.limits.retry // the time may be there any moment
			}
		}
		select {
		case <-p.ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, l.cfg.limits.retryMost)
	}
}

// tell logs what became of a peer, at most once a minute for each, and has a refusal recorded.
func (l *Link) tell(p *peer, why string) {
	now := l.cfg.BootTime()
	due := func(last *time.Duration, pause time.Duration) bool {
		if *last != 0 && now-*last < pause {
			return false
		}
		*last = now
		return true
	}
	p.mu.Lock()
	state := p.state
	log, record := due(&p.told, time.Minute), state == rpc.PeerRefused && due(&p.recorded, time.Hour)
	p.mu.Unlock()
	if log {
		l.cfg.Log("peer %s is %s: %s", p.record.Name, state, why)
	}
	if record {
		l.cfg.Refused(p.record.Name, why)
	}
}

// visit is one connection of ours from its beginning to its end. It gives the state that it ended in: connected where both had accepted.
func (l *Link) visit(p *peer) (state, why, node string) {
	if _, _, ok := l.cfg.Time().At(l.cfg.BootTime()); !ok {
		return rpc.PeerWaiting, "this node has no trusted time: " + clean(l.cfg.Why(p.ctx)), ""
	}
	s, err := l.dial(p)
	if err != nil {
		return rpc.PeerUnreachable, explain(err, p.record.Address, l.cfg.limits), ""
	}
	defer s.close()
	state, why, node = s.join()
	if state != rpc.PeerConnected {
		return state, why, node
	}
	now := l.cfg.BootTime()
	p.joined(s, node, now)
	l.cfg.Log("peer %s at %s is connected, as %s", p.record.Name, p.record.Address, node)
	err = s.watch()
	why = explain(err, p.record.Address, l.cfg.limits)
	p.left(s, "the connection ended: "+why, l.cfg.BootTime())
	return rpc.PeerConnected, why, node
}

// hangUp is how long the reason for a broken connection may take to be read.
const hangUp = 200 * time.Millisecond

// session is a connection of ours whose other end has proved the key on record.
type session struct {
	link    *Link
	peer    *peer
	conn    *stamped
	tls     *tls.Conn
	turn    chan struct{} // holds one: one call at a time
	asked   atomic.Bool   // a call waits for its answer
	answers chan answer
	fatal   sync.Once
	dead    chan struct{} // closed by the first failure
	err     error         // why; read after dead
	uncut   func() bool   // gives up the cut that comes with the peer's removal
}

// answer is a reply with the moment at which it was there.
type answer struct {
	reply
	window, raw time.Duration
}

func (l *Link) dial(p *peer) (*session, error) {
	ctx, cancel := context.WithTimeout(p.ctx, l.cfg.limits.handshake)
	defer cancel()
	conn, err := l.cfg.Dial(ctx, p.record.Address)
	if err != nil {
		return nil, err
	}
	s := &session{link: l, peer: p, conn: &stamped{Conn: conn, raw: l.cfg.Raw}, turn: make(chan struct{}, 1), answers: make(chan answer, 1), dead: make(chan struct{})}
	s.tls = tls.Client(s.conn, l.keys.config(func(pin []byte) bool { return samePin(pin, p.record.Key) }))
	if err := s.tls.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	s.uncut = context.AfterFunc(p.ctx, func() { conn.Close() })
	conn.SetDeadline(time.Time{})
	l.work.Go(s.listen)
	return s, nil
}

func (s *session) close() {
	s.uncut()
	s.fail(net.ErrClosed)
}

// join is hello, judged by both.
func (s *session) join() (state, why, node string) {
	body, err := json.Marshal(hello{version, s.link.cfg.Node})
	if err != nil {
		return rpc.PeerUnreachable, err.Error(), ""
	}
	a, r, err := s.call(s.peer.ctx, callHello, body)
	if err != nil {
		return rpc.PeerUnreachable, explain(err, s.peer.record.Address, s.link.cfg.limits), ""
	}
	own := s.link.own(s.peer.ctx)
	sk, why, wait := judge(own, r, s.link.cfg.BootTime())
	s.peer.heard(r.clock, sk)
	switch {
	case wait:
		return rpc.PeerWaiting, why, ""
	case why != "":
		return rpc.PeerRefused, why, ""
	case a.Error != nil:
		return rpc.PeerRefused, "the other node refuses this one: " + a.Error.Text, ""
	}
	h, err := parseHello(a.Body)
	if err != nil {
		return rpc.PeerRefused, err.Error(), ""
	}
	if h.Version != version {
		return rpc.PeerRefused, fmt.Sprintf("it speaks version %d of the link, this node version %d", h.Version, version), h.Node
	}
	return rpc.PeerConnected, "", h.Node
}

// watch compares clocks again and again, until the connection ends.
func (s *session) watch() error {
	tick := time.NewTicker(s.link.cfg.limits.compare)
	defer tick.Stop()
	for {
		if _, err := s.time(s.peer.ctx); err != nil {
			return err
		}
		select {
		case <-s.peer.ctx.Done():
			return s.peer.ctx.Err()
		case <-s.dead:
			return s.err
		case <-tick.C:
		}
	}
}

// time asks twice, and takes the answer that took less: the second question follows on the first answer, which lets the other side measure.
func (s *session) time(ctx context.Context) (reading, error) {
	var best reading
	for i := range 2 {
		a, r, err := s.call(ctx, callTime, nil)
		if err == nil && a.Error != nil {
			err = errors.New("the other node refuses: " + a.Error.Text)
		}
		if err != nil {
			return r, err
		}
		if i == 0 || r.window < best.window {
			best = r
		}
		own := s.link.own(ctx)
		sk, _, _ := judge(own, r, s.link.cfg.BootTime())
		if i == 0 || best == r {
			s.peer.heard(r.clock, sk)
		}
	}
	return best, nil
}

// call is one request and its answer. It runs to its end, or to the limit, once it has its turn: half a call would be the end of the
// connection for everybody.
func (s *session) call(ctx context.Context, name string, body json.RawMessage) (a reply, r reading, err error) {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return a, r, ctx.Err()
	case <-s.dead:
		return a, r, s.err
	}
	defer func() { <-s.turn }()
	select {
	case <-s.dead:
		return a, r, s.err
	default:
	}
	limit := time.NewTimer(s.link.cfg.limits.call)
	defer limit.Stop()
	s.conn.SetWriteDeadline(time.Now().Add(s.link.cfg.limits.call))
	own := s.link.own(s.peer.ctx)
	s.asked.Store(true)
	if err := writeFrame(s.tls, request{name, own, body}); err != nil {
		select { // what the other side said before it hung up is the reason, not the broken write after it
		case <-s.dead:
		case <-time.After(hangUp):
			s.fail(err)
		}
	}
	select {
	case got := <-s.answers:
		return got.reply, reading{got.Clock, got.raw, got.window}, nil
	case <-s.dead:
	case <-limit.C:
		s.fail(os.ErrDeadlineExceeded)
		<-s.dead
	}
	return a, r, s.err
}

// listen reads answers, and notices at once when the connection ends.
func (s *session) listen() {
	for {
		a, err := readReply(s.tls)
		window, raw := s.conn.window()
		if err == nil && !s.asked.CompareAndSwap(true, false) {
			err = errors.New("it answered what nobody had asked")
		}
		if err != nil {
			s.fail(err)
			return
		}
		s.answers <- answer{a, window, raw}
	}
}

// fail ends the session; the first reason counts.
func (s *session) fail(err error) {
	s.fatal.Do(func() {
		s.err = err
		close(s.dead)
		s.conn.Close()
	})
}

// explain says why there is no connection, for people.
func explain(err error, address string, lim limits) string {
	var stranger *strangerError
	var op *net.OpError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &stranger):
		return "what answers at " + address + " is not the node on record: " + stranger.Error()
	case errors.As(err, &op) && op.Op == "remote error":
		return "the other node does not know this node's key: add this node there, with the key that peer key shows here"
	case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded):
		return fmt.Sprintf("%s did not answer within %s", address, max(lim.handshake, lim.call))
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return address + " closed the connection without a word: nobody knows any peer there, or this node is not known any more"
	case errors.As(err, &op):
		return address + ": " + clean(op.Err.Error())
	}
	return clean(err.Error())
}
