//go:build qemu

package site

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// sendsItsAudit has the node send its audit, from behind its network fence, to a collector that asks for a client certificate: refused
// without one, taken with one whose key was made on the node. A name that nobody knows is told as that, by the process that asks for it.
func sendsItsAudit(t *testing.T, s *stage) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	from, until := time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotBefore: from, NotAfter: until, IsCA: true, BasicConstraintsValid: true}
	issue := func(tmpl *x509.Certificate, pub any) []byte {
		der, err := x509.CreateCertificate(rand.Reader, tmpl, ca, pub, key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	root, err := x509.ParseCertificate(issue(ca, key.Public()))
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	clients.AddCert(root)
	own := issue(&x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{"siem.example.test"}, NotBefore: from, NotAfter: until}, key.Public())
	plain, addr := listener(t)
	l := tls.NewListener(plain, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{own}, PrivateKey: key}}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients})
	var taken atomic.Int64
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func(c net.Conn) {
				defer c.Close()
				n, _ := io.Copy(io.Discard, c)
				taken.Add(n)
			}(c)
		}
	}()
	verb := func(stdin []byte, args ...string) ([]byte, error) {
		return s.Verb(within(t, time.Minute), stdin, args...)
	}
	must := func(stdin []byte, args ...string) []byte {
		t.Helper()
		out, err := verb(stdin, args...)
		if err != nil {
			t.Fatalf("%s: %v", strings.Join(args, " "), err)
		}
		return out
	}
	says := func(want string) {
		t.Helper()
		eventually(t, 40*time.Second, func(context.Context) error {
			_, err := verb(nil, "audit", "syslog", "test")
			if err == nil {
				return errors.New("the collector takes it")
			}
			if !strings.Contains(squeeze(err.Error()), want) {
				return err
			}
			return nil
		})
	}
	caPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})
	must(caPEM, "audit", "syslog", "set", addr, "--name", "siem.example.test")
	says("wants one (tls: certificate required)")
	block, _ := pem.Decode(must(nil, "audit", "syslog", "csr"))
	if block == nil {
		t.Fatal("no request")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	leaf := issue(&x509.Certificate{SerialNumber: big.NewInt(3), Subject: csr.Subject, NotBefore: from, NotAfter: until, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, csr.PublicKey)
	must(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf}), "audit", "syslog", "install")
	eventually(t, 60*time.Second, func(context.Context) error {
		out, err := verb(nil, "audit", "syslog", "test")
		if err == nil && !strings.Contains(string(out), "TLS 1.3") {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
	must(caPEM, "audit", "syslog", "set", "siem.unknown.invalid:6514")
	says("the address of siem.unknown.invalid can't be found: \"lookup siem.unknown.invalid")
	must(nil, "audit", "syslog", "off")
	eventually(t, 20*time.Second, func(context.Context) error { // connections end now, so what came is counted
		if taken.Load() < 1000 {
			return fmt.Errorf("%d bytes came", taken.Load())
		}
		return nil
	})
}
