package policy

import "time"

// Bounds of the setting for how uncertain a node's time may become before it issues nothing any more (Service.TimeBound). The longest is
// the five minutes by which notBefore of what is issued is back-dated.
const (
	DefaultTimeBound = time.Minute
	MinTimeBound     = time.Second
	MaxTimeBound     = 5 * time.Minute
)

// TrustedTime is what the node knows of the time: at the CLOCK_BOOTTIME reading BootTime of boot Boot, UTC lay within UTC +- Bound.
// Only appliance/clock makes one (appliance/layers_test.go finds any other construction) and only rpc.WatchTime, which proves that
// the sender has the clock's uid, takes one off a wire. Holders compute "now" with At and never ask again. The clock says that the time
// is not trusted, whatever it said before, with a value that has a zero UTC (rpc.ClockStatusReply tells why).
//
// RatePPM is the known rate of UTC against CLOCK_BOOTTIME, which differs from it while the clock is being slewed, and DriftPPM the worst
// rate by which the oscillator may run away from that, both in parts per million. Expires is the CLOCK_BOOTTIME reading from which the
// value says nothing any more: the bound has grown to Service.TimeBound then, or the approval of a manual time has ended. Sources names
// the servers that agreed, or the administrators who approved, for people and for audit entries.
type TrustedTime struct {
	Boot     string        `json:"boot"` // /proc/sys/kernel/random/boot_id
	BootTime time.Duration `json:"bootTime"`
	UTC      time.Time     `json:"utc"`
	Bound    time.Duration `json:"bound"`
	RatePPM  float64       `json:"ratePPM,omitempty"`
	DriftPPM float64       `json:"driftPPM"`
	Sources  []string      `json:"sources"`
	Expires  time.Duration `json:"expires"`
	// Manual: no server agreed to it, administrators did. It belongs into every audit entry.
	Manual bool `json:"manual,omitempty"`
	// LeapAt is the CLOCK_BOOTTIME reading, 0 = none, from which an announced leap second may have happened: a second is added to the bound.
	LeapAt time.Duration `json:"leapAt,omitempty"`
	// Locks counts, in this boot, the times that the time became trusted anew or was moved by other than slewing: the first majority, the
	// end of a suspicion, an approved time. A holder to whom it changes checks again what it decided by the time before.
	Locks uint64 `json:"locks,omitempty"`
}

// At gives the interval in which UTC lies at the CLOCK_BOOTTIME reading boottime. ok is false for the zero value, for a reading before
// the value was made, and from Expires on: then nothing may be signed.
func (t TrustedTime) At(boottime time.Duration) (earliest, latest time.Time, ok bool) {
	if t.UTC.IsZero() || t.Bound <= 0 || boottime < t.BootTime || boottime >= t.Expires {
		return time.Time{}, time.Time{}, false
	}
	passed := boottime - t.BootTime
	bound := t.Bound + time.Duration(float64(passed)*t.DriftPPM/1e6)
	if t.LeapAt != 0 && boottime >= t.LeapAt {
		bound += time.Second
	}
	now := t.UTC.Add(passed + time.Duration(float64(passed)*t.RatePPM/1e6))
	return now.Add(-bound), now.Add(bound), true
}

// Stamp is At as a Stamp; the zero interval (with the boot id) where the time is not trusted.
func (t TrustedTime) Stamp(boottime time.Duration) Stamp {
	earliest, latest, ok := t.At(boottime)
	if !ok {
		return Stamp{Boot: t.Boot}
	}
	return Stamp{Earliest: earliest.UnixMilli(), Latest: latest.UnixMilli(), Boot: t.Boot, Manual: t.Manual}
}
