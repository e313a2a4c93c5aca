package cluster

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

func TestEachNodeSeesByHowMuchTheOthersClockIsAhead(t *testing.T) {
	a, b := pair(t, 200*time.Millisecond, 500*time.Millisecond)
	for _, c := range []struct {
		who  *testNode
		name string
		skew time.Duration
	}{{a, "b", 200 * time.Millisecond}, {b, "a", -200 * time.Millisecond}} {
		s := until(t, c.who, c.name, func(s rpc.PeerStatus) bool { return s.State == rpc.PeerConnected && s.Compared })
		if d := (s.Skew - c.skew).Abs(); d > s.Uncertainty-time.Second || s.Uncertainty < time.Second || s.Uncertainty > 2*time.Second || s.Off {
			t.Errorf("%s sees %s ahead by %s +- %s", c.who.name, c.name, s.Skew, s.Uncertainty)
		}
		if s.Clock != rpc.PeerClockTrusted || s.Node != c.name || s.Address == "" {
			t.Errorf("%+v", s)
		}
	}
	until(t, a, "b", votes(t, a, "b"))
	r, err := a.PeerTime(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	is := truth.Add(r.Raw - time.Hour + 200*time.Millisecond) // what b's clock showed at that reading
	if d := r.UTC.Sub(is).Abs(); d > r.Distance || r.Distance < 500*time.Millisecond || r.Distance > time.Second {
		t.Errorf("%s +- %s, it was %s", r.UTC, r.Distance, is)
	}
	if _, err := a.PeerTime(t.Context(), "c"); !errors.Is(err, ErrNoPeer) {
		t.Error(err)
	}
}

func TestRefusesANodeBeyondTheBoundsWithTheNumberOnBothSides(t *testing.T) {
	a, b := pair(t, 3214*time.Millisecond, 15*time.Millisecond)
	ahead := until(t, a, "b", in(rpc.PeerRefused))
	behind := until(t, b, "a", in(rpc.PeerRefused))
	for text, s := range map[string]rpc.PeerStatus{"ahead of this node's": ahead, "behind this node's": behind} {
		if !strings.Contains(s.Error, "its clock is 3.") || !strings.Contains(s.Error, text) || !strings.Contains(s.Error, "both bounds explain only 0.") {
			t.Errorf("%q", s.Error)
		}
		if !s.Compared || !s.Off || (s.Skew.Abs()-3214*time.Millisecond).Abs() > s.Uncertainty {
			t.Errorf("%+v", s)
		}
	}
	if _, err := a.PeerTime(t.Context(), "b"); err == nil || !strings.Contains(err.Error(), "refused: its clock is 3.") {
		t.Errorf("a refused node votes: %v", err)
	}
	b.set(func() { b.offset = 0 })
	until(t, a, "b", in(rpc.PeerConnected)) // it is tried again
	until(t, b, "a", in(rpc.PeerConnected))
}

func TestRefusesANodeWithoutTrustedTime(t *testing.T) {
	a, b := newNode(t, "a", time.Second, quick), newNode(t, "b", time.Second, quick)
	b.none = true
	knows(a, b.record())
	knows(b, a.record())
	until(t, a, "b", says(rpc.PeerRefused, "it has no trusted time: no majority of its servers agrees"))
	until(t, b, "a", says(rpc.PeerWaiting, "this node has no trusted time: no majority"))
	b.set(func() { b.none = false })
	until(t, a, "b", votes(t, a, "b"))
	b.set(func() { b.none = true })
	s := until(t, a, "b", func(s rpc.PeerStatus) bool { return s.State == rpc.PeerConnected && s.Clock == rpc.PeerClockNone })
	if s.Reason == "" {
		t.Errorf("%+v", s)
	}
	until(t, a, "b", func(rpc.PeerStatus) bool {
		_, err := a.PeerTime(t.Context(), "b")
		if err == nil {
			t.Fatal("a node without trusted time votes")
		}
		return errors.Is(err, ErrNoVote)
	})
}

func TestAManualTimeIsComparedButNeverVotes(t *testing.T) {
	a, b := newNode(t, "a", time.Second, quick), newNode(t, "b", 5*time.Minute, quick)
	b.manual = true
	knows(a, b.record())
	knows(b, a.record())
	until(t, a, "b", func(s rpc.PeerStatus) bool { return s.State == rpc.PeerConnected && s.Clock == rpc.PeerClockManual })
	until(t, a, "b", func(rpc.PeerStatus) bool {
		_, err := a.PeerTime(t.Context(), "b")
		return errors.Is(err, ErrNoVote)
	})
}

func TestAPeerThatGoesAstrayLaterIsSeenNotCut(t *testing.T) {
	a, b := pair(t, 0, 50*time.Millisecond)
	until(t, a, "b", votes(t, a, "b"))
	until(t, b, "a", in(rpc.PeerConnected))
	b.set(func() { b.offset = -time.Minute })
	s := until(t, a, "b", func(s rpc.PeerStatus) bool { return s.Off })
	if s.State != rpc.PeerConnected || s.Skew > -59*time.Second {
		t.Errorf("%+v", s)
	}
	if r, err := a.PeerTime(t.Context(), "b"); err != nil || !r.UTC.Before(truth.Add(r.Raw-time.Hour-50*time.Second)) {
		t.Errorf("it must be there for the vote, as a falseticker: %v, %v", r, err)
	}
}

func TestARemovedPeerIsCutAtOnce(t *testing.T) {
	a, b := pair(t, 0, time.Second)
	until(t, a, "b", in(rpc.PeerConnected))
	until(t, b, "a", in(rpc.PeerConnected))
	knows(a)
	if s := a.sees("b"); s.Name != "" {
		t.Errorf("%+v", s)
	}
	until(t, b, "a", says(rpc.PeerUnreachable, "closed the connection"))
	knows(a, b.record())
	until(t, b, "a", in(rpc.PeerConnected))
}

func TestAnotherKeyIsAnotherNode(t *testing.T) {
	a, b := pair(t, 0, time.Second)
	until(t, a, "b", in(rpc.PeerConnected))
	changed := b.record()
	changed.Key = make([]byte, policy.PeerKeySize)
	knows(a, changed)
	until(t, a, "b", says(rpc.PeerUnreachable, "is not the node on record: its key is "+b.record().Fingerprint()))
	until(t, b, "a", says(rpc.PeerUnreachable, "the other node does not know this node's key: add this node there"))
	if _, err := a.PeerTime(t.Context(), "b"); err == nil {
		t.Error("it votes")
	}
	knows(a, b.record())
	until(t, a, "b", in(rpc.PeerConnected))
	until(t, b, "a", in(rpc.PeerConnected))
}

func TestOneWayIsEnough(t *testing.T) {
	a, b := newNode(t, "a", time.Second, quick), newNode(t, "b", time.Second, quick)
	unreachable := a.record()
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	unreachable.Address = dead.Addr().String()
	dead.Close()
	knows(b, unreachable)
	until(t, b, "a", says(rpc.PeerUnreachable, "connection refused"))
	knows(a, b.record())
	until(t, b, "a", func(s rpc.PeerStatus) bool {
		return s.State == rpc.PeerConnected && s.Compared && s.Uncertainty < 3*time.Second && strings.Contains(s.Error, "only the other node can connect")
	})
	if _, err := b.PeerTime(t.Context(), "a"); err == nil || !strings.Contains(err.Error(), "only the other node can connect") {
		t.Error(err)
	}
}

// TestADeadPeerIsNotDialledWithoutPause counts the tries of an hour.
func TestADeadPeerIsNotDialledWithoutPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &testNode{name: "a", key: newKey(t), bound: time.Second}
		tries := 0
		cfg := n.config(limits{})
		cfg.Dial = func(context.Context, string) (net.Conn, error) { tries++; return nil, errors.New("no route to host") }
		l, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		l.Set(map[string]policy.Peer{"b": {Name: "b", Address: "192.0.2.7:7443", Key: make([]byte, policy.PeerKeySize)}})
		time.Sleep(time.Hour)
		l.Close()
		if tries < 55 || tries > 70 {
			t.Errorf("%d tries in an hour", tries)
		}
		if n := len(n.logged); n == 0 || n > 61 {
			t.Errorf("%d lines in the log", n)
		}
	})
}

func TestTheSkewAndWhatIsCertainOfIt(t *testing.T) {
	at := func(middle, half time.Duration) Clock {
		m := truth.Add(middle)
		return Clock{Boot: "b", State: rpc.PeerClockTrusted, Earliest: m.Add(-half).UnixNano(), Latest: m.Add(half).UnixNano()}
	}
	none := Clock{Boot: "b", State: rpc.PeerClockNone, Why: "it waits"}
	const ms = time.Millisecond
	for _, c := range []struct {
		what   string
		own    Clock
		r      reading
		why    string
		wait   bool
		ahead  time.Duration
		unsure time.Duration
	}{
		{"equal", at(0, 10*ms), reading{clock: at(0, 20*ms)}, "", false, 0, 30 * ms},
		{"half the round trip is neither ahead nor behind", at(50*ms, 10*ms), reading{clock: at(0, 10*ms), window: 100 * ms}, "", false, 0, 70 * ms},
		{"just in reach", at(0, 10*ms), reading{clock: at(30*ms, 20*ms)}, "", false, 30 * ms, 30 * ms},
		{"just out of reach", at(0, 10*ms), reading{clock: at(31*ms, 20*ms)}, "its clock is 0.031 s ahead of this node's, and both bounds explain only 0.030 s", false, 31 * ms, 30 * ms},
		{"a late answer excuses one who is behind", at(0, 10*ms), reading{clock: at(-31*ms, 20*ms), window: 4 * ms}, "", false, -29 * ms, 32 * ms},
		{"but not one who is ahead", at(0, 10*ms), reading{clock: at(31*ms, 20*ms), window: 4 * ms}, "its clock is 0.033 s ahead of this node's, and both bounds explain only 0.032 s", false, 33 * ms, 32 * ms},
		{"behind", at(0, 10*ms), reading{clock: at(-3214*ms, 21*ms)}, "its clock is 3.214 s behind this node's, and both bounds explain only 0.031 s", false, -3214 * ms, 31 * ms},
		{"2099", at(0, 10*ms), reading{clock: at(73*365*24*time.Hour, 10*ms)}, "its clock is 2302128000.000 s ahead of this node's, and both bounds explain only 0.020 s", false, 73 * 365 * 24 * time.Hour, 20 * ms},
		{"none", at(0, 10*ms), reading{clock: none}, "it has no trusted time: it waits", false, 0, 0},
		{"none here", none, reading{clock: at(0, 10*ms)}, "this node has no trusted time: it waits", true, 0, 0},
	} {
		t.Run(c.what, func(t *testing.T) {
			s, why, wait := judge(c.own, c.r, time.Hour)
			if why != c.why || wait != c.wait {
				t.Fatalf("%q, %v", why, wait)
			}
			if s != nil && (s.ahead != c.ahead || (s.uncertainty-c.unsure).Abs() > 10) {
				t.Errorf("%s +- %s", s.ahead, s.uncertainty)
			}
		})
	}
}
