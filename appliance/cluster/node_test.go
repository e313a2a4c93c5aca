package cluster

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// quick are limits for tests.
var quick = limits{handshake: time.Second, call: time.Second, compare: 30 * time.Millisecond, retry: 10 * time.Millisecond, retryMost: 40 * time.Millisecond}

// truth is what all tests call the time at which they began.
var (
	began = time.Now()
	truth = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
)

// testNode is a node with a clock that the test sets.
type testNode struct {
	*Link
	name    string
	key     *ecdsa.PrivateKey
	address string

	mu     sync.Mutex
	offset time.Duration // of its clock from the truth
	bound  time.Duration
	manual bool
	none   bool
	logged []string
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sinceBoot() time.Duration { return time.Hour + time.Since(began) }

func (n *testNode) time() policy.TrustedTime {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.none {
		return policy.TrustedTime{}
	}
	now := sinceBoot()
	return policy.TrustedTime{Boot: "boot-" + n.name, BootTime: now, UTC: truth.Add(now - time.Hour + n.offset), Bound: n.bound, Expires: now + time.Hour, Manual: n.manual}
}

func (n *testNode) set(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

func (n *testNode) config(lim limits) Config {
	return Config{Node: n.name, Key: n.key, Boot: "boot-" + n.name, Time: n.time, BootTime: sinceBoot, Raw: sinceBoot, Rand: rand.Reader, limits: lim,
		Why: func(context.Context) string { return "no majority of its servers agrees" },
		Log: func(format string, args ...any) {
			n.set(func() { n.logged = append(n.logged, fmt.Sprintf(format, args...)) })
		}}
}

// newNode listens on loopback; it knows nobody yet.
func newNode(t *testing.T, name string, bound time.Duration, lim limits) *testNode {
	t.Helper()
	n := &testNode{name: name, key: newKey(t), bound: bound}
	l, err := New(n.config(lim))
	if err != nil {
		t.Fatal(err)
	}
	n.Link = l
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.address = listener.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Serve(ctx, listener) }()
	t.Cleanup(func() {
		l.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return n
}

func (n *testNode) record() policy.Peer {
	return policy.Peer{Name: n.name, Address: n.address, Key: n.Key()}
}

func knows(n *testNode, others ...policy.Peer) {
	peers := map[string]policy.Peer{}
	for _, o := range others {
		peers[o.Name] = o
	}
	n.Set(peers)
}

func (n *testNode) sees(name string) rpc.PeerStatus {
	all, _, _ := n.Status()
	for _, p := range all {
		if p.Name == name {
			return p
		}
	}
	return rpc.PeerStatus{}
}

// until waits for what n sees of a peer.
func until(t *testing.T, n *testNode, name string, ok func(rpc.PeerStatus) bool) rpc.PeerStatus {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		s := n.sees(name)
		if ok(s) {
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s sees %s as %+v", n.name, name, s)
		}
	}
}

func in(state string) func(rpc.PeerStatus) bool {
	return func(s rpc.PeerStatus) bool { return s.State == state }
}

func says(state, text string) func(rpc.PeerStatus) bool {
	return func(s rpc.PeerStatus) bool { return s.State == state && strings.Contains(s.Error, text) }
}

// votes is true once n can ask the peer.
func votes(t *testing.T, n *testNode, name string) func(rpc.PeerStatus) bool {
	return func(rpc.PeerStatus) bool {
		_, err := n.PeerTime(t.Context(), name)
		return err == nil
	}
}

// pair are two nodes that know each other.
func pair(t *testing.T, offset, bound time.Duration) (a, b *testNode) {
	t.Helper()
	a, b = newNode(t, "a", bound, quick), newNode(t, "b", bound, quick)
	b.offset = offset
	knows(a, b.record())
	knows(b, a.record())
	return a, b
}
