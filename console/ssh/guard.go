package ssh

import (
	"sync"
	"time"
)

// guard counts who is connected and who failed. Its memory is bounded.
type guard struct {
	mu       sync.Mutex
	all      int
	open     map[string]int
	failures map[string]*failures
	written  []time.Duration // boot times of the last audit entries
}

type failures struct {
	count int
	last  time.Duration // boot time of the last audit entry; 0 = none
	tries []time.Duration
}

const (
	maxSources    = 1024
	writeSource   = time.Minute // at most one audit entry a source in this time
	writeAll      = 10          // at most this many entries a minute from all sources
	triesPerMin   = 20          // failed connections a minute after which a source is not let in
	failureWindow = time.Minute
)

// enter counts a connection in; false where there are too many. A source with too many failures has to wait.
func (g *guard) enter(source string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open == nil {
		g.open = map[string]int{}
	}
	if g.all >= MaxConnections || g.open[source] >= MaxPerSource {
		return false
	}
	g.all++
	g.open[source]++
	return true
}

func (g *guard) leave(source string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all--
	if g.open[source]--; g.open[source] <= 0 {
		delete(g.open, source)
	}
}

// barred reports whether a source has failed too often in the last minute.
func (g *guard) barred(source string, now time.Duration) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	f, ok := g.failures[source]
	if !ok {
		return false
	}
	f.tries = recent(f.tries, now)
	return len(f.tries) >= triesPerMin
}

// failed counts a refused login and says whether to write it down now, and for how many it stands.
func (g *guard) failed(source string, now time.Duration) (times int, write bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.failures == nil {
		g.failures = map[string]*failures{}
	}
	f, ok := g.failures[source]
	if !ok {
		if len(g.failures) >= maxSources {
			g.forget(now)
		}
		f = &failures{}
		g.failures[source] = f
	}
	f.count++
	f.tries = append(recent(f.tries, now), now)
	g.written = recent(g.written, now)
	if f.last > 0 && now-f.last < writeSource || len(g.written) >= writeAll {
		return 0, false
	}
	times, f.count, f.last = f.count, 0, now
	g.written = append(g.written, now)
	return times, true
}

// forget drops sources whose last failure is old, and where all are fresh, any one.
func (g *guard) forget(now time.Duration) {
	var any string
	for source, f := range g.failures {
		any = source
		if f.tries = recent(f.tries, now); len(f.tries) == 0 {
			delete(g.failures, source)
		}
	}
	if len(g.failures) >= maxSources {
		delete(g.failures, any)
	}
}

func recent(times []time.Duration, now time.Duration) []time.Duration {
	for len(times) > 0 && now-times[0] > failureWindow {
		times = times[1:]
	}
	return times
}
