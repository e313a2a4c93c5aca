package policy

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// MaxChain is how many certificates a node sends beside its own.
const MaxChain = 4

// SharedHTTPS is a certificate that every node serves which has none of its own. Its key is derived on each node from the cluster's secret
// and the generation, so that it is the same everywhere and travels nowhere.
type SharedHTTPS struct {
	Certificate []byte   `json:"certificate"`
	Chain       [][]byte `json:"chain,omitempty"`
	Generation  int      `json:"generation"`
}

// HTTPSInstall is the body of https.install. Node "" installs for all nodes; the last who installs wins, on one node or on all.
// Certificate and Chain are DER, the chain from the issuer upwards without the root.
type HTTPSInstall struct {
	Node        string   `json:"node,omitempty"`
	Certificate []byte   `json:"certificate"`
	Chain       [][]byte `json:"chain,omitempty"`
	Generation  int      `json:"generation,omitempty"` // of the shared key
}

// HTTPSCertificate is what a node answers with on port 443, its own certificate first; nil before setup.
func (s State) HTTPSCertificate(node string) (certificates [][]byte) {
	n := s.Nodes[node]
	if s.Service != nil && s.Service.SharedHTTPS != nil && !n.OwnHTTPS {
		return append([][]byte{s.Service.SharedHTTPS.Certificate}, s.Service.SharedHTTPS.Chain...)
	}
	if len(n.Certificate) == 0 {
		return nil
	}
	return append([][]byte{n.Certificate}, n.Chain...)
}

// Kinds of what is told of an HTTPS certificate.
const (
	HTTPSExpired     = "https-expired"
	HTTPSExpiring    = "https-expiring"
	HTTPSNotYet      = "https-not-yet-valid"
	HTTPSOtherName   = "https-other-name"
	HTTPSSubjectOnly = "https-subject-only"
)

// HTTPSWarning is how long before its end an HTTPS certificate is a warning.
const HTTPSWarning = 30 * 24 * time.Hour

const httpsRemedy = "https csr, have it signed, then https install; or https self-signed"

// HTTPSNotes are what an administrator should know of a certificate that is in use or about to be: dates and names. now is the trusted
// interval; zero = not known, then dates are not looked at.
func HTTPSNotes(service string, cert *x509.Certificate, earliest, latest time.Time) (notes []Problem) {
	if err := coversName(cert, service); err != nil {
		notes = append(notes, Problem{HTTPSOtherName, "the HTTPS certificate is not for " + service + ": hosts refuse https URLs", httpsRemedy})
	} else if !hasSAN(cert) {
		notes = append(notes, Problem{HTTPSSubjectOnly, "the HTTPS certificate names the service in its subject only: newer clients look at the subject alternative name alone", httpsRemedy})
	}
	end := cert.NotAfter.UTC().Format("2006-01-02 15:04 UTC")
	switch {
	case earliest.IsZero():
	case latest.After(cert.NotAfter):
		notes = append(notes, Problem{HTTPSExpired, "the HTTPS certificate ended on " + end + ": hosts refuse https URLs", httpsRemedy})
	case earliest.Add(HTTPSWarning).After(cert.NotAfter):
		notes = append(notes, Problem{HTTPSExpiring, "the HTTPS certificate ends on " + end, httpsRemedy})
	case earliest.Before(cert.NotBefore):
		notes = append(notes, Problem{HTTPSNotYet, "the HTTPS certificate begins on " + cert.NotBefore.UTC().Format("2006-01-02 15:04 UTC"), "wait, or " + httpsRemedy})
	}
	return notes
}

func hasSAN(cert *x509.Certificate) bool {
	return len(cert.DNSNames)+len(cert.IPAddresses)+len(cert.EmailAddresses)+len(cert.URIs) > 0
}

// coversName is B26: where there is a subject alternative name, the subject does not count.
func coversName(cert *x509.Certificate, service string) error {
	if hasSAN(cert) {
		return cert.VerifyHostname(service)
	}
	if !strings.EqualFold(cert.Subject.CommonName, service) {
		return errors.New("another subject")
	}
	return nil
}

// CheckHTTPS refuses what no host could use: a certificate for another name, with a key or purpose that TLS can't use, or a chain that does
// not hold together. Dates are not looked at, they are for HTTPSNotes.
func CheckHTTPS(service string, certificate []byte, chain [][]byte) (*x509.Certificate, error) {
	cert, err := checkTLS(certificate, chain, x509.ExtKeyUsageServerAuth, "server authentication")
	if err != nil {
		return nil, err
	}
	if err := coversName(cert, service); err != nil {
		return nil, fmt.Errorf("the certificate is not for %s (it is for %s)", service, cmpNames(cert))
	}
	return cert, nil
}

// checkTLS refuses a certificate with a key or purpose that TLS can't use, or a chain that does not hold together.
func checkTLS(certificate []byte, chain [][]byte, usage x509.ExtKeyUsage, usageName string) (*x509.Certificate, error) {
	if len(chain) > MaxChain {
		return nil, fmt.Errorf("the chain has more than %d certificates", MaxChain)
	}
	cert, err := httpsPart(certificate)
	if err != nil {
		return nil, fmt.Errorf("the certificate %w", err)
	}
	switch k := cert.PublicKey.(type) {
	case *ecdsa.PublicKey:
	case *rsa.PublicKey:
		if err := usableRSA(k); err != nil {
			return nil, err
		}
	default:
		return nil, errors.New("the key is neither ECDSA nor RSA")
	}
	if cert.IsCA && len(chain) > 0 {
		return nil, errors.New("the first certificate is a CA's; give the node's own first, or all in any order")
	}
	if !slices.Contains(cert.ExtKeyUsage, usage) && !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageAny) &&
		len(cert.ExtKeyUsage)+len(cert.UnknownExtKeyUsage) > 0 {
		return nil, errors.New("its extended key usage is not " + usageName)
	}
	if cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return nil, errors.New("its key usage is not digital signature")
	}
	below := cert
	for i, der := range chain {
		above, err := httpsPart(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of the chain %w", i+2, err)
		}
		if err := below.CheckSignatureFrom(above); err != nil {
			return nil, fmt.Errorf("certificate %d of the chain did not sign the one before it", i+2)
		}
		below = above
	}
	return cert, nil
}

func cmpNames(cert *x509.Certificate) string {
	names := append([]string{}, cert.DNSNames...)
	for _, ip := range cert.IPAddresses {
		if a, ok := netip.AddrFromSlice(ip); ok {
			names = append(names, a.String())
		}
	}
	if len(names) == 0 {
		names = []string{cert.Subject.CommonName}
	}
	text := strings.Join(names[:min(8, len(names))], ", ")
	return strings.ToValidUTF8(text[:min(len(text), 200)], "")
}

func httpsPart(der []byte) (*x509.Certificate, error) {
	if len(der) > MaxCertificate {
		return nil, fmt.Errorf("has %d bytes, %d are accepted", len(der), MaxCertificate)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("does not parse: %w", err)
	}
	return cert, nil
}

func applyHTTPSInstall(s *State, c Command) (Result, error) {
	b, err := decode[HTTPSInstall](c)
	if err != nil {
		return Result{}, err
	}
	cert, err := CheckHTTPS(s.Service.Name, b.Certificate, b.Chain)
	if err != nil {
		return Result{}, &Refused{c.Kind, err.Error(), "have the request of https csr signed for this service's name"}
	}
	if b.Node == "" {
		if b.Generation < 0 || s.Service.SharedHTTPS != nil && b.Generation < s.Service.SharedHTTPS.Generation {
			return Result{}, &Refused{c.Kind, "the certificate is for an older shared key", "have a new request of https csr --shared signed"}
		}
		v := *s.Service
		v.SharedHTTPS = &SharedHTTPS{Certificate: b.Certificate, Chain: b.Chain, Generation: b.Generation}
		s.Service = &v
		for id, n := range s.Nodes {
			n.OwnHTTPS = false
			s.Nodes[id] = n
		}
		return Result{Message: fmt.Sprintf("HTTPS certificate %.16s installed on all nodes", Thumbprint(b.Certificate)), Subject: Thumbprint(b.Certificate)}, nil
	}
	n, ok := s.Nodes[b.Node]
	if !ok {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("there is no node %.64q", b.Node), "see node list"}
	}
	if b.Generation != 0 {
		return Result{}, &Refused{c.Kind, "a node's own key has no generation", ""}
	}
	n.Certificate, n.Chain, n.OwnHTTPS = b.Certificate, b.Chain, true
	s.Nodes[b.Node] = n
	return Result{Message: fmt.Sprintf("HTTPS certificate %.16s installed on node %s, until %s", Thumbprint(b.Certificate), n.Name, cert.NotAfter.UTC().Format("2006-01-02")),
		Subject: Thumbprint(b.Certificate)}, nil
}
