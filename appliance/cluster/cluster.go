// Package cluster is the link between nodes: each knows the others by pinned keys, and they compare clocks.
//
// Promise. Only a node whose key is on record gets past the handshake: TLS 1.3, a certificate on both sides, and of the certificate nothing
// counts but the SHA-256 of its public key, compared in constant time. There is no CA, and no date is looked at, because dates mean
// nothing before the time is trusted. Every request and every reply carries the clock of who sends it; each side says of the other by how
// much its clock is ahead, and how certain that is. A node whose interval has no point in common with this one's is refused when it
// joins, with the number, by both. A peer that is taken off the record is cut at once. What comes from the network is bounded: in
// connections, bytes, time and calls; what a peer says is shown only after control characters are taken out.
//
// What the key proves: that the other side holds the private key on record. A node keeps it on its sealed disk, which opens only for the
// signed image on its own machine; that, and no more, is what stands behind it. It is no attestation: that comes with the cluster.
//
// Calls. hello is the first on every connection: version, name, and the clock by which the join is judged. time asks nothing else than what
// every reply carries anyway. Both sides dial, so of two nodes there are usually two connections; either is enough.
//
// How a clock is compared. The one who compares knows a moment before which the other side's clock can't have been read (its own last
// write on that connection), and the moment at which the answer was there. The clock was read in between: half of that window is part of
// the uncertainty. A dishonest peer can shift its answer by that much, and lie about its clock at will; a lie is a skew like any other.
//
// Limits. A peer that was accepted and whose clock goes astray afterwards stays connected, or nobody could see it. There is one comparison
// for each peer, the newest. Names are not resolved.
package cluster

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// Config is what the link needs of its node. All fields are required but Refused and Dial.
type Config struct {
	Node     string                    // this node's name, told to peers
	Key      crypto.Signer             // the node's peer key, ECDSA P-256
	Boot     string                    // boot id
	Time     func() policy.TrustedTime // newest value; zero = none
	BootTime func() time.Duration      // CLOCK_BOOTTIME
	Raw      func() time.Duration      // CLOCK_MONOTONIC_RAW
	// Why says why there is no trusted time; it is asked only then.
	Why  func(context.Context) string
	Rand io.Reader
	Log  func(format string, args ...any)
	// Refused is told that a peer is refused and why, at most once an hour for each. It may take its time.
	Refused func(peer, why string)
	Dial    func(ctx context.Context, address string) (net.Conn, error) // nil: TCP

	limits limits // of tests
}

// limits are the link's times; zero fields are filled with the defaults below.
type limits struct {
	handshake time.Duration // for a connection to prove its key
	call      time.Duration // for one request and its answer
	idle      time.Duration // longest silence on a connection that somebody else opened
	compare   time.Duration // between two comparisons on a connection of ours
	retry     time.Duration // first pause after a failure, doubled each time
	retryMost time.Duration
	calls     int // a second on one connection
}

var defaults = limits{handshake: 5 * time.Second, call: 5 * time.Second, idle: 2 * time.Minute, compare: 30 * time.Second, retry: time.Second, retryMost: time.Minute, calls: 16}

// Link is one node's end of all its links. Make it with New; Set says who the peers are, Serve takes connections. Safe for concurrent use.
type Link struct {
	cfg  Config
	keys *identity

	mu        sync.Mutex
	closed    bool
	peers     map[string]*peer
	strangers strangers
	listening int
	work      sync.WaitGroup
}

// New makes the link of a node that has no peers yet.
func New(cfg Config) (*Link, error) {
	if cfg.Dial == nil {
		cfg.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		}
	}
	if cfg.Refused == nil {
		cfg.Refused = func(string, string) {}
	}
	cfg.limits = cfg.limits.or(defaults)
	keys, err := newIdentity(cfg.Key, cfg.Rand)
	if err != nil {
		return nil, err
	}
	return &Link{cfg: cfg, keys: keys, peers: map[string]*peer{}, strangers: strangers{busy: map[string]int{}}}, nil
}

func (l limits) or(d limits) limits {
	fill := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	fill(&l.handshake, d.handshake)
	fill(&l.call, d.call)
	fill(&l.idle, d.idle)
	fill(&l.compare, d.compare)
	fill(&l.retry, d.retry)
	fill(&l.retryMost, d.retryMost)
	if l.calls == 0 {
		l.calls = d.calls
	}
	return l
}

// Key is the SHA-256 of this node's SubjectPublicKeyInfo: what the other nodes have on record.
func (l *Link) Key() []byte { return slices.Clone(l.keys.pin[:]) }

// Set makes these the peers. One that is not among them any more, or whose address or key is another now, is cut before Set returns; new
// ones are dialled until the link closes.
func (l *Link) Set(peers map[string]policy.Peer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	for name, p := range l.peers {
		if now, ok := peers[name]; !ok || now.Address != p.record.Address || !samePin(now.Key, p.record.Key) {
			p.stop()
			delete(l.peers, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(peers)) {
		if l.peers[name] != nil || len(l.peers) >= policy.MaxPeers {
			continue
		}
		p := newPeer(peers[name], l.cfg.BootTime())
		l.peers[name] = p
		l.work.Go(func() { l.keep(p) })
	}
}

// Close cuts everybody and waits until all is still.
func (l *Link) Close() {
	l.mu.Lock()
	l.closed = true
	for _, p := range l.peers {
		p.stop()
	}
	clear(l.peers)
	l.mu.Unlock()
	l.work.Wait()
}

// Status is what is known of the peers, by name, whether anybody listens for them, and how many connections failed to prove a key.
func (l *Link) Status() (peers []rpc.PeerStatus, listening bool, strangers uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.cfg.BootTime()
	for _, name := range slices.Sorted(maps.Keys(l.peers)) {
		peers = append(peers, l.peers[name].status(now))
	}
	return peers, l.listening > 0, l.strangers.refused
}

// Errors of PeerTime. The text is for people.
var (
	ErrNoPeer = errors.New("there is no such peer")
	ErrNoVote = errors.New("the peer has no time that may vote")
)

// PeerTime asks a peer for its time now.
func (l *Link) PeerTime(ctx context.Context, name string) (rpc.PeerTimeReply, error) {
	l.mu.Lock()
	p := l.peers[name]
	l.mu.Unlock()
	if p == nil {
		return rpc.PeerTimeReply{}, ErrNoPeer
	}
	s, err := p.session()
	if err != nil {
		return rpc.PeerTimeReply{}, err
	}
	heard, err := s.time(ctx)
	if err != nil {
		return rpc.PeerTimeReply{}, err
	}
	switch heard.clock.State {
	case rpc.PeerClockTrusted:
		utc, distance := heard.at()
		return rpc.PeerTimeReply{Raw: heard.raw, UTC: utc, Distance: distance}, nil
	case rpc.PeerClockManual:
		return rpc.PeerTimeReply{}, fmt.Errorf("%w: administrators approved it, no server agreed", ErrNoVote)
	}
	return rpc.PeerTimeReply{}, fmt.Errorf("%w: %s", ErrNoVote, heard.clock.Why)
}
