package attest

import (
	"sync"
	"sync/atomic"
	"time"
)

// bodyStart is the buffer with which reading a body begins; it is not counted.
const bodyStart = 4 << 10

// held is what a body has taken from the budget: growing from 4 KiB to cap in
// doublings takes the difference.
func held(body []byte) int64 { return int64(cap(body)) - bodyStart }

// budget counts bytes that may still be taken.
type budget struct{ left atomic.Int64 }

func (b *budget) take(n int64) bool {
	if b.left.Add(-n) >= 0 {
		return true
	}
	b.left.Add(n)
	return false
}

func (b *budget) give(n int64) { b.left.Add(n) }

// counter counts events of a key in periods of a minute by CLOCK_BOOTTIME. It
// holds one small entry for each key and forgets everything when there are too
// many: then some keys get a fresh minute early.
type counter struct {
	mu   sync.Mutex
	seen map[string]minute
}

type minute struct {
	start time.Duration
	count int
}

const maxCounted = 32 << 10

// allow counts an event and reports whether it is within max for this minute.
func (c *counter) allow(key string, max int, now time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, ok := c.seen[key]
	if !ok || now-m.start >= time.Minute {
		m = minute{start: now}
	}
	if m.count >= max {
		return false
	}
	m.count++
	if c.seen == nil || len(c.seen) >= maxCounted {
		c.seen = make(map[string]minute)
	}
	c.seen[key] = m
	return true
}

// recent reports whether allow was asked for the key within the last minute.
func (c *counter) recent(key string, now time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, ok := c.seen[key]
	return ok && now-m.start < time.Minute
}
