package clock

import "time"

// fromClock is the source of the floor that the clock's own trusted times are.
const fromClock = "clock"

// floors is what is known of the past. A zero moment is unknown.
type floors struct {
	Recorded time.Time `json:"recorded,omitzero"` // newest earliest bound that somebody recorded
	From     string    `json:"from,omitempty"`
	// Administrators lowered the floor: what was recorded up to Poisoned was recorded by a wrong time and does not count.
	Lowered  time.Time `json:"lowered,omitzero"`
	Poisoned time.Time `json:"poisoned,omitzero"`

	noted time.Time // when saw last asked to be written
}

// get is the floor in force and who says so. No record and no approval is below the build date of the image.
func (f *floors) get(build time.Time) (time.Time, string) {
	floor, from := build, "image"
	if f.Lowered.After(floor) {
		floor, from = f.Lowered, "approval"
	}
	if f.Recorded.After(f.Poisoned) && f.Recorded.After(floor) {
		floor, from = f.Recorded, f.From
	}
	return floor, from
}

// record takes a moment that lies in the past, and reports whether it is news.
func (f *floors) record(t time.Time, from string) bool {
	if !t.After(f.Poisoned) || !t.After(f.Recorded) {
		return false
	}
	f.Recorded, f.From = t.UTC().Round(0), from
	return true
}

// saw notes the earliest bound of a trusted time of this clock, and reports once an hour that it should be kept.
func (f *floors) saw(earliest time.Time) bool {
	f.record(earliest, fromClock)
	if f.Recorded.Sub(f.noted) < time.Hour {
		return false
	}
	f.noted = f.Recorded
	return true
}

// lower obeys administrators.
func (f *floors) lower(to time.Time) {
	if f.Recorded.After(f.Poisoned) {
		f.Poisoned = f.Recorded
	}
	f.Lowered, f.noted = to.UTC().Round(0), time.Time{}
	f.Recorded, f.From = time.Time{}, ""
}
