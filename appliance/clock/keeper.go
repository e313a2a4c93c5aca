package clock

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"guardhouse/appliance/policy"
)

// State of the clock; the words are those of the rpc contract (rpc.ClockWaiting and so on).
type State string

// States.
const (
	Waiting  State = "waiting"
	Locked   State = "locked"
	Holdover State = "holdover"
	Suspect  State = "suspect"
	Manual   State = "manual"
	Stopped  State = "stopped"
)

// known is what the clock foretells of UTC, in the scale Raw: at Raw it lay within UTC +- Bound. It does not expire.
type known struct {
	Raw   time.Duration `json:"raw"`
	UTC   time.Time     `json:"utc"`
	Bound time.Duration `json:"bound"`
	Rate  float64       `json:"rate"`
	Drift float64       `json:"drift"`
}

func (k known) at(raw time.Duration) (middle time.Time, bound time.Duration) {
	passed := raw - k.Raw
	return k.UTC.Add(passed + ppm(passed, k.Rate)), k.Bound + ppm(passed, k.Drift)
}

// Keeper asks the servers, keeps the newest trusted time and disciplines the clock. Make it with New, set the exported fields, then Run
// it once; the methods are safe from any goroutine.
type Keeper struct {
	Clock Clock
	Query func(ctx context.Context, s Server) (Sample, error) // one question to one server
	Boot  string                                              // boot id
	Build time.Time                                           // build date of the image, the lowest floor there is
	Log   func(format string, args ...any)
	// Event is told what an administrator should find in the audit: lock, suspect, release, manual, floor. It must not block; nil = nobody.
	Event func(action, detail string)
	// SetRTC writes the hardware clock, after the first majority, daily and at the end (Stop); nil = there is none.
	SetRTC func(utc time.Time) error

	mu       sync.Mutex
	sources  []Source
	limit    time.Duration
	told     bool // Configure was called
	state    State
	reason   string // why the state is not locked
	trusted  policy.TrustedTime
	own      *known // what a majority said, carried on; nil before the first
	past     past   // what own was lately
	vote     bool   // the newest answers have a majority
	dis      discipline
	floor    floors
	steady   int // good votes in a row
	poll     time.Duration
	worse    time.Duration // Raw since when there is trouble
	inside   []string      // addresses in the last vote
	outside  []string
	accused  map[string]time.Duration // by address: Raw when a server for which the rate was measured anew was last seen to lie
	second   leap
	agreed   int           // answers in a row that take a suspicion back
	agreeing time.Duration // Raw of the first of them
	suspect  string        // floor or jump
	started  time.Duration
	locked   time.Duration // from the first question to the first majority
	lockedAt time.Duration // CLOCK_BOOTTIME of the first majority
	locks    uint64
	stuck    error         // why the wall clock can't be disciplined
	rtcDue   time.Duration // Raw of the next write of the RTC, 0 = at the next vote
	changed  chan struct{} // closed and replaced at each change of trusted
	wake     chan struct{}
	beat     time.Time
	dirty    bool // the store should be written soon
	resumed  bool // what an earlier process kept was read
}

// New makes a keeper.
func New() *Keeper {
	k := &Keeper{accused: map[string]time.Duration{}, changed: make(chan struct{}), wake: make(chan struct{}, 1), state: Waiting, limit: policy.DefaultTimeBound, poll: pollHurry}
	k.dis.reset()
	return k
}

// Configure replaces the configured servers and peers (those over MaxSources and MaxPeers are ignored) and the bound at which issuing stops
// (0 = policy.DefaultTimeBound). What servers that stay have said is kept.
func (k *Keeper) Configure(servers []Server, limit time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if limit == 0 {
		limit = policy.DefaultTimeBound
	}
	limit = min(max(limit, policy.MinTimeBound), policy.MaxTimeBound)
	old := k.sources
	k.sources, k.told = nil, true
	n, peers := 0, 0
	for _, s := range servers {
		count, most := &n, MaxSources
		if s.Peer {
			count, most = &peers, MaxPeers
		}
		if *count++; *count > most {
			continue
		}
		if slices.ContainsFunc(k.sources, func(o Source) bool { return o.Address == s.Address && o.Peer == s.Peer }) {
			continue // asked twice it would have two voices
		}
		src := Source{Server: s, State: "waiting"}
		if i := slices.IndexFunc(old, func(o Source) bool { return o.Server == s }); i >= 0 {
			src = old[i]
		}
		k.sources = append(k.sources, src)
	}
	if k.limit != limit {
		k.limit = limit
		if k.state == Locked || k.state == Holdover {
			now := k.Clock.Read()
			k.publish(now)
			k.expire(now)
		}
	}
	if k.fewer(old) {
		k.decide(k.Clock.Read(), true)
	}
	k.dirty = true
	k.nudge()
}

func (k *Keeper) nudge() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Current is the newest value, which may have expired or be withheld (zero UTC), and a channel that is closed when there is another.
func (k *Keeper) Current() (policy.TrustedTime, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.trusted.UTC.IsZero() {
		return policy.TrustedTime{Boot: k.Boot}, k.changed
	}
	return k.trusted, k.changed
}

// due marks the sources to ask now and tells when to look again.
func (k *Keeper) due(now Reading) (ask []Server, next time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.started == 0 && len(k.servers()) > 0 {
		k.started = now.Raw
	}
	if len(k.servers()) == 0 && k.state == Locked {
		k.without(now, errors.New("no time server is configured"))
	}
	k.expire(now)
	next = now.Raw + 5*time.Second
	for i := range k.sources {
		s := &k.sources[i]
		if s.asked {
			continue
		}
		if s.due <= now.Raw {
			s.asked = true
			ask = append(ask, s.Server)
			continue
		}
		next = min(next, s.due)
	}
	return ask, next
}

// answer takes what came of a question, votes and steers.
func (k *Keeper) answer(now Reading, server Server, sample Sample, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	i := slices.IndexFunc(k.sources, func(s Source) bool { return s.Server == server })
	if i < 0 {
		return // not configured any more
	}
	s := &k.sources[i]
	s.asked, s.Err = false, err
	if err == nil {
		if s.Sample != nil {
			k.residual(s, sample)
		}
		s.Sample, s.failed, s.answered, s.backoff = &sample, 0, true, 0
	} else {
		s.silence()
		if kissed(err) {
			s.backoff = min(max(2*s.backoff, pollSlow), poison)
		}
	}
	k.decide(now, server.Peer)
	s.Poll = k.pause(s)
	s.due = now.Raw + s.Poll
}

// residual keeps the jitter of a server: the mean difference between what it says and what it was expected to say.
func (k *Keeper) residual(s *Source, n Sample) {
	lo, hi := s.Sample.at(n.Raw, k.dis.rate, 0)
	diff := n.UTC.Sub(lo.Add(hi.Sub(lo) / 2)).Abs()
	s.Jitter += (diff - s.Jitter) / 4
}

// elect votes: by more than half, and certain enough to be used.
func (k *Keeper) elect(now Reading) (Vote, error) { return k.electOf(now, k.sources) }

func (k *Keeper) electOf(now Reading, sources []Source) (Vote, error) {
	k.forget(now)
	v, err := Select(sources, now.Raw, k.dis.rate, max(FreshPPM, k.dis.drift))
	if err != nil {
		return Vote{}, err
	}
	half := v.Latest.Sub(v.Earliest) / 2
	if len(k.servers()) < 3 { // nobody could contradict
		v.Earliest, v.Latest, half = v.Earliest.Add(-half), v.Latest.Add(half), 2*half
	}
	if bound := max(half, minDistance); bound >= k.limit {
		return Vote{}, fmt.Errorf("the time servers agree only within %s; %s is the limit", short(bound), short(k.limit))
	}
	return v, nil
}

// decide votes and draws the consequences of a server's or a peer's answer. k.mu is held.
func (k *Keeper) decide(now Reading, peer bool) {
	v, err := k.elect(now)
	k.mark(v, err)
	if k.unaffected(peer, err) {
		return
	}
	if err == nil && k.accuse(now) || err != nil && k.refuted(now) {
		v, err = k.elect(now)
		k.mark(v, err)
	}
	if err != nil {
		k.vote = false
		if k.contradicted(now, peer) {
			return
		}
		k.without(now, err)
		return
	}
	k.vote = true
	if why, what := k.contradiction(now, v); why != "" {
		k.suspicion(now, why, what)
		return
	}
	if k.state == Suspect {
		if k.own == nil {
			return // it is from an earlier start of the node: nothing is left that the servers could come back to
		}
		if peer || v.Helped {
			return // only the servers can take back what they said
		}
		if k.agreed++; k.agreed == 1 {
			k.agreeing = now.Raw
		}
		if k.agreed < k.settles() || now.Raw-k.agreeing < hurry {
			return
		}
		k.event("release", "the time servers have come back to what this clock said all along")
	}
	k.follow(now, v)
}

// contradiction is "" if the vote fits the floor and what this clock foretold.
func (k *Keeper) contradiction(now Reading, v Vote) (kind, reason string) {
	// A floor that this clock put there itself says no more than what it foretold.
	if floor, from := k.floor.get(k.Build); v.Latest.Before(floor) && (k.own == nil || from != fromClock) {
		return "floor", fmt.Sprintf("the time servers say %s, before the floor of %s (%s)", day(v.Middle()), day(floor), from)
	}
	if k.own == nil {
		return "", ""
	}
	mid, bound := k.own.at(now.Raw)
	grown := bound - k.own.Bound
	if k.second.From != 0 && now.Raw >= k.second.From {
		bound, grown = bound+time.Second, grown+time.Second
	}
	off := v.Middle().Sub(mid)
	gap := max(v.Earliest.Sub(mid.Add(bound)), mid.Add(-bound).Sub(v.Latest))
	if gap <= jumpSlack && off.Abs() <= MaxOffset+grown {
		if max(v.Latest.Sub(v.Earliest)/2, k.own.Bound) < pastBroad {
			return "", ""
		}
		if off = k.past.off(now.Raw, v.Middle()); off == 0 {
			return "", ""
		}
	}
	who := "the majority of the time servers jumped"
	if in, _ := k.kinds(v); in == len(k.servers()) {
		who = "all time servers jumped together"
	}
	reason = fmt.Sprintf("%s: they differ from this clock by %s, which is certain to %s", who, short(off), short(bound))
	if off > 0 {
		reason += "; it looks the same if this machine stood still as long (paused or moved by its host)"
	}
	return "jump", reason
}

// suspicion withholds the time.
func (k *Keeper) suspicion(now Reading, kind, reason string) {
	k.agreed = 0
	k.reason = reason
	if k.state == Suspect {
		k.suspect = kind
		k.slower(now)
		return
	}
	k.state, k.suspect = Suspect, kind
	k.dis.reset()
	k.steer(now, 0)
	k.worse = now.Raw
	k.trouble()
	k.withhold()
	k.event("suspect", reason)
}

// without goes on when there is no majority.
func (k *Keeper) without(now Reading, err error) {
	k.agreed = 0
	if k.worse == 0 {
		k.worse = now.Raw
		k.trouble() // who was left alone for being silent is needed now
	}
	k.slower(now)
	switch k.state {
	case Suspect:
		return
	case Locked:
		k.state = Holdover
		k.steer(now, 0)
		k.dirty = true
		k.publish(now)
	}
	k.reason = err.Error()
	k.expire(now)
}

// repair writes the hardware clock, once a day.
func (k *Keeper) repair(now Reading, utc time.Time) {
	if k.SetRTC == nil || k.rtcDue != 0 && now.Raw < k.rtcDue {
		return
	}
	k.rtcDue = now.Raw + 24*time.Hour
	if err := k.SetRTC(utc); err != nil {
		k.Log("hardware clock not set: %v", err)
	}
}

func (k *Keeper) event(action, detail string) {
	k.Log("%s: %s", action, detail)
	if k.Event != nil {
		k.Event(action, detail)
	}
}

// day is a moment for people.
func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// short is a duration for people, to about three digits.
func short(d time.Duration) string {
	switch a := d.Abs(); {
	case a >= time.Hour:
		return d.Round(time.Minute).String()
	case a >= 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case a >= 10*time.Millisecond:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(10 * time.Microsecond).String()
}

func names(list []string) string { return strings.Join(list, ", ") }
