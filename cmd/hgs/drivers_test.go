package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"
	"golang.org/x/sys/unix"

	"guardhouse/appliance/attest"
	"guardhouse/appliance/health"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

var noon = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

// driverTries is how often each driver reads each list over each door.
const driverTries = 300

// The paths that the drivers make of a connection string, JDBC's one also where it ends in a slash.
var (
	jdbcPaths = []string{"/Attestation/attestationservice.svc/v2.0/signingCertificates/", "/Attestation//attestationservice.svc/v2.0/signingCertificates/"}
	netPath   = "/Attestation/v2.0/signingCertificates"
)

// publicFace serves attestation with the server, doors and TLS of this process; the ledger signs the handshakes by rpc.
type publicFace struct {
	t           *testing.T
	snap        policy.Snapshot
	http, https string
	roots       *x509.CertPool
	// good is the last body that was read in full and its certificates: what is the same need not be parsed 300 times.
	good  string
	certs []*x509.Certificate
}

func newPublicFace(t *testing.T, bits, signers int) *publicFace {
	f := &publicFace{t: t, roots: x509.NewCertPool()}
	f.snap = policy.Snapshot{Index: 1, NodeID: "n1", State: policy.NewState()}
	f.snap.State.Service = &policy.Service{Name: "hgs.example.test", Mode: policy.ModeHostKey, HTTP: true, HTTPS: true, HealthLife: policy.DefaultHealthLife}
	f.addSigners(bits, signers)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"hgs.example.test"}, NotBefore: noon.Add(-time.Hour), NotAfter: noon.Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := x509.ParseCertificate(der)
	f.roots.AddCert(leaf)
	f.snap.State.Nodes["n1"] = policy.Node{ID: "n1", Certificate: der}
	n := &node{clock: &rpc.TimeSource{}, ledger: signingLedger(t, key)}
	n.snap.Store(&f.snap)
	f.serve(newServer(n, attest.New(attest.Deps{Snapshot: n.snapshot,
		Now:      func() (time.Time, time.Time, bool) { return noon, noon.Add(40 * time.Millisecond), true },
		Stamp:    func() policy.Stamp { return policy.Stamp{} },
		BootTime: rpc.BootTime,
		Log:      t.Logf,
	})))
	return f
}

// addSigners records one attestation signer that signs, one that will, and others that were retired hours ago.
func (f *publicFace) addSigners(bits, n int) {
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		f.t.Fatal(err)
	}
	for i := range n {
		from := noon.Add(-time.Duration(i+1) * time.Hour)
		der, err := health.NewSignerCertificate(rand.Reader, health.Between(from, from, true), "", health.DefaultSignerLife, key)
		if err != nil {
			f.t.Fatal(err)
		}
		k := policy.Key{Ref: policy.RefOf(der), Role: policy.RoleAttestationSigner, Certificate: der, Enabled: true, PublishedAt: from.Unix(), UseFrom: from.Unix()}
		switch {
		case n > 1 && i == 0:
			k.Primary, k.UseFrom = true, from.Add(policy.SignerOverlap).Unix()
		case i > 1:
			k.RetiredAt = from.Unix() + 60
		}
		f.snap.State.Keys[k.Ref] = k
	}
}

// signingLedger is a ledger that signs TLS handshakes and nothing else.
func signingLedger(t *testing.T, key *ecdsa.PrivateKey) *rpc.Client {
	path := filepath.Join(t.TempDir(), "ledger.sock")
	s := rpc.NewServer(rpc.UIDs{rpc.HGS: uint32(os.Getuid())})
	rpc.Handle(s, rpc.LedgerSign, func(_ context.Context, _ rpc.Caller, r rpc.NodeSignRequest) (rpc.NodeSignReply, error) {
		sig, err := key.Sign(rand.Reader, r.Digest, crypto.Hash(r.Hash))
		return rpc.NodeSignReply{Signature: sig}, err
	}, rpc.HGS)
	l, err := rpc.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { s.Serve(ctx, l) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return rpc.NewClient(path)
}

func (f *publicFace) serve(s *server) {
	listeners := map[string][]net.Listener{}
	for name, addr := range map[string]*string{"http": &f.http, "https": &f.https} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			f.t.Fatal(err)
		}
		listeners[name], *addr = []net.Listener{l}, l.Addr().String()
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.serve(ctx, listeners) }()
	f.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			f.t.Error(err)
		}
	})
}

func (f *publicFace) dial(secure bool) (net.Conn, error) {
	if !secure {
		return net.Dial("tcp", f.http)
	}
	return tls.Dial("tcp", f.https, &tls.Config{RootCAs: f.roots, ServerName: "hgs.example.test", Time: func() time.Time { return noon }})
}

// readOnce is available() and one read() of that many bytes, when the first byte has arrived: of a plain connection what the kernel
// holds, of TLS what is left of the record.
func readOnce(c net.Conn) ([]byte, error) {
	got := make([]byte, 64<<10)
	if _, err := io.ReadFull(c, got[:1]); err != nil {
		return nil, err
	}
	available := len(got) - 1
	if plain, ok := c.(*net.TCPConn); ok {
		raw, err := plain.SyscallConn()
		if err != nil {
			return nil, err
		}
		var ioctl error
		if err := raw.Control(func(fd uintptr) { available, ioctl = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }); err != nil || ioctl != nil {
			return nil, fmt.Errorf("%v %w", err, ioctl)
		}
	}
	n, err := c.Read(got[1 : 1+available])
	return got[:1+n], err
}

// jdbc reads the list as the JDBC driver does and gives its certificates.
func (f *publicFace) jdbc(secure bool, path string) ([]*x509.Certificate, error) {
	c, err := f.dial(secure)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nUser-Agent: Java/21\r\nHost: hgs.example.test\r\nAccept: */*\r\nConnection: keep-alive\r\n\r\n", path)
	answer, err := readOnce(c)
	if err != nil {
		return nil, err
	}
	head, body, ok := strings.Cut(string(answer), "\r\n\r\n")
	if !ok || !strings.HasPrefix(head, "HTTP/1.1 200 ") {
		return nil, fmt.Errorf("answered %.100q", answer)
	}
	if len(body) < 2 {
		return nil, fmt.Errorf("%d bytes of the body are there", len(body))
	}
	if body == f.good {
		return f.certs, nil
	}
	var p7 []byte
	for _, number := range strings.Split(body[1:len(body)-1], ",") { // strips the brackets without looking, parses without trimming
		v, err := strconv.ParseInt(number, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("of %d bytes: %w", len(body), err)
		}
		p7 = append(p7, byte(v))
	}
	certs, err := certsOnly(p7)
	for _, cert := range certs {
		if noon.Before(cert.NotBefore) { // aborts the driver
			return nil, fmt.Errorf("a certificate is not valid yet")
		}
	}
	if err == nil {
		f.good, f.certs = body, certs
	}
	return certs, err
}

// certsOnly is what SignedCms and CertificateFactory take: a SignedData of certificates, without content and signers.
func certsOnly(der []byte) ([]*x509.Certificate, error) {
	p7, err := pkcs7.Parse(der)
	if err != nil {
		return nil, err
	}
	if len(p7.Content) != 0 || len(p7.Signers) != 0 || len(p7.CRLs) != 0 {
		return nil, fmt.Errorf("not certificates only: %d bytes of content, %d signers", len(p7.Content), len(p7.Signers))
	}
	for _, c := range p7.Certificates {
		if err := c.CheckSignatureFrom(c); err != nil {
			return nil, fmt.Errorf("not self-signed: %w", err)
		}
	}
	return p7.Certificates, nil
}

// TestDriversReadTheSigningCertificatesEachTime: recipes, "SQL drivers read signingCertificates badly".
func TestDriversReadTheSigningCertificatesEachTime(t *testing.T) {
	for _, c := range []struct{ bits, recorded, published int }{
		{policy.SignerBits, 1, 1}, {policy.SignerBits, 3, 3}, {2048, 5, 5},
		{policy.SignerBits, 5, 4}, // the fifth would not fit one TLS record
	} {
		t.Run(fmt.Sprintf("%d of RSA %d", c.recorded, c.bits), func(t *testing.T) {
			f := newPublicFace(t, c.bits, c.recorded)
			for _, secure := range []bool{false, true} {
				failed := 0
				for i := range driverTries {
					certs, err := f.jdbc(secure, jdbcPaths[i%2])
					if err == nil && len(certs) != c.published {
						err = fmt.Errorf("%d certificates", len(certs))
					}
					if err != nil {
						if failed++; failed < 4 {
							t.Error(err)
						}
					}
				}
				t.Logf("TLS %v: JDBC failed %d of %d times", secure, failed, driverTries)
			}
			f.checkNET(c.published)
		})
	}
}

// checkNET reads as SqlClient does: the whole body as a JSON List<byte>, then SignedCms.
func (f *publicFace) checkNET(want int) {
	f.t.Helper()
	for _, secure := range []bool{false, true} {
		c, err := f.dial(secure)
		if err != nil {
			f.t.Fatal(err)
		}
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: hgs.example.test\r\n\r\n", netPath)
		answer, err := io.ReadAll(c) // to the end: nothing may follow the list
		c.Close()
		if err != nil {
			f.t.Fatal(err)
		}
		head, body, _ := bytes.Cut(answer, []byte("\r\n\r\n"))
		if !bytes.Contains(head, []byte(fmt.Sprintf("\r\nContent-Length: %d\r\n", len(body)))) {
			f.t.Errorf("Content-Length is not %d: %s", len(body), head)
		}
		var list []uint8 // of a list of numbers; from a string Go would take base64, which .NET refuses
		if body[0] != '[' {
			f.t.Fatalf("not a list: %.20q", body)
		}
		var numbers []json.Number
		if err := json.Unmarshal(body, &numbers); err != nil {
			f.t.Fatal(err)
		}
		for _, n := range numbers {
			v, err := strconv.ParseUint(n.String(), 10, 8) // a negative or a larger one is refused
			if err != nil {
				f.t.Fatal(err)
			}
			list = append(list, byte(v))
		}
		certs, err := certsOnly(list)
		if err != nil || len(certs) != want {
			f.t.Errorf("SignedCms finds %d certificates, want %d: %v", len(certs), want, err)
		}
	}
}

// TestJDBCWouldFailWithoutOurSettings proves that the reader above is as bad as the driver: a list of that size, sent Go's own way, is cut.
func TestJDBCWouldFailWithoutOurSettings(t *testing.T) {
	stock := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "["+strings.Repeat("255,", 3000)+"0]")
	}))
	stock.StartTLS()
	defer stock.Close()
	failed := 0
	for range 20 {
		c, err := tls.Dial("tcp", stock.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		answer, err := readOnce(c)
		c.Close()
		if err != nil || !bytes.HasSuffix(answer, []byte("]")) {
			failed++
		}
	}
	if failed != 20 {
		t.Errorf("the reader failed only %d of 20 times", failed)
	}
}
