package hsm

import (
	"context"
	"errors"

	"guardhouse/appliance/policy"
)

// Keyring leads each call to where its key lies: to the software worker for a software key, else to the token. A key is known by its
// public key, so the two never mix.
type Keyring struct {
	Token    *Keeper
	Software *Software
}

// Keys lists the keys of the token, then the software keys.
func (r Keyring) Keys(ctx context.Context) ([]Key, error) {
	list, err := r.Token.Keys(ctx)
	if err != nil {
		return list, err
	}
	soft, err := r.Software.keys(ctx)
	return append(list, soft...), err
}

// Generate makes a pair in the token.
func (r Keyring) Generate(ctx context.Context, role policy.KeyRole, bits int) (Key, error) {
	return r.Token.Generate(ctx, role, bits)
}

// Destroy is Keeper.Destroy: software keys are wiped where they are sealed, not here.
func (r Keyring) Destroy(ctx context.Context, q DestroyRequest) (int, error) {
	return r.Token.Destroy(ctx, q)
}

// Sign is Keeper.Sign for either kind of key.
func (r Keyring) Sign(ctx context.Context, q SignRequest) ([]byte, error) {
	if held, _ := r.Software.holds(q.Ref); held {
		_, sig, err := r.Software.call(ctx, call{Op: opSign, Ref: q.Ref, Role: q.Role, Hash: q.Hash, Scheme: q.Scheme}, q.Digest)
		return sig, err
	}
	sig, err := r.Token.Sign(ctx, q)
	return sig, r.unsure(q.Ref, err)
}

// Decrypt is Keeper.Decrypt for either kind of key.
func (r Keyring) Decrypt(ctx context.Context, ref policy.KeyRef, ciphertext []byte, p OAEP) ([]byte, error) {
	if held, _ := r.Software.holds(ref); held {
		if len(ciphertext) > 1024 { // RSA-8192
			return nil, ErrDecrypt
		}
		_, plain, err := r.Software.call(ctx, call{Op: opDecrypt, Ref: ref, OAEP: &p}, ciphertext)
		return plain, err
	}
	plain, err := r.Token.Decrypt(ctx, ref, ciphertext, p)
	return plain, r.unsure(ref, err)
}

// Request is Keeper.Request for either kind of key.
func (r Keyring) Request(ctx context.Context, ref policy.KeyRef, info []byte) ([]byte, error) {
	if held, _ := r.Software.holds(ref); held {
		_, sig, err := r.Software.call(ctx, call{Op: opRequest, Ref: ref}, info)
		return sig, err
	}
	sig, err := r.Token.Request(ctx, ref, info)
	return sig, r.unsure(ref, err)
}

// unsure makes "no such key" retryable until the software keys were fetched once: it may be one of them.
func (r Keyring) unsure(ref policy.KeyRef, err error) error {
	if held, known := r.Software.holds(ref); errors.Is(err, ErrNoKey) && (!known || held) {
		return &Error{Kind: KindUnavailable, Detail: "the software keys are not loaded yet", Remedy: "try again"}
	}
	return err
}
