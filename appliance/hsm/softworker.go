package hsm

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/policy"
)

// ServeSoftware is the worker that holds software keys: it takes them from conn, answers calls with them until conn ends, and forgets
// them with its process. It never loads foreign code and shares no process with what does. Nothing of a key is ever written to a disk:
// all of its memory is locked or, where the limit does not allow that (Go reserves gigabytes of addresses, and all would count), the
// machine has no swap; else it holds no key at all. narrow is called before the first key comes, to give up all but that connection.
func ServeSoftware(conn io.ReadWriteCloser, narrow func() error) error {
	defer conn.Close()
	if err := errors.Join(stayInMemory(), narrow()); err != nil {
		return err
	}
	s := &softToken{keys: map[policy.KeyRef]softKey{}}
	w := &worker{token: s, lane: &lane{conn: conn}}
	for {
		var c call
		id, body, err := w.lane.receive(&c)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if c.Op != opLoad {
			err = w.answer(id, c, body)
		} else {
			var a answer
			if e := s.load(c.Ref, c.Role, body); e != nil {
				a.Error = AsError(e)
			}
			clear(body)
			err = w.lane.write(id, a, nil)
		}
		if err != nil {
			return err
		}
	}
}

// stayInMemory sees that no page of this process reaches a disk.
func stayInMemory() error {
	locked := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT)
	if locked == nil {
		return nil
	}
	swaps, err := os.ReadFile("/proc/swaps")
	if err != nil {
		return fmt.Errorf("hsm: the memory of software keys can't be locked (%w), and whether there is swap is not known: %w", locked, err)
	}
	if bytes.Count(bytes.TrimSpace(swaps), []byte("\n")) > 0 { // a header, then a line for each
		return fmt.Errorf("hsm: the memory of software keys can't be locked, and this machine has swap (raise the limit MEMLOCK): %w", locked)
	}
	return nil
}

type softKey struct {
	role policy.KeyRole
	spki []byte
	key  *rsa.PrivateKey
}

// softToken is the Token of software keys. It keeps the rules of a real one: a key does what its role says and nothing else.
type softToken struct {
	mu   sync.Mutex
	keys map[policy.KeyRef]softKey
}

// load takes a private key over. der is the caller's to wipe.
func (s *softToken) load(ref policy.KeyRef, role policy.KeyRole, der []byte) error {
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return badRequest("a software key does not parse") // the reason could quote it
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if !ok || key.N.BitLen() < 2048 || !KnownRole(role) {
		return badRequest("a software key is RSA, has 2048 bits or more and a role")
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil || policy.RefOf(spki) != ref {
		return badRequest("a software key is not the one that it is recorded as")
	}
	key.Precompute()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[ref] = softKey{role, spki, key}
	return nil
}

func (s *softToken) find(ref policy.KeyRef) (softKey, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, ok := s.keys[ref]
	if !ok {
		return k, &Error{Kind: KindNoKey, Detail: "there is no such software key"}
	}
	return k, nil
}

// Info implements Token.
func (s *softToken) Info() TokenInfo { return TokenInfo{Label: "software", OAEP: OAEPSoftware} }

// List implements Token.
func (s *softToken) List() ([]Key, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Key, 0, len(s.keys))
	for ref, k := range s.keys {
		list = append(list, Key{Ref: ref, Role: k.role, Label: "software key", Bits: k.key.N.BitLen(), SPKI: k.spki, Private: true, Extractable: true,
			Sign: !Decrypts(k.role), Decrypt: Decrypts(k.role), Store: policy.StoreSoftware})
	}
	slices.SortFunc(list, func(a, b Key) int { return strings.Compare(string(a.Ref), string(b.Ref)) })
	return list, nil
}

// Generate implements Token: no software key is made here.
func (s *softToken) Generate(policy.KeyRole, int) (Key, error) {
	return Key{}, badRequest("keys are made in the token only")
}

// Sign implements Token.
func (s *softToken) Sign(r SignRequest) ([]byte, error) {
	k, err := s.find(r.Ref)
	if err != nil {
		return nil, err
	}
	switch r.Hash {
	case crypto.SHA256, crypto.SHA384, crypto.SHA512:
	default:
		return nil, badRequest("a signature needs a SHA-2 digest")
	}
	if len(r.Digest) != r.Hash.Size() {
		return nil, badRequest("a signature needs a digest of the right length")
	}
	if Decrypts(k.role) || r.Role != "" && r.Role != k.role {
		return nil, &Error{Kind: KindUsage, Detail: "the key's role does not allow this signature"}
	}
	switch r.Scheme {
	case PKCS1v15:
		return rsa.SignPKCS1v15(nil, k.key, r.Hash, r.Digest)
	case PSS:
		return rsa.SignPSS(rand.Reader, k.key, r.Hash, r.Digest, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	}
	return nil, badRequest("no such signature scheme")
}

// Decrypt implements Token.
func (s *softToken) Decrypt(ref policy.KeyRef, ciphertext []byte, p OAEP) ([]byte, error) {
	k, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	if !Decrypts(k.role) {
		return nil, &Error{Kind: KindUsage, Detail: "this key does not decrypt"}
	}
	if !p.Valid() {
		return nil, badRequest("OAEP is offered with SHA-1, SHA-256, SHA-384 and SHA-512")
	}
	plain, err := k.key.Decrypt(nil, ciphertext, &rsa.OAEPOptions{Hash: p.Hash, MGFHash: p.MGF, Label: p.Label})
	if err != nil {
		return nil, ErrDecrypt
	}
	return plain, nil
}

// Request implements Token.
func (s *softToken) Request(ref policy.KeyRef, info []byte) ([]byte, error) {
	k, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	digest, _, err := RequestDigest(info, k.spki, k.key.Size())
	if err != nil {
		return nil, err
	}
	return rsa.SignPKCS1v15(nil, k.key, crypto.SHA256, digest[:])
}

// Destroy refuses: the ledger wipes a software key where it is sealed.
func (s *softToken) Destroy(DestroyRequest) (int, error) {
	return 0, badRequest("software keys are not destroyed here")
}

// Check implements Token.
func (s *softToken) Check() error { return nil }
