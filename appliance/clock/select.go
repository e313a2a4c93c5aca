package clock

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Vote is the result of a selection: UTC lies in [Earliest, Latest] at the reading it was made for. Inside lists the indexes of the
// sources that agree with it.
type Vote struct {
	Earliest, Latest time.Time
	Inside           []int
	Leap             int // announced by more than half of those inside: +1 inserted, -1 deleted
}

// Middle of the interval.
func (v Vote) Middle() time.Time { return v.Earliest.Add(v.Latest.Sub(v.Earliest) / 2) }

// ErrNoMajority: not more than half of the configured servers agree on any moment.
var ErrNoMajority = errors.New("no majority of the configured time servers agrees")

type span struct {
	i      int
	lo, hi time.Time
}

// Select finds where UTC lies at the reading raw, if more than half of all sources are right within their own bounds: the smallest interval
// with every moment that a strict majority of them contains. (The moment that most of them contain would be narrower, and a liar at the
// edge of the others could choose it.) The oscillator is slow by rate and may be off by drift, in ppm.
//
// Where at least two servers have keys and a strict majority of those proves and agrees, they decide without the others. Pure.
func Select(sources []Source, raw time.Duration, rate, drift float64) (Vote, error) {
	var all, keyed []span
	configured := 0
	for i, s := range sources {
		if s.Key != 0 && !s.Peer {
			configured++
		}
		if s.Sample == nil {
			continue
		}
		lo, hi := s.Sample.at(raw, rate, drift)
		all = append(all, span{i, lo, hi})
		if s.Key != 0 && !s.Peer && s.Sample.Verified {
			keyed = append(keyed, span{i, lo, hi})
		}
	}
	if configured >= 2 {
		if hull, _, ok := majority(keyed, configured); ok {
			return voteOf(sources, all, keyed, hull)
		}
	}
	hull, depth, ok := majority(all, len(sources))
	if !ok {
		return Vote{}, fmt.Errorf("%w: %d of %d", ErrNoMajority, depth, len(sources))
	}
	return voteOf(sources, all, all, hull)
}

// majority is the hull of the moments that more than half of total contain, and how many the deepest one has.
func majority(spans []span, total int) (hull span, depth int, ok bool) {
	type edge struct {
		at   time.Time
		step int
	}
	edges := make([]edge, 0, 2*len(spans))
	for _, s := range spans {
		edges = append(edges, edge{s.lo, 1}, edge{s.hi, -1})
	}
	// At equal times openings come first: intervals that touch agree.
	slices.SortFunc(edges, func(a, b edge) int {
		if c := a.at.Compare(b.at); c != 0 {
			return c
		}
		return b.step - a.step
	})
	in := 0
	for _, e := range edges {
		if e.step < 0 && 2*in > total {
			hull.hi = e.at
		}
		in += e.step
		depth = max(depth, in)
		if e.step > 0 && 2*in > total && !ok {
			hull.lo, ok = e.at, true
		}
	}
	return hull, depth, ok
}

// voteOf makes the vote of a hull that the deciding spans gave. Peers don't lead: it is cut to what the servers among those say.
func voteOf(sources []Source, all, deciding []span, hull span) (Vote, error) {
	v := Vote{Inside: make([]int, 0, len(all))}
	apart := func(s span) bool { return s.lo.After(hull.hi) || s.hi.Before(hull.lo) }
	var lead span
	for _, s := range deciding {
		if sources[s.i].Peer || apart(s) {
			continue
		}
		if lead.lo.IsZero() || s.lo.Before(lead.lo) {
			lead.lo = s.lo
		}
		if lead.hi.IsZero() || s.hi.After(lead.hi) {
			lead.hi = s.hi
		}
	}
	if lead.lo.IsZero() {
		return Vote{}, fmt.Errorf("%w: only other nodes answer, and they don't lead", ErrNoMajority)
	}
	v.Earliest, v.Latest = hull.lo, hull.hi
	if lead.lo.After(v.Earliest) {
		v.Earliest = lead.lo
	}
	if lead.hi.Before(v.Latest) {
		v.Latest = lead.hi
	}
	leaps := 0
	for _, s := range all {
		if !apart(s) {
			v.Inside = append(v.Inside, s.i)
			leaps += sources[s.i].Sample.Leap
		}
	}
	switch n := len(v.Inside); {
	case 2*leaps > n:
		v.Leap = 1
	case -2*leaps > n:
		v.Leap = -1
	}
	return v, nil
}
