package hsm

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// MaxPIN bounds a PIN in bytes. PKCS#11 tokens rarely accept more than 64.
const MaxPIN = 255

// Secret is a short secret in memory of its own: locked against swapping, left
// out of core dumps, not inherited by a fork and wiped when released. It is not
// safe for concurrent use with Wipe.
type Secret struct {
	page []byte
	n    int
}

// NewSecret moves src into locked memory: src is wiped in any case. It fails
// when src is empty or longer than MaxPIN, or when the memory cannot be locked.
func NewSecret(src []byte) (*Secret, error) {
	defer clear(src)
	if len(src) == 0 || len(src) > MaxPIN {
		return nil, badRequest("a PIN has 1 to %d bytes", MaxPIN)
	}
	s, err := emptySecret()
	if err != nil {
		return nil, err
	}
	s.n = copy(s.page, src)
	return s, nil
}

// emptySecret allocates the locked page.
func emptySecret() (*Secret, error) {
	page, err := unix.Mmap(-1, 0, unix.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("hsm: memory for a secret: %w", err)
	}
	if err := unix.Mlock(page); err != nil {
		_ = unix.Munmap(page)
		return nil, fmt.Errorf("hsm: lock memory for a secret (raise the limit MEMLOCK): %w", err)
	}
	for _, advice := range []int{unix.MADV_DONTDUMP, unix.MADV_WIPEONFORK} {
		if err := unix.Madvise(page, advice); err != nil {
			_ = unix.Munmap(page)
			return nil, fmt.Errorf("hsm: keep a secret out of dumps and forks: %w", err)
		}
	}
	return &Secret{page: page}, nil
}

// Bytes gives the secret itself, not a copy; nil after Wipe.
func (s *Secret) Bytes() []byte {
	if s == nil || s.page == nil {
		return nil
	}
	return s.page[:s.n]
}

// Wipe overwrites the secret and gives the memory back. It may be called twice
// and on nil.
func (s *Secret) Wipe() {
	if s == nil || s.page == nil {
		return
	}
	clear(s.page)
	_ = unix.Munmap(s.page)
	s.page, s.n = nil, 0
}
