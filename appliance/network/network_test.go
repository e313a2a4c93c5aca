package network

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"guardhouse/appliance/policy"
)

// space is two network namespaces joined by cables: the test's thread is in near, the other ends are in far.
type space struct {
	*testing.T
	near, far netns.NsHandle
	there     *netlink.Handle
}

func newSpace(t *testing.T) *space {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	runtime.LockOSThread() // never unlocked: the thread, and the namespaces, end with the test's goroutine
	s := &space{T: t}
	var err error
	if s.far, err = netns.New(); err != nil {
		t.Fatal(err)
	}
	if s.near, err = netns.New(); err != nil { // and stay in it
		t.Fatal(err)
	}
	if s.there, err = netlink.NewHandleAt(s.far, unix.NETLINK_ROUTE); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.there.Close()
		s.near.Close()
		s.far.Close()
	})
	return s
}

func (s *space) manager(acquire func(context.Context, string, func(Lease)) error) *Manager {
	s.Helper()
	if acquire == nil {
		acquire = func(ctx context.Context, _ string, _ func(Lease)) error { <-ctx.Done(); return nil }
	}
	m, err := New(Options{Acquire: acquire, Resolv: filepath.Join(s.TempDir(), "resolv.conf"), Sysctl: "/proc/sys", Kinds: []string{"veth", "dummy"}, Logf: s.Logf})
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(m.Close)
	return m
}

// cable adds a NIC, plugged in.
func (s *space) cable(name, mac string) {
	s.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	attrs.HardwareAddr, _ = net.ParseMAC(mac)
	err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name, PeerNamespace: netlink.NsFd(s.far)})
	if err != nil {
		s.Fatal(err)
	}
	s.plug(name, true)
}

func (s *space) plug(name string, in bool) {
	s.Helper()
	l, err := s.there.LinkByName(name)
	if err == nil && in {
		err = s.there.LinkSetUp(l)
	} else if err == nil {
		err = s.there.LinkSetDown(l)
	}
	if err != nil {
		s.Fatal(err)
	}
}

// picture is everything that an Apply may change, to compare. Counters and times are left out.
func (s *space) picture() string {
	s.Helper()
	var b strings.Builder
	links, err := netlink.LinkList()
	if err != nil {
		s.Fatal(err)
	}
	for _, l := range links {
		a := l.Attrs()
		b.WriteString(l.Type() + " " + a.Name + " up=" + map[bool]string{true: "1", false: "0"}[a.Flags&net.FlagUp != 0])
		e, _ := json.Marshal([]int{a.Index, a.MTU, a.MasterIndex, a.ParentIndex})
		b.Write(e)
		addrs, _ := netlink.AddrList(l, netlink.FAMILY_ALL)
		for _, ad := range addrs {
			if !ad.IP.IsLinkLocalUnicast() {
				b.WriteString(" " + ad.IPNet.String())
			}
		}
		b.WriteString("\n")
	}
	routes, _ := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
	var lines []string
	for _, r := range routes {
		lines = append(lines, r.String())
	}
	slices.Sort(lines)
	b.WriteString(strings.Join(lines, "\n"))
	return b.String()
}

const (
	mac1 = "52:54:00:00:00:01"
	mac2 = "52:54:00:00:00:02"
	mac3 = "52:54:00:00:00:03"
)

var everything = []policy.NetworkRole{policy.NetService, policy.NetCluster, policy.NetManagement}

func static(name, mac string, addresses ...string) policy.Interface {
	return policy.Interface{Name: name, MAC: []string{mac}, Addresses: addresses, Roles: everything}
}

func TestApplyingTwiceChangesNothingTheSecondTime(t *testing.T) {
	s := newSpace(t)
	s.cable("e1", mac1)
	s.cable("e2", mac2)
	m := s.manager(nil)
	front := static("front", strings.ToUpper(mac1), "192.0.2.10/24", "2001:db8::10/64")
	front.Gateways, front.MTU = []string{"192.0.2.1", "2001:db8::1"}, 1400
	back := static("back", mac2, "198.51.100.2/30")
	n := policy.Network{Interfaces: []policy.Interface{front, back}, Resolvers: []string{"192.0.2.53", "2001:db8::53"}}
	if err := m.Loopback(); err != nil {
		t.Fatal(err)
	}
	if err := m.Apply(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	first := s.picture()
	for _, want := range []string{"up=1", "192.0.2.10/24", "2001:db8::10/64", "198.51.100.2/30", "Gw: 192.0.2.1", "Gw: 2001:db8::1", "1400"} {
		if !strings.Contains(first, want) {
			t.Errorf("no %s in\n%s", want, first)
		}
	}
	if err := m.Apply(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	if second := s.picture(); second != first {
		t.Errorf("was\n%s\nbecame\n%s", first, second)
	}
	if b, _ := os.ReadFile(m.o.Resolv); string(b) != "nameserver 192.0.2.53\nnameserver 2001:db8::53\n" {
		t.Errorf("resolv.conf: %q", b)
	}
	for _, l := range m.Links() {
		if l.Problem != "" || !l.Link {
			t.Errorf("%+v", l)
		}
	}
}

func TestNewNetworkTakesTheOldOneBack(t *testing.T) {
	s := newSpace(t)
	s.cable("e1", mac1)
	s.cable("e2", mac2)
	m := s.manager(nil)
	old := static("front", mac1, "192.0.2.10/24")
	old.Gateways = []string{"192.0.2.1"}
	if err := m.Apply(t.Context(), policy.Network{Interfaces: []policy.Interface{old, static("second", mac2, "203.0.113.2/24")}}); err != nil {
		t.Fatal(err)
	}
	if err := m.Apply(t.Context(), policy.Network{Interfaces: []policy.Interface{static("front", mac1, "192.0.2.11/24")}}); err != nil {
		t.Fatal(err)
	}
	p := s.picture()
	for _, gone := range []string{"192.0.2.10", "203.0.113.2", "192.0.2.1}", "ghvlan", "e2 up=1", "Gw"} {
		if strings.Contains(p, gone) {
			t.Errorf("%s is still in\n%s", gone, p)
		}
	}
	if !strings.Contains(p, "192.0.2.11/24") {
		t.Errorf("no new address in\n%s", p)
	}
	links := m.Links()
	if len(links) != 2 || links[1].Name != "(unused)" || links[1].MAC != mac2 {
		t.Errorf("%+v", links)
	}
}

func TestSaysWhichCableIsOut(t *testing.T) {
	s := newSpace(t)
	s.cable("e1", mac1)
	m := s.manager(nil)
	if err := m.Apply(t.Context(), policy.Network{Interfaces: []policy.Interface{static("front", Any, "192.0.2.10/24"), static("lost", Any, "192.0.2.11/24")}}); err == nil {
		t.Error(`"any" was given twice`)
	}
	if err := m.Apply(t.Context(), policy.Network{Interfaces: []policy.Interface{static("front", Any, "192.0.2.10/24")}}); err != nil {
		t.Fatal(err)
	}
	s.plug("e1", false)
	l := m.Links()[0]
	if l.Link || !strings.Contains(l.Problem, "no link on front (e1, "+mac1+")") || !strings.Contains(l.Remedy, "cable") {
		t.Errorf("%+v", l)
	}
	s.plug("e1", true)
	if l := m.Links()[0]; !l.Link || l.Problem != "" {
		t.Errorf("%+v", l)
	}
}

func TestMissingNICLeavesTheOthersWorking(t *testing.T) {
	s := newSpace(t)
	s.cable("e1", mac1)
	s.cable("e2", mac2)
	m := s.manager(nil)
	if err := m.Apply(t.Context(), policy.Network{Interfaces: []policy.Interface{static("gone", mac3, "192.0.2.10/24"), static("front", mac1, "192.0.2.11/24")}}); err != nil {
		t.Fatal(err)
	}
	links := m.Links()
	if len(links) != 3 || links[0].Problem != "no NIC has the MAC address "+mac3 || links[0].Remedy == "" || links[1].Problem != "" || len(links[1].Addresses) != 1 {
		t.Errorf("%+v", links)
	}
	if err := m.Apply(t.Context(), policy.Network{Interfaces: []policy.Interface{static("front", Any, "192.0.2.11/24")}}); err != nil {
		t.Fatal(err)
	}
	if l := m.Links()[0]; !strings.Contains(l.Problem, "this one has 2") {
		t.Errorf("%+v", l)
	}
}

func TestVLANCarriesItsOwnAddressesAndGoesAgain(t *testing.T) {
	s := newSpace(t)
	s.cable("e1", mac1)
	e1, err := netlink.LinkByName("e1")
	if err != nil {
		t.Fatal(err)
	}
	probe := netlink.NewLinkAttrs()
	probe.Name, probe.ParentIndex = "probe", e1.Attrs().Index
	if err := netlink.LinkAdd(&netlink.Vlan{LinkAttrs: probe, VlanId: 9}); err != nil {
		t.Skipf("this kernel has no VLAN driver: %v", err)
	}
	m := s.manager(nil)
	tagged := static("tagged", mac1, "203.0.113.2/24")
	tagged.VLAN = 12
	for range 2 {
		if err := m.Apply(t.Context(), policy.Network{Interfaces: []policy.Interface{static("front", mac1, "192.0.2.1/24"), tagged}}); err != nil {
			t.Fatal(err)
		}
	}
	if l := m.Links(); len(l) != 2 || l[1].Problem != "" || !slices.Equal(l[1].Addresses, tagged.Addresses) {
		t.Errorf("%+v", l)
	}
	if err := m.Apply(t.Context(), policy.Network{Interfaces: []policy.Interface{static("front", mac1, "192.0.2.1/24")}}); err != nil {
		t.Fatal(err)
	}
	if p := s.picture(); strings.Contains(p, "ghvlan") {
		t.Errorf("the VLAN is still in\n%s", p)
	}
}

func TestBondKeepsWorkingWithoutOneCable(t *testing.T) {
	s := newSpace(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "probe"
	if err := netlink.LinkAdd(netlink.NewLinkBond(attrs)); err != nil {
		t.Skipf("this kernel has no bonding driver: %v", err)
	}
	s.cable("e1", mac1)
	s.cable("e2", mac2)
	m := s.manager(nil)
	b := static("front", mac1, "192.0.2.10/24")
	b.MAC, b.Bond = []string{mac1, mac2}, "active-backup"
	v := b
	v.Name, v.VLAN, v.Addresses = "tagged", 7, []string{"198.51.100.9/24"}
	for range 2 {
		if err := m.Apply(t.Context(), policy.Network{Interfaces: []policy.Interface{b, v}}); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(300 * time.Millisecond) // the bond looks every 100 ms
	if l := m.Links(); len(l) != 2 || l[0].Problem != "" || l[1].Problem != "" || l[1].Device != "ghvlan1" {
		t.Errorf("%+v", l)
	}
	s.plug("e2", false)
	time.Sleep(300 * time.Millisecond)
	if l := m.Links()[0]; !l.Link || !strings.Contains(l.Problem, "runs without e2") {
		t.Errorf("%+v", l)
	}
}

func TestRolesNameTheirDevices(t *testing.T) {
	s := newSpace(t)
	s.cable("e1", mac1)
	s.cable("e2", mac2)
	m := s.manager(nil)
	front, back := static("front", mac1, "192.0.2.10/24"), static("back", mac2, "198.51.100.2/24")
	front.Roles, back.Roles = []policy.NetworkRole{policy.NetService}, []policy.NetworkRole{policy.NetManagement, policy.NetCluster}
	if err := m.Apply(t.Context(), policy.Network{Interfaces: []policy.Interface{front, back}}); err != nil {
		t.Fatal(err)
	}
	if d, all := m.Devices(policy.NetService); all || !slices.Equal(d, []string{"e1"}) {
		t.Errorf("service: %v %v", d, all)
	}
	if d, all := m.Devices(policy.NetManagement); all || !slices.Equal(d, []string{"e2"}) {
		t.Errorf("management: %v %v", d, all)
	}
	if err := m.Apply(t.Context(), policy.Network{}); err != nil {
		t.Fatal(err)
	}
	if d, all := m.Devices(policy.NetService); !all || len(d) != 0 {
		t.Errorf("blank network: %v %v", d, all)
	}
	if strings.Contains(s.picture(), "veth e1 up=1") {
		t.Error("a blank network leaves an interface up")
	}
}

// serveDHCP answers on device in far with the address, until the test ends; it counts requests.
func (s *space) serveDHCP(device string, address net.IP) {
	s.Helper()
	l, err := s.there.LinkByName(device)
	if err != nil {
		s.Fatal(err)
	}
	server := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 0, 2, 1), Mask: net.CIDRMask(24, 32)}}
	if err := s.there.AddrAdd(l, server); err != nil {
		s.Fatal(err)
	}
	if err := netns.Set(s.far); err != nil {
		s.Fatal(err)
	}
	defer netns.Set(s.near)
	srv, err := server4.NewServer(device, nil, func(conn net.PacketConn, peer net.Addr, m *dhcpv4.DHCPv4) {
		kind := dhcpv4.MessageTypeOffer
		if m.MessageType() == dhcpv4.MessageTypeRequest {
			kind = dhcpv4.MessageTypeAck
		}
		r, err := dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(address), dhcpv4.WithServerIP(server.IP),
			dhcpv4.WithOption(dhcpv4.OptServerIdentifier(server.IP)), dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithRouter(server.IP),
			dhcpv4.WithDNS(net.IPv4(192, 0, 2, 53)), dhcpv4.WithLeaseTime(3600))
		if err == nil {
			conn.WriteTo(r.ToBytes(), peer)
		}
	})
	if err != nil {
		s.Fatal(err)
	}
	go srv.Serve()
	s.Cleanup(func() { srv.Close() })
}

func TestLeaseArrivesInTheBackground(t *testing.T) {
	s := newSpace(t)
	s.cable("e1", mac1)
	m := s.manager(func(ctx context.Context, device string, lease func(Lease)) error {
		runtime.LockOSThread()
		if err := netns.Set(s.near); err != nil {
			return err
		}
		return AcquireHere(ctx, device, lease)
	})
	dhcp := policy.Network{Interfaces: []policy.Interface{{Name: "front", MAC: []string{Any}, DHCP: true, Roles: everything}}}
	start := time.Now()
	if err := m.Apply(t.Context(), dhcp); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("the boot waited %s for a lease", took)
	}
	if l := m.Links()[0]; !strings.Contains(l.Problem, "no DHCP server answers on front") {
		t.Errorf("%+v", l)
	}
	s.serveDHCP("e1", net.IPv4(192, 0, 2, 77))
	for end := time.Now().Add(15 * time.Second); !slices.Contains(m.Links()[0].Addresses, "192.0.2.77/24"); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no lease: %+v", m.Links())
		}
	}
	p := s.picture()
	if !strings.Contains(p, "Gw: 192.0.2.1") || m.Links()[0].Problem != "" {
		t.Errorf("%+v\n%s", m.Links(), p)
	}
	if b, _ := os.ReadFile(m.o.Resolv); string(b) != "nameserver 192.0.2.53\n" {
		t.Errorf("resolv.conf: %q", b)
	}
	// The same network again keeps the address meanwhile; a static one takes it back.
	if err := m.Apply(t.Context(), dhcp); err != nil || s.picture() != p {
		t.Errorf("%v: was\n%s\nbecame\n%s", err, p, s.picture())
	}
	if err := m.Apply(t.Context(), policy.Network{Interfaces: []policy.Interface{static("front", Any, "192.0.2.5/24")}}); err != nil {
		t.Fatal(err)
	}
	if p := s.picture(); strings.Contains(p, "192.0.2.77") || strings.Contains(p, "Gw") {
		t.Errorf("the lease is still in\n%s", p)
	}
}

func TestRefusesALeaseThatIsNone(t *testing.T) {
	for _, l := range []Lease{
		{}, {Address: "127.0.0.1/8"}, {Address: "0.0.0.0/24"}, {Address: "192.0.2.1/0"}, {Address: "224.0.0.1/24"}, {Address: "::1/128"},
		{Address: "192.0.2.2/24", Gateway: "127.0.0.1"}, {Address: "192.0.2.2/24", Gateway: "x"}, {Address: "192.0.2.2/24", Resolvers: []string{"1.2.3.4\nnameserver 6.6.6.6"}},
	} {
		if l.check() == nil {
			t.Errorf("took %+v", l)
		}
	}
	if err := (Lease{Address: "192.0.2.2/24", Gateway: "192.0.2.1", Resolvers: []string{"192.0.2.53"}}).check(); err != nil {
		t.Error(err)
	}
}

func FuzzReadLeases(f *testing.F) {
	f.Add([]byte(`{"address":"192.0.2.2/24"}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ReadLeases(strings.NewReader(string(b)), func(l Lease) {
			if l.check() == nil && len(l.Address) > 64 {
				t.Errorf("took %+v", l)
			}
		})
	})
}

func TestSenseTellsCablesBeforeThereIsANetwork(t *testing.T) {
	s := newSpace(t)
	s.cable("a", mac1)
	s.cable("b", mac2)
	s.plug("b", false)
	m := s.manager(nil)
	m.Sense()
	links := func() map[string]bool {
		out := map[string]bool{}
		for _, l := range m.Links() {
			out[l.Device] = l.Link
			if len(l.Addresses) > 0 || l.Name != "(unused)" {
				t.Errorf("%+v", l)
			}
		}
		return out
	}
	if got := links(); len(got) != 2 || !got["a"] || got["b"] {
		t.Errorf("a is plugged in, b is not: %v", got)
	}
	nic, err := netlink.LinkByName("a")
	if err != nil {
		t.Fatal(err)
	}
	if have, _ := netlink.AddrList(nic, netlink.FAMILY_ALL); len(have) != 0 {
		t.Errorf("addresses before a network was applied: %v", have)
	}
	n := policy.Network{Interfaces: []policy.Interface{{Name: "front", MAC: []string{mac1}, Addresses: []string{"192.0.2.5/24", "2001:db8::5/64"}, Roles: everything}}}
	if err := m.Apply(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	m.Sense() // must not wake b
	for _, l := range m.Links() {
		if l.Name == "front" && (len(l.Addresses) != 2 || l.Problem != "") {
			t.Errorf("%+v", l)
		}
	}
	if idle, err := netlink.LinkByName("b"); err != nil || idle.Attrs().Flags&net.FlagUp != 0 {
		t.Errorf("a NIC that the network does not name is up (%v)", err)
	}
}
