package hsm

import (
	"context"
	"slices"
	"sync"
	"time"

	"guardhouse/appliance/policy"
)

// maxShare bounds the calls of one share that wait; a further one is answered
// as busy at once. Three full shares stay below the number of calls that one
// client process has in flight (rpc), so that a flood of one kind cannot fill
// its caller's own line either.
const maxShare = 40

// share is who waits in the queue as one: a caller's operations of one kind.
// Shares take turns at free slots, so a flood of attestations does not keep
// key protectors waiting, and the second half of a roll (the signature) does not
// wait behind everybody's first half.
type share struct {
	caller string
	op     string
	role   policy.KeyRole // of a signature
}

type callerKey struct{}

// WithCaller names the process on whose behalf calls with the returned context
// are made. Callers have shares of their own in the keeper's queue.
func WithCaller(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, callerKey{}, name)
}

func shareOf(ctx context.Context, c call) share {
	name, _ := ctx.Value(callerKey{}).(string)
	return share{caller: name, op: c.Op, role: c.Role}
}

// queue hands out a worker's slots, first come first served within a share and
// by turns among shares. It outlives workers: who waits while one is replaced
// keeps its place.
type queue struct {
	mu     sync.Mutex
	worker *process // nil while none is ready
	free   int      // its slots that are not taken
	refuse error    // not nil: nobody may wait, this is the answer
	lines  map[share][]*waiter
	turns  []share // those with a line, next one first
}

// waiter gets one grant.
type waiter struct{ granted chan grant } // buffered

type grant struct {
	p   *process
	err error
}

// take waits for a slot, for at most patience.
func (q *queue) take(ctx context.Context, s share, patience time.Duration) (*process, error) {
	q.mu.Lock()
	if q.refuse != nil {
		defer q.mu.Unlock()
		return nil, q.refuse
	}
	if q.free > 0 && len(q.turns) == 0 {
		defer q.mu.Unlock()
		q.free--
		return q.worker, nil
	}
	if len(q.lines[s]) >= maxShare {
		defer q.mu.Unlock()
		return nil, &Error{Kind: KindBusy, Detail: "too many calls wait for the token", Remedy: "try again"}
	}
	w := &waiter{make(chan grant, 1)}
	if len(q.lines[s]) == 0 {
		q.turns = append(q.turns, s)
	}
	if q.lines == nil {
		q.lines = map[share][]*waiter{}
	}
	q.lines[s] = append(q.lines[s], w)
	q.mu.Unlock()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case g := <-w.granted:
		return g.p, g.err
	case <-ctx.Done():
	case <-timer.C:
	}
	if !q.leave(s, w) { // granted in this moment
		g := <-w.granted
		if g.p == nil || ctx.Err() == nil {
			return g.p, g.err
		}
		q.give(g.p)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.worker == nil {
		return nil, &Error{Kind: KindUnavailable, Class: ClassModule, Detail: "the token is away", Remedy: remedyLink}
	}
	return nil, &Error{Kind: KindBusy, Detail: "the token is busy", Remedy: "try again"}
}

// leave takes w out of its line; false means that it is in it no more.
func (q *queue) leave(s share, w *waiter) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.Index(q.lines[s], w)
	if i < 0 {
		return false
	}
	q.lines[s] = slices.Delete(q.lines[s], i, i+1)
	if len(q.lines[s]) == 0 {
		delete(q.lines, s)
		q.turns = slices.Delete(q.turns, slices.Index(q.turns, s), slices.Index(q.turns, s)+1)
	}
	return true
}

// tryTake takes a slot of p if one is free and nobody waits.
func (q *queue) tryTake(p *process) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.worker != p || q.free == 0 || len(q.turns) > 0 {
		return false
	}
	q.free--
	return true
}

// give returns a slot of p; one of a worker that is gone is forgotten.
func (q *queue) give(p *process) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.worker == p {
		q.free++
		q.serve()
	}
}

// serve hands out free slots. q.mu is held.
func (q *queue) serve() {
	for q.free > 0 && len(q.turns) > 0 {
		s := q.turns[0]
		line := q.lines[s]
		w := line[0]
		q.turns = q.turns[1:]
		if len(line) > 1 {
			q.lines[s] = line[1:]
			q.turns = append(q.turns, s)
		} else {
			delete(q.lines, s)
		}
		q.free--
		w.granted <- grant{p: q.worker}
	}
}

// open makes p the worker that serves, with n slots.
func (q *queue) open(p *process, n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.worker, q.free, q.refuse = p, n, nil
	q.serve()
}

// lose takes p away if it is the worker: callers wait for the next one.
func (q *queue) lose(p *process) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.worker == p {
		q.worker, q.free = nil, 0
	}
}

// shut takes the worker away and lets callers wait for the next one.
func (q *queue) shut() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.worker, q.free, q.refuse = nil, 0, nil
}

// stop answers everybody who waits, and whoever comes, with err.
func (q *queue) stop(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.worker, q.free, q.refuse = nil, 0, err
	for _, line := range q.lines {
		for _, w := range line {
			w.granted <- grant{err: err}
		}
	}
	q.lines, q.turns = nil, nil
}

// waiting counts those in line.
func (q *queue) waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for _, line := range q.lines {
		n += len(line)
	}
	return n
}
