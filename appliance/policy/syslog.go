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
	if a, err := netip.ParseAddrPort(y.Address); err == nil && a.Port() != 0 && a.Addr().Zone() == "" {
		return a.Addr().String()
	}
	host, port, _ := strings.Cut(y.Address, ":")
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || !hostName(host) {
		return ""
	}
	return host
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
