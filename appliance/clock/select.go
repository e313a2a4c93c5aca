package clock

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Vote is the result of a selection: UTC lies in [Earliest, Latest] at the reading it was made for. Inside lists the indexes of the
// sources that agree with it, peers among them. Helped: the servers alone were no majority, peers broke the tie.
type Vote struct {
	Earliest, Latest time.Time
	Inside           []int
	Helped           bool
	Leap             int // announced by more than half of the servers inside: +1 inserted, -1 deleted
}

// Middle of the interval.
func (v Vote) Middle() time.Time { return v.Earliest.Add(v.Latest.Sub(v.Earliest) / 2) }

// ErrNoMajority: not more than half of the configured servers agree on any moment.
var ErrNoMajority = errors.New("no majority of the configured time servers agrees")

type span struct {
	i      int
	lo, hi time.Time
}

// apart: the two have no moment in common.
func (s span) apart(o span) bool { return s.lo.After(o.hi) || s.hi.Before(o.lo) }

// Select finds where UTC lies at the reading raw, if more than half of the configured servers are right within their own bounds: the smallest
// interval with every moment that a strict majority of them contains. (The moment that most of them contain would be narrower, and a liar at
// the edge of the others could choose it.) The oscillator is slow by rate and may be off by drift, in ppm.
//
// Where at least two servers have keys and a strict majority of those proves and agrees, they decide without the others. Peers are not
// asked where two or more servers decide; see withPeers for the rest. Pure.
func Select(sources []Source, raw time.Duration, rate, drift float64) (Vote, error) {
	var all, own, keyed []span
	total, locked := 0, 0
	for i, s := range sources {
		if !s.Peer {
			total++
			if s.Key != 0 {
				locked++
			}
		}
		if s.Sample == nil {
			continue
		}
		lo, hi := s.Sample.at(raw, rate, drift)
		at := span{i, lo, hi}
		all = append(all, at)
		if s.Peer {
			continue
		}
		own = append(own, at)
		if s.Key != 0 && s.Sample.Verified {
			keyed = append(keyed, at)
		}
	}
	if locked >= 2 {
		if hull, _, ok := majority(keyed, locked); ok {
			return voteOf(sources, all, hull), nil
		}
	}
	hull, depth, ok := majority(own, total)
	switch {
	case ok && (total > 1 || len(all) == len(own)):
		return voteOf(sources, all, hull), nil
	case len(all) > len(own):
		return withPeers(sources, all, total)
	}
	return Vote{}, fmt.Errorf("%w: %d of %d", ErrNoMajority, depth, total)
}

// edge is where a span begins (+1) or ends (-1).
type edge struct {
	at      time.Time
	step, i int
}

// edgesOf sorts the ends of spans. At equal times openings come first: intervals that touch agree.
func edgesOf(spans []span) []edge {
	edges := make([]edge, 0, 2*len(spans))
	for _, s := range spans {
		edges = append(edges, edge{s.lo, 1, s.i}, edge{s.hi, -1, s.i})
	}
	slices.SortFunc(edges, func(a, b edge) int {
		if c := a.at.Compare(b.at); c != 0 {
			return c
		}
		return b.step - a.step
	})
	return edges
}

// majority is the hull of the moments that more than half of total contain, and how many the deepest one has.
func majority(spans []span, total int) (hull span, depth int, ok bool) {
	in := 0
	for _, e := range edgesOf(spans) {
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

// voteOf makes the vote of a hull: who else agrees with it, and the leap second that the servers among those announce.
func voteOf(sources []Source, all []span, hull span) Vote {
	v := Vote{Earliest: hull.lo, Latest: hull.hi, Inside: make([]int, 0, len(all))}
	leaps, n := 0, 0
	for _, s := range all {
		if s.apart(hull) {
			continue
		}
		v.Inside = append(v.Inside, s.i)
		if src := &sources[s.i]; !src.Peer {
			leaps, n = leaps+src.Sample.Leap, n+1
		}
	}
	switch {
	case 2*leaps > n:
		v.Leap = 1
	case -2*leaps > n:
		v.Leap = -1
	}
	return v
}
