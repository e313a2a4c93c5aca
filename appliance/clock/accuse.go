package clock

import (
	"maps"
	"slices"
	"time"
)

// mark gives each source its state. A server that joins or leaves the liars ends what was measured with the others.
func (k *Keeper) mark(v Vote, err error) {
	var inside, outside []string
	for i := range k.sources {
		s := &k.sources[i]
		switch {
		case s.Sample == nil && (s.Err != nil || s.answered):
			s.State = "unreachable"
		case s.Sample == nil:
			s.State = "waiting"
		case err == nil && slices.Contains(v.Inside, i):
			s.State = "selected"
			if !s.Peer { // peers say nothing about the rate
				inside = append(inside, s.Address)
			}
		case err == nil:
			s.State = "falseticker"
			if !s.Peer {
				outside = append(outside, s.Address)
			}
		default:
			s.State = "undecided"
		}
	}
	if err != nil {
		return
	}
	was := func(list []string) func(string) bool { return func(a string) bool { return slices.Contains(list, a) } }
	if slices.ContainsFunc(inside, was(k.outside)) || slices.ContainsFunc(outside, was(k.inside)) {
		k.dis.redraw()
		k.trouble()
	}
	k.inside, k.outside = inside, outside
}

// accuse reports whether a server is found to lie that was not in the last hour. Then the rate by which it was found may be the lie of
// another, and is measured anew; the vote must be taken again by what is known without it. Not for a server that is still lying: one that is
// off by little would hide behind the wide bounds of the fresh rate each time. And only by answers so new that the fresh rate hides no jump.
func (k *Keeper) accuse(now Reading) bool {
	maps.DeleteFunc(k.accused, func(_ string, at time.Duration) bool { return now.Raw-at > time.Hour })
	var found []string
	for _, a := range k.outside {
		if _, ok := k.accused[a]; ok {
			k.accused[a] = now.Raw
		} else {
			found = append(found, a)
		}
	}
	if len(found) == 0 || k.aged(now) {
		return false
	}
	for _, a := range found {
		k.accused[a] = now.Raw
	}
	k.dis.reset()
	k.trouble()
	return true
}

// refuted reports whether nothing but the measured rate keeps the servers from a majority: without it they agree. Then it is forgotten, and
// the vote must be taken again. Otherwise a wrong rate would last: it is by votes that rates are refuted (discipline.learn), and answers of
// different age that are carried on by a wrong rate make none.
func (k *Keeper) refuted(now Reading) bool {
	if fresh := freshLimits(); k.dis.limits.lo == fresh.lo && k.dis.limits.hi == fresh.hi {
		return false
	}
	if _, err := k.alone(now); err == nil {
		return false // peers are who keeps them from it
	}
	if _, err := Select(k.servers(), now.Raw, 0, UnmeasuredPPM); err != nil {
		return false
	}
	k.Log("the time servers agree at no rate of this machine's clock that was measured; it is measured anew")
	k.dis.reset()
	k.trouble()
	return true
}
