package ledger

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// A node has two places for TLS keys of its own: that of the certificate in its record, and that of the newest request. Which is which
// follows from the record. The shared key is in no place: it is derived.
const secretTLSOther = "tls-key-2"

// tlsLife is how long the self-signed HTTPS certificate lives. The first is made before the node has a trusted time, so it can't begin
// "now": it begins when the image was built, which is surely past, and lives so long that it never ends by itself. Hosts trust this one
// certificate because an administrator installed it, not because of its dates.
const tlsLife = 30 * 365 * 24 * time.Hour

const (
	httpsRSABits = 3072
	maxNames     = 16
)

// sharedTLSKey is the key of a generation, the same on all nodes: P-256 from HKDF-SHA256 of the cluster's secret.
func (l *Ledger) sharedTLSKey(generation int) (*ecdsa.PrivateKey, error) {
	secret, err := l.secret(secretCluster)
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	for try := range uint64(8) { // a candidate beyond the curve's order is as good as never met
		info := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64([]byte("guardhouse shared https key 1\x00"), uint64(generation)), try)
		raw, err := hkdf.Key(sha256.New, secret, nil, string(info), 32)
		if err != nil {
			return nil, fmt.Errorf("derive the shared HTTPS key: %w", err)
		}
		key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), raw)
		clear(raw)
		if err == nil {
			return key, nil
		}
	}
	return nil, errors.New("no shared HTTPS key can be derived")
}

func spkiRef(pub any) policy.KeyRef {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return ""
	}
	return policy.RefOf(der)
}

func certificateRef(der []byte) policy.KeyRef {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return ""
	}
	return policy.RefOf(cert.RawSubjectPublicKeyInfo)
}

// keyPlaces are the two places of a kind of TLS keys of the node's own.
type keyPlaces struct {
	names [2]string
	verb  string // that makes requests for them
}

var (
	httpsPlaces  = keyPlaces{[2]string{secretTLS, secretTLSOther}, "https csr"}
	syslogPlaces = keyPlaces{[2]string{"syslog-key", "syslog-key-2"}, "audit syslog csr"}
)

// ownTLSKey finds one of this node's own TLS keys, and the place where it lies.
func (l *Ledger) ownTLSKey(at keyPlaces, ref policy.KeyRef) (crypto.Signer, string, error) {
	for _, name := range at.names {
		key, err := l.privateKey(name)
		if err != nil {
			if name == secretTLS { // which every node has
				return nil, "", err
			}
			continue // no request was ever made
		}
		if k, ok := key.(crypto.Signer); ok && spkiRef(k.Public()) == ref {
			return k, name, nil
		}
	}
	return nil, "", rpc.ErrRefused.With("this node has no TLS key %.16q; install certificates for requests of %s", ref, at.verb)
}

// tlsKey finds the key that a certificate names. Two generations of the shared one count: that in use and the next.
func (l *Ledger) tlsKey(s policy.State, node string, ref policy.KeyRef) (crypto.Signer, error) {
	if ref == "" {
		ref = certificateRef(s.Nodes[node].Certificate)
	}
	key, _, err := l.ownTLSKey(httpsPlaces, ref)
	if err == nil {
		return key, nil
	}
	if shared := s.Service.SharedHTTPS; shared != nil && certificateRef(shared.Certificate) == ref {
		return l.sharedTLSKey(shared.Generation)
	}
	return nil, err
}

func (l *Ledger) signTLS(req rpc.NodeSignRequest) ([]byte, error) {
	h := crypto.Hash(req.Hash)
	if h != crypto.SHA256 && h != crypto.SHA384 && h != crypto.SHA512 || len(req.Digest) != h.Size() {
		return nil, rpc.ErrRefused.With("tls: a SHA-256, SHA-384 or SHA-512 digest is signed, nothing else")
	}
	s, _ := l.Snapshot()
	if !s.State.SetUp() {
		return nil, rpc.ErrUnavailable.With("the node is not set up")
	}
	var key crypto.Signer
	var err error
	if req.Key == "syslog" {
		key, _, err = l.ownTLSKey(syslogPlaces, req.Ref)
	} else {
		key, err = l.tlsKey(s.State, s.NodeID, req.Ref)
	}
	if err != nil {
		return nil, err
	}
	if req.PSS {
		return key.Sign(rand.Reader, req.Digest, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: h})
	}
	return key.Sign(l.cfg.Rand, req.Digest, h)
}

// HTTPSRequest makes a certificate request, or a self-signed certificate. A new key of the node takes the place that the certificate in
// the node's record does not need, so what is served goes on being served.
func (l *Ledger) HTTPSRequest(ctx context.Context, req rpc.HTTPSRequest) (r rpc.HTTPSRequestReply, err error) {
	l.keysMu.Lock()
	defer l.keysMu.Unlock()
	if err := l.ready(); err != nil {
		return r, err
	}
	s, _ := l.Snapshot()
	if err := policy.Allowed(s.State, req.Actor, policy.AdminOperator); err != nil {
		return r, rpc.ErrRefused.With("%v", err)
	}
	names, err := l.requestNames(s, req)
	if err != nil {
		return r, err
	}
	action, begin := "https.csr", time.Time{}
	if req.SelfSigned {
		// The first certificate, which setup makes, is dated by the image; every later one by a time that is trusted, or not at all.
		action = "https.self-signed"
		if begin, err = l.begin(); err != nil {
			return r, err
		}
	}
	if _, err := l.audit.Append(ctx, l.stamped(policy.AuditEntry{Kind: policy.AuditCommand, Actor: &req.Actor, Action: action, Outcome: "ok", Policy: s.Index,
		Detail: "key: " + req.Key + map[bool]string{true: ", shared by all nodes"}[req.Shared]})); err != nil {
		return r, auditError(err)
	}
	var key crypto.Signer
	if req.Shared {
		key, r.Generation, err = l.sharedKeyFor(s.State, req.Key)
	} else {
		key, err = l.ownKeyFor(s.State.Nodes[s.NodeID], req.Key)
	}
	if err != nil {
		return r, err
	}
	r.Ref = spkiRef(key.Public())
	if req.SelfSigned {
		r.Certificate, err = selfSigned(l.cfg.Rand, begin, names, key)
		return r, err
	}
	r.Request, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: names.common}, DNSNames: names.dns, IPAddresses: names.ips}, key)
	return r, err
}

func (l *Ledger) sharedKeyFor(s policy.State, want string) (crypto.Signer, int, error) {
	generation := 0
	if s.Service.SharedHTTPS != nil {
		generation = s.Service.SharedHTTPS.Generation
	}
	switch want {
	case rpc.HTTPSKeyNew:
		generation++
	case rpc.HTTPSKeyCurrent:
	default:
		return nil, 0, rpc.ErrRefused.With("a shared key is P-256; ask for a key that is new or current")
	}
	key, err := l.sharedTLSKey(generation)
	return key, generation, err
}

func (l *Ledger) ownKeyFor(node policy.Node, want string) (crypto.Signer, error) {
	current, place, err := l.ownTLSKey(httpsPlaces, certificateRef(node.Certificate))
	if want == rpc.HTTPSKeyCurrent || err != nil {
		return current, err
	}
	return l.newTLSKey(httpsPlaces, place, want)
}

// newTLSKey makes a key in the place that is not taken.
func (l *Ledger) newTLSKey(at keyPlaces, taken, want string) (key crypto.Signer, err error) {
	switch want {
	case rpc.HTTPSKeyNew:
		key, err = ecdsa.GenerateKey(elliptic.P256(), l.cfg.Rand)
	case rpc.HTTPSKeyNewRSA:
		key, err = rsa.GenerateKey(l.cfg.Rand, httpsRSABits)
	default:
		return nil, rpc.ErrRefused.With("a key is new, new-rsa or current")
	}
	if err != nil {
		return nil, fmt.Errorf("make the TLS key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	free := at.names[0]
	if taken == free {
		free = at.names[1]
	}
	return key, l.secrets.Put(free, der)
}

// checkHTTPSInstall refuses a certificate whose private key this node does not have: nobody could reach it by https any more.
func (l *Ledger) checkHTTPSInstall(c policy.Command) error {
	var b policy.HTTPSInstall
	if json.Unmarshal(c.Body, &b) != nil {
		return nil // the records say what is wrong with it
	}
	s, _ := l.Snapshot()
	if !s.State.SetUp() {
		return nil
	}
	ref := certificateRef(b.Certificate)
	if b.Node != "" {
		if b.Node != s.NodeID {
			return rpc.ErrRefused.With("a node's key never leaves it; install the certificate on that node")
		}
		_, _, err := l.ownTLSKey(httpsPlaces, ref)
		return err
	}
	key, err := l.sharedTLSKey(b.Generation)
	if err != nil {
		return err
	}
	if spkiRef(key.Public()) != ref {
		return rpc.ErrRefused.With("the certificate is for another key than that of https csr --shared; have that request signed")
	}
	return nil
}

// certNames is what an HTTPS certificate is for.
type certNames struct {
	common string
	dns    []string
	ips    []net.IP
}

func (n *certNames) add(name string) error {
	if a, err := netip.ParseAddr(name); err == nil {
		n.ips = append(n.ips, net.IP(a.AsSlice()))
		return nil
	}
	if name = strings.ToLower(name); !validHostName(name) {
		return rpc.ErrRefused.With("%.64q is neither a host name nor an address", name)
	}
	if !slices.Contains(n.dns, name) {
		n.dns = append(n.dns, name)
	}
	return nil
}

// httpsNames are the service's name, the node's name and its addresses.
func httpsNames(service string, node policy.Node) certNames {
	n := certNames{common: service[:min(len(service), 64)], dns: []string{service}} // X.520 allows 64 characters
	if name := strings.ToLower(node.Name); name != service && validHostName(name) {
		n.dns = append(n.dns, name)
	}
	for _, i := range node.Network.Interfaces {
		for _, a := range i.Addresses {
			if p, err := netip.ParsePrefix(a); err == nil {
				n.ips = append(n.ips, net.IP(p.Addr().AsSlice()))
			}
		}
	}
	return n
}

// requestNames: a request holds only the service's name and what was asked for, because CAs refuse bare node names and addresses.
func (l *Ledger) requestNames(s policy.Snapshot, req rpc.HTTPSRequest) (certNames, error) {
	node := s.State.Nodes[s.NodeID]
	if req.Shared || !req.SelfSigned {
		node = policy.Node{}
	}
	n := httpsNames(s.State.Service.Name, node)
	if len(req.Names) > maxNames {
		return n, rpc.ErrRefused.With("more than %d names", maxNames)
	}
	for _, name := range req.Names {
		if err := n.add(name); err != nil {
			return n, err
		}
	}
	return n, nil
}

// selfSigned is an HTTPS certificate without a CA.
func selfSigned(random io.Reader, begin time.Time, names certNames, key crypto.Signer) ([]byte, error) {
	serial := make([]byte, 16)
	if _, err := io.ReadFull(random, serial); err != nil {
		return nil, err
	}
	serial[0] = serial[0]&0x7f | 0x40 // positive and of full length
	t := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial), Subject: pkix.Name{CommonName: names.common},
		NotBefore: begin.UTC().Truncate(time.Second), NotAfter: begin.UTC().Truncate(time.Second).Add(tlsLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
		DNSNames: names.dns, IPAddresses: names.ips,
	}
	return x509.CreateCertificate(random, t, t, key.Public(), key)
}
