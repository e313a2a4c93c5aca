package clock

import (
	"errors"
	"fmt"
	"time"

	"guardhouse/appliance/policy"
)

// Approval is what administrators decided, by whoever counted their approvals. Kind is manual, release or floor (rpc.ApproveManual and so
// on). UTC is the time at the CLOCK_BOOTTIME reading BootTime, or the new floor; Asked the reading at which the first of them asked.
type Approval struct {
	Kind     string
	UTC      time.Time
	Boot     string
	BootTime time.Duration
	Asked    time.Duration
	By       []string
}

// Approve obeys a decision, or says why not.
func (k *Keeper) Approve(a Approval) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.Clock.Read()
	switch {
	case len(a.By) == 0:
		return errors.New("nobody approved it")
	case a.Boot != k.Boot:
		return errors.New("the approval is for another start of this node; ask again")
	case a.Asked < 0 || a.Asked > now.Boot || now.Boot-a.Asked > ApprovalLife:
		return fmt.Errorf("the approval is older than %s; ask again", ApprovalLife)
	}
	switch a.Kind {
	case "manual":
		return k.approveManual(now, a)
	case "release":
		return k.approveRelease(now, a)
	case "floor":
		return k.approveFloor(now, a)
	}
	return fmt.Errorf("%q can't be approved", a.Kind)
}

func (k *Keeper) approveManual(now Reading, a Approval) error {
	k.expire(now)
	switch {
	case k.vote:
		return errors.New("a majority of the time servers answers and agrees; a suspicion is released instead (time release)")
	case k.opposed(now):
		return errors.New("the only time server answers, and only peers contradict it; have it looked at, use others (time set), or take the peer away (peer remove)")
	case k.state == Locked || k.state == Holdover:
		return errors.New("the time is still trusted; nobody needs to say it")
	case a.BootTime < a.Asked-ApprovalLife || a.BootTime > now.Boot || now.Boot-a.BootTime > ApprovalLife:
		return fmt.Errorf("the time was read more than %s ago; ask again", ApprovalLife)
	}
	utc := a.UTC.Add(now.Boot - a.BootTime).UTC().Round(0)
	if floor, from := k.floor.get(k.Build); utc.Before(floor) {
		return fmt.Errorf("%s is before the floor of %s (%s); lower the floor first if that is wrong", day(utc), day(floor), from)
	}
	if err := k.Clock.Step(utc); err != nil {
		k.stuck = err
	}
	now = k.Clock.Read()
	k.own, k.second = nil, leap{}
	k.dis.redraw()
	k.steer(now, 0)
	k.state, k.suspect, k.reason = Manual, "", "administrators approved the time: "+names(a.By)
	k.locks++
	applied := k.Clock.Applied()
	k.set(policy.TrustedTime{Boot: k.Boot, BootTime: now.Boot, UTC: utc, Bound: ManualBound,
		RatePPM: ((1+k.dis.rate/1e6)/(1+applied/1e6) - 1) * 1e6, DriftPPM: k.dis.drift, Expires: now.Boot + ManualLife,
		Sources: append([]string{"manual"}, a.By...), Manual: true, Locks: k.locks})
	k.dirty = true
	k.event("manual", fmt.Sprintf("%s approved by %s", day(utc), names(a.By)))
	return nil
}

func (k *Keeper) approveRelease(now Reading, a Approval) error {
	switch {
	case k.state != Suspect:
		return errors.New("the time is not suspect")
	case !k.vote && !k.opposed(now):
		return errors.New("no majority of the time servers agrees now; there is nothing to believe instead (time approve, time sources)")
	case k.suspect == "floor":
		floor, _ := k.floor.get(k.Build)
		return fmt.Errorf("the time servers are before the floor of %s; lower the floor first (time floor lower)", day(floor))
	}
	v, err := k.elect(now) // by now's reading: the last vote was for an earlier one
	if err != nil && k.opposed(now) {
		v, err = k.alone(now) // administrators outweigh peers
	}
	if err != nil {
		return err
	}
	if floor, from := k.floor.get(k.Build); v.Latest.Before(floor) {
		if from != fromClock {
			return fmt.Errorf("the time servers are before the floor of %s (%s); lower the floor first (time floor lower)", day(floor), from)
		}
		k.floor.lower(v.Earliest) // it was the time that is given up now which put the floor there
	}
	k.event("release", "what the time servers say is believed again, approved by "+names(a.By))
	k.own, k.second = nil, leap{} // the wall clock is stepped: this is asked for
	k.follow(now, v)
	return nil
}

func (k *Keeper) approveFloor(now Reading, a Approval) error {
	if a.UTC.Before(k.Build) {
		return fmt.Errorf("the image was built on %s; nothing lowers the floor below that", day(k.Build))
	}
	if floor, _ := k.floor.get(k.Build); !a.UTC.Before(floor) {
		return fmt.Errorf("the floor is %s; that is no lower", day(floor))
	}
	k.floor.lower(a.UTC)
	k.dirty = true
	k.event("floor", fmt.Sprintf("lowered to %s, approved by %s", day(a.UTC), names(a.By)))
	if k.state == Suspect && k.suspect == "floor" {
		// The next majority is believed, if it is above the new floor: what was known came from the time that was wrong.
		k.own, k.second, k.suspect, k.state, k.reason = nil, leap{}, "", Waiting, "the floor was lowered; no majority was heard since"
	}
	k.nudge()
	return nil
}

// Floor takes a moment that certainly lies in the past, from ledger, audit or tpm, and returns the floor in force. The zero time only
// asks. A trusted time that lies before it is withheld at once.
func (k *Keeper) Floor(t time.Time, from string) (time.Time, string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !t.IsZero() && k.floor.record(t, from) {
		k.dirty = true
		now := k.Clock.Read()
		if _, latest, ok := k.trusted.At(now.Boot); ok {
			if floor, from := k.floor.get(k.Build); latest.Before(floor) {
				k.suspicion(now, "floor", fmt.Sprintf("the trusted time %s is before the floor of %s (%s)", day(latest), day(floor), from))
			}
		}
	}
	return k.floor.get(k.Build)
}
