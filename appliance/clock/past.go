package clock

import (
	"slices"
	"time"
)

// past is what was foretold lately, the oldest first. Servers that promise little jump in steps: as their answers come in one by one, the
// majority moves from where they were by way of where both overlap, each time by less than MaxOffset. So a broad vote is compared with
// what was foretold before the round, too.
type past []known

const (
	pastSpan  = 5 * time.Minute // longer than the longest pause between two answers of a server that is not silent
	pastPause = 10 * time.Second
	// A vote that is narrower, as this clock before it, has no room for such a step: it is a jump by itself.
	pastBroad = 100 * time.Millisecond
)

// note keeps a forecast that was believed.
func (p *past) note(k known) {
	*p = slices.DeleteFunc(*p, func(o known) bool { return k.Raw-o.Raw > pastSpan })
	if n := len(*p); n == 0 || k.Raw-(*p)[n-1].Raw >= pastPause {
		*p = append(*p, k)
	}
}

// off is by how much utc at raw leaves one of the forecasts, if that is more than MaxOffset and what the oscillator may have drifted since;
// else 0. Their age does not matter: in a suspicion nothing is noted, and what was foretold before it is what the servers must come back to.
func (p past) off(raw time.Duration, utc time.Time) time.Duration {
	for _, k := range p {
		mid, bound := k.at(raw)
		if off := utc.Sub(mid); off.Abs() > MaxOffset+bound-k.Bound {
			return off
		}
	}
	return 0
}
