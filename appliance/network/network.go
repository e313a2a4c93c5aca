// Package network gives a node its addresses. It promises that a Network is checked as a whole before anything changes (Validate names
// the wrong field), that applying the same one again changes nothing, that loopback is always up, and that waiting for a cable or a
// lease happens in the background: Apply returns at once.
//
// Limits: IPv4 by DHCP, IPv6 by router advertisement where DHCP is on, else static only. One default gateway for each family and
// interface; the interface given first wins. Devices and routes that others made (route protocol other than ours) are left alone.
package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"guardhouse/appliance/policy"
)

// Link describes an interface for people; it has the shape of rpc.LinkStatus.
type Link struct {
	Name      string
	Device    string
	MAC       string
	Link      bool
	Addresses []string
	Problem   string
	Remedy    string
}

// Lease is what a DHCP server gave.
type Lease struct {
	Address   string   `json:"address"` // CIDR
	Gateway   string   `json:"gateway,omitempty"`
	Resolvers []string `json:"resolvers,omitempty"`
	Lost      bool     `json:"lost,omitempty"` // the lease has run out; the other fields are empty
}

// Options are what a Manager works with.
type Options struct {
	// Acquire asks for leases on a device until ctx ends and tells each new one. It runs in a goroutine and retries by itself.
	Acquire func(ctx context.Context, device string, lease func(Lease)) error
	Resolv  string // path of resolv.conf
	Sysctl  string // "/proc/sys"
	// Kinds are the kinds of devices that count as NICs: "device" for hardware, in tests "veth" or "dummy".
	Kinds []string
	Logf  func(format string, args ...any)
	// Changed is called from any goroutine after a lease came or went; it may be nil.
	Changed func()
}

// Manager applies networks to the network namespace it was made in. Methods may be called from any goroutine.
type Manager struct {
	o Options
	h *netlink.Handle

	applying sync.Mutex // one Apply at a time

	mu      sync.Mutex
	current policy.Network
	bound   []bound // one for each interface of current
	stop    context.CancelFunc
	leasing sync.WaitGroup
}

// bound is an interface of the Network and the device that carries it.
type bound struct {
	policy.Interface
	device string // "" where it was not found
	index  int
	lease  *Lease
	err    error // why it isn't as it should be
}

// routeProtocol marks the routes we made, so that no other is touched (4 is RTPROT_STATIC).
const routeProtocol = unix.RTPROT_STATIC

// New makes a manager for the network namespace of the calling thread.
func New(o Options) (*Manager, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("talk to the kernel about the network: %w", err)
	}
	return &Manager{o: o, h: h, stop: func() {}}, nil
}

// Close stops asking for leases. Addresses stay.
func (m *Manager) Close() {
	m.mu.Lock()
	stop := m.stop
	m.mu.Unlock()
	stop()
	m.leasing.Wait()
	m.h.Close()
}

// Loopback brings loopback up.
func (m *Manager) Loopback() error {
	lo, err := m.h.LinkByName("lo")
	if err == nil {
		err = m.h.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	return nil
}

// Apply makes n the node's network. It fails, and leaves everything as it was, only where Validate does. What the machine does not
// have or refuses is not an error here: the rest is applied, and Links tells. ctx bounds the search for leases, too, so it must live as
// long as the network.
func (m *Manager) Apply(ctx context.Context, n policy.Network) error {
	if err := Validate(n); err != nil {
		return err
	}
	m.applying.Lock()
	defer m.applying.Unlock()
	m.mu.Lock()
	m.stop()
	m.mu.Unlock()
	m.leasing.Wait() // a lease that arrives now must not be applied to the new network
	m.mu.Lock()
	defer m.mu.Unlock()
	ctx, m.stop = context.WithCancel(ctx)
	old := m.bound
	m.current, m.bound = n, nil
	links, err := m.h.LinkList()
	if err != nil {
		return fmt.Errorf("list network devices: %w", err)
	}
	wanted := map[string]bool{}
	for i, f := range n.Interfaces {
		b := bound{Interface: f}
		b.device, b.err = m.build(links, n.Interfaces, i, wanted)
		if b.err == nil {
			b.err = m.bring(&b, old)
		}
		if b.err != nil {
			m.o.Logf("interface %s: %v", f.Name, b.err)
		}
		m.bound = append(m.bound, b)
	}
	m.removeStale(wanted)
	m.setRoutes()
	m.writeResolv()
	for i := range m.bound {
		if b := &m.bound[i]; b.DHCP && b.device != "" {
			m.leasing.Add(1)
			go m.acquire(ctx, i, b.device)
		}
	}
	return nil
}

// Devices are the devices that have the role, and whether that is all of them: then services may listen everywhere.
func (m *Manager) Devices(role policy.NetworkRole) (devices []string, all bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	all = true
	for _, b := range m.bound {
		if !slices.Contains(b.Roles, role) {
			all = false
		} else if b.device != "" {
			devices = append(devices, b.device)
		}
	}
	return devices, all
}

// device names: a bond and a VLAN are named after the place of their interface in the Network.
func bondName(i int) string { return fmt.Sprintf("ghbond%d", i) }
func vlanName(i int) string { return fmt.Sprintf("ghvlan%d", i) }

// build finds or makes the device of interface i and notes every device in use.
func (m *Manager) build(links []netlink.Link, all []policy.Interface, i int, wanted map[string]bool) (string, error) {
	f := all[i]
	var nics []netlink.Link
	for _, mac := range f.MAC {
		l, err := m.nic(links, mac)
		if err != nil {
			return "", err
		}
		nics = append(nics, l)
		wanted[l.Attrs().Name] = true
	}
	base := nics[0]
	if f.Bond != "" {
		// Interfaces on the same bond share the device of the first of them.
		first := slices.IndexFunc(all, func(o policy.Interface) bool { return o.Bond == f.Bond && slices.Equal(o.MAC, f.MAC) })
		var err error
		if base, err = m.bond(bondName(first), f.Bond, nics); err != nil {
			return "", err
		}
		wanted[base.Attrs().Name] = true
	}
	if f.VLAN == 0 {
		return base.Attrs().Name, nil
	}
	if err := m.h.LinkSetUp(base); err != nil {
		return "", fmt.Errorf("bring %s up: %w", base.Attrs().Name, err)
	}
	name := vlanName(i)
	wanted[name] = true
	return name, m.vlan(name, base, f.VLAN)
}

// nic finds a network card by its permanent address: a bond's members show the bond's address while they are in it.
func (m *Manager) nic(links []netlink.Link, mac string) (netlink.Link, error) {
	var found []netlink.Link
	for _, l := range links {
		if !slices.Contains(m.o.Kinds, l.Type()) || l.Attrs().Flags&net.FlagLoopback != 0 {
			continue
		}
		hw := permanent(l)
		if len(hw) == 6 && (mac == Any || strings.EqualFold(hw.String(), normal(mac))) {
			found = append(found, l)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1 && mac == Any:
		return nil, fmt.Errorf(`mac "any" needs a machine with one NIC; this one has %d`, len(found))
	case len(found) > 1:
		return nil, fmt.Errorf("%d NICs have the MAC address %s", len(found), mac)
	case mac == Any:
		return nil, errors.New("the machine has no NIC that the image has a driver for")
	}
	return nil, fmt.Errorf("no NIC has the MAC address %s", mac)
}

// permanent is the address that a NIC was made with, as the bond remembers it or the NIC itself does.
func permanent(l netlink.Link) net.HardwareAddr {
	if member, ok := l.Attrs().Slave.(*netlink.BondSlave); ok && len(member.PermHardwareAddr) == 6 {
		return member.PermHardwareAddr
	}
	if len(l.Attrs().PermHWAddr) == 6 {
		return l.Attrs().PermHWAddr
	}
	return l.Attrs().HardwareAddr
}

func normal(mac string) string {
	hw, err := net.ParseMAC(mac)
	if err != nil {
		return mac
	}
	return hw.String()
}

// bond makes or keeps a bond with exactly these members. Changing the mode needs a new device.
func (m *Manager) bond(name, mode string, nics []netlink.Link) (netlink.Link, error) {
	want := netlink.StringToBondModeMap[mode]
	l, err := m.h.LinkByName(name)
	if b, ok := l.(*netlink.Bond); err == nil && (!ok || b.Mode != want) {
		if err := m.h.LinkDel(l); err != nil {
			return nil, fmt.Errorf("replace %s: %w", name, err)
		}
		err = netlink.LinkNotFoundError{}
		l = nil
	} else if err != nil {
		l = nil
	}
	if l == nil {
		b := netlink.NewLinkBond(netlink.LinkAttrs{Name: name})
		b.Mode, b.Miimon = want, 100
		if mode == "802.3ad" {
			b.LacpRate = netlink.BOND_LACP_RATE_FAST
		}
		if err := m.h.LinkAdd(b); err != nil {
			return nil, fmt.Errorf("make a bond: %w", err)
		}
		if l, err = m.h.LinkByName(name); err != nil {
			return nil, fmt.Errorf("make a bond: %w", err)
		}
	}
	for _, nic := range nics {
		if nic.Attrs().MasterIndex == l.Attrs().Index {
			continue
		}
		m.flush(nic)
		if err := errors.Join(m.h.LinkSetDown(nic), m.h.LinkSetMaster(nic, l), m.h.LinkSetUp(nic)); err != nil {
			return nil, fmt.Errorf("put %s into the bond: %w", nic.Attrs().Name, err)
		}
	}
	return l, nil
}

func (m *Manager) vlan(name string, base netlink.Link, id int) error {
	l, err := m.h.LinkByName(name)
	if v, ok := l.(*netlink.Vlan); err == nil {
		if ok && v.VlanId == id && v.ParentIndex == base.Attrs().Index {
			return nil
		}
		if err := m.h.LinkDel(l); err != nil {
			return fmt.Errorf("replace %s: %w", name, err)
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = name, base.Attrs().Index
	if err := m.h.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: id, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}); err != nil {
		return fmt.Errorf("make VLAN %d on %s: %w", id, base.Attrs().Name, err)
	}
	return nil
}

// bring sets MTU, addresses and state. A lease that the old network had on the same device stays until DHCP confirms or replaces it.
func (m *Manager) bring(b *bound, old []bound) error {
	l, err := m.h.LinkByName(b.device)
	if err != nil {
		return fmt.Errorf("find %s: %w", b.device, err)
	}
	b.index = l.Attrs().Index
	if b.DHCP {
		for _, o := range old {
			if o.DHCP && o.device == b.device && o.index == b.index {
				b.lease = o.lease
			}
		}
	}
	m.acceptAdvertisements(b.device, b.DHCP)
	m.speakIPv6(b.device, true)
	if b.MTU != 0 && l.Attrs().MTU != b.MTU {
		if b.VLAN != 0 { // a VLAN can't be wider than what carries it
			if base, err := m.h.LinkByIndex(l.Attrs().ParentIndex); err == nil && base.Attrs().MTU < b.MTU {
				m.h.LinkSetMTU(base, b.MTU)
			}
		}
		if err := m.h.LinkSetMTU(l, b.MTU); err != nil {
			return fmt.Errorf("set the MTU to %d: %w", b.MTU, err)
		}
	}
	if err := m.h.LinkSetUp(l); err != nil {
		return fmt.Errorf("bring %s up: %w", b.device, err)
	}
	return m.setAddresses(l, b)
}

// acceptAdvertisements lets routers give IPv6 addresses only where the network is told to come from the network.
func (m *Manager) acceptAdvertisements(device string, on bool) {
	value := "0"
	if on {
		value = "1"
	}
	for _, name := range []string{"accept_ra", "autoconf"} {
		m.sysctl(device, name, value)
	}
}

// setAddresses makes the addresses of the device those of the interface and its lease, touching only what differs.
func (m *Manager) setAddresses(l netlink.Link, b *bound) error {
	want := map[string]netip.Prefix{}
	list := b.Addresses
	if b.lease != nil {
		list = append(slices.Clone(list), b.lease.Address)
	}
	for _, a := range list {
		if p, err := netip.ParsePrefix(a); err == nil {
			want[p.String()] = p
		}
	}
	have, err := m.h.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", b.device, err)
	}
	var failed error
	for _, a := range have {
		key := a.IPNet.String()
		if _, ok := want[key]; ok {
			delete(want, key)
			continue
		}
		advertised := a.Flags&unix.IFA_F_PERMANENT == 0 // by a router, or temporary
		if a.IP.IsLinkLocalUnicast() || b.DHCP && a.IP.To4() == nil && advertised {
			continue
		}
		if err := m.h.AddrDel(l, &a); err != nil {
			failed = errors.Join(failed, fmt.Errorf("remove address %s: %w", key, err))
		}
	}
	for key := range want {
		a, err := netlink.ParseAddr(key)
		if err == nil {
			if a.IP.To4() == nil {
				a.Flags = unix.IFA_F_NODAD // a static address must work at once; a duplicate is the administrator's to see
			}
			err = m.h.AddrAdd(l, a)
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			failed = errors.Join(failed, fmt.Errorf("add address %s: %w", key, err))
		}
	}
	return failed
}

// removeStale takes down what the network does not name and removes bonds and VLANs of an earlier one.
func (m *Manager) removeStale(wanted map[string]bool) {
	links, err := m.h.LinkList()
	if err != nil {
		m.o.Logf("list network devices: %v", err)
		return
	}
	for _, l := range links {
		name := l.Attrs().Name
		switch {
		case wanted[name] || l.Attrs().Flags&net.FlagLoopback != 0:
		case strings.HasPrefix(name, "ghbond") || strings.HasPrefix(name, "ghvlan"):
			if err := m.h.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) { // gone with what carried it
				m.o.Logf("remove %s: %v", name, err)
			}
		case slices.Contains(m.o.Kinds, l.Type()):
			m.flush(l)
			if l.Attrs().Flags&net.FlagUp == 0 {
				continue
			}
			if err := m.h.LinkSetDown(l); err != nil {
				m.o.Logf("take %s down: %v", name, err)
			}
		}
	}
}

// flush removes every address of a NIC that carries none any more.
func (m *Manager) flush(l netlink.Link) {
	have, err := m.h.AddrList(l, netlink.FAMILY_ALL)
	for i := range have {
		if !have[i].IP.IsLinkLocalUnicast() {
			err = errors.Join(err, m.h.AddrDel(l, &have[i]))
		}
	}
	if err != nil {
		m.o.Logf("remove the addresses of %s: %v", l.Attrs().Name, err)
	}
}
