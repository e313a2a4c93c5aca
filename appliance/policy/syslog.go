package policy

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Limits of the records about the audit.
const (
	MaxAuditKey        = 256 // bytes of a Node.AuditKey
	maxFormerAuditKeys = 16
	maxAuditKeyReason  = 256
	MaxSyslogCAs       = 16
)

// FormerAuditKey signed a node's checkpoints until another key took its place.
type FormerAuditKey struct {
	Key   []byte `json:"key"`
	Until Stamp  `json:"until"`
	Why   string `json:"why"`
}

// AuditKeyChange is how a node tells that it signs its audit with another key from now on. Only the node itself sends it.
type AuditKeyChange struct {
	Node string `json:"node"` // id
	Key  []byte `json:"key"`
	Why  string `json:"why"`
}

// AuditKeys are the node's audit keys, the present one first, then the former ones, the newest first.
func (n Node) AuditKeys() [][]byte {
	keys := [][]byte{n.AuditKey}
	for _, f := range slices.Backward(n.FormerAuditKeys) {
		keys = append(keys, f.Key)
	}
	return keys
}

func applyAuditKey(s *State, c Command) (Result, error) {
	b, err := decode[AuditKeyChange](c)
	if err != nil {
		return Result{}, err
	}
	if c.Actor.Door != DoorNode {
		return Result{}, &Refused{c.Kind, "the audit key is the node's own; no administrator sets it", ""}
	}
	n, ok := s.Nodes[b.Node]
	if !ok {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("there is no node %.64q", b.Node), "see node list"}
	}
	if len(b.Key) == 0 || len(b.Key) > MaxAuditKey || !validText(b.Why, maxAuditKeyReason) {
		return Result{}, &Refused{c.Kind, "the key or the reason is empty or too long", ""}
	}
	if bytes.Equal(b.Key, n.AuditKey) {
		return Result{Message: "node " + n.Name + " has this audit key already", Subject: n.ID}, nil
	}
	former := append(slices.Clone(n.FormerAuditKeys), FormerAuditKey{Key: n.AuditKey, Until: c.At, Why: b.Why})
	n.FormerAuditKeys = former[max(0, len(former)-maxFormerAuditKeys):]
	n.AuditKey = b.Key
	s.Nodes[n.ID] = n
	return Result{Message: "node " + n.Name + " signs its audit with a new key: " + b.Why, Subject: n.ID}, nil
}

// Syslog is a collector that gets the audit of every node as RFC 5424 messages over TLS (RFC 5425).
type Syslog struct {
	Address string   `json:"address"` // HOST:PORT
	Name    string   `json:"name"`    // that the collector's certificate must have; HOST unless said otherwise
	CAs     [][]byte `json:"cas"`     // DER; only these are trusted
}

// SyslogSet replaces the collector; nil switches the sending off.
type SyslogSet struct {
	Syslog *Syslog `json:"syslog,omitempty"`
}

func applyAuditSyslog(s *State, c Command) (Result, error) {
	b, err := decode[SyslogSet](c)
	if err != nil {
		return Result{}, err
	}
	v := *s.Service
	if b.Syslog == nil {
		if v.Syslog == nil {
			return Result{}, &Refused{c.Kind, "no collector is set", ""}
		}
		v.Syslog = nil
		s.Service = &v
		return Result{Message: "the audit is no longer sent anywhere; records that come meanwhile are sent if a collector is set again"}, nil
	}
	if err := b.Syslog.check(); err != nil {
		return Result{}, &Refused{c.Kind, err.Error(), "see help audit syslog set"}
	}
	v.Syslog = b.Syslog
	s.Service = &v
	return Result{Message: "every node sends its audit to " + v.Syslog.Address, Subject: v.Syslog.Address}, nil
}

func (y Syslog) check() error {
	if y.Host() == "" {
		return errors.New("the address is not HOST:PORT")
	}
	if !hostName(y.Name) {
		return errors.New("the collector's name is not a host name or an address")
	}
	if len(y.CAs) == 0 || len(y.CAs) > MaxSyslogCAs {
		return fmt.Errorf("%d CA certificates are given; 1 to %d are accepted", len(y.CAs), MaxSyslogCAs)
	}
	for _, der := range y.CAs {
		if len(der) > MaxCertificate {
			return fmt.Errorf("a CA certificate has %d bytes, %d are accepted", len(der), MaxCertificate)
		}
		if _, err := x509.ParseCertificate(der); err != nil {
			return fmt.Errorf("a CA certificate does not parse: %.200s", err.Error())
		}
	}
	return nil
}

// Host is the address without its port; "" where it is not HOST:PORT.
func (y Syslog) Host() string {
	host, _ := y.HostPort()
	return host
}

// HostPort are the two parts of the address; "" and 0 where it is not HOST:PORT.
func (y Syslog) HostPort() (host string, port uint16) {
	if a, err := netip.ParseAddrPort(y.Address); err == nil && a.Port() != 0 && a.Addr().Zone() == "" {
		return a.Addr().String(), a.Port()
	}
	host, number, _ := strings.Cut(y.Address, ":")
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 || !hostName(host) {
		return "", 0
	}
	return host, uint16(n)
}

func hostName(s string) bool {
	return s != "" && validText(s, maxHost) && !strings.ContainsAny(s, " /\\\"'[]%")
}

// SyslogCAs reads the PEM certificates that an administrator gives for a collector.
func SyslogCAs(b []byte) (cas [][]byte, err error) {
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("there is a %.40q among the certificates; only certificates belong here", block.Type)
		}
		if len(cas) == MaxSyslogCAs {
			return nil, fmt.Errorf("more than %d certificates", MaxSyslogCAs)
		}
		cas = append(cas, block.Bytes)
	}
	if len(cas) == 0 {
		return nil, errors.New("there is no PEM certificate in it")
	}
	return cas, nil
}

// SyslogInstall is the body of audit.syslog-certificate: what a node shows collectors from now on, DER, the chain from the issuer upwards.
// No certificate = none is shown.
type SyslogInstall struct {
	Node        string   `json:"node"`
	Certificate []byte   `json:"certificate,omitempty"`
	Chain       [][]byte `json:"chain,omitempty"`
}

// SyslogCertificates is what a node shows a collector that asks for it, its own certificate first; nil = nothing.
func (n Node) SyslogCertificates() [][]byte {
	if len(n.SyslogCertificate) == 0 {
		return nil
	}
	return append([][]byte{n.SyslogCertificate}, n.SyslogChain...)
}

func applySyslogInstall(s *State, c Command) (Result, error) {
	b, err := decode[SyslogInstall](c)
	if err != nil {
		return Result{}, err
	}
	n, ok := s.Nodes[b.Node]
	if !ok {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("there is no node %.64q", b.Node), "see node list"}
	}
	if len(b.Certificate) == 0 {
		if n.SyslogCertificate == nil {
			return Result{}, &Refused{c.Kind, "node " + n.Name + " has no client certificate for collectors", ""}
		}
		n.SyslogCertificate, n.SyslogChain = nil, nil
		s.Nodes[b.Node] = n
		return Result{Message: "node " + n.Name + " shows collectors no certificate any more", Subject: n.ID}, nil
	}
	cert, err := checkTLS(b.Certificate, b.Chain, x509.ExtKeyUsageClientAuth, "client authentication")
	if err != nil {
		return Result{}, &Refused{c.Kind, err.Error(), "have the request of audit syslog csr signed for client authentication"}
	}
	n.SyslogCertificate, n.SyslogChain = b.Certificate, b.Chain
	s.Nodes[b.Node] = n
	return Result{Message: fmt.Sprintf("node %s shows collectors the certificate %.16s, until %s", n.Name, Thumbprint(b.Certificate), cert.NotAfter.UTC().Format("2006-01-02")),
		Subject: Thumbprint(b.Certificate)}, nil
}

// SyslogNotes are what an administrator should know of a node's client certificate: its dates. now is the trusted interval; zero = not
// known, then nothing is said.
func SyslogNotes(node string, cert *x509.Certificate, earliest, latest time.Time) []Problem {
	const remedy = "audit syslog csr, have it signed, then audit syslog install"
	what := "the client certificate that node " + node + " shows collectors "
	end := cert.NotAfter.UTC().Format("2006-01-02 15:04 UTC")
	switch {
	case earliest.IsZero():
	case latest.After(cert.NotAfter):
		return []Problem{{"syslog-certificate-expired", what + "ended on " + end + ": a collector may take nothing any more", remedy}}
	case earliest.Add(HTTPSWarning).After(cert.NotAfter):
		return []Problem{{"syslog-certificate-expiring", what + "ends on " + end, remedy}}
	case earliest.Before(cert.NotBefore):
		return []Problem{{"syslog-certificate-not-yet-valid", what + "begins on " + cert.NotBefore.UTC().Format("2006-01-02 15:04 UTC"), "wait, or " + remedy}}
	}
	return nil
}
