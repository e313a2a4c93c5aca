package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func TestWhichNodesThisOneKnowsIsAnOwnersChoice(t *testing.T) {
	s, actors := setUp(t)
	good := PeerAdd{Name: "node2", Address: "192.0.2.7:7443", Key: bytes.Repeat([]byte{7}, PeerKeySize)}
	owner := actors[AdminOwner]
	add := func(p PeerAdd) Command { return command(t, CmdPeerAdd, owner, p) }
	refused(t, s, command(t, CmdPeerAdd, actors[AdminOperator], good))
	refused(t, s, command(t, CmdPeerAdd, Actor{Door: DoorNode}, good))
	refused(t, s, command(t, CmdPeerRemove, owner, ByName{"node2"}))
	for name, spoil := range map[string]func(*PeerAdd){
		"no name":     func(p *PeerAdd) { p.Name = "" },
		"escape":      func(p *PeerAdd) { p.Name = "\x1b[2J" },
		"host name":   func(p *PeerAdd) { p.Address = "node2.example.test:7443" },
		"port 0":      func(p *PeerAdd) { p.Address = "192.0.2.7:0" },
		"no address":  func(p *PeerAdd) { p.Address = "" },
		"any address": func(p *PeerAdd) { p.Address = "0.0.0.0:7443" },
		"any v6":      func(p *PeerAdd) { p.Address = "[::]:7443" },
		"multicast":   func(p *PeerAdd) { p.Address = "[ff02::1]:7443" },
		"broadcast":   func(p *PeerAdd) { p.Address = "255.255.255.255" },
		"zone":        func(p *PeerAdd) { p.Address = "[fe80::1%eth0]:7443" },
		"half":        func(p *PeerAdd) { p.Address = "192.0.2.7]" },
		"long":        func(p *PeerAdd) { p.Address = strings.Repeat("1", 300) },
		"no key":      func(p *PeerAdd) { p.Key = nil },
		"short key":   func(p *PeerAdd) { p.Key = p.Key[:20] },
		"long key":    func(p *PeerAdd) { p.Key = make([]byte, 64) },
	} {
		p := good
		spoil(&p)
		t.Run(name, func(t *testing.T) { refused(t, s, add(p)) })
	}
	old, _ := json.Marshal(s)
	if bytes.Contains(old, []byte("peers")) {
		t.Error("a state without peers is written as no older version wrote it")
	}
	s, r := must(t, s, add(good))
	if p := s.Peers["node2"]; p.Address != good.Address || p.Fingerprint() != strings.Repeat("07", PeerKeySize) || p.Added.Earliest == 0 || r.Subject != "node2" {
		t.Fatalf("%+v, %+v", p, r)
	}
	for name, spoil := range map[string]func(*PeerAdd){
		"same name":    func(p *PeerAdd) { p.Address, p.Key = "192.0.2.8:7443", make([]byte, PeerKeySize) },
		"same key":     func(p *PeerAdd) { p.Name, p.Address = "node3", "192.0.2.8:7443" },
		"same address": func(p *PeerAdd) { p.Name, p.Address, p.Key = "node3", "::ffff:192.0.2.7", make([]byte, PeerKeySize) },
	} {
		p := good
		spoil(&p)
		t.Run(name, func(t *testing.T) { refused(t, s, add(p)) })
	}
	for i := 1; i < MaxPeers; i++ {
		s, _ = must(t, s, add(PeerAdd{Name: fmt.Sprint("n", i), Address: fmt.Sprintf("2001:db8::%d", i), Key: bytes.Repeat([]byte{byte(100 + i)}, PeerKeySize)}))
	}
	if a := s.Peers["n1"].Address; a != "[2001:db8::1]:7443" {
		t.Errorf("an address without port became %s", a)
	}
	refused(t, s, add(PeerAdd{Name: "more", Address: "192.0.2.99", Key: make([]byte, PeerKeySize)}))
	before := s
	s, _ = must(t, s, command(t, CmdPeerRemove, owner, ByName{"node2"}))
	if _, ok := s.Peers["node2"]; ok || len(before.Peers) != MaxPeers {
		t.Error("it is still there, or gone from the state before too")
	}
	var back State
	if err := json.Unmarshal(old, &back); err != nil || back.Peers != nil {
		t.Errorf("a state of an older version: %v, %v", back.Peers, err)
	}
	must(t, back, add(good))
}

func TestPeerKeysAreReadAsTheyAreShown(t *testing.T) {
	key := bytes.Repeat([]byte{0xab, 0xcd}, 16)
	shown := Peer{Key: key}.Fingerprint()
	var pairs []string
	for i := 0; i < len(shown); i += 2 {
		pairs = append(pairs, shown[i:i+2])
	}
	for _, s := range []string{shown, strings.ToUpper(shown), strings.Join(pairs, ":"), strings.Join(pairs, " ")} {
		if b, err := ParsePeerKey(s); err != nil || !bytes.Equal(b, key) {
			t.Errorf("%q: %x, %v", s, b, err)
		}
	}
	for _, s := range []string{"", shown[:62], shown + "00", strings.Replace(shown, "a", "g", 1), strings.Repeat(" ", 1<<20)} {
		if _, err := ParsePeerKey(s); err == nil {
			t.Errorf("%.80q was taken for a key", s)
		}
	}
}
