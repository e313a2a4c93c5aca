package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"guardhouse/appliance/policy"
)

// tlsDoor is a TLS listener that answers each handshake with its outcome; o notes who offers too little.
func tlsDoor(t *testing.T, o *oldTLS) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: o.look,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _ = c.(*tls.Conn).Handshake(); c.Close() }()
		}
	}()
	return l.Addr().String()
}

// TestOldTLSIsRefusedAndNoted: the handshake fails as before; what the caller offered is known afterwards, once a minute.
func TestOldTLSIsRefusedAndNoted(t *testing.T) {
	var mu sync.Mutex
	var now time.Duration
	var noted []policy.Observation
	o := &oldTLS{bootTime: func() time.Duration { mu.Lock(); defer mu.Unlock(); return now }, stamp: func() policy.Stamp { return policy.Stamp{Earliest: 1, Latest: 2} },
		observe: func(_ context.Context, list []policy.Observation) {
			mu.Lock()
			defer mu.Unlock()
			noted = append(noted, list...)
		}}
	addr := tlsDoor(t, o)
	dial := func(highest uint16, name string) error {
		c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: highest, ServerName: name})
		if err == nil {
			c.Close()
		}
		return err
	}
	for _, good := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		if err := dial(good, "hgs.example.test"); err != nil {
			t.Errorf("%s: %v", tls.VersionName(good), err)
		}
	}
	if len(noted) != 0 {
		t.Fatalf("noted %+v", noted)
	}
	for _, step := range []struct {
		offer uint16
		after time.Duration
		notes int
	}{{tls.VersionTLS10, 0, 1}, {tls.VersionTLS10, time.Second, 1}, {tls.VersionTLS11, 2 * time.Minute, 2}} {
		mu.Lock()
		now = step.after
		mu.Unlock()
		if err := dial(step.offer, "hgs.example.test"); err == nil {
			t.Errorf("%s was accepted", tls.VersionName(step.offer))
		}
		mu.Lock()
		if len(noted) != step.notes {
			t.Errorf("%s after %s: %d notes, want %d", tls.VersionName(step.offer), step.after, len(noted), step.notes)
		}
		mu.Unlock()
	}
	first := noted[0]
	if first.Kind != policy.ObservedOldTLS || first.Subject != "127.0.0.1" || first.Facts["offered"] != "TLS 1.0" || first.Facts["name"] != "hgs.example.test" || noted[1].Facts["offered"] != "TLS 1.1" {
		t.Errorf("%+v", noted)
	}
}

// from is a connection of which only the other end's address counts.
type from struct {
	net.Conn
	addr string
}

func (f from) RemoteAddr() net.Addr {
	a, _ := net.ResolveTCPAddr("tcp", f.addr)
	return a
}

// TestManySourcesOfOldTLSAreNotedAtABoundedRate, and what they claim is cut to harmless text.
func TestManySourcesOfOldTLSAreNotedAtABoundedRate(t *testing.T) {
	notes := 0
	o := &oldTLS{bootTime: func() time.Duration { return time.Minute }, stamp: func() policy.Stamp { return policy.Stamp{} },
		observe: func(_ context.Context, list []policy.Observation) {
			notes++
			if name := list[0].Facts["name"]; len(name) > maxServerName || strings.ContainsAny(name, "\x1b\n") {
				t.Errorf("name %q", name)
			}
		}}
	for i := range 5000 {
		hello := &tls.ClientHelloInfo{ServerName: "\x1b[31m\n" + strings.Repeat("é", 300), SupportedVersions: []uint16{0x0300, tls.VersionTLS10},
			Conn: from{addr: fmt.Sprintf("10.0.%d.%d:4000", i/250, i%250)}}
		if c, err := o.look(hello); c != nil || err != nil {
			t.Fatal(c, err)
		}
	}
	if notes == 0 || notes > oldTLSInAll {
		t.Errorf("%d notes of 5000 sources in a minute", notes)
	}
	if _, err := o.look(&tls.ClientHelloInfo{}); err != nil {
		t.Error(err)
	}
}
