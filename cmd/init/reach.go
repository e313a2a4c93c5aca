package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"guardhouse/appliance/network"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
	"guardhouse/appliance/supervise"
)

const (
	resolveName  = "guardhouse-resolve"
	resolveLimit = 5 * time.Second
	maxPeers     = 8 // addresses of one name that are used
)

// reach lets the process forward connect to the collector at address (HOST:PORT, as in policy.Syslog) and to nothing else, and gives the
// addresses; "" lets it reach nothing. A name is asked for anew each time, by a process of its own, so that neither init parses answers of
// the network nor forward says itself where it may go.
func (n *node) reach(ctx context.Context, address string) ([]string, error) {
	select { // an earlier fence would be without hsm's addresses
	case <-n.fenced:
	case <-ctx.Done():
		return nil, rpc.ErrUnavailable.With("the network fence does not stand yet")
	}
	var peers []netip.AddrPort
	var unknown error
	if address != "" {
		peers, unknown = collectorAddresses(ctx, address, n.resolve)
	}
	n.fencing.Lock()
	defer n.fencing.Unlock()
	n.collector = peers // none where the collector is not found: that of before is not the one on record
	if err := n.fence(); err != nil {
		return nil, rpc.ErrUnavailable.With("%v", err)
	}
	if unknown != nil {
		return nil, unknown
	}
	list := make([]string, len(peers))
	for i, p := range peers {
		list[i] = p.String()
	}
	return list, nil
}

// collectorAddresses are where a collector is: on another machine, as whatever answers says its address must be one that can be.
func collectorAddresses(ctx context.Context, address string, resolve func(context.Context, string) ([]netip.Addr, error)) ([]netip.AddrPort, error) {
	host, port := policy.Syslog{Address: address}.HostPort()
	if host == "" {
		return nil, rpc.ErrRefused.With("%.300q is not HOST:PORT", address)
	}
	var found []netip.Addr
	if a, err := netip.ParseAddr(host); err == nil {
		found = []netip.Addr{a}
	} else if found, err = resolve(ctx, host); err != nil {
		return nil, rpc.ErrUnavailable.With("the address of %s can't be found: %v", host, err)
	}
	var peers []netip.AddrPort
	for _, a := range found {
		if a = a.Unmap().WithZone(""); a.IsGlobalUnicast() && len(peers) < maxPeers {
			peers = append(peers, netip.AddrPortFrom(a, port))
		}
	}
	if len(peers) == 0 {
		return nil, rpc.ErrUnavailable.With("%s has no address of another machine", host)
	}
	return peers, nil
}

// resolve asks the name servers through a process without rights.
func (n *node) resolve(ctx context.Context, name string) ([]netip.Addr, error) {
	l := sandbox.LaunchOf(sandbox.ResolveProcess)
	l.Argv0, l.Args = resolveName, []string{name}
	cmd, err := sandbox.Command(l, nil)
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd.Stdout, cmd.Stderr = w, w
	err = n.reaper.Start(cmd)
	w.Close()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, resolveLimit+time.Second)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	defer stop()
	found, why := readAddresses(r)
	cmd.Process.Kill()
	if err := n.reaper.Wait(cmd); err != nil && why == "" && len(found) == 0 {
		why = err.Error()
	}
	if len(found) == 0 {
		return nil, errors.New(why)
	}
	return found, nil
}

// readAddresses reads what the process resolve says: addresses, one a line, or why there are none.
func readAddresses(r io.Reader) (found []netip.Addr, why string) {
	lines := bufio.NewScanner(io.LimitReader(r, 4<<10))
	for lines.Scan() {
		a, err := netip.ParseAddr(lines.Text())
		if err != nil {
			return nil, fmt.Sprintf("%.200q", lines.Text())
		}
		found = append(found, a)
	}
	return found, "the name servers gave no answer"
}

// resolveMain is the process resolve.
func resolveMain(name string) error {
	ctx, cancel := supervise.Context()
	defer cancel()
	ctx, stop := context.WithTimeout(ctx, resolveLimit)
	defer stop()
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	if err != nil {
		return err
	}
	for _, a := range found[:min(len(found), 4*maxPeers)] {
		fmt.Println(a.Unmap().WithZone(""))
	}
	return nil
}

// fence raises the fence anew; n.fencing is held.
func (n *node) fence() error {
	allowed, err := n.pack.Addresses()
	if err != nil {
		return err
	}
	forward, _ := sandbox.Find(rpc.Forward)
	ledger, _ := sandbox.Find(rpc.Ledger)
	return network.Fence(network.Held{UIDs: hsmUIDs(), Peers: allowed}, network.Held{UIDs: []uint32{forward.UID}, Peers: n.collector},
		network.Held{UIDs: []uint32{ledger.UID}, Peers: n.peers, Serves: []uint16{policy.PeerPort}})
}

// reachPeers lets the ledger connect to these addresses, the port of peers on other machines, and to nothing else. Each change is logged:
// the ledger itself says which they are.
func (n *node) reachPeers(ctx context.Context, addresses []string) error {
	select {
	case <-n.fenced:
	case <-ctx.Done():
		return rpc.ErrUnavailable.With("the network fence does not stand yet")
	}
	if len(addresses) > policy.MaxPeers {
		return rpc.ErrRefused.With("%d peers are named, %d are the limit", len(addresses), policy.MaxPeers)
	}
	var peers []netip.AddrPort
	for _, a := range addresses {
		at, err := netip.ParseAddrPort(a)
		if at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port()); err != nil || policy.UnfencedPeer(at) != "" {
			return rpc.ErrRefused.With("%.64q is not port %d of another machine", a, policy.PeerPort)
		}
		peers = append(peers, at)
	}
	n.fencing.Lock()
	defer n.fencing.Unlock()
	before := n.peers
	if slices.Equal(peers, before) {
		return nil
	}
	n.peers = peers
	if err := n.fence(); err != nil {
		n.peers = before
		return rpc.ErrUnavailable.With("%v", err)
	}
	n.logf("the ledger may connect to its peers %v and to nothing else", peers)
	return nil
}
