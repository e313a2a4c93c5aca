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

// discipline estimates how UTC runs against Raw, by a straight line through the last estimates, and how to bring Wall there.
type discipline struct {
	line  []estimate
	saved float64 // rate measured earlier, ppm
	rate  float64 // in use
	drift float64 // how far the true rate may be off
	slew  float64 // on top of rate
	err   time.Duration
	rms   time.Duration
}

// estimate is the servers' best guess of UTC at a reading; weight grows with its certainty.
type estimate struct {
	raw    time.Duration
	utc    time.Time
	weight float64
}

// reset forgets what was measured, for example because somebody else is believed now.
func (d *discipline) reset() {
	d.line = nil
	d.rate, d.drift, d.rms = d.saved, FreshPPM+math.Abs(d.saved), 0
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
	d.rate = min(max(slope*1e6, -2*FreshPPM), 2*FreshPPM)
	sigma := math.Sqrt(rest*w/det) * 1e6 * math.Sqrt(float64(len(d.line))/float64(len(d.line)-2))
	d.drift = FreshPPM + math.Abs(d.rate)
	if d.measured() {
		d.drift = min(d.drift, WanderPPM+4*sigma)
		d.saved = d.rate
	}
	return e.utc.Add(time.Duration(base * 1e9))
}

// steer returns the rate for Clock.Rate that brings a wall clock which is behind by err to the time within about the pause until the next
// estimate.
func (d *discipline) steer(err, pause time.Duration) float64 {
	d.err = err
	d.slew = err.Seconds() / max(pause, slewFloor).Seconds() * 1e6
	total := min(max(d.rate+d.slew, -MaxSlewPPM), MaxSlewPPM)
	d.slew = total - d.rate
	return total
}
