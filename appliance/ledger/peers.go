package ledger

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/cluster"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/tpm"
)

// secretPeer is the key that other nodes know this one by: ECDSA P-256, made when first needed, never replaced.
const secretPeer = "peer-key"

const (
	peersRetry = 5 * time.Second
	peerLate   = 10 * time.Minute // a peer that is out of reach for so long is a problem
	peerSoon   = time.Minute      // likewise one that is refused: nodes that start together are, for a moment
	whyLimit   = time.Second
)

// Kinds of problems with peers.
const (
	KindPeers           = "peers"
	KindPeerRefused     = "peer-refused"
	KindPeerSkew        = "peer-skew"
	KindPeerUnreachable = "peer-unreachable"
)

// peers is this node's end of the links to the others.
type peers struct {
	mu   sync.Mutex
	link *cluster.Link // nil until the node is set up and its key is open
}

func (p *peers) get() *cluster.Link {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.link
}

// peerKey opens the node's peer key, and makes it where there is none.
func (l *Ledger) peerKey() (crypto.Signer, error) {
	l.keysMu.Lock()
	defer l.keysMu.Unlock()
	if l.secrets == nil {
		return nil, rpc.ErrUnavailable.With("the node's secrets are sealed: %s", l.whySealed().What)
	}
	der, err := l.secrets.Get(secretPeer)
	if errors.Is(err, tpm.ErrNoSecret) {
		return l.newPeerKey()
	}
	if err != nil {
		return nil, err
	}
	defer clear(der)
	key, err := x509.ParsePKCS8PrivateKey(der)
	if k, ok := key.(crypto.Signer); ok && err == nil {
		return k, nil
	}
	return nil, errors.New("the peer key does not parse")
}

func (l *Ledger) newPeerKey() (crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), l.cfg.Rand)
	if err != nil {
		return nil, fmt.Errorf("make the peer key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	return key, l.secrets.Put(secretPeer, der)
}

// keepPeers keeps the links as the records say, until ctx ends. Connections are taken and opened only once init holds this process to the
// peers' addresses.
func (l *Ledger) keepPeers(ctx context.Context) {
	var serving sync.WaitGroup
	defer serving.Wait()
	defer func() {
		if link := l.peers.get(); link != nil {
			link.Close()
		}
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	listening := false
	for {
		s, changed := l.Snapshot()
		err := l.applyPeers(ctx, s)
		if link := l.peers.get(); err == nil && link != nil && !listening {
			listening = true
			for _, socket := range l.cfg.Peers {
				serving.Go(func() {
					if err := link.Serve(ctx, socket); err != nil {
						l.cfg.Log("peers: %v", err)
					}
				})
			}
		}
		var retry <-chan time.Time
		if err != nil && ctx.Err() == nil {
			retry = time.After(peersRetry)
			if len(s.State.Peers) > 0 {
				l.setProblem(policy.Problem{Kind: KindPeers, What: "this node can't speak to its peers: " + err.Error(), Remedy: "it goes on trying; see log show ledger"})
			}
		} else {
			l.clearProblem(KindPeers)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-retry:
		}
	}
}

// applyPeers makes the links what s says. Who is gone is cut first, before anybody is asked anything.
func (l *Ledger) applyPeers(ctx context.Context, s policy.Snapshot) error {
	if !s.State.SetUp() {
		return nil
	}
	link, err := l.openLink(s)
	if err != nil {
		return err
	}
	kept := map[string]policy.Peer{}
	now, _, _ := link.Status()
	for _, p := range now {
		if r, ok := s.State.Peers[p.Name]; ok {
			kept[p.Name] = r
		}
	}
	link.Set(kept)
	if l.cfg.ReachPeers != nil {
		addresses := []string{}
		for _, name := range slices.Sorted(maps.Keys(s.State.Peers)) {
			addresses = append(addresses, s.State.Peers[name].Address)
		}
		ctx, cancel := context.WithTimeout(ctx, forwardWait)
		defer cancel()
		if err := l.cfg.ReachPeers(ctx, addresses); err != nil {
			return err
		}
	}
	link.Set(s.State.Peers)
	return nil
}

// openLink makes the link where there is none yet.
func (l *Ledger) openLink(s policy.Snapshot) (*cluster.Link, error) {
	if link := l.peers.get(); link != nil {
		return link, nil
	}
	key, err := l.peerKey()
	if err != nil {
		return nil, err
	}
	link, err := cluster.New(cluster.Config{Node: s.State.Nodes[s.NodeID].Name, Key: key, Boot: l.cfg.Boot, Time: l.cfg.Time, BootTime: l.cfg.BootTime,
		Raw: monotonicRaw, Why: l.whyNoTime, Refused: l.auditPeerRefused, Rand: l.cfg.Rand, Log: l.cfg.Log})
	if err != nil {
		return nil, err
	}
	l.peers.mu.Lock()
	defer l.peers.mu.Unlock()
	l.peers.link = link
	return link, nil
}

// monotonicRaw is CLOCK_MONOTONIC_RAW: the oscillator that nobody disciplines.
func monotonicRaw() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &ts); err != nil {
		return 0 // the kernel has had this clock since 2.6.28
	}
	return time.Duration(ts.Nano())
}

// whyNoTime asks the clock why it trusts no time.
func (l *Ledger) whyNoTime(ctx context.Context) string {
	if l.cfg.Clock == nil {
		return "it has just started"
	}
	ctx, cancel := context.WithTimeout(ctx, whyLimit)
	defer cancel()
	st, err := rpc.ClockStatus.Call(ctx, l.cfg.Clock, rpc.Empty{})
	switch {
	case err != nil:
		return "its clock process does not answer"
	case st.Reason != "":
		return st.Reason
	}
	return "its clock is " + st.State
}

// auditPeerRefused records that a node was not let in, with the number. The link goes on where the audit takes nothing.
func (l *Ledger) auditPeerRefused(peer, why string) {
	s, _ := l.Snapshot()
	if _, err := l.audit.Append(context.Background(), l.stamped(policy.AuditEntry{Kind: policy.AuditSystem, Action: "peer.refused", Outcome: "refused", Policy: s.Index,
		Subject: peer, Detail: why})); err != nil {
		l.cfg.Log("peer %s was refused, which the audit does not take: %v", peer, err)
	}
}

// PeerTime asks a peer for the time now.
func (l *Ledger) PeerTime(ctx context.Context, req rpc.PeerTimeRequest) (rpc.PeerTimeReply, error) {
	link := l.peers.get()
	if link == nil {
		return rpc.PeerTimeReply{}, rpc.ErrUnavailable.With("there is no link to other nodes yet")
	}
	r, err := link.PeerTime(ctx, req.Name)
	if err != nil {
		return r, rpc.ErrUnavailable.With("peer %.64s: %v", req.Name, err)
	}
	return r, nil
}

// Peers is this node's own fingerprint and what is known of its peers.
func (l *Ledger) Peers() (rpc.PeersReply, error) {
	s, _ := l.Snapshot()
	if !s.State.SetUp() {
		return rpc.PeersReply{}, rpc.ErrUnavailable.With("the node is not set up")
	}
	key, err := l.peerKey()
	if err != nil {
		return rpc.PeersReply{}, err
	}
	pin, err := cluster.Pin(key.Public())
	if err != nil {
		return rpc.PeersReply{}, err
	}
	r := rpc.PeersReply{Key: hex.EncodeToString(pin), Addresses: peerAddresses(s.State.Nodes[s.NodeID].Network, l.cfg.Peers), Peers: []rpc.PeerStatus{}}
	known := map[string]bool{}
	if link := l.peers.get(); link != nil {
		var list []rpc.PeerStatus
		list, r.Listening, r.Strangers = link.Status()
		for _, p := range list {
			known[p.Name] = true
		}
		r.Peers = append(r.Peers, list...)
	}
	for _, name := range slices.Sorted(maps.Keys(s.State.Peers)) {
		if !known[name] { // not taken up yet
			r.Peers = append(r.Peers, rpc.PeerStatus{Peer: s.State.Peers[name], State: rpc.PeerWaiting, Error: "the link is not open yet"})
		}
	}
	return r, nil
}

// peerAddresses are those of the interfaces with the role cluster as far as they are settings, or of a socket that listens on one address.
func peerAddresses(n policy.Network, sockets []net.Listener) []string {
	list := []string{}
	for _, socket := range sockets {
		if at, err := netip.ParseAddrPort(socket.Addr().String()); err == nil && !at.Addr().Unmap().IsUnspecified() {
			list = append(list, at.String())
		}
	}
	if len(list) > 0 {
		return list
	}
	for _, i := range n.Interfaces {
		if !slices.Contains(i.Roles, policy.NetCluster) {
			continue
		}
		for _, a := range i.Addresses {
			if p, err := netip.ParsePrefix(a); err == nil {
				list = append(list, net.JoinHostPort(p.Addr().String(), strconv.Itoa(policy.PeerPort)))
			}
		}
	}
	return list
}

// checkPeerAdd refuses this node's own key, with which it would compare its clock with itself, and an address that init would refuse: it
// refuses all with the one.
func (l *Ledger) checkPeerAdd(c policy.Command) error {
	var b policy.PeerAdd
	if json.Unmarshal(c.Body, &b) != nil {
		return nil // the records say what is wrong with it
	}
	key, err := l.peerKey()
	if err != nil {
		return err
	}
	pin, err := cluster.Pin(key.Public())
	if err != nil {
		return err
	}
	if bytes.Equal(pin, b.Key) { // nothing secret: both are shown to everybody
		return rpc.ErrRefused.With("this is this node's own key; type what peer key shows on the other node")
	}
	at, err := policy.ParsePeerAddress(b.Address)
	if err != nil || l.cfg.ReachPeers == nil {
		return nil // the records say what is wrong with it, if anything is
	}
	if why := policy.UnfencedPeer(at); why != "" {
		return rpc.ErrRefused.With("the address %s can't be used: %s; give the address of the other node's interface with the role cluster", at, why)
	}
	return nil
}

// peerProblems are what administrators should look at.
func (l *Ledger) peerProblems() (list []policy.Problem) {
	link := l.peers.get()
	if link == nil {
		return nil
	}
	now, _, _ := link.Status()
	for _, p := range now {
		switch {
		case p.State == rpc.PeerRefused && (p.Off || p.For >= peerSoon):
			list = append(list, policy.Problem{Kind: KindPeerRefused, What: "peer " + p.Name + " is refused: " + p.Error,
				Remedy: "compare time status on both nodes with a clock that you trust, and cure the one that is wrong; they try again by themselves"})
		case p.State == rpc.PeerConnected && p.Off:
			list = append(list, policy.Problem{Kind: KindPeerSkew, What: fmt.Sprintf("the clock of peer %s is off this node's by %.3f s, and both bounds explain only %.3f s", p.Name, p.Skew.Seconds(), p.Uncertainty.Seconds()),
				Remedy: "compare time status on both nodes with a clock that you trust, and cure the one that is wrong"})
		case p.State == rpc.PeerUnreachable && p.For >= peerLate:
			list = append(list, policy.Problem{Kind: KindPeerUnreachable, What: "peer " + p.Name + ": " + p.Error,
				Remedy: "see peer list here and there; peer remove " + p.Name + " if it is gone for good"})
		}
	}
	return list
}

func (l *Ledger) registerPeers(s *rpc.Server) {
	rpc.Handle(s, rpc.LedgerPeers, func(context.Context, rpc.Caller, rpc.Empty) (rpc.PeersReply, error) { return l.Peers() }, rpc.Console)
	rpc.Handle(s, rpc.LedgerPeerTime, func(ctx context.Context, _ rpc.Caller, req rpc.PeerTimeRequest) (rpc.PeerTimeReply, error) {
		return l.PeerTime(ctx, req)
	}, rpc.Clock)
}
