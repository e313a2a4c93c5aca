package verb

import (
	"context"
	"fmt"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// peerVerbs are for the other nodes that this one knows.
func peerVerbs() []Verb {
	name := place("name", Word, "what the other node is called here")
	return []Verb{
		{Name: "peer key", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: peerKey,
			Help: "the key by which other nodes know this one", Example: "peer key",
			More: "Type it on the other node: peer add. Its private half lies on this node's sealed disk, which opens only for the signed image on this machine; that is what it proves, and no more."},
		{Name: "peer add", Role: owner, Doors: loggedIn, Risk: Changes, Run: peerAdd,
			Params: []Param{name, place("address", Text, fmt.Sprintf("its IP address, or IP:PORT; the port is %d unless given", policy.PeerPort)),
				{Name: "key", Kind: Rest, Help: "what peer key shows there: 64 hexadecimal digits"}},
			Help: "know another node: both compare their clocks from then on", Example: "peer add node2 192.0.2.7 9f86d081884c7d65...",
			More: "Both nodes must add each other. Each refuses the other while their clocks can't both be right, and says by how much; they try again by themselves. A peer may vote about the " +
				"time, but never leads, and gets nothing else. Names are not looked up: give the address of its interface with the role cluster."},
		{Name: "peer list", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: peerList,
			Help: "the other nodes, and by how much their clocks are ahead", Example: "peer list",
			More: "SKEW is the other clock less this node's, certain to +-: the bounds of both and half the way between them. A larger skew means that one of the two is wrong."},
		{Name: "peer remove", Role: owner, Doors: loggedIn, Risk: Changes, Run: peerRemove, Params: []Param{name},
			Help: "forget another node; its connections are cut at once", Example: "peer remove node2"},
	}
}

func peerKey(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	r, err := rpc.LedgerPeers.Call(ctx, s.Node.Ledger, rpc.Empty{})
	if err != nil {
		return Output{}, err
	}
	snap, _ := s.Node.Snapshot()
	node := snap.State.Nodes[snap.NodeID].Name
	p := new(Page).Line("Other nodes know %s, this node, by", node).Field("  SHA-256", "%s", r.Key)
	for _, a := range r.Addresses {
		p.Field("  address", "%s", a)
	}
	at := "ADDRESS"
	if len(r.Addresses) > 0 {
		at = r.Addresses[0]
	} else {
		p.Line("  Its address is not among its settings: see network show.")
	}
	p.Blank().Line("On the other node: peer add %s %s %s", node, at, r.Key)
	if !r.Listening {
		p.Line("! Nobody listens for other nodes here yet.").Line("  -> see status; it begins once the network fence stands")
	}
	return Output{Text: p, Value: struct {
		Node      string   `json:"node"`
		SHA256    string   `json:"sha256"`
		Addresses []string `json:"addresses"`
		Listening bool     `json:"listening"`
	}{node, r.Key, append([]string{}, r.Addresses...), r.Listening}}, nil
}

func peerAdd(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	at, err := policy.ParsePeerAddress(a.Get("address"))
	if err != nil {
		return Output{}, usage("ADDRESS can't be used: "+err.Error(), "write it like 192.0.2.7, or [2001:db8::7]:7443")
	}
	key, err := policy.ParsePeerKey(a.Get("key"))
	if err != nil {
		return Output{}, usage(err.Error(), "type what peer key shows on the other node")
	}
	out, _, err := propose(ctx, s, policy.CmdPeerAdd, policy.PeerAdd{Name: a.Get("name"), Address: at.String(), Key: key})
	if err != nil {
		return Output{}, err
	}
	out.Text.Line("Next: peer key here, peer add there, then peer list.")
	return out, nil
}

func peerRemove(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	out, _, err := propose(ctx, s, policy.CmdPeerRemove, policy.ByName{Name: a.Get("name")})
	return out, err
}

// PeerValue is a peer in --json. Durations are nanoseconds.
type PeerValue struct {
	Name        string        `json:"name"`
	Address     string        `json:"address"`
	SHA256      string        `json:"sha256"`
	State       string        `json:"state"`
	For         time.Duration `json:"for"`
	Error       string        `json:"error,omitempty"`
	Compared    bool          `json:"compared"`
	Skew        time.Duration `json:"skew"`
	Uncertainty time.Duration `json:"uncertainty"`
	Age         time.Duration `json:"age"`
	Off         bool          `json:"off"`
	Clock       string        `json:"clock,omitempty"`
	Reason      string        `json:"reason,omitempty"`
	Node        string        `json:"node,omitempty"`
}

func peerValue(p rpc.PeerStatus) PeerValue {
	return PeerValue{Name: p.Name, Address: p.Address, SHA256: p.Fingerprint(), State: p.State, For: p.For, Error: p.Error, Compared: p.Compared, Skew: p.Skew, Uncertainty: p.Uncertainty,
		Age: p.Age, Off: p.Off, Clock: p.Clock, Reason: p.Reason, Node: p.Node}
}

// row is the peer in the table: what is not known is a dash.
func (v PeerValue) row() []string {
	skew, unsure, age, clock := "-", "-", "-", "-"
	if v.Compared {
		skew, unsure, age = fmt.Sprintf("%+.3f s", v.Skew.Seconds()), fmt.Sprintf("%.3f s", v.Uncertainty.Seconds()), span(v.Age)
		if v.Off {
			skew += " OFF"
		}
	}
	if v.Clock != "" {
		clock = v.Clock
	}
	return []string{v.Name, v.State, skew, unsure, age, clock}
}

// remedy is what to do about it; "" = nothing.
func (v PeerValue) remedy() string {
	switch {
	case v.State == rpc.PeerRefused || v.Off:
		return "compare time status on both nodes with a clock that you trust, and cure the one that is wrong; refused nodes try again by themselves"
	case v.State == rpc.PeerUnreachable:
		return "see peer list there; both nodes need each other's address and key"
	}
	return ""
}

func peerList(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	r, err := rpc.LedgerPeers.Call(ctx, s.Node.Ledger, rpc.Empty{})
	if err != nil {
		return Output{}, err
	}
	value := struct {
		Peers     []PeerValue `json:"peers"`
		Strangers uint64      `json:"strangers"`
	}{[]PeerValue{}, r.Strangers}
	p := new(Page)
	var rows [][]string
	for _, st := range r.Peers {
		v := peerValue(st)
		value.Peers = append(value.Peers, v)
		rows = append(rows, v.row())
	}
	if len(rows) == 0 {
		p.Line("This node knows no other node: peer key and peer add, on both.")
	} else {
		p.Table([]string{"PEER", "STATE", "SKEW", "+-", "AGE", "ITS CLOCK"}, rows)
	}
	for _, v := range value.Peers {
		p.Blank().Line("%s: %s, %s for %s", v.Name, v.Address, v.State, span(v.For)).Field("  SHA-256", "%s", v.SHA256)
		if v.Node != "" && v.Node != v.Name {
			p.Field("  calls itself", "%s", v.Node)
		}
		p.Field("  why", "%s", v.Error)
		if v.Error == "" {
			p.Field("  its clock", "%s", v.Reason)
		}
		if v.Off && v.State == rpc.PeerConnected {
			p.Line("! Its clock and this node's can't both be right.")
		}
		if r := v.remedy(); r != "" {
			p.Line("  -> %s", r)
		}
	}
	if r.Strangers > 0 {
		p.Blank().Line("Connections refused because they proved no peer's key, since the start: %d", r.Strangers)
	}
	return Output{Text: p, Value: value}, nil
}
