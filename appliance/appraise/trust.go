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

// Dates tells what is odd about the validity of a certificate and of the issuers that lead to its root, at a time; nil if nothing is. They
// are notes for administrators and refuse nobody: manufacturers' certificates run out while the TPM is in service, nobody can renew
// them, and a TPM is as genuine after it as before. What counts is who registered the host, and whether its vendor is on.
func (t *Trust) Dates(c *evidence.Certificate, at time.Time) (notes []string) {
	chain, err := t.chains.Chain(c, time.Time{})
	if err != nil {
		chain = []*evidence.Certificate{c} // that it leads nowhere is told by Chain
	}
	for i, c := range chain {
		switch {
		case at.Before(c.NotBefore):
			notes = append(notes, fmt.Sprintf("%q is valid only from %s on", c.Name(), c.NotBefore.UTC().Format(time.DateOnly)))
		case at.After(c.NotAfter):
			notes = append(notes, fmt.Sprintf("%q has expired on %s", c.Name(), c.NotAfter.UTC().Format(time.DateOnly)))
		}
		if i+1 < len(chain) && c.NotBefore.After(chain[i+1].NotAfter) {
			notes = append(notes, fmt.Sprintf("%q was issued after its issuer %q had expired", c.Name(), chain[i+1].Name()))
		}
	}
	return notes
}
