package token

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sort"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"

	"guardhouse/appliance/hsm"
	"guardhouse/appliance/policy"
)

// wanted are the attributes read back from every private key.
var wanted = []crypto11.AttributeType{
	pkcs11.CKA_ID, pkcs11.CKA_LABEL, pkcs11.CKA_PRIVATE, pkcs11.CKA_SENSITIVE, pkcs11.CKA_ALWAYS_SENSITIVE,
	pkcs11.CKA_EXTRACTABLE, pkcs11.CKA_NEVER_EXTRACTABLE, pkcs11.CKA_LOCAL, pkcs11.CKA_SIGN, pkcs11.CKA_DECRYPT,
	pkcs11.CKA_UNWRAP,
}

// List reads all RSA key pairs, sorted by label and reference. A private key
// without CKA_ID or without its public half is not listed.
func (t *Token) List() ([]hsm.Key, error) {
	t.mu.RLock()
	ctx := t.c11
	t.mu.RUnlock()
	set := crypto11.NewAttributeSet()
	// Without the type one elliptic or vendor key on the token would fail the
	// whole listing.
	if err := set.Set(crypto11.CkaKeyType, pkcs11.CKK_RSA); err != nil {
		return nil, fail("list keys", err)
	}
	signers, err := ctx.FindKeyRSAPairsWithAttributes(set)
	if err != nil {
		return nil, fail("list keys", err)
	}
	keys := make(map[policy.KeyRef]*pair, len(signers))
	list := make([]hsm.Key, 0, len(signers))
	for _, s := range signers {
		k, err := t.describe(ctx, s)
		if err != nil {
			return nil, err
		}
		if keys[k.Ref] == nil {
			keys[k.Ref] = k
			list = append(list, k.Key)
		}
	}
	t.mu.Lock()
	if t.c11 == ctx { // else the sessions were replaced meanwhile, and a newer listing is under way
		t.keys = keys
	}
	t.mu.Unlock()
	sort.Slice(list, func(i, j int) bool {
		if list[i].Label != list[j].Label {
			return list[i].Label < list[j].Label
		}
		return list[i].Ref < list[j].Ref
	})
	return list, nil
}

// describe reads the attributes of one pair back from the token.
func (t *Token) describe(ctx *crypto11.Context, s crypto11.SignerDecrypter) (*pair, error) {
	pub, ok := s.Public().(*rsa.PublicKey)
	if !ok {
		return nil, &hsm.Error{Kind: hsm.KindRequest, Detail: "a key listed as RSA is none"}
	}
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, &hsm.Error{Kind: hsm.KindRequest, Detail: "encode public key: " + err.Error()}
	}
	a, err := ctx.GetAttributes(s, wanted)
	if err != nil {
		return nil, fail("read attributes", err)
	}
	value := func(n uint) []byte {
		if a[n] == nil {
			return nil
		}
		return a[n].Value
	}
	is := func(n uint) bool { v := value(n); return len(v) == 1 && v[0] != 0 }
	id, label := value(pkcs11.CKA_ID), string(value(pkcs11.CKA_LABEL))
	k := &pair{pub: pub, signer: s, Key: hsm.Key{
		Ref: policy.RefOf(spki), SPKI: spki, Bits: pub.N.BitLen(), Label: label, Role: hsm.RoleOf(label), ID: hex.EncodeToString(id),
		Private: is(pkcs11.CKA_PRIVATE), Sensitive: is(pkcs11.CKA_SENSITIVE), AlwaysSensitive: is(pkcs11.CKA_ALWAYS_SENSITIVE),
		Extractable: is(pkcs11.CKA_EXTRACTABLE), NeverExtractable: is(pkcs11.CKA_NEVER_EXTRACTABLE), Local: is(pkcs11.CKA_LOCAL),
		Sign: is(pkcs11.CKA_SIGN), Decrypt: is(pkcs11.CKA_DECRYPT), Unwrap: is(pkcs11.CKA_UNWRAP),
	}}
	k.handle, err = t.privateHandle(id, pub)
	return k, err
}

// privateHandle finds the private half for our own sessions. CKA_ID narrows the
// search, the modulus decides.
func (t *Token) privateHandle(id []byte, pub *rsa.PublicKey) (handle pkcs11.ObjectHandle, err error) {
	err = t.withSession(func(s pkcs11.SessionHandle) error {
		found, err := t.objects(s, []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY),
			pkcs11.NewAttribute(pkcs11.CKA_ID, id),
		})
		if err != nil {
			return err
		}
		for _, o := range found {
			a, err := t.p.GetAttributeValue(s, o, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_MODULUS, nil)})
			if err != nil {
				return fail("read modulus", err)
			}
			if bytes.Equal(bytes.TrimLeft(a[0].Value, "\x00"), pub.N.Bytes()) {
				handle = o
				return nil
			}
		}
		return &hsm.Error{Kind: hsm.KindUnavailable, Class: hsm.ClassSession, Detail: "a key vanished while it was listed"}
	})
	return handle, err
}

// objects lists at most 1000 objects that match.
func (t *Token) objects(s pkcs11.SessionHandle, template []*pkcs11.Attribute) ([]pkcs11.ObjectHandle, error) {
	if err := t.p.FindObjectsInit(s, template); err != nil {
		return nil, fail("find objects", err)
	}
	found, _, err := t.p.FindObjects(s, 1000)
	if err != nil {
		return nil, fail("find objects", err)
	}
	return found, fail("find objects", t.p.FindObjectsFinal(s))
}

// Generate makes an RSA key pair for role with 2048, 3072 or 4096 bits in the
// token, reads its attributes back and uses it once. A key that is not what was
// asked for is destroyed.
func (t *Token) Generate(role policy.KeyRole, bits int) (hsm.Key, error) {
	if !hsm.KnownRole(role) {
		return hsm.Key{}, &hsm.Error{Kind: hsm.KindRequest, Detail: fmt.Sprintf("no role %q", role)}
	}
	if bits != 2048 && bits != 3072 && bits != 4096 {
		return hsm.Key{}, &hsm.Error{Kind: hsm.KindRequest, Detail: "an RSA key has 2048, 3072 or 4096 bits"}
	}
	id := make([]byte, hsm.IDSize)
	if _, err := io.ReadFull(t.rand, id); err != nil {
		return hsm.Key{}, fail("key identifier", err)
	}
	t.mu.RLock()
	ctx := t.c11
	t.mu.RUnlock()
	signer, err := t.generate(ctx, role, bits, id, false)
	if e, ok := errors.AsType[pkcs11.Error](err); ok && hsm.Classify("", uint32(e)).Class == hsm.ClassNone {
		// Some tokens don't know CKA_MODIFIABLE on keys.
		signer, err = t.generate(ctx, role, bits, id, true)
	}
	if err != nil {
		return hsm.Key{}, fail("generate key", err)
	}
	k, err := t.accept(ctx, signer, role)
	if err != nil {
		_ = signer.Delete()
		return hsm.Key{}, err
	}
	t.mu.Lock()
	if t.c11 == ctx {
		t.keys[k.Ref] = k
	}
	t.mu.Unlock()
	return k.Key, nil
}

func (t *Token) generate(ctx *crypto11.Context, role policy.KeyRole, bits int, id []byte, plain bool) (crypto11.SignerDecrypter, error) {
	decrypts := hsm.Decrypts(role)
	public, err := crypto11.NewAttributeSetWithIDAndLabel(id, []byte(hsm.LabelFor(role, id)))
	if err != nil {
		return nil, err
	}
	private := public.Copy()
	public.AddIfNotPresent([]*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_VERIFY, !decrypts),
		pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, decrypts),
		pkcs11.NewAttribute(pkcs11.CKA_WRAP, false),
		pkcs11.NewAttribute(pkcs11.CKA_MODULUS_BITS, bits),
		pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}),
	})
	private.AddIfNotPresent([]*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false),
		pkcs11.NewAttribute(pkcs11.CKA_SIGN, !decrypts),
		pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, decrypts),
		pkcs11.NewAttribute(pkcs11.CKA_UNWRAP, false),
	})
	if !plain {
		private.AddIfNotPresent([]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_MODIFIABLE, false)})
	}
	return ctx.GenerateRSAKeyPairWithAttributes(public, private, bits)
}

// accept reads a new key back and proves that it works.
func (t *Token) accept(ctx *crypto11.Context, s crypto11.SignerDecrypter, role policy.KeyRole) (*pair, error) {
	k, err := t.describe(ctx, s)
	if err != nil {
		return nil, err
	}
	if f := k.Findings(); len(f) > 0 || k.Role != role {
		kinds := make([]string, 0, len(f))
		for _, x := range f {
			kinds = append(kinds, x.Kind)
		}
		return nil, &hsm.Error{Kind: hsm.KindRequest, Detail: fmt.Sprintf("the token made a key that is not as asked: %v", kinds),
			Remedy: "this token cannot hold the node's keys safely"}
	}
	if hsm.Decrypts(role) {
		_, err = t.modeFor(k, profileP1)
	} else {
		err = t.prove(k)
	}
	return k, err
}
