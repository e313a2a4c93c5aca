package clock

import (
	"math"
	"time"
)

// Measure is when the oscillator's rate counts as measured, points how many estimates it is measured by.
const (
	rateSpan  = 30 * time.Minute
	slewSpan  = time.Minute // from here on the measured rate is used, though not trusted yet
	points    = 48
	slewFloor = 16 * time.Second // a smaller offset is taken out in this time
)

// discipline estimates how UTC runs against Raw, by a straight line through the last estimates, and how to bring Wall there. What it promises
// about the rate comes from rateLimits, until the line is long enough to promise more.
type discipline struct {
	limits  rateLimits
	line    []estimate
	scatter float64 // what the line leaves open of the rate, once it is long enough; 0 = it is not
	saved   float64 // rate measured earlier, maybe in another boot, ppm: where to begin, no promise
	rate    float64 // in use
	drift   float64 // how far the true rate may be off
	slew    float64 // on top of rate
	err     time.Duration
	rms     time.Duration
}

// estimate is the servers' best guess of UTC at a reading; weight grows with its certainty.
type estimate struct {
	raw    time.Duration
	utc    time.Time
	weight float64
}

// reset forgets all that was measured in this boot, for example because it was refuted.
func (d *discipline) reset() {
	d.limits = freshLimits()
	d.redraw()
}

// redraw begins a new line, for example because somebody else is believed now. The limits of the rate stay: they hold for any majority.
func (d *discipline) redraw() {
	d.line, d.scatter, d.rms = nil, 0, 0
	d.rate = d.saved
	d.fit()
}

// fit brings the rate between its limits and tells what is open of it.
func (d *discipline) fit() {
	l := d.limits
	if d.rate < l.lo || d.rate > l.hi {
		d.rate = (l.lo + l.hi) / 2
	}
	d.drift = max(FreshPPM, d.rate-l.lo, l.hi-d.rate)
	if d.scatter > 0 {
		d.drift = min(d.drift, d.scatter)
	}
}

// learn narrows the limits of the rate by a vote, and reports false if the vote fits none: then everything measured is forgotten.
func (d *discipline) learn(raw time.Duration, v Vote) bool {
	ok := d.limits.narrow(raw, v)
	if !ok {
		d.reset()
		d.limits.narrow(raw, v)
	}
	d.fit()
	return ok
}

// measured reports whether the rate was measured long enough to be kept.
func (d *discipline) measured() bool {
	return len(d.line) > points/3 && d.line[len(d.line)-1].raw-d.line[0].raw >= rateSpan
}

// add takes an estimate and returns the best guess of UTC at its reading.
func (d *discipline) add(e estimate) time.Time {
	d.line = append(d.line, e)
	if len(d.line) > points {
		d.line = d.line[1:]
	}
	first := d.line[0]
	if len(d.line) < 4 || e.raw-first.raw < slewSpan {
		return e.utc
	}
	// x in seconds of Raw before e, y in seconds by which UTC ran ahead of Raw since: small numbers, whose squares a float64 holds.
	var w, wx, wy, wxx, wxy float64
	xy := func(p estimate) (x, y float64) {
		return (p.raw - e.raw).Seconds(), (p.utc.Sub(e.utc) - (p.raw - e.raw)).Seconds()
	}
	for _, p := range d.line {
		x, y := xy(p)
		w, wx, wy, wxx, wxy = w+p.weight, wx+p.weight*x, wy+p.weight*y, wxx+p.weight*x*x, wxy+p.weight*x*y
	}
	det := w*wxx - wx*wx
	if det <= 0 {
		return e.utc
	}
	slope := (w*wxy - wx*wy) / det
	base := (wy - slope*wx) / w
	var rest float64
	for _, p := range d.line {
		x, y := xy(p)
		r := y - base - slope*x
		rest += p.weight * r * r
	}
	rest /= w
	d.rms = time.Duration(math.Sqrt(rest) * 1e9)
	d.rate = min(max(slope*1e6, d.limits.lo), d.limits.hi)
	sigma := math.Sqrt(rest*w/det) * 1e6 * math.Sqrt(float64(len(d.line))/float64(len(d.line)-2))
	if d.scatter = 0; d.measured() {
		d.scatter = WanderPPM + 4*sigma
		d.saved = d.rate
	}
	d.fit()
	return e.utc.Add(time.Duration(base * 1e9))
}

// steer returns the rate for Clock.Rate that brings a wall clock which is behind by err to the time within about the pause until the next
// estimate. An oscillator that is off by more than MaxSlewPPM carries Wall away all the same.
func (d *discipline) steer(err, pause time.Duration) float64 {
	d.err = err
	d.slew = err.Seconds() / max(pause, slewFloor).Seconds() * 1e6
	total := min(max(d.rate+d.slew, -MaxSlewPPM), MaxSlewPPM)
	d.slew = total - d.rate
	return total
}
