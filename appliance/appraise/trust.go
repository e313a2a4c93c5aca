package appraise

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"time"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
)

var (
	errNoCertificate = errors.New("the host has none on record")
	errOtherKey      = errors.New("it is for another key")
)

// Trust are the TPM vendors' certificates of one State, of the vendors that are on, with the chains found so far. It is safe for
// concurrent use.
type Trust struct {
	chains *evidence.Trust

	mu    sync.RWMutex
	known map[[sha256.Size]byte]result
}

type result struct {
	id  string // of the certified key
	err error
}

// maxKnown bounds the chains that are remembered; beyond it they are forgotten, not refused.
const maxKnown = policy.MaxHosts

// NewTrust reads the anchors. What can't be read is an error in the second result and is not trusted.
func NewTrust(s policy.State) (*Trust, []error) {
	var roots, intermediates []*evidence.Certificate
	var bad []error
	for _, a := range s.Anchors {
		if s.VendorOff(a.Vendor) {
			continue
		}
		c, err := evidence.ParseCertificate(a.Certificate)
		switch {
		case err != nil:
			bad = append(bad, fmt.Errorf("TPM certificate %q of %s: %w", a.Name, a.Vendor, err))
		case a.Root:
			roots = append(roots, c)
		default:
			intermediates = append(intermediates, c)
		}
	}
	return &Trust{chains: evidence.NewTrust(roots, intermediates), known: map[[sha256.Size]byte]result{}}, bad
}

// Check says why an endorsement key's certificate (DER) is not trusted for that key, nil if it is.
func (t *Trust) Check(cert []byte, ek *evidence.EK) error {
	if len(cert) == 0 {
		return errNoCertificate
	}
	sum := sha256.Sum256(cert)
	t.mu.RLock()
	r, ok := t.known[sum]
	t.mu.RUnlock()
	if !ok {
		r = t.find(cert)
		t.mu.Lock()
		if len(t.known) >= maxKnown {
			clear(t.known)
		}
		t.known[sum] = r
		t.mu.Unlock()
	}
	if r.err == nil && r.id != ek.ID() {
		return errOtherKey
	}
	return r.err
}

func (t *Trust) find(cert []byte) result {
	c, err := evidence.ParseCertificate(cert)
	if err != nil {
		return result{err: err}
	}
	ek, err := c.EK()
	if err != nil {
		return result{err: err}
	}
	_, err = t.chains.Chain(c, time.Time{})
	return result{ek.ID(), err}
}

// Chain gives the thumbprints of the anchors from a certificate's issuer to the root, for policy.TPMHostAdd. The error names what is
// missing (evidence.MissingIssuer) or does not fit.
func (t *Trust) Chain(c *evidence.Certificate) ([]string, error) {
	chain, err := t.chains.Chain(c, time.Time{})
	if err != nil {
		return nil, err
	}
	var tps []string
	for _, issuer := range chain[min(1, len(chain)-1):] { // a root itself stands for itself
		tps = append(tps, policy.Thumbprint(issuer.Original))
	}
	return tps, nil
}
