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
	again *[maxDoublings]sync.Pool
}

// maxDoublings bounds the sizes of buffers that are used again; larger ones are left to the garbage collector.
const maxDoublings = 10

// NewBudget holds at most size bytes, not counting the first start bytes of each body. start is positive.
func NewBudget(size int64, start int) *Budget {
	b := &Budget{start: start}
	b.left.Store(size)
	return b
}

// Reusing has the memory of bodies used again after done; make it so before the first Body. Only for callers that keep no part of a body
// beyond done, and whose bodies hold no secrets: a buffer is not wiped. Buffers are used again by size, so a slow caller still holds no more
// than it sent.
func (b *Budget) Reusing() *Budget {
	b.again = new([maxDoublings]sync.Pool)
	return b
}

// buffer has no bytes and room for start doubled so many times.
func (b *Budget) buffer(doublings int) []byte {
	if b.again != nil && doublings < maxDoublings {
		if p, ok := b.again[doublings].Get().(*[]byte); ok {
			return (*p)[:0]
		}
	}
	return make([]byte, 0, b.start<<doublings)
}

func (b *Budget) free(buffer []byte, doublings int) {
	if b.again != nil && doublings < maxDoublings {
		b.again[doublings].Put(&buffer)
	}
}

// Left is how many bytes may still be taken.
func (b *Budget) Left() int64 { return b.left.Load() }

// Body reads the request's body of at most limit bytes, in pieces that count once they have arrived. done gives its bytes back: call it
// when the body is not needed any more, once; after an error it is nil. The error is ErrTooLarge, ErrBusy or ErrBody.
func (b *Budget) Body(w http.ResponseWriter, r *http.Request, limit int64) (body []byte, done func(), err error) {
	if r.ContentLength > limit {
		return nil, nil, ErrTooLarge
	}
	in := http.MaxBytesReader(w, r.Body, limit)
	var taken int64
	doublings := 0
	body = b.buffer(0)
	give := func() {
		b.free(body, doublings)
		b.left.Add(taken)
	}
	for {
		if len(body) == cap(body) {
			more := int64(cap(body))
			if b.left.Add(-more) < 0 {
				b.left.Add(more)
				give()
				return nil, nil, ErrBusy
			}
			taken += more
			larger := append(b.buffer(doublings+1), body...)
			b.free(body, doublings)
			body, doublings = larger, doublings+1
		}
		n, err := in.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		if err == io.EOF {
			return body, sync.OnceFunc(give), nil
		}
		if err != nil {
			give()
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
