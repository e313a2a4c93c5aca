package hsm

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"guardhouse/appliance/policy"
)

func TestFloodOfOneKindDoesNotStarveAnother(t *testing.T) {
	var q queue
	p := &process{}
	q.open(p, 1)
	flood, other := share{"hgs", opSign, policy.RoleAttestationSigner}, share{"hgs", opDecrypt, ""}
	order := make(chan string, 2*maxShare)
	var wg sync.WaitGroup
	wait := func(s share, name string) {
		before := q.waiting()
		wg.Go(func() {
			got, err := q.take(t.Context(), s, time.Minute)
			if err != nil || got != p {
				t.Errorf("%s: %v", name, err)
				return
			}
			order <- name
			q.give(p)
		})
		for q.waiting() == before {
			time.Sleep(50 * time.Microsecond)
		}
	}
	if _, err := q.take(t.Context(), flood, time.Second); err != nil {
		t.Fatal(err)
	}
	for range maxShare {
		wait(flood, "flood")
	}
	began := time.Now()
	if _, err := q.take(t.Context(), flood, time.Minute); !errors.Is(err, ErrBusy) || time.Since(began) > time.Second {
		t.Errorf("one too many: %v after %v", err, time.Since(began))
	}
	for range 3 {
		wait(other, "other")
	}
	q.give(p)
	wg.Wait()
	close(order)
	place, others := 0, 0
	for name := range order {
		place++
		if name == "other" {
			others++
			if place > 2*others {
				t.Errorf("call %d of the small share came as number %d", others, place)
			}
		}
	}
	if place != maxShare+3 || others != 3 || q.waiting() != 0 || q.free != 1 {
		t.Errorf("%d served, %d of the small share, %d wait, %d free", place, others, q.waiting(), q.free)
	}
}

func TestQueueKeepsCountWhenCallersGiveUp(t *testing.T) {
	var q queue
	p := &process{}
	q.open(p, 2)
	var wg sync.WaitGroup
	var busy, gone, served atomic.Int64
	for i := range 40 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%7)*time.Millisecond)
			defer cancel()
			for n := range 20 {
				got, err := q.take(ctx, share{op: []string{opSign, opDecrypt, opList}[n%3]}, time.Millisecond)
				switch {
				case err == nil:
					served.Add(1)
					time.Sleep(100 * time.Microsecond)
					q.give(got)
				case errors.Is(err, ErrBusy):
					busy.Add(1)
				default:
					gone.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if q.free != 2 || q.waiting() != 0 || len(q.turns) != 0 || len(q.lines) != 0 {
		t.Errorf("%d free, %d wait, %d turns", q.free, q.waiting(), len(q.turns))
	}
	t.Logf("%d served, %d busy, %d gone", served.Load(), busy.Load(), gone.Load())
}

// flag makes or removes a file that changes what the fake token does.
func (r *rig) flag(t *testing.T, file string, on bool, text string) {
	t.Helper()
	err := os.Remove(r.logins + file)
	if on {
		err = os.WriteFile(r.logins+file, []byte(text), 0o600)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

func (r *rig) awaitBreaker(t *testing.T, want Breaker) Status {
	t.Helper()
	for range 1000 {
		if s := r.Status(); s.Breaker == want {
			return s
		}
		time.Sleep(2 * time.Millisecond)
	}
	t.Fatalf("breaker %+v, want %s", r.Status(), want)
	return Status{}
}

func TestBreakerAnswersAtOnceAndClosesByItself(t *testing.T) {
	timing := quick
	timing.Call, timing.Grace, timing.MaxPause = 2*time.Second, 100*time.Millisecond, 20*time.Millisecond
	r := newRig(t, timing)
	if err := r.SetPIN([]byte(rightPIN)); err != nil {
		t.Fatal(err)
	}
	r.await(t, StateReady)
	r.flag(t, downFile, true, "")
	_, _ = sign(r, doDeviceError)
	waited := make(chan error)
	go func() { _, err := sign(r, doSign); waited <- err }() // one that came before the breaker opened
	s := r.awaitBreaker(t, BreakerOpen)
	if s.State != StateStarting || s.Last == nil || s.Last.Remedy == "" {
		t.Errorf("status %+v", s)
	}
	if err := <-waited; !errors.Is(err, ErrUnavailable) {
		t.Errorf("who waited when it opened: %v", err)
	}
	for range 50 {
		began := time.Now()
		_, err := sign(r, doSign)
		if e := AsError(err); e == nil || !e.Retryable() || e.Code != 0xe0 || time.Since(began) > timing.Call/2 {
			t.Fatalf("while open: %v after %v", err, time.Since(began))
		}
	}
	// The token opens again, but does not work yet: nobody is let in.
	r.flag(t, hangFile, true, "")
	r.flag(t, downFile, false, "")
	r.awaitBreaker(t, BreakerHalf)
	began := time.Now()
	if _, err := sign(r, doSign); !errors.Is(err, ErrUnavailable) || time.Since(began) > timing.Call/2 {
		t.Errorf("while half open: %v after %v", err, time.Since(began))
	}
	r.flag(t, hangFile, false, "")
	r.awaitBreaker(t, BreakerClosed)
	if _, err := sign(r, doSign); err != nil {
		t.Errorf("after it closed: %v", err)
	}
}

func TestLockedPINMendsWithoutACostlyTry(t *testing.T) {
	timing := quick
	timing.MaxPause = 10 * time.Millisecond
	r := newRig(t, timing)
	if err := r.SetPIN([]byte(rightPIN)); err != nil {
		t.Fatal(err)
	}
	r.await(t, StateReady)
	r.flag(t, lockedFile, true, "login")
	_, _ = sign(r, doDie)
	if s := r.await(t, StateFailed); s.Last.Code != codePINLocked || s.Last.Remedy == "" || s.Breaker != BreakerOpen {
		t.Errorf("status %+v", s)
	}
	if _, err := sign(r, doSign); !errors.Is(err, ErrFailed) {
		t.Errorf("while locked: %v", err)
	}
	time.Sleep(100 * time.Millisecond) // some looks
	if n := r.countLogins(); n != 1 {
		t.Errorf("%d logins at a locked token", n)
	}
	r.flag(t, lockedFile, false, "") // the security officer has reset it
	r.await(t, StateReady)
	if _, err := sign(r, doSign); err != nil {
		t.Error(err)
	}
}

func TestOtherTokenUnderTheSameNameNeverSeesThePIN(t *testing.T) {
	timing := quick
	timing.MaxPause = 10 * time.Millisecond
	r := newRig(t, timing)
	if err := r.SetPIN([]byte(rightPIN)); err != nil {
		t.Fatal(err)
	}
	r.await(t, StateReady)
	r.flag(t, serialFile, true, "2")
	_, _ = sign(r, doDie)
	r.awaitBreaker(t, BreakerOpen)
	if n := r.countLogins(); n != 1 {
		t.Errorf("%d logins; the second was at another token", n)
	}
	r.flag(t, serialFile, false, "")
	r.await(t, StateReady)
	r.flag(t, serialFile, true, "2")
	_, _ = sign(r, doDie)
	r.await(t, StateStarting)
	r.Retry(false) // a person says that it is the new one
	if s := r.await(t, StateReady); s.Token.Serial != "2" {
		t.Errorf("after retry: %+v", s.Token)
	}
}
