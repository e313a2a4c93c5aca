package verbtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// httpsRequest makes a new key each time; nobody keeps it. A self-signed certificate ends ten days after At.
func (f *Fake) httpsRequest(r rpc.HTTPSRequest) (reply rpc.HTTPSRequestReply, err error) {
	f.mu.Lock()
	service := f.state.Service.Name
	f.mu.Unlock()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return reply, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return reply, err
	}
	reply.Ref = policy.RefOf(spki)
	if r.Shared {
		reply.Generation = 1
	}
	names := append([]string{service}, r.Names...)
	if !r.SelfSigned {
		reply.Request, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: service}, DNSNames: names}, key)
		return reply, err
	}
	at := time.UnixMilli(At.Earliest)
	t := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: service}, DNSNames: names, NotBefore: at.AddDate(0, 0, -1), NotAfter: at.AddDate(0, 0, 10)}
	reply.Certificate, err = x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	return reply, err
}

// SyslogKey is the key of the newest request of audit syslog csr.
func (f *Fake) SyslogKey() crypto.Signer {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.syslogKey
}

func (f *Fake) syslogRequest(rpc.SyslogRequest) (reply rpc.SyslogRequestReply, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return reply, err
	}
	f.mu.Lock()
	f.syslogKey = key
	f.mu.Unlock()
	reply.Request, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "node1.hgs.example.test"}}, key)
	return reply, err
}
