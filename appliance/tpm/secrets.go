package tpm

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/disk"
	"guardhouse/appliance/policy"
)

const (
	rootFile  = "root.json"
	boxSuffix = ".box"
	rootSize  = 32
	nonceSize = 12
	// MaxSecret is the size of the largest secret, in bytes.
	MaxSecret = 64 << 10
)

// ErrNoSecret is a name that was never put.
var ErrNoSecret = errors.New("there is no such secret")

// Secrets is a folder of boxed secrets. Safe for concurrent use.
type Secrets struct {
	dir    string
	policy SealPolicy
	rand   io.Reader

	mu   sync.Mutex
	root []byte // one locked page; nil once closed
	page []byte
}

// OpenSecrets unseals the root key of the folder, or makes one where the folder holds nothing. The folder must exist. Errors of type
// *Error are for people.
func OpenSecrets(dir string, t *TPM, p SealPolicy, rand io.Reader) (*Secrets, error) {
	s := &Secrets{dir: dir, policy: p, rand: rand}
	b, err := os.ReadFile(filepath.Join(dir, rootFile))
	var key []byte
	switch {
	case errors.Is(err, fs.ErrNotExist):
		key, err = s.newRoot(t)
	case err == nil:
		key, err = openRoot(t, p, b)
	}
	if err != nil {
		return nil, err
	}
	return s.keep(key)
}

// volumePolicy marks a root key that lies in clear beside its boxes.
const volumePolicy = "volume"

// volumeRoot is the file of such a root key.
type volumeRoot struct {
	Version int    `json:"version"` // 1
	Policy  string `json:"policy"`  // volumePolicy
	Key     []byte `json:"key"`
}

// OpenVolumeSecrets is OpenSecrets for a folder on the sealed volume, readable by its owner alone: there the root key needs no seal of
// its own, and could have none, because package volume has capped the TPM's registers before anybody else runs.
func OpenVolumeSecrets(dir string, rand io.Reader) (*Secrets, error) {
	s := &Secrets{dir: dir, rand: rand}
	b, err := os.ReadFile(filepath.Join(dir, rootFile))
	defer clear(b)
	var f volumeRoot
	switch {
	case errors.Is(err, fs.ErrNotExist):
		names, err := s.names()
		if err != nil {
			return nil, err
		}
		if len(names) > 0 {
			return nil, damaged("there are %d secrets but no root key for them", len(names))
		}
		f = volumeRoot{1, volumePolicy, make([]byte, rootSize)}
		if _, err := io.ReadFull(rand, f.Key); err != nil {
			return nil, fmt.Errorf("randomness: %w", err)
		}
		text, err := json.Marshal(f)
		if err != nil {
			return nil, err
		}
		defer clear(text)
		if err := s.replace(rootFile, text); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, fmt.Errorf("secrets: %w", err)
	default:
		if err := json.Unmarshal(b, &f); err != nil || f.Version != 1 || f.Policy != volumePolicy {
			return nil, damaged("the file of the root key is not that of a sealed volume")
		}
	}
	return s.keep(f.Key)
}

// keep moves the root key into a locked page and wipes key.
func (s *Secrets) keep(key []byte) (_ *Secrets, err error) {
	defer clear(key)
	if len(key) != rootSize {
		return nil, damaged("the root key has %d bytes", len(key))
	}
	if s.page, err = unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE); err != nil {
		return nil, fmt.Errorf("memory for the root key: %w", err)
	}
	if err := unix.Mlock(s.page); err != nil {
		unix.Munmap(s.page)
		return nil, fmt.Errorf("lock the root key in memory: %w; the process needs RLIMIT_MEMLOCK of 64 KiB", err)
	}
	unix.Madvise(s.page, unix.MADV_DONTDUMP)
	s.root = s.page[:rootSize]
	copy(s.root, key)
	return s, nil
}

func openRoot(t *TPM, p SealPolicy, file []byte) ([]byte, error) {
	var blob sealed
	if err := json.Unmarshal(file, &blob); err != nil || blob.Version != 1 {
		return nil, damaged("the file of the sealed root key does not parse")
	}
	if blob.Policy != p.Kind() {
		return nil, damaged("the root key is sealed under the policy %q, this image knows %q", blob.Policy, p.Kind())
	}
	return t.unseal(p, &blob)
}

func (s *Secrets) newRoot(t *TPM) ([]byte, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	if len(names) > 0 {
		return nil, damaged("there are %d secrets but no root key for them", len(names))
	}
	key := make([]byte, rootSize)
	if _, err := io.ReadFull(s.rand, key); err != nil {
		return nil, fmt.Errorf("randomness: %w", err)
	}
	blob, err := t.seal(s.policy, key)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(blob)
	if err != nil {
		return nil, err
	}
	return key, s.replace(rootFile, b)
}

// Describe is a line for people: what the root key is sealed to.
func (s *Secrets) Describe() string {
	if s.policy == nil {
		return "on the sealed volume"
	}
	return s.policy.Describe()
}

// Close wipes the root key.
func (s *Secrets) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.root == nil {
		return nil
	}
	clear(s.page)
	s.root = nil
	return unix.Munmap(s.page)
}

func (s *Secrets) names() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("secrets: %w", err)
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), boxSuffix); ok {
			names = append(names, name)
		}
	}
	return names, nil
}

// aead is the box's cipher; s.mu is held.
func (s *Secrets) aead(name string) (cipher.AEAD, []byte, error) {
	if s.root == nil {
		return nil, nil, errors.New("the secrets are closed")
	}
	if !policy.ValidName(name) {
		return nil, nil, fmt.Errorf("%q is not a name of a secret", name)
	}
	block, err := aes.NewCipher(s.root)
	if err != nil {
		return nil, nil, err
	}
	gcm, err := cipher.NewGCM(block)
	return gcm, []byte("guardhouse secret 1\x00" + name), err
}

// Put boxes the secret under name, replacing an older one. It is durable when Put returns. The caller wipes secret.
func (s *Secrets) Put(name string, secret []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	gcm, aad, err := s.aead(name)
	if err != nil {
		return err
	}
	if len(secret) > MaxSecret {
		return fmt.Errorf("secret %s is larger than %d bytes", name, MaxSecret)
	}
	nonce := make([]byte, nonceSize, nonceSize+len(secret)+gcm.Overhead())
	if _, err := io.ReadFull(s.rand, nonce); err != nil {
		return fmt.Errorf("randomness: %w", err)
	}
	return s.replace(name+boxSuffix, gcm.Seal(nonce, nonce, secret, aad))
}

// Get opens the box; the caller wipes what it gets. ErrNoSecret where there is none, *Error where it does not open.
func (s *Secrets) Get(name string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	gcm, aad, err := s.aead(name)
	if err != nil {
		return nil, err
	}
	box, err := os.ReadFile(filepath.Join(s.dir, name+boxSuffix))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNoSecret, name)
	}
	if err != nil {
		return nil, fmt.Errorf("secret %s: %w", name, err)
	}
	if len(box) < nonceSize+gcm.Overhead() || len(box) > MaxSecret+1024 {
		return nil, damaged("the box of the secret %q is damaged", name)
	}
	secret, err := gcm.Open(nil, box[:nonceSize], box[nonceSize:], aad)
	if err != nil {
		return nil, damaged("the box of the secret %q is damaged or was made under another root key", name)
	}
	return secret, nil
}

// Delete removes a secret; none is no error.
func (s *Secrets) Delete(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, _, err := s.aead(name); err != nil {
		return err
	}
	err := os.Remove(filepath.Join(s.dir, name+boxSuffix))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(err, disk.SyncDir(s.dir))
}

// Names lists the secrets, sorted.
func (s *Secrets) Names() ([]string, error) {
	names, err := s.names()
	slices.Sort(names)
	return names, err
}

func (s *Secrets) replace(name string, b []byte) error {
	if err := disk.ReplaceFile(filepath.Join(s.dir, name), b); err != nil {
		return fmt.Errorf("secrets: %w", err)
	}
	return nil
}
