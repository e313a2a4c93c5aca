package clock

import "time"

// rateLimits is between which rates, in ppm, UTC runs against Raw: what the votes of this boot prove. A vote says that UTC lay in an interval;
// two of them say within which the mean rate between them lies, whoever was in the majority, as long as it told the truth.
type rateLimits struct {
	lo, hi  float64
	last    anchor
	anchors []anchor // earlier votes, oldest first
}

// anchor is a vote: at raw UTC lay between early and late.
type anchor struct {
	raw         time.Duration
	early, late time.Time
}

const (
	mostAnchors = 16
	anchorPause = 4 * time.Second // votes nearer to each other say little
)

// freshLimits is what is known of an oscillator that nobody has measured since the boot.
func freshLimits() rateLimits { return rateLimits{lo: -UnmeasuredPPM, hi: UnmeasuredPPM} }

// narrow takes a vote into account, and reports false if it is compatible with no rate between the limits.
func (l *rateLimits) narrow(raw time.Duration, v Vote) bool {
	this := anchor{raw, v.Earliest, v.Latest}
	l.pair(l.last, this)
	for _, a := range l.anchors {
		l.pair(a, this)
	}
	if l.last = this; l.lo > l.hi {
		return false
	}
	n := len(l.anchors)
	if n == 0 || raw-l.anchors[n-1].raw >= max(anchorPause, (raw-l.anchors[0].raw)/mostAnchors) {
		if n == mostAnchors { // half of them cover as much time
			for i := range n / 2 {
				l.anchors[i] = l.anchors[2*i]
			}
			l.anchors = l.anchors[:n/2]
		}
		l.anchors = append(l.anchors, this)
	}
	return true
}

// pair takes two votes into account. The rate now is within WanderPPM of the mean between them, and nobody is better than minDistance.
func (l *rateLimits) pair(a, b anchor) {
	passed := b.raw - a.raw
	if a.early.IsZero() || passed < time.Second {
		return
	}
	of := func(utc time.Duration) float64 { return float64(utc-passed) / float64(passed) * 1e6 }
	l.lo = max(l.lo, of(b.early.Sub(a.late)-minDistance)-WanderPPM)
	l.hi = min(l.hi, of(b.late.Sub(a.early)+minDistance)+WanderPPM)
}

// cut keeps the limits and has no later vote compared with those before.
func (l *rateLimits) cut() { l.last, l.anchors = anchor{}, nil }

// off is by how many ppm the oscillator certainly leaves its nominal rate, positive = it is slow; 0 if it may be right.
func (l *rateLimits) off() float64 {
	switch {
	case l.lo > 0:
		return l.lo
	case l.hi < 0:
		return l.hi
	}
	return 0
}
