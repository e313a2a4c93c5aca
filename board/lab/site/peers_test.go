//go:build qemu

package site

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/cluster"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// knowsAnotherNode has this test be another node: it connects to the port of peers, through the fence that holds the ledger, and both see
// by how much the other's clock is ahead. The node itself may connect to nothing here.
func knowsAnotherNode(t *testing.T, s *stage) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	now := func() time.Duration { return time.Since(start) + time.Second }
	link, err := cluster.New(cluster.Config{Node: "lab", Key: key, Boot: "lab", BootTime: now, Raw: now, Rand: rand.Reader, Log: t.Logf,
		Why: func(context.Context) string { return "" },
		Time: func() policy.TrustedTime {
			return policy.TrustedTime{Boot: "lab", BootTime: now() - time.Millisecond, UTC: time.Now(), Bound: 100 * time.Millisecond, Expires: now() + time.Hour}
		}})
	if err != nil {
		t.Fatal(err)
	}
	defer link.Close()
	must := func(args ...string) []byte {
		t.Helper()
		out, err := s.Verb(within(t, time.Minute), nil, args...)
		if err != nil {
			t.Fatalf("%s: %v", strings.Join(args, " "), err)
		}
		return out
	}
	var shown struct{ SHA256 string }
	if err := json.Unmarshal(must("peer", "key", "--json"), &shown); err != nil {
		t.Fatal(err)
	}
	pin, err := hex.DecodeString(shown.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	link.Set(map[string]policy.Peer{"node": {Name: "node", Address: s.Node.Addr(policy.PeerPort), Key: pin}})
	must("peer", "add", "lab", "10.0.2.2", hex.EncodeToString(link.Key()))
	eventually(t, 90*time.Second, func(context.Context) error {
		here, _, _ := link.Status()
		if p := here[0]; p.State != rpc.PeerConnected || !p.Compared || p.Off || p.Skew.Abs() > time.Second {
			return fmt.Errorf("seen from outside: %+v", p)
		}
		var list struct{ Peers []rpc.PeerStatus }
		if err := json.Unmarshal(must("peer", "list", "--json"), &list); err != nil || len(list.Peers) != 1 {
			return fmt.Errorf("%v, %+v", err, list)
		}
		if p := list.Peers[0]; p.State != rpc.PeerConnected || !p.Compared || p.Off || !strings.Contains(p.Error, "only the other node can connect: 10.0.2.2:7443") {
			return fmt.Errorf("seen by the node: %+v", p)
		}
		return nil
	})
	must("peer", "remove", "lab")
	eventually(t, 30*time.Second, func(context.Context) error {
		if here, _, _ := link.Status(); here[0].State == rpc.PeerConnected {
			return errors.New("a removed peer is still connected")
		}
		return nil
	})
}
