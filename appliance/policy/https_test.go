package policy

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"
)

// authority is a CA two levels deep, and makes certificates.
type authority struct {
	t            *testing.T
	key          *ecdsa.PrivateKey
	root, middle []byte
}

func p256(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t *testing.T, tmpl, parent *x509.Certificate, pub any, key crypto.Signer) []byte {
	t.Helper()
	tmpl.SerialNumber = big.NewInt(7)
	if tmpl.NotAfter.IsZero() {
		tmpl.NotBefore, tmpl.NotAfter = spring.AddDate(0, 0, -1), spring.AddDate(1, 0, 0)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func newAuthority(t *testing.T) *authority {
	a, top := &authority{t: t, key: p256(t)}, p256(t)
	ca := func(name string) *x509.Certificate {
		return &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	}
	root := ca("root")
	a.root = sign(t, root, root, top.Public(), top)
	a.middle = sign(t, ca("middle"), root, a.key.Public(), top)
	return a
}

// issue certifies by the middle CA.
func (a *authority) issue(pub any, tmpl *x509.Certificate) []byte {
	middle, err := x509.ParseCertificate(a.middle)
	if err != nil {
		a.t.Fatal(err)
	}
	return sign(a.t, tmpl, middle, pub, a.key)
}

func TestRefusesAnHTTPSCertificateThatNoHostCouldUse(t *testing.T) {
	const name = "hgs.example.test"
	a, key := newAuthority(t), p256(t)
	other := newAuthority(t)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	san := []string{name}
	for what, c := range map[string]struct {
		der   []byte
		chain [][]byte
		fine  bool
	}{
		"by a CA":             {a.issue(key.Public(), &x509.Certificate{DNSNames: san}), [][]byte{a.middle}, true},
		"with its root":       {a.issue(key.Public(), &x509.Certificate{DNSNames: san}), [][]byte{a.middle, a.root}, true},
		"a wildcard":          {a.issue(key.Public(), &x509.Certificate{DNSNames: []string{"*.example.test"}}), nil, true},
		"RSA":                 {a.issue(rsaKey(t, 2048).Public(), &x509.Certificate{DNSNames: san}), nil, true},
		"the subject alone":   {a.issue(key.Public(), &x509.Certificate{Subject: pkix.Name{CommonName: name}}), nil, true},
		"server purpose":      {a.issue(key.Public(), &x509.Certificate{DNSNames: san, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}), nil, true},
		"over":                {a.issue(key.Public(), &x509.Certificate{DNSNames: san, NotBefore: spring.AddDate(-2, 0, 0), NotAfter: spring.AddDate(-1, 0, 0)}), nil, true},
		"another name":        {a.issue(key.Public(), &x509.Certificate{DNSNames: []string{"other.example.test"}}), nil, false},
		"subject beside SAN":  {a.issue(key.Public(), &x509.Certificate{Subject: pkix.Name{CommonName: name}, DNSNames: []string{"x.test"}}), nil, false},
		"another purpose":     {a.issue(key.Public(), &x509.Certificate{DNSNames: san, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}), nil, false},
		"another usage":       {a.issue(key.Public(), &x509.Certificate{DNSNames: san, KeyUsage: x509.KeyUsageDataEncipherment}), nil, false},
		"a key of no use":     {a.issue(ed.Public(), &x509.Certificate{DNSNames: san}), nil, false},
		"RSA too small":       {a.issue(rsaKey(t, 1024).Public(), &x509.Certificate{DNSNames: san}), nil, false},
		"another CA's chain":  {a.issue(key.Public(), &x509.Certificate{DNSNames: san}), [][]byte{other.middle}, false},
		"a chain upside down": {a.issue(key.Public(), &x509.Certificate{DNSNames: san}), [][]byte{a.root, a.middle}, false},
		"an endless chain":    {a.issue(key.Public(), &x509.Certificate{DNSNames: san}), [][]byte{a.middle, a.root, a.root, a.root, a.root}, false},
		"no certificate":      {[]byte("x"), nil, false},
		"a chain of nothing":  {a.issue(key.Public(), &x509.Certificate{DNSNames: san}), [][]byte{nil}, false},
	} {
		t.Run(what, func(t *testing.T) {
			if _, err := CheckHTTPS(name, c.der, c.chain); (err == nil) != c.fine {
				t.Error(err)
			}
		})
	}
}

func TestAnHTTPSCertificateIsNotedBeforeItEnds(t *testing.T) {
	a, key := newAuthority(t), p256(t)
	cert, _ := x509.ParseCertificate(a.issue(key.Public(), &x509.Certificate{DNSNames: []string{"hgs.example.test"}}))
	for now, want := range map[time.Time]string{
		spring: "", spring.AddDate(1, 0, -29): HTTPSExpiring, spring.AddDate(1, 0, 1): HTTPSExpired, spring.AddDate(0, 0, -2): HTTPSNotYet, {}: "",
	} {
		notes := HTTPSNotes("hgs.example.test", cert, now, now)
		got := ""
		for _, n := range notes {
			got += n.Kind
		}
		if got != want {
			t.Errorf("at %s: %q, want %q", now, got, want)
		}
	}
	if n := HTTPSNotes("renamed.example.test", cert, spring, spring); len(n) != 1 || n[0].Kind != HTTPSOtherName || n[0].Remedy == "" {
		t.Errorf("%+v", n)
	}
}

func TestTheLastInstalledHTTPSCertificateCounts(t *testing.T) {
	s, actors := setUp(t)
	op := actors[AdminOperator]
	var id string
	for id = range s.Nodes {
	}
	a, key := newAuthority(t), p256(t)
	own := a.issue(key.Public(), &x509.Certificate{DNSNames: []string{s.Service.Name}})
	shared := a.issue(p256(t).Public(), &x509.Certificate{DNSNames: []string{s.Service.Name}})
	serves := func(want []byte, chain int) {
		t.Helper()
		if got := s.HTTPSCertificate(id); len(got) != 1+chain || string(got[0]) != string(want) {
			t.Errorf("%d certificates are served", len(got))
		}
	}
	s, _ = must(t, s, command(t, CmdHTTPSInstall, op, HTTPSInstall{Certificate: shared, Chain: [][]byte{a.middle}, Generation: 1}))
	serves(shared, 1)
	s, _ = must(t, s, command(t, CmdHTTPSInstall, op, HTTPSInstall{Node: id, Certificate: own}))
	serves(own, 0)
	refused(t, s, command(t, CmdHTTPSInstall, op, HTTPSInstall{Certificate: shared}))
	refused(t, s, command(t, CmdHTTPSInstall, op, HTTPSInstall{Node: "nobody", Certificate: own}))
	refused(t, s, command(t, CmdHTTPSInstall, op, HTTPSInstall{Node: id, Certificate: own, Generation: 1}))
	serves(own, 0)
	s, _ = must(t, s, command(t, CmdHTTPSInstall, op, HTTPSInstall{Certificate: shared, Generation: 2}))
	serves(shared, 0)
}
