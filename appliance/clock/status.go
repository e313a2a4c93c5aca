package clock

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"guardhouse/appliance/policy"
)

// Status is a copy of what the keeper knows, for people.
type Status struct {
	Now       Reading
	Trusted   policy.TrustedTime
	State     State
	Reason    string
	Sources   []Source
	Limit     time.Duration
	Rate      float64       // ppm by which the oscillator was measured to be slow
	Drift     float64       // ppm by which that may be wrong
	Odd       float64       // ppm by which the oscillator certainly leaves its nominal rate, as far as that is more than a crystal may
	Slew      float64       // ppm on top of Rate
	Error     time.Duration // by which the wall clock is behind
	Stuck     error         // why the wall clock can't be disciplined
	Floor     time.Time
	FloorFrom string
	Boot      string
	SinceLock time.Duration // from the first question to the first majority
	LockedAt  time.Duration // CLOCK_BOOTTIME of the first majority
	Told      bool          // the servers are known
	Opposed   bool          // there is no vote only because peers contradict the single server
	// Suspicion is in the state Suspect what is contradicted: jump (this clock) or floor. Ends is true if it ends by itself when the servers come
	// back to what this clock said.
	Suspicion string
	Ends      bool
}

// Status looks at everything at once.
func (k *Keeper) Status() Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.Clock.Read()
	k.expire(now)
	s := Status{Now: now, Trusted: k.trusted, State: k.state, Reason: k.reason, Sources: slices.Clone(k.sources), Limit: k.limit, Rate: k.dis.rate,
		Drift: k.dis.drift, Slew: k.dis.slew, Error: k.dis.err, Stuck: k.stuck, Boot: k.Boot, SinceLock: k.locked, LockedAt: k.lockedAt, Told: k.told}
	if off := k.dis.limits.off(); math.Abs(off) > FreshPPM {
		s.Odd = off
	}
	s.Floor, s.FloorFrom = k.floor.get(k.Build)
	s.Opposed = k.opposed(now)
	if k.state == Suspect {
		s.Suspicion, s.Ends = k.suspect, k.own != nil
	}
	if k.state == Waiting && s.Reason == "" {
		s.Reason = "no time server has answered yet"
	}
	if len(k.servers()) == 0 && (k.state == Waiting || k.state == Holdover || k.state == Stopped) {
		s.Reason = "no time server is configured"
		if !k.told {
			s.Reason = "the records that name the time servers have not come yet"
		}
	}
	return s
}

// StopsAt is when issuing will stop if no server answers until then; zero if it has stopped.
func (s Status) StopsAt() time.Time {
	early, late, ok := s.Trusted.At(s.Now.Boot)
	if !ok {
		return time.Time{}
	}
	return early.Add(late.Sub(early) / 2).Add(s.Trusted.Expires - s.Now.Boot)
}

// Bound is half the width of the trusted interval now, 0 where there is none.
func (s Status) Bound() time.Duration {
	early, late, ok := s.Trusted.At(s.Now.Boot)
	if !ok {
		return 0
	}
	return late.Sub(early) / 2
}

// Why says in three sentences what the clock believes, why, and what comes next.
func (s Status) Why() []string {
	bound, stops := short(s.Bound()), day(s.StopsAt())
	switch s.State {
	case Locked:
		return []string{fmt.Sprintf("The time is trusted to within %s.", bound), s.agreement(),
			fmt.Sprintf("If no server answered any more, issuing would stop at %s, when the bound has grown to %s.", stops, short(s.Limit))}
	case Holdover:
		return []string{fmt.Sprintf("The time is still trusted, to within %s, but no majority confirms it.", bound), sentence(s.Reason),
			fmt.Sprintf("Issuing stops at %s, when the bound has grown to %s, unless a majority answers before.", stops, short(s.Limit))}
	case Suspect:
		return []string{"The time is suspect and nothing is issued, while what needs no clock goes on.", sentence(s.Reason),
			"Compare the servers with a clock you trust (time status); " + strings.Join(s.Decide(), "; ") + "."}
	case Manual:
		return []string{fmt.Sprintf("The time was said by administrators and is used with a bound of %s.", bound), sentence(s.Reason),
			fmt.Sprintf("It ends at %s, or with the first majority of the time servers.", stops)}
	case Stopped:
		return []string{"The time is not trusted any more and nothing is issued.", sentence(s.Reason),
			"It becomes trusted as soon as a majority of the time servers answers and agrees; check the network and the servers (time sources), or approve a time by hand (time approve)."}
	}
	return []string{"The time is not trusted yet and nothing is issued.", sentence(s.Reason),
		"It becomes trusted as soon as a majority of the time servers answers and agrees; if none can be reached, administrators may approve a time by hand (time approve)."}
}

// Decide says what administrators may do about a suspicion, a line for each thing that they may find; nil in other states.
func (s Status) Decide() []string {
	if s.State != Suspect {
		return nil
	}
	right := "if the servers are right, release it: time release"
	if s.Suspicion == "floor" {
		right = "if the servers are right, a wrong time raised the floor, so lower it to a moment before what they say: time floor lower"
	}
	wrong := "if they are wrong, repair them or name others (time set)"
	if s.Ends {
		wrong += ": it ends by itself a minute after they come back to what this clock said"
	} else {
		wrong += ", then release it: nothing is left of this clock's time to which they could come back"
	}
	return []string{right, wrong, "administrators decide by two, the other one with time confirm, or alone where only one exists"}
}

// oscillator is what there is to say about this machine's clock, without a full stop; "" if it is as good as others.
func (s Status) oscillator() string {
	switch {
	case s.Odd != 0:
		return fmt.Sprintf("this machine's clock runs %s, which was measured and is allowed for", pace(s.Rate))
	case s.Drift > vague:
		return fmt.Sprintf("how fast this machine's clock runs is being measured, to within %.1f %% so far", s.Drift/1e4)
	}
	return ""
}

// vague is from how many ppm on people are told that the rate is not known yet.
const vague = 1000

// pace says in words how fast an oscillator runs to which UTC runs by rate ppm.
func pace(rate float64) string {
	if rate > 0 {
		return fmt.Sprintf("%.0f ppm slow", rate)
	}
	return fmt.Sprintf("%.0f ppm fast", -rate)
}

// sentence makes one of an error's words.
func sentence(s string) string {
	if s == "" {
		return "Nothing is known against it."
	}
	return strings.ToUpper(s[:1]) + s[1:] + "."
}

// Problems are what an administrator should do something about.
func (s Status) Problems() (list []policy.Problem) {
	add := func(kind, what, remedy string) {
		list = append(list, policy.Problem{Kind: kind, What: what, Remedy: remedy})
	}
	switch s.State {
	case Suspect:
		add("time-suspect", "the time is suspect: "+s.Reason, "compare the servers with a clock that you trust (time status), which names the verb to decide with; nothing is issued until then")
	case Waiting, Stopped:
		add("time-untrusted", "the time is not trusted: "+s.Reason, "check the time servers and the network (time status, network show); nothing is signed until then")
	case Manual:
		add("time-manual", "the time was approved by hand: "+s.Reason, "bring the time servers back; the first majority replaces it")
	case Holdover:
		if s.Bound() >= time.Second {
			add("time-holdover", fmt.Sprintf("no majority of the time servers answers (%s); issuing will stop at %s", s.Reason, day(s.StopsAt())),
				"check the time servers and the network (time sources, network show)")
		}
	}
	if s.Opposed {
		add("time-contradicted", "peers contradict this node's only time server, so it is not followed",
			"compare them with a clock that you trust (time status here and there); use other servers (time set), or take the peer away that is wrong (peer remove)")
	}
	for _, src := range s.Sources {
		switch {
		case src.State != "falseticker":
		case src.Peer:
			add("time-falseticker", "peer "+src.Address+" says another time than this node's servers", "compare time status on both nodes; its voice moves nothing here (peer remove)")
		default:
			add("time-falseticker", src.Address+" says another time than the majority", "have that server looked at, or use another (time set)")
		}
	}
	switch configured := servers(s.Sources); len(configured) {
	case 1:
		add("time-few-sources", "single source: only "+configured[0].Address+" is configured, and no other server can contradict it", "configure at least three time servers (time set)")
	case 2:
		add("time-few-sources", "only two time servers are configured; one that lies can't be outvoted", "configure at least three (time set)")
	}
	if s.Odd != 0 && math.Abs(s.Rate) > MaxSlewPPM {
		hourly := ppm(time.Hour, math.Abs(s.Rate)-MaxSlewPPM)
		add("time-oscillator", fmt.Sprintf("this machine's clock runs %s; the system clock is corrected by %.0f ppm at most and leaves the time by another %s in each hour", pace(s.Rate), MaxSlewPPM, short(hourly)),
			"what is issued allows for it, log times do not; restart the machine when its host is less busy, on a virtual machine give it a clock source of the host, on a real one have the board looked at")
	}
	if s.Stuck != nil {
		add("time-undisciplined", "the system clock can't be set: "+s.Stuck.Error(), "what is issued does not use it; log times may be wrong")
	}
	return list
}
