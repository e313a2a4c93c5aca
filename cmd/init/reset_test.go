package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/supervise"
)

func TestFactoryResetEndsNothingWhileAKeyIsLeft(t *testing.T) {
	gone, left := rpc.ResetKey{Ref: policy.KeyRef(strings.Repeat("a", 64)), Label: "one", ID: "0a"}, rpc.ResetKey{Ref: policy.KeyRef(strings.Repeat("b", 64)), Label: "two", ID: "0b"}
	for name, c := range map[string]struct {
		reply rpc.DestroyKeysReply
		err   error
	}{
		"one is left":        {rpc.DestroyKeysReply{Token: "vault", Gone: []rpc.ResetKey{gone}, Left: []rpc.ResetKey{left}, Why: "the link broke"}, nil},
		"the ledger refuses": {rpc.DestroyKeysReply{}, rpc.ErrRefused.With("not an owner")},
	} {
		t.Run(name, func(t *testing.T) {
			s := rpc.NewServer(rpc.UIDs{rpc.Init: uint32(os.Getuid())})
			rpc.Handle(s, rpc.LedgerDestroyKeys, func(_ context.Context, _ rpc.Caller, r rpc.DestroyKeysRequest) (rpc.DestroyKeysReply, error) {
				if len(r.Refs) != 2 || r.Actor.Name != "ada" {
					t.Errorf("asked for %+v", r)
				}
				return c.reply, c.err
			}, rpc.Init)
			path := filepath.Join(t.TempDir(), "ledger.sock")
			l, err := rpc.Listen(path)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan struct{})
			go func() { defer close(done); s.Serve(ctx, l) }()
			t.Cleanup(func() { cancel(); <-done })
			n := &node{log: supervise.NewLog(rpc.BootTime), problems: map[string]policy.Problem{}, power: make(chan powerRequest, 1)}
			r, err := n.factoryReset(t.Context(), rpc.NewClient(path), rpc.FactoryResetRequest{Actor: policy.Actor{Name: "ada"}, Shut: true, Destroy: []policy.KeyRef{gone.Ref, left.Ref}})
			if r.Ends || n.reset != nil || len(n.power) != 0 || (c.err != nil) != errors.Is(err, rpc.ErrRefused) {
				t.Errorf("%+v %v: the node ends", r, err)
			}
			if len(n.keysGone) != len(c.reply.Gone) || len(c.reply.Gone) == 1 && !strings.Contains(n.keysGone[0], "one, id 0a") {
				t.Errorf("the report says %q", n.keysGone)
			}
		})
	}
}
