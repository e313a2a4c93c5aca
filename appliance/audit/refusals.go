package audit

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"guardhouse/appliance/policy"
)

// Limits of Refusals.
const (
	maxSources     = 1024             // (source, action, outcome) triples kept apart; the rest is "others"
	refusalEvery   = time.Minute      // one triple is written at most this often
	refusalForget  = 10 * time.Minute // a triple that was silent for so long is new again
	refusalBurst   = 128              // entries that may be written at once
	refusalRefill  = 5 * time.Second  // then one entry each
	refusalOthers  = "others"
	othersBoundary = maxSources - 64 // the last places are kept for the overflow of each action and outcome
)

// Refusals sums refused requests of unknown callers per (source, action, outcome): the first is to be written at once, later ones at
// most once a minute with their count, and all together at most one every five seconds once a burst of 128 is used up. So a flood
// writes about 10 MB a day at the very most, and still says who floods. Beyond 960 triples the source is "others".
//
// It holds no clock and writes nothing: the caller passes the time since boot and appends what Note and Due return. Not safe for
// concurrent use.
type Refusals struct {
	sums   map[refusalKey]*refusalSum
	tokens float64
	filled time.Duration
}

type refusalKey struct{ source, action, outcome string }

type refusalSum struct {
	newest  policy.Refusal
	pending int           // since it was last written
	written time.Duration // when; -1 = never
	seen    time.Duration
}

// NewRefusals is an empty table with a full burst.
func NewRefusals() *Refusals {
	return &Refusals{sums: map[refusalKey]*refusalSum{}, tokens: refusalBurst}
}

// Note counts one refusal at now. ok is true where an entry is to be written at once.
func (r *Refusals) Note(now time.Duration, one policy.Refusal) (e policy.AuditEntry, ok bool) {
	one = bounded(one)
	k := refusalKey{one.Source, one.Action, one.Outcome}
	s := r.sums[k]
	if s == nil && len(r.sums) >= othersBoundary {
		k.source, one.Source, one.Subject = refusalOthers, refusalOthers, ""
		if s = r.sums[k]; s == nil && len(r.sums) >= maxSources {
			k = refusalKey{refusalOthers, refusalOthers, refusalOthers}
			s = r.sums[k]
		}
	}
	if s == nil {
		s = &refusalSum{written: -1}
		r.sums[k] = s
	}
	s.newest, s.seen = one, now
	s.pending++
	if s.written >= 0 && now-s.written < refusalEvery || !r.token(now) {
		return e, false
	}
	return s.entry(k, now), true
}

// Due gives the sums whose minute has passed, as far as the rate allows, the largest first; call it every few seconds.
func (r *Refusals) Due(now time.Duration) (due []policy.AuditEntry) {
	var ready []refusalKey
	for k, s := range r.sums {
		switch {
		case s.pending > 0 && (s.written < 0 || now-s.written >= refusalEvery):
			ready = append(ready, k)
		case s.pending == 0 && now-s.seen > refusalForget:
			delete(r.sums, k)
		}
	}
	slices.SortFunc(ready, func(a, b refusalKey) int {
		return cmp.Or(cmp.Compare(r.sums[b].pending, r.sums[a].pending), cmp.Compare(a.source, b.source), cmp.Compare(a.action, b.action), cmp.Compare(a.outcome, b.outcome))
	})
	for _, k := range ready {
		if !r.token(now) {
			break
		}
		due = append(due, r.sums[k].entry(k, now))
	}
	return due
}

// Rest gives all that was not written yet, for a clean stop; at most one burst of it.
func (r *Refusals) Rest(now time.Duration) (rest []policy.AuditEntry) {
	for k, s := range r.sums {
		if s.pending > 0 && len(rest) < refusalBurst {
			rest = append(rest, s.entry(k, now))
		}
	}
	return rest
}

func (r *Refusals) token(now time.Duration) bool {
	if now > r.filled {
		r.tokens = min(refusalBurst, r.tokens+float64(now-r.filled)/float64(refusalRefill))
		r.filled = now
	}
	if r.tokens < 1 {
		return false
	}
	r.tokens--
	return true
}

func (s *refusalSum) entry(k refusalKey, now time.Duration) policy.AuditEntry {
	e := policy.AuditEntry{Kind: policy.AuditUnknown, Source: k.source, Action: k.action, Outcome: k.outcome, Subject: s.newest.Subject,
		Detail: s.newest.Detail, Remedy: s.newest.Remedy, Count: s.pending, BootTime: now.Milliseconds()}
	if s.pending > 1 && s.written >= 0 {
		e.Facts = map[string]string{"seconds": fmt.Sprint(int((now - s.written).Seconds()))}
	}
	s.pending, s.written = 0, now
	return e
}

func bounded(r policy.Refusal) policy.Refusal {
	for _, s := range []*string{&r.Source, &r.Action, &r.Outcome, &r.Detail, &r.Remedy, &r.Subject} {
		*s = cut(*s)
	}
	return r
}
