package hsm

import (
	"context"
	"crypto/subtle"
	"fmt"
	"os/exec"
	"sync"
	"time"
)

// State is where the keeper stands.
type State string

// The states of a keeper.
const (
	StateLocked   State = "locked"   // waits for a module or a PIN
	StateStarting State = "starting" // a worker opens the token, or waits for its next try
	StateReady    State = "ready"    // calls are served
	StateFailed   State = "failed"   // a person must act; a new PIN or configuration starts over
)

// Status is what a console shows about the token.
type Status struct {
	State    State     `json:"state"`
	Module   string    `json:"module,omitempty"`
	Token    TokenInfo `json:"token"`
	Restarts int       `json:"restarts"` // workers started after the first one
	Breaker  Breaker   `json:"breaker"`
	Waiting  int       `json:"waiting"`         // calls in the queue
	Last     *Error    `json:"last,omitempty"`  // the newest failure of token or worker
	Since    time.Time `json:"since,omitempty"` // of State, by the monotonic clock
}

// Timing bounds everything the keeper waits for. A zero field takes the default.
type Timing struct {
	Call     time.Duration // one signature or decryption; default 5 s
	Generate time.Duration // one key pair; default 60 s
	Open     time.Duration // load, login and first listing; default 20 s
	Check    time.Duration // between two canaries; default 5 s
	Pause    time.Duration // before the first restart, doubled up to MaxPause; default 50 ms
	MaxPause time.Duration // default 1 s
	Grace    time.Duration // how long calls wait for a lost token before the breaker opens; default 2 s
	Reopen   time.Duration // least limit of a later opening, see openLimit; default 3 s
}

func (t Timing) withDefaults() Timing {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&t.Call, 5*time.Second)
	set(&t.Generate, time.Minute)
	set(&t.Open, 20*time.Second)
	set(&t.Check, 5*time.Second)
	set(&t.Pause, 50*time.Millisecond)
	set(&t.MaxPause, time.Second)
	set(&t.Grace, 2*time.Second)
	set(&t.Reopen, 3*time.Second)
	return t
}

// maxLoginDeaths bounds how many workers in a row may die between showing a PIN
// that never worked and hearing the token's answer: each may have cost a try.
const maxLoginDeaths = 2

// Keeper holds the PIN and runs the worker. Make one with NewKeeper, run Run,
// and give it a module and a PIN in any order. All methods may be called from
// any goroutine at any time.
type Keeper struct {
	command func() *exec.Cmd
	timing  Timing
	log     func(format string, args ...any)

	mu      sync.Mutex
	cfg     ModuleConfig
	env     []string
	pin     *Secret
	proven  bool          // the PIN has worked with this module
	serial  string        // of the token with which it worked: another one is not shown the PIN
	opened  time.Duration // how long the last opening took
	deaths  int           // workers that died while showing a PIN that is not proven
	epoch   int           // counts new modules and PINs
	failed  int           // the epoch that ended in StateFailed
	status  Status
	changed chan struct{} // closed and replaced at every change of the fields above or of current
	current *process      // non-nil while ready
	abandon func()        // ends the opening under way, because module or PIN changed
	outage  int           // counts losses and returns of the token, see patience
	beat    time.Time     // by when the loop must have moved on

	queue queue
}

// NewKeeper makes a keeper. command gives a fresh command that ends up in Serve
// with the keeper's sockets and the PIN's pipe on the descriptors from 3 on; the
// keeper appends the module's environment to cmd.Env. log gets one line for each
// change; it never gets a secret.
func NewKeeper(command func() *exec.Cmd, timing Timing, log func(format string, args ...any)) *Keeper {
	k := &Keeper{command: command, timing: timing.withDefaults(), log: log, changed: make(chan struct{}), failed: -1,
		status: Status{State: StateLocked, Since: time.Now()}, beat: time.Now().Add(beatMargin)}
	k.trip()
	return k
}

// notify wakes everybody who waits for a change. k.mu is held.
func (k *Keeper) notify() {
	close(k.changed)
	k.changed = make(chan struct{})
}

// Configure names the module, its token and the environment it needs. A change
// replaces the worker; the same values again change nothing.
func (k *Keeper) Configure(c ModuleConfig, env []string) error {
	if err := c.Valid(); err != nil {
		return err
	}
	if c.Sessions == 0 {
		c.Sessions = 4
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.sameConfig(c) && fmt.Sprint(k.env) == fmt.Sprint(env) {
		return nil
	}
	k.cfg, k.env = c, append([]string(nil), env...)
	k.distrust()
	k.startOver()
	return nil
}

// distrust forgets what made the next login safe. k.mu is held.
func (k *Keeper) distrust() { k.proven, k.deaths, k.serial, k.opened = false, 0, "", 0 }

// sameConfig ignores a confirmed last try, which belongs to one login.
func (k *Keeper) sameConfig(c ModuleConfig) bool {
	held := k.cfg
	held.LastTry = c.LastTry
	return held == c
}

// SetPIN takes over the PIN: pin is wiped in any case. A PIN that differs from
// the one held starts over. The same PIN again changes nothing, least of all a
// failure: it may be a PIN that the token refused.
func (k *Keeper) SetPIN(pin []byte) error { return k.Unlock(pin, false) }

// Unlock is SetPIN for a PIN that a person typed. lastTry confirms that it may
// be shown to a token that one more wrong PIN locks, and has the same PIN tried
// again.
func (k *Keeper) Unlock(pin []byte, lastTry bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	same := subtle.ConstantTimeCompare(pin, k.pin.Bytes()) == 1
	s, err := NewSecret(pin)
	if err != nil {
		return err
	}
	if same && !(lastTry && k.status.State == StateFailed) {
		s.Wipe()
		return nil
	}
	k.pin.Wipe()
	k.pin, k.cfg.LastTry = s, lastTry
	k.distrust()
	k.startOver()
	return nil
}

// Retry starts over with the module and PIN at hand, because a person asks for
// it: after a failure, or to take another token under the same name for ours. A
// wrong PIN costs one more of the token's tries. lastTry confirms a login that
// may lock the token. While the token is ready, or nothing is configured, there
// is nothing to try.
func (k *Keeper) Retry(lastTry bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.status.State != StateFailed && k.status.State != StateStarting {
		return
	}
	k.cfg.LastTry = lastTry
	k.distrust()
	k.startOver()
}

// Lock wipes the PIN and ends the worker.
func (k *Keeper) Lock() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pin.Wipe()
	k.pin = nil
	k.distrust()
	k.startOver()
}

// Status gives a copy of the present state.
func (k *Keeper) Status() Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.status
	s.Module, s.Waiting = k.cfg.Module, k.queue.waiting()
	return s
}

// beatMargin is how late the loop may be before Alive complains.
const beatMargin = 5 * time.Second

// Alive reports a keeper whose own loop is stuck; a dead token is no reason.
// It is the self-check behind WATCHDOG=1.
func (k *Keeper) Alive() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if late := time.Since(k.beat); late > 0 {
		return fmt.Errorf("hsm: the keeper's loop is %v late", late.Round(time.Millisecond))
	}
	return nil
}

// within promises that the loop calls within again before d has passed.
func (k *Keeper) within(d time.Duration) {
	k.mu.Lock()
	k.beat = time.Now().Add(d + beatMargin)
	k.mu.Unlock()
}

// startOver makes the loop take up a new module or PIN. The state changes here,
// not when the loop gets to it: a caller that comes right after waits instead of
// hearing that there is no PIN. k.mu is held.
func (k *Keeper) startOver() {
	k.epoch++
	if k.abandon != nil {
		k.abandon()
	}
	s := StateLocked
	if k.cfg.Module != "" && k.pin.Bytes() != nil {
		s = StateStarting
	}
	if k.status.State != s {
		k.status.State, k.status.Since = s, time.Now()
	}
	if s == StateStarting {
		k.admit()
	} else {
		k.settle()
	}
	k.notify()
}

// set changes the state and, when e is not nil, the last failure, unless module
// or PIN changed meanwhile.
func (k *Keeper) set(epoch int, s State, e *Error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.epoch != epoch {
		return
	}
	if k.status.State != s {
		k.status.State, k.status.Since = s, time.Now()
	}
	if e != nil {
		k.status.Last = e
	}
	k.settle()
	k.notify()
}

// Run keeps a worker alive until ctx ends; then it ends the worker and wipes
// the PIN. It returns nil. Run it once.
func (k *Keeper) Run(ctx context.Context) error {
	defer k.Lock()
	pause, first := k.timing.Pause, true
	for ctx.Err() == nil {
		epoch, ok := k.waitConfigured(ctx)
		if !ok {
			break
		}
		if !first {
			k.mu.Lock()
			k.status.Restarts++
			k.mu.Unlock()
		}
		first = false
		ready, e := k.session(ctx, epoch)
		if e == nil { // ctx ended, or module or PIN changed
			pause = k.timing.Pause
			continue
		}
		if ready > 2*k.timing.MaxPause {
			pause = k.timing.Pause
		}
		if e.Class == ClassFatal {
			k.fail(epoch, e)
			if k.mends(e) {
				k.sleep(ctx, k.timing.MaxPause, epoch)
				k.again(epoch)
			}
			continue
		}
		k.log("token lost: %v; next try in %v", e, pause)
		k.set(epoch, StateStarting, e)
		k.sleep(ctx, pause, epoch)
		pause = min(2*pause, k.timing.MaxPause)
	}
	return nil
}

// fail stops until a person acts, unless somebody has done so meanwhile.
func (k *Keeper) fail(epoch int, e *Error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.epoch != epoch {
		return
	}
	k.failed, k.cfg.LastTry = epoch, false
	if k.status.State != StateFailed {
		k.status.State, k.status.Since = StateFailed, time.Now()
		k.log("token stopped: %v", e)
	}
	k.status.Last = e
	k.settle()
	k.notify()
}

// mends tells whether a stopped token is looked at again without a person: a
// token says that its PIN is locked before it is shown one, so asking it costs
// no try, and the PIN that it took before is the right one after the security
// officer reset it.
func (k *Keeper) mends(e *Error) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return e.Code == codePINLocked && k.proven
}

// again makes the loop try a failed epoch once more; the state stays until it
// is known how that ends.
func (k *Keeper) again(epoch int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.epoch == epoch && k.failed == epoch {
		k.failed = -1
	}
}

// waitConfigured returns once there is a module and a PIN that have not failed.
func (k *Keeper) waitConfigured(ctx context.Context) (epoch int, ok bool) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		k.within(time.Second)
		k.mu.Lock()
		have := k.cfg.Module != "" && k.pin.Bytes() != nil && k.epoch != k.failed
		epoch, changed := k.epoch, k.changed
		k.mu.Unlock()
		if have {
			return epoch, true
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return 0, false
		}
	}
}

// sleep waits for d, or until ctx ends or the configuration changes.
func (k *Keeper) sleep(ctx context.Context, d time.Duration, epoch int) {
	k.within(d)
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		k.mu.Lock()
		now, changed := k.epoch, k.changed
		k.mu.Unlock()
		if now != epoch {
			return
		}
		select {
		case <-changed:
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}
