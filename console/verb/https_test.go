package verb_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/console/verb"
	"guardhouse/console/verb/verbtest"
)

// chainFor has a CA of two levels sign a request: the leaf, the middle, the root, as PEM.
func chainFor(t *testing.T, request string) (leaf, middle, root string) {
	t.Helper()
	block, _ := pem.Decode([]byte(request))
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	at := time.UnixMilli(verbtest.At.Earliest)
	make := func(name string, ca bool, dns []string, parent *x509.Certificate, pub, key any) (string, *x509.Certificate) {
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(9), Subject: pkix.Name{CommonName: name}, DNSNames: dns, IsCA: ca, BasicConstraintsValid: ca,
			NotBefore: at.AddDate(0, 0, -1), NotAfter: at.AddDate(1, 0, 0)}
		if parent == nil {
			parent = tmpl
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), cert
	}
	top, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	mid, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	root, rootCert := make("root", true, nil, nil, top.Public(), top)
	middle, middleCert := make("middle", true, nil, rootCert, mid.Public(), top)
	leaf, _ = make("leaf", false, csr.DNSNames, middleCert, csr.PublicKey, mid)
	return leaf, middle, root
}

func TestAnHTTPSCertificateGoesFromRequestToService(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	request := mustCall(t, s, "https csr --names hgs2.example.test,hgs3.example.test", "")
	leaf, middle, root := chainFor(t, request)
	text := mustCall(t, s, "https install", root+leaf+middle) // in no order, with the root
	for _, want := range []string{"installed on node", "CN=middle", "hgs2.example.test", "2027-", "1 certificate"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	snap, _ := f.Node.Snapshot()
	block, _ := pem.Decode([]byte(leaf))
	if got := snap.State.HTTPSCertificate(snap.NodeID); len(got) != 2 || !bytes.Equal(got[0], block.Bytes) {
		t.Errorf("%d certificates are served", len(got))
	}
	if p := verb.GatherStatus(t.Context(), f.Node).Problems; has(p, "https-") {
		t.Errorf("%+v", p)
	}
	out, err := call(s, "https self-signed", "")
	v, ok := out.Value.(verb.HTTPSValue)
	if err != nil || !ok || !v.SelfSigned || len(v.SHA1) != 40 || len(v.SHA256) != 64 || len(v.Notes) != 1 || v.Notes[0].Kind != policy.HTTPSExpiring {
		t.Errorf("%+v, %v", v, err)
	}
	if show := mustCall(t, s, "https show", ""); !strings.Contains(show, v.SHA1) || !strings.Contains(show, v.SHA256) || !strings.Contains(show, "itself") {
		t.Errorf("https show:\n%s", show)
	}
	if p := verb.GatherStatus(t.Context(), f.Node).Problems; !has(p, policy.HTTPSExpiring) {
		t.Errorf("the status does not say that it ends: %+v", p)
	}
	mustCall(t, s, "service set --https off", "")
	if p := verb.GatherStatus(t.Context(), f.Node).Problems; has(p, "https-") {
		t.Errorf("nobody can reach it: %+v", p)
	}
	leaf, _, _ = chainFor(t, mustCall(t, s, "https csr --shared", ""))
	if text := mustCall(t, s, "https install --shared", leaf); !strings.Contains(text, "on all nodes") {
		t.Error(text)
	}
	mustCall(t, s, "https install --shared", leaf) // again: the same generation
	if snap, _ := f.Node.Snapshot(); snap.State.Service.SharedHTTPS.Generation != 1 {
		t.Errorf("generation %d", snap.State.Service.SharedHTTPS.Generation)
	}
}

func has(problems []policy.Problem, kind string) bool {
	for _, p := range problems {
		if strings.HasPrefix(p.Kind, kind) {
			return true
		}
	}
	return false
}

func TestRefusesAnHTTPSInputThatIsNoChain(t *testing.T) {
	f := verbtest.Start(t, true)
	request := mustCall(t, f.Session(policy.DoorSSH), "https csr", "")
	one, middle, root := chainFor(t, request)
	two, _, _ := chainFor(t, request)
	key := string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte("x")}))
	for what, c := range map[string]struct {
		in string
		n  int // of the chain; 0 = refused
	}{
		"leaf": {one, 1}, "leaf and middle": {one + middle, 2}, "with the root": {middle + root + one, 2}, "twice the same": {one + one, 1},
		"two leaves": {one + two, 0}, "a private key": {one + key, 0}, "nothing": {"", 0}, "text": {"hello", 0}, "too much": {strings.Repeat("x", 1<<17), 0},
	} {
		if chain, err := verb.ParseChain([]byte(c.in)); len(chain) != c.n || (err == nil) != (c.n > 0) {
			t.Errorf("%s: %d certificates, %v", what, len(chain), err)
		}
	}
}

func FuzzParseChain(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n"))
	f.Add([]byte{0x30, 0x82, 0x01, 0x00})
	f.Add([]byte("\xff\xfeM\x00A\x00"))
	f.Fuzz(func(t *testing.T, in []byte) {
		chain, err := verb.ParseChain(in)
		if (err == nil) != (len(chain) > 0) {
			t.Error(len(chain), err)
		}
	})
}

func TestTheEndOfTheCommunicationsCertificateIsAProblem(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	mustCall(t, s, "key new --roles all", "")
	if p := verb.GatherStatus(t.Context(), f.Node).Problems; has(p, "communications") {
		t.Fatalf("ten years before: %+v", p)
	}
	snap, _ := f.Node.Snapshot()
	k, _ := snap.State.PrimaryKey(policy.RoleCommunications)
	old, err := x509.ParseCertificate(k.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	issuer, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	at := time.UnixMilli(verbtest.At.Earliest)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(3), Subject: old.Subject, NotBefore: at.AddDate(0, -1, 0), NotAfter: at.AddDate(0, 0, 29)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, old.PublicKey, issuer)
	if err != nil {
		t.Fatal(err)
	}
	mustCall(t, s, "key install "+string(k.Ref[:12]), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	if p := verb.GatherStatus(t.Context(), f.Node).Problems; !has(p, "communications-expiring") {
		t.Errorf("%+v", p)
	}
}
