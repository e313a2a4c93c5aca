package main

import (
	"context"
	"time"

	"guardhouse/appliance/clock"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// server answers the other processes.
func server(uids rpc.UIDs, k *clock.Keeper, admins *administered) *rpc.Server {
	s := rpc.NewServer(uids)
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
		return status(k.Status()), nil
	}, rpc.Console, rpc.Ledger)
	rpc.Handle(s, rpc.ClockApprove, func(_ context.Context, c rpc.Caller, r rpc.ClockApproveRequest) (rpc.ClockStatusReply, error) {
		// Init has checked the recovery secret, which stands for administrators only while none can be asked, and for nothing but a time.
		if c.Process == rpc.Init && (admins.decide() || r.Kind != rpc.ApproveManual) {
			return rpc.ClockStatusReply{}, rpc.ErrNotAllowed.With("this node has administrators: they decide about its time (time approve)")
		}
		err := k.Approve(clock.Approval{Kind: r.Kind, UTC: r.UTC, Boot: r.Boot, BootTime: r.BootTime, Asked: r.Asked, By: r.By})
		if err != nil {
			return rpc.ClockStatusReply{}, rpc.ErrRefused.With("%v", err)
		}
		return status(k.Status()), nil
	}, rpc.Ledger, rpc.Init)
	rpc.Handle(s, rpc.ClockFloor, func(_ context.Context, _ rpc.Caller, r rpc.ClockFloorRequest) (rpc.ClockFloorReply, error) {
		floor, from := k.Floor(r.Floor, r.From)
		return rpc.ClockFloorReply{Floor: floor, From: from}, nil
	}, rpc.Ledger)
	return s
}

func status(s clock.Status) rpc.ClockStatusReply {
	r := rpc.ClockStatusReply{State: string(s.State), Reason: s.Reason, Why: s.Why(), Problems: s.Problems(), Bound: s.Bound(), Limit: s.Limit,
		StopsAt: s.StopsAt(), RatePPM: s.Rate, DriftPPM: s.Drift, SlewPPM: s.Slew, Error: s.Error, Floor: s.Floor, FloorFrom: s.FloorFrom,
		Boot: s.Boot, BootTime: s.Now.Boot, SinceLock: s.SinceLock, LockedAt: s.LockedAt}
	r.Trusted.Earliest, r.Trusted.Latest, r.Trusted.OK = s.Trusted.At(s.Now.Boot)
	if r.Trusted.OK {
		r.Trusted.Sources, r.Trusted.ExpiresIn, r.Trusted.Manual = s.Trusted.Sources, s.Trusted.Expires-s.Now.Boot, s.Trusted.Manual
	}
	r.Decide = s.Decide()
	for _, src := range s.Sources {
		cs := rpc.ClockSource{Address: src.Address, State: src.State, Key: src.Key, Jitter: src.Jitter, Poll: src.Poll, Peer: src.Peer}
		if n := src.Sample; n != nil {
			cs.Age, cs.Bound, cs.Stratum, cs.Authenticated = s.Now.Raw-n.Raw, n.Distance, n.Stratum, n.Verified
			cs.Says = n.UTC.Add(cs.Age).UTC().Round(0)
			cs.Offset = cs.Says.Sub(s.Now.Wall)
		}
		if src.Err != nil {
			cs.Error = src.Err.Error()
		}
		r.Sources = append(r.Sources, cs)
	}
	return r
}

// teller writes the clock's events into the audit, in the order in which they happened, for as long as it takes.
type teller struct {
	k      *clock.Keeper
	ledger *rpc.Client
	events chan policy.AuditEntry
}

func newTeller(k *clock.Keeper, ledger *rpc.Client) *teller {
	return &teller{k, ledger, make(chan policy.AuditEntry, 64)}
}

// event is called with the keeper's lock held: it must not look at the keeper. A queue that is full loses the newest: a clock that is
// suspect 64 times while the ledger does not answer has said enough.
func (t *teller) event(action, detail string) {
	e := policy.AuditEntry{Kind: policy.AuditSystem, BootTime: rpc.BootTime().Milliseconds(), Action: "time-" + action, Outcome: "ok", Detail: detail}
	select {
	case t.events <- e:
	default:
	}
}

func (t *teller) run(ctx context.Context) {
	for {
		var e policy.AuditEntry
		select {
		case <-ctx.Done():
			return
		case e = <-t.events:
		}
		now, _ := t.k.Current()
		e.At = now.Stamp(rpc.BootTime())
		for pause := time.Second; ; pause = min(2*pause, 15*time.Second) {
			if _, err := rpc.LedgerAudit.Call(ctx, t.ledger, e); err == nil {
				break
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
		}
	}
}
