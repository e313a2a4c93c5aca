package clock

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/policy"
)

// fakePeer is another node as a world's clock sees it. Its network has a randomness of its own, so that a world with peers hears the same
// from its servers as one without.
type fakePeer struct {
	Server
	node  *world
	down  bool
	lie   time.Duration // it was taken over, and says so far from the truth with a bound of bound
	bound time.Duration
	asked int
	rnd   *rand.Rand
}

// boot carries CLOCK_BOOTTIME to a moment near the last reading.
func (s *soft) boot(at time.Duration) time.Duration {
	passed := s.raw(at) - s.last.Raw
	return s.last.Boot + passed + ppm(passed, s.applied)
}

// askPeer asks another node's ledger, which answers from what its clock says, unless that is manual.
func (w *world) askPeer(s Server) {
	p := w.peers[slices.IndexFunc(w.peers, func(p *fakePeer) bool { return p.Server == s })]
	p.asked++
	there := time.Duration(p.rnd.Float64() * 3e6)
	e := event{at: w.now + 2*there, server: s}
	if p.down {
		e.at, e.err = w.now+queryTimeout, errors.New("unavailable")
		w.out = append(w.out, e)
		return
	}
	got := w.clock.raw(e.at)
	distance := (got - w.clock.raw(w.now)) / 2
	says, bound := w.utc(w.now+there), p.bound
	if p.lie == 0 {
		t, _ := p.node.k.Current()
		lo, hi, ok := t.At(p.node.clock.boot(w.now + there))
		if !ok || t.Manual {
			e.err = errors.New("it has no trusted time")
			w.out = append(w.out, e)
			return
		}
		bound = hi.Sub(lo) / 2
		says = lo.Add(bound)
	}
	e.sample = Sample{Raw: got, UTC: says.Add(p.lie + distance), Distance: distance + bound + time.Millisecond}
	w.out = append(w.out, e)
}

// fleet is nodes that know each other.
type fleet []*world

// newFleet makes a node for each number of servers.
func newFleet(seed uint64, servers ...int) fleet {
	var f fleet
	for i, n := range servers {
		f = append(f, newWorld(seed*16+uint64(i), n))
	}
	for i, w := range f {
		for j, other := range f {
			if i != j {
				w.peers = append(w.peers, &fakePeer{Server: Server{Address: fmt.Sprintf("node%d", j+1), Peer: true}, node: other,
					rnd: rand.New(rand.NewPCG(seed, uint64(16*i+j)))})
			}
		}
		w.start()
	}
	return f
}

// run lets d pass, for all nodes by turns: what one hears of another is up to a second from before or after, by that one's own clock.
func (f fleet) run(d time.Duration) {
	for end := f[0].now + d; f[0].now < end; {
		next := min(end, f[0].now+time.Second)
		for _, w := range f {
			w.run(next - w.now)
		}
	}
}

func (f fleet) each(change func(w *world)) {
	for _, w := range f {
		change(w)
	}
}

// TestNoPeersMakeATimeWrong lives through days of seeded trouble in fleets of two to four nodes. Whenever a majority of a node's own servers is
// honest its trusted interval must contain the truth, whatever its peers say: all of them taken over, lying alike with its own liars.
func TestNoPeersMakeATimeWrong(t *testing.T) {
	const each = 20 * time.Hour
	lives := time.Duration(max(120, hours(t)/8)) * time.Hour
	var ran time.Duration
	checks, trusted := 0, 0
	for seed := uint64(1); ran < lives; seed++ {
		f := make([]int, 2+int(seed%3))
		rnd := rand.New(rand.NewPCG(seed, 9))
		for i := range f {
			f[i] = 1 + rnd.IntN(4)
		}
		nodes := newFleet(seed, f...)
		if seed%4 == 1 {
			nodes.each(func(w *world) { // a second is inserted in the midst of it
				w.zero = time.Date(2026, 12, 31, 14, 0, 0, 0, time.UTC)
				w.leap, w.announced = 10*time.Hour, true
				w.k.Build = w.zero.AddDate(0, -3, 0)
			})
		}
		for nodes[0].now < each {
			for _, w := range nodes {
				w.trouble()
				takeOver(rnd, w)
				if rnd.IntN(20) == 0 {
					w.reboot(t, w.between(-90, 90))
				}
			}
			nodes.run(time.Duration(float64(time.Minute) + rnd.Float64()*float64(4*time.Hour)))
		}
		for i, w := range nodes {
			if w.wrong+w.unflagged > 0 {
				t.Fatalf("seed %d, node %d of %d, %d servers: wrong %d times, unflagged %d times: %s\n%s", seed, i+1, len(nodes), len(w.net), w.wrong, w.unflagged, w.first, strings.Join(w.events, "\n"))
			}
			ran, checks, trusted = ran+w.now, checks+w.checks, trusted+w.trusted
		}
	}
	t.Logf("%.0f simulated hours, %d comparisons with the truth, the time was trusted in %.1f %%, 0 wrong", ran.Hours(), checks, 100*float64(trusted)/float64(checks))
	if trusted < checks/4 {
		t.Errorf("the time was trusted in only %d of %d moments: this proves little", trusted, checks)
	}
}

// takeOver has the peers of a node as they are, silent, or in somebody's hands.
func takeOver(rnd *rand.Rand, w *world) {
	mood := rnd.IntN(4)
	lie := time.Duration((rnd.Float64() - 0.5) * 2e9)
	if i := slices.IndexFunc(w.net, func(f *fakeServer) bool { return f.lie != 0 }); i >= 0 && rnd.IntN(2) == 0 {
		lie = w.net[i].lie
	}
	for _, p := range w.peers {
		p.down, p.lie, p.bound = false, 0, time.Duration(rnd.Float64()*30e6)
		switch {
		case mood == 1 && rnd.IntN(2) == 0:
			p.down = true
		case mood == 2:
			p.lie = lie
		case mood == 3 && rnd.IntN(2) == 0:
			p.lie = lie
		}
	}
}

// TestAFleetWithoutServersStops although its nodes confirm each other: none of them makes another more certain.
func TestAFleetWithoutServersStops(t *testing.T) {
	f := newFleet(1, 4, 3, 1)
	f.each(func(w *world) { w.k.limit = 2 * time.Second })
	f.run(2 * time.Hour)
	var stops []time.Time
	f.each(func(w *world) {
		w.containsTruth(t)
		w.all(func(s *fakeServer) { s.down = true })
	})
	f.run(10 * time.Minute)
	f.each(func(w *world) {
		w.containsTruth(t)
		s := w.k.Status()
		if s.State != Holdover {
			t.Errorf("state %s (%s)", s.State, s.Reason)
		}
		stops = append(stops, s.StopsAt())
	})
	last := slices.MaxFunc(stops, time.Time.Compare)
	for f[0].utc(f[0].now).Before(last.Add(time.Hour)) {
		f.run(time.Hour)
		for i, w := range f {
			s := w.k.Status()
			if s.State == Stopped {
				continue
			}
			w.containsTruth(t)
			if d := s.StopsAt().Sub(stops[i]).Abs(); d > time.Minute {
				t.Fatalf("node %d: issuing was to stop at %v and now at %v", i+1, stops[i], s.StopsAt())
			}
		}
	}
	f.each(func(w *world) {
		w.withheld(t, Stopped)
		w.all(func(s *fakeServer) { s.down = false })
	})
	f.run(pollSlow + 10*time.Second)
	f.each(func(w *world) {
		w.containsTruth(t)
		if w.clock.steps != 1 {
			t.Errorf("the wall clock was stepped %d times", w.clock.steps)
		}
	})
}

// TestPeersContradictALyingServer that nobody else could: the node has only this one.
func TestPeersContradictALyingServer(t *testing.T) {
	f := newFleet(2, 1, 4, 4)
	f.run(time.Hour)
	w := f[0]
	w.net[0].lie = 100 * time.Millisecond // too little for a suspicion
	f.run(2 * time.Minute)
	s := w.k.Status()
	if s.State != Holdover || !strings.Contains(s.Reason, "peers node2, node3 contradict the only one that answers, s0") || s.Sources[0].State != "undecided" {
		t.Fatalf("state %s (%s), its server %s", s.State, s.Reason, s.Sources[0].State)
	}
	w.containsTruth(t)
	if !slices.ContainsFunc(s.Problems(), func(p policy.Problem) bool { return p.Kind == "time-contradicted" }) {
		t.Errorf("nobody is told: %v", s.Problems())
	}
	if why := s.Why(); len(why) != 3 || !strings.Contains(why[1], "node2, node3 contradict") {
		t.Errorf("%q", why)
	}
	// One is taken off the record: the other still contradicts. With the last one goes the contradiction, at once.
	w.peers = w.peers[:1]
	w.configure()
	if w.k.state != Holdover {
		t.Errorf("one peer less: state %s (%s)", w.k.state, w.k.reason)
	}
	last := w.peers
	w.peers = nil
	w.configure()
	if w.k.state != Locked {
		t.Errorf("no peer: state %s (%s)", w.k.state, w.k.reason)
	}
	w.peers = last
	w.configure()
	f.run(time.Minute)
	if w.k.state != Holdover {
		t.Errorf("a peer that was added: state %s (%s)", w.k.state, w.k.reason)
	}
	w.net[0].lie = 0
	f.run(10 * time.Minute)
	if w.containsTruth(t); w.k.state != Locked {
		t.Errorf("state %s (%s)", w.k.state, w.k.reason)
	}
}

// TestPeersDoNotProtectALieOfThePast: a node believed its only server's lie. The server is honest now and all peers contradict it. What was
// foretold by the lie must not go on being trusted because nobody may be believed.
func TestPeersDoNotProtectALieOfThePast(t *testing.T) {
	for lie, state := range map[time.Duration]State{time.Hour: Suspect, 100 * time.Millisecond: Holdover} {
		f := newFleet(5, 1, 4, 4)
		w := f[0]
		w.net[0].lie = lie
		for _, p := range w.peers {
			p.down = true
		}
		f.run(time.Hour)
		if w.k.state != Locked {
			t.Fatalf("%v: state %s (%s)", lie, w.k.state, w.k.reason)
		}
		for _, p := range w.peers {
			p.down, p.lie, p.bound = false, -time.Hour, time.Second
		}
		f.run(5 * time.Minute)
		if w.k.state != Holdover {
			t.Fatalf("%v: contradicted, and in state %s (%s)", lie, w.k.state, w.k.reason)
		}
		w.net[0].lie = 0
		f.run(5 * time.Minute)
		if state == Suspect {
			w.withheld(t, Suspect)
		} else if w.containsTruth(t); w.k.state != Holdover {
			t.Errorf("%v: state %s (%s)", lie, w.k.state, w.k.reason)
		}
		now := w.clock.Read()
		a := Approval{Kind: "manual", UTC: w.utc(w.now), Boot: "boot", BootTime: now.Boot, Asked: now.Boot, By: []string{"ada", "ben"}}
		if err := w.k.Approve(a); err == nil {
			t.Errorf("%v: a manual time was taken while the only server answers", lie)
		}
		a.Kind = "release"
		if err := w.k.Approve(a); (err == nil) != (state == Suspect) {
			t.Errorf("%v: release: %v", lie, err)
		} else if err == nil {
			w.containsTruth(t)
		}
	}
}

// TestPeersAloneBringNoManualTime: they may stop a node with a single server at its start, but who speaks for them (the ledger) does not get to
// say the time.
func TestPeersAloneBringNoManualTime(t *testing.T) {
	f := newFleet(6, 1, 4)
	w := f[0]
	w.peers[0].lie, w.peers[0].bound = -time.Hour, time.Second
	w.net[0].down = true // else it is a race who answers first
	f.run(10 * time.Second)
	w.net[0].down = false
	f.run(time.Minute)
	w.withheld(t, Waiting)
	now := w.clock.Read()
	a := Approval{Kind: "manual", UTC: w.utc(w.now).Add(time.Hour), Boot: w.k.Boot, BootTime: now.Boot, Asked: now.Boot, By: []string{"ada", "ben"}}
	if err := w.k.Approve(a); err == nil || !strings.Contains(err.Error(), "peer remove") {
		t.Errorf("approved: %v", err)
	}
	w.peers = nil
	w.configure()
	w.containsTruth(t)
}

// TestAPeerHelpsWhereOneOfTwoServersIsSilent from the first moment on, and can't move the time.
func TestAPeerHelpsWhereOneOfTwoServersIsSilent(t *testing.T) {
	f := newFleet(3, 2, 4)
	f[0].net[1].down = true
	f.run(10 * time.Minute)
	w := f[0]
	w.containsTruth(t)
	s := w.k.Status()
	if s.State != Locked || !strings.Contains(strings.Join(w.events, "\n"), "1 of 2 time servers agree, and the tie is broken by peer node2") {
		t.Fatalf("state %s (%s): %q", s.State, s.Reason, w.events)
	}
	if why := strings.Join(s.Why(), " "); len(s.Why()) != 3 || !strings.Contains(why, "with peer node2") {
		t.Errorf("%q", why)
	}
	now := w.clock.Read()
	w.k.answer(now, w.peers[0].Server, Sample{}, errors.New("unavailable"))
	if w.k.state != Holdover {
		t.Errorf("a peer that gave no answer still has a voice: state %s (%s)", w.k.state, w.k.reason)
	}
	w.peers[0].down = true
	f.run(5 * time.Minute)
	if w.containsTruth(t); w.k.state != Holdover {
		t.Errorf("without the peer: state %s (%s)", w.k.state, w.k.reason)
	}
}

// TestNoPeerEndsASuspicion: who said another time must take it back.
func TestNoPeerEndsASuspicion(t *testing.T) {
	f := newFleet(4, 2, 4)
	f.run(2 * time.Hour)
	w := f[0]
	w.all(func(s *fakeServer) { s.lie = time.Hour })
	f.run(5 * time.Minute)
	w.withheld(t, Suspect)
	w.net[0].lie, w.net[1].down = 0, true // one came back, the peer agrees with it
	f.run(30 * time.Minute)
	w.withheld(t, Suspect)
	w.net[1].lie, w.net[1].down = 0, false
	f.run(30 * time.Minute)
	if w.containsTruth(t); w.k.state != Locked {
		t.Errorf("state %s (%s)", w.k.state, w.k.reason)
	}
}

// TestANodeWithPeersRunsAsOneWithout as long as its servers decide: whatever the peers say, they move neither its clock nor its rate, nor how
// often its servers are asked.
func TestANodeWithPeersRunsAsOneWithout(t *testing.T) {
	const alike = 100 * time.Microsecond // the simulated loop wakes at other moments, and asks by so much earlier or later
	for name, spoil := range map[string]func(*fakePeer){
		"silent": func(p *fakePeer) { p.down = true },
		"right":  func(p *fakePeer) { p.lie, p.bound = 1, time.Millisecond },
		"liars":  func(p *fakePeer) { p.lie, p.bound = -time.Hour, time.Millisecond },
		"edge":   func(p *fakePeer) { p.lie, p.bound = 20*time.Millisecond, 15*time.Millisecond },
	} {
		alone, w := newWorld(77, 4), newWorld(77, 4)
		quiet := func(f *fakeServer) { f.jitter = 0 } // else who is asked first of two changes what both hear
		alone.all(quiet)
		w.all(quiet)
		for i := range 3 {
			p := &fakePeer{Server: Server{Address: fmt.Sprint("node", i), Peer: true}, rnd: rand.New(rand.NewPCG(1, uint64(i)))}
			spoil(p)
			w.peers = append(w.peers, p)
		}
		for _, w := range []*world{alone, w} {
			w.run(time.Minute) // peers may bring the first majority, so they come later
			w.configure()
		}
		for range 40 {
			alone.run(10 * time.Minute)
			w.run(10 * time.Minute)
			a, _ := alone.k.Current()
			b, _ := w.k.Current()
			boot := alone.clock.Read().Boot
			lo, hi, ok := a.At(boot)
			l, h, too := b.At(w.clock.Read().Boot)
			if ok != too || lo.Sub(l).Abs() > alike || hi.Sub(h).Abs() > alike || !slices.Equal(a.Sources, b.Sources) {
				t.Fatalf("%s: after %v [%v, %v] of %v, without peers [%v, %v] of %v", name, w.now, l, h, b.Sources, lo, hi, a.Sources)
			}
		}
		for i := range w.net {
			if w.net[i].asked != alone.net[i].asked {
				t.Errorf("%s: server %d was asked %d times, %d without peers", name, i, w.net[i].asked, alone.net[i].asked)
			}
		}
		if name == "liars" {
			if s := w.k.Status(); s.Sources[4].State != "falseticker" || !strings.Contains(strings.Join(s.Why(), " "), "peers node0, node1, node2") {
				t.Errorf("they are not named: %s, %q", s.Sources[4].State, s.Why())
			}
		}
	}
}
