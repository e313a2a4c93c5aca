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
	if !KnownRole(role) {
		return Key{}, badRequest("no such role")
	}
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
	if r.Role != "" && !KnownRole(r.Role) {
		return nil, badRequest("no such role")
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
// then for the answer, for at most limit. It waits across restarts of the worker,
// so that a short one is seen by callers as a slow call only; while the breaker
// is open it does not wait at all.
func (k *Keeper) call(ctx context.Context, c call, body []byte, limit time.Duration) (answer, []byte, error) {
	patience := time.Now().Add(k.timing.Call)
	for {
		p, err := k.queue.take(ctx, shareOf(ctx, c), time.Until(patience))
		if err != nil {
			return answer{}, nil, err
		}
		a, out, err := p.roundTrip(ctx, c, body, limit)
		if err != error(errGone) {
			return a, out, err
		}
	}
}
