package protect

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"guardhouse/appliance/kps"
)

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

// held is what a body has taken from the budget: growing from bodyStart to cap
// in doublings takes the difference.
func held(body []byte) int64 { return int64(cap(body)) - bodyStart }

var (
	errTooLarge = errors.New("the body is too large")
	errBusy     = errors.New("too many large requests at once")
	errBody     = errors.New("the body ended early or came too slowly")
)

// body reads the request's body, in pieces that count against the budget only
// once they have arrived: a slow caller holds no more than it sent. The caller
// gives back held(body).
func (q *request) body() ([]byte, error) {
	if q.r.ContentLength > kps.MaxRequest {
		return nil, errTooLarge
	}
	in := http.MaxBytesReader(q.w, q.r.Body, kps.MaxRequest)
	body := make([]byte, 0, bodyStart)
	for {
		if len(body) == cap(body) {
			bigger := make([]byte, 0, 2*cap(body))
			if !q.budget.take(int64(cap(bigger) - cap(body))) {
				q.budget.give(held(body))
				return nil, errBusy
			}
			body = append(bigger, body...)
		}
		n, err := in.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		if err == io.EOF {
			return body, nil
		}
		if err != nil {
			q.budget.give(held(body))
			var large *http.MaxBytesError
			if errors.As(err, &large) {
				return nil, errTooLarge
			}
			return nil, errBody
		}
	}
}

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

// allow counts an event and reports whether it is within most for this minute.
func (c *counter) allow(key string, most int, now time.Duration) bool {
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
