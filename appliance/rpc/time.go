package rpc

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/policy"
)

// clockWatch is not exported: ServeTime is the only way to offer trusted time, WatchTime the only way to take it off a wire.
var clockWatch = Stream[Empty, policy.TrustedTime]{"clock.Watch"}

// ServeTime registers the stream of trusted time on the clock's server. fn sends the current value first, then each newer one; the zero
// value says that the time is not trusted.
func ServeTime(s *Server, fn func(ctx context.Context, c Caller, _ Empty, send func(policy.TrustedTime) error) error, allow ...string) {
	HandleStream(s, clockWatch, fn, allow...)
}

// TimeSource is the newest trusted time that the clock sent. When the clock dies the last value stays in use until it expires. Safe for
// concurrent use; make it with WatchTime.
type TimeSource struct {
	value   atomic.Pointer[policy.TrustedTime]
	changed atomic.Uint64

	mu    sync.Mutex
	event chan struct{}
}

// WatchTime follows the clock below dir in the background until ctx ends. The server must have clockUID, as the kernel reports it:
// anything else listening there is not believed.
func WatchTime(ctx context.Context, dir string, clockUID uint32) *TimeSource {
	src := &TimeSource{}
	c := NewProvedClient(SocketPath(dir, Clock), clockUID)
	go clockWatch.Follow(ctx, c, Empty{}, func(t policy.TrustedTime) error {
		src.receive(t)
		return nil
	}, nil)
	return src
}

func (s *TimeSource) receive(t policy.TrustedTime) {
	old := s.Get()
	s.value.Store(&t)
	s.changed.Add(1)
	if old.Boot == t.Boot && old.Locks == t.Locks && old.UTC.IsZero() == t.UTC.IsZero() {
		return // a refinement
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.event != nil {
		close(s.event)
		s.event = nil
	}
}

// Event is closed at the next event of the time: it became trusted, was moved, or is trusted no more. Whoever decided something by the
// time before decides again then. Ask for the channel first, then look at the time. That a value expires is no event: At tells.
func (s *TimeSource) Event() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.event == nil {
		s.event = make(chan struct{})
	}
	return s.event
}

// Get is the newest value, the zero TrustedTime where there is none yet.
func (s *TimeSource) Get() policy.TrustedTime {
	if t := s.value.Load(); t != nil {
		return *t
	}
	return policy.TrustedTime{}
}

// Changes counts the values received so far; a holder compares it to see that time was stepped or lost.
func (s *TimeSource) Changes() uint64 { return s.changed.Load() }

// Now is Get().At(BootTime()).
func (s *TimeSource) Now() (earliest, latest time.Time, ok bool) { return s.Get().At(BootTime()) }

// Stamp is Get().Stamp(BootTime()).
func (s *TimeSource) Stamp() policy.Stamp { return s.Get().Stamp(BootTime()) }

// BootTime is CLOCK_BOOTTIME: time since power-on, suspend included, which nobody can set.
func BootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0 // the kernel has had this clock since 2.6.39; 0 makes every holder refuse
	}
	return time.Duration(ts.Nano())
}
