package network

import (
	"fmt"
	"net"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
)

// setRoutes makes our default routes those of the interfaces. Needs m.mu.
func (m *Manager) setRoutes() {
	type key struct {
		index int
		gw    string
	}
	want := map[key]int{} // -> metric
	for i := range m.bound {
		b := &m.bound[i]
		gateways := b.Gateways
		if b.lease != nil && b.lease.Gateway != "" && len(gateways) == 0 {
			gateways = []string{b.lease.Gateway}
		}
		for _, g := range gateways {
			if b.index != 0 {
				want[key{b.index, net.ParseIP(g).String()}] = 100 + i
			}
		}
	}
	have, err := m.h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		m.o.Logf("list routes: %v", err)
	}
	for _, r := range have {
		k := key{r.LinkIndex, r.Gw.String()}
		if metric, ok := want[k]; ok && r.Priority == metric {
			delete(want, k)
			continue
		}
		if r.Gw != nil {
			if err := m.h.RouteDel(&r); err != nil {
				m.o.Logf("remove route by %s: %v", r.Gw, err)
			}
		}
	}
	for k, metric := range want {
		r := &netlink.Route{LinkIndex: k.index, Gw: net.ParseIP(k.gw), Priority: metric, Protocol: routeProtocol}
		if err := m.h.RouteReplace(r); err != nil {
			m.o.Logf("add route by %s: %v", k.gw, err)
			for i := range m.bound {
				if m.bound[i].index == k.index && m.bound[i].err == nil {
					m.bound[i].err = fmt.Errorf("gateway %s: %w", k.gw, err)
				}
			}
		}
	}
}

// writeResolv writes resolv.conf: the resolvers of the network, else those of the leases. Needs m.mu.
func (m *Manager) writeResolv() {
	list := m.current.Resolvers
	if len(list) == 0 {
		for _, b := range m.bound {
			if b.lease != nil {
				list = append(slices.Clone(list), b.lease.Resolvers...)
			}
		}
	}
	text := ""
	for _, r := range list[:min(len(list), MaxResolvers)] {
		text += "nameserver " + r + "\n"
	}
	err := os.WriteFile(m.o.Resolv+".new", []byte(text), 0o644)
	if err == nil {
		err = os.Rename(m.o.Resolv+".new", m.o.Resolv)
	}
	if err != nil {
		m.o.Logf("write the resolvers: %v", err)
	}
}
