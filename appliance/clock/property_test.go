package clock

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// hours is how long the simulation of TestTrustedTimeIsNeverWrong is: GUARDHOUSE_HOURS, or what a quick look allows.
func hours(t testing.TB) int {
	v := os.Getenv("GUARDHOUSE_HOURS")
	if v == "" {
		return 150
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 {
		t.Fatalf("GUARDHOUSE_HOURS is %q, not a number of hours", v)
	}
	return n
}

// TestTrustedTimeIsNeverWrong lives through days of seeded trouble: servers that lie, alone or together, that fall silent, restart, refuse,
// stand at the end of asymmetric paths, lose answers. Whenever a majority is honest the trusted interval must contain the truth; when
// none is, it must be withheld or somebody must be named.
func TestTrustedTimeIsNeverWrong(t *testing.T) {
	checks, trusted, ran := live(t, hours(t))
	t.Logf("%.0f simulated hours, %d comparisons with the truth, the time was trusted in %.1f %%, 0 wrong", ran.Hours(), checks, 100*float64(trusted)/float64(checks))
	if trusted < checks/3 {
		t.Errorf("the time was trusted in only %d of %d moments: this proves little", trusted, checks)
	}
}

// BenchmarkTrustedTime100000Hours is the number of the README: how often the trusted interval did not contain the truth.
func BenchmarkTrustedTime100000Hours(b *testing.B) {
	for range b.N {
		checks, trusted, ran := live(b, 100000)
		b.ReportMetric(ran.Hours(), "hours")
		b.ReportMetric(float64(checks), "comparisons")
		b.ReportMetric(100*float64(trusted)/float64(checks), "%trusted")
		b.ReportMetric(0, "wrong") // live fails at the first one
	}
}

// live runs seeded worlds, each for two days, and fails with the story of the first that was wrong.
func live(t testing.TB, hours int) (checks, trusted int, ran time.Duration) {
	const each = 50 * time.Hour
	for seed := uint64(1); ran < time.Duration(hours)*time.Hour; seed++ {
		w := newWorld(seed, 1+int(seed%8))
		if seed%5 == 1 { // a second is inserted in the midst of it, and announced a day before
			w.zero = time.Date(2026, 12, 30, 22, 0, 0, 0, time.UTC)
			w.leap, w.announced = 26*time.Hour, true
			w.k.Build = w.zero.AddDate(0, -3, 0)
		}
		rogue := seed%3 == 0 // a machine that calibrates its oscillator badly, and another way at each boot
		if rogue {
			w.reboot(t, w.between(-10000, 10000))
		}
		for w.now < each {
			w.trouble()
			switch w.rnd.IntN(40) {
			case 0, 1, 2:
				base := w.between(-90, 90)
				if rogue {
					base = w.between(-10000, 10000)
				}
				w.reboot(t, base)
			case 3:
				w.pause(time.Duration(w.between(0.5e9, 10e9)))
			}
			w.run(time.Duration(w.between(float64(time.Minute), float64(6*time.Hour))))
		}
		if w.wrong+w.unflagged > 0 {
			t.Fatalf("seed %d, %d servers: wrong %d times, unflagged %d times: %s\n%s", seed, len(w.net), w.wrong, w.unflagged, w.first, strings.Join(w.events, "\n"))
		}
		// The wall clock is stepped by the first majority of a boot and where administrators released or lowered the floor; never else.
		if steps := w.stepped + w.clock.steps; steps > w.boots+1+w.asked {
			t.Fatalf("seed %d: stepped %d times in %d boots with %d decisions\n%s", seed, steps, w.boots+1, w.asked, strings.Join(w.events, "\n"))
		}
		if w.clock.most > MaxSlewPPM {
			t.Fatalf("seed %d: the wall clock was to be slewed by %v ppm", seed, w.clock.most)
		}
		ran, checks, trusted = ran+w.now, checks+w.checks, trusted+w.trusted
	}
	return checks, trusted, ran
}

// trouble changes the network.
func (w *world) trouble() {
	// A suspicion needs an administrator: here one releases it when a majority is honest again.
	if w.k.state == Suspect && w.honest() && w.rnd.IntN(2) == 0 {
		now := w.clock.Read()
		w.k.Approve(Approval{Kind: "floor", UTC: w.k.Build.Add(time.Hour), Boot: w.k.Boot, Asked: now.Boot, By: []string{"ada", "ben"}})
		w.asked++
		w.k.Approve(Approval{Kind: "release", Boot: w.k.Boot, Asked: now.Boot, By: []string{"ada", "ben"}})
	}
	lie := func() time.Duration {
		d := time.Duration(w.between(5e6, 50e6))
		if w.rnd.IntN(2) == 0 {
			d = time.Duration(w.between(1e9, 1e17))
		}
		if w.rnd.IntN(2) == 0 {
			d = -d
		}
		return d
	}
	for _, f := range w.net {
		f.down, f.kiss, f.loss, f.lie = false, "", 0, 0
	}
	pick := func() *fakeServer { return w.net[w.rnd.IntN(len(w.net))] }
	minority := (len(w.net) - 1) / 2
	switch w.rnd.IntN(10) {
	case 0: // a minority lies, each for itself
		for range minority {
			pick().lie = lie()
		}
	case 1: // a minority lies together
		d := lie()
		for range minority {
			pick().lie = d
		}
	case 2: // a majority lies together, grossly
		d := time.Duration(w.between(1e9, 1e16))
		for i := range len(w.net)/2 + 1 {
			w.net[i].lie = d
		}
	case 3:
		for _, f := range w.net {
			f.loss = w.between(0, 0.6)
		}
	case 4:
		for _, f := range w.net {
			f.down = true
		}
	case 5: // the way back takes another route
		f := pick()
		f.back = f.there + time.Duration(w.between(0, 300e6))
	case 6:
		pick().kiss = "RATE"
	case 7: // a server restarts with another error, which it admits
		f := pick()
		f.err, f.disp = time.Duration(w.between(-30e6, 30e6)), 31*time.Millisecond
	case 8:
		for range minority {
			pick().down = true
		}
	}
}

func TestTheSimulationSeesAWrongTime(t *testing.T) {
	w := newWorld(3, 4)
	w.run(time.Hour)
	w.clock.base += 400 // no clock can know this: the crystal breaks while nobody answers
	for _, f := range w.net {
		f.down = true
	}
	w.clock.last.Raw = w.clock.raw(w.now)
	w.run(2 * time.Hour)
	for i := range w.k.sources { // as if they had answered and the clock had not looked
		w.k.sources[i].Sample = &Sample{}
	}
	w.judge()
	if w.wrong == 0 {
		t.Fatal("a crystal that left its bounds by 400 ppm went unnoticed: the comparison sees nothing")
	}
}

// honest: nobody lies now.
func (w *world) honest() bool {
	return !slices.ContainsFunc(w.net, func(f *fakeServer) bool { return f.lie != 0 })
}
