// Clock asks time servers and is the only source of trusted time on a node: it makes policy.TrustedTime and streams it to the other
// processes. It alone has CAP_SYS_TIME. When it dies the others keep the last value until that expires.
//
// Flags: --run-dir, --uids (see appliance/supervise), --build-epoch (unix seconds; times before it are refused; default from
// /etc/os-release's BUILD_EPOCH).
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"time"

	"guardhouse/appliance/clock"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/sandbox"
	"guardhouse/appliance/supervise"
)

func main() {
	child := supervise.Flags(flag.CommandLine, rpc.Clock, sandbox.UIDs())
	epoch := flag.Int64("build-epoch", sandbox.Release().BuildEpoch, "unix seconds; no time before it is believed")
	flag.Parse()
	if err := run(child, time.Unix(*epoch, 0)); err != nil {
		fmt.Fprintln(os.Stderr, "clock:", err)
		os.Exit(1)
	}
}

func run(child *supervise.Child, floor time.Time) error {
	ctx, cancel := supervise.Context()
	defer cancel()
	boot, err := clock.BootID()
	if err != nil {
		return err
	}
	k := clock.New()
	k.Query, k.BootTime, k.Boot, k.Floor = clock.QueryNTP(rpc.BootTime), rpc.BootTime, boot, floor
	k.Step, k.Log = clock.StepRealtime, child.Logf

	s := rpc.NewServer(child.UIDs)
	rpc.ServeTime(s, func(ctx context.Context, _ rpc.Caller, _ rpc.Empty, send func(policy.TrustedTime) error) error {
		for {
			t, changed := k.Current()
			if err := send(t); err != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-changed:
			}
		}
	}, rpc.HGS, rpc.Ledger, rpc.HSM, rpc.Console, rpc.Init)
	rpc.Handle(s, rpc.ClockStatus, func(context.Context, rpc.Caller, rpc.Empty) (rpc.ClockStatusReply, error) {
		return status(k), nil
	}, rpc.Console)

	go k.Run(ctx)
	go rpc.LedgerWatch.Follow(ctx, child.Client(rpc.Ledger), rpc.Empty{}, func(snap policy.Snapshot) error {
		k.SetServers(snap.State.Nodes[snap.NodeID].TimeServers)
		return nil
	}, nil)
	go supervise.Ready(ctx, "asking time servers", func() error { return nil })
	return child.Serve(ctx, s)
}

func status(k *clock.Keeper) rpc.ClockStatusReply {
	t, sources, problem := k.Status()
	now := rpc.BootTime()
	var r rpc.ClockStatusReply
	r.Trusted.Earliest, r.Trusted.Latest, r.Trusted.OK = t.At(now)
	if r.Trusted.OK {
		r.Trusted.Sources, r.Trusted.ExpiresIn = t.Sources, t.Expires-now
	}
	for _, s := range sources {
		cs := rpc.ClockSource{Address: s.Address, State: s.State}
		if s.Sample != nil {
			cs.Offset, cs.Bound, cs.Age = s.Sample.Offset, s.Sample.Distance, now-s.Sample.Boot
		}
		if s.Err != nil {
			cs.Error = s.Err.Error()
		}
		r.Sources = append(r.Sources, cs)
	}
	if !r.Trusted.OK {
		r.Problems = append(r.Problems, policy.Problem{Kind: "time-untrusted", What: "the time is not trusted: " + problem,
			Remedy: "check the time servers and the network (time status, network show); nothing is signed until then"})
	} else if len(sources) < 3 {
		r.Problems = append(r.Problems, policy.Problem{Kind: "time-few-sources", What: fmt.Sprintf("only %d time servers are configured; one that lies can't be outvoted", len(sources)),
			Remedy: "configure at least three (time set)"})
	}
	return r
}
