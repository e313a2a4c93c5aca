package policy

import "time"

// TrustedTime is what the node knows of the time: at the CLOCK_BOOTTIME reading BootTime of boot Boot, UTC lay within UTC +- Bound.
// Only appliance/clock makes one (appliance/layers_test.go finds any other construction) and only rpc.WatchTime, which proves that
// the sender has the clock's uid, takes one off a wire. Holders compute "now" with At and never ask again.
//
// DriftPPM is the worst rate at which the local oscillator may run away, in parts per million. Expires is the CLOCK_BOOTTIME reading
// from which the value says nothing any more. Sources names the servers that agreed, for people and for audit entries.
type TrustedTime struct {
	Boot     string        `json:"boot"` // /proc/sys/kernel/random/boot_id
	BootTime time.Duration `json:"bootTime"`
	UTC      time.Time     `json:"utc"`
	Bound    time.Duration `json:"bound"`
	DriftPPM float64       `json:"driftPPM"`
	Sources  []string      `json:"sources"`
	Expires  time.Duration `json:"expires"`
}

// At gives the interval in which UTC lies at the CLOCK_BOOTTIME reading boottime. ok is false for the zero value, for a reading before
// the value was made, and from Expires on: then nothing may be signed.
func (t TrustedTime) At(boottime time.Duration) (earliest, latest time.Time, ok bool) {
	if t.UTC.IsZero() || t.Bound <= 0 || boottime < t.BootTime || boottime >= t.Expires {
		return time.Time{}, time.Time{}, false
	}
	passed := boottime - t.BootTime
	bound := t.Bound + time.Duration(float64(passed)*t.DriftPPM/1e6)
	now := t.UTC.Add(passed)
	return now.Add(-bound), now.Add(bound), true
}

// Stamp is At as a Stamp; the zero interval (with the boot id) where the time is not trusted.
func (t TrustedTime) Stamp(boottime time.Duration) Stamp {
	earliest, latest, ok := t.At(boottime)
	if !ok {
		return Stamp{Boot: t.Boot}
	}
	return Stamp{Earliest: earliest.UnixMilli(), Latest: latest.UnixMilli(), Boot: t.Boot}
}
