package token

import (
	"errors"

	"github.com/miekg/pkcs11"

	"guardhouse/appliance/hsm"
)

func (t *Token) openSession() (pkcs11.SessionHandle, error) {
	return t.p.OpenSession(t.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
}

// withSession lends f a session of ours. A session on which anything failed is
// closed, never lent again: an operation may still be active on it. The number
// of sessions is bounded by the keeper, which sends only so many calls.
func (t *Token) withSession(f func(pkcs11.SessionHandle) error) error {
	var s pkcs11.SessionHandle
	select {
	case s = <-t.idle:
	default:
		var err error
		if s, err = t.openSession(); err != nil {
			return fail("open session", err)
		}
	}
	if err := f(s); err != nil {
		_ = t.p.CloseSession(s)
		return err
	}
	select {
	case t.idle <- s:
	default:
		_ = t.p.CloseSession(s)
	}
	return nil
}

func (t *Token) dropIdle() {
	for {
		select {
		case s := <-t.idle:
			_ = t.p.CloseSession(s)
		default:
			return
		}
	}
}

// withRetry runs f, and once more on new sessions when f's failure was of class
// retry-session.
func (t *Token) withRetry(f func() error) error {
	t.mu.RLock()
	epoch := t.epoch
	t.mu.RUnlock()
	err := f()
	e, ok := errors.AsType[*hsm.Error](err)
	if !ok || e.Class != hsm.ClassSession {
		return err
	}
	if err := t.renew(epoch); err != nil {
		return err
	}
	err = f()
	if e, ok := errors.AsType[*hsm.Error](err); ok && e.Class == hsm.ClassSession {
		again := *e // new sessions did not help: that is the module's illness
		again.Class = hsm.ClassModule
		return &again
	}
	return err
}

// renew replaces every session: ours, and crypto11's by a new context on the
// same loaded module, because crypto11 puts a dead session back into its pool.
// It works only while the token still counts this process as logged in: the
// PIN is gone. Callers that met the same death share one renewal.
func (t *Token) renew(epoch int) error {
	t.refresh.Lock()
	defer t.refresh.Unlock()
	t.mu.RLock()
	now := t.epoch
	t.mu.RUnlock()
	if now != epoch {
		return nil
	}
	t.dropIdle()
	session, err := t.openSession()
	if err != nil {
		return fail("open session", err)
	}
	if err := t.loggedIn(session); err != nil {
		return err
	}
	ctx, err := t.configure()
	if err != nil {
		return err
	}
	t.mu.Lock()
	oldCtx, oldLogin := t.c11, t.login
	t.c11, t.login = ctx, session
	t.epoch++
	t.mu.Unlock()
	_ = t.p.CloseSession(oldLogin)
	go oldCtx.Close() // waits for calls that still run on it; the module stays, the new context counts
	_, err = t.List()
	return err
}
