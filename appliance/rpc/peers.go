package rpc

import (
	"time"

	"guardhouse/appliance/policy"
)

// Methods about the other nodes that this one knows (policy.State.Peers).
var (
	LedgerPeerTime = Method[PeerTimeRequest, PeerTimeReply]{"ledger.PeerTime"} // [clock] asks a peer now; ErrUnavailable with the reason where it says nothing that may vote
	LedgerPeers    = Method[Empty, PeersReply]{"ledger.Peers"}                 // [console]

	InitPeers = Method[[]string, Empty]{"init.Peers"} // [ledger] the only addresses, IP:PORT, to which the ledger may open connections
)

// PeerTimeRequest names a peer as policy.State.Peers does.
type PeerTimeRequest struct {
	Name string `json:"name"`
}

// PeerTimeReply: at the CLOCK_MONOTONIC_RAW reading Raw of this node the peer held the time to be UTC, give or take Distance, which is half
// the round trip and what the peer itself admits. A time that administrators approved there is never given.
type PeerTimeReply struct {
	Raw      time.Duration `json:"raw"`
	UTC      time.Time     `json:"utc"`
	Distance time.Duration `json:"distance"`
}

// States of a peer, in PeerStatus.State.
const (
	PeerWaiting     = "waiting"     // not tried yet, or this node has no trusted time to judge the other's by
	PeerConnected   = "connected"   // both nodes have accepted each other
	PeerRefused     = "refused"     // this node refused the peer, or the peer this node: Error has the number
	PeerUnreachable = "unreachable" // no connection, or one with another key
)

// States of a node's clock, in PeerStatus.Clock.
const (
	PeerClockTrusted = "trusted"
	PeerClockManual  = "manual" // approved by administrators there: it is compared, but never votes
	PeerClockNone    = "none"
)

// PeersReply is this node as others must know it, and what it knows of them, by name.
type PeersReply struct {
	Key       string       `json:"key"`       // fingerprint of this node's peer key: hex SHA-256 of its SubjectPublicKeyInfo
	Addresses []string     `json:"addresses"` // IP:PORT at which other nodes may find this one; a hint from the network's settings
	Listening bool         `json:"listening"`
	Strangers uint64       `json:"strangers"` // connections that were refused in the handshake since the start: no peer's key
	Peers     []PeerStatus `json:"peers"`
}

// PeerStatus is one peer. Skew is by how much its clock was ahead of this node's (negative: behind) when last compared, certain to
// +- Uncertainty: the bounds of both clocks and half the round trip. Skew counts only where Compared is true.
type PeerStatus struct {
	policy.Peer
	State       string        `json:"state"`
	For         time.Duration `json:"for"` // how long it has been so
	Error       string        `json:"error,omitempty"`
	Compared    bool          `json:"compared"`
	Skew        time.Duration `json:"skew"`
	Uncertainty time.Duration `json:"uncertainty"`
	Age         time.Duration `json:"age"` // of the comparison
	// Off is true where the bounds do not explain the skew: one of the two clocks is wrong.
	Off bool `json:"off,omitempty"`
	// Clock is the peer's own word on its clock, "" = never heard; Reason why it has no trusted time.
	Clock  string `json:"clock,omitempty"`
	Reason string `json:"reason,omitempty"`
	Node   string `json:"node,omitempty"` // what the peer calls itself
}
