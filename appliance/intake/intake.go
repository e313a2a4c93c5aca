// Package intake bounds what strangers may cost a service that answers them over HTTP: how many bytes of request bodies lie in memory,
// and how often something may happen for one key in a minute.
//
// Promise: a Budget never holds more than it was given, however many callers send at once, and a slow caller holds no more than it sent.
// A Counter has bounded memory whatever keys come.
//
// Limits: it reads no clock; callers pass CLOCK_BOOTTIME. Deadlines of a connection are its server's.
package intake

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Why a body was not read.
var (
	ErrTooLarge = errors.New("the body is too large")
	ErrBusy     = errors.New("too many large requests at once")
	ErrBody     = errors.New("the body ended early or came too slowly")
)

// Budget is the memory for the bodies of all requests of a service. Make it with NewBudget; it is safe for concurrent use.
type Budget struct {
	left  atomic.Int64
	start int // bytes of each body that are not counted: a usual one
}

// NewBudget holds at most size bytes, not counting the first start bytes of each body. start is positive.
func NewBudget(size int64, start int) *Budget {
	b := &Budget{start: start}
	b.left.Store(size)
	return b
}

// Left is how many bytes may still be taken.
func (b *Budget) Left() int64 { return b.left.Load() }

// Body reads the request's body of at most limit bytes, in pieces that count once they have arrived. done gives its bytes back: call it
// when the body is not needed any more; after an error it is nil. The error is ErrTooLarge, ErrBusy or ErrBody.
func (b *Budget) Body(w http.ResponseWriter, r *http.Request, limit int64) (body []byte, done func(), err error) {
	if r.ContentLength > limit {
		return nil, nil, ErrTooLarge
	}
	in := http.MaxBytesReader(w, r.Body, limit)
	var taken int64
	body = make([]byte, 0, b.start)
	for {
		if len(body) == cap(body) {
			more := int64(cap(body)) // doubling
			if b.left.Add(-more) < 0 {
				b.left.Add(more + taken)
				return nil, nil, ErrBusy
			}
			taken += more
			body = append(make([]byte, 0, 2*cap(body)), body...)
		}
		n, err := in.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		if err == io.EOF {
			return body, sync.OnceFunc(func() { b.left.Add(taken) }), nil
		}
		if err != nil {
			b.left.Add(taken)
			var large *http.MaxBytesError
			if errors.As(err, &large) {
				return nil, nil, ErrTooLarge
			}
			return nil, nil, ErrBody
		}
	}
}

// Counter counts events of a key in periods of a minute by CLOCK_BOOTTIME. It holds one small entry for each key and forgets everything
// when there are too many: then some keys get a fresh minute early. The zero value is ready; it is safe for concurrent use.
type Counter struct {
	mu   sync.Mutex
	seen map[string]minute
}

type minute struct {
	start time.Duration
	count int
}

const maxCounted = 32 << 10

// Allow counts an event at now and reports whether it is within most for this minute.
func (c *Counter) Allow(key string, most int, now time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, ok := c.seen[key]
	if !ok || now-m.start >= time.Minute {
		m = minute{start: now}
	}
	if m.count >= most {
		return false
	}
	m.count++
	if c.seen == nil || len(c.seen) >= maxCounted {
		c.seen = make(map[string]minute)
	}
	c.seen[key] = m
	return true
}

// Recent reports whether Allow counted an event of the key within the last minute.
func (c *Counter) Recent(key string, now time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, ok := c.seen[key]
	return ok && now-m.start < time.Minute
}
