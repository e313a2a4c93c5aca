package ledger

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// SyslogRequest makes a request for the certificate that this node shows syslog collectors. A new key takes the place that the
// certificate in the node's record does not need, so what is shown goes on being shown.
func (l *Ledger) SyslogRequest(ctx context.Context, req rpc.SyslogRequest) (r rpc.SyslogRequestReply, err error) {
	l.keysMu.Lock()
	defer l.keysMu.Unlock()
	if err := l.ready(); err != nil {
		return r, err
	}
	s, _ := l.Snapshot()
	if err := policy.Allowed(s.State, req.Actor, policy.AdminOwner); err != nil {
		return r, rpc.ErrRefused.With("%v", err)
	}
	if _, err := l.audit.Append(ctx, l.stamped(policy.AuditEntry{Kind: policy.AuditCommand, Actor: &req.Actor, Action: "audit.syslog-csr", Outcome: "ok", Policy: s.Index, Detail: "key: " + req.Key})); err != nil {
		return r, auditError(err)
	}
	node := s.State.Nodes[s.NodeID]
	var key crypto.Signer
	taken := ""
	if len(node.SyslogCertificate) > 0 {
		if key, taken, err = l.ownTLSKey(syslogPlaces, certificateRef(node.SyslogCertificate)); err != nil {
			taken = ""
		}
	}
	switch {
	case req.Key != rpc.HTTPSKeyCurrent:
		key, err = l.newTLSKey(syslogPlaces, taken, req.Key)
	case taken == "":
		err = rpc.ErrRefused.With("no client certificate is installed, so there is no current key; ask for a new one")
	}
	if err != nil {
		return r, err
	}
	name := syslogHost(s.State, node)
	r.Ref = spkiRef(key.Public())
	r.Request, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name[:min(len(name), 64)]}, DNSNames: []string{name}}, key)
	return r, err
}

// syslogHost is the node's name towards collectors: HOSTNAME of its messages, and what its client certificate is for.
func syslogHost(s policy.State, node policy.Node) string { return node.Name + "." + s.Service.Name }

// checkSyslogInstall refuses a certificate whose private key this node does not have.
func (l *Ledger) checkSyslogInstall(c policy.Command) error {
	var b policy.SyslogInstall
	if json.Unmarshal(c.Body, &b) != nil || len(b.Certificate) == 0 {
		return nil // the records say what is wrong with it
	}
	s, _ := l.Snapshot()
	if b.Node != s.NodeID {
		return rpc.ErrRefused.With("a node's key never leaves it; install the certificate on that node")
	}
	_, _, err := l.ownTLSKey(syslogPlaces, certificateRef(b.Certificate))
	return err
}
