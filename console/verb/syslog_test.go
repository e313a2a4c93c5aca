package verb_test

import (
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
	"guardhouse/appliance/rpc"
	"guardhouse/console/verb/verbtest"
)

func TestSyslogIsSetShownTestedAndSwitchedOff(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Unix(1<<31, 0)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	if text := mustCall(t, s, "audit syslog show", ""); !strings.Contains(text, "nowhere") {
		t.Error(text)
	}
	for line, stdin := range map[string]string{"audit syslog set siem.example.test:6514": "no PEM", "audit syslog set siem.example.test": ca, "audit syslog set siem.example.test:0": ca} {
		if _, err := call(s, line, stdin); err == nil {
			t.Errorf("%s was taken", line)
		}
	}
	text := mustCall(t, s, "audit syslog set siem.example.test:6514", ca)
	waitFor(t, f, func(p policy.State) bool {
		y := p.Service.Syslog
		return y != nil && y.Address == "siem.example.test:6514" && y.Name == "siem.example.test" && len(y.CAs) == 1
	})
	for _, want := range []string{"SHA-1", "SHA-256", "audit syslog test"} {
		if !strings.Contains(text, want) {
			t.Errorf("%s lacks %s", text, want)
		}
	}
	waitFor(t, f, func(policy.State) bool {
		return strings.Contains(mustCall(t, s, "audit syslog show", ""), "records behind: 2")
	})
	if text := mustCall(t, s, "status", ""); !strings.Contains(text, "siem.example.test:6514: connected, records behind: 2") {
		t.Error(text)
	}
	if text := mustCall(t, s, "audit syslog test", ""); !strings.Contains(text, "CN=siem.example.test") || !strings.Contains(text, "TLS 1.3") {
		t.Error(text)
	}
	f.Fail("forward.Test", rpc.ErrUnavailable.With("siem.example.test:6514: connection refused"))
	if _, err := call(s, "audit syslog test", ""); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Error(err)
	}
	mustCall(t, s, "audit syslog set [2001:db8::1]:6514 --name siem", ca)
	waitFor(t, f, func(p policy.State) bool { return p.Service.Syslog.Name == "siem" })
	mustCall(t, s, "audit syslog off", "")
	waitFor(t, f, func(p policy.State) bool { return p.Service.Syslog == nil })
}

// TestTheCollectorsClientCertificateIsMadeShownAndTakenBack by verbs, as that of https.
func TestTheCollectorsClientCertificateIsMadeShownAndTakenBack(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	ca := newKey(t)
	issuer := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Example CA"}, NotAfter: time.Unix(1<<31, 0), IsCA: true, BasicConstraintsValid: true}
	caDER, err := x509.CreateCertificate(rand.Reader, issuer, issuer, ca.Public(), ca)
	if err != nil {
		t.Fatal(err)
	}
	mustCall(t, s, "audit syslog set siem.example.test:6514", armor("CERTIFICATE", caDER))
	if text := flat(t, s, "audit syslog show", ""); !strings.Contains(text, "wants a certificate: audit syslog csr") {
		t.Error(text)
	}
	if text := mustCall(t, s, "audit syslog csr", ""); !strings.HasPrefix(text, "-----BEGIN CERTIFICATE REQUEST-----\n") || !strings.HasSuffix(text, "-----END CERTIFICATE REQUEST-----\n") {
		t.Errorf("not the request alone, which goes into a file:\n%s", text)
	}
	issue := func(until time.Time, use ...x509.ExtKeyUsage) []byte {
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "node1.hgs.example.test"}, NotBefore: time.Unix(0, 0), NotAfter: until, ExtKeyUsage: use}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, issuer, f.SyslogKey().Public(), ca)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	at := time.UnixMilli(verbtest.At.Earliest)
	for name, c := range map[string]struct{ input, says string }{
		"for servers": {armor("CERTIFICATE", issue(at.AddDate(1, 0, 0), x509.ExtKeyUsageServerAuth)), "not client authentication"},
		"private key": {"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "private key"},
		"nothing":     {"", "no certificates"},
	} {
		if _, err := call(s, "audit syslog install", c.input); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	good := issue(at.AddDate(0, 0, 10), x509.ExtKeyUsageClientAuth)
	if text := flat(t, s, "audit syslog install", armor("CERTIFICATE", caDER)+armor("CERTIFICATE", good)); !strings.Contains(text, policy.Thumbprint(good)) || !strings.Contains(text, "audit syslog test") {
		t.Error(text)
	}
	waitFor(t, f, func(p policy.State) bool {
		for _, n := range p.Nodes {
			if len(n.SyslogCertificates()) == 1 && string(n.SyslogCertificate) == string(good) {
				return true
			}
		}
		return false
	})
	// Its end is told where somebody looks: ten days are less than the warning.
	for _, line := range []string{"audit syslog show", "status"} {
		if text := flat(t, s, line, ""); !strings.Contains(text, "shows collectors ends on") || !strings.Contains(text, "audit syslog csr") {
			t.Errorf("%s: %s", line, text)
		}
	}
	if text := flat(t, s, "audit syslog show", ""); !strings.Contains(text, "CN=node1.hgs.example.test") || !strings.Contains(text, "CN=Example CA") || !strings.Contains(text, policy.Thumbprint(good)) {
		t.Error(text)
	}
	mustCall(t, s, "audit syslog uninstall", "")
	if _, err := call(s, "audit syslog uninstall", ""); err == nil || !strings.Contains(err.Error(), "no client certificate") {
		t.Error(err)
	}
}
