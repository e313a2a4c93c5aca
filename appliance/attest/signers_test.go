package attest

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"guardhouse/appliance/health"
	"guardhouse/appliance/hgsa"
	"guardhouse/appliance/policy"
)

// recorder counts the writes below net/http.
type recorder struct {
	net.Listener
	mu     sync.Mutex
	writes []int
}

type recorded struct {
	net.Conn
	l *recorder
}

func (l *recorder) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return recorded{c, l}, err
}

func (c recorded) Write(b []byte) (int, error) {
	c.l.mu.Lock()
	c.l.writes = append(c.l.writes, len(b))
	c.l.mu.Unlock()
	return c.Conn.Write(b)
}

func TestSigningCertificatesLeaveInOneWrite(t *testing.T) {
	n := newNode(t)
	for i := range 5 { // six in all, one too many
		n.addSigner(t, testKeys()[3], noon.Add(-time.Duration(i+30)*24*time.Hour), health.DefaultSignerLife, false, true)
	}
	n.addSigner(t, testKeys()[3], noon.Add(time.Hour), health.DefaultSignerLife, false, true)          // not yet valid
	n.addSigner(t, testKeys()[3], noon.Add(-48*time.Hour), time.Hour, false, true)                     // expired
	n.addSigner(t, testKeys()[3], noon.Add(-24*time.Hour), 24*time.Hour+time.Second/2, false, true)    // perhaps expired
	off := n.addSigner(t, testKeys()[3], noon.Add(-time.Hour), health.DefaultSignerLife, false, false) // disabled
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	rec := &recorder{Listener: l}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", "Wed, 04 Mar 2026 12:00:00 GMT") // set around the service, as cmd/hgs does
		n.ServeHTTP(w, r)
	})}
	go server.Serve(rec)
	defer server.Close()
	for _, path := range []string{"/Attestation/v2.0/signingCertificates", "/Attestation//attestationservice.svc/v2.0/signingCertificates/"} {
		rec.mu.Lock()
		rec.writes = nil
		rec.mu.Unlock()
		resp, err := http.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 200 || resp.ContentLength != int64(len(body)) || resp.Header.Get("Content-Type") != hgsa.ContentType || resp.Header.Get("Date") == "" {
			t.Fatalf("%v %+v", err, resp)
		}
		if err := hgsa.CheckSigningBody(body); err != nil {
			t.Error(err)
		}
		certs, err := hgsa.DecodeSigningCertificates(body)
		if err != nil || len(certs) < 2 || len(certs) > 5 {
			t.Fatalf("%d certificates, %v", len(certs), err)
		}
		primary := false
		for _, c := range certs {
			primary = primary || c.Equal(n.signer)
			if c.Equal(off) || !health.Between(noon, noon.Add(time.Second), true).Within(c.NotBefore, c.NotAfter) {
				t.Errorf("published: %s to %s", c.NotBefore, c.NotAfter)
			}
		}
		rec.mu.Lock()
		if !primary || len(rec.writes) != 1 || rec.writes[0] > maxOneWrite {
			t.Errorf("primary %v, writes of %v bytes", primary, rec.writes)
		}
		rec.mu.Unlock()
	}
	if w := n.do("GET", "/Attestation/v2.0/signingCertificates", nil); w.Code != 200 || hgsa.CheckSigningBody(w.Body.Bytes()) != nil {
		t.Error("without a connection to take over:", w.Code)
	}
}

// TestSignsWithTheSignerWhoseTimeHasCome: one that is published for later does not sign yet, a retired one no more, and drivers find
// every one that signs, signed lately or soon will.
func TestSignsWithTheSignerWhoseTimeHasCome(t *testing.T) {
	n := newNode(t)
	n.edit(func(s *policy.State) { s.Keys = map[policy.KeyRef]policy.Key{} })
	day := 24 * time.Hour
	add := func(age, publish, use, retired time.Duration, primary bool) *x509.Certificate {
		c := n.addSigner(t, n.signerKey, noon.Add(-age), health.DefaultSignerLife, primary, true)
		n.edit(func(s *policy.State) {
			s.Keys = maps.Clone(s.Keys)
			k := s.Keys[policy.RefOf(c.Raw)]
			k.PublishedAt, k.UseFrom = noon.Add(publish).Unix(), noon.Add(use).Unix()
			if retired != 0 {
				k.RetiredAt = noon.Add(retired).Unix()
			}
			s.Keys[k.Ref] = k
		})
		return c
	}
	withdrawn := add(90*day, -80*day, -79*day, -day-time.Second, false)
	retired := add(60*day, -50*day, -40*day, -day+time.Minute, false)
	used := add(20*day, -20*day, -19*day, time.Hour, false)
	next := add(time.Hour, -23*time.Hour, time.Hour, 0, true)
	for minutes, want := range map[time.Duration]*x509.Certificate{0: used, 59: used, 60: next} {
		n.Service.signers.now = func() (time.Time, time.Time, bool) { return noon.Add(minutes * time.Minute), noon, true }
		if s, ok := n.Service.signers.primary(n.snap); !ok || !s.certificate.Equal(want) {
			t.Errorf("after %d minutes %v signs, not %s", minutes, s.certificate, want.SerialNumber)
		}
	}
	n.Service.signers.now = n.d.Now
	n.signer = used
	if err := n.takes(n.do("POST", attestPath, n.request(t, hgsa.HostKeyRequest{})), 1, 2); err != nil {
		t.Error(err)
	}
	got := n.Service.signers.published(n.snap, health.Between(n.d.Now()), noon)
	if len(got) != 3 || !got[0].Equal(used) || !got[1].Equal(next) || !got[2].Equal(retired) {
		t.Errorf("%d certificates are published, withdrawn one: %v", len(got), slices.ContainsFunc(got, withdrawn.Equal))
	}
}

// TestPublishedSignersStayWhenTheTimeIsLost: drivers find what was published last, by this process or, after a restart, by what the
// ledger kept; nothing new moves into place meanwhile.
func TestPublishedSignersStayWhenTheTimeIsLost(t *testing.T) {
	const path = "/Attestation/v2.0/signingCertificates"
	n := newNode(t)
	before := n.do("GET", path, nil)
	n.timeKnown = false
	after := n.do("GET", path, nil)
	if before.Code != 200 || after.Code != 200 || !bytes.Equal(before.Body.Bytes(), after.Body.Bytes()) {
		t.Fatalf("with a time %d, without one %d", before.Code, after.Code)
	}
	if w := n.do("POST", attestPath, n.request(t, hgsa.HostKeyRequest{})); w.Code != 503 || w.Header().Get("Retry-After") == "" {
		t.Errorf("and health certificates: %d, Retry-After %q", w.Code, w.Header().Get("Retry-After"))
	}
	if w := n.do("GET", "/Attestation/getinfo", nil); w.Code != 200 {
		t.Errorf("getinfo without a time: %d", w.Code)
	}
	fresh := newNode(t)
	fresh.timeKnown = false
	if w := fresh.do("GET", path, nil); w.Code != 503 {
		t.Errorf("a node that never knew the time published something: %d", w.Code)
	}
	fresh.snap.Floor = noon.UnixMilli()
	if w := fresh.do("GET", path, nil); w.Code != 200 || hgsa.CheckSigningBody(w.Body.Bytes()) != nil {
		t.Errorf("with the ledger's moment: %d", w.Code)
	}
	fresh.snap.Floor = fresh.signer.NotAfter.Add(time.Minute).UnixMilli()
	if w := fresh.do("GET", path, nil); w.Code != 503 {
		t.Errorf("an expired signer was published: %d", w.Code)
	}
}

// The JDBC driver reads once: one TLS record must hold head and body.
func TestSigningCertificatesFillOneTLSRecord(t *testing.T) {
	n := newNode(t)
	for i := range 4 {
		n.addSigner(t, testKeys()[3], noon.Add(-time.Duration(i+30)*24*time.Hour), health.DefaultSignerLife, false, true)
	}
	server := httptest.NewUnstartedServer(n)
	server.TLS = &tls.Config{DynamicRecordSizingDisabled: true}
	server.StartTLS()
	defer server.Close()
	for range 20 {
		conn, err := tls.Dial("tcp", server.Listener.Addr().String(), &tls.Config{RootCAs: server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs, ServerName: "example.com"})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET /Attestation/attestationservice.svc/v2.0/signingCertificates/ HTTP/1.1\r\nHost: h\r\n\r\n")
		once := make([]byte, 64<<10)
		got, err := conn.Read(once)
		conn.Close()
		if err != nil {
			t.Fatal(err)
		}
		_, body, ok := bytes.Cut(once[:got], []byte("\r\n\r\n"))
		if err := hgsa.CheckSigningBody(body); !ok || err != nil {
			t.Fatalf("the first of several records has %d bytes: %v", got, err)
		}
	}
}
