package main

import (
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"guardhouse/appliance/network"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
)

// TestServicesListenOnlyWhereTheirRoleIs runs in a network namespace of its own, so the real ports are free.
func TestServicesListenOnlyWhereTheirRoleIs(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	runtime.LockOSThread() // never unlocked: the thread, and its namespace, end with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	macs := map[string]string{"e1": "52:54:00:00:00:01", "e2": "52:54:00:00:00:02"}
	for name, mac := range macs {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		attrs.HardwareAddr, _ = net.ParseMAC(mac)
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "far"}); err != nil {
			t.Fatal(err)
		}
	}
	n := testNode(t)
	var err error
	if n.net, err = network.New(network.Options{Resolv: t.TempDir() + "/r", Sysctl: "/proc/sys", Kinds: []string{"veth"}, Logf: t.Logf}); err != nil {
		t.Fatal(err)
	}
	defer n.net.Close()
	hgs, _ := sandbox.Find(rpc.HGS)
	console, _ := sandbox.Find(rpc.Console)
	listens := func(p sandbox.Process) (places []string) {
		n.openSockets(t.Context(), p)
		for i, f := range n.sockets[p.Name].files {
			sa, err := unix.Getsockname(int(f.Fd()))
			if err != nil {
				t.Fatal(err)
			}
			device, _ := unix.GetsockoptString(int(f.Fd()), unix.SOL_SOCKET, unix.SO_BINDTODEVICE)
			port := 0
			switch sa := sa.(type) {
			case *unix.SockaddrInet6:
				port = sa.Port
			case *unix.SockaddrInet4:
				port = sa.Port
			}
			places = append(places, n.sockets[p.Name].names[i]+":"+strconv.Itoa(port)+"%"+device)
		}
		return places
	}
	expect := func(p sandbox.Process, want ...string) {
		t.Helper()
		if got := listens(p); !slices.Equal(got, want) {
			t.Errorf("%s listens at %v, want %v", p.Name, got, want)
		}
	}
	ledger, _ := sandbox.Find(rpc.Ledger)
	expect(hgs, "http:80%", "https:443%")
	expect(console, "ssh:22%")
	expect(ledger, "peer:7443%")
	peer := n.sockets[rpc.Ledger].files[0]
	front := policy.Interface{Name: "front", MAC: []string{macs["e1"]}, Addresses: []string{"192.0.2.1/24"}, Roles: []policy.NetworkRole{policy.NetService}}
	back := policy.Interface{Name: "back", MAC: []string{macs["e2"]}, Addresses: []string{"198.51.100.1/24"}, Roles: []policy.NetworkRole{policy.NetManagement, policy.NetCluster}}
	if up := n.status().NetworkUp; up != 0 {
		t.Errorf("a network without settings is up since %s", up)
	}
	if err := n.applyNetwork(t.Context(), policy.Network{Interfaces: []policy.Interface{front, back}}); err != nil {
		t.Fatal(err)
	}
	if up := n.status().NetworkUp; up <= 0 || up > rpc.BootTime() {
		t.Errorf("the network is up since %s", up)
	}
	expect(hgs, "http:80%e1", "https:443%e1")
	expect(console, "ssh:22%e2")
	// The ledger answers for the change of the network, to setup for example: it goes on, with the very same socket.
	expect(ledger, "peer:7443%e2")
	if now := n.sockets[rpc.Ledger].files; len(now) != 1 || now[0] != peer || n.openSockets(t.Context(), ledger) {
		t.Error("the ledger would have been started anew")
	}
	before := n.sockets[rpc.HGS]
	if n.openSockets(t.Context(), hgs) || n.sockets[rpc.HGS] != before {
		t.Error("the same network opened the sockets anew, which loses their queues")
	}
	back.Roles = append(back.Roles, policy.NetService)
	if err := n.net.Apply(t.Context(), policy.Network{Interfaces: []policy.Interface{front, back}}); err != nil {
		t.Fatal(err)
	}
	expect(hgs, "http:80%", "https:443%")
	back.Roles = []policy.NetworkRole{policy.NetManagement}
	if err := n.net.Apply(t.Context(), policy.Network{Interfaces: []policy.Interface{front, back}}); err != nil {
		t.Fatal(err)
	}
	expect(ledger, "peer:7443%lo") // nobody reaches it where no interface has its role
	if n.sockets[rpc.Ledger].files[0] != peer {
		t.Error("the ledger would have been started anew")
	}
	if len(n.problems) > 0 {
		t.Errorf("%v", n.problems)
	}
}
