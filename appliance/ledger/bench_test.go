package ledger

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"math/big"
	"testing"

	"guardhouse/appliance/policy"
)

// someHostKey is a public key of the right form whose private half nobody knows.
func someHostKey() []byte {
	m := make([]byte, 256)
	rand.Read(m)
	m[0], m[255] = m[0]|0x80, m[255]|1
	spki, _ := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: new(big.Int).SetBytes(m), E: 65537})
	return spki
}

// BenchmarkPropose registers a host where there are that many already.
func BenchmarkPropose(b *testing.B) {
	for _, hosts := range []int{0, 10000} {
		b.Run(fmt.Sprint("hosts=", hosts), func(b *testing.B) {
			n := newBench(b)
			ada := n.setUp()
			s, _ := n.l.Snapshot()
			for i := range hosts {
				spki := someHostKey()
				id := policy.HostID(spki)
				s.State.Hosts[id] = policy.Host{ID: id, Name: fmt.Sprint("old", i), HostKey: spki, Class: "default"}
			}
			i := 0
			for b.Loop() {
				i++
				if _, _, err := n.l.Propose(context.Background(), command(ada, policy.CmdHostAdd, policy.HostAdd{Name: fmt.Sprint("new", i), HostKey: someHostKey()})); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
