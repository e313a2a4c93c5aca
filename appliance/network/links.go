package network

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Links describes each interface of the network, then each NIC that no interface uses, with what is wrong and what to do about it.
func (m *Manager) Links() []Link {
	m.mu.Lock()
	defer m.mu.Unlock()
	all, err := m.h.LinkList()
	if err != nil {
		return []Link{{Name: "network", Problem: "the kernel does not answer: " + err.Error(), Remedy: "restart the node"}}
	}
	var list []Link
	used := map[string]bool{}
	for i := range m.bound {
		b := &m.bound[i]
		out := Link{Name: b.Name, Device: b.device, MAC: strings.Join(b.MAC, " ")}
		at := slices.IndexFunc(all, func(l netlink.Link) bool { return l.Attrs().Name == b.device })
		if at < 0 {
			out.Problem, out.Remedy = "device not found", "compare the MAC address with those of the unused NICs (network show)"
			if b.err != nil {
				out.Problem = b.err.Error()
			}
			list = append(list, out)
			continue
		}
		l := all[at]
		used[b.device] = true
		m.markUsed(all, l, used)
		out.MAC, out.Link = l.Attrs().HardwareAddr.String(), carrier(l)
		out.Addresses = m.addresses(l)
		out.Problem, out.Remedy = m.judge(all, b, l)
		list = append(list, out)
	}
	for _, l := range all {
		if used[l.Attrs().Name] || !slices.Contains(m.o.Kinds, l.Type()) || len(l.Attrs().HardwareAddr) != 6 {
			continue
		}
		list = append(list, Link{Name: "(unused)", Device: l.Attrs().Name, MAC: permanent(l).String(), Link: carrier(l)})
	}
	return list
}

// Sense brings every NIC up while no network was applied, without an address and without IPv6, so that Links can tell which cable is in
// before anybody has said what the cables are for. Afterwards it does nothing: what a network does not name stays down.
func (m *Manager) Sense() {
	m.applying.Lock()
	defer m.applying.Unlock()
	m.mu.Lock()
	applied := len(m.bound) > 0
	m.mu.Unlock()
	if applied {
		return
	}
	all, err := m.h.LinkList()
	if err != nil {
		m.o.Logf("list network devices: %v", err)
		return
	}
	for _, l := range all {
		if !slices.Contains(m.o.Kinds, l.Type()) || len(l.Attrs().HardwareAddr) != 6 {
			continue
		}
		m.speakIPv6(l.Attrs().Name, false)
		if err := m.h.LinkSetUp(l); err != nil {
			m.o.Logf("bring %s up: %v", l.Attrs().Name, err)
		}
	}
}

// speakIPv6 lets the kernel give the device IPv6 addresses or keeps it from it, its link-local one included.
func (m *Manager) speakIPv6(device string, on bool) {
	m.sysctl(device, "disable_ipv6", map[bool]string{true: "0", false: "1"}[on])
}

// sysctl sets an IPv6 setting of a device, where the kernel has it.
func (m *Manager) sysctl(device, name, value string) {
	path := filepath.Join(m.o.Sysctl, "net/ipv6/conf", device, name)
	if err := os.WriteFile(path, []byte(value), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		m.o.Logf("%s: %v", path, err)
	}
}

// markUsed notes the NICs below a VLAN or bond.
func (m *Manager) markUsed(all []netlink.Link, l netlink.Link, used map[string]bool) {
	for _, o := range all {
		below := o.Attrs().Index == l.Attrs().ParentIndex && l.Type() == "vlan" || o.Attrs().MasterIndex == l.Attrs().Index
		if below && !used[o.Attrs().Name] {
			used[o.Attrs().Name] = true
			m.markUsed(all, o, used)
		}
	}
}

// judge says what is wrong with an interface whose device exists.
func (m *Manager) judge(all []netlink.Link, b *bound, l netlink.Link) (problem, remedy string) {
	mac := l.Attrs().HardwareAddr
	switch {
	case b.err != nil:
		return b.err.Error(), "correct the network settings (network set)"
	case !carrier(l):
		return fmt.Sprintf("no link on %s (%s, %s)", b.Name, b.device, mac), "connect the cable, or switch the port on the other side on"
	case b.DHCP && b.lease == nil && len(b.Addresses) == 0:
		return fmt.Sprintf("no DHCP server answers on %s (%s, %s)", b.Name, b.device, mac), "check the VLAN and the DHCP server, or give a static address (network set)"
	}
	if b.Bond != "" {
		for _, o := range all {
			if o.Attrs().MasterIndex == l.Attrs().Index && !carrier(o) {
				return fmt.Sprintf("bond %s runs without %s (%s): no link", b.Name, o.Attrs().Name, permanent(o)), "connect the cable, or switch the port on the other side on"
			}
		}
	}
	return "", ""
}

// carrier is what the kernel calls running: up, with a signal on the line.
func carrier(l netlink.Link) bool {
	return l.Attrs().Flags&net.FlagUp != 0 && l.Attrs().RawFlags&unix.IFF_LOWER_UP != 0
}

func (m *Manager) addresses(l netlink.Link) []string {
	have, err := m.h.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return nil
	}
	var list []string
	for _, a := range have {
		if !a.IP.IsLinkLocalUnicast() {
			list = append(list, a.IPNet.String())
		}
	}
	return list
}
