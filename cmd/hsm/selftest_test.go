package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"guardhouse/appliance/hsm"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// vendorTool is a session in this process with the token that env leads to, as
// another program of the token's owner would have it.
func vendorTool(t *testing.T, env string) (*pkcs11.Ctx, pkcs11.SessionHandle) {
	t.Helper()
	_, conf, _ := strings.Cut(env, "=")
	t.Setenv("SOFTHSM2_CONF", conf)
	p := pkcs11.New(softHSM)
	if p == nil {
		t.Fatal("SoftHSM2 does not load")
	}
	if err := p.Initialize(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Finalize(); p.Destroy() })
	slots, err := p.GetSlotList(true)
	if err != nil {
		t.Fatal(err)
	}
	for _, slot := range slots {
		if info, err := p.GetTokenInfo(slot); err != nil || info.Label != label {
			continue
		}
		s, err := p.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		if err == nil {
			err = p.Login(s, pkcs11.CKU_USER, userPIN)
		}
		if err != nil {
			t.Fatal(err)
		}
		return p, s
	}
	t.Fatal("the tool finds no token")
	return nil, 0
}

// foreign describes a pair made or brought in by another program.
type foreign struct {
	label       string
	id          byte
	sign        bool
	decrypt     bool
	extractable bool
	broken      bool // the private half belongs to another modulus
}

// makeForeign makes the pair inside the token, or outside it where broken asks.
func makeForeign(t *testing.T, p *pkcs11.Ctx, s pkcs11.SessionHandle, f foreign) []byte {
	t.Helper()
	common := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_ID, []byte{f.id}), pkcs11.NewAttribute(pkcs11.CKA_LABEL, f.label)}
	public := append(slices.Clone(common), pkcs11.NewAttribute(pkcs11.CKA_VERIFY, f.sign), pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, f.decrypt))
	private := append(slices.Clone(common), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true), pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, !f.extractable),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, f.extractable), pkcs11.NewAttribute(pkcs11.CKA_SIGN, f.sign), pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, f.decrypt))
	if !f.broken {
		public = append(public, pkcs11.NewAttribute(pkcs11.CKA_MODULUS_BITS, 2048), pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}))
		pub, _, err := p.GenerateKeyPair(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, nil)}, public, private)
		if err != nil {
			t.Fatal(err)
		}
		a, err := p.GetAttributeValue(s, pub, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_MODULUS, nil)})
		if err != nil {
			t.Fatal(err)
		}
		return spki(t, a[0].Value)
	}
	shown, inside := newRSA(t), newRSA(t)
	n := shown.N.Bytes()
	class := func(class, keyType uint, a []*pkcs11.Attribute) []*pkcs11.Attribute {
		return append(a, pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, keyType),
			pkcs11.NewAttribute(pkcs11.CKA_MODULUS, n), pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}))
	}
	private = append(class(pkcs11.CKO_PRIVATE_KEY, pkcs11.CKK_RSA, private),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE_EXPONENT, inside.D.Bytes()), pkcs11.NewAttribute(pkcs11.CKA_PRIME_1, inside.Primes[0].Bytes()),
		pkcs11.NewAttribute(pkcs11.CKA_PRIME_2, inside.Primes[1].Bytes()), pkcs11.NewAttribute(pkcs11.CKA_EXPONENT_1, inside.Precomputed.Dp.Bytes()),
		pkcs11.NewAttribute(pkcs11.CKA_EXPONENT_2, inside.Precomputed.Dq.Bytes()), pkcs11.NewAttribute(pkcs11.CKA_COEFFICIENT, inside.Precomputed.Qinv.Bytes()))
	for _, object := range [][]*pkcs11.Attribute{class(pkcs11.CKO_PUBLIC_KEY, pkcs11.CKK_RSA, public), private} {
		if _, err := p.CreateObject(s, object); err != nil {
			t.Fatal(err)
		}
	}
	return spki(t, n)
}

func newRSA(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func spki(t *testing.T, modulus []byte) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: 65537})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func asked(role policy.KeyRole, der []byte, label string) rpc.HSMTestKey {
	return rpc.HSMTestKey{Ref: policy.RefOf(der), Role: role, SPKI: der, Label: label}
}

func kinds(r rpc.HSMTestResult) []string {
	list := []string{}
	for _, p := range r.Problems {
		list = append(list, p.Kind)
	}
	return list
}

func TestSelfTestNamesWhatIsWrongWithEachKey(t *testing.T) {
	env := newSoftHSM(t)
	p, s := vendorTool(t, env)
	const sig, enc = policy.RoleSigning, policy.RoleEncryption
	elsewhere := spki(t, newRSA(t).N.Bytes()) // held by no token
	made := func(f foreign) []byte { return makeForeign(t, p, s, f) }
	goodSign, goodDecrypt := made(foreign{label: "s", id: 1, sign: true}), made(foreign{label: "d", id: 2, decrypt: true})
	noSign, noDecrypt := made(foreign{label: "cannot sign", id: 3, decrypt: true}), made(foreign{label: "cannot decrypt", id: 4, sign: true})
	weak := made(foreign{label: "weak", id: 5, sign: true, extractable: true})
	otherRole := made(foreign{label: "guardhouse-attestation-signer-01020304", id: 6, sign: true})
	wrongSign, wrongDecrypt := made(foreign{label: "ws", id: 7, sign: true, broken: true}), made(foreign{label: "wd", id: 8, decrypt: true, broken: true})
	// On a busy machine a worker needs more than the 5 s after which a call is told that there is none yet, or that it hangs.
	k := startKeeper(t, softHSM, env, hsm.Timing{Call: time.Minute, Open: time.Minute})
	for _, c := range []struct {
		name string
		key  rpc.HSMTestKey
		want []string
		used bool
	}{
		{"good signing key", asked(sig, goodSign, "s"), nil, true},
		{"good encryption key, whose label changed", asked(enc, goodDecrypt, "before"), nil, true},
		{"missing", asked(sig, elsewhere, "gone"), []string{rpc.KeyMissing}, false},
		{"another key under its label", asked(sig, elsewhere, "s"), []string{rpc.KeyOtherLabel}, false},
		{"present without sign", asked(sig, noSign, ""), []string{rpc.KeyNoUse}, false},
		{"present without decrypt", asked(enc, noDecrypt, ""), []string{rpc.KeyNoUse}, false},
		{"labelled for another role", asked(sig, otherRole, ""), []string{rpc.KeyNoUse}, false},
		{"extractable", asked(sig, weak, ""), []string{rpc.KeyExtractable}, true},
		{"signatures of another key", asked(sig, wrongSign, ""), []string{rpc.KeyExtractable, rpc.KeyUseFailed}, true},
		{"decryptions of another key", asked(enc, wrongDecrypt, ""), []string{rpc.KeyExtractable, rpc.KeyUseFailed}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := selfTest(t.Context(), k, rpc.HSMTestRequest{Keys: []rpc.HSMTestKey{c.key}}, rand.Reader)
			if err != nil || len(got) != 1 {
				t.Fatalf("%d results, %v", len(got), err)
			}
			r := got[0]
			if !slices.Equal(kinds(r), append([]string{}, c.want...)) || r.OK != (len(c.want) == 0) || r.Ref != c.key.Ref || r.Role != c.key.Role {
				t.Errorf("got %+v, want %v", r, c.want)
			}
			if (r.Took > 0) != c.used {
				t.Errorf("used: %v, took %v", c.used, r.Took)
			}
			for _, p := range r.Problems {
				if p.Remedy == "" || !strings.Contains(p.What, string(c.key.Ref[:16])) {
					t.Errorf("problem %+v", p)
				}
			}
			if present := r.Token != nil; present != (string(c.key.SPKI) != string(elsewhere)) || present && r.Token.Ref != c.key.Ref {
				t.Errorf("described as %+v", r.Token)
			}
		})
	}
	if s := k.Status(); s.Restarts != 0 {
		t.Errorf("a bad key cost the worker: %+v", s)
	}
}

func TestSelfTestOfASilentTokenFailsEveryKey(t *testing.T) {
	k := startKeeper(t, softHSM, newSoftHSM(t), hsm.Timing{})
	der := spki(t, newRSA(t).N.Bytes())
	k.Lock() // as before the PIN comes
	r := rpc.HSMTestRequest{Keys: []rpc.HSMTestKey{asked(policy.RoleSigning, der, ""), asked(policy.RoleEncryption, der, "")}}
	got, err := selfTest(t.Context(), k, r, rand.Reader)
	if err != nil || len(got) != 2 {
		t.Fatalf("%d results, %v", len(got), err)
	}
	for _, r := range got {
		if r.OK || !slices.Equal(kinds(r), []string{rpc.KeyUnreachable}) || r.Problems[0].Remedy == "" {
			t.Errorf("%+v", r)
		}
	}
}

// dying answers the listing and then falls silent.
type dying struct {
	tested
	keys  []hsm.Key
	calls int
}

func (d *dying) Keys(context.Context) ([]hsm.Key, error) { return d.keys, nil }
func (d *dying) Sign(context.Context, hsm.SignRequest) ([]byte, error) {
	d.calls++
	return nil, &hsm.Error{Kind: hsm.KindUnavailable, Class: hsm.ClassModule, Detail: "gone"}
}

func TestSelfTestAsksATokenThatDiedOnlyOnce(t *testing.T) {
	der := spki(t, newRSA(t).N.Bytes())
	d := &dying{keys: []hsm.Key{{Ref: policy.RefOf(der), SPKI: der, Bits: 2048, Private: true, Sensitive: true, NeverExtractable: true, Sign: true}}}
	one := asked(policy.RoleSigning, der, "")
	got, err := selfTest(t.Context(), d, rpc.HSMTestRequest{Keys: []rpc.HSMTestKey{one, one, one}}, rand.Reader)
	if err != nil || len(got) != 3 || d.calls != 1 {
		t.Fatalf("%d results, %d calls, %v", len(got), d.calls, err)
	}
	for _, r := range got {
		if r.OK || !slices.Equal(kinds(r), []string{rpc.KeyUnreachable}) {
			t.Errorf("%+v", r)
		}
	}
}

func TestSelfTestRefusesContradictingRequests(t *testing.T) {
	der := spki(t, newRSA(t).N.Bytes())
	good := asked(policy.RoleSigning, der, "")
	other := good
	other.Ref = policy.KeyRef(strings.Repeat("0", 64))
	noRole := good
	noRole.Role = ""
	for name, keys := range map[string][]rpc.HSMTestKey{
		"reference of another key": {other},
		"no role":                  {noRole},
		"no key":                   {asked(policy.RoleSigning, []byte("x"), "")},
		"too many":                 slices.Repeat([]rpc.HSMTestKey{good}, policy.MaxKeys+1),
	} {
		if got, err := selfTest(t.Context(), &dying{}, rpc.HSMTestRequest{Keys: keys}, rand.Reader); !errors.Is(err, rpc.ErrRefused) || got != nil {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestSelfTestOverRPC(t *testing.T) {
	n := startNode(t, rpc.Console, newSoftHSM(t), func() (rpc.PINReply, error) {
		return rpc.PINReply{PIN: []byte(userPIN), HSM: policy.HSM{Module: softHSM, Token: label}}, nil
	})
	der := spki(t, newRSA(t).N.Bytes())
	got, err := rpc.HSMTest.Call(t.Context(), n.client, rpc.HSMTestRequest{Keys: []rpc.HSMTestKey{asked(policy.RoleSigning, der, "")}})
	if err != nil || len(got) != 1 || got[0].OK {
		t.Errorf("%+v: %v", got, err)
	}
}
