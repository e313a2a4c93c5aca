//go:build qemu

package site

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// client makes a new connection for each request.
func client() *http.Client {
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
}

func httpsAnswers(t *testing.T, s *stage) {
	var list struct {
		Nodes []struct{ TLSSHA1, TLSSHA256 string }
	}
	if err := s.JSON(within(t, 30*time.Second), nil, &list, "node", "list"); err != nil {
		t.Fatal(err)
	}
	c, err := tls.Dial("tcp", s.Node.Addr(443), &tls.Config{InsecureSkipVerify: true, ServerName: "hgs.example.test"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cert := c.ConnectionState().PeerCertificates[0]
	sum1, sum256 := sha1.Sum(cert.Raw), sha256.Sum256(cert.Raw)
	if len(list.Nodes) != 1 || !strings.EqualFold(list.Nodes[0].TLSSHA1, hex.EncodeToString(sum1[:])) ||
		!strings.EqualFold(list.Nodes[0].TLSSHA256, hex.EncodeToString(sum256[:])) {
		t.Errorf("node list says %+v, the wire %x and %x", list.Nodes, sum1, sum256)
	}
	if err := cert.VerifyHostname("hgs.example.test"); err != nil {
		t.Error(err)
	}
	fmt.Fprintf(c, "GET /Attestation/Getinfo HTTP/1.1\r\nHost: hgs.example.test\r\nConnection: close\r\n\r\n")
	answer, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Errorf("getinfo over HTTPS: %v %v", answer, err)
	}
	for _, v := range []uint16{tls.VersionTLS10, tls.VersionTLS11} {
		old, err := tls.Dial("tcp", s.Node.Addr(443), &tls.Config{InsecureSkipVerify: true, MinVersion: v, MaxVersion: v})
		if err == nil {
			old.Close()
			t.Errorf("took TLS version %x", v)
		} else if !strings.Contains(err.Error(), "protocol version") {
			t.Errorf("TLS version %x: %v", v, err)
		}
	}
}

func httpSwitch(t *testing.T, s *stage) {
	get := func(url string) error {
		resp, err := client().Get(url + "/Attestation/Getinfo")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				err = fmt.Errorf("status %d", resp.StatusCode)
			}
		}
		return err
	}
	plain, secure := "http://"+s.Node.Addr(80), "https://"+s.Node.Addr(443)
	s.verb(t, "service", "set", "--http", "off")
	if get(plain) == nil {
		t.Error("port 80 answers although it is off")
	}
	if err := get(secure); err != nil {
		t.Errorf("HTTPS while HTTP is off: %v", err)
	}
	s.verb(t, "service", "set", "--http", "on")
	if err := get(plain); err != nil {
		t.Errorf("HTTP switched on again: %v", err)
	}
}

// badRequest is a request and the typed reply that hgsa.md 13 and kps.md 12 to 14 give it.
type badRequest struct {
	method, path string
	body         []byte
	status       int
	want         string // in the body
	allow        string
}

var badRequestTable = map[string]badRequest{
	"getinfo by POST":           {"POST", "/Attestation/Getinfo", nil, 405, "PayloadErrorReply", "GET, HEAD"},
	"attest by GET":             {"GET", "/Attestation/v2.0/hostkeyattest", nil, 405, "PayloadErrorReply", "POST"},
	"attest, no JSON":           {"POST", "/attestation/V2.0/HOSTKEYATTEST", []byte("{"), 400, "PayloadErrorReply", ""},
	"attest, empty":             {"POST", "/Attestation/v2.0/hostkeyattest", []byte("{}"), 200, "PayloadErrorReply", ""},
	"attest, deep":              {"POST", "/Attestation/v2.0/hostkeyattest", bytes.Repeat([]byte("["), 100000), 400, "PayloadErrorReply", ""},
	"attest, too large":         {"POST", "/Attestation/v2.0/hostkeyattest", make([]byte, 1<<20+1), 413, "PayloadErrorReply", ""},
	"attest in another mode":    {"POST", "/Attestation/v2.0/attest", []byte("{}"), 200, `"ExpectedOperationMode":3`, ""},
	"unknown operation":         {"GET", "/Attestation/nothing", nil, 404, "PayloadErrorReply", ""},
	"roll by GET":               {"GET", "/KeyProtection/service/v2.0/rolltransportkey", nil, 405, "<Error", "POST"},
	"roll, no XML":              {"POST", "/keyprotection/SERVICE/v2.0/rolltransportkey", []byte("roll"), 400, "<Error", ""},
	"roll, empty":               {"POST", "/KeyProtection/service/v2.0/rolltransportkey", nil, 400, "<Error", ""},
	"roll, entities":            {"POST", "/KeyProtection/service/v2.0/rolltransportkey", []byte(`<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>`), 400, "<Error", ""},
	"roll, too large":           {"POST", "/KeyProtection/service/v2.0/rolltransportkey", make([]byte, 8<<20), 413, "<Error", ""},
	"roll of unknown version":   {"POST", "/KeyProtection/service/v9.0/rolltransportkey", []byte("x"), 404, "<Error", ""},
	"nothing of either service": {"GET", "/", nil, 404, "", ""},
}

func badRequests(t *testing.T, s *stage) {
	var slow sync.WaitGroup
	slow.Go(func() { slowRequests(t, s) }) // takes its 5 s beside the others
	for name, r := range badRequestTable {
		if err := s.send(r); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Many at once must not fill the memory: 48 bodies of 1 MiB against a budget of 32.
	var flood sync.WaitGroup
	for range 48 {
		flood.Go(func() {
			s.send(badRequest{method: "POST", path: "/Attestation/v2.0/hostkeyattest", body: append([]byte(`{"a":"`), make([]byte, 1<<20-8)...)})
		})
	}
	flood.Wait()
	slow.Wait()
	st := s.wellNow(t)
	for _, svc := range st.Init.Services {
		if svc.Restarts > 0 {
			t.Errorf("%s was restarted %d times", svc.Name, svc.Restarts)
		}
		if svc.Name == "hgs" && svc.RSS > 160<<20 {
			t.Errorf("hgs holds %d MiB", svc.RSS>>20)
		}
	}
	if log := s.verb(t, "log", "show", "hgs"); strings.Contains(log, "fault:") || strings.Contains(log, "goroutine ") {
		t.Errorf("a request made hgs panic:\n%s", log)
	}
}

// send sends one request and checks the reply.
func (s *stage) send(r badRequest) error {
	req, err := http.NewRequest(r.method, "http://"+s.Node.Addr(80)+r.path, bytes.NewReader(r.body))
	if err != nil {
		return err
	}
	resp, err := client().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode != r.status || !bytes.Contains(text, []byte(r.want)) || resp.Header.Get("Allow") != r.allow {
		return fmt.Errorf("%d, Allow %q, %.200q; want %d, %q, %s", resp.StatusCode, resp.Header.Get("Allow"), text, r.status, r.allow, r.want)
	}
	if bytes.Contains(text, []byte("goroutine")) || bytes.Contains(text, []byte(".go:")) {
		return fmt.Errorf("the reply shows the program's insides: %.200q", text)
	}
	return nil
}

// slowRequests holds connections that say little; the node must hang up.
func slowRequests(t *testing.T, s *stage) {
	var all sync.WaitGroup
	for _, text := range []string{"", "GET /Attestation/Getinfo HTTP/1.1\r\nHost: x\r\n", "\x16\x03\x01\x02\x00"} {
		all.Go(func() {
			c, err := net.Dial("tcp", s.Node.Addr(80))
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			io.WriteString(c, text)
			c.SetReadDeadline(time.Now().Add(15 * time.Second))
			if _, err := io.Copy(io.Discard, c); isTimeout(err) {
				t.Errorf("the node waits for ever after %q", text)
			}
		})
	}
	all.Wait()
}

// hsmFaults takes the token away in three ways. What needs it is refused in time with the protocol's reply, status says what to do, and
// all is well again by itself when the token is back.
func hsmFaults(t *testing.T, s *stage) {
	s.guest(t)
	if err := s.roll(within(t, 30*time.Second)); err != nil {
		t.Fatal(err)
	}
	for _, f := range []struct {
		name       string
		take, give func()
	}{
		{"hangs", s.Token.Stop, s.Token.Continue},
		{"pulled out", s.Node.Unplug, s.Node.Plug},
	} {
		f.take()
		start := time.Now()
		err := s.roll(within(t, 40*time.Second))
		took := time.Since(start)
		if err == nil || !strings.Contains(err.Error(), "Unavailable") {
			t.Errorf("token %s: a roll gave %v", f.name, err)
		}
		if took > 20*time.Second {
			t.Errorf("token %s: the refusal took %v", f.name, took)
		}
		resp, err := client().Get(s.URL("/Attestation/Getinfo"))
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("token %s: getinfo, which needs no token: %v %v", f.name, resp, err)
		}
		eventually(t, 20*time.Second, func(ctx context.Context) error {
			st, err := s.status(ctx)
			if err != nil {
				return err
			}
			for _, p := range st.Problems {
				if strings.HasPrefix(p.Kind, "hsm-") && p.Remedy != "" {
					t.Logf("token %s: refused after %.1f s; status: %s -> %s", f.name, took.Seconds(), p.What, p.Remedy)
					return nil
				}
			}
			return fmt.Errorf("status says nothing of it: %+v", st.Problems)
		})
		f.give()
		start = time.Now()
		eventually(t, 60*time.Second, s.roll)
		t.Logf("token %s: rolls again %.1f s after it came back", f.name, time.Since(start).Seconds())
	}
	s.wellNow(t)
}
