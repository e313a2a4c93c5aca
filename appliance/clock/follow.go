package clock

import (
	"fmt"
	"time"
)

// follow believes the vote.
func (k *Keeper) follow(now Reading, v Vote) {
	if k.state != Locked {
		now = k.lock(now, v)
	}
	k.reason, k.agreed, k.suspect = "", 0, ""
	k.measure(now, v)
	if k.settled(now) {
		best := k.dis.add(k.combine(now, v))
		k.steer(now, best.Sub(now.Wall))
		k.repair(now, best)
	}
	half := v.Latest.Sub(v.Earliest) / 2
	k.own = &known{Raw: now.Raw, UTC: v.Earliest.Add(half).UTC().Round(0), Bound: max(half, minDistance), Rate: k.dis.rate, Drift: k.dis.drift}
	k.past.note(*k.own)
	k.faster(len(k.outside) == 0)
	k.publish(now)
}

// measure learns from a vote what it says of the rate, unless something lies since the last one that no rate explains.
func (k *Keeper) measure(now Reading, v Vote) {
	if k.second.From != 0 && now.Raw >= k.second.From {
		k.second = leap{} // it happened or not: every answer is from after it
		if mid, _ := k.own.at(now.Raw); v.Middle().Sub(mid).Abs() > time.Second/2 {
			k.dis.redraw()
		}
		k.dis.limits.cut() // no rate explains the second
		k.past = nil
	}
	if k.own != nil {
		if _, bound := k.own.at(now.Raw); bound-k.own.Bound > jumpSlack {
			// So long nobody was heard that the machine may have stood still unseen: a rate that spans it would have that in it.
			k.dis.limits.cut()
			k.dis.redraw()
		}
	}
	k.foresee(now, v)
	if !k.dis.learn(now.Raw, v) {
		k.Log("the time servers fit no constant rate of this machine's clock any more; it is measured anew")
		k.trouble()
	}
}

// lock enters the state Locked. The wall clock is stepped if there was no majority before, or administrators want it so.
func (k *Keeper) lock(now Reading, v Vote) Reading {
	if k.state != Holdover {
		k.locks++
		detail := fmt.Sprintf("%s: %s +- %s", k.agreement(v), day(v.Middle()), short(v.Latest.Sub(v.Earliest)/2))
		if k.own == nil {
			detail += fmt.Sprintf("; the system clock is stepped by %s", short(v.Middle().Sub(now.Wall)))
		}
		k.event("lock", detail)
	}
	if k.own == nil {
		if k.locked == 0 {
			k.locked, k.lockedAt = max(now.Raw-k.started, 1), max(now.Boot, 1)
		}
		k.rtcDue = 0
		k.stuck = k.Clock.Step(v.Middle().Add(k.Clock.Read().Raw - now.Raw))
		now = k.Clock.Read()
		k.dis.reset()
		k.past = nil
	}
	k.state, k.worse, k.dirty = Locked, 0, true
	return now
}

// settled reports whether it is time for the next estimate: no question is out, and the last one was a poll interval ago.
func (k *Keeper) settled(now Reading) bool {
	if k.asking() {
		return false
	}
	n := len(k.dis.line)
	return n == 0 || now.Raw-k.dis.line[n-1].raw >= k.poll*3/4
}

// combine is the best guess of UTC: the mean of those inside, the near ones counting most.
func (k *Keeper) combine(now Reading, v Vote) estimate {
	var sum, weights float64
	mid := v.Middle()
	for _, i := range v.Inside {
		s := &k.sources[i]
		if s.Peer {
			continue
		}
		lo, hi := s.Sample.at(now.Raw, k.dis.rate, 0)
		d := (max(s.Sample.Distance, minDistance) + s.Jitter + ppm(now.Raw-s.Sample.Raw, WanderPPM)).Seconds()
		w := 1 / (d * d)
		sum, weights = sum+w*lo.Add(hi.Sub(lo)/2).Sub(mid).Seconds(), weights+w
	}
	return estimate{now.Raw, mid.Add(time.Duration(sum / weights * 1e9)), weights}
}

// steer sets the rate of the wall clock, which is behind by err.
func (k *Keeper) steer(now Reading, err time.Duration) {
	rate := k.dis.steer(err, k.poll)
	if e := k.Clock.Rate(rate); e != nil {
		k.stuck = e
	}
}
