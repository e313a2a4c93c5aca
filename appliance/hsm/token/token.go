// Package token drives one PKCS#11 token through its vendor's module.
//
// Promise. crypto11 loads and initialises the module, finds the token, makes
// key pairs, finds them, reads their attributes and signs; miekg/pkcs11, through
// the very binding that crypto11 initialised, does the login (so that the PIN is
// never kept) and decrypts, on sessions of its own. Nobody initialises or
// finalises the module a second time. A key is made sensitive, non-extractable and for
// one purpose, the attributes are read back, and a key that came out otherwise
// is destroyed. Of keys that are in use only one that was made so is ever
// destroyed, when it is asked for by name, identifier and public key, and then
// with everything that belongs to it. An OAEP ciphertext gives one error whatever is wrong with it.
//
// Limits. This package is cgo and runs foreign code in its process: only the
// worker of cmd/hsm may use it. Calls block for as long as the module does. A
// module is not replaced in place: the process ends instead. The binding leaks a
// modulus' worth of memory for each ciphertext that the token itself refuses,
// and frees PIN and plaintext without wiping them; Check asks for a new worker
// when too much has leaked. Safe for use by several goroutines.
package token

import (
	"cmp"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"

	"guardhouse/appliance/hsm"
	"guardhouse/appliance/policy"
)

const (
	defaultSessions = 4
	poolWait        = 4 * time.Second // below the keeper's deadline
	maxRefused      = 1 << 16         // leaked ciphertexts before a new worker: 32 MiB at RSA-4096
)

// Token is an open token, logged in. It implements hsm.Token.
type Token struct {
	cfg  hsm.ModuleConfig
	rand io.Reader
	p    *pkcs11.Ctx // the library crypto11 initialised; never Initialize, Finalize or Destroy
	slot uint
	info pkcs11.TokenInfo

	refresh sync.Mutex // held while sessions are replaced
	mu      sync.RWMutex
	epoch   int                     // counts replacements of sessions
	c11     *crypto11.Context       // guarded by mu
	login   pkcs11.SessionHandle    // holds the login, does no work; guarded by mu
	keys    map[policy.KeyRef]*pair // by reference; guarded by mu
	modes   map[mode]hsm.OAEPMode
	idle    chan pkcs11.SessionHandle

	refused atomic.Int64
}

// pair is one key pair of the token.
type pair struct {
	hsm.Key
	pub    *rsa.PublicKey
	signer crypto11.SignerDecrypter
	handle pkcs11.ObjectHandle // private half
}

// Open loads the module, finds the one token that c names and logs in with pin,
// which it wipes. login is called before the PIN is shown to the token; random
// gives key identifiers and challenges. Errors are *hsm.Error; after one the
// process should end, because not every module can be loaded twice.
func Open(c hsm.ModuleConfig, pin []byte, login func(), random io.Reader) (*Token, error) {
	defer clear(pin)
	if err := c.Valid(); err != nil {
		return nil, err
	}
	if c.Sessions == 0 {
		c.Sessions = defaultSessions
	}
	t := &Token{cfg: c, rand: random, keys: map[policy.KeyRef]*pair{}, modes: map[mode]hsm.OAEPMode{},
		idle: make(chan pkcs11.SessionHandle, c.Sessions)}
	if c.Create {
		if err := create(c, pin); err != nil {
			return nil, err
		}
	}
	var err error
	if t.c11, err = t.configure(); err != nil {
		return nil, err
	}
	if err := t.start(pin, login); err != nil {
		_ = t.c11.Close()
		return nil, err
	}
	return t, nil
}

// start is Open after the module was initialised.
func (t *Token) start(pin []byte, login func()) (err error) {
	if t.p, err = binding(t.c11); err != nil {
		return err
	}
	if err := t.find(); err != nil {
		return err
	}
	if t.login, err = t.openSession(); err != nil {
		return fail("open session", err)
	}
	if err := t.authenticate(pin, login); err != nil {
		return err
	}
	if _, err := t.List(); err != nil {
		return err
	}
	t.probeAny()
	return nil
}

// binding gives the miekg/pkcs11 binding that crypto11 initialised. Loading the
// library a second time is no way to it: p11-kit-client.so gives every caller of
// C_GetFunctionList an instance of its own, with its own connection and its own
// login. crypto11 does not export the field, so its name and type are checked.
func binding(c *crypto11.Context) (*pkcs11.Ctx, error) {
	f := reflect.ValueOf(c).Elem().FieldByName("ctx")
	if f.Kind() == reflect.Struct {
		f = f.FieldByName("Ctx")
	}
	if !f.IsValid() || f.Type() != reflect.TypeFor[*pkcs11.Ctx]() || f.IsNil() {
		return nil, &hsm.Error{Kind: hsm.KindFailed, Class: hsm.ClassFatal, Detail: "this build's crypto11 hides its binding elsewhere"}
	}
	return (*pkcs11.Ctx)(f.UnsafePointer()), nil
}

// configure makes a crypto11 context without login.
func (t *Token) configure() (*crypto11.Context, error) {
	c := &crypto11.Config{
		Path: t.cfg.Module, TokenSerial: t.cfg.TokenSerial,
		MaxSessions: t.cfg.Sessions + 1, PoolWaitTimeout: poolWait, LoginNotSupported: true,
	}
	if c.TokenSerial == "" { // crypto11 takes one of the two
		c.TokenLabel = t.cfg.TokenLabel
	}
	ctx, err := crypto11.Configure(c)
	if err == nil {
		return ctx, nil
	}
	if p, ok := errors.AsType[pkcs11.Error](err); ok {
		return nil, hsm.Classify("open token", uint32(p))
	}
	// crypto11 has no exported errors for these two.
	switch text := err.Error(); {
	case strings.Contains(text, "failed to open module"):
		return nil, &hsm.Error{Kind: hsm.KindUnavailable, Class: hsm.ClassModule, Detail: "the PKCS#11 module cannot be loaded",
			Remedy: "check the module's path and that every library it needs is in the image"}
	case strings.Contains(text, "could not find PKCS#11 token"):
		return nil, t.absent()
	default:
		return nil, &hsm.Error{Kind: hsm.KindUnavailable, Class: hsm.ClassModule, Detail: "open token: " + text}
	}
}

func (t *Token) absent() *hsm.Error {
	return &hsm.Error{Kind: hsm.KindUnavailable, Class: hsm.ClassModule,
		Detail: fmt.Sprintf("no token with label %q serial %q", t.cfg.TokenLabel, t.cfg.TokenSerial),
		Remedy: "check the HSM's power and link, and the token's name in the settings"}
}

// find sets slot and info; two tokens of the same name are refused, because the
// PIN would be shown to whichever comes first.
func (t *Token) find() error {
	slots, err := t.p.GetSlotList(true)
	if err != nil {
		return fail("list slots", err)
	}
	found := 0
	for _, slot := range slots {
		info, err := t.p.GetTokenInfo(slot)
		if err != nil {
			continue // a broken neighbour is not our token
		}
		if (t.cfg.TokenLabel == "" || info.Label == t.cfg.TokenLabel) &&
			(t.cfg.TokenSerial == "" || info.SerialNumber == t.cfg.TokenSerial) {
			t.slot, t.info = slot, info
			found++
		}
	}
	switch {
	case found == 0:
		return t.absent()
	case found > 1:
		return &hsm.Error{Kind: hsm.KindFailed, Class: hsm.ClassFatal, Detail: "several tokens have this name",
			Remedy: "name the token by its serial number"}
	}
	return nil
}

// authenticate logs in on the session that is kept for this. All sessions of
// the process share the login (PKCS#11 v2.40 base, section 2.6).
func (t *Token) authenticate(pin []byte, login func()) error {
	switch {
	case t.info.Flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return hsm.Classify("login", pkcs11.CKR_PIN_LOCKED)
	case t.info.Flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0 && !t.cfg.LastTry:
		return &hsm.Error{Kind: hsm.KindFailed, Class: hsm.ClassFatal, Detail: "login not tried: one more wrong PIN locks the token",
			Remedy: "make sure of the PIN, then enter it again and confirm the last try"}
	}
	login()
	// The binding copies the string before it returns; no Go string of the PIN
	// outlives this call.
	err := t.p.Login(t.login, pkcs11.CKU_USER, unsafe.String(unsafe.SliceData(pin), len(pin)))
	if p, ok := errors.AsType[pkcs11.Error](err); ok && p == pkcs11.CKR_USER_ALREADY_LOGGED_IN {
		return nil
	}
	if err != nil {
		return fail("login", err)
	}
	return nil
}

// Info describes the token.
func (t *Token) Info() hsm.TokenInfo {
	t.mu.RLock()
	defer t.mu.RUnlock()
	info := hsm.TokenInfo{Label: t.info.Label, Serial: t.info.SerialNumber, Manufacturer: t.info.ManufacturerID,
		Model: t.info.Model, OAEP: t.modes[profileP1]}
	for _, k := range t.keys {
		if k.Role != "" && len(info.Problems) < 16 {
			info.Problems = append(info.Problems, k.Findings()...)
		}
	}
	return info
}

// maxCanaries bounds how many keys Check asks when some do not work.
const maxCanaries = 3

// Check proves that the token still works: the login stands and, if there is a
// signing key, a signature over a fresh challenge verifies. Smaller keys and
// keys of ours are asked first. One that does not do its work says nothing about
// the token as long as another one does: somebody may have put a bad key there.
func (t *Token) Check() error {
	if t.refused.Load() > maxRefused {
		return &hsm.Error{Kind: hsm.KindUnavailable, Class: hsm.ClassModule, Detail: "worker is due for replacement"}
	}
	return t.withRetry(func() error {
		t.mu.RLock()
		var signing []*pair
		for _, e := range t.keys {
			if e.MaySign() {
				signing = append(signing, e)
			}
		}
		session := t.login
		t.mu.RUnlock()
		if err := t.loggedIn(session); err != nil {
			return err
		}
		if len(signing) == 0 {
			_, err := t.p.GenerateRandom(session, 16)
			return fail("random", err)
		}
		slices.SortFunc(signing, func(a, b *pair) int {
			if ours := cmp.Compare(b.Role, a.Role); (a.Role == "") != (b.Role == "") {
				return ours
			}
			return cmp.Or(cmp.Compare(a.Bits, b.Bits), cmp.Compare(a.Ref, b.Ref))
		})
		var err error
		for _, k := range signing[:min(len(signing), maxCanaries)] {
			err = t.prove(k)
			if e := hsm.AsError(err); e == nil || e.Class != hsm.ClassNone && !errors.Is(err, errWrongSignature) {
				break
			}
		}
		return err
	})
}

// loggedIn asks the token whether the session is alive and logged in.
func (t *Token) loggedIn(session pkcs11.SessionHandle) error {
	info, err := t.p.GetSessionInfo(session)
	if err != nil {
		return fail("session info", err)
	}
	if info.State != pkcs11.CKS_RW_USER_FUNCTIONS && info.State != pkcs11.CKS_RO_USER_FUNCTIONS {
		return hsm.Classify("session info", pkcs11.CKR_USER_NOT_LOGGED_IN)
	}
	return nil
}

// Close closes our sessions and lets crypto11 finalise the module. The worker
// just ends instead.
func (t *Token) Close() {
	t.dropIdle()
	t.mu.Lock()
	defer t.mu.Unlock()
	_ = t.p.CloseSession(t.login)
	_ = t.c11.Close()
}

// fail turns an error of the bindings into *hsm.Error; nil stays nil.
func fail(op string, err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*hsm.Error](err); ok {
		return e
	}
	if p, ok := errors.AsType[pkcs11.Error](err); ok {
		return hsm.Classify(op, uint32(p))
	}
	return &hsm.Error{Kind: hsm.KindUnavailable, Class: hsm.ClassModule, Detail: op + ": " + err.Error()}
}
