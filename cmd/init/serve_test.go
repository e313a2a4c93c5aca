package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
	"guardhouse/appliance/supervise"
	"guardhouse/appliance/volume"
)

// TestInitAnswersWhileTheNodeStops: the ledger's last call is for the time's floor in the TPM. A caller that is not the ledger is refused by an
// answer, which is all that this needs.
func TestInitAnswersWhileTheNodeStops(t *testing.T) {
	n := testNode(t)
	l, err := rpc.Listen(filepath.Join(t.TempDir(), "init.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.answer(ctx, l) }()
	c := rpc.NewProvedClient(l.Addr().String(), uint32(os.Getuid()))
	defer c.Close()
	ask := func() error {
		limited, stop := context.WithTimeout(context.Background(), 5*time.Second)
		defer stop()
		_, err := rpc.InitTimeFloor.Call(limited, c, time.Unix(1.8e9, 0))
		return err
	}
	if err := ask(); !errors.Is(err, rpc.ErrNotAllowed) {
		t.Fatalf("before the end: %v", err)
	}
	cancel()
	select {
	case err := <-done:
		t.Fatalf("init stopped answering when the node began to stop: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	if err := ask(); !errors.Is(err, rpc.ErrNotAllowed) {
		t.Errorf("while the node stops: %v", err)
	}
	l.Close()
	<-done
}

// TestATimeIsApprovedByNobodyWithoutTheRecoverySecret: the clock is not even asked.
func TestATimeIsApprovedByNobodyWithoutTheRecoverySecret(t *testing.T) {
	n := &node{log: supervise.NewLog(rpc.BootTime), problems: map[string]policy.Problem{}, release: sandbox.ReleaseInfo{Version: "1"}}
	r := rpc.TimeRecoverRequest{Texts: [][]byte{[]byte("AAAA-BBBB")}, UTC: time.Unix(1.8e9, 0), Boot: "boot"}
	if _, err := n.timeRecover(t.Context(), r); !errors.Is(err, rpc.ErrUnavailable) {
		t.Errorf("without a volume: %v", err)
	}
	n.wait = rpc.BootTime() + time.Minute // after a wrong one
	n.volume = new(volume.Volume)
	if _, err := n.timeRecover(t.Context(), r); !errors.Is(err, rpc.ErrUnavailable) {
		t.Errorf("too soon after a wrong one: %v", err)
	}
}
