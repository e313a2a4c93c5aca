package clock

import (
	"math"
	"time"
)

// leap is the time, in Raw, in which an announced leap second happens: not before from, not after until. from 0 = none is announced.
type leap struct {
	From  time.Duration `json:"from,omitempty"`
	Until time.Duration `json:"until,omitempty"`
}

// foresee notes when an announced leap second will be. What is a day off needs no exactness: each vote until then is more exact.
func (k *Keeper) foresee(now Reading, v Vote) {
	k.second = leap{}
	if v.Leap == 0 {
		return
	}
	mid := v.Middle().UTC()
	until := time.Date(mid.Year(), mid.Month()+1, 1, 0, 0, 0, 0, time.UTC).Sub(mid)
	if until > 25*time.Hour {
		return
	}
	unsure := ppm(until, k.dis.drift+math.Abs(k.dis.rate)) + v.Latest.Sub(v.Earliest)/2 + leapMargin
	k.second = leap{max(now.Raw+until-unsure, 1), now.Raw + until + unsure}
}

// forget drops what was said before a leap second and around it, and what is stale.
func (k *Keeper) forget(now Reading) {
	leaping := k.second.From != 0 && now.Raw >= k.second.From
	for i := range k.sources {
		s := &k.sources[i]
		if s.Sample != nil && (leaping && s.Sample.Raw < k.second.Until || ppm(now.Raw-s.Sample.Raw, k.dis.drift) > stale) {
			s.Sample = nil
		}
	}
}
