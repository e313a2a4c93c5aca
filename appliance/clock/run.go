package clock

import (
	"context"
	"errors"
	"time"
)

// Run asks until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	type result struct {
		server Server
		sample Sample
		err    error
	}
	results := make(chan result, 2*MaxSources)
	for {
		now := k.Clock.Read()
		ask, next := k.due(now)
		for _, s := range ask {
			go func() {
				qctx, cancel := context.WithTimeout(ctx, queryTimeout)
				defer cancel()
				r := result{server: s}
				r.sample, r.err = k.Query(qctx, s)
				select {
				case results <- r:
				case <-ctx.Done():
				}
			}()
		}
		k.mu.Lock()
		k.beat = time.Now()
		k.mu.Unlock()
		timer := time.NewTimer(max(next-now.Raw, 10*time.Millisecond))
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-k.wake:
		case <-timer.C:
		case r := <-results:
			k.answer(k.Clock.Read(), r.server, r.sample, r.err)
		}
		timer.Stop()
	}
}

// Stop writes the hardware clock once more, by what a majority said; call it when Run has ended. The next boot does not believe it, but what
// it logs before its first majority has nothing better.
func (k *Keeper) Stop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.SetRTC == nil || k.own == nil || k.state != Locked && k.state != Holdover {
		return
	}
	utc, _ := k.own.at(k.Clock.Read().Raw)
	if err := k.SetRTC(utc); err != nil {
		k.Log("hardware clock not set: %v", err)
	}
}

// Check fails when Run has not come round for 20 s: it is the process's self-check for its watchdog.
func (k *Keeper) Check() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.beat.IsZero() && time.Since(k.beat) > 20*time.Second {
		return errors.New("the clock's loop stands still")
	}
	return nil
}
