package clock

import "time"

// Poll intervals: hurried until the first majority and in the first minute of trouble, then slower, so that nobody's server is flooded.
const (
	pollHurry   = 2 * time.Second
	pollTrouble = 4 * time.Second
	pollPatient = 16 * time.Second
	pollSlow    = 64 * time.Second
	hurry       = time.Minute
	poison      = 1024 * time.Second    // longest pause a kiss of death gets
	growth      = 20 * time.Millisecond // the bound may grow by this, or a quarter, between two answers
	settle      = 4                     // good votes in a row before the interval is doubled
)

// trouble asks often for a while; slower and faster are its ends.
func (k *Keeper) trouble() {
	k.steady = 0
	if k.poll > pollTrouble {
		k.poll = pollTrouble
		for i := range k.sources {
			s := &k.sources[i]
			if s.backoff == 0 {
				s.due = min(s.due, s.due-s.Poll+pollTrouble)
			}
		}
		k.nudge()
	}
}

func (k *Keeper) slower(now Reading) {
	k.steady = 0
	if now.Raw-k.worse > hurry {
		k.poll = pollPatient
	}
}

func (k *Keeper) faster(all bool) {
	if k.steady++; k.steady < settle*len(k.sources) {
		return
	}
	k.steady = 0
	next := min(2*k.poll, pollSlow)
	if ppm(next, k.dis.drift) > max(growth, k.own.Bound/4) {
		return // the rate must be known better first
	}
	if all || k.poll < pollPatient {
		k.poll = next
	}
}
