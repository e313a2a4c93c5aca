package main

import (
	"context"
	"time"

	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
)

// clockAnswers is how long the clock may take over an approval.
const clockAnswers = 5 * time.Second

// timeRecover tells the clock a time by the word of whoever typed the recovery secret at the machine. It is checked here, where the volume is, so
// that the console alone can't say what time it is. The clock takes it only while the ledger, which asks administrators, does not answer or knows of none.
func (n *node) timeRecover(ctx context.Context, r rpc.TimeRecoverRequest) (rpc.ClockStatusReply, error) {
	id, err := n.checkRecovery(r.Texts)
	if err != nil {
		return rpc.ClockStatusReply{}, err
	}
	clock := rpc.NewProvedClient(rpc.SocketPath(rpc.SocketDir, rpc.Clock), sandbox.UIDs()[rpc.Clock])
	defer clock.Close()
	ctx, cancel := context.WithTimeout(ctx, clockAnswers)
	defer cancel()
	st, err := rpc.ClockApprove.Call(ctx, clock, rpc.ClockApproveRequest{Kind: rpc.ApproveManual, UTC: r.UTC, Boot: r.Boot, BootTime: r.BootTime,
		Asked: r.BootTime, By: []string{"recovery secret " + id}})
	if err == nil {
		n.logf("the time %s was approved by recovery secret %s", r.UTC.UTC().Format(time.RFC3339), id)
	}
	return st, err
}

// checkRecovery gives the name of the recovery secret of the open volume if texts are it.
func (n *node) checkRecovery(texts [][]byte) (id string, err error) {
	n.opening.Lock()
	defer n.opening.Unlock()
	if n.volume == nil {
		return "", rpc.ErrUnavailable.With("the data volume is not open")
	}
	if err := n.patience(); err != nil {
		return "", err
	}
	err = n.volume.CheckRecovery(texts)
	n.tried(err)
	if err != nil {
		return "", refusal(err)
	}
	known, err := n.volume.Recovery()
	return known.ID, refusal(err)
}
