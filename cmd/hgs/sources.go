package main

import (
	"net"
	"net/netip"
	"sync"
)

// maxPerSource is how many connections one address may have open on one door. It is a quarter of maxConnections: somebody who holds as
// many as possible, slowly, leaves the rest to the hosts. A host needs one or two.
const maxPerSource = maxConnections / 4

// fair is a listener that hangs up on a source with too many open connections. Such a connection never counts against maxConnections.
type fair struct {
	net.Listener
	most int

	mu   sync.Mutex
	open map[netip.Addr]int
}

func newFair(l net.Listener, most int) *fair {
	return &fair{Listener: l, most: most, open: map[netip.Addr]int{}}
}

func (f *fair) Accept() (net.Conn, error) {
	for {
		c, err := f.Listener.Accept()
		if err != nil {
			return nil, err
		}
		source := sourceOf(c.RemoteAddr())
		if f.enter(source) {
			return &counted{Conn: c, leave: sync.OnceFunc(func() { f.leave(source) })}, nil
		}
		c.Close()
	}
}

func (f *fair) enter(source netip.Addr) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open[source] >= f.most {
		return false
	}
	f.open[source]++
	return true
}

func (f *fair) leave(source netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open[source]--; f.open[source] <= 0 {
		delete(f.open, source)
	}
}

// sourceOf is the caller's address; of an IPv6 address the first 64 bits, because whoever has one has all that begin so.
func sourceOf(a net.Addr) netip.Addr {
	p, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	ip := p.Addr().Unmap().WithZone("")
	if ip.Is6() {
		if prefix, err := ip.Prefix(64); err == nil {
			return prefix.Addr()
		}
	}
	return ip
}

// counted gives its place back when it is closed.
type counted struct {
	net.Conn
	leave func()
}

func (c *counted) Close() error {
	c.leave()
	return c.Conn.Close()
}
