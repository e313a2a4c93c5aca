package native

import (
	"encoding/hex"
	"slices"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// node is the ledger and the clock of a node of its own, set up, with a time server that is ahead by offset.
func node(t *testing.T, offset time.Duration) *Stack {
	t.Helper()
	services := []string{rpc.Ledger, rpc.Clock}
	s, err := Open(t.Context(), Options{Dir: shortDir(t), Cache: cache(t), Services: services, TimeOffset: offset})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if err := s.Start(t.Context(), programs(t, services...)); err != nil {
		t.Fatal(err)
	}
	if err := s.SetUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *Stack) peers(t *testing.T) rpc.PeersReply {
	t.Helper()
	ledger := s.Client(rpc.Ledger)
	defer ledger.Close()
	r, err := rpc.LedgerPeers.Call(t.Context(), ledger, rpc.Empty{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// meet has both nodes add each other, as two administrators would: by what peer key shows.
func meet(t *testing.T, a *Stack, nameOfB string, b *Stack, nameOfA string) {
	t.Helper()
	for _, c := range []struct {
		at   *Stack
		name string
		of   *Stack
	}{{a, nameOfB, b}, {b, nameOfA, a}} {
		shown := c.of.peers(t)
		key, err := hex.DecodeString(shown.Key)
		if err != nil || !slices.Equal(shown.Addresses, []string{c.of.Addr["peer"]}) {
			t.Fatalf("%+v, %v", shown, err)
		}
		ledger := c.at.Client(rpc.Ledger)
		defer ledger.Close()
		if _, err := c.at.Propose(t.Context(), ledger, "", policy.CmdPeerAdd, policy.PeerAdd{Name: c.name, Address: shown.Addresses[0], Key: key}); err != nil {
			t.Fatal(err)
		}
	}
}

// sees waits until a node's peer is as it should be.
func (s *Stack) sees(t *testing.T, name string, ok func(rpc.PeerStatus) bool) rpc.PeerStatus {
	t.Helper()
	for deadline := time.Now().Add(90 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		r := s.peers(t)
		for _, p := range r.Peers {
			if p.Name == name && ok(p) {
				return p
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %+v", name, r)
		}
	}
}

// TestTwoNodesCompareTheirClocksAndAThirdIsRefused runs the ledgers and clocks of three nodes; the third one's time server is 30 s ahead.
func TestTwoNodesCompareTheirClocksAndAThirdIsRefused(t *testing.T) {
	needNative(t)
	a, b, c := node(t, 0), node(t, 0), node(t, 30*time.Second)
	meet(t, a, "node2", b, "node1")
	meet(t, a, "node3", c, "node1")
	connected := func(p rpc.PeerStatus) bool {
		return p.State == rpc.PeerConnected && p.Compared && p.Clock == rpc.PeerClockTrusted
	}
	for who, name := range map[*Stack]string{a: "node2", b: "node1"} {
		s := who.sees(t, name, connected)
		t.Logf("%s is ahead by %s +- %s", name, s.Skew, s.Uncertainty)
		if s.Off || s.Uncertainty > 2*time.Second {
			t.Errorf("%+v", s)
		}
	}
	refused := func(p rpc.PeerStatus) bool { return p.State == rpc.PeerRefused && p.Off }
	for who, want := range map[*Stack][2]string{a: {"node3", "ahead of this node's"}, c: {"node1", "behind this node's"}} {
		s := who.sees(t, want[0], refused)
		t.Logf("%s: %s", want[0], s.Error)
		if !strings.Contains(s.Error, want[1]) || !strings.Contains(s.Error, "both bounds explain only") || (s.Skew.Abs()-30*time.Second).Abs() > s.Uncertainty {
			t.Errorf("%+v", s)
		}
		ledger := who.Client(rpc.Ledger)
		st, err := rpc.LedgerStatus.Call(t.Context(), ledger, rpc.Empty{})
		ledger.Close()
		if err != nil || !slices.ContainsFunc(st.Problems, func(p policy.Problem) bool {
			return p.Kind == "peer-refused" && strings.Contains(p.What, s.Error[:len("its clock is 3")])
		}) {
			t.Errorf("%v, %+v", err, st.Problems)
		}
	}
	// The clock asks the peer by the ledger, and counts it; the one that was refused has no vote.
	clock := a.Client(rpc.Clock)
	defer clock.Close()
	for deadline := time.Now().Add(90 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		st, err := rpc.ClockStatus.Call(t.Context(), clock, rpc.Empty{})
		if err != nil {
			t.Fatal(err)
		}
		votes := func(name string, ok func(rpc.ClockSource) bool) bool {
			return slices.ContainsFunc(st.Sources, func(s rpc.ClockSource) bool { return s.Address == name && s.Peer && ok(s) })
		}
		if votes("node2", func(s rpc.ClockSource) bool { return s.State == "selected" && s.Offset.Abs() < time.Second }) &&
			votes("node3", func(s rpc.ClockSource) bool {
				return s.State == "unreachable" && strings.Contains(s.Error, "its clock is 30.")
			}) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v", st.Sources)
		}
	}
}
