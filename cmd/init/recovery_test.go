package main

import (
	"testing"
	"time"

	"guardhouse/appliance/disk"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/supervise"
	"guardhouse/appliance/volume"
)

func TestWrongRecoverySecretsCostTimeAndSlipsDoNot(t *testing.T) {
	n := &node{log: supervise.NewLog(rpc.BootTime), problems: map[string]policy.Problem{}}
	slip, wrong := &disk.Error{Kind: volume.KindMistyped}, &disk.Error{Kind: volume.KindWrongSecret}
	n.tried(slip)
	if err := n.patience(); err != nil {
		t.Errorf("after a slip: %v", err)
	}
	var last time.Duration
	for i := range 40 {
		n.tried(wrong)
		left := n.wait - rpc.BootTime()
		if n.patience() == nil || left > mostWait || left < last-time.Second {
			t.Fatalf("after %d wrong ones: wait %v, before that %v", i+1, left, last)
		}
		last = left
	}
	if last < mostWait-5*time.Second {
		t.Errorf("40 wrong ones cost %v", last)
	}
	n.wait = 0
	n.tried(nil)
	n.tried(wrong)
	if left := n.wait - rpc.BootTime(); left > firstWait {
		t.Errorf("the first wrong one after a right one costs %v", left)
	}
}
