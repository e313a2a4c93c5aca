package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"guardhouse/appliance/hsm/pack"
	"guardhouse/appliance/network"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
	"guardhouse/appliance/supervise"
)

// TestWhoIsFencedIsHeldToAddresses: a process that waits for the fence must be in it.
func TestWhoIsFencedIsHeldToAddresses(t *testing.T) {
	forward, _ := sandbox.Find(rpc.Forward)
	held := append(hsmUIDs(), forward.UID)
	for _, p := range append([]sandbox.Process{sandbox.HSMDaemonProcess}, sandbox.Table...) {
		if p.Fenced != slices.Contains(held, p.UID) {
			t.Errorf("%s: waits for the fence %v, is held by it %v", p.Name, p.Fenced, !p.Fenced)
		}
	}
}

// TestNothingFencedStartsWithoutTheFence has a fence that can't be raised.
func TestNothingFencedStartsWithoutTheFence(t *testing.T) {
	n := testNode(t)
	n.fenced = make(chan struct{})
	n.pack = pack.Manifest{Connect: []string{"not an address"}, Daemon: []string{"/x"}}
	n.raiseFence()
	select {
	case <-n.fenced:
		t.Error("the fence counts as raised")
	default:
	}
	if r := n.status(); len(r.Problems) != 1 || r.Problems[0].Kind != "hsm-fence" {
		t.Errorf("%+v", r.Problems)
	}
}

func TestHelperWaitsForItsSiteDataAndFollowsIt(t *testing.T) {
	n := testNode(t)
	n.pack = pack.Manifest{Name: "vendor", Version: "1", Daemon: []string{"/helper"}, Site: []string{"client.pem", "world"}}
	if err := n.addHelper(); err != nil {
		t.Fatal(err)
	}
	find := func() string {
		for _, s := range n.super.Status() {
			if s.Name == sandbox.HSMDaemon {
				return s.State
			}
		}
		return "absent"
	}
	if find() != supervise.StateWaiting {
		t.Errorf("the helper is %s", find())
	}
	dir := t.TempDir()
	empty, missing := siteState(dir, n.pack.Site)
	if missing != "client.pem, world" {
		t.Errorf("missing: %q", missing)
	}
	n.siteProblem(missing)
	if r := n.status(); len(r.Problems) != 1 || !strings.Contains(r.Problems[0].What, "client.pem, world") || !strings.Contains(r.Problems[0].Remedy, "hsm site-data put") {
		t.Errorf("%+v", r.Problems)
	}
	seen := map[string]bool{empty: true}
	for i, name := range []string{"client.pem", "world", "world"} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte{1}, 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Unix(1_800_000_000+int64(i), 0)
		os.Chtimes(file, at, at)
		state, _ := siteState(dir, n.pack.Site)
		if seen[state] {
			t.Errorf("step %d is not noticed", i)
		}
		seen[state] = true
	}
	_, missing = siteState(dir, n.pack.Site)
	if n.siteProblem(missing); missing != "" || len(n.status().Problems) != 0 {
		t.Errorf("still missing: %q", missing)
	}
}

// TestACollectorIsOnAnotherMachine: what a name server answers must not lead forward back into the node.
func TestACollectorIsOnAnotherMachine(t *testing.T) {
	answers := map[string][]string{
		"siem.example.test":  {"192.0.2.7", "2001:db8::7", "127.0.0.1"},
		"local.example.test": {"127.0.0.1", "::1", "0.0.0.0", "169.254.1.1", "224.0.0.1", "::ffff:127.0.0.1"},
		"many.example.test":  slices.Repeat([]string{"192.0.2.9"}, 100),
	}
	resolve := func(_ context.Context, name string) (list []netip.Addr, err error) {
		if answers[name] == nil {
			return nil, errors.New("no such host")
		}
		for _, a := range answers[name] {
			list = append(list, netip.MustParseAddr(a))
		}
		return list, nil
	}
	for address, want := range map[string]string{
		"siem.example.test:6514": "[192.0.2.7:6514 [2001:db8::7]:6514]", "192.0.2.1:514": "[192.0.2.1:514]", "[2001:db8::1]:6514": "[[2001:db8::1]:6514]",
		"local.example.test:6514": "no address of another machine", "127.0.0.1:6514": "no address of another machine", "[::1]:22": "no address of another machine",
		"gone.example.test:6514": "no such host", "siem.example.test": "not HOST:PORT", "siem.example.test:0": "not HOST:PORT",
	} {
		peers, err := collectorAddresses(t.Context(), address, resolve)
		if got := fmt.Sprint(peers); err != nil && !strings.Contains(err.Error(), want) || err == nil && got != want {
			t.Errorf("%s: %s, %v; want %s", address, got, err, want)
		}
	}
	if peers, err := collectorAddresses(t.Context(), "many.example.test:6514", resolve); err != nil || len(peers) != maxPeers {
		t.Errorf("%d addresses, %v", len(peers), err)
	}
}

func TestAddressesAreReadWithinBounds(t *testing.T) {
	for said, want := range map[string]int{"192.0.2.7\n2001:db8::1\n": 2, "": 0, "lookup siem.example.test: no such host\n": 0, "192.0.2.7\nlookup failed\n": 0} {
		if found, why := readAddresses(strings.NewReader(said)); len(found) != want || want == 0 && why == "" {
			t.Errorf("%q: %v, %q", said, found, why)
		}
	}
	if found, _ := readAddresses(strings.NewReader(strings.Repeat("192.0.2.7\n", 1<<20))); len(found) > 4<<10/8 {
		t.Errorf("%d addresses are kept", len(found))
	}
}

// TestTheFenceFollowsTheCollector: nothing leaves before one is set, and a name that is not found any more closes it.
func TestTheFenceFollowsTheCollector(t *testing.T) {
	n := testNode(t)
	n.fenced = make(chan struct{})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := n.reach(ctx, "192.0.2.7:6514"); !errors.Is(err, rpc.ErrUnavailable) {
		t.Errorf("before the fence stands: %v", err)
	}
	if os.Getuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	runtime.LockOSThread() // never unlocked: the thread, and its namespace, end with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	if n.raiseFence(); len(n.status().Problems) > 0 {
		t.Skip("this kernel has no nf_tables; the image's has: ", n.status().Problems[0].What)
	}
	forward, _ := sandbox.Find(rpc.Forward)
	rules := func() string {
		c, err := nftables.New()
		if err != nil {
			t.Fatal(err)
		}
		table := &nftables.Table{Family: nftables.TableFamilyINet, Name: network.FenceTable}
		var text strings.Builder
		for _, chain := range []string{"output", "fenced1", "fenced2", "fenced3"} {
			list, err := c.GetRules(table, &nftables.Chain{Table: table, Name: chain})
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range list {
				fmt.Fprint(&text, chain)
				for _, e := range r.Exprs {
					if cmp, ok := e.(*expr.Cmp); ok {
						fmt.Fprintf(&text, " %x", cmp.Data)
					}
				}
				fmt.Fprintln(&text)
			}
		}
		return text.String()
	}
	uid := fmt.Sprintf("output %x\n", binary.NativeEndian.AppendUint32(nil, forward.UID))
	if got := rules(); !strings.Contains(got, uid) || strings.Count(got, "fenced2") != 2 {
		t.Errorf("without a collector:\n%s", got)
	}
	peers, err := n.reach(t.Context(), "192.0.2.7:6514")
	if got := rules(); err != nil || !slices.Equal(peers, []string{"192.0.2.7:6514"}) || !strings.Contains(got, "fenced2 02 c0000207 06 1972\n") || strings.Count(got, "fenced2") != 3 ||
		strings.Count(got, "fenced1") != 2 {
		t.Errorf("%v, %v:\n%s", peers, err, got)
	}
	if _, err := n.reach(t.Context(), "127.0.0.1:6514"); err == nil || strings.Count(rules(), "fenced2") != 2 {
		t.Errorf("%v:\n%s", err, rules())
	}
	theLedgerNamesItsPeers(t, n, rules)
}

// theLedgerNamesItsPeers: it may connect to the port of peers on other machines, and answer on its own.
func theLedgerNamesItsPeers(t *testing.T, n *node, rules func() string) {
	t.Helper()
	ledger, _ := sandbox.Find(rpc.Ledger)
	const answers = "fenced3 06 1d13 02\n" // 7443, not the first packet of a connection
	if got := rules(); !strings.Contains(got, fmt.Sprintf("output %x\n", binary.NativeEndian.AppendUint32(nil, ledger.UID))) || !strings.Contains(got, answers) || strings.Count(got, "fenced3") != 3 {
		t.Errorf("without a peer:\n%s", got)
	}
	if err := n.reachPeers(t.Context(), []string{"192.0.2.8:7443", "[2001:db8::8]:7443"}); err != nil {
		t.Fatal(err)
	}
	if got := rules(); !strings.Contains(got, "fenced3 02 c0000208 06 1d13\n") || !strings.Contains(got, "fenced3 0a 20010db8000000000000000000000008 06 1d13\n") || strings.Count(got, "fenced3") != 5 {
		t.Errorf("with peers:\n%s", got)
	}
	for _, bad := range [][]string{{"192.0.2.8:22"}, {"127.0.0.1:7443"}, {"[::ffff:127.0.0.1]:7443"}, {"0.0.0.0:7443"}, {"[fe80::1%eth0]:7443"}, {"node2:7443"}, {"192.0.2.8"}, {"224.0.0.1:7443"},
		slices.Repeat([]string{"192.0.2.8:7443"}, policy.MaxPeers+1)} {
		if err := n.reachPeers(t.Context(), bad); err == nil || strings.Count(rules(), "fenced3") != 5 {
			t.Errorf("%v was taken: %v", bad, err)
		}
	}
	if err := n.reachPeers(t.Context(), nil); err != nil || strings.Count(rules(), "fenced3") != 3 {
		t.Errorf("%v:\n%s", err, rules())
	}
}
