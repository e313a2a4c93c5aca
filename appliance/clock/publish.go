package clock

import (
	"fmt"
	"slices"
	"time"

	"guardhouse/appliance/policy"
)

// publish makes the trusted time of what is known. k.own is not nil.
func (k *Keeper) publish(now Reading) {
	mid, bound := k.own.at(now.Raw)
	t := policy.TrustedTime{Boot: k.Boot, BootTime: now.Boot, UTC: mid.UTC().Round(0), Bound: bound, DriftPPM: k.own.Drift, Locks: k.locks}
	applied := k.Clock.Applied()
	t.RatePPM = ((1+k.own.Rate/1e6)/(1+applied/1e6) - 1) * 1e6
	t.Expires = now.Boot + k.life(bound, t.DriftPPM)
	if k.second.From != 0 {
		t.LeapAt = max(now.Boot+time.Duration(float64(k.second.From-now.Raw)*(1+applied/1e6)), 1)
		if t.Expires > t.LeapAt {
			t.Expires = max(t.LeapAt, now.Boot+k.life(bound+time.Second, t.DriftPPM))
		}
	}
	t.Sources = slices.Clone(k.inside)
	k.set(t)
	if early, _, ok := t.At(now.Boot); ok && k.floor.saw(early) {
		k.dirty = true
	}
}

// life is how long a bound may grow.
func (k *Keeper) life(bound time.Duration, drift float64) time.Duration {
	if bound >= k.limit {
		return 0
	}
	return time.Duration(float64(k.limit-bound) / drift * 1e6)
}

func (k *Keeper) set(t policy.TrustedTime) {
	k.trusted = t
	close(k.changed)
	k.changed = make(chan struct{})
}

// withhold takes the value back.
func (k *Keeper) withhold() {
	k.dirty = true
	k.set(policy.TrustedTime{Boot: k.Boot})
}

// expire leaves a state whose value has grown too uncertain or too old.
func (k *Keeper) expire(now Reading) {
	if k.state != Locked && k.state != Holdover && k.state != Manual {
		return
	}
	if _, _, ok := k.trusted.At(now.Boot); ok {
		return
	}
	was := k.state
	k.state = Stopped
	k.withhold()
	k.event("stopped", fmt.Sprintf("the %s time has grown too uncertain: %s", was, k.reason))
}
