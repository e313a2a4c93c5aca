package token

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"io"
	"math/big"

	"github.com/miekg/pkcs11"

	"guardhouse/appliance/hsm"
	"guardhouse/appliance/policy"
)

// hashes are the digests offered, with their PKCS#11 names.
var hashes = map[crypto.Hash]struct{ mech, mgf uint }{
	crypto.SHA1:   {pkcs11.CKM_SHA_1, pkcs11.CKG_MGF1_SHA1},
	crypto.SHA256: {pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256},
	crypto.SHA384: {pkcs11.CKM_SHA384, pkcs11.CKG_MGF1_SHA384},
	crypto.SHA512: {pkcs11.CKM_SHA512, pkcs11.CKG_MGF1_SHA512},
}

// key finds a key by reference; it reads the token again once when the key is
// not known, because another node may have made it.
func (t *Token) key(ref policy.KeyRef) (*pair, error) {
	for range 2 {
		t.mu.RLock()
		k := t.keys[ref]
		t.mu.RUnlock()
		if k != nil {
			return k, nil
		}
		if len(ref) != 64 {
			break
		}
		if _, err := t.List(); err != nil {
			return nil, err
		}
	}
	return nil, &hsm.Error{Kind: hsm.KindNoKey, Remedy: "list the token's keys; the node's settings name a key that this token does not hold"}
}

// Sign makes one signature. Keys that decrypt are refused.
func (t *Token) Sign(r hsm.SignRequest) (sig []byte, err error) {
	if _, ok := hashes[r.Hash]; !ok || r.Hash == crypto.SHA1 || len(r.Digest) != r.Hash.Size() {
		return nil, &hsm.Error{Kind: hsm.KindRequest, Detail: "a signature needs a SHA-2 digest of the right length"}
	}
	err = t.withRetry(func() error {
		k, err := t.key(r.Ref)
		if err != nil {
			return err
		}
		if !k.MaySign() || (r.Role != "" && k.Role != "" && r.Role != k.Role) {
			return &hsm.Error{Kind: hsm.KindUsage, Detail: "the key's role does not allow this signature"}
		}
		sig, err = sign(k, r.Digest, r.Hash, r.Scheme)
		return err
	})
	return sig, err
}

func sign(k *pair, digest []byte, hash crypto.Hash, scheme hsm.Scheme) ([]byte, error) {
	var opts crypto.SignerOpts
	switch scheme {
	case hsm.PKCS1v15:
		opts = hash
	case hsm.PSS:
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
	default:
		return nil, &hsm.Error{Kind: hsm.KindRequest, Detail: "no such signature scheme"}
	}
	sig, err := k.signer.Sign(nil, digest, opts)
	return sig, fail("sign", err)
}

// errWrongSignature is a token that computes wrongly, or a private key that
// does not belong to its public one.
var errWrongSignature = &hsm.Error{Kind: hsm.KindUnavailable, Class: hsm.ClassModule, Detail: "the token returned a wrong signature",
	Remedy: "key test names the key; if all fail, the HSM is sick"}

// prove makes one signature over a fresh challenge and verifies it.
func (t *Token) prove(k *pair) error {
	var challenge [32]byte
	if _, err := io.ReadFull(t.rand, challenge[:]); err != nil {
		return fail("challenge", err)
	}
	digest := sha256.Sum256(challenge[:])
	sig, err := sign(k, digest[:], crypto.SHA256, hsm.PKCS1v15)
	if err != nil {
		return err
	}
	if rsa.VerifyPKCS1v15(k.pub, crypto.SHA256, digest[:], sig) != nil {
		return errWrongSignature
	}
	return nil
}

// Decrypt opens an RSA-OAEP ciphertext with the key named ref. Whatever is
// wrong with ciphertext or label gives hsm.ErrDecrypt. The caller wipes the
// answer.
func (t *Token) Decrypt(ref policy.KeyRef, ciphertext []byte, p hsm.OAEP) (plain []byte, err error) {
	if !p.Valid() {
		return nil, &hsm.Error{Kind: hsm.KindRequest, Detail: "OAEP is offered with SHA-1, SHA-256, SHA-384 and SHA-512"}
	}
	err = t.withRetry(func() error {
		k, err := t.key(ref)
		if err != nil {
			return err
		}
		if !k.MayDecrypt() {
			return &hsm.Error{Kind: hsm.KindUsage, Detail: "this key does not decrypt"}
		}
		// Both are public facts about the ciphertext.
		if len(ciphertext) != k.pub.Size() || new(big.Int).SetBytes(ciphertext).Cmp(k.pub.N) >= 0 {
			return hsm.ErrDecrypt
		}
		how, err := t.modeFor(k, mode{p.Hash, p.MGF, len(p.Label) > 0})
		if err != nil {
			return err
		}
		if how == hsm.OAEPToken {
			plain, err = t.decryptToken(k, ciphertext, p)
		} else {
			plain, err = t.decryptRaw(k, ciphertext, p)
		}
		return err
	})
	return plain, err
}

// decryptToken lets the token decode.
func (t *Token) decryptToken(k *pair, ciphertext []byte, p hsm.OAEP) ([]byte, error) {
	params := pkcs11.NewOAEPParams(hashes[p.Hash].mech, hashes[p.MGF].mgf, pkcs11.CKZ_DATA_SPECIFIED, p.Label)
	return t.private(k, pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_OAEP, params), ciphertext)
}

// decryptRaw decodes here what the token's raw private operation gives.
func (t *Token) decryptRaw(k *pair, ciphertext []byte, p hsm.OAEP) ([]byte, error) {
	em, err := t.private(k, pkcs11.NewMechanism(pkcs11.CKM_RSA_X_509, nil), ciphertext)
	if err != nil {
		return nil, err
	}
	size := k.pub.Size()
	if len(em) > size {
		clear(em)
		return nil, hsm.ErrDecrypt
	}
	if len(em) < size { // a token that strips leading zeros, against section 2.1.4 of the mechanisms
		padded := make([]byte, size)
		copy(padded[size-len(em):], em)
		clear(em)
		em = padded
	}
	return hsm.DecodeOAEP(em, p)
}

// private runs one C_Decrypt. What C_DecryptInit says is about key and
// mechanism. What C_Decrypt says may be about the ciphertext, and some tokens
// use CKR_GENERAL_ERROR for that, so the session is asked whether it is alive
// before the ciphertext is blamed.
func (t *Token) private(k *pair, m *pkcs11.Mechanism, ciphertext []byte) (plain []byte, err error) {
	err = t.withSession(func(s pkcs11.SessionHandle) error {
		if err := t.p.DecryptInit(s, []*pkcs11.Mechanism{m}, k.handle); err != nil {
			return fail("decrypt", err)
		}
		var err error
		if plain, err = t.p.Decrypt(s, ciphertext); err == nil {
			return nil
		}
		t.refused.Add(1)
		code, ok := errors.AsType[pkcs11.Error](err)
		if !ok {
			return fail("decrypt", err)
		}
		switch code {
		case pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED:
			if err := t.loggedIn(s); err != nil {
				return err
			}
			return hsm.ErrDecrypt
		case pkcs11.CKR_ENCRYPTED_DATA_INVALID, pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE, pkcs11.CKR_DATA_INVALID, pkcs11.CKR_DATA_LEN_RANGE:
			return hsm.ErrDecrypt
		}
		return fail("decrypt", err)
	})
	return plain, err
}

// mode is one way of OAEP that a token may or may not do itself.
type mode struct {
	hash, mgf crypto.Hash
	labelled  bool
}

// profileP1 is what key protectors use (kps.md section 15).
var profileP1 = mode{crypto.SHA256, crypto.SHA256, false}

// modeFor tells who decodes m, and finds out by a round trip with k the first
// time: what a token claims in its mechanism list is not what it does.
func (t *Token) modeFor(k *pair, m mode) (hsm.OAEPMode, error) {
	t.mu.RLock()
	how := t.modes[m]
	t.mu.RUnlock()
	if how != hsm.OAEPUnknown {
		return how, nil
	}
	p := hsm.OAEP{Hash: m.hash, MGF: m.mgf}
	if m.labelled {
		p.Label = []byte("guardhouse")
	}
	var msg [16]byte
	if _, err := io.ReadFull(t.rand, msg[:]); err != nil {
		return "", fail("challenge", err)
	}
	ct, err := rsa.EncryptOAEPWithOptions(t.rand, k.pub, msg[:], &rsa.OAEPOptions{Hash: m.hash, MGFHash: m.mgf, Label: p.Label})
	if err != nil {
		return "", &hsm.Error{Kind: hsm.KindRequest, Detail: "probe OAEP: " + err.Error()}
	}
	try := func(decrypt func(*pair, []byte, hsm.OAEP) ([]byte, error)) (bool, error) {
		got, err := decrypt(k, ct, p)
		if e := hsm.AsError(err); e != nil && e.Class != hsm.ClassNone {
			return false, e // the token is ill: says nothing about what it can
		}
		return err == nil && subtle.ConstantTimeCompare(got, msg[:]) == 1, nil
	}
	if !t.cfg.SoftwareOAEP {
		ok, err := try(t.decryptToken)
		if err != nil {
			return "", err
		}
		if ok {
			return t.remember(m, hsm.OAEPToken), nil
		}
	}
	ok, err := try(t.decryptRaw)
	if err != nil {
		return "", err
	}
	if !ok {
		return "", &hsm.Error{Kind: hsm.KindRequest, Detail: "the token does neither this OAEP nor raw RSA",
			Remedy: "use a token with CKM_RSA_PKCS_OAEP for SHA-256 or CKM_RSA_X_509"}
	}
	return t.remember(m, hsm.OAEPSoftware), nil
}

func (t *Token) remember(m mode, how hsm.OAEPMode) hsm.OAEPMode {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.modes[m] = how
	return how
}

// probeAny finds the mode of profile P1 with any encryption key there is, so
// that the status tells it from the start. A failure here shows at first use.
func (t *Token) probeAny() {
	t.mu.RLock()
	var k *pair
	for _, e := range t.keys {
		if e.MayDecrypt() {
			k = e
			break
		}
	}
	t.mu.RUnlock()
	if k != nil {
		_, _ = t.modeFor(k, profileP1)
	}
}
