package ledger

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// linked is a node on the bench that is set up, trusts a time and speaks to its peers. reached are the lists that init got.
type linked struct {
	*bench
	ada     policy.Actor
	address string

	reach   sync.Mutex
	reached [][]string
	closed  error
}

func newLinked(t *testing.T, utc time.Time) *linked {
	t.Helper()
	n := &linked{bench: newBench(t)}
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.address = socket.Addr().String()
	n.l.Close()
	n.cfg.Peers = []net.Listener{socket}
	n.cfg.ReachPeers = func(_ context.Context, list []string) error {
		n.reach.Lock()
		defer n.reach.Unlock()
		n.reached = append(n.reached, list)
		return n.closed
	}
	n.open()
	n.trust(utc)
	n.ada = n.setUp()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); n.l.keepPeers(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return n
}

func (n *linked) peers() rpc.PeersReply {
	n.t.Helper()
	r, err := n.l.Peers()
	if err != nil {
		n.t.Fatal(err)
	}
	return r
}

func (n *linked) add(name string, other *linked) {
	n.t.Helper()
	key, err := hex.DecodeString(other.peers().Key)
	if err != nil {
		n.t.Fatal(err)
	}
	if _, _, err := n.l.Propose(context.Background(), command(n.ada, policy.CmdPeerAdd, policy.PeerAdd{Name: name, Address: other.address, Key: key})); err != nil {
		n.t.Fatal(err)
	}
}

// sees waits until the only peer is as it should be.
func (n *linked) sees(ok func(rpc.PeerStatus) bool) rpc.PeerStatus {
	n.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		r := n.peers()
		if len(r.Peers) == 1 && ok(r.Peers[0]) {
			return r.Peers[0]
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("%+v", r)
		}
	}
}

func (n *linked) problem(kind string) (found policy.Problem) {
	for _, p := range n.l.Status().Problems {
		if p.Kind == kind {
			found = p
		}
	}
	return found
}

// recorded counts the audit entries of an action that name node2 and a number.
func (n *linked) recorded(action string) (found int) {
	n.t.Helper()
	records, err := n.l.auditTail(0)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, r := range records {
		if r.Entry.Action == action && r.Entry.Subject == "node2" && strings.Contains(r.Entry.Detail, "its clock is 3.2") {
			found++
		}
	}
	return found
}

func TestTwoLedgersCompareTheirClocks(t *testing.T) {
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	a, b := newLinked(t, now), newLinked(t, now.Add(10*time.Millisecond))
	if r := a.peers(); len(r.Key) != 64 || !slices.Equal(r.Addresses, []string{a.address}) || len(r.Peers) != 0 || r.Key == b.peers().Key {
		t.Errorf("%+v", r)
	}
	own, _ := hex.DecodeString(a.peers().Key)
	if err := a.l.checkPeerAdd(command(a.ada, policy.CmdPeerAdd, policy.PeerAdd{Name: "self", Address: a.address, Key: own})); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("a node as its own peer: %v", err)
	}
	// One address that init's fence can't have would keep every peer away.
	for address, want := range map[string]error{"192.0.2.8": nil, "192.0.2.8:7443": nil, "[2001:db8::8]:7443": nil, "192.0.2.8:8443": rpc.ErrRefused,
		"127.0.0.1:7443": rpc.ErrRefused, "169.254.1.1:7443": rpc.ErrRefused, "[fe80::1]:7443": rpc.ErrRefused} {
		if err := a.l.checkPeerAdd(command(a.ada, policy.CmdPeerAdd, policy.PeerAdd{Name: "other", Address: address, Key: make([]byte, policy.PeerKeySize)})); !errors.Is(err, want) {
			t.Errorf("%s: %v", address, err)
		}
	}
	a.add("node2", b)
	b.add("node1", a)
	connected := func(p rpc.PeerStatus) bool { return p.State == rpc.PeerConnected && p.Compared }
	if s := a.sees(connected); s.Off || (s.Skew-10*time.Millisecond).Abs() > s.Uncertainty || s.Node != "node1" {
		t.Errorf("%+v", s)
	}
	b.sees(connected)
	var r rpc.PeerTimeReply
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		var err error
		if r, err = a.l.PeerTime(t.Context(), rpc.PeerTimeRequest{Name: "node2"}); err == nil {
			break
		} else if !errors.Is(err, rpc.ErrUnavailable) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if d := r.UTC.Sub(now.Add(10 * time.Millisecond)).Abs(); d > r.Distance || r.Distance < 20*time.Millisecond || r.Raw == 0 {
		t.Errorf("%+v", r)
	}
	if _, err := a.l.PeerTime(t.Context(), rpc.PeerTimeRequest{Name: "node9"}); !errors.Is(err, rpc.ErrUnavailable) {
		t.Error(err)
	}
	if _, _, err := a.l.Propose(context.Background(), command(a.ada, policy.CmdPeerRemove, policy.ByName{Name: "node2"})); err != nil {
		t.Fatal(err)
	}
	b.sees(func(p rpc.PeerStatus) bool { return p.State == rpc.PeerUnreachable })
	a.reach.Lock()
	defer a.reach.Unlock()
	if want := [][]string{{}, {b.address}, {}}; !slices.EqualFunc(a.reached, want, slices.Equal) {
		t.Errorf("init was asked for %v, want %v", a.reached, want)
	}
}

func TestANodeWithAnotherTimeIsRefusedOnBothWithTheNumber(t *testing.T) {
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	a, b := newLinked(t, now), newLinked(t, now.Add(3214*time.Millisecond))
	a.add("node2", b)
	b.add("node1", a)
	refused := func(p rpc.PeerStatus) bool { return p.State == rpc.PeerRefused }
	if s := a.sees(refused); !strings.Contains(s.Error, "its clock is 3.2") || !strings.Contains(s.Error, "ahead of this node's") {
		t.Errorf("%+v", s)
	}
	if s := b.sees(refused); !strings.Contains(s.Error, "its clock is 3.2") || !strings.Contains(s.Error, "behind this node's") {
		t.Errorf("%+v", s)
	}
	if p := a.problem(KindPeerRefused); !strings.Contains(p.What, "peer node2 is refused: its clock is 3.2") || p.Remedy == "" {
		t.Errorf("%+v", p)
	}
	for deadline := time.Now().Add(10 * time.Second); a.recorded("peer.refused") != 1; time.Sleep(10 * time.Millisecond) { // once, however often it tries
		if time.Now().After(deadline) {
			t.Fatalf("%d refusals in the audit", a.recorded("peer.refused"))
		}
	}
	if _, err := a.l.PeerTime(t.Context(), rpc.PeerTimeRequest{Name: "node2"}); !errors.Is(err, rpc.ErrUnavailable) || !strings.Contains(err.Error(), "3.2") {
		t.Errorf("it votes: %v", err)
	}
	b.trust(now)
	a.sees(func(p rpc.PeerStatus) bool { return p.State == rpc.PeerConnected })
	if p := a.problem(KindPeerRefused); p.Kind != "" {
		t.Errorf("%+v", p)
	}
	b.trust(now.Add(time.Hour)) // an accepted peer goes astray; a asks anew, as its clock would
	for deadline := time.Now().Add(20 * time.Second); a.problem(KindPeerSkew).Kind == ""; time.Sleep(10 * time.Millisecond) {
		a.l.PeerTime(t.Context(), rpc.PeerTimeRequest{Name: "node2"})
		if time.Now().After(deadline) {
			t.Fatalf("%+v", a.peers())
		}
	}
}

// TestNobodyIsHeardBeforeTheFenceStands: init has not answered yet, or can't.
func TestNobodyIsHeardBeforeTheFenceStands(t *testing.T) {
	a := newLinked(t, time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC))
	b := newBench(t)
	b.cfg.ReachPeers = func(context.Context, []string) error {
		return rpc.ErrUnavailable.With("the network fence does not stand yet")
	}
	b.l.Close()
	b.open()
	ada := b.setUp()
	key, _ := hex.DecodeString(a.peers().Key)
	if _, _, err := b.l.Propose(context.Background(), command(ada, policy.CmdPeerAdd, policy.PeerAdd{Name: "node1", Address: a.address, Key: key})); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); b.l.keepPeers(ctx) }()
	defer func() { cancel(); <-done }()
	n := &linked{bench: b}
	for deadline := time.Now().Add(10 * time.Second); n.problem(KindPeers).Kind == ""; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no problem is told")
		}
	}
	if r := n.peers(); r.Listening || len(r.Peers) != 1 || r.Peers[0].State != rpc.PeerWaiting {
		t.Errorf("%+v", r)
	}
}

// TestThePeerKeyStaysTheSame: other nodes have it on record. It lies among the secrets, and nowhere else.
func TestThePeerKeyStaysTheSame(t *testing.T) {
	b := newBench(t)
	if _, err := b.l.Peers(); !errors.Is(err, rpc.ErrUnavailable) {
		t.Errorf("before setup: %v", err)
	}
	b.setUp()
	first, err := b.l.Peers()
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"10.0.2.15:7443"}; !slices.Equal(first.Addresses, want) {
		t.Errorf("others find it at %v, want %v", first.Addresses, want)
	}
	b.restart()
	if again, err := b.l.Peers(); err != nil || again.Key != first.Key {
		t.Errorf("%v, then %v, %v", first.Key, again.Key, err)
	}
	der, err := b.l.secret(secretPeer)
	if err != nil || bytes.Contains(b.logs.Bytes(), []byte(hex.EncodeToString(der))) {
		t.Error(err)
	}
}
