package network

import (
	"context"
	"fmt"
	"net/netip"
)

// acquire keeps interface i leased.
func (m *Manager) acquire(ctx context.Context, i int, device string) {
	defer m.leasing.Done()
	err := m.o.Acquire(ctx, device, func(lease Lease) {
		if !lease.Lost {
			if err := lease.check(); err != nil {
				m.o.Logf("lease on %s refused: %v", device, err)
				return
			}
		}
		m.mu.Lock()
		if ctx.Err() != nil {
			m.mu.Unlock()
			return
		}
		m.leased(&m.bound[i], lease)
		m.mu.Unlock()
		if m.o.Changed != nil {
			m.o.Changed()
		}
	})
	if err != nil && ctx.Err() == nil {
		m.o.Logf("DHCP on %s: %v", device, err)
	}
}

// leased needs m.mu.
func (m *Manager) leased(b *bound, lease Lease) {
	if b.lease == nil && lease.Lost {
		return
	}
	if b.lease = &lease; lease.Lost {
		b.lease = nil
		m.o.Logf("lease on %s has run out", b.device)
	} else {
		m.o.Logf("lease on %s: %s, gateway %s", b.device, lease.Address, lease.Gateway)
	}
	l, err := m.h.LinkByIndex(b.index)
	if err == nil {
		err = m.setAddresses(l, b)
	}
	b.err = err
	m.setRoutes()
	m.writeResolv()
}

// check looks at what came from a network nobody trusts: as an address it must be one, and it can't be used to take over loopback.
func (l Lease) check() error {
	p, err := netip.ParsePrefix(l.Address)
	if err != nil || !p.Addr().Is4() || p.Addr().IsLoopback() || p.Addr().IsMulticast() || p.Addr().IsUnspecified() || p.Bits() < 8 {
		return fmt.Errorf("%q is not a usable address", l.Address)
	}
	if l.Gateway != "" {
		if g, err := netip.ParseAddr(l.Gateway); err != nil || !g.Is4() || g.IsUnspecified() || g.IsLoopback() {
			return fmt.Errorf("%q is not a usable gateway", l.Gateway)
		}
	}
	for _, r := range l.Resolvers {
		if _, err := netip.ParseAddr(r); err != nil {
			return fmt.Errorf("%q is not a usable resolver", r)
		}
	}
	return nil
}
