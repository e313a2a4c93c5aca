package main

import (
	"context"
	"time"

	"guardhouse/appliance/hsm"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/appliance/supervise"
)

// report keeps init's status line true, and has the audit chain told when the
// token becomes ready, is lost or stops.
func report(ctx context.Context, k *hsm.Keeper, attended func() bool, tell func(hsm.Status)) {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	line, state := "", hsm.StateLocked
	for {
		s := k.Status()
		if now := statusLine(s, attended()); now != line {
			line = now
			supervise.Status("%s", line)
		}
		if s.State != state && (s.State == hsm.StateReady || s.State == hsm.StateFailed || state == hsm.StateReady) {
			tell(s)
		}
		state = s.State
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// waitingForPIN is what an attended node says until somebody has typed the PIN.
const waitingForPIN = "waiting for PIN: hsm unlock"

func statusLine(s hsm.Status, attended bool) string {
	line := "token " + string(s.State)
	if attended && s.State == hsm.StateLocked {
		line += ": " + waitingForPIN
	}
	if s.State != hsm.StateReady && s.Last != nil {
		line += ": " + s.Last.What()
	}
	return line
}

// chroniclePause bounds how often a flapping token writes to the audit chain.
const chroniclePause = 10 * time.Second

// chronicle returns a function that hands a state to the audit chain without
// waiting. Of the states that come within chroniclePause only the last is
// written. An entry that the ledger cannot take is in the log anyway.
func chronicle(ctx context.Context, child *supervise.Child, ledger *rpc.Client) func(hsm.Status) {
	states := make(chan hsm.Status, 1)
	go func() {
		clock := rpc.WatchTime(ctx, child.RunDir, child.UIDs[rpc.Clock])
		for {
			select {
			case <-ctx.Done():
				return
			case s := <-states:
				call, cancel := context.WithTimeout(ctx, 5*time.Second)
				e := entry(s)
				e.At, e.BootTime = clock.Stamp(), rpc.BootTime().Milliseconds()
				if _, err := rpc.LedgerAudit.Call(call, ledger, e); err != nil && ctx.Err() == nil {
					child.Logf("audit entry not written: %v", err)
				}
				cancel()
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(chroniclePause):
			}
		}
	}()
	return func(s hsm.Status) {
		select {
		case <-states: // a newer state replaces one that still waits
		default:
		}
		states <- s
	}
}

// entry describes a state for the audit chain.
func entry(s hsm.Status) policy.AuditEntry {
	e := policy.AuditEntry{Kind: policy.AuditSystem, Subject: s.Token.Label, Action: "hsm", Outcome: "ok", Detail: "token " + string(s.State)}
	if s.Token.Serial != "" {
		e.Facts = map[string]string{"serial": s.Token.Serial}
	}
	if s.State != hsm.StateReady && s.Last != nil {
		e.Outcome, e.Detail, e.Remedy = string(s.Last.Class), statusLine(s, false), s.Last.Remedy
	}
	return e
}
