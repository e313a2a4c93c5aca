package policy

// Network is how one node is connected. It is a value of setup, needs no DHCP and is applied before services start; a blank Network
// leaves every interface down. One interface may have all roles.
type Network struct {
	Interfaces []Interface `json:"interfaces" toml:"interface"`
	Resolvers  []string    `json:"resolvers" toml:"resolvers"` // IP addresses
}

// NetworkRole is a traffic class that is bound to an interface.
type NetworkRole string

const (
	NetService    NetworkRole = "service"
	NetCluster    NetworkRole = "cluster"
	NetManagement NetworkRole = "management"
)

// Interface is one address-carrying interface: a NIC, a VLAN on one, or a bond of several, chosen by MAC address so that the kernel's
// numbering never matters. "MAC any" is allowed where the machine has exactly one NIC.
type Interface struct {
	Name      string        `json:"name" toml:"name"`           // ours, for people: "front"
	MAC       []string      `json:"mac" toml:"mac"`             // one, or several for a bond; ["any"] = the only NIC
	Bond      string        `json:"bond,omitempty" toml:"bond"` // "", "active-backup" or "802.3ad"
	VLAN      int           `json:"vlan,omitempty" toml:"vlan"` // 1-4094; 0 = none
	MTU       int           `json:"mtu,omitempty" toml:"mtu"`   // bytes; 0 = leave
	DHCP      bool          `json:"dhcp,omitempty" toml:"dhcp"`
	Addresses []string      `json:"addresses,omitempty" toml:"addresses"` // CIDR, IPv4 or IPv6
	Gateways  []string      `json:"gateways,omitempty" toml:"gateways"`   // IP addresses, at most one each of IPv4 and IPv6
	Roles     []NetworkRole `json:"roles" toml:"roles"`
}
