package ledger

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// Decisions about the time are the one thing that the clock can't know better than people, and a wrong one lets certificates be issued for
// years that have not come. So two administrators decide, each under their own name and key; one where only one exists. A proposal is bound to
// this boot, because it lies in memory only and names the boot id, and to rpc.ApprovalLife by CLOCK_BOOTTIME, which nobody can set.

// Actions in the audit. Nobody but the ledger may write entries with them.
const (
	actionTimeAsk    = "time.ask"
	actionTimeDecide = "time.approve"
	actionFloorLower = "time.floor.lower"
)

// ownActions are those that LedgerAudit takes from nobody: what is read back from the chain must have been written by the ledger.
var ownActions = []string{floorAction, actionTimeAsk, actionTimeDecide, actionFloorLower, actionKeyDestroy}

const (
	maxProposals = 8
	approver     = policy.AdminOperator
	clockLimit   = 5 * time.Second
)

// proposal is a decision that waits for another administrator.
type proposal struct {
	id    string
	req   rpc.TimeAskRequest
	asked time.Duration
}

type proposals struct {
	mu   sync.Mutex
	open []proposal // oldest first
}

// alive drops what is too old. p.mu is held.
func (p *proposals) alive(now time.Duration) []proposal {
	p.open = slices.DeleteFunc(p.open, func(o proposal) bool { return now-o.asked >= rpc.ApprovalLife })
	return p.open
}

func (o proposal) shown(now time.Duration) rpc.TimeProposal {
	t := rpc.TimeProposal{ID: o.id, Kind: o.req.Kind, UTC: o.req.UTC, By: o.req.Actor.Name, ExpiresIn: rpc.ApprovalLife - (now - o.asked)}
	if o.req.Kind == rpc.ApproveManual {
		t.Now = o.req.UTC.Add(now - o.req.BootTime)
	}
	return t
}

// approvers counts the administrators who may decide.
func approvers(s policy.State) (n int) {
	for _, a := range s.Admins {
		if a.Role.Includes(approver) {
			n++
		}
	}
	return n
}

// TimeAsk takes an administrator's decision about the time. It is carried out at once if nobody else could confirm it; else it waits.
func (l *Ledger) TimeAsk(ctx context.Context, req rpc.TimeAskRequest) (rpc.TimeDecision, error) {
	s, _ := l.Snapshot()
	if err := policy.Allowed(s.State, req.Actor, approver); err != nil {
		return rpc.TimeDecision{}, rpc.ErrRefused.With("%v", err)
	}
	if err := l.fits(ctx, req); err != nil {
		return rpc.TimeDecision{}, err
	}
	id := make([]byte, 4)
	if _, err := io.ReadFull(l.cfg.Rand, id); err != nil {
		return rpc.TimeDecision{}, fmt.Errorf("randomness: %w", err)
	}
	now := l.cfg.BootTime()
	o := proposal{hex.EncodeToString(id), req, now}
	if approvers(s.State) < 2 {
		return l.decide(ctx, o, req.Actor)
	}
	p := &l.proposals
	p.mu.Lock()
	defer p.mu.Unlock()
	// One of a kind for each administrator: the newer replaces the older.
	open := slices.DeleteFunc(p.alive(now), func(a proposal) bool { return a.req.Kind == req.Kind && a.req.Actor.Name == req.Actor.Name })
	if len(open) >= maxProposals {
		return rpc.TimeDecision{}, rpc.ErrRefused.With("%d decisions wait already; confirm one or wait until they expire", len(open))
	}
	if err := l.auditTime(ctx, actionTimeAsk, "ok", "asked: "+describe(o)+"; another administrator must confirm it", o, req.Actor); err != nil {
		return rpc.TimeDecision{}, err
	}
	p.open = append(open, o)
	t := o.shown(now)
	return rpc.TimeDecision{Waiting: &t, Message: "waits for another administrator: " + describe(o)}, nil
}

// TimeConfirm carries a decision out that another administrator asked for.
func (l *Ledger) TimeConfirm(ctx context.Context, req rpc.TimeConfirmRequest) (rpc.TimeDecision, error) {
	s, _ := l.Snapshot()
	if err := policy.Allowed(s.State, req.Actor, approver); err != nil {
		return rpc.TimeDecision{}, rpc.ErrRefused.With("%v", err)
	}
	p := &l.proposals
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.alive(l.cfg.BootTime()), func(o proposal) bool { return o.id == req.ID })
	if i < 0 {
		return rpc.TimeDecision{}, rpc.ErrRefused.With("no decision with the id %.16q waits: it expired after %s, was carried out, or was asked before the ledger started; ask again", req.ID, rpc.ApprovalLife)
	}
	o := p.open[i]
	if o.req.Actor.Name == req.Actor.Name || o.req.Actor.Key == req.Actor.Key {
		return rpc.TimeDecision{}, rpc.ErrRefused.With("you asked for this yourself; another administrator must confirm it")
	}
	if err := policy.Allowed(s.State, o.req.Actor, approver); err != nil {
		return rpc.TimeDecision{}, rpc.ErrRefused.With("who asked may not decide any more: %v", err)
	}
	d, err := l.decide(ctx, o, o.req.Actor, req.Actor)
	if err == nil {
		p.open = slices.Delete(p.open, i, i+1)
	}
	return d, err
}

// TimeAsked lists what waits.
func (l *Ledger) TimeAsked() []rpc.TimeProposal {
	now := l.cfg.BootTime()
	l.proposals.mu.Lock()
	defer l.proposals.mu.Unlock()
	list := []rpc.TimeProposal{}
	for _, o := range l.proposals.alive(now) {
		list = append(list, o.shown(now))
	}
	return list
}

// fits refuses what the clock would refuse, before anybody is asked to confirm it.
func (l *Ledger) fits(ctx context.Context, req rpc.TimeAskRequest) error {
	if l.cfg.Clock == nil {
		return rpc.ErrUnavailable.With("this node has no clock process")
	}
	now := l.cfg.BootTime()
	if req.Boot != l.cfg.Boot || req.BootTime > now || now-req.BootTime >= rpc.ApprovalLife {
		return rpc.ErrRefused.With("this was decided in another boot of the node, or too long ago; look at time status and decide again")
	}
	ctx, cancel := context.WithTimeout(ctx, clockLimit)
	defer cancel()
	st, err := rpc.ClockStatus.Call(ctx, l.cfg.Clock, rpc.Empty{})
	if err != nil {
		return err
	}
	switch req.Kind {
	case rpc.ApproveManual:
		if st.State == rpc.ClockLocked || st.State == rpc.ClockHoldover {
			return rpc.ErrRefused.With("the time is trusted by the word of time servers; an approved time is for when none is in reach")
		}
		if req.UTC.Before(st.Floor) {
			return rpc.ErrRefused.With("%s lies before %s, when this node knows that it was later (%s)", clockText(req.UTC), clockText(st.Floor), st.FloorFrom)
		}
	case rpc.ApproveRelease:
		if st.State != rpc.ClockSuspect {
			return rpc.ErrRefused.With("the time is not suspect (%s); there is nothing to release", st.State)
		}
	case rpc.ApproveFloor:
		if !req.UTC.Before(st.Floor) {
			return rpc.ErrRefused.With("the floor is %s; it rises by itself, only lowering it needs you", clockText(st.Floor))
		}
	default:
		return rpc.ErrRefused.With("there is no decision of the kind %.16q", req.Kind)
	}
	return nil
}

// decide records the decision, then has the clock obey, then keeps what the ledger itself must remember.
func (l *Ledger) decide(ctx context.Context, o proposal, by ...policy.Actor) (rpc.TimeDecision, error) {
	names := make([]string, len(by))
	for i, a := range by {
		names[i] = a.Name
	}
	last := by[len(by)-1]
	if err := l.auditTime(ctx, actionTimeDecide, "ok", fmt.Sprintf("approved by %s: %s", strings.Join(names, " and "), describe(o)), o, last); err != nil {
		return rpc.TimeDecision{}, err
	}
	call, cancel := context.WithTimeout(context.WithoutCancel(ctx), clockLimit)
	defer cancel()
	_, err := rpc.ClockApprove.Call(call, l.cfg.Clock, rpc.ClockApproveRequest{Kind: o.req.Kind, UTC: o.req.UTC, Boot: o.req.Boot, BootTime: o.req.BootTime, Asked: o.asked, By: names})
	if err != nil {
		return rpc.TimeDecision{}, errors.Join(err, l.auditTime(call, actionTimeDecide, "refused", "not carried out: "+err.Error(), o, last))
	}
	if o.req.Kind == rpc.ApproveFloor {
		err := l.auditTime(call, actionFloorLower, "ok", describe(o), o, last)
		if err == nil {
			err = l.lowerFloor(o.req.UTC)
		}
		if err != nil {
			return rpc.TimeDecision{}, fmt.Errorf("the clock's floor is lowered until the next start, the records' is not: %w", err)
		}
	}
	return rpc.TimeDecision{Message: "done: " + describe(o), By: names}, nil
}

func (l *Ledger) auditTime(ctx context.Context, action, outcome, detail string, o proposal, actor policy.Actor) error {
	facts := map[string]string{"decision": o.id, "kind": o.req.Kind, "boot": o.req.Boot}
	if !o.req.UTC.IsZero() {
		facts[factUTC], facts["bootTime"] = o.req.UTC.UTC().Format(time.RFC3339Nano), o.req.BootTime.String()
	}
	_, err := l.audit.Append(context.WithoutCancel(ctx), l.stamped(policy.AuditEntry{Kind: policy.AuditCommand, Actor: &actor, Action: action, Outcome: outcome, Detail: detail, Facts: facts}))
	return auditError(err)
}

const factUTC = "utc"

func describe(o proposal) string {
	switch o.req.Kind {
	case rpc.ApproveManual:
		return fmt.Sprintf("the time was %s at %s after the start of this boot", clockText(o.req.UTC), o.req.BootTime.Round(time.Second))
	case rpc.ApproveFloor:
		return "times from " + clockText(o.req.UTC) + " on are believed again"
	}
	return "the majority of time servers is believed again"
}

func clockText(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
