package evidence

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strings"
	"time"
)

// Trust holds the certificates that endorsement key certificates are checked against. It is immutable.
type Trust struct {
	roots, intermediates map[string][]*Certificate // by raw subject
}

// NewTrust makes a store of the roots that are trusted and of the intermediates that merely help to reach them.
func NewTrust(roots, intermediates []*Certificate) *Trust {
	index := func(cs []*Certificate) map[string][]*Certificate {
		m := make(map[string][]*Certificate, len(cs))
		for _, c := range cs {
			m[string(c.RawSubject)] = append(m[string(c.RawSubject)], c)
		}
		return m
	}
	return &Trust{index(roots), index(intermediates)}
}

// MissingIssuer says that a chain ends because a certificate is not in the stores: the one to import.
type MissingIssuer struct {
	Certificate string   // whose issuer is missing
	Issuer      string   // common name
	KeyID       string   // upper-case hex of the authority key identifier; empty if the certificate has none
	URLs        []string // where the certificate says its issuer is to be had
	Root        bool     // the issuer itself is at hand (self-signed), but is not among the trusted roots
}

// Error names the issuer and what to do.
func (e *MissingIssuer) Error() string {
	var b strings.Builder
	if e.Root {
		fmt.Fprintf(&b, "the root %q of %q is not trusted", e.Issuer, e.Certificate)
	} else {
		fmt.Fprintf(&b, "the issuer %q of %q is in neither store", e.Issuer, e.Certificate)
	}
	if e.KeyID != "" {
		fmt.Fprintf(&b, ", key id %s", e.KeyID)
	}
	if len(e.URLs) > 0 {
		fmt.Fprintf(&b, ", available at %s", strings.Join(e.URLs, " "))
	}
	return b.String() + ": import it if you trust this vendor"
}

// ChainProblem says that an issuer is known and does not fit.
type ChainProblem struct {
	Certificate, Issuer string
	Reason              string
}

// Error names both certificates.
func (e *ChainProblem) Error() string {
	return fmt.Sprintf("certificate %q, issued by %q: %s", e.Certificate, e.Issuer, e.Reason)
}

// maxChain is the most certificates between an endorsement key's and its root, both included. The search is bounded by maxTries.
const (
	maxChain = 8
	maxTries = 256
)

// Chain finds a way from a certificate to a trusted root and gives it, the leaf first. at is the time at which every certificate must be
// valid; the zero time skips that check, for vendors' expired intermediates. Revocation and key usage of the leaf are not looked at.
// The error is a [MissingIssuer] or a [ChainProblem], the one of the longest way found.
func (t *Trust) Chain(leaf *Certificate, at time.Time) ([]*Certificate, error) {
	s := search{trust: t, at: at}
	if err := s.valid(leaf); err != nil {
		return nil, err
	}
	if t.root(leaf) {
		return []*Certificate{leaf}, nil
	}
	return s.from([]*Certificate{leaf})
}

func (t *Trust) root(c *Certificate) bool {
	for _, r := range t.roots[string(c.RawSubject)] {
		if bytes.Equal(r.Original, c.Original) {
			return true
		}
	}
	return false
}

type search struct {
	trust *Trust
	at    time.Time
	tries int
}

func (s *search) from(chain []*Certificate) ([]*Certificate, error) {
	last := chain[len(chain)-1]
	var worst error = s.missing(last)
	if len(chain) == maxChain {
		return nil, &ChainProblem{last.Name(), nameOf(&last.Issuer), fmt.Sprintf("the chain has more than %d certificates", maxChain)}
	}
	for _, c := range s.trust.roots[string(last.RawIssuer)] {
		if err := s.issued(last, c); err != nil {
			worst = err
			continue
		}
		return append(chain, c), nil
	}
	for _, c := range s.trust.intermediates[string(last.RawIssuer)] {
		if contains(chain, c) || s.trust.root(c) {
			continue
		}
		if err := s.issued(last, c); err != nil {
			if _, named := worst.(*MissingIssuer); named {
				worst = err
			}
			continue
		}
		if bytes.Equal(c.RawIssuer, c.RawSubject) {
			worst = &MissingIssuer{Certificate: last.Name(), Issuer: c.Name(), KeyID: upperHex(c.SubjectKeyId), Root: true}
			continue
		}
		found, err := s.from(append(chain, c))
		if err == nil {
			return found, nil
		}
		worst = err
	}
	return nil, worst
}

func (s *search) missing(c *Certificate) *MissingIssuer {
	return &MissingIssuer{Certificate: c.Name(), Issuer: nameOf(&c.Issuer), KeyID: upperHex(c.AuthorityKeyId), URLs: c.IssuingCertificateURL,
		Root: bytes.Equal(c.RawIssuer, c.RawSubject)}
}

func contains(chain []*Certificate, c *Certificate) bool {
	for _, have := range chain {
		if bytes.Equal(have.Original, c.Original) {
			return true
		}
	}
	return false
}

// issued says why issuer did not issue c, nil if it did.
func (s *search) issued(c, issuer *Certificate) error {
	problem := func(format string, args ...any) error {
		return &ChainProblem{c.Name(), issuer.Name(), fmt.Sprintf(format, args...)}
	}
	if s.tries++; s.tries > maxTries {
		return problem("the search was given up after %d tries", maxTries)
	}
	if len(c.AuthorityKeyId) > 0 && len(issuer.SubjectKeyId) > 0 && !bytes.Equal(c.AuthorityKeyId, issuer.SubjectKeyId) {
		return s.missing(c) // another generation of the same name
	}
	if issuer.Version >= 3 && (!issuer.BasicConstraintsValid || !issuer.IsCA) {
		return problem("the issuer is no certification authority")
	}
	if err := c.signedBy(issuer); err != nil {
		return problem("%v", err)
	}
	return s.valid(issuer)
}

func (s *search) valid(c *Certificate) error {
	if s.at.IsZero() || !s.at.Before(c.NotBefore) && !s.at.After(c.NotAfter) {
		return nil
	}
	return &ChainProblem{c.Name(), nameOf(&c.Issuer), fmt.Sprintf("valid from %s to %s only", c.NotBefore.Format(time.DateOnly), c.NotAfter.Format(time.DateOnly))}
}

func upperHex(b []byte) string { return strings.ToUpper(hex.EncodeToString(b)) }
