package token

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/pkcs11"

	"guardhouse/appliance/hsm"
	"guardhouse/appliance/policy"
)

const (
	softHSM = "/usr/lib/softhsm/libsofthsm2.so"
	label   = "guardhouse-test"
	userPIN = "4711-test"
)

// newSoftHSM makes an empty token in a folder of its own.
func newSoftHSM(t testing.TB) hsm.ModuleConfig {
	t.Helper()
	dir := t.TempDir()
	conf := filepath.Join(dir, "softhsm2.conf")
	tokens := filepath.Join(dir, "tokens")
	if err := os.Mkdir(tokens, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(conf, fmt.Appendf(nil, "directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", tokens), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", conf)
	out, err := exec.Command("softhsm2-util", "--init-token", "--free", "--label", label, "--so-pin", "so-4711", "--pin", userPIN).CombinedOutput()
	if err != nil {
		t.Fatalf("softhsm2-util (package softhsm2): %v: %s", err, out)
	}
	return hsm.ModuleConfig{Module: softHSM, TokenLabel: label}
}

func open(t testing.TB, c hsm.ModuleConfig) *Token {
	t.Helper()
	tok, err := Open(c, []byte(userPIN), func() {}, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tok.Close)
	return tok
}

func generate(t testing.TB, tok *Token, role policy.KeyRole) (hsm.Key, *rsa.PublicKey) {
	t.Helper()
	k, err := tok.Generate(role, 2048)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := x509.ParsePKIXPublicKey(k.SPKI)
	if err != nil {
		t.Fatal(err)
	}
	return k, pub.(*rsa.PublicKey)
}

func TestKeysNeverLeaveTheToken(t *testing.T) {
	tok := open(t, newSoftHSM(t))
	for _, role := range policy.KeyRoles {
		k, _ := generate(t, tok, role)
		if !k.Private || !k.Sensitive || !k.AlwaysSensitive || k.Extractable || !k.NeverExtractable || !k.Local || k.Unwrap {
			t.Errorf("%s: attributes %+v", role, k)
		}
		if k.Sign == k.Decrypt || k.Decrypt != hsm.Decrypts(role) || len(k.Findings()) != 0 {
			t.Errorf("%s: sign %v decrypt %v findings %v", role, k.Sign, k.Decrypt, k.Findings())
		}
		if k.Role != role || !strings.HasPrefix(k.Label, "guardhouse-"+string(role)+"-") || k.Ref != policy.RefOf(k.SPKI) {
			t.Errorf("%s: named %+v", role, k)
		}
		for name, secret := range map[string]uint{"exponent": pkcs11.CKA_PRIVATE_EXPONENT, "prime": pkcs11.CKA_PRIME_1} {
			got, err := tok.p.GetAttributeValue(tok.login, tok.keys[k.Ref].handle, []*pkcs11.Attribute{pkcs11.NewAttribute(secret, nil)})
			if !errors.Is(err, pkcs11.Error(pkcs11.CKR_ATTRIBUTE_SENSITIVE)) {
				t.Errorf("%s: the token gave its %s out: %d attributes, %v", role, name, len(got), err)
			}
		}
		err := tok.p.SetAttributeValue(tok.login, tok.keys[k.Ref].handle, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true)})
		if err == nil {
			t.Errorf("%s: the key could be made extractable", role)
		}
	}
	keys, err := tok.List()
	if err != nil || len(keys) != len(policy.KeyRoles) {
		t.Fatalf("%d keys listed, %v", len(keys), err)
	}
}

func TestSignaturesVerify(t *testing.T) {
	tok := open(t, newSoftHSM(t))
	k, pub := generate(t, tok, policy.RoleAttestationSigner)
	d256, d512 := sha256.Sum256([]byte("message")), sha512.Sum512([]byte("message"))
	for _, c := range []struct {
		hash   crypto.Hash
		digest []byte
	}{{crypto.SHA256, d256[:]}, {crypto.SHA512, d512[:]}} {
		sig, err := tok.Sign(hsm.SignRequest{Ref: k.Ref, Role: k.Role, Digest: c.digest, Hash: c.hash, Scheme: hsm.PKCS1v15})
		if err != nil || rsa.VerifyPKCS1v15(pub, c.hash, c.digest, sig) != nil {
			t.Errorf("PKCS #1 v1.5 with %v: %v", c.hash, err)
		}
		sig, err = tok.Sign(hsm.SignRequest{Ref: k.Ref, Digest: c.digest, Hash: c.hash, Scheme: hsm.PSS})
		if err != nil || rsa.VerifyPSS(pub, c.hash, c.digest, sig, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) != nil {
			t.Errorf("PSS with %v: %v", c.hash, err)
		}
	}
	if err := tok.Check(); err != nil {
		t.Errorf("canary: %v", err)
	}
}

func TestRefusesKeyOfAnotherRole(t *testing.T) {
	tok := open(t, newSoftHSM(t))
	enc, _ := generate(t, tok, policy.RoleEncryption)
	sig, sigPub := generate(t, tok, policy.RoleSigning)
	digest := sha256.Sum256(nil)
	request := func(ref policy.KeyRef, role policy.KeyRole) hsm.SignRequest {
		return hsm.SignRequest{Ref: ref, Role: role, Digest: digest[:], Hash: crypto.SHA256, Scheme: hsm.PKCS1v15}
	}
	if _, err := tok.Sign(request(enc.Ref, "")); !errors.Is(err, hsm.ErrUsage) {
		t.Errorf("encryption key signs: %v", err)
	}
	if _, err := tok.Sign(request(sig.Ref, policy.RoleAttestationSigner)); !errors.Is(err, hsm.ErrUsage) {
		t.Errorf("guardian's key signs as attestation signer: %v", err)
	}
	p := hsm.OAEP{Hash: crypto.SHA256, MGF: crypto.SHA256}
	if _, err := tok.Decrypt(sig.Ref, encrypt(t, sigPub, []byte("x"), p), p); !errors.Is(err, hsm.ErrUsage) {
		t.Errorf("signing key decrypts: %v", err)
	}
	if _, err := tok.Sign(request(policy.KeyRef(strings.Repeat("0", 64)), "")); !errors.Is(err, hsm.ErrNoKey) {
		t.Errorf("unknown key: %v", err)
	}
	// The token itself refuses too: our check is not the only one.
	if _, err := sign(tok.keys[enc.Ref], digest[:], crypto.SHA256, hsm.PKCS1v15); !errors.Is(err, hsm.ErrRequest) {
		t.Errorf("the token signs with an encryption key: %v", err)
	}
	m := pkcs11.NewMechanism(pkcs11.CKM_RSA_X_509, nil)
	if _, err := tok.private(tok.keys[sig.Ref], m, make([]byte, sigPub.Size())); !errors.Is(err, hsm.ErrRequest) {
		t.Errorf("the token decrypts with a signing key: %v", err)
	}
}

func encrypt(t testing.TB, pub *rsa.PublicKey, msg []byte, p hsm.OAEP) []byte {
	t.Helper()
	ct, err := rsa.EncryptOAEPWithOptions(rand.Reader, pub, msg, &rsa.OAEPOptions{Hash: p.Hash, MGFHash: p.MGF, Label: p.Label})
	if err != nil {
		t.Fatal(err)
	}
	return ct
}

func TestOpensOAEPWhoeverDecodes(t *testing.T) {
	tok := open(t, newSoftHSM(t))
	k, pub := generate(t, tok, policy.RoleEncryption)
	if got := tok.Info().OAEP; got != hsm.OAEPSoftware {
		t.Errorf("SoftHSM2 2.6.1 refuses OAEP with SHA-256, but the mode is %q", got)
	}
	sha1, sha2 := crypto.SHA1, crypto.SHA256
	for _, c := range []struct {
		name     string
		p        hsm.OAEP
		software bool
		want     hsm.OAEPMode
	}{
		{"SHA-1 in the token", hsm.OAEP{Hash: sha1, MGF: sha1}, false, hsm.OAEPToken},
		{"SHA-1 decoded here", hsm.OAEP{Hash: sha1, MGF: sha1}, true, hsm.OAEPSoftware},
		{"SHA-256", hsm.OAEP{Hash: sha2, MGF: sha2}, false, hsm.OAEPSoftware},
		{"SHA-256 with MGF1-SHA-1", hsm.OAEP{Hash: sha2, MGF: sha1}, false, hsm.OAEPSoftware},
		{"SHA-256 with a label", hsm.OAEP{Hash: sha2, MGF: sha2, Label: []byte("label")}, false, hsm.OAEPSoftware},
		{"SHA-512", hsm.OAEP{Hash: crypto.SHA512, MGF: crypto.SHA512}, false, hsm.OAEPSoftware},
	} {
		t.Run(c.name, func(t *testing.T) {
			tok.cfg.SoftwareOAEP = c.software
			clear(tok.modes)
			for _, msg := range [][]byte{{}, []byte("k"), bytes.Repeat([]byte{7}, 32), make([]byte, pub.Size()-2*c.p.Hash.Size()-2)} {
				got, err := tok.Decrypt(k.Ref, encrypt(t, pub, msg, c.p), c.p)
				if err != nil || !bytes.Equal(got, msg) {
					t.Fatalf("%d bytes: got %d, %v", len(msg), len(got), err)
				}
			}
			if how := tok.modes[mode{c.p.Hash, c.p.MGF, len(c.p.Label) > 0}]; how != c.want {
				t.Errorf("mode %q, want %q", how, c.want)
			}
			good := encrypt(t, pub, []byte("secret"), c.p)
			flipped := bytes.Clone(good)
			flipped[100] ^= 1
			other := c.p
			other.Label = []byte("another label")
			big := bytes.Repeat([]byte{0xff}, len(good))
			for name, bad := range map[string]struct {
				ct []byte
				p  hsm.OAEP
			}{"flipped": {flipped, c.p}, "label": {good, other}, "short": {good[1:], c.p}, "empty": {nil, c.p}, "above the modulus": {big, c.p},
				"zero": {make([]byte, len(good)), c.p}} {
				if got, err := tok.Decrypt(k.Ref, bad.ct, bad.p); err != error(hsm.ErrDecrypt) || got != nil {
					t.Errorf("%s: %v, %d bytes: must be the one error, bare", name, err, len(got))
				}
			}
			if err := tok.Check(); err != nil {
				t.Errorf("bad ciphertexts hurt the session: %v", err)
			}
		})
	}
}

func TestRefusesWrongPIN(t *testing.T) {
	c := newSoftHSM(t)
	pin, shown := []byte("wrong-4711"), 0
	_, err := Open(c, pin, func() { shown++ }, rand.Reader)
	e := hsm.AsError(err)
	if e == nil || e.Kind != hsm.KindFailed || e.Class != hsm.ClassFatal || e.Code != pkcs11.CKR_PIN_INCORRECT || e.Remedy == "" {
		t.Errorf("got %+v", e)
	}
	if shown != 1 || !bytes.Equal(pin, make([]byte, len(pin))) {
		t.Errorf("login tried %d times, PIN wiped %v", shown, pin[0] == 0)
	}
	if strings.Contains(err.Error(), "4711") {
		t.Error("the error shows the PIN")
	}
}

func TestMakesTheEmbeddedTokenOnce(t *testing.T) {
	c := newSoftHSM(t)
	c.TokenLabel = "embedded"
	if _, err := Open(c, []byte(userPIN), func() {}, rand.Reader); err == nil {
		t.Error("a token was made without being asked for")
	}
	c.Create = true
	tok, err := Open(c, []byte(userPIN), func() {}, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k, _ := generate(t, tok, policy.RoleSigning)
	serial := tok.Info().Serial
	tok.Close()
	tok = open(t, c)
	if keys, err := tok.List(); err != nil || len(keys) != 1 || keys[0].Ref != k.Ref || tok.Info().Serial != serial {
		t.Errorf("the second start found %d keys in token %s, want %s: %v", len(keys), tok.Info().Serial, serial, err)
	}
}

func TestEmbeddedTokenSurvivesPowerCutWhileItIsMade(t *testing.T) {
	c := newSoftHSM(t)
	c.TokenLabel, c.Create = "embedded", true
	p := pkcs11.New(c.Module)
	defer p.Destroy()
	if err := p.Initialize(); err != nil {
		t.Fatal(err)
	}
	slot, _, err := slotOf(p, "")
	if err == nil {
		err = p.InitToken(slot, userPIN, c.TokenLabel) // and no further
	}
	if err := errors.Join(err, p.Finalize()); err != nil {
		t.Fatal(err)
	}
	open(t, c)
}

func TestSparesTheLastTry(t *testing.T) {
	for name, c := range map[string]struct {
		flags uint
		code  uint32
	}{"final try": {pkcs11.CKF_USER_PIN_FINAL_TRY, 0}, "locked": {pkcs11.CKF_USER_PIN_LOCKED, pkcs11.CKR_PIN_LOCKED}} {
		tok := &Token{info: pkcs11.TokenInfo{Flags: c.flags}}
		err := tok.authenticate([]byte("1234"), func() { t.Errorf("%s: PIN shown", name) })
		if e := hsm.AsError(err); e == nil || e.Class != hsm.ClassFatal || e.Code != c.code || e.Remedy == "" {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

func TestNamesWhatIsMissing(t *testing.T) {
	c := newSoftHSM(t)
	for name, change := range map[string]func(*hsm.ModuleConfig){
		"no such token":  func(c *hsm.ModuleConfig) { c.TokenLabel = "another" },
		"no such module": func(c *hsm.ModuleConfig) { c.Module = "/nonexistent/pkcs11.so" },
		"wrong serial":   func(c *hsm.ModuleConfig) { c.TokenSerial = "0123456789abcdef" },
	} {
		bad := c
		change(&bad)
		_, err := Open(bad, []byte(userPIN), func() { t.Errorf("%s: PIN shown", name) }, rand.Reader)
		e := hsm.AsError(err)
		if e == nil || e.Class != hsm.ClassModule || e.Remedy == "" {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

func TestReplacesDeadSessions(t *testing.T) {
	tok := open(t, newSoftHSM(t))
	k, pub := generate(t, tok, policy.RoleSigning)
	enc, encPub := generate(t, tok, policy.RoleEncryption)
	digest := sha256.Sum256([]byte("m"))
	p := hsm.OAEP{Hash: crypto.SHA256, MGF: crypto.SHA256}
	work := func() error {
		sig, err := tok.Sign(hsm.SignRequest{Ref: k.Ref, Digest: digest[:], Hash: crypto.SHA256, Scheme: hsm.PKCS1v15})
		if err != nil {
			return err
		}
		got, err := tok.Decrypt(enc.Ref, encrypt(t, encPub, []byte("secret"), p), p)
		if err == nil && (string(got) != "secret" || rsa.VerifyPKCS1v15(pub, crypto.SHA256, digest[:], sig) != nil) {
			err = errors.New("wrong result")
		}
		return err
	}
	if err := work(); err != nil {
		t.Fatal(err)
	}
	// All work sessions die, the login lives on elsewhere, as after a token's
	// own clean-up.
	keep, err := tok.openSession()
	if err != nil {
		t.Fatal(err)
	}
	for h := pkcs11.SessionHandle(1); h < keep; h++ {
		_ = tok.p.CloseSession(h)
	}
	if err := work(); err != nil {
		t.Errorf("dead sessions: %v", err)
	}
	if tok.epoch == 0 {
		t.Error("the sessions were not replaced: the test proves nothing")
	}
	if err := tok.Check(); err != nil {
		t.Errorf("canary afterwards: %v", err)
	}
	// Everything gone, the login too: only a new worker with the PIN helps.
	if err := tok.p.CloseAllSessions(tok.slot); err != nil {
		t.Fatal(err)
	}
	if e := hsm.AsError(work()); e == nil || e.Class != hsm.ClassLogin && e.Class != hsm.ClassModule {
		t.Errorf("lost login: %+v", e)
	}
}

func TestServesManyAtOnce(t *testing.T) {
	tok := open(t, newSoftHSM(t))
	k, pub := generate(t, tok, policy.RoleSigning)
	enc, encPub := generate(t, tok, policy.RoleEncryption)
	p := hsm.OAEP{Hash: crypto.SHA256, MGF: crypto.SHA256}
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			for i := range 20 {
				digest := sha256.Sum256([]byte{byte(n), byte(i)})
				sig, err := tok.Sign(hsm.SignRequest{Ref: k.Ref, Digest: digest[:], Hash: crypto.SHA256, Scheme: hsm.PKCS1v15})
				if err != nil || rsa.VerifyPKCS1v15(pub, crypto.SHA256, digest[:], sig) != nil {
					t.Errorf("sign: %v", err)
				}
				got, err := tok.Decrypt(enc.Ref, encrypt(t, encPub, digest[:], p), p)
				if err != nil || !bytes.Equal(got, digest[:]) {
					t.Errorf("decrypt: %v", err)
				}
			}
		})
	}
	wg.Go(func() {
		if _, err := tok.List(); err != nil {
			t.Errorf("list: %v", err)
		}
	})
	wg.Wait()
}
