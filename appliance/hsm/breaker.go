package hsm

import "time"

// Breaker tells how calls are answered that find no ready worker.
type Breaker string

// The states of the circuit breaker. It opens when the token has been away for
// Timing.Grace, and at once when a person must act. While it is open, calls are
// answered immediately with a retryable error. The keeper goes on trying to open
// the token; a worker that has logged in and made one real signature closes it.
const (
	BreakerClosed Breaker = "closed"    // calls are served, or wait a moment
	BreakerOpen   Breaker = "open"      // calls are answered at once
	BreakerHalf   Breaker = "half-open" // a new worker is on trial, calls are still answered at once
)

// trip opens the breaker. k.mu is held.
func (k *Keeper) trip() {
	if k.status.Breaker == BreakerClosed && k.status.State == StateStarting {
		k.log("breaker open: calls are answered at once until the token is back")
	}
	if k.status.Breaker != BreakerHalf || k.status.State != StateStarting {
		k.status.Breaker = BreakerOpen
	}
	k.queue.stop(k.refusal())
}

// refusal is what callers hear while no call can be served. k.mu is held.
func (k *Keeper) refusal() *Error {
	s := k.status
	switch {
	case s.State == StateLocked:
		return &Error{Kind: KindLocked, Remedy: "finish setup: module, token and PIN are missing; or hsm unlock"}
	case s.State == StateFailed && s.Last != nil:
		e := *s.Last
		e.Kind = KindFailed
		return &e
	case s.Last != nil:
		return &Error{Kind: KindUnavailable, Class: s.Last.Class, Code: s.Last.Code, Detail: "the token is away: " + s.Last.Detail, Remedy: remedyLink}
	}
	return &Error{Kind: KindUnavailable, Class: ClassModule, Detail: "the token is away", Remedy: remedyLink}
}

// patience starts the time after which the breaker opens unless a worker is
// ready by then. k.mu is held.
func (k *Keeper) patience(d time.Duration) {
	k.outage++
	n := k.outage
	time.AfterFunc(d, func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.outage == n && k.current == nil && k.status.State == StateStarting {
			k.trip()
		}
	})
}

// settle makes the queue answer as the state demands. It is called after every
// change of the state that is not the worker's coming or going. k.mu is held.
func (k *Keeper) settle() {
	switch {
	case k.status.State == StateLocked || k.status.State == StateFailed:
		k.outage++
		k.trip()
	case k.status.State == StateStarting && k.status.Breaker != BreakerClosed:
		k.queue.stop(k.refusal()) // the reason may be another one now
	}
}

// admit lets calls wait again, because somebody did something about the token.
// k.mu is held.
func (k *Keeper) admit() {
	k.status.Breaker = BreakerClosed
	k.queue.shut()
	k.patience(k.timing.Call)
}
