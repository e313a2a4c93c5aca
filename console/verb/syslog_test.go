package verb_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
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
