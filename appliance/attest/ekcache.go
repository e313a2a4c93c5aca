package attest

import (
	"crypto/sha256"
	"sync"

	"guardhouse/appliance/evidence"
)

// ekCache keeps the endorsement keys of registered hosts as they were parsed, by
// the digest of the bytes they came in: a conversation has five or six rounds,
// each of which names the key. It forgets everything when there are too many.
// The keys are shared: who changes one makes a copy.
type ekCache struct {
	mu    sync.Mutex
	known map[[sha256.Size]byte]*evidence.EK
}

const maxEKs = 32 << 10 // of about 1 KB; a host has one as registered and one as it sends it

func (c *ekCache) get(raw []byte) (*evidence.EK, bool) {
	sum := sha256.Sum256(raw)
	c.mu.Lock()
	defer c.mu.Unlock()
	ek, ok := c.known[sum]
	return ek, ok
}

// put is for keys of registered hosts only: strangers may send as many as they
// like.
func (c *ekCache) put(raw []byte, ek *evidence.EK) {
	sum := sha256.Sum256(raw)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil || len(c.known) >= maxEKs {
		c.known = map[[sha256.Size]byte]*evidence.EK{}
	}
	c.known[sum] = ek
}

// registered parses a key on record.
func (c *ekCache) registered(raw []byte) (*evidence.EK, error) {
	if ek, ok := c.get(raw); ok {
		return ek, nil
	}
	ek, err := evidence.ParseEK(raw)
	if err == nil {
		c.put(raw, ek)
	}
	return ek, err
}
