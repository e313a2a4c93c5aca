package cluster

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// refusedStays is how long a refusal is shown although the peer can't be reached any more.
const refusedStays = 2 * time.Minute

// peer is what is known of one other node.
type peer struct {
	record policy.Peer
	ctx    context.Context // ends when the peer is taken off the record
	stop   context.CancelFunc

	mu       sync.Mutex
	state    string
	since    time.Duration // CLOCK_BOOTTIME at which the state began
	why      string
	out      *session   // a connection of ours that both have accepted
	missed   string     // why there is none
	in       int        // connections of the peer's that both have accepted
	visits   []net.Conn // connections of the peer's that proved its key, the oldest first
	last     *skew
	clock    *Clock
	node     string        // what it calls itself
	told     time.Duration // CLOCK_BOOTTIME of the last line in the log; 0 = none
	recorded time.Duration // likewise of the last refusal that was recorded
}

func newPeer(r policy.Peer, now time.Duration) *peer {
	ctx, stop := context.WithCancel(context.Background())
	return &peer{record: r, ctx: ctx, stop: stop, state: rpc.PeerWaiting, since: now, why: "it was not tried yet"}
}

func (p *peer) status(now time.Duration) rpc.PeerStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := rpc.PeerStatus{Peer: p.record, State: p.state, For: now - p.since, Error: p.why}
	if p.last != nil {
		s.Compared, s.Skew, s.Uncertainty, s.Age, s.Off = true, p.last.ahead, p.last.uncertainty, now-p.last.at, p.last.off()
	}
	if p.clock != nil {
		s.Clock, s.Reason = p.clock.State, p.clock.Why
	}
	if s.Node = p.node; s.State == rpc.PeerConnected && p.out == nil && p.missed != "" {
		s.Error = "only the other node can connect: " + p.missed
	}
	return s
}

// become changes the state; p.mu is held.
func (p *peer) become(state, why string, now time.Duration) {
	if p.state != state {
		p.since = now
	}
	p.state, p.why = state, why
}

// heard keeps the newest comparison; the one before stays where there is none now.
func (p *peer) heard(c Clock, s *skew) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clock = &c
	if s != nil {
		p.last = s
	}
}

// joined notes a connection that both have accepted.
func (p *peer) joined(out *session, node string, now time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if out != nil {
		p.out, p.missed = out, ""
	} else {
		p.in++
	}
	p.node = node
	p.become(rpc.PeerConnected, "", now)
}

// left notes the end of such a connection.
func (p *peer) left(out *session, why string, now time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if out == nil {
		p.in--
	} else if p.out == out {
		p.out, p.missed = nil, why
	}
	if p.out == nil && p.in == 0 {
		p.become(rpc.PeerUnreachable, why, now)
	}
}

// refused notes that a connection of the peer's was not accepted by one side.
func (p *peer) refused(state, why, node string, now time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if node != "" {
		p.node = node
	}
	if p.out == nil && p.in == 0 {
		p.become(state, why, now)
	}
}

// failed notes why there is no connection of ours. One of the peer's that both have accepted weighs more, and so does a fresh refusal.
func (p *peer) failed(state, why, node string, now time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.missed = why
	if node != "" {
		p.node = node
	}
	if p.in > 0 || state == rpc.PeerUnreachable && p.state == rpc.PeerRefused && now-p.since < refusedStays {
		return
	}
	p.become(state, why, now)
}

// session is a connection of ours to this peer, or why there is none.
func (p *peer) session() (*session, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.out == nil {
		if p.state == rpc.PeerConnected {
			return nil, errors.New("only the other node can connect: " + p.missed)
		}
		return nil, errors.New("it is " + p.state + ": " + p.why)
	}
	return p.out, nil
}

// stamped is a connection that knows when it wrote last: the other side can't have answered before.
type stamped struct {
	net.Conn
	raw func() time.Duration

	mu    sync.Mutex
	wrote time.Duration
}

func (s *stamped) Write(b []byte) (int, error) {
	s.mu.Lock()
	s.wrote = s.raw()
	s.mu.Unlock()
	return s.Conn.Write(b)
}

// window is the time since the last write, and the present.
func (s *stamped) window() (window, now time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now = s.raw()
	return now - s.wrote, now
}
