package hsm

import (
	"context"
	"crypto"
	"time"

	"guardhouse/appliance/policy"
)

// Keys lists the RSA key pairs of the token with their attributes.
func (k *Keeper) Keys(ctx context.Context) ([]Key, error) {
	a, _, err := k.call(ctx, call{Op: opList}, nil, k.timing.Call)
	return a.Keys, err
}

// Generate makes a key pair for role with 2048, 3072 or 4096 bits. If the call
// fails as unavailable the key may exist all the same; Keys shows it.
func (k *Keeper) Generate(ctx context.Context, role policy.KeyRole, bits int) (Key, error) {
	a, _, err := k.call(ctx, call{Op: opGenerate, Role: role, Bits: bits}, nil, k.timing.Generate)
	if err != nil {
		return Key{}, err
	}
	if len(a.Keys) != 1 {
		return Key{}, &Error{Kind: KindUnavailable, Class: ClassModule, Detail: "the worker broke the protocol"}
	}
	return a.Keys[0], nil
}

// Sign makes one signature. Safe to repeat.
func (k *Keeper) Sign(ctx context.Context, r SignRequest) ([]byte, error) {
	if len(r.Digest) > crypto.SHA512.Size() {
		return nil, badRequest("a digest has at most %d bytes", crypto.SHA512.Size())
	}
	_, sig, err := k.call(ctx, call{Op: opSign, Ref: r.Ref, Role: r.Role, Hash: r.Hash, Scheme: r.Scheme}, r.Digest, k.timing.Call)
	return sig, err
}

// Decrypt opens an RSA-OAEP ciphertext. Whatever is wrong with it gives
// ErrDecrypt. The caller wipes the answer. Safe to repeat.
func (k *Keeper) Decrypt(ctx context.Context, ref policy.KeyRef, ciphertext []byte, p OAEP) ([]byte, error) {
	if len(ciphertext) > 1024 { // RSA-8192
		return nil, ErrDecrypt
	}
	if !p.Valid() {
		return nil, badRequest("OAEP is offered with SHA-1, SHA-256, SHA-384 and SHA-512")
	}
	_, plain, err := k.call(ctx, call{Op: opDecrypt, Ref: ref, OAEP: &p}, ciphertext, k.timing.Call)
	return plain, err
}

// call waits for a ready worker and a free slot, for at most timing.Call, and
// then for the answer, for at most limit.
func (k *Keeper) call(ctx context.Context, c call, body []byte, limit time.Duration) (answer, []byte, error) {
	p, err := k.worker(ctx)
	if err != nil {
		return answer{}, nil, err
	}
	return p.roundTrip(ctx, c, body, limit)
}

// worker gives a ready worker with a slot taken. It waits across restarts, so
// that a short one is seen by callers as a slow call only.
func (k *Keeper) worker(ctx context.Context) (*process, error) {
	k.mu.Lock()
	if k.waiting >= maxQueue {
		k.mu.Unlock()
		return nil, &Error{Kind: KindBusy, Detail: "too many calls wait for the token", Remedy: "try again"}
	}
	k.waiting++
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		k.waiting--
		k.mu.Unlock()
	}()
	wait, cancel := context.WithTimeout(ctx, k.timing.Call)
	defer cancel()
	for {
		k.mu.Lock()
		p, changed, s := k.current, k.changed, k.status
		k.mu.Unlock()
		switch {
		case p != nil:
			err := p.acquire(wait)
			if err == nil {
				return p, nil
			}
			if !isContext(err) {
				// The worker died: wait for the next one, which is announced by changed.
				select {
				case <-changed:
				case <-wait.Done():
				}
				continue
			}
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, &Error{Kind: KindBusy, Detail: "the token is busy", Remedy: "try again"}
		case s.State == StateLocked:
			return nil, &Error{Kind: KindLocked, Remedy: "finish setup: module, token and PIN are missing"}
		case s.State == StateFailed:
			e := *s.Last
			e.Kind = KindFailed
			return nil, &e
		}
		select {
		case <-changed:
		case <-wait.Done():
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			e := &Error{Kind: KindUnavailable, Class: ClassModule, Detail: "the token is away", Remedy: remedyLink}
			if s.Last != nil {
				e.Class, e.Code, e.Detail = s.Last.Class, s.Last.Code, "the token is away: "+s.Last.Detail
			}
			return nil, e
		}
	}
}
