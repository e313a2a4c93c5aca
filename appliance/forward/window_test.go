package forward

import (
	"testing"
	"time"
)

func TestARecordCountsOnceItWasConfirmedAndTheConnectionHeld(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	w := window{last: 10, settle: 2 * time.Second}
	w.confirmed(0, at(0))
	w.add(20, 100)
	w.add(30, 200)
	for _, step := range []struct {
		second int
		bytes  int64
		want   uint64
		stuck  bool
	}{
		{1, 0, 10, false},
		{2, 99, 10, false}, // grew: a slow collector
		{8, 100, 10, false},
		{9, 100, 10, false},
		{10, 150, 20, false}, // two seconds after its last byte
		{15, 150, 20, false},
		{16, 150, 20, true}, // six seconds without a byte
		{17, 200, 20, false},
		{19, 200, 30, false},
		{90, 200, 30, false}, // nothing waits
	} {
		w.confirmed(step.bytes, at(step.second))
		if got := w.settled(at(step.second)); got != step.want {
			t.Errorf("second %d: %d, want %d", step.second, got, step.want)
		}
		if got := w.stuck(at(step.second), 5*time.Second); got != step.stuck {
			t.Errorf("second %d: stuck %v", step.second, got)
		}
	}
}
