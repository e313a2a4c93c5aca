package volume

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// keyPage is a volume key in a page of its own, which is never swapped out nor dumped.
type keyPage struct {
	page []byte
	key  []byte
}

// lockKey moves key into a page: key is wiped.
func lockKey(key []byte) (*keyPage, error) {
	defer clear(key)
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("memory for the volume key: %w", err)
	}
	if err := unix.Mlock(page); err != nil {
		unix.Munmap(page)
		return nil, fmt.Errorf("lock the volume key in memory: %w", err)
	}
	unix.Madvise(page, unix.MADV_DONTDUMP)
	k := &keyPage{page, page[:len(key)]}
	copy(k.key, key)
	return k, nil
}

// wipe forgets the key. It may be called on nil, and again.
func (k *keyPage) wipe() {
	if k == nil || k.page == nil {
		return
	}
	clear(k.page)
	unix.Munmap(k.page)
	k.page, k.key = nil, nil
}
