package hsm

import (
	"context"
	"time"
)

// session runs one worker from start to end. It tells for how long the worker
// was ready and why it ended; no error means that ctx ended or that module or
// PIN changed.
func (k *Keeper) session(ctx context.Context, epoch int) (ready time.Duration, e *Error) {
	k.mu.Lock()
	cfg, env, proven, limit := k.cfg, k.env, k.proven, k.openLimit()
	if k.serial != "" {
		cfg.TokenSerial, cfg.Create = k.serial, false
	}
	p, err := startProcess(k.command(), cfg, env, k.pin.Bytes(), &k.queue)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	k.abandon = cancel
	k.mu.Unlock()
	if err != nil {
		return 0, AsError(err)
	}
	defer p.kill(&Error{Kind: KindUnavailable, Detail: "the worker was stopped"})
	k.within(limit + k.timing.Call)
	began := time.Now()
	info, e := p.waitReady(ctx, limit)
	if e == nil {
		e = k.trial(ctx, p, epoch)
	}
	if e != nil {
		if ctx.Err() != nil {
			return 0, nil
		}
		return 0, k.judgeLogin(p, proven, e)
	}
	started := time.Now()
	k.ready(p, epoch, cfg.Sessions, info, started.Sub(began))
	k.log("token %q serial %s ready, oaep %q", info.Label, info.Serial, info.OAEP)
	defer func() {
		k.mu.Lock()
		if k.current == p {
			k.current = nil
			if k.epoch == epoch {
				k.queue.shut()
				k.patience(k.timing.Grace)
			}
		}
		k.notify()
		k.mu.Unlock()
	}()
	e = k.watch(ctx, p, epoch)
	return time.Since(started), e
}

// openLimit bounds an opening. The first may take long: an HSM may look for its
// partners. A later one that takes much longer than the last is stuck, perhaps
// on a connection that died while the token was away, and a new worker finds the
// token sooner. k.mu is held.
func (k *Keeper) openLimit() time.Duration {
	if !k.proven {
		return k.timing.Open
	}
	return min(k.timing.Open, max(k.timing.Reopen, 4*k.opened))
}

// trial has a new worker prove the token before callers meet it.
func (k *Keeper) trial(ctx context.Context, p *process, epoch int) *Error {
	k.mu.Lock()
	if k.epoch == epoch && k.status.Breaker == BreakerOpen {
		k.status.Breaker = BreakerHalf
	}
	k.mu.Unlock()
	_, _, err := p.roundTrip(ctx, call{Op: opCheck}, nil, k.timing.Call)
	if err == nil {
		return nil
	}
	k.mu.Lock()
	if k.status.Breaker == BreakerHalf {
		k.status.Breaker = BreakerOpen
	}
	k.mu.Unlock()
	e := *AsError(err)
	if e.Class == ClassNone { // the token is well, but a key in it is not: that is the key's matter
		return nil
	}
	return &e
}

// ready lets callers in.
func (k *Keeper) ready(p *process, epoch, slots int, info *TokenInfo, took time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.epoch != epoch {
		return
	}
	k.outage++
	k.cfg.LastTry = false // it was for one login
	k.current, k.proven, k.deaths, k.serial, k.opened = p, true, 0, info.Serial, took
	k.status.State, k.status.Token, k.status.Since, k.status.Breaker = StateReady, *info, time.Now(), BreakerClosed
	k.queue.open(p, slots)
	k.notify()
}

// judgeLogin makes a worker's early death final when repeating could lock the
// token.
func (k *Keeper) judgeLogin(p *process, proven bool, e *Error) *Error {
	// A code is the token's own answer: then it did not judge the PIN.
	if e.Class == ClassFatal || e.Code != 0 || proven || p.phase() != phaseLogin {
		return e
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.deaths++
	if k.deaths < maxLoginDeaths {
		return e
	}
	return &Error{Kind: KindFailed, Class: ClassFatal, Code: e.Code,
		Detail: "the worker died twice while it logged in: " + e.Detail, Remedy: remedyPIN}
}

// watch sends the canary until the worker ends or is not wanted any more.
func (k *Keeper) watch(ctx context.Context, p *process, epoch int) *Error {
	tick := time.NewTicker(k.timing.Check)
	defer tick.Stop()
	for {
		k.within(k.timing.Check)
		k.mu.Lock()
		now, changed := k.epoch, k.changed
		k.mu.Unlock()
		if now != epoch {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-p.dead:
			return p.reason()
		case <-changed:
		case <-tick.C:
			// The answer is handled where all answers are; a slot that is not
			// free means that real calls prove the same.
			if k.queue.tryTake(p) {
				go k.canary(p)
			}
		}
	}
}

func (k *Keeper) canary(p *process) {
	a, _, err := p.roundTrip(context.Background(), call{Op: opCheck}, nil, k.timing.Call)
	if err != nil || a.Info == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.status.Token = *a.Info
}
