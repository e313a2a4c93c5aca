package policy

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"
)

func syslogCA(t testing.TB) []byte {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Unix(1<<31, 0), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestWhereTheAuditIsSentIsAnOwnersChoice(t *testing.T) {
	s, actors := setUp(t)
	ca := syslogCA(t)
	good := Syslog{Address: "siem.example.test:6514", Name: "siem.example.test", CAs: [][]byte{ca}}
	owner := actors[AdminOwner]
	set := func(y Syslog) Command { return command(t, CmdAuditSyslog, owner, SyslogSet{&y}) }
	refused(t, s, command(t, CmdAuditSyslog, actors[AdminOperator], SyslogSet{&good}))
	refused(t, s, command(t, CmdAuditSyslog, owner, SyslogSet{}))
	for name, spoil := range map[string]func(*Syslog){
		"no port":     func(y *Syslog) { y.Address = "siem.example.test" },
		"port 0":      func(y *Syslog) { y.Address = "siem.example.test:0" },
		"port name":   func(y *Syslog) { y.Address = "siem.example.test:syslog-tls" },
		"no host":     func(y *Syslog) { y.Address = ":6514" },
		"blank":       func(y *Syslog) { y.Address = "a b:6514" },
		"zone":        func(y *Syslog) { y.Address = "[fe80::1%eth0]:6514" },
		"long":        func(y *Syslog) { y.Address = strings.Repeat("a", 300) + ":6514" },
		"no name":     func(y *Syslog) { y.Name = "" },
		"no CA":       func(y *Syslog) { y.CAs = nil },
		"many CAs":    func(y *Syslog) { y.CAs = make([][]byte, MaxSyslogCAs+1) },
		"garbage CA":  func(y *Syslog) { y.CAs = [][]byte{[]byte("x")} },
		"enormous CA": func(y *Syslog) { y.CAs = [][]byte{make([]byte, MaxCertificate+1)} },
	} {
		y := good
		spoil(&y)
		t.Run(name, func(t *testing.T) { refused(t, s, set(y)) })
	}
	for _, address := range []string{"192.0.2.1:6514", "[2001:db8::1]:6514"} {
		y := good
		y.Address = address
		must(t, s, set(y))
	}
	s, _ = must(t, s, set(good))
	if s.Service.Syslog == nil || s.Service.Syslog.Address != good.Address {
		t.Fatalf("%+v", s.Service.Syslog)
	}
	s, _ = must(t, s, command(t, CmdAuditSyslog, owner, SyslogSet{}))
	if s.Service.Syslog != nil {
		t.Fatal("it is still set")
	}
}

func TestCAsOfACollectorAreCertificatesOnly(t *testing.T) {
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: syslogCA(t)})
	if cas, err := SyslogCAs(append(append([]byte("the CA\n"), ca...), ca...)); err != nil || len(cas) != 2 {
		t.Errorf("%d, %v", len(cas), err)
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")})
	for _, bad := range [][]byte{nil, []byte("x"), append(bytes.Clone(ca), key...), bytes.Repeat(ca, MaxSyslogCAs+1)} {
		if _, err := SyslogCAs(bad); err == nil {
			t.Errorf("%.30q was taken", bad)
		}
	}
}

func TestTheFormerAuditKeysStayOnRecord(t *testing.T) {
	s, actors := setUp(t)
	node := Actor{Name: "node1", Door: DoorNode}
	change := func(a Actor, k AuditKeyChange) Command { return command(t, CmdAuditKey, a, k) }
	refused(t, s, change(actors[AdminOwner], AuditKeyChange{"n1", []byte{2}, "an owner wants it"}))
	for _, bad := range []AuditKeyChange{{"nobody", []byte{2}, "x"}, {"n1", nil, "x"}, {"n1", make([]byte, MaxAuditKey+1), "x"}, {"n1", []byte{2}, strings.Repeat("x", 300)}, {"n1", []byte{2}, "a\nb"}} {
		refused(t, s, change(node, bad))
	}
	for i := range maxFormerAuditKeys + 3 {
		s, _ = must(t, s, change(node, AuditKeyChange{"n1", []byte{byte(2 + i)}, "the TPM was cleared"}))
		s, _ = must(t, s, change(node, AuditKeyChange{"n1", []byte{byte(2 + i)}, "asked again"}))
	}
	n := s.Nodes["n1"]
	keys := n.AuditKeys()
	if len(n.FormerAuditKeys) != maxFormerAuditKeys || len(keys) != maxFormerAuditKeys+1 || keys[0][0] != maxFormerAuditKeys+4 || keys[1][0] != maxFormerAuditKeys+3 {
		t.Errorf("%d former, %v", len(n.FormerAuditKeys), keys)
	}
}
