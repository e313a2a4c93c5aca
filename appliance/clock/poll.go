package clock

import (
	"errors"
	"syscall"
	"time"
)

// Poll intervals: hurried until the first majority and in the first minute of trouble, then slower, so that nobody's server is flooded. A
// server that stays silent while others make a majority is asked half as often each time; where there is no majority nothing can be issued,
// so all are asked as often as NTP allows for an hour, then slowly.
const (
	pollEager   = 250 * time.Millisecond // while no question leaves this machine, eager times: at a start the network comes any moment
	eager       = 240
	pollHurry   = 2 * time.Second
	pollTrouble = 4 * time.Second
	pollPatient = 16 * time.Second
	pollSlow    = 64 * time.Second
	pollAbsent  = 256 * time.Second
	hurry       = time.Minute
	patience    = time.Hour
	poison      = 1024 * time.Second    // longest pause a kiss of death gets
	growth      = 20 * time.Millisecond // the bound may grow by this, or a quarter, between two answers
	settle      = 4                     // good votes in a row before the interval is doubled
)

// trouble asks often for a while; slower and faster are its ends. Who is silent is asked only if there is no majority without it.
func (k *Keeper) trouble() {
	k.steady = 0
	k.poll = min(k.poll, pollTrouble)
	for i := range k.sources {
		s := &k.sources[i]
		if s.Poll > pollTrouble && s.backoff == 0 && (!k.vote || s.failed < lost) {
			s.due, s.Poll = s.due-s.Poll+pollTrouble, pollTrouble
		}
	}
	k.nudge()
}

func (k *Keeper) slower(now Reading) {
	k.steady = 0
	switch worse := now.Raw - k.worse; {
	case worse > patience:
		k.poll = pollSlow
	case worse > hurry:
		k.poll = pollPatient
	}
}

// pause is how long a source is left alone now.
func (k *Keeper) pause(s *Source) time.Duration {
	silent := s.failed - lost
	switch {
	case !k.vote && nowhere(s.Err) && s.failed < eager:
		return pollEager
	case !k.vote && nowhere(s.Err):
		return pollHurry
	case k.vote && silent >= 0:
		return max(s.backoff, min(k.poll<<min(silent+1, 8), pollAbsent))
	}
	return max(k.poll, s.backoff)
}

// nowhere: the question did not leave this machine, so it costs nobody anything, and the network may be up the next moment.
func nowhere(err error) bool {
	return errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.ENETDOWN)
}

// Retry asks the servers that did not answer again now, because something on this side changed (a key).
func (k *Keeper) Retry() {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.Clock.Read()
	for i := range k.sources {
		if s := &k.sources[i]; s.failed > 0 && s.backoff == 0 {
			s.failed, s.due = 0, min(s.due, now.Raw)
		}
	}
	k.nudge()
}

func (k *Keeper) faster(all bool) {
	if k.steady++; k.steady < k.settles() {
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
