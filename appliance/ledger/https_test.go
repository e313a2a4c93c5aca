package ledger

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"math/big"
	"testing"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

func (b *bench) request(a policy.Actor, req rpc.HTTPSRequest) rpc.HTTPSRequestReply {
	b.t.Helper()
	req.Actor = a
	r, err := b.l.HTTPSRequest(context.Background(), req)
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

// issued has a CA sign a request, for these uses only if there are any.
func issued(t *testing.T, request []byte, uses ...x509.ExtKeyUsage) []byte {
	t.Helper()
	csr, err := x509.ParseCertificateRequest(request)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		t.Fatal(err)
	}
	ca, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(5), Subject: csr.Subject, DNSNames: csr.DNSNames, NotBefore: day0, NotAfter: day0.AddDate(1, 0, 0), ExtKeyUsage: uses}
	parent := &x509.Certificate{SerialNumber: big.NewInt(6), Subject: pkix.Name{CommonName: "CA"}, NotBefore: day0, NotAfter: day0.AddDate(2, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, csr.PublicKey, ca)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// install is what LedgerPropose does with the command.
func (b *bench) install(a policy.Actor, body policy.HTTPSInstall) error {
	c := command(a, policy.CmdHTTPSInstall, body)
	if err := b.l.checkHTTPSInstall(c); err != nil {
		return err
	}
	_, _, err := b.l.Propose(context.Background(), c)
	return err
}

// shakes reports whether the ledger signs for the certificate that the node serves now.
func (b *bench) shakes(pss bool) {
	b.t.Helper()
	s, _ := b.l.Snapshot()
	leaf, err := x509.ParseCertificate(s.State.HTTPSCertificate(s.NodeID)[0])
	if err != nil {
		b.t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("handshake"))
	sig, err := b.l.Sign(rpc.NodeSignRequest{Key: "tls", Ref: policy.RefOf(leaf.RawSubjectPublicKeyInfo), Digest: digest[:], Hash: uint(crypto.SHA256), PSS: pss})
	if err != nil {
		b.t.Fatal(err)
	}
	switch pub := leaf.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(pub, digest[:], sig) {
			b.t.Error("the signature does not verify")
		}
	case *rsa.PublicKey:
		if !pss {
			err = rsa.VerifyPKCS1v15(pub, crypto.SHA256, digest[:], sig)
		} else {
			err = rsa.VerifyPSS(pub, crypto.SHA256, digest[:], sig, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		}
		if err != nil {
			b.t.Error(err)
		}
	}
}

func TestTheNodesTLSKeyIsReplacedWithoutAGap(t *testing.T) {
	b := newBench(t)
	b.trust(day0)
	a := b.setUp()
	s, _ := b.l.Snapshot()
	first := s.State.HTTPSCertificate(s.NodeID)[0]
	b.shakes(false)
	made := b.request(a, rpc.HTTPSRequest{Key: rpc.HTTPSKeyNew, Names: []string{"HGS2.example.test", "192.0.2.7"}})
	csr, err := x509.ParseCertificateRequest(made.Request)
	if err != nil || csr.Subject.CommonName != "hgs.example.test" || len(csr.DNSNames) != 2 || csr.DNSNames[1] != "hgs2.example.test" || len(csr.IPAddresses) != 1 ||
		policy.RefOf(csr.RawSubjectPublicKeyInfo) != made.Ref || made.Ref == certificateRef(first) {
		t.Fatalf("%+v, %v", csr, err)
	}
	b.shakes(false) // the request changes nothing
	cert := issued(t, made.Request)
	b.restart()
	if err := b.install(a, policy.HTTPSInstall{Node: s.NodeID, Certificate: cert}); err != nil {
		t.Fatal(err)
	}
	b.shakes(false)
	// The face may still hold the old records for a moment: the old key goes on signing.
	if _, _, err := b.l.ownTLSKey(httpsPlaces, certificateRef(first)); err != nil {
		t.Error(err)
	}
	made = b.request(a, rpc.HTTPSRequest{Key: rpc.HTTPSKeyNewRSA})
	b.shakes(false)
	if err := b.install(a, policy.HTTPSInstall{Node: s.NodeID, Certificate: issued(t, made.Request)}); err != nil {
		t.Fatal(err)
	}
	b.shakes(false)
	b.shakes(true)
	renewed := b.request(a, rpc.HTTPSRequest{Key: rpc.HTTPSKeyCurrent})
	if renewed.Ref != made.Ref {
		t.Error("the current key is another one")
	}
	self := b.request(a, rpc.HTTPSRequest{Key: rpc.HTTPSKeyNew, SelfSigned: true})
	leaf, err := x509.ParseCertificate(self.Certificate)
	if err != nil || leaf.NotBefore.After(day0) || leaf.NotBefore.Before(day0.Add(-time.Hour)) || len(leaf.IPAddresses) == 0 {
		t.Errorf("%+v, %v", leaf, err)
	}
	if err := b.install(a, policy.HTTPSInstall{Node: s.NodeID, Certificate: self.Certificate}); err != nil {
		t.Fatal(err)
	}
	b.restart()
	b.shakes(false)
}

func TestRefusesAnHTTPSCertificateForAKeyThatTheNodeDoesNotHave(t *testing.T) {
	b := newBench(t)
	b.trust(day0)
	a := b.setUp()
	s, _ := b.l.Snapshot()
	stranger, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(5), DNSNames: []string{"hgs.example.test"}, NotBefore: day0, NotAfter: day0.AddDate(1, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, stranger.Public(), stranger)
	if err != nil {
		t.Fatal(err)
	}
	stale := issued(t, b.request(a, rpc.HTTPSRequest{Key: rpc.HTTPSKeyNew}).Request)
	b.request(a, rpc.HTTPSRequest{Key: rpc.HTTPSKeyNew}) // takes the place of the one before
	for what, body := range map[string]policy.HTTPSInstall{
		"a stranger's":         {Node: s.NodeID, Certificate: der},
		"an abandoned request": {Node: s.NodeID, Certificate: stale},
		"shared":               {Certificate: der},
		"of another node":      {Node: "ffffffffffffffff", Certificate: s.State.HTTPSCertificate(s.NodeID)[0]},
	} {
		if err := b.install(a, body); !errors.Is(err, rpc.ErrRefused) {
			t.Errorf("%s: %v", what, err)
		}
	}
	b.shakes(false)
	for what, req := range map[string]rpc.HTTPSRequest{
		"a key of no kind": {Key: "ed25519"}, "a shared RSA key": {Key: rpc.HTTPSKeyNewRSA, Shared: true}, "a name with a space": {Key: rpc.HTTPSKeyNew, Names: []string{"a b"}},
		"endless names": {Key: rpc.HTTPSKeyNew, Names: make([]string, maxNames+1)},
	} {
		req.Actor = a
		if _, err := b.l.HTTPSRequest(context.Background(), req); !errors.Is(err, rpc.ErrRefused) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := b.l.HTTPSRequest(context.Background(), rpc.HTTPSRequest{Key: rpc.HTTPSKeyNew, Actor: policy.Actor{Name: "eve"}}); !errors.Is(err, rpc.ErrRefused) {
		t.Error(err)
	}
}

// TestTheSharedHTTPSKeyIsTheSameOnEachNodeAndTravelsNowhere: two ledgers with one cluster secret.
func TestTheSharedHTTPSKeyIsTheSameOnEachNodeAndTravelsNowhere(t *testing.T) {
	b := newBench(t)
	b.trust(day0)
	a := b.setUp()
	other := newBench(t)
	other.trust(day0)
	other.setUp()
	secret, err := b.l.secret(secretCluster)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.l.secrets.Put(secretCluster, bytes.Clone(secret)); err != nil {
		t.Fatal(err)
	}
	made := b.request(a, rpc.HTTPSRequest{Key: rpc.HTTPSKeyNew, Shared: true})
	again := b.request(a, rpc.HTTPSRequest{Key: rpc.HTTPSKeyNew, Shared: true})
	there, err := other.l.sharedTLSKey(made.Generation)
	if err != nil || made.Generation != 1 || again.Ref != made.Ref || spkiRef(there.Public()) != made.Ref {
		t.Fatal(made.Generation, err)
	}
	if err := b.install(a, policy.HTTPSInstall{Certificate: issued(t, made.Request), Generation: 1}); err != nil {
		t.Fatal(err)
	}
	b.shakes(false)
	if next := b.request(a, rpc.HTTPSRequest{Key: rpc.HTTPSKeyNew, Shared: true}); next.Generation != 2 || next.Ref == made.Ref {
		t.Error("the next generation has the same key")
	}
	raw, err := there.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	reply, _ := json.Marshal(again)
	snap, _ := b.l.Snapshot()
	records, _ := json.Marshal(snap)
	for _, text := range [][]byte{reply, records, again.Request} {
		if bytes.Contains(text, raw) || bytes.Contains(text, []byte(big.NewInt(0).SetBytes(raw).Text(16))) {
			t.Error("the private key is in what leaves the ledger")
		}
	}
}
