package supervise_test

import (
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"guardhouse/appliance/rpc"
	"guardhouse/appliance/supervise"
)

// TestAServiceBelievesOnlyTheProcessItMeans: whoever manages to listen at another process's place is not that process.
func TestAServiceBelievesOnlyTheProcessItMeans(t *testing.T) {
	c := supervise.Flags(flag.NewFlagSet("", flag.ContinueOnError), rpc.HGS, nil)
	c.RunDir = t.TempDir()
	me := uint32(os.Getuid())
	if err := os.Mkdir(filepath.Dir(c.Socket(rpc.Ledger)), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := rpc.Listen(c.Socket(rpc.Ledger))
	if err != nil {
		t.Fatal(err)
	}
	s := rpc.NewServer(rpc.UIDs{rpc.HGS: me})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ctx, l) }()
	defer func() { cancel(); <-done }()
	for uid, want := range map[uint32]error{me: rpc.ErrUnknownMethod, me + 1: rpc.ErrNotAllowed} {
		c.UIDs = rpc.UIDs{rpc.Ledger: uid}
		if _, err := rpc.LedgerStatus.Call(ctx, c.Client(rpc.Ledger), rpc.Empty{}); !errors.Is(err, want) {
			t.Errorf("the ledger should have uid %d, its socket is served by %d: %v, want %v", uid, me, err, want)
		}
	}
}
