package network

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// FenceTable is the name of our table of packet rules.
const FenceTable = "guardhouse"

// Held is who is held to which addresses: what leaves a socket that belongs to one of UIDs goes over TCP to one of Peers, or answers
// somebody who has connected to one of the ports Serves. Neither means no network at all.
type Held struct {
	UIDs   []uint32
	Peers  []netip.AddrPort
	Serves []uint16
}

// Fence holds processes to addresses; what goes elsewhere is refused at once (a TCP connection by reset, anything else as prohibited). It
// replaces an earlier fence as a whole, in one step, in the network namespace of the calling thread: connections that the new one allows
// as well go on.
//
// What it rests on: the kernel knows the owner of the socket (the filesystem uid of who made it) for each packet that leaves; a process
// without CAP_NET_RAW has no other way to send one. Loopback counts as network. An address of this machine (127.0.0.1) may be allowed, so
// that module and helper can meet on a port; the answers of whoever listens there pass, new connections from that port do not.
//
// Limits: packets of a socket that its process has closed already have no owner; they belong to a connection that was allowed. A socket
// that another process made and handed over counts as the maker's: the processes of a node hand over listening sockets only, and what they
// accept is their own.
func Fence(held ...Held) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: FenceTable}
	// Added first, so that deleting it never fails; all of this is one transaction.
	c.AddTable(table)
	c.DelTable(table)
	c.AddTable(table)
	accept := nftables.ChainPolicyAccept
	out := c.AddChain(&nftables.Chain{Table: table, Name: "output", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput,
		Priority: nftables.ChainPriorityFilter, Policy: &accept})
	for i, h := range held {
		addHeld(c, table, out, fmt.Sprintf("fenced%d", i+1), h)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("fence: the kernel takes no packet rules: %w", err)
	}
	return nil
}

// addHeld is a chain for those who are held to the same addresses, and the way of their packets into it.
func addHeld(c *nftables.Conn, table *nftables.Table, out *nftables.Chain, name string, h Held) {
	fenced := c.AddChain(&nftables.Chain{Table: table, Name: name})
	for _, uid := range h.UIDs {
		c.AddRule(&nftables.Rule{Table: table, Chain: out, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeySKUID, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(uid)},
			&expr.Verdict{Kind: expr.VerdictJump, Chain: fenced.Name},
		}})
	}
	for _, a := range h.Peers {
		c.AddRule(&nftables.Rule{Table: table, Chain: fenced, Exprs: append(peer(a, toPeer), &expr.Verdict{Kind: expr.VerdictAccept})})
		if a.Addr().IsLoopback() {
			c.AddRule(&nftables.Rule{Table: table, Chain: fenced, Exprs: append(append(peer(a, fromPeer), noNewConnection...), &expr.Verdict{Kind: expr.VerdictAccept})})
		}
	}
	for _, port := range h.Serves {
		c.AddRule(&nftables.Rule{Table: table, Chain: fenced, Exprs: append(append(tcpPort(port, fromPeer), noNewConnection...), &expr.Verdict{Kind: expr.VerdictAccept})})
	}
	c.AddRule(&nftables.Rule{Table: table, Chain: fenced, Exprs: append(isTCP(), &expr.Reject{Type: unix.NFT_REJECT_TCP_RST})})
	c.AddRule(&nftables.Rule{Table: table, Chain: fenced, Exprs: []expr.Any{
		&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED},
	}})
}

// side is where in a packet the address and port lie.
type side struct{ v4, v6, port uint32 }

var (
	fromPeer = side{12, 8, 0}
	toPeer   = side{16, 24, 2}
)

// peer matches TCP packets with this address and port on the given side.
func peer(a netip.AddrPort, s side) []expr.Any {
	family, offset := byte(unix.NFPROTO_IPV4), s.v4
	if a.Addr().Is6() {
		family, offset = unix.NFPROTO_IPV6, s.v6
	}
	ip := a.Addr().AsSlice()
	return append([]expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(len(ip))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ip},
	}, tcpPort(a.Port(), s)...)
}

// isTCP matches TCP packets.
func isTCP() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
	}
}

// tcpPort matches TCP packets with this port on the given side.
func tcpPort(port uint16, s side) []expr.Any {
	return append(isTCP(),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: s.port, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)})
}

// Of the TCP header: the byte with the flags, and those that tell a first packet from all others.
const (
	tcpFlags = 13
	tcpSYN   = 0x02
	tcpACK   = 0x10
)

// noNewConnection matches TCP packets that do not open a connection.
var noNewConnection = []expr.Any{
	&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: tcpFlags, Len: 1},
	&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{tcpSYN | tcpACK}, Xor: []byte{0}},
	&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{tcpSYN}},
}
