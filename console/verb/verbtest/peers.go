package verbtest

import (
	"maps"
	"slices"
	"strings"
	"time"

	"guardhouse/appliance/rpc"
)

// PeerKey is the fingerprint by which other nodes know the fake.
var PeerKey = strings.Repeat("5f3ac91e", 8)

// peers tells of each recorded peer what Peered says, or that it was not tried yet.
func (f *Fake) peers(s *rpc.Server) {
	on(f, s, rpc.LedgerPeers, func(rpc.Empty) (rpc.PeersReply, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		r := rpc.PeersReply{Key: PeerKey, Addresses: []string{"10.0.2.15:7443"}, Listening: true, Strangers: f.strangers, Peers: []rpc.PeerStatus{}}
		for _, name := range slices.Sorted(maps.Keys(f.state.Peers)) {
			st, ok := f.peered[name]
			if !ok {
				st = rpc.PeerStatus{State: rpc.PeerWaiting, For: time.Second, Error: "it was not tried yet"}
			}
			st.Peer = f.state.Peers[name]
			r.Peers = append(r.Peers, st)
		}
		return r, nil
	})
}

// Peered says how a peer does, and how many strangers came.
func (f *Fake) Peered(name string, st rpc.PeerStatus, strangers uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.peered == nil {
		f.peered = map[string]rpc.PeerStatus{}
	}
	f.peered[name], f.strangers = st, strangers
}
