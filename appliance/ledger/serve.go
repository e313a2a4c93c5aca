package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"slices"

	"guardhouse/appliance/audit"
	"guardhouse/appliance/network"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// Register puts every ledger method on the server, each with the processes that may call it.
func (l *Ledger) Register(s *rpc.Server) {
	rpc.HandleSharedStream(s, rpc.LedgerWatch, func(ctx context.Context, _ rpc.Caller, _ rpc.Empty, send func(*rpc.Shared[policy.Snapshot]) error) error {
		return l.Watch(ctx, send)
	}, rpc.HGS, rpc.HSM, rpc.Clock, rpc.Console, rpc.Init)
	rpc.Handle(s, rpc.LedgerStatus, func(context.Context, rpc.Caller, rpc.Empty) (rpc.LedgerStatusReply, error) {
		return l.Status(), nil
	}, rpc.Console, rpc.Init)
	l.registerChanges(s)
	l.registerEvidence(s)
	l.registerAudit(s)
	rpc.Handle(s, rpc.LedgerForward, func(ctx context.Context, _ rpc.Caller, req rpc.ForwardRequest) (rpc.ForwardReply, error) {
		return l.Forward(ctx, req)
	}, rpc.Forward)
	l.registerUsage(s)
	l.registerSecrets(s)
	l.registerBoot(s)
	l.registerTime(s)
	l.registerPeers(s)
}

func (l *Ledger) registerTime(s *rpc.Server) {
	rpc.Handle(s, rpc.LedgerTimeAsk, func(ctx context.Context, _ rpc.Caller, req rpc.TimeAskRequest) (rpc.TimeDecision, error) {
		return l.TimeAsk(ctx, req)
	}, rpc.Console)
	rpc.Handle(s, rpc.LedgerTimeConfirm, func(ctx context.Context, _ rpc.Caller, req rpc.TimeConfirmRequest) (rpc.TimeDecision, error) {
		return l.TimeConfirm(ctx, req)
	}, rpc.Console)
	rpc.Handle(s, rpc.LedgerTimeKeys, func(context.Context, rpc.Caller, rpc.Empty) ([]rpc.TimeKey, error) { return l.TimeKeys() }, rpc.Clock)
	rpc.Handle(s, rpc.LedgerTimeKeySet, func(ctx context.Context, _ rpc.Caller, req rpc.TimeKeyRequest) (rpc.Empty, error) {
		return rpc.Empty{}, l.TimeKeySet(ctx, req)
	}, rpc.Console)
	rpc.Handle(s, rpc.LedgerTimeAsked, func(context.Context, rpc.Caller, rpc.Empty) ([]rpc.TimeProposal, error) {
		return l.TimeAsked(), nil
	}, rpc.Console)
}

func (l *Ledger) registerChanges(s *rpc.Server) {
	rpc.Handle(s, rpc.LedgerPropose, func(ctx context.Context, _ rpc.Caller, c policy.Command) (policy.Result, error) {
		// The console speaks for people only: it can't be the node, and setup has a method of its own that makes the keys.
		if c.Kind == policy.CmdSetup || c.Actor.Door != policy.DoorSerial && c.Actor.Door != policy.DoorSSH {
			return policy.Result{}, rpc.ErrRefused.With("this command does not come through this door")
		}
		if err := checkProposed(c); err != nil {
			return policy.Result{}, err
		}
		for kind, check := range map[policy.Kind]func(policy.Command) error{policy.CmdHTTPSInstall: l.checkHTTPSInstall, policy.CmdSyslogInstall: l.checkSyslogInstall,
			policy.CmdPeerAdd: l.checkPeerAdd} {
			if c.Kind == kind {
				if err := check(c); err != nil {
					return policy.Result{}, err
				}
			}
		}
		_, r, err := l.Propose(ctx, c)
		return r, err
	}, rpc.Console)
	rpc.Handle(s, rpc.LedgerMakeKeys, func(ctx context.Context, _ rpc.Caller, req rpc.MakeKeysRequest) (rpc.MakeKeysReply, error) {
		return l.MakeKeys(ctx, req)
	}, rpc.Console)
	l.registerKeys(s)
	rpc.Handle(s, rpc.LedgerObserve, func(_ context.Context, _ rpc.Caller, list []policy.Observation) (rpc.Empty, error) {
		l.observed.add(list)
		return rpc.Empty{}, nil
	}, rpc.HGS)
	rpc.Handle(s, rpc.LedgerObserved, func(_ context.Context, _ rpc.Caller, req rpc.ObservedRequest) ([]policy.Observation, error) {
		return l.observed.list(req.Kind, req.Subject, req.Limit), nil
	}, rpc.Console)
	rpc.Handle(s, rpc.LedgerSetupKey, func(context.Context, rpc.Caller, rpc.Empty) (rpc.SetupKeyReply, error) { return l.SetupKey() }, rpc.Console)
	rpc.Handle(s, rpc.LedgerSetupApply, func(ctx context.Context, _ rpc.Caller, req rpc.SetupRequest) (policy.Result, error) {
		return l.SetUp(ctx, req)
	}, rpc.Console)
}

// checkProposed refuses what the records would take but nobody may ask for like this.
func checkProposed(c policy.Command) error {
	switch c.Kind {
	case policy.CmdKeyAdd:
		// A key that somebody brings along would be given to tenants as the guardian's, or have its health certificates believed.
		return rpc.ErrRefused.With("keys are recorded with the methods that test them; use key new, key add or key import-pfx")
	case policy.CmdNodeSet:
		var b policy.NodeSet
		if json.Unmarshal(c.Body, &b) != nil || b.Network == nil {
			return nil // the records say what is wrong with it
		}
		// What init would not apply must not be on record, which would differ from the machine from then on.
		if err := network.Validate(*b.Network); err != nil {
			return rpc.ErrRefused.With("node.set refused: %v; compare with network show --toml", err)
		}
	}
	return nil
}

// auditKinds is what each process may record. The public face may not use the space that is kept for administrators.
var auditKinds = map[string][]policy.AuditKind{
	rpc.HGS:     {policy.AuditGrant, policy.AuditRefusal},
	rpc.Console: {policy.AuditCommand, policy.AuditLogin, policy.AuditSystem},
	rpc.Init:    {policy.AuditSystem},
	rpc.HSM:     {policy.AuditSystem},
	rpc.Clock:   {policy.AuditSystem},
}

// mayRecord refuses what a process has no business to record.
func mayRecord(process string, e policy.AuditEntry) error {
	if !slices.Contains(auditKinds[process], e.Kind) {
		return rpc.ErrRefused.With("%s may not record entries of the kind %.16q", process, e.Kind)
	}
	if slices.Contains(ownActions, e.Action) {
		return rpc.ErrRefused.With("%s is recorded by the ledger only", e.Action)
	}
	if _, claimed := e.Facts[factEvent]; claimed {
		return rpc.ErrRefused.With("the fact %q is recorded by the ledger only", factEvent)
	}
	return nil
}

// auditError gives the audit's refusals the kind that callers know: trying again helps once the audit is cured.
func auditError(err error) error {
	var e *audit.Error
	if errors.As(err, &e) || errors.Is(err, audit.ErrClosed) {
		return rpc.ErrUnavailable.With("%v", err)
	}
	return err
}

func (l *Ledger) registerAudit(s *rpc.Server) {
	rpc.Handle(s, rpc.LedgerAuditOnce, func(ctx context.Context, c rpc.Caller, req rpc.AuditOnce) (policy.AuditReceipt, error) {
		if err := mayRecord(c.Process, req.Entry); err != nil {
			return policy.AuditReceipt{}, err
		}
		return l.auditOnce(ctx, req)
	}, rpc.Init)
	rpc.Handle(s, rpc.LedgerAudit, func(ctx context.Context, c rpc.Caller, e policy.AuditEntry) (policy.AuditReceipt, error) {
		if err := mayRecord(c.Process, e); err != nil {
			return policy.AuditReceipt{}, err
		}
		if err := l.checkShare(e); err != nil {
			return policy.AuditReceipt{}, err
		}
		r, err := l.audit.Append(ctx, l.stamped(e))
		return r, auditError(err)
	}, rpc.HGS, rpc.Console, rpc.Init, rpc.HSM, rpc.Clock)
	rpc.Handle(s, rpc.LedgerRefusal, func(_ context.Context, _ rpc.Caller, r policy.Refusal) (rpc.Empty, error) {
		l.Refuse(r)
		return rpc.Empty{}, nil
	}, rpc.HGS)
	rpc.Handle(s, rpc.LedgerAuditTail, func(_ context.Context, _ rpc.Caller, req rpc.AuditTailRequest) ([]rpc.AuditRecord, error) {
		return l.auditTail(req.Limit)
	}, rpc.Console)
	rpc.HandleStream(s, rpc.LedgerAuditExport, func(ctx context.Context, _ rpc.Caller, r rpc.AuditRange, send func(rpc.AuditChunk) error) error {
		return auditError(l.audit.Export(ctx, r.From, r.To, func(b []byte) error { return send(rpc.AuditChunk{Data: b}) }))
	}, rpc.Console)
	rpc.Handle(s, rpc.LedgerAuditTrim, func(ctx context.Context, _ rpc.Caller, req rpc.AuditTrimRequest) (rpc.AuditTrimReply, error) {
		return l.auditTrim(ctx, req)
	}, rpc.Console)
	rpc.Handle(s, rpc.LedgerAuditVerify, func(ctx context.Context, _ rpc.Caller, _ rpc.Empty) (rpc.AuditVerifyReply, error) {
		return l.auditVerify(ctx)
	}, rpc.Console)
}

const maxTail = 5000

func (l *Ledger) auditTail(n int) ([]rpc.AuditRecord, error) {
	if n <= 0 {
		n = 50
	}
	records, err := l.audit.Tail(min(n, maxTail))
	out := make([]rpc.AuditRecord, len(records))
	for i, r := range records {
		out[i] = rpc.AuditRecord{Seq: r.Seq, Prev: r.Prev, Hash: r.Hash, Entry: r.Entry}
	}
	return out, err
}

func (l *Ledger) auditTrim(ctx context.Context, req rpc.AuditTrimRequest) (rpc.AuditTrimReply, error) {
	s, _ := l.Snapshot()
	if err := policy.Allowed(s.State, req.Actor, policy.AdminOperator); err != nil {
		return rpc.AuditTrimReply{}, rpc.ErrRefused.With("%v", err)
	}
	if l.store != nil {
		// What the outbox still holds is looked up in the chain after a crash; that must not be in the part that goes. On a full disk this
		// fails, and a crash right now would record some commands twice: better than no trim.
		if err := l.forgetDelivered(); err != nil {
			l.cfg.Log("outbox: %v", err)
		}
	}
	n, size, err := l.audit.Trim(context.WithoutCancel(ctx), req.Below, l.stamped(policy.AuditEntry{Kind: policy.AuditCommand, Actor: &req.Actor, Action: "audit.trim", Outcome: "ok"}))
	var e *audit.Error
	if errors.As(err, &e) && n == 0 {
		return rpc.AuditTrimReply{}, rpc.ErrRefused.With("%v", err)
	}
	return rpc.AuditTrimReply{Segments: n, Bytes: size}, auditError(err)
}

func (l *Ledger) auditVerify(ctx context.Context) (rpc.AuditVerifyReply, error) {
	err := l.audit.Check(ctx)
	st := l.audit.Status()
	r := rpc.AuditVerifyReply{First: st.First, Last: st.Last, Hash: st.Hash, Segments: st.Segments, Bytes: st.Bytes}
	var e *audit.Error
	switch {
	case errors.As(err, &e):
		r.Problem, r.Remedy = e.What, e.Remedy
	case err != nil:
		return r, err
	case st.Problem != nil && st.Problem.Kind != audit.KindFull && st.Problem.Kind != audit.KindMuch: // a chain without room is whole
		r.Problem, r.Remedy = st.Problem.What, st.Problem.Remedy
	}
	return r, nil
}

func (l *Ledger) registerSecrets(s *rpc.Server) {
	rpc.HandleStream(s, rpc.LedgerContextKeys, func(ctx context.Context, _ rpc.Caller, _ rpc.Empty, send func(rpc.ContextKeys) error) error {
		return l.WatchContextKeys(ctx, send)
	}, rpc.HGS)
	rpc.Handle(s, rpc.LedgerPIN, func(ctx context.Context, _ rpc.Caller, _ rpc.Empty) (rpc.PINReply, error) { return l.PIN(ctx) }, rpc.HSM)
	rpc.Handle(s, rpc.LedgerHSM, func(ctx context.Context, _ rpc.Caller, _ rpc.Empty) (policy.HSM, error) { return l.HSM(ctx) }, rpc.HSM)
	rpc.Handle(s, rpc.LedgerSign, func(_ context.Context, c rpc.Caller, req rpc.NodeSignRequest) (rpc.NodeSignReply, error) {
		if map[string]string{rpc.HGS: "tls", rpc.Forward: "syslog", rpc.Console: "ssh"}[c.Process] != req.Key {
			return rpc.NodeSignReply{}, rpc.ErrRefused.With("%s may not use the key %.16q", c.Process, req.Key)
		}
		sig, err := l.Sign(req)
		return rpc.NodeSignReply{Signature: sig}, err
	}, rpc.HGS, rpc.Console, rpc.Forward)
	rpc.Handle(s, rpc.LedgerSyslogRequest, func(ctx context.Context, _ rpc.Caller, req rpc.SyslogRequest) (rpc.SyslogRequestReply, error) {
		return l.SyslogRequest(ctx, req)
	}, rpc.Console)
	rpc.Handle(s, rpc.LedgerHTTPSRequest, func(ctx context.Context, _ rpc.Caller, req rpc.HTTPSRequest) (rpc.HTTPSRequestReply, error) {
		return l.HTTPSRequest(ctx, req)
	}, rpc.Console)
	rpc.Handle(s, rpc.LedgerPassphrase, func(ctx context.Context, _ rpc.Caller, req rpc.PassphraseRequest) (rpc.PassphraseReply, error) {
		return l.CheckPassphrase(ctx, req)
	}, rpc.Console)
	rpc.Handle(s, rpc.LedgerSetPassphrase, func(ctx context.Context, _ rpc.Caller, req rpc.PassphraseRequest) (rpc.Empty, error) {
		return rpc.Empty{}, l.SetPassphrase(ctx, req)
	}, rpc.Console)
	rpc.Handle(s, rpc.LedgerMeasure, func(context.Context, rpc.Caller, rpc.Empty) (rpc.MeasureReply, error) { return l.Measure() }, rpc.Console)
}

// Measure reads PCR 0 to 15 from the TPM now.
func (l *Ledger) Measure() (rpc.MeasureReply, error) {
	if l.tpm == nil {
		return rpc.MeasureReply{}, rpc.ErrUnavailable.With("%s", l.whySealed().What)
	}
	var r rpc.MeasureReply
	var err error
	if r.PCRs, err = l.tpm.Measurements(); err != nil {
		return r, err
	}
	r.TPM, err = l.tpm.Describe()
	return r, err
}
