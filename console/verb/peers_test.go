package verb_test

import (
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/console/verb/verbtest"
)

func TestNodesAreMadePeersByTypingAKey(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	key := strings.Repeat("9f86d081", 8)
	if text := flat(t, s, "peer key", ""); !strings.Contains(text, "peer add node1 10.0.2.15:7443 "+verbtest.PeerKey) {
		t.Errorf("what to type there is not shown: %s", text)
	}
	if text := mustCall(t, s, "peer list", ""); !strings.Contains(text, "knows no other node") {
		t.Error(text)
	}
	for line, says := range map[string]string{
		"peer add node2 node2.example.test " + key:      "names are not looked up",
		"peer add node2 192.0.2.7 " + key[:60]:          "64 hexadecimal digits",
		"peer add node2 192.0.2.7 " + key + " 00":       "64 hexadecimal digits",
		"peer add node2 0.0.0.0 " + key:                 "not the address of one machine",
		"peer add node2 192.0.2.7:0 " + key:             "not the address of one machine",
		"peer remove node2":                             "there is no peer",
		"peer add node/2 192.0.2.7 " + key:              "",
		"peer add node2 192.0.2.7 " + key + "\x1b[2J..": "",
	} {
		if _, err := call(s, line, ""); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", line, err)
		}
	}
	if text := mustCall(t, s, "peer add node2 192.0.2.7 "+key[:32]+" "+strings.ToUpper(key[32:]), ""); !strings.Contains(text, "peer add there") {
		t.Error(text)
	}
	snap, _ := f.Node.Snapshot()
	if p := snap.State.Peers["node2"]; p.Address != "192.0.2.7:7443" || p.Fingerprint() != key {
		t.Fatalf("%+v", p)
	}
	mustCall(t, s, "peer add node3 2001:db8::7 "+strings.Repeat("ab", 32), "")
	mustCall(t, s, "peer add node4 192.0.2.9:7444 "+strings.Repeat("cd", 32), "")
	mustCall(t, s, "peer add node5 192.0.2.10 "+strings.Repeat("ef", 32), "")
	f.Peered("node2", rpc.PeerStatus{State: rpc.PeerConnected, For: time.Hour, Compared: true, Skew: -12 * time.Millisecond, Uncertainty: 31 * time.Millisecond, Age: 9 * time.Second,
		Clock: rpc.PeerClockTrusted, Node: "node2"}, 0)
	f.Peered("node3", rpc.PeerStatus{State: rpc.PeerRefused, For: 2 * time.Minute, Compared: true, Skew: 3214 * time.Millisecond, Uncertainty: 31 * time.Millisecond, Age: 40 * time.Second, Off: true,
		Clock: rpc.PeerClockTrusted, Node: "vault-b", Error: "its clock is 3.214 s ahead of this node's, and both bounds explain only 0.031 s"}, 0)
	f.Peered("node4", rpc.PeerStatus{State: rpc.PeerConnected, For: 3 * time.Hour, Compared: true, Skew: time.Minute, Uncertainty: 31 * time.Millisecond, Age: 8 * time.Second, Off: true,
		Clock: rpc.PeerClockManual, Node: "node4"}, 0)
	f.Peered("node5", rpc.PeerStatus{State: rpc.PeerUnreachable, For: 20 * time.Minute, Error: "192.0.2.10:7443: connect: connection refused"}, 17)
	text := mustCall(t, s, "peer list", "")
	checkWidth(t, "peer list", text)
	golden(t, "peers.txt", "guardhouse> peer key\n"+mustCall(t, s, "peer key", "")+"\nguardhouse> peer list\n"+text)
	mustCall(t, s, "peer remove node2", "")
	if text := mustCall(t, s, "peer list", ""); strings.Contains(text, "192.0.2.7") {
		t.Error(text)
	}
}
