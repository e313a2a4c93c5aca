package cluster

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"guardhouse/appliance/rpc"
)

// Bounds of connections that others open.
const (
	maxStrangers  = 16 // at once in the handshake, of addresses that are no peer's
	maxFromOne    = 4  // likewise, of one address
	maxOfPeer     = 2  // with a proved key; a further one ends the oldest, which may be one that the peer has forgotten
	maxJudged     = time.Second
	acceptPause   = 20 * time.Millisecond
	strangersTold = time.Minute // between two lines of the log
)

// strangers are those who have proved no key yet, or never did. Guarded by Link.mu.
type strangers struct {
	busy    map[string]int // handshakes under way, by address
	others  int            // of those, from addresses that are no peer's
	refused uint64
	told    time.Duration
	hushed  int
}

// Serve takes connections from listener, which it closes, until ctx ends. Without any peer it closes each at once and reads nothing.
func (l *Link) Serve(ctx context.Context, listener net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	l.listens(1)
	defer l.listens(-1)
	for {
		conn, err := listener.Accept()
		switch {
		case err == nil:
			work.Go(func() {
				defer conn.Close()
				stop := context.AfterFunc(ctx, func() { conn.Close() })
				defer stop()
				l.answer(ctx, conn)
			})
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept: %w", err)
		default: // usually no descriptor is left, which passes
			select {
			case <-ctx.Done():
			case <-time.After(acceptPause):
			}
		}
	}
}

func (l *Link) listens(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.listening += n
}

// answer is one connection that somebody opened.
func (l *Link) answer(ctx context.Context, raw net.Conn) {
	source := addressOf(raw.RemoteAddr())
	place, ok := l.enter(source)
	if !ok {
		return
	}
	conn := &stamped{Conn: raw, raw: l.cfg.Raw}
	conn.SetDeadline(time.Now().Add(l.cfg.limits.handshake))
	secure := tls.Server(conn, l.keys.config(l.known))
	err := secure.HandshakeContext(ctx)
	l.leave(place)
	if err != nil {
		l.stranger(source, err)
		return
	}
	pin, err := shown(secure.ConnectionState())
	if err != nil {
		return
	}
	p := l.find(pin)
	if p == nil {
		return // taken off the record meanwhile
	}
	stop := context.AfterFunc(p.ctx, func() { raw.Close() })
	defer stop()
	p.enter(raw)
	defer p.leave(raw)
	(&visitor{link: l, peer: p, conn: conn, tls: secure}).serve(ctx)
}

func addressOf(a net.Addr) string {
	at, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return ""
	}
	return at.Addr().Unmap().WithZone("").String()
}

// place is a handshake under way.
type place struct {
	source string
	other  bool // not from an address on record
}

// enter gives a place for a handshake, if there is one. Strangers can't take those of the addresses on record.
func (l *Link) enter(source string) (place, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, at := &l.strangers, place{source, !l.onRecord(source)}
	if len(l.peers) == 0 || l.closed || s.busy[source] >= maxFromOne || at.other && s.others >= maxStrangers {
		return at, false
	}
	s.busy[source]++
	if at.other {
		s.others++
	}
	return at, true
}

func (l *Link) leave(at place) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &l.strangers
	if s.busy[at.source]--; s.busy[at.source] == 0 {
		delete(s.busy, at.source)
	}
	if at.other {
		s.others--
	}
}

// onRecord needs l.mu.
func (l *Link) onRecord(source string) bool {
	for _, p := range l.peers {
		if at, err := netip.ParseAddrPort(p.record.Address); err == nil && at.Addr().String() == source {
			return true
		}
	}
	return false
}

// known compares with every peer's key, so that the time it takes tells nothing.
func (l *Link) known(pin []byte) bool { return l.find(pin) != nil }

func (l *Link) find(pin []byte) (found *peer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.peers {
		if samePin(pin, p.record.Key) {
			found = p
		}
	}
	return found
}

// stranger counts a connection that proved no key on record, and tells so now and then.
func (l *Link) stranger(source string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &l.strangers
	s.refused++
	s.hushed++
	if now := l.cfg.BootTime(); s.told == 0 || now-s.told >= strangersTold {
		l.cfg.Log("peers: %d connections failed to prove a key on record, the last from %s: %s", s.hushed, source, clean(err.Error()))
		s.told, s.hushed = now, 0
	}
}

func (p *peer) enter(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.visits) >= maxOfPeer {
		p.visits[0].Close()
		p.visits = slices.Delete(p.visits, 0, 1)
	}
	p.visits = append(p.visits, c)
}

func (p *peer) leave(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.visits = slices.DeleteFunc(p.visits, func(o net.Conn) bool { return o == c })
}

// visitor is a connection whose other end has proved a peer's key.
type visitor struct {
	link   *Link
	peer   *peer
	conn   *stamped
	tls    *tls.Conn
	second time.Duration // of the rate
	calls  int
}

func (v *visitor) serve(ctx context.Context) {
	q, err := readRequest(v.tls) // within what is left of the handshake's time
	window, raw := v.conn.window()
	if err != nil {
		return
	}
	state, why, node := v.judge(ctx, q, reading{q.Clock, raw, window})
	now := v.link.cfg.BootTime()
	if state != "" {
		v.peer.refused(state, why, node, now)
		v.link.tell(v.peer, why)
		return
	}
	v.peer.joined(nil, node, now)
	err = v.calling(ctx)
	v.peer.left(nil, "its connection ended: "+explain(err, "it", v.link.cfg.limits), v.link.cfg.BootTime())
}

// judge answers hello. It gives the state in which this left the peer; "" = it may stay.
func (v *visitor) judge(ctx context.Context, q request, r reading) (state, why, node string) {
	own := v.link.own(ctx)
	refuse := func(kind string) {
		_ = v.send(reply{Clock: own, Error: &refusal{kind, why}}) // it is cut anyway
	}
	h, err := parseHello(q.Body)
	switch {
	case q.Call != callHello || err != nil:
		why = "its first call is not hello"
		refuse(refusedCall)
		return rpc.PeerRefused, why, ""
	case h.Version != version:
		why = fmt.Sprintf("it speaks version %d of the link, this node version %d", h.Version, version)
		refuse(refusedVersion)
		return rpc.PeerRefused, why, h.Node
	}
	sk, why, wait := judge(own, r, v.link.cfg.BootTime())
	v.peer.heard(r.clock, sk)
	switch {
	case wait:
		refuse(refusedNoTime)
		return rpc.PeerWaiting, why, h.Node
	case why != "":
		refuse(refusedClock)
		return rpc.PeerRefused, why, h.Node
	}
	body, err := json.Marshal(hello{version, v.link.cfg.Node})
	if err == nil {
		err = v.send(reply{Clock: own, Body: body})
	}
	if err != nil {
		return rpc.PeerUnreachable, explain(err, "it", v.link.cfg.limits), h.Node
	}
	return "", "", h.Node
}

func (v *visitor) send(a reply) error {
	v.conn.SetDeadline(time.Now().Add(v.link.cfg.limits.call))
	return writeFrame(v.tls, a)
}

// calling answers calls until the connection ends.
func (v *visitor) calling(ctx context.Context) error {
	for {
		v.conn.SetDeadline(time.Now().Add(v.link.cfg.limits.idle))
		q, err := readRequest(v.tls)
		window, raw := v.conn.window()
		if err != nil {
			return err
		}
		own := v.link.own(ctx)
		a := reply{Clock: own}
		switch q.Call {
		case callTime:
			// After a silence nobody knows when the question was sent.
			if window <= maxJudged {
				sk, _, _ := judge(own, reading{q.Clock, raw, window}, v.link.cfg.BootTime())
				v.peer.heard(q.Clock, sk)
			}
		default:
			a.Error = &refusal{refusedCall, "this node knows no such call, or not now"}
		}
		if err := v.send(a); err != nil {
			return err
		}
		if err := v.slow(ctx, raw); err != nil {
			return err
		}
	}
}

// slow keeps a peer to so many calls a second.
func (v *visitor) slow(ctx context.Context, now time.Duration) error {
	if now-v.second >= time.Second {
		v.second, v.calls = now, 0
	}
	if v.calls++; v.calls < v.link.cfg.limits.calls {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-v.peer.ctx.Done():
		return v.peer.ctx.Err()
	case <-time.After(time.Second - (now - v.second)):
		return nil
	}
}
