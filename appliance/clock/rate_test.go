package clock

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/policy"
)

// TestABadlyCalibratedClockIsAFindingAndNoSuspicion: whatever the oscillator's rate is in this boot, and whatever it was in the last one,
// honest servers are believed, the rate is known soon, and people are told.
func TestABadlyCalibratedClockIsAFindingAndNoSuspicion(t *testing.T) {
	for seed, base := range []float64{-10000, -2500, -450, 40, 700, 3000, 10000} {
		w := newWorld(uint64(seed), 4)
		w.run(2 * time.Hour)
		if s := w.k.Status(); s.Odd != 0 || s.Drift > 2*WanderPPM {
			t.Errorf("seed %d: a good crystal is off by %v +- %v ppm", seed, s.Odd, s.Drift)
		}
		w.events = nil
		w.reboot(t, base)
		w.run(30 * time.Second)
		w.containsTruth(t)
		for range 3 {
			w.run(5 * time.Minute)
			if b := w.containsTruth(t); b > time.Second {
				t.Errorf("%v ppm: bound %v after %v", base, b, w.now)
			}
			s := w.k.Status()
			slow := (1/(1+base/1e6) - 1) * 1e6
			if math.Abs(s.Rate-slow) > s.Drift || s.Drift > 500 {
				t.Errorf("%v ppm: measured as %v +- %v", base, s.Rate, s.Drift)
			}
			said := strings.Contains(strings.Join(s.Why(), " "), "this machine's clock runs")
			if warned := slices.ContainsFunc(s.Problems(), func(p policy.Problem) bool { return p.Kind == "time-oscillator" && p.Remedy != "" }); said != (math.Abs(base) > 400) || warned != (math.Abs(base) > 600) {
				t.Errorf("%v ppm: said %v, a problem %v: %q %v", base, said, warned, s.Why(), s.Problems())
			}
		}
		w.run(2 * time.Hour)
		w.containsTruth(t)
		if s := w.k.Status(); s.Drift > 3*WanderPPM || w.k.poll != pollSlow {
			t.Errorf("%v ppm: known to %v ppm after 2 hours, asked every %v", base, s.Drift, w.k.poll)
		}
		w.all(func(f *fakeServer) { f.down = true })
		w.run(24 * time.Hour)
		if b := w.containsTruth(t); b > 10*time.Second || w.clock.steps != 1 {
			t.Errorf("%v ppm: bound %v after a day alone, %d steps", base, b, w.clock.steps)
		}
		if story := strings.Join(w.events, "\n"); strings.Contains(story, "suspect") {
			t.Errorf("%v ppm: %s", base, story)
		}
		// What is no rate is a jump still.
		w.all(func(f *fakeServer) { f.down = false })
		w.run(10 * time.Minute)
		w.containsTruth(t)
		w.all(func(f *fakeServer) { f.lie = 700 * time.Millisecond })
		w.run(10 * time.Minute)
		w.withheld(t, Suspect)
	}
}

// TestAnEarlyJumpIsNoRate: the rate is not known yet, but already too well for half a second at once.
func TestAnEarlyJumpIsNoRate(t *testing.T) {
	for _, lie := range []time.Duration{-time.Second, -500 * time.Millisecond, 500 * time.Millisecond, time.Hour} {
		w := newWorld(5, 4)
		w.reboot(t, 5000)
		w.run(20 * time.Second)
		w.containsTruth(t)
		w.all(func(f *fakeServer) { f.lie = lie })
		w.run(time.Minute)
		w.withheld(t, Suspect)
	}
}

// TestAPausedMachineIsSuspectUntilAdministratorsDecide: it lost seconds; nothing here can tell that from servers that jumped.
func TestAPausedMachineIsSuspectUntilAdministratorsDecide(t *testing.T) {
	w := newWorld(6, 4)
	w.run(2 * time.Hour)
	w.pause(3 * time.Second)
	w.run(10 * time.Minute)
	w.withheld(t, Suspect)
	if err := w.k.Approve(Approval{Kind: "release", Boot: w.k.Boot, Asked: w.clock.Read().Boot, By: []string{"ada", "ben"}}); err != nil {
		t.Fatal(err)
	}
	w.run(time.Minute)
	w.containsTruth(t)
}

// TestAShortPauseIsMeasuredAnew: what is no suspicion must not become a rate.
func TestAShortPauseIsMeasuredAnew(t *testing.T) {
	w := newWorld(7, 4)
	w.run(2 * time.Hour)
	w.pause(70 * time.Millisecond)
	w.run(5 * time.Minute)
	for range 60 {
		w.run(time.Minute)
		w.containsTruth(t)
	}
	if s := w.k.Status(); s.Odd != 0 || s.State != Locked {
		t.Errorf("state %s, the oscillator off by %v ppm", s.State, s.Odd)
	}
}

func TestVotesLimitTheRate(t *testing.T) {
	vote := func(off, half time.Duration, at time.Duration) Vote {
		return Vote{Earliest: base.Add(at + off - half), Latest: base.Add(at + off + half)}
	}
	l := freshLimits()
	for at := time.Duration(0); at < 3*time.Hour; at += 7 * time.Second {
		if !l.narrow(at, vote(ppm(at, 2000), 5*time.Millisecond, at)) {
			t.Fatalf("%v: a constant rate was refuted: %v to %v", at, l.lo, l.hi)
		}
		if l.lo > 2000 || l.hi < 2000 || len(l.anchors) > mostAnchors {
			t.Fatalf("%v: %v to %v, %d anchors", at, l.lo, l.hi, len(l.anchors))
		}
	}
	if l.hi-l.lo > 3*WanderPPM || l.off() != l.lo {
		t.Errorf("after hours %v to %v", l.lo, l.hi)
	}
	if at := 3 * time.Hour; l.narrow(at, vote(ppm(at, 2000)+50*time.Millisecond, 5*time.Millisecond, at)) {
		t.Error("a jump of 50 ms passed for a rate")
	}
}

// TestAStaleAnswerMakesNoRate: a machine that knows its clock to 1 % stands still while one of its two servers wants to be left alone. What that
// server said before, carried on until it is wide enough, meets what the other says now; that is neither a time nor a rate.
func TestAStaleAnswerMakesNoRate(t *testing.T) {
	for seed := range uint64(20) {
		w := newWorld(seed, 2)
		w.run(3 * time.Second)
		w.containsTruth(t)
		w.net[0].kiss = "RATE"
		w.pause(time.Duration(1.1e9 + 5e7*float64(seed)))
		w.run(20 * time.Minute)
		if l := w.k.dis.limits; l.lo > 500 {
			t.Errorf("seed %d: the pause became a rate of %.0f to %.0f ppm", seed, l.lo, l.hi)
		}
	}
}

// TestAWrongRateDoesNotLast: answers of different age that are carried on by a wrong rate make no majority, and without a majority nothing
// would ever refute the rate.
func TestAWrongRateDoesNotLast(t *testing.T) {
	w := newWorld(8, 2)
	w.run(2 * time.Hour)
	w.net[0].down = true
	w.run(90*time.Minute + 20*time.Second) // nobody asks often any more, and not both at once
	w.k.dis.limits.cut()
	w.k.dis.limits.lo, w.k.dis.limits.hi = 8400, 8950
	w.k.dis.redraw()
	w.k.own.Rate, w.k.own.Drift = w.k.dis.rate, w.k.dis.drift
	w.k.publish(w.clock.Read())
	w.net[0].down = false
	w.run(10 * time.Minute)
	if s := w.k.Status(); s.Rate > 500 || w.k.state == Holdover {
		t.Fatalf("state %s, rate %.0f ppm", s.State, s.Rate)
	}
	if _, _, ok := w.k.trusted.At(w.clock.Read().Boot); ok {
		w.containsTruth(t)
	}
}

// TestAPauseThatNobodySawIsNoRate: nobody was heard for so long that the bound hides it when the machine stands still.
func TestAPauseThatNobodySawIsNoRate(t *testing.T) {
	for seed := range uint64(20) {
		w := newWorld(seed, 2+int(seed%3))
		w.run(3 * time.Second)
		w.all(func(f *fakeServer) { f.down = true })
		w.pause(time.Duration(1e9 + 1e8*float64(seed)))
		w.run(80 * time.Minute)
		w.all(func(f *fakeServer) { f.down = false })
		w.run(2*time.Minute + 10*time.Second)
		for range 120 {
			w.run(5 * time.Second)
			w.containsTruth(t)
		}
	}
}
