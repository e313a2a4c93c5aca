package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"time"

	"guardhouse/appliance/hsm"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// tested is the part of the keeper that a test of keys needs.
type tested interface {
	Keys(ctx context.Context) ([]hsm.Key, error)
	Sign(ctx context.Context, r hsm.SignRequest) ([]byte, error)
	Decrypt(ctx context.Context, ref policy.KeyRef, ciphertext []byte, p hsm.OAEP) ([]byte, error)
}

// maxSPKI bounds a recorded public key in bytes: RSA-8192 has about 1100.
const maxSPKI = 4096

// selfTest answers hsm.Test: one result for each key, in the order asked. The
// token is listed afresh, keys are found by their public key alone, and each is
// used once as its role will use it; what it did is checked here against the
// recorded public key. A token that does not answer is a finding on every key
// not yet tested, so that nobody takes silence for a pass. Only a request that
// contradicts itself is an error.
func selfTest(ctx context.Context, token tested, r rpc.HSMTestRequest, random io.Reader) ([]rpc.HSMTestResult, error) {
	if len(r.Keys) > policy.MaxKeys {
		return nil, rpc.ErrRefused.With("a test takes at most %d keys", policy.MaxKeys)
	}
	public := make([]*rsa.PublicKey, len(r.Keys))
	for i, k := range r.Keys {
		pub, err := recordedKey(k)
		if err != nil {
			return nil, err
		}
		public[i] = pub
	}
	results := make([]rpc.HSMTestResult, 0, len(r.Keys))
	held, silent := token.Keys(ctx)
	for i, k := range r.Keys {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		t := keyTest{token: token, random: random, key: k, pub: public[i], result: rpc.HSMTestResult{Ref: k.Ref, Role: k.Role}}
		if silent == nil {
			silent = t.run(ctx, held)
		}
		if silent != nil {
			t.unreachable(silent)
		}
		t.result.OK = len(t.result.Problems) == 0
		results = append(results, t.result)
	}
	return results, nil
}

// recordedKey checks that a request agrees with itself.
func recordedKey(k rpc.HSMTestKey) (*rsa.PublicKey, error) {
	if !hsm.KnownRole(k.Role) || len(k.SPKI) > maxSPKI || policy.RefOf(k.SPKI) != k.Ref {
		return nil, rpc.ErrRefused.With("a key to test needs a role, and the public key that its reference names")
	}
	pub, err := x509.ParsePKIXPublicKey(k.SPKI)
	if rsaKey, ok := pub.(*rsa.PublicKey); err == nil && ok {
		return rsaKey, nil
	}
	return nil, rpc.ErrRefused.With("only RSA keys can be tested")
}

// keyTest is the test of one key.
type keyTest struct {
	token  tested
	random io.Reader
	key    rpc.HSMTestKey
	pub    *rsa.PublicKey
	result rpc.HSMTestResult
}

func (t *keyTest) add(kind, remedy, format string, args ...any) {
	name := string(t.key.Ref[:16])
	if t.key.Label != "" {
		name += " (" + t.key.Label + ")"
	}
	t.result.Problems = append(t.result.Problems, policy.Problem{Kind: kind, Remedy: remedy,
		What: fmt.Sprintf("%s key %s: ", t.key.Role, name) + fmt.Sprintf(format, args...)})
}

func (t *keyTest) unreachable(err error) {
	t.add(rpc.KeyUnreachable, "see hsm status on this node, then test again", "not tested: %v", err)
}

// run looks for the key among those the token holds, judges its attributes and
// uses it. An error means that the token did not answer.
func (t *keyTest) run(ctx context.Context, held []hsm.Key) error {
	var found *hsm.Key
	namesake := ""
	for _, k := range held {
		switch {
		case bytes.Equal(k.SPKI, t.key.SPKI):
			found = &k
		case t.key.Label != "" && k.Label == t.key.Label:
			namesake = string(k.Ref[:min(16, len(k.Ref))])
		}
	}
	if found == nil {
		const remedy = "bring the key to this node's token (clone, or restore from the HSM's backup: private key and public key with one CKA_ID), then key test"
		if namesake != "" {
			t.add(rpc.KeyOtherLabel, remedy, "the token does not hold it; under its label lies another key, %s", namesake)
		} else {
			t.add(rpc.KeyMissing, remedy, "the token does not hold it")
		}
		return nil
	}
	described := toRPC(*found)
	t.result.Token = &described
	// A software key came out of a file: everything that shows it says so, and that is no reason against its use.
	if found.Store == policy.StoreSoftware {
		return t.timed(ctx)
	}
	if !found.Sensitive || found.Extractable || !found.NeverExtractable {
		t.add(rpc.KeyExtractable, "make a new pair with key new and retire this one",
			"the private key can leave the token or once could (sensitive %v, extractable %v, never extractable %v)", found.Sensitive, found.Extractable, found.NeverExtractable)
	}
	if why := unusable(*found, t.key.Role); why != "" {
		t.add(rpc.KeyNoUse, "set the attribute with the vendor's tool if it allows that, or make a new pair with key new", "%s", why)
		return nil
	}
	return t.timed(ctx)
}

// timed uses the key and notes how long that took.
func (t *keyTest) timed(ctx context.Context) error {
	began := time.Now()
	err := t.use(ctx)
	t.result.Took = time.Since(began)
	return err
}

// unusable tells why a key may not do what its role needs; empty where it may.
func unusable(k hsm.Key, role policy.KeyRole) string {
	switch {
	case k.Role != "" && k.Role != role:
		return fmt.Sprintf("its label says that it is a %s key", k.Role)
	case hsm.Decrypts(role) && !k.MayDecrypt():
		return "its attributes forbid decryption (CKA_DECRYPT is false)"
	case !hsm.Decrypts(role) && !k.MaySign():
		return "its attributes forbid signatures (CKA_SIGN is false)"
	}
	return ""
}

// use has the key do its work once and checks what came of it.
func (t *keyTest) use(ctx context.Context) error {
	challenge := make([]byte, 32)
	if _, err := io.ReadFull(t.random, challenge); err != nil {
		return fmt.Errorf("challenge: %w", err)
	}
	var err error
	good := false
	if hsm.Decrypts(t.key.Role) {
		var ct, plain []byte
		if ct, err = rsa.EncryptOAEP(sha256.New(), t.random, t.pub, challenge, nil); err == nil {
			plain, err = t.token.Decrypt(ctx, t.key.Ref, ct, hsm.OAEP{Hash: crypto.SHA256, MGF: crypto.SHA256})
			good = err == nil && subtle.ConstantTimeCompare(plain, challenge) == 1
			clear(plain)
		}
	} else {
		var sig []byte
		digest := sha256.Sum256(challenge)
		sig, err = t.token.Sign(ctx, hsm.SignRequest{Ref: t.key.Ref, Role: t.key.Role, Digest: digest[:], Hash: crypto.SHA256, Scheme: hsm.PKCS1v15})
		good = err == nil && rsa.VerifyPKCS1v15(t.pub, crypto.SHA256, digest[:], sig) == nil
	}
	const remedy = "see the HSM's own log for why it refuses this mechanism or key; else make a new pair with key new"
	switch e, ours := errors.AsType[*hsm.Error](err); {
	case good:
		return nil
	case err == nil:
		t.add(rpc.KeyUseFailed, remedy, "the token's answer is wrong: it does not belong to the recorded public key")
		return nil
	case ours && (e.Kind == hsm.KindDecrypt || e.Kind == hsm.KindNoKey || e.Kind == hsm.KindUsage || e.Kind == hsm.KindRequest):
		t.add(rpc.KeyUseFailed, remedy, "a %s failed: %s", operation(t.key.Role), e.What())
		return nil
	default:
		return err
	}
}

func operation(role policy.KeyRole) string {
	if hsm.Decrypts(role) {
		return "decryption"
	}
	return "signature"
}
