package rpc

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// BenchmarkCall is a call that does nothing, with as many bytes as a decryption's, by some callers at once: beside a token's operation of half
// a millisecond or more this is what rpc itself costs. Caller and server share this process.
func BenchmarkCall(b *testing.B) {
	type message struct {
		Ref  string `json:"ref"`
		Data []byte `json:"data"`
	}
	method := Method[message, message]{"test.Bench"}
	path := filepath.Join(b.TempDir(), "s")
	l, err := Listen(path)
	if err != nil {
		b.Fatal(err)
	}
	s := NewServer(UIDs{"me": uint32(os.Getuid())})
	Handle(s, method, func(_ context.Context, _ Caller, m message) (message, error) { return message{Data: m.Data}, nil }, "me")
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ctx, l) }()
	defer func() { cancel(); <-done }()
	m := message{Ref: fmt.Sprintf("%064x", 1), Data: make([]byte, 256)}
	for _, callers := range []int{1, 4, 32} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			c := NewClient(path)
			defer c.Close()
			b.ReportAllocs()
			b.SetParallelism((callers + 1) / 2) // times GOMAXPROCS, which is 2 on the reference machine
			if callers == 1 {
				for b.Loop() {
					if _, err := method.Call(ctx, c, m); err != nil {
						b.Fatal(err)
					}
				}
				return
			}
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := method.Call(ctx, c, m); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
