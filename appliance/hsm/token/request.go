package token

import (
	"crypto"
	"crypto/rsa"

	"github.com/miekg/pkcs11"

	"guardhouse/appliance/hsm"
	"guardhouse/appliance/policy"
)

// Request signs a certificate request. A key that may sign does so; a key that may only decrypt makes the same number with the raw
// private operation, which is what a PKCS#1 v1.5 signature is. Tokens in a FIPS mode forbid raw RSA: then there is no request for an
// encryption key, and its certificate stays the one that the signing key issued.
func (t *Token) Request(ref policy.KeyRef, info []byte) (sig []byte, err error) {
	err = t.withRetry(func() error {
		k, err := t.key(ref)
		if err != nil {
			return err
		}
		digest, block, err := hsm.RequestDigest(info, k.SPKI, k.pub.Size())
		if err != nil {
			return err
		}
		if k.Sign {
			sig, err = sign(k, digest[:], crypto.SHA256, hsm.PKCS1v15)
		} else {
			sig, err = t.raw(k, block)
		}
		if err != nil {
			return err
		}
		if rsa.VerifyPKCS1v15(k.pub, crypto.SHA256, digest[:], sig) != nil {
			return &hsm.Error{Kind: hsm.KindUsage, Detail: "the token's signature of the certificate request is wrong"}
		}
		return nil
	})
	return sig, err
}

// raw is the private operation without any padding, size of the modulus in and out.
func (t *Token) raw(k *pair, block []byte) ([]byte, error) {
	out, err := t.private(k, pkcs11.NewMechanism(pkcs11.CKM_RSA_X_509, nil), block)
	if e := hsm.AsError(err); e != nil {
		if e.Class != hsm.ClassNone {
			return nil, err // the token is ill: says nothing about what it can
		}
		return nil, &hsm.Error{Kind: hsm.KindUsage, Code: e.Code, Detail: "the token allows this key neither signatures nor raw RSA, so it can't prove its possession to a CA",
			Remedy: "keep the certificate that the signing key issued (HGS and its hosts take it as a container), or have the CA certify the public key through an enrolment agent"}
	}
	if len(out) > k.pub.Size() {
		return nil, &hsm.Error{Kind: hsm.KindUsage, Detail: "the token's answer is longer than its key"}
	}
	padded := make([]byte, k.pub.Size())
	copy(padded[len(padded)-len(out):], out)
	return padded, nil
}
