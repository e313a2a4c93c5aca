package network

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"guardhouse/appliance/policy"
)

// Any is the MAC address that means "the only NIC".
const Any = "any"

// Bounds of a Network.
const (
	MaxInterfaces = 16
	MaxAddresses  = 16
	MaxResolvers  = 3
)

// FieldError names the field of a Network that can't be, in the words of the answer file.
type FieldError struct {
	Field  string // "network.interface[0].addresses[1]"
	Reason string
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Reason }

// Validate checks everything that can be known without the machine. The error is a *FieldError.
func Validate(n policy.Network) error {
	if len(n.Resolvers) > MaxResolvers {
		return &FieldError{"network.resolvers", fmt.Sprintf("at most %d are used", MaxResolvers)}
	}
	for i, r := range n.Resolvers {
		if _, err := netip.ParseAddr(r); err != nil {
			return &FieldError{fmt.Sprintf("network.resolvers[%d]", i), fmt.Sprintf("%q is not an IP address", r)}
		}
	}
	if len(n.Interfaces) > MaxInterfaces {
		return &FieldError{"network.interface", fmt.Sprintf("at most %d can be given", MaxInterfaces)}
	}
	names, macs, addresses := map[string]int{}, map[string]use{}, map[netip.Addr]int{}
	for i, f := range n.Interfaces {
		at := func(field, reason string, args ...any) error {
			return &FieldError{fmt.Sprintf("network.interface[%d].%s", i, field), fmt.Sprintf(reason, args...)}
		}
		if !policy.ValidName(f.Name) {
			return at("name", "%q is not a name of letters, digits, dots and dashes", f.Name)
		}
		if j, ok := names[f.Name]; ok {
			return at("name", "%q is the name of interface[%d] already", f.Name, j)
		}
		names[f.Name] = i
		if err := checkDevice(f, i, macs, at); err != nil {
			return err
		}
		if err := checkAddresses(f, i, addresses, at); err != nil {
			return err
		}
	}
	if macs[Any].count > 0 && len(macs) > 1 {
		return &FieldError{fmt.Sprintf("network.interface[%d].mac", macs[Any].first), `"any" stands for the only NIC, so no other interface can name a MAC address`}
	}
	return nil
}

// use is who has claimed a NIC: bonds claim it alone, VLANs share it with each other and one untagged interface.
type use struct {
	first, count int
	bond         string // the members and mode of the bond, "" = none
	vlans        map[int]int
}

func checkDevice(f policy.Interface, i int, macs map[string]use, at func(field, reason string, args ...any) error) error {
	if len(f.MAC) == 0 {
		return at("mac", `give the MAC address of the NIC, or "any" where the machine has only one`)
	}
	if f.VLAN < 0 || f.VLAN > 4094 {
		return at("vlan", "%d is not in 1 to 4094", f.VLAN)
	}
	if f.MTU != 0 && (f.MTU < 576 || f.MTU > 9216) {
		return at("mtu", "%d is not in 576 to 9216", f.MTU)
	}
	if f.MTU != 0 && f.MTU < 1280 && slices.ContainsFunc(f.Addresses, func(a string) bool { return strings.Contains(a, ":") }) {
		return at("mtu", "IPv6 needs at least 1280")
	}
	switch f.Bond {
	case "":
		if len(f.MAC) > 1 {
			return at("mac", "several NICs need a bond mode: active-backup or 802.3ad")
		}
	case "active-backup", "802.3ad":
		if len(f.MAC) < 2 {
			return at("bond", "a bond needs at least two NICs in mac")
		}
	default:
		return at("bond", "%q is neither active-backup nor 802.3ad", f.Bond)
	}
	group := ""
	if f.Bond != "" {
		group = f.Bond + " " + strings.ToLower(strings.Join(f.MAC, " "))
	}
	inThis := map[string]bool{}
	for k, m := range f.MAC {
		key := Any
		if m != Any {
			hw, err := net.ParseMAC(m)
			if err != nil || len(hw) != 6 {
				return at(fmt.Sprintf("mac[%d]", k), "%q is not a MAC address like 52:54:00:12:34:56", m)
			}
			key = hw.String()
		} else if f.Bond != "" {
			return at(fmt.Sprintf("mac[%d]", k), `a bond can't be made of "any"`)
		}
		if inThis[key] {
			return at(fmt.Sprintf("mac[%d]", k), "%s is given twice", m)
		}
		inThis[key] = true
		u, used := macs[key]
		if !used {
			u = use{first: i, bond: group, vlans: map[int]int{}}
		}
		if other, taken := u.vlans[f.VLAN]; taken {
			return at(fmt.Sprintf("mac[%d]", k), "%s is used by interface[%d] with the same VLAN already", m, other)
		}
		if u.bond != group {
			return at(fmt.Sprintf("mac[%d]", k), "%s is used by interface[%d] with another bond", m, u.first)
		}
		u.vlans[f.VLAN] = i
		u.count++
		macs[key] = u
	}
	return nil
}

func checkAddresses(f policy.Interface, i int, seen map[netip.Addr]int, at func(field, reason string, args ...any) error) error {
	if len(f.Addresses) > MaxAddresses {
		return at("addresses", "at most %d can be given", MaxAddresses)
	}
	if len(f.Addresses) == 0 && !f.DHCP {
		return at("addresses", "give at least one address with its prefix (10.0.2.15/24), or dhcp = true")
	}
	var prefixes []netip.Prefix
	for k, a := range f.Addresses {
		p, err := netip.ParsePrefix(a)
		if err != nil {
			return at(fmt.Sprintf("addresses[%d]", k), "%q is not an address with its prefix, like 10.0.2.15/24", a)
		}
		ip := p.Addr()
		if ip.IsMulticast() || ip.IsUnspecified() || ip.IsLoopback() || ip.Is4In6() {
			return at(fmt.Sprintf("addresses[%d]", k), "%s can't be the address of a machine", ip)
		}
		if ip.Is4() && p.Bits() < 31 && (ip == p.Masked().Addr() || ip == broadcast(p)) {
			return at(fmt.Sprintf("addresses[%d]", k), "%s is the network's own or its broadcast address", ip)
		}
		if j, ok := seen[ip]; ok {
			return at(fmt.Sprintf("addresses[%d]", k), "%s is given in interface[%d] already", ip, j)
		}
		seen[ip] = i
		prefixes = append(prefixes, p)
	}
	families := map[bool]bool{}
	for k, g := range f.Gateways {
		ip, err := netip.ParseAddr(g)
		if err != nil {
			return at(fmt.Sprintf("gateways[%d]", k), "%q is not an IP address", g)
		}
		if families[ip.Is4()] {
			return at(fmt.Sprintf("gateways[%d]", k), "a second gateway of the same family")
		}
		families[ip.Is4()] = true
		if !ip.IsLinkLocalUnicast() && !slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(ip) && p.Addr() != ip }) {
			return at(fmt.Sprintf("gateways[%d]", k), "%s is in none of this interface's networks", g)
		}
	}
	if len(f.Roles) == 0 {
		return at("roles", "give at least one of service, cluster, management")
	}
	for k, r := range f.Roles {
		if r != policy.NetService && r != policy.NetCluster && r != policy.NetManagement {
			return at(fmt.Sprintf("roles[%d]", k), "%q is not one of service, cluster, management", r)
		}
	}
	return nil
}

// broadcast is the last address of an IPv4 network.
func broadcast(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().As4()
	for bit := p.Bits(); bit < 32; bit++ {
		a[bit/8] |= 0x80 >> (bit % 8)
	}
	return netip.AddrFrom4(a)
}
