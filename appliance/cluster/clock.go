package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// Clock is what a node says of its own time in every request and reply. Earliest and Latest are unix nanoseconds between which UTC lies;
// both are 0 where State is rpc.PeerClockNone, and then Why says why.
type Clock struct {
	Boot     string `json:"boot"`
	Earliest int64  `json:"earliest,omitempty"`
	Latest   int64  `json:"latest,omitempty"`
	State    string `json:"state"`
	Why      string `json:"why,omitempty"`
}

// Bounds of what a peer may say of its clock.
const (
	maxText = 300
	// maxWidth is that of a manual time after a day, with room. A wider interval would agree with everybody.
	maxWidth  = 2 * (policy.MaxTimeBound + 5*time.Minute)
	lastNanos = 7258118400_000000000 // 2200-01-01: differences of two such times fit a Duration
)

// check bounds what a peer says.
func (c *Clock) check() error {
	if !policy.ValidName(c.Boot) {
		return errors.New("the boot id of its clock is malformed")
	}
	c.Why = clean(c.Why)
	switch c.State {
	case rpc.PeerClockNone:
		if c.Earliest != 0 || c.Latest != 0 {
			return errors.New("it says that it has no trusted time, and a time")
		}
		return nil
	case rpc.PeerClockTrusted, rpc.PeerClockManual:
	default:
		return errors.New("the state of its clock is unknown here")
	}
	if c.Earliest <= 0 || c.Latest < c.Earliest || c.Latest > lastNanos {
		return errors.New("the interval of its clock is malformed")
	}
	if time.Duration(c.Latest-c.Earliest) > maxWidth {
		return fmt.Errorf("its clock is uncertain by %s, more than any node's may be", seconds(time.Duration(c.Latest-c.Earliest)/2))
	}
	return nil
}

// clean makes what a peer wrote harmless on a terminal, and short.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '.'
		}
		return r
	}, strings.ToValidUTF8(s, "."))
	for len(s) > maxText {
		s = s[:maxText]
		s = strings.ToValidUTF8(s, "")
	}
	return s
}

// own is this node's clock now.
func (l *Link) own(ctx context.Context) Clock {
	t := l.cfg.Time()
	c := Clock{Boot: l.cfg.Boot, State: rpc.PeerClockTrusted}
	earliest, latest, ok := t.At(l.cfg.BootTime())
	if !ok {
		c.State, c.Why = rpc.PeerClockNone, clean(l.cfg.Why(ctx))
		return c
	}
	if t.Manual {
		c.State = rpc.PeerClockManual
	}
	c.Earliest, c.Latest = earliest.UnixNano(), latest.UnixNano()
	return c
}

// reading is a peer's clock as it was heard: raw is when the message was there, and the clock was read at most window before.
type reading struct {
	clock  Clock
	raw    time.Duration
	window time.Duration
}

// at is the peer's time at the moment raw, and how far it may be off by what the peer admits and the time that the message took.
func (r reading) at() (utc time.Time, distance time.Duration) {
	half := time.Duration(r.clock.Latest-r.clock.Earliest) / 2
	return time.Unix(0, r.clock.Earliest).Add(half + r.window/2).UTC(), half + r.window/2 + 1
}

// skew is by how much a peer's clock is ahead of this node's, give or take uncertainty.
type skew struct {
	ahead, uncertainty time.Duration
	at                 time.Duration // CLOCK_BOOTTIME
}

// off is true where the two clocks can't both be right.
func (s skew) off() bool { return s.ahead.Abs() > s.uncertainty }

// compare sets what was heard just now beside this node's own clock.
func compare(own Clock, r reading, now time.Duration) skew {
	utc, distance := r.at()
	half := time.Duration(own.Latest-own.Earliest) / 2
	mine := time.Unix(0, own.Earliest).Add(half)
	return skew{ahead: utc.Sub(mine), uncertainty: distance + half, at: now}
}

// seconds is a duration for people, to the millisecond.
func seconds(d time.Duration) string { return fmt.Sprintf("%.3f s", d.Seconds()) }

// Words on a skew, from the side of who compares.
func (s skew) String() string {
	word := "ahead of"
	if s.ahead < 0 {
		word = "behind"
	}
	return fmt.Sprintf("its clock is %s %s this node's, and both bounds explain only %s", seconds(s.ahead.Abs()), word, seconds(s.uncertainty))
}

// judge says why a node may not join; "" = it may. Where this node itself has no trusted time nobody can be judged: wait is true.
func judge(own Clock, r reading, now time.Duration) (sk *skew, why string, wait bool) {
	switch {
	case r.clock.State == rpc.PeerClockNone:
		return nil, "it has no trusted time: " + r.clock.Why, false
	case own.State == rpc.PeerClockNone:
		return nil, "this node has no trusted time: " + own.Why, true
	}
	s := compare(own, r, now)
	if s.off() {
		return &s, s.String(), false
	}
	return &s, "", false
}
