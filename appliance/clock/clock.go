// Package clock turns answers of time servers into policy.TrustedTime, and is its only maker. It promises that a value it makes
// contains true UTC as long as a majority of the configured servers tell the truth within their own error bounds, that it never lies
// before the image was built, and that it grows less certain by itself until it expires.
//
// Selection: every server gives an interval, offset +- root distance; the clock looks for the point that lies in most intervals and
// wants more than half of all configured servers to contain it (RFC 5905 section 11.2.1 in its simplest strict form). Servers outside are
// falsetickers and named. The value made is the intersection of those inside.
//
// Limits: it measures against CLOCK_BOOTTIME, which nobody can set; the system's CLOCK_REALTIME is only stepped once, before the first
// value, for the sake of programs that print times. With one or two servers there is no majority worth its name: it works, and says so.
package clock

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"guardhouse/appliance/policy"
)

// Limits and rates. Durations; DriftPPM in parts per million.
const (
	MaxSources   = 8
	MaxBound     = 60 * time.Second // a value less certain than this is not made, and one that grows past it expires
	MaxHoldover  = 24 * time.Hour   // longest life of a value
	DriftPPM     = 100.0            // what an undisciplined crystal is allowed to do
	minDistance  = time.Millisecond // nobody is believed to be better
	pollFast     = 2 * time.Second  // until the first value
	pollSlow     = 64 * time.Second
	queryTimeout = 4 * time.Second
)

// Sample is one server's answer. Offset is what must be added to the local wall clock reading Wall; Boot is the CLOCK_BOOTTIME reading
// taken with Wall; Distance bounds the error.
type Sample struct {
	Wall     time.Time
	Boot     time.Duration
	Offset   time.Duration
	Distance time.Duration
}

// utc is the server's time carried to the boot time reading at, as offset from the boot clock's zero.
func (s Sample) epoch() time.Time { return s.Wall.Add(s.Offset).Add(-s.Boot) }

// Source is a configured server and its newest answer.
type Source struct {
	Address string
	Sample  *Sample // nil: never answered
	Err     error   // of the newest try
	State   string  // selected, falseticker, unreachable, waiting
}

// Vote is the result of a selection: the boot clock's zero lies in [Earliest, Latest] of UTC. Inside lists the indexes that agree.
type Vote struct {
	Earliest, Latest time.Time
	Inside           []int
}

// ErrNoMajority: fewer than half of the configured servers agree on any moment.
var ErrNoMajority = errors.New("no majority of the configured time servers agrees")

// Select finds the interval that a strict majority of all sources contains. now is the CLOCK_BOOTTIME reading; samples older than
// maxAge say nothing. Older samples count with the drift they may have had since. Pure.
func Select(sources []Source, now, maxAge time.Duration) (Vote, error) {
	type edge struct {
		at   time.Time
		open bool
	}
	type interval struct {
		i      int
		lo, hi time.Time
	}
	var spans []interval
	var edges []edge
	for i, s := range sources {
		if s.Sample == nil || now-s.Sample.Boot > maxAge {
			continue
		}
		d := max(s.Sample.Distance, minDistance) + time.Duration(float64(now-s.Sample.Boot)*DriftPPM/1e6)
		e := s.Sample.epoch()
		spans = append(spans, interval{i, e.Add(-d), e.Add(d)})
		edges = append(edges, edge{e.Add(-d), true}, edge{e.Add(d), false})
	}
	// At equal times openings come first: intervals that touch agree.
	slices.SortFunc(edges, func(a, b edge) int {
		if c := a.at.Compare(b.at); c != 0 {
			return c
		}
		switch {
		case a.open == b.open:
			return 0
		case a.open:
			return -1
		}
		return 1
	})
	depth, best := 0, 0
	var point time.Time
	for _, e := range edges {
		if !e.open {
			depth--
			continue
		}
		if depth++; depth > best {
			best, point = depth, e.at
		}
	}
	if 2*best <= len(sources) {
		return Vote{}, fmt.Errorf("%w: %d of %d", ErrNoMajority, best, len(sources))
	}
	v := Vote{}
	for _, s := range spans {
		if s.lo.After(point) || s.hi.Before(point) {
			continue
		}
		if len(v.Inside) == 0 || s.lo.After(v.Earliest) {
			v.Earliest = s.lo
		}
		if len(v.Inside) == 0 || s.hi.Before(v.Latest) {
			v.Latest = s.hi
		}
		v.Inside = append(v.Inside, s.i)
	}
	return v, nil
}

// Trust makes a TrustedTime of a vote. floor is the moment before which no true time can lie (the image's build date).
func Trust(v Vote, sources []Source, boot string, now time.Duration, floor time.Time) (policy.TrustedTime, error) {
	bound := v.Latest.Sub(v.Earliest) / 2
	if bound > MaxBound {
		return policy.TrustedTime{}, fmt.Errorf("the time servers agree only within %s; %s is the limit", bound, MaxBound)
	}
	utc := v.Earliest.Add(bound).Add(now)
	if utc.Before(floor) {
		return policy.TrustedTime{}, fmt.Errorf("the time servers say %s, before this image was built (%s)", utc.UTC().Format(time.RFC3339), floor.UTC().Format(time.RFC3339))
	}
	if len(sources) < 3 {
		bound *= 2 // nobody could contradict
	}
	life := time.Duration(float64(MaxBound-bound) / DriftPPM * 1e6)
	t := policy.TrustedTime{Boot: boot, BootTime: now, UTC: utc.UTC().Round(0), Bound: max(bound, minDistance), DriftPPM: DriftPPM,
		Expires: now + min(max(life, 0), MaxHoldover)}
	for _, i := range v.Inside {
		t.Sources = append(t.Sources, sources[i].Address)
	}
	return t, nil
}

// Keeper asks the servers in turn and keeps the newest trusted time. Make it with New; Run it once; the other methods are safe from
// any goroutine.
type Keeper struct {
	Query    func(ctx context.Context, address string) (Sample, error) // one question to one server
	BootTime func() time.Duration
	Boot     string
	Floor    time.Time
	Step     func(time.Time) error // sets CLOCK_REALTIME; called once, before the first value
	Log      func(format string, args ...any)

	mu      sync.Mutex
	sources []Source
	trusted policy.TrustedTime
	problem string
	told    bool // SetServers was called
	stepped bool
	changed chan struct{} // closed and replaced at each change
	wake    chan struct{}
}

// New makes a keeper; all fields of Keeper that are exported must be set before Run.
func New() *Keeper { return &Keeper{changed: make(chan struct{}), wake: make(chan struct{}, 1)} }

// SetServers replaces the configured servers (at most MaxSources; the rest is ignored and named in the problem). Samples of servers
// that stay are kept.
func (k *Keeper) SetServers(addresses []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	old := k.sources
	k.sources, k.told = nil, true
	for _, a := range addresses[:min(len(addresses), MaxSources)] {
		s := Source{Address: a, State: "waiting"}
		if i := slices.IndexFunc(old, func(o Source) bool { return o.Address == a }); i >= 0 {
			s = old[i]
		}
		k.sources = append(k.sources, s)
	}
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Current is the newest value, which may have expired, and a channel that is closed when there is another.
func (k *Keeper) Current() (policy.TrustedTime, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.trusted, k.changed
}

// Status is what the console shows: a copy of the sources and, where there is no valid time, why.
func (k *Keeper) Status() (policy.TrustedTime, []Source, string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.trusted, slices.Clone(k.sources), k.problem
}

// Run asks until ctx ends: every 2 s until there is a value, every 64 s afterwards.
func (k *Keeper) Run(ctx context.Context) error {
	for {
		k.round(ctx)
		pause := pollFast
		if t, _ := k.Current(); !t.UTC.IsZero() && k.BootTime() < t.Expires {
			pause = pollSlow
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-k.wake:
		case <-time.After(pause):
		}
	}
}

// round asks every server once, all at the same time, and votes.
func (k *Keeper) round(ctx context.Context) {
	k.mu.Lock()
	addresses := make([]string, len(k.sources))
	for i, s := range k.sources {
		addresses[i] = s.Address
	}
	k.mu.Unlock()
	samples := make([]Sample, len(addresses))
	errs := make([]error, len(addresses))
	var wg sync.WaitGroup
	for i, a := range addresses {
		wg.Go(func() {
			qctx, cancel := context.WithTimeout(ctx, queryTimeout)
			defer cancel()
			samples[i], errs[i] = k.Query(qctx, a)
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range k.sources {
		s := &k.sources[i]
		j := slices.Index(addresses, s.Address)
		if j < 0 {
			continue // configured since
		}
		s.Err = errs[j]
		if errs[j] == nil {
			s.Sample = &samples[j]
		}
	}
	k.vote()
}

// vote selects and replaces the trusted value. k.mu is held.
func (k *Keeper) vote() {
	if len(k.sources) == 0 {
		k.problem = "no time server is configured"
		if !k.told {
			k.problem = "the records that name the time servers have not come yet"
		}
		return
	}
	now := k.BootTime()
	v, err := Select(k.sources, now, 4*pollSlow)
	for i := range k.sources {
		s := &k.sources[i]
		switch {
		case err == nil && slices.Contains(v.Inside, i):
			s.State = "selected"
		case s.Err != nil:
			s.State = "unreachable"
		case s.Sample == nil:
			s.State = "waiting"
		default:
			s.State = "falseticker"
		}
	}
	var t policy.TrustedTime
	if err == nil {
		t, err = Trust(v, k.sources, k.Boot, now, k.Floor)
	}
	if err != nil {
		k.problem = err.Error() // the last value stays until it expires
		return
	}
	if !k.stepped {
		k.stepped = true
		if err := k.Step(t.UTC); err != nil {
			k.Log("system clock not set: %v", err)
		}
	}
	k.problem, k.trusted = "", t
	close(k.changed)
	k.changed = make(chan struct{})
}
