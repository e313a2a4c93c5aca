package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/supervise"
)

// testServer serves h on loopback without a node behind it.
func testServer(t *testing.T, h http.Handler, adjust func(*server)) (*node, string) {
	t.Helper()
	n := &node{clock: &rpc.TimeSource{}}
	n.snap.Store(&policy.Snapshot{State: policy.NewState()})
	s := newServer(n, h)
	if adjust != nil {
		adjust(s)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.serve(ctx, map[string][]net.Listener{"http": {l}}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return n, l.Addr().String()
}

var fine = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "fine") })

func TestCutsConnectionsThatSayNothingOrLittle(t *testing.T) {
	_, addr := testServer(t, fine, func(s *server) {
		s.http.ReadHeaderTimeout, s.http.ReadTimeout, s.http.IdleTimeout = 100*time.Millisecond, 200*time.Millisecond, 100*time.Millisecond
	})
	for name, send := range map[string]string{
		"nothing":              "",
		"half a header":        "GET / HTTP/1.1\r\nHost: x\r\n",
		"a body that stalls":   "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc",
		"a request, then idle": "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			fmt.Fprint(c, send)
			c.SetReadDeadline(time.Now().Add(5 * time.Second))
			if _, err := io.Copy(io.Discard, c); err != nil && !strings.Contains(err.Error(), "reset") {
				t.Fatalf("the connection was kept: %v", err)
			}
		})
	}
}

func TestRefusesOversizedHeaders(t *testing.T) {
	_, addr := testServer(t, fine, nil)
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: x\r\nX-Long: %s\r\n\r\n", strings.Repeat("a", 2*maxHeaderBytes))
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Fatal(resp, err)
	}
}

func TestClosedDoorHangsUp(t *testing.T) {
	n, addr := testServer(t, fine, nil)
	get := func() error {
		c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
		resp, err := c.Get("http://" + addr)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	if err := get(); err != nil {
		t.Fatal("before setup the door is open and says so:", err)
	}
	closed := policy.NewState()
	closed.Service = &policy.Service{HTTP: false, HTTPS: true}
	n.snap.Store(&policy.Snapshot{State: closed})
	if get() == nil {
		t.Fatal("answered although HTTP is switched off")
	}
	open := policy.NewState()
	open.Service = &policy.Service{HTTP: true}
	n.snap.Store(&policy.Snapshot{State: open})
	if err := get(); err != nil {
		t.Fatal(err)
	}
}

func TestSaysNoDateWithoutATrustedTime(t *testing.T) {
	_, addr := testServer(t, fine, nil)
	for name, request := range map[string]string{
		"a usual answer":     "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
		"old HTTP":           "GET / HTTP/1.0\r\n\r\n",
		"the server's own":   "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
		"a broken request":   "GET\r\n\r\n",
		"an unknown version": "GET / HTTP/3.9\r\nHost: h\r\n\r\n",
		"without a host":     "GET / HTTP/1.1\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(5 * time.Second))
			io.WriteString(c, request)
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if d := resp.Header.Get("Date"); d != "" {
				t.Fatalf("Date: %s, from a clock that nobody trusts", d)
			}
		})
	}
}

func TestSelfCheckFindsAHang(t *testing.T) {
	n := &node{clock: &rpc.TimeSource{}}
	n.snap.Store(&policy.Snapshot{State: policy.NewState()})
	release := make(chan struct{})
	defer close(release)
	hang := newServer(n, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	if hang.check() == nil {
		t.Fatal("a hanging handler passed")
	}
	if err := newServer(n, fine).check(); err != nil {
		t.Fatal(err)
	}
}

func TestRoutesByTheFirstSegmentWhateverItsCase(t *testing.T) {
	dir := t.TempDir()
	n := &node{clock: &rpc.TimeSource{}, ledger: rpc.NewClient(dir + "/none"), hsm: rpc.NewClient(dir + "/none")}
	n.snap.Store(&policy.Snapshot{State: policy.NewState()})
	n.child = childForTest(dir)
	_, addr := testServer(t, n.mux(), nil)
	for path, want := range map[string]int{
		"/Attestation/getinfo": http.StatusServiceUnavailable,
		"/ATTESTATION/GETINFO": http.StatusServiceUnavailable,
		"/attestation/none":    http.StatusNotFound,
		"/KeyProtection/service/metadata/2014-07/metadata.xml": http.StatusServiceUnavailable,
		"/keyprotection/SERVICE/metadata/2014-07/Metadata.XML": http.StatusServiceUnavailable,
		"/":           http.StatusNotFound,
		"/etc/passwd": http.StatusNotFound,
		"/Attestation/../KeyProtection/service/v2.0/none?x=1;y=2": http.StatusNotFound,
	} {
		resp, err := http.Get("http://" + addr + path)
		if err != nil {
			t.Fatal(path, err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: status %d, want %d: %s", path, resp.StatusCode, want, body)
		}
	}
}

// childForTest is a process that nobody supervises.
func childForTest(dir string) *supervise.Child {
	c := supervise.Flags(flag.NewFlagSet("", flag.ContinueOnError), rpc.HGS, rpc.UIDs{})
	c.RunDir = dir
	return c
}

// TestContextKeysAreCopies: whoever got them wipes them after use, and the next hour's keys wipe the old ones.
func TestContextKeysAreCopies(t *testing.T) {
	var k contextKeys
	if _, ok := k.get(); ok {
		t.Error("there are keys before the ledger sent any")
	}
	k.replace(rpc.ContextKeys{Epoch: 4, Current: []byte{1, 2}, Previous: []byte{3}})
	used, _ := k.get()
	clear(used.Current)
	kept, ok := k.get()
	if !ok || kept.Epoch != 4 || kept.Current[0] != 1 || kept.Previous[0] != 3 {
		t.Errorf("%+v", kept)
	}
	k.replace(rpc.ContextKeys{Epoch: 5, Current: []byte{5, 5}, Previous: []byte{1, 2}})
	if kept.Current[0] != 1 {
		t.Error("keys in use were wiped")
	}
	k.wipe()
	if _, ok := k.get(); ok {
		t.Error("wiped keys are given out")
	}
}
