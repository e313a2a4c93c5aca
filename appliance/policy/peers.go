package policy

import (
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Bounds and the port of the link between nodes.
const (
	MaxPeers = 8
	// PeerPort is where a node listens for its peers, on interfaces of the role cluster.
	PeerPort = 7443
	// PeerKeySize is the length of a Peer.Key in bytes.
	PeerKeySize = 32
)

// Peer is another node that this one knows by its key and compares clocks with. It gets nothing else: no records, no key, no vote about
// anything but the time.
type Peer struct {
	Name    string `json:"name"`
	Address string `json:"address"` // IP:PORT, as ParsePeerAddress gives it
	Key     []byte `json:"key"`     // SHA-256 of the SubjectPublicKeyInfo of its peer key
	Added   Stamp  `json:"added"`
}

// Fingerprint is the peer's key as consoles show it and people type it: lower-case hexadecimal.
func (p Peer) Fingerprint() string { return hex.EncodeToString(p.Key) }

// PeerAdd is the body of peer.add.
type PeerAdd struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	Key     []byte `json:"key"`
}

// ParsePeerAddress reads where a peer listens: an IP address, with PeerPort where no port is given. A name is refused: whoever answers for
// it would say whom this node speaks to, and a link between nodes must not wait for a name server.
func ParsePeerAddress(s string) (netip.AddrPort, error) {
	bad := errors.New("it is not an IP address or IP:PORT; names are not looked up")
	if len(s) > maxEntry {
		return netip.AddrPort{}, bad
	}
	at, err := netip.ParseAddrPort(s)
	if err != nil {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return netip.AddrPort{}, bad
		}
		at = netip.AddrPortFrom(a, PeerPort)
	}
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	switch a := at.Addr(); {
	case a.Zone() != "":
		return netip.AddrPort{}, errors.New("an address with a zone means another machine on each interface")
	case at.Port() == 0 || a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return netip.AddrPort{}, errors.New("it is not the address of one machine")
	}
	return at, nil
}

// UnfencedPeer says why a node of an image could not connect there, whatever is on record: its fence knows PeerPort of other machines only.
// "" = it could. Outside an image nodes may be anywhere.
func UnfencedPeer(at netip.AddrPort) string {
	switch {
	case at.Port() != PeerPort:
		return fmt.Sprintf("nodes listen at port %d only", PeerPort)
	case !at.Addr().IsGlobalUnicast() || at.Addr().Zone() != "":
		return "it is not the address of another machine"
	}
	return ""
}

// ParsePeerKey reads what peer key shows on the other node: 64 hexadecimal digits, blanks and colons between them allowed.
func ParsePeerKey(s string) ([]byte, error) {
	if len(s) > 4*PeerKeySize {
		return nil, errors.New("the key is not the 64 hexadecimal digits that peer key shows on the other node")
	}
	b, err := hex.DecodeString(strings.NewReplacer(" ", "", ":", "").Replace(s))
	if err != nil || len(b) != PeerKeySize {
		return nil, errors.New("the key is not the 64 hexadecimal digits that peer key shows on the other node")
	}
	return b, nil
}

func applyPeerAdd(s *State, c Command) (Result, error) {
	b, err := decode[PeerAdd](c)
	if err != nil {
		return Result{}, err
	}
	if !ValidName(b.Name) {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("%.64q is not a valid name", b.Name), "use letters, digits, dots and dashes"}
	}
	at, err := ParsePeerAddress(b.Address)
	if err != nil {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("the address %.64q can't be used: %v", b.Address, err), "give the address of the other node's interface with the role cluster"}
	}
	if len(b.Key) != PeerKeySize {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("the key has %d bytes; the SHA-256 of a public key has %d", len(b.Key), PeerKeySize), "type what peer key shows on the other node"}
	}
	p := Peer{Name: b.Name, Address: at.String(), Key: b.Key, Added: c.At}
	for _, o := range s.Peers {
		switch {
		case o.Name == p.Name:
			return Result{}, &Refused{c.Kind, "the peer " + p.Name + " exists", "to change its address or key, peer remove it first"}
		case subtle.ConstantTimeCompare(o.Key, p.Key) == 1:
			return Result{}, &Refused{c.Kind, "this key is the peer " + o.Name + "'s", "each node has a key of its own"}
		case o.Address == p.Address:
			return Result{}, &Refused{c.Kind, "this address is the peer " + o.Name + "'s", "see peer list"}
		}
	}
	if len(s.Peers) >= MaxPeers {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("%d peers are recorded, the limit", MaxPeers), "remove one first"}
	}
	put(&s.Peers, p.Name, p)
	return Result{Message: fmt.Sprintf("peer %s at %s added; it must add this node too, with this node's peer key", p.Name, p.Address), Subject: p.Name}, nil
}

func applyPeerRemove(s *State, c Command) (Result, error) {
	b, err := decode[ByName](c)
	if err != nil {
		return Result{}, err
	}
	if _, ok := s.Peers[b.Name]; !ok {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("there is no peer %.64q", b.Name), "see peer list"}
	}
	delete(s.Peers, b.Name)
	return Result{Message: "peer " + b.Name + " removed: its connections are cut", Subject: b.Name}, nil
}
