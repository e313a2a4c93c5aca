package network

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"guardhouse/appliance/policy"
)

func TestNamesTheWrongField(t *testing.T) {
	good := func() policy.Network {
		return policy.Network{Resolvers: []string{"192.0.2.53"}, Interfaces: []policy.Interface{
			{Name: "front", MAC: []string{mac1}, Addresses: []string{"192.0.2.10/24", "2001:db8::1/64"}, Gateways: []string{"192.0.2.1", "fe80::1"}, Roles: everything},
			{Name: "back", MAC: []string{mac2, mac3}, Bond: "802.3ad", VLAN: 7, MTU: 9000, DHCP: true, Roles: everything},
		}}
	}
	if err := Validate(good()); err != nil {
		t.Fatal(err)
	}
	if err := Validate(policy.Network{}); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(n *policy.Network){
		"network.resolvers[0]:":                                  func(n *policy.Network) { n.Resolvers[0] = "dns.example" },
		"network.resolvers:":                                     func(n *policy.Network) { n.Resolvers = make([]string, 4) },
		"network.interface:":                                     func(n *policy.Network) { n.Interfaces = make([]policy.Interface, 17) },
		"network.interface[1].name: \"fr":                        func(n *policy.Network) { n.Interfaces[1].Name = "front" },
		"network.interface[0].name: \"a b":                       func(n *policy.Network) { n.Interfaces[0].Name = "a b" },
		"network.interface[0].mac: give":                         func(n *policy.Network) { n.Interfaces[0].MAC = nil },
		"network.interface[0].mac[0]: \"52":                      func(n *policy.Network) { n.Interfaces[0].MAC[0] = "52:54" },
		"network.interface[0].mac: several":                      func(n *policy.Network) { n.Interfaces[0].MAC = []string{mac1, "52:54:00:00:00:09"} },
		"network.interface[1].mac[1]: 52":                        func(n *policy.Network) { n.Interfaces[1].MAC[1] = strings.ToUpper(mac2) },
		"network.interface[1].mac[0]: " + mac1:                   func(n *policy.Network) { n.Interfaces[1].MAC[0] = mac1 },
		"network.interface[1].mac[0]: a bond":                    func(n *policy.Network) { n.Interfaces[1].MAC[0] = Any },
		"network.interface[0].mac: \"any\"":                      func(n *policy.Network) { n.Interfaces[0].MAC[0] = Any },
		"network.interface[1].bond: \"rr":                        func(n *policy.Network) { n.Interfaces[1].Bond = "rr" },
		"network.interface[1].bond: a bond":                      func(n *policy.Network) { n.Interfaces[1].MAC = []string{mac2} },
		"network.interface[1].vlan:":                             func(n *policy.Network) { n.Interfaces[1].VLAN = 4095 },
		"network.interface[1].mtu:":                              func(n *policy.Network) { n.Interfaces[1].MTU = 100 },
		"network.interface[0].mtu: IPv6":                         func(n *policy.Network) { n.Interfaces[0].MTU = 1000 },
		"network.interface[0].addresses: give":                   func(n *policy.Network) { n.Interfaces[0].Addresses = nil },
		"network.interface[0].addresses[0]: \"1":                 func(n *policy.Network) { n.Interfaces[0].Addresses[0] = "192.0.2.10" },
		"network.interface[0].addresses[1]: ff02":                func(n *policy.Network) { n.Interfaces[0].Addresses[1] = "ff02::1/64" },
		"network.interface[0].addresses[0]: 192.0.2.255":         func(n *policy.Network) { n.Interfaces[0].Addresses[0] = "192.0.2.255/24" },
		"network.interface[0].addresses[0]: 192.0.2.0":           func(n *policy.Network) { n.Interfaces[0].Addresses[0] = "192.0.2.0/24" },
		"network.interface[1].addresses[0]: 192.0.2.10 is given": func(n *policy.Network) { n.Interfaces[1].Addresses = []string{"192.0.2.10/8"} },
		"network.interface[0].gateways[0]: 203":                  func(n *policy.Network) { n.Interfaces[0].Gateways[0] = "203.0.113.1" },
		"network.interface[0].gateways[0]: 192.0.2.10":           func(n *policy.Network) { n.Interfaces[0].Gateways[0] = "192.0.2.10" },
		"network.interface[0].gateways[1]: a second":             func(n *policy.Network) { n.Interfaces[0].Gateways[1] = "192.0.2.2" },
		"network.interface[0].roles: give":                       func(n *policy.Network) { n.Interfaces[0].Roles = nil },
		"network.interface[0].roles[0]: \"web":                   func(n *policy.Network) { n.Interfaces[0].Roles = []policy.NetworkRole{"web"} },
	} {
		n := good()
		change(&n)
		err := Validate(n)
		var fe *FieldError
		if !errors.As(err, &fe) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s...", err, want)
		}
	}
}

func FuzzValidate(f *testing.F) {
	f.Add([]byte(`{"interfaces":[{"name":"a","mac":["any"],"dhcp":true,"roles":["service"]}],"resolvers":["::1"]}`))
	f.Add([]byte(`{"interfaces":[{"name":"a","mac":["52:54:00:00:00:01"],"addresses":["10.0.0.1/24"],"gateways":["10.0.0.2"],"roles":["service"]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var n policy.Network
		if json.Unmarshal(b, &n) == nil {
			Validate(n)
		}
	})
}
