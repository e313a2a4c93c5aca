package token

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"guardhouse/appliance/hsm"
	"guardhouse/appliance/policy"
)

// count gives the objects of all classes in the token, asked through sessions of its own.
func count(t *testing.T, tok *Token) (private, public, certificates int) {
	t.Helper()
	for class, n := range map[uint]*int{pkcs11.CKO_PRIVATE_KEY: &private, pkcs11.CKO_PUBLIC_KEY: &public, pkcs11.CKO_CERTIFICATE: &certificates} {
		all, err := tok.allObjects(tok.login, class)
		if err != nil {
			t.Fatal(err)
		}
		*n = len(all)
	}
	return private, public, certificates
}

// certifyIn puts a certificate for the key into the token, as a CA's tool would.
func certifyIn(t *testing.T, tok *Token, pub *rsa.PublicKey, id []byte) {
	t.Helper()
	ca, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(7), NotAfter: time.Unix(2e9, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, pub, ca)
	if err != nil {
		t.Fatal(err)
	}
	_, err = tok.p.CreateObject(tok.login, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_CERTIFICATE), pkcs11.NewAttribute(pkcs11.CKA_CERTIFICATE_TYPE, pkcs11.CKC_X_509),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_ID, id), pkcs11.NewAttribute(pkcs11.CKA_SUBJECT, []byte{0x30, 0}), pkcs11.NewAttribute(pkcs11.CKA_VALUE, der)})
	if err != nil {
		t.Fatal(err)
	}
}

func request(k hsm.Key) hsm.DestroyRequest {
	return hsm.DestroyRequest{SPKI: k.SPKI, ID: k.ID, Label: k.Label}
}

func TestDestroyedKeyLeavesNothingAndTakesNothingElse(t *testing.T) {
	c := newSoftHSM(t)
	tok := open(t, c)
	gone, pub := generate(t, tok, policy.RoleSigning)
	kept, keptPub := generate(t, tok, policy.RoleSigning)
	for k, p := range map[*hsm.Key]*rsa.PublicKey{&gone: pub, &kept: keptPub} {
		id, err := hex.DecodeString(k.ID)
		if err != nil {
			t.Fatal(err)
		}
		certifyIn(t, tok, p, id)
	}
	if private, public, certificates := count(t, tok); private != 2 || public != 2 || certificates != 2 {
		t.Fatalf("the token holds %d, %d, %d objects before", private, public, certificates)
	}
	n, err := tok.Destroy(request(gone))
	if err != nil || n != 3 {
		t.Fatalf("%d objects, %v", n, err)
	}
	if private, public, certificates := count(t, tok); private != 1 || public != 1 || certificates != 1 {
		t.Errorf("the token holds %d, %d, %d objects after", private, public, certificates)
	}
	digest := sha256.Sum256([]byte("message"))
	sign := func(tok *Token, k hsm.Key) error {
		_, err := tok.Sign(hsm.SignRequest{Ref: k.Ref, Digest: digest[:], Hash: 5, Scheme: hsm.PKCS1v15})
		return err
	}
	if err := sign(tok, gone); !errors.Is(err, hsm.ErrNoKey) {
		t.Errorf("the destroyed key signs: %v", err)
	}
	if err := sign(tok, kept); err != nil {
		t.Errorf("the other key does not sign: %v", err)
	}
	if n, err := tok.Destroy(request(gone)); n != 0 || err != nil {
		t.Errorf("once more: %d, %v", n, err)
	}
	again := open(t, c) // what the files hold, not what a session remembers
	if list, err := again.List(); err != nil || len(list) != 1 || list[0].Ref != kept.Ref {
		t.Errorf("%+v %v", list, err)
	}
}

func TestDestroyRefusesWhatTheTokenDescribesOtherwise(t *testing.T) {
	tok := open(t, newSoftHSM(t))
	k, _ := generate(t, tok, policy.RoleEncryption)
	other, _ := generate(t, tok, policy.RoleEncryption)
	imported := importKey(t, tok, k.Label, k.ID)
	for name, r := range map[string]hsm.DestroyRequest{
		"another's label":                   {SPKI: k.SPKI, ID: k.ID, Label: other.Label},
		"another's identifier":              {SPKI: k.SPKI, ID: other.ID, Label: k.Label},
		"another's public key":              {SPKI: other.SPKI, ID: k.ID, Label: k.Label},
		"a key from outside under our name": {SPKI: imported, ID: k.ID, Label: k.Label},
	} {
		n, err := tok.Destroy(r)
		if e := hsm.AsError(err); e == nil || e.Kind != hsm.KindUsage || n != 0 {
			t.Errorf("%s: %d objects, %v", name, n, err)
		}
	}
	if private, public, _ := count(t, tok); private != 3 || public != 2 {
		t.Errorf("the token holds %d and %d objects", private, public)
	}
}

// importKey puts a key from outside under the label and identifier of one of ours, and gives its public key.
func importKey(t *testing.T, tok *Token, label, id string) (spki []byte) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rawID, err := hex.DecodeString(id)
	if err != nil {
		t.Fatal(err)
	}
	_, err = tok.p.CreateObject(tok.login, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true), pkcs11.NewAttribute(pkcs11.CKA_ID, rawID), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
		pkcs11.NewAttribute(pkcs11.CKA_MODULUS, key.N.Bytes()), pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE_EXPONENT, key.D.Bytes()),
		pkcs11.NewAttribute(pkcs11.CKA_PRIME_1, key.Primes[0].Bytes()), pkcs11.NewAttribute(pkcs11.CKA_PRIME_2, key.Primes[1].Bytes())})
	if err != nil {
		t.Fatal(err)
	}
	spki, err = x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return spki
}
