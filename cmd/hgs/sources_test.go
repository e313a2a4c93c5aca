package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// get asks once on a connection of its own, from the address from.
func get(t *testing.T, from, addr string) error {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: d.DialContext}}
	resp, err := c.Get("http://" + addr)
	if err == nil {
		resp.Body.Close()
	}
	return err
}

func TestOneSourceCanNotTakeAllConnections(t *testing.T) {
	_, addr := testServer(t, fine, nil)
	var silent []net.Conn
	for range maxPerSource {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		silent = append(silent, c)
	}
	if get(t, "127.0.0.1", addr) == nil {
		t.Fatalf("a source with %d silent connections got another one", maxPerSource)
	}
	if err := get(t, "127.0.0.2", addr); err != nil {
		t.Fatal("another source is shut out:", err)
	}
	for _, c := range silent[:8] {
		c.Close()
	}
	for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := get(t, "127.0.0.1", addr)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("places that were left are not given again:", err)
		}
	}
}

func TestNeighboursInOneIPv6NetworkAreOneSource(t *testing.T) {
	at := func(s string) any {
		a, err := net.ResolveTCPAddr("tcp", s)
		if err != nil {
			t.Fatal(err)
		}
		return sourceOf(a)
	}
	if at("[2001:db8::1]:1") != at("[2001:db8::ffff:2]:2") || at("[2001:db8::1]:1") == at("[2001:db8:0:1::1]:1") || at("10.0.0.1:1") == at("10.0.0.2:1") {
		t.Fatal("sources are told apart wrongly")
	}
}

// TestSelfCheckIsNoRefusedRequest: before setup the service refuses everything, and its own question must not stand in the audit.
func TestSelfCheckIsNoRefusedRequest(t *testing.T) {
	dir := t.TempDir()
	path := rpc.SocketPath(dir, rpc.Ledger)
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := rpc.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	var refusals atomic.Int32
	s := rpc.NewServer(rpc.UIDs{rpc.HGS: uint32(os.Getuid())})
	rpc.Handle(s, rpc.LedgerRefusal, func(context.Context, rpc.Caller, policy.Refusal) (rpc.Empty, error) {
		refusals.Add(1)
		return rpc.Empty{}, nil
	}, rpc.HGS)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ctx, l) }()
	defer func() { cancel(); <-done }()

	n := &node{child: childForTest(dir), clock: &rpc.TimeSource{}, ledger: rpc.NewClient(path), hsm: rpc.NewClient(dir + "/none")}
	n.snap.Store(&policy.Snapshot{State: policy.NewState()})
	_, addr := testServer(t, n.mux(), nil)
	srv := newServer(n, n.mux())
	if err := srv.check(); err != nil {
		t.Fatal(err)
	}
	if n := refusals.Load(); n != 0 {
		t.Fatalf("the self-check was counted as a refused request of %d strangers", n)
	}
	resp, err := http.Get("http://" + addr + "/Attestation/getinfo")
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if refusals.Load() != 1 {
		t.Fatal("the control: a stranger's request before setup is not counted")
	}
}
