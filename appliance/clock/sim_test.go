package clock

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// world is a seeded universe: true time, an oscillator with an error of its own, and a network of time servers that may lie.
type world struct {
	rnd  *rand.Rand
	zero time.Time     // UTC at now = 0
	now  time.Duration // true time since
	leap time.Duration // when a second is inserted, 0 = never
	// announced: every server announces it, in the day before. Else those do that say so.
	announced bool
	k         *Keeper
	clock     *soft
	net       []*fakeServer
	peers     []*fakePeer // see fleet_test.go
	out       []event
	// how the run went
	wrong, unflagged int
	first            string
	checks, trusted  int
	asked            int           // decisions that may have the wall clock stepped
	stepped          int           // steps of clocks before the last reboot
	worst            time.Duration // of Wall, after settling
	sum              float64
	measured         int
	events           []string
	boots            int
	without          time.Duration // when there last was no honest majority
}

type event struct {
	at     time.Duration
	server Server
	sample Sample
	err    error
	lied   bool
}

// utc is POSIX time: an inserted second is lived twice.
func (w *world) utc(at time.Duration) time.Time {
	t := w.zero.Add(at)
	if w.leap != 0 && at >= w.leap {
		t = t.Add(-time.Second)
	}
	return t
}

// soft is a clock of software with a crystal that is off by base ppm and follows the day's temperature.
type soft struct {
	w           *world
	base, swing float64
	born, lost  time.Duration // when it was switched on; how long its virtual machine was paused
	phase       float64
	applied     float64
	last        Reading
	broken      bool
	steps       int
	most        float64 // ppm, the largest rate that was asked for
}

const dayRate = 2 * math.Pi / 86400

func (s *soft) raw(at time.Duration) time.Duration {
	at -= s.born + s.lost
	sec := at.Seconds()
	wave := s.swing / dayRate * (math.Cos(s.phase) - math.Cos(dayRate*sec+s.phase))
	return 3*time.Second + at + time.Duration((s.base*sec+wave)*1e3)
}

func (s *soft) Read() Reading {
	raw := s.raw(s.w.now)
	passed := raw - s.last.Raw
	passed += ppm(passed, s.applied)
	s.last = Reading{raw, s.last.Boot + passed, s.last.Wall.Add(passed)}
	return s.last
}

func (s *soft) Step(utc time.Time) error {
	s.Read()
	if s.broken {
		return errors.New("not permitted")
	}
	s.steps++
	s.last.Wall = utc
	return nil
}

func (s *soft) Rate(ppm float64) error {
	s.Read()
	if s.broken {
		return errors.New("not permitted")
	}
	s.most = max(s.most, math.Abs(ppm))
	s.applied = min(max(ppm, -MaxSlewPPM), MaxSlewPPM) // as a kernel does
	return nil
}

func (s *soft) Applied() float64 { return s.applied }

// fakeServer is a time server at some distance. Its clock is off by err, which its dispersion admits, and by lie, which nothing admits.
type fakeServer struct {
	Server
	there, back, jitter time.Duration
	disp                time.Duration
	err                 time.Duration
	loss                float64
	lie                 time.Duration
	down, cut           bool // silent; not to be reached from here
	kiss                string
	announces           int
	asked               int
	lied                bool // in its newest answer
}

func newWorld(seed uint64, servers int) *world {
	w := &world{rnd: rand.New(rand.NewPCG(seed, 7)), zero: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)}
	w.clock = &soft{w: w, base: w.between(-90, 90), swing: w.between(0, 4), phase: w.between(0, 6)}
	w.clock.last = Reading{Raw: w.clock.raw(0), Boot: 3 * time.Second, Wall: w.zero.Add(time.Duration(w.between(-1e17, 1e17)))}
	for i := range servers {
		base := time.Duration(w.between(0.2e6, 20e6))
		w.net = append(w.net, &fakeServer{Server: Server{Address: fmt.Sprintf("s%d", i)}, there: base, back: base,
			jitter: time.Duration(w.between(0.02e6, 0.5e6)), disp: time.Millisecond, err: time.Duration(w.between(-0.3e6, 0.3e6))})
	}
	w.start()
	return w
}

func (w *world) between(a, b float64) float64 { return a + (b-a)*w.rnd.Float64() }

// start makes a keeper, as after the process's start.
func (w *world) start() {
	k := New()
	k.Clock, k.Boot, k.Build, k.Log = w.clock, "boot", w.zero.AddDate(0, -3, 0), func(string, ...any) {}
	k.Event = func(action, detail string) {
		w.events = append(w.events, fmt.Sprintf("%v %s: %s", w.now, action, detail))
	}
	k.Query = func(context.Context, Server) (Sample, error) { return Sample{}, errors.New("not used") }
	w.k, w.out = k, nil
	w.configure()
}

// configure names the servers and peers to the keeper.
func (w *world) configure() {
	var list []Server
	for _, s := range w.net {
		list = append(list, s.Server)
	}
	for _, p := range w.peers {
		list = append(list, p.Server)
	}
	w.k.Configure(list, 0)
}

// reboot switches the machine off and on: its oscillator is calibrated anew, off by base ppm. What is kept on the disk comes back.
func (w *world) reboot(t testing.TB, base float64) {
	dir := t.TempDir()
	if err := w.k.Keep(dir); err != nil {
		t.Fatal(err)
	}
	w.boots++
	w.stepped += w.clock.steps
	w.clock = &soft{w: w, base: base, swing: w.clock.swing, phase: w.clock.phase, born: w.now, most: w.clock.most}
	w.clock.last = Reading{Raw: w.clock.raw(w.now), Boot: 3 * time.Second, Wall: w.zero}
	w.start()
	w.k.Boot = fmt.Sprintf("boot %d", w.boots)
	if err := w.k.Restore(dir); err != nil {
		t.Fatal(err)
	}
}

// pause stops the virtual machine for d. What it had heard before is no honest answer any more, which nobody can know before the next.
func (w *world) pause(d time.Duration) {
	w.clock.Read()
	w.now += d
	w.clock.lost += d
	for _, f := range w.net {
		f.lied = true
	}
	for i := range w.out {
		w.out[i].lied = true
	}
}

// ask sends a question now and queues what comes of it.
func (w *world) ask(s Server) {
	if s.Peer {
		w.askPeer(s)
		return
	}
	i := slices.IndexFunc(w.net, func(f *fakeServer) bool { return f.Server == s })
	f := w.net[i]
	f.asked++
	wave := func() time.Duration { return time.Duration(w.rnd.ExpFloat64() * float64(f.jitter)) }
	out, back := f.there+wave(), f.back+wave()
	e := event{at: w.now + out + back, server: s}
	switch {
	case f.cut:
		e.at, e.err = w.now+time.Millisecond, errCut
	case f.down || w.rnd.Float64() < f.loss:
		e.at, e.err = w.now+queryTimeout, errors.New("timeout")
	case f.kiss != "":
		e.err = fmt.Errorf("s: %w", &Kiss{f.kiss})
	default:
		says := w.utc(w.now + out).Add(f.err + f.lie)
		got := w.clock.raw(e.at)
		rtt := got - w.clock.raw(w.now)
		e.lied = f.lie != 0
		announces := f.announces
		if w.announced && w.now < w.leap && w.now > w.leap-24*time.Hour {
			announces = 1
		}
		e.sample = Sample{Raw: got, UTC: says.Add(rtt / 2), Distance: rtt/2 + f.disp + ppm(rtt, UnmeasuredPPM), Stratum: 2, Leap: announces, Verified: s.Key != 0}
	}
	w.out = append(w.out, e)
}

// run lets d pass.
func (w *world) run(d time.Duration) {
	end := w.now + d
	for w.now < end {
		ask, next := w.k.due(w.clock.Read())
		for _, s := range ask {
			w.ask(s)
		}
		until := min(end, w.now+max(next-w.clock.last.Raw, time.Millisecond))
		if len(ask) == 0 && len(w.out) == 0 {
			// Nothing happens before the next question is due, which may be more than the loop's own rest away.
			until = min(end, w.now+w.rest())
		}
		first := -1
		for i, e := range w.out {
			if e.at <= until && (first < 0 || e.at < w.out[first].at) {
				first = i
			}
		}
		if first < 0 {
			w.now = until
			w.judge()
			continue
		}
		e := w.out[first]
		w.out = slices.Delete(w.out, first, first+1)
		w.now = max(w.now, e.at)
		w.judge() // what was trusted until the answer came
		w.k.answer(w.clock.Read(), e.server, e.sample, e.err)
		if i := slices.IndexFunc(w.net, func(f *fakeServer) bool { return f.Server == e.server }); e.err == nil && i >= 0 {
			w.net[i].lied = e.lied
		}
		w.judge()
	}
}

func (w *world) rest() time.Duration {
	least := pollSlow
	for _, s := range w.k.sources {
		least = min(least, s.due-w.clock.last.Raw)
	}
	return max(least, time.Millisecond)
}

// visible is a lie that honest bounds (20 ms of path, an asymmetric 150 ms) can't hide.
const visible = 400 * time.Millisecond

// refuted is how long a lie that nobody could see (by less than the bounds, while others were silent) may outlast the liars in the rate.
const refuted = time.Minute

// judge compares what is trusted with the truth.
func (w *world) judge() {
	honest := 0 // by the newest answer, of all that are configured: who has not been heard does not help
	for i, f := range w.net {
		if !f.lied && i < len(w.k.sources) && w.k.sources[i].Sample != nil {
			honest++
		}
	}
	majority := 2*honest > len(w.net)
	if !majority {
		w.without = w.now
	}
	// The rate was measured by earlier votes, too: the next ones must have had the time to refute it.
	majority = w.now-w.without > refuted || w.without == 0
	w.checks++
	now := w.clock.Read()
	t, _ := w.k.Current()
	lo, hi, ok := t.At(now.Boot)
	if w.k.state == Locked && w.now > time.Hour {
		e := now.Wall.Sub(w.utc(w.now)).Abs()
		w.worst = max(w.worst, e)
		w.sum += e.Seconds() * e.Seconds()
		w.measured++
	}
	if !ok {
		return
	}
	w.trusted++
	truth := w.utc(w.now)
	if !truth.Before(lo) && !truth.After(hi) {
		return
	}
	switch {
	case majority:
		w.wrong++
		w.note("wrong", truth, lo, hi)
	case honest > 0 && max(lo.Sub(truth), truth.Sub(hi)) > visible && !w.flagged():
		w.unflagged++
		w.note("unflagged", truth, lo, hi)
	}
}

func (w *world) note(what string, truth, lo, hi time.Time) {
	if w.first == "" {
		w.first = fmt.Sprintf("%s after %v in state %s: truth %v is not in [%v, %v] of %v", what, w.now, w.k.state, truth, lo.Sub(truth), hi.Sub(truth), w.k.trusted)
		for i, f := range w.net {
			w.first += fmt.Sprintf("\n%s %s lie %v err %v", f.Address, w.k.sources[i].State, f.lie, f.err)
			if n := w.k.sources[i].Sample; n != nil {
				lo, hi := n.at(w.clock.last.Raw, w.k.dis.rate, FreshPPM+math.Abs(w.k.dis.rate))
				w.first += fmt.Sprintf(" says [%v, %v] age %v", lo.Sub(truth), hi.Sub(truth), w.clock.last.Raw-n.Raw)
			}
		}
	}
}

// flagged: the status shows a person that something is wrong.
func (w *world) flagged() bool {
	return w.k.state != Locked || slices.ContainsFunc(w.k.sources, func(s Source) bool { return s.State == "falseticker" || s.State == "undecided" })
}
