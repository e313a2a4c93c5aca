package token

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"

	"guardhouse/appliance/hsm"
	"guardhouse/appliance/policy"
)

// belongings are the classes of objects that a pair may have in the token, in the order in which they go: the private half first, so
// that what an interruption leaves is harmless and is found again by its modulus. A certificate holds the modulus in its value.
var belongings = []struct{ class, modulus uint }{
	{pkcs11.CKO_PRIVATE_KEY, pkcs11.CKA_MODULUS},
	{pkcs11.CKO_PUBLIC_KEY, pkcs11.CKA_MODULUS},
	{pkcs11.CKO_CERTIFICATE, pkcs11.CKA_VALUE},
}

// Destroy takes a pair that Generate made out of the token: every private and public object with its modulus, and every certificate that
// holds it. A private object that has another label or identifier than r says, or that was not made inside the token, keeps everything
// of the key where it is. Then all objects are read again; one that is left is an error.
func (t *Token) Destroy(r hsm.DestroyRequest) (objects int, err error) {
	pub, err := x509.ParsePKIXPublicKey(r.SPKI)
	key, ok := pub.(*rsa.PublicKey)
	if err != nil || !ok {
		return 0, &hsm.Error{Kind: hsm.KindRequest, Detail: "the public key of the pair is no RSA key"}
	}
	modulus := key.N.Bytes()
	err = t.withRetry(func() error {
		return t.withSession(func(s pkcs11.SessionHandle) error {
			if err := t.provedOurs(s, modulus, r); err != nil {
				return err
			}
			for _, b := range belongings {
				found, err := t.withModulus(s, b.class, b.modulus, modulus)
				if err != nil {
					return err
				}
				for _, o := range found {
					if err := t.p.DestroyObject(s, o); err != nil {
						return fail("destroy key", err)
					}
					objects++
				}
			}
			return t.provedDestroyed(s, modulus)
		})
	})
	if err != nil {
		return objects, err
	}
	t.mu.Lock()
	delete(t.keys, policy.RefOf(r.SPKI))
	t.mu.Unlock()
	return objects, nil
}

// provedOurs refuses a key of which the token describes any private object otherwise than Generate made it.
func (t *Token) provedOurs(s pkcs11.SessionHandle, modulus []byte, r hsm.DestroyRequest) error {
	found, err := t.withModulus(s, pkcs11.CKO_PRIVATE_KEY, pkcs11.CKA_MODULUS, modulus)
	if err != nil {
		return err
	}
	for _, o := range found {
		a, err := t.p.GetAttributeValue(s, o, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ID, nil), pkcs11.NewAttribute(pkcs11.CKA_LABEL, nil),
			pkcs11.NewAttribute(pkcs11.CKA_LOCAL, nil)})
		if err != nil {
			return fail("read attributes", err)
		}
		local := len(a[2].Value) == 1 && a[2].Value[0] != 0
		if hex.EncodeToString(a[0].Value) != r.ID || string(a[1].Value) != r.Label || !local {
			return &hsm.Error{Kind: hsm.KindUsage, Detail: "the token describes this key otherwise than it was made here (label, identifier, or made in the token): it is not destroyed",
				Remedy: "see key list; remove it with the HSM's own tools where it must go"}
		}
	}
	return nil
}

// provedDestroyed reads all objects once more.
func (t *Token) provedDestroyed(s pkcs11.SessionHandle, modulus []byte) error {
	for _, b := range belongings {
		left, err := t.withModulus(s, b.class, b.modulus, modulus)
		if err != nil {
			return err
		}
		if len(left) > 0 {
			return &hsm.Error{Kind: hsm.KindUsage, Detail: fmt.Sprintf("the token says that it destroyed the key, and still shows %d of its objects", len(left)),
				Remedy: "remove it with the HSM's own tools"}
		}
	}
	return nil
}

// withModulus finds the objects of a class whose attribute is this modulus or, of a certificate, holds it. It asks every object: not all
// tokens search by modulus, and one that does not find is no proof.
func (t *Token) withModulus(s pkcs11.SessionHandle, class, attribute uint, modulus []byte) (list []pkcs11.ObjectHandle, err error) {
	all, err := t.allObjects(s, class)
	if err != nil {
		return nil, err
	}
	for _, o := range all {
		a, err := t.p.GetAttributeValue(s, o, []*pkcs11.Attribute{pkcs11.NewAttribute(attribute, nil)})
		if e, ok := errors.AsType[pkcs11.Error](err); ok && (e == pkcs11.CKR_ATTRIBUTE_TYPE_INVALID || e == pkcs11.CKR_ATTRIBUTE_SENSITIVE) {
			continue // no RSA key, or a certificate that lies elsewhere
		}
		if err != nil {
			return nil, fail("read "+map[bool]string{true: "certificate", false: "modulus"}[class == pkcs11.CKO_CERTIFICATE], err)
		}
		if v := bytes.TrimLeft(a[0].Value, "\x00"); bytes.Equal(v, modulus) || class == pkcs11.CKO_CERTIFICATE && bytes.Contains(v, modulus) {
			list = append(list, o)
		}
	}
	return list, nil
}

// maxObjects bounds how many objects of one class are looked at.
const maxObjects = 1 << 16

// allObjects lists every object of a class.
func (t *Token) allObjects(s pkcs11.SessionHandle, class uint) (all []pkcs11.ObjectHandle, err error) {
	if err := t.p.FindObjectsInit(s, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, class)}); err != nil {
		return nil, fail("find objects", err)
	}
	for len(all) < maxObjects {
		some, _, err := t.p.FindObjects(s, 1000)
		if err != nil {
			return nil, fail("find objects", err)
		}
		if len(some) == 0 {
			return all, fail("find objects", t.p.FindObjectsFinal(s))
		}
		all = append(all, some...)
	}
	return nil, &hsm.Error{Kind: hsm.KindUsage, Detail: fmt.Sprintf("the token holds more than %d objects of one class, so that nothing can be proved gone", maxObjects),
		Remedy: "remove the key with the HSM's own tools"}
}
