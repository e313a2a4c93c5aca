package ledger

import (
	"context"
	"fmt"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// Times of the check of the attestation signer. It costs next to nothing while nothing is due, so it runs often: a first trusted time or
// a stepped clock is looked at within renewalCheck.
const (
	renewalCheck = 5 * time.Second
	renewalRetry = time.Minute // after a failure: the token may be away for long, and each try can cost it a key
	renewalLimit = 3 * time.Minute
	renewalKind  = "attestation-signer-renewal"
)

// keepSigner gives the attestation signer its successor in time (rows B22, B23), without any administrator.
func (l *Ledger) keepSigner(ctx context.Context) {
	for {
		wait := renewalCheck
		event := l.timeEvent() // a first or stepped time: certificates are looked at again at once
		err := l.RenewSigner(ctx)
		if err != nil && ctx.Err() == nil {
			l.setProblem(policy.Problem{Kind: renewalKind, What: "the attestation signer is due for renewal, which fails: " + err.Error(),
				Remedy: "it is tried again every minute; see hsm status, then attestation-signer renew"})
			wait = renewalRetry
		} else if err == nil {
			l.clearProblem(renewalKind)
		}
		select {
		case <-ctx.Done():
			return
		case <-l.renewNow:
		case <-event:
		case <-time.After(wait):
		}
	}
}

// wakeRenewal has the check made now, because the keys have changed.
func (l *Ledger) wakeRenewal() {
	select {
	case l.renewNow <- struct{}{}:
	default:
	}
}

// RenewSigner makes a successor for the attestation signer if one is due at the trusted time: two thirds of its life are over, or its
// certificate is not valid now because a clock was wrong. Without a trusted time, or a signer at all, nothing is due. The request id
// derives from the signer and the day, so that a crash, or another node, does not make a second successor.
func (l *Ledger) RenewSigner(ctx context.Context) error {
	earliest, _, ok := l.cfg.Time().At(l.cfg.BootTime())
	if !ok || l.store == nil {
		return nil
	}
	s, _ := l.Snapshot()
	old, valid, due, ok := s.State.SignerRenewal()
	if !ok || valid.Holds(earliest) && earliest.Before(due) {
		return nil
	}
	l.keysMu.Lock()
	defer l.keysMu.Unlock()
	if s, _ = l.Snapshot(); !s.State.SetUp() {
		return nil
	}
	if now, _, _, _ := s.State.SignerRenewal(); now.Ref != old.Ref {
		return nil // somebody was faster
	}
	if err := l.audit.Admits(policy.AuditCommand); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, renewalLimit)
	defer cancel()
	name := s.State.Nodes[s.NodeID].Name
	req := rpc.MakeKeysRequest{Actor: policy.Actor{Name: name, Door: policy.DoorNode}, Bits: policy.SignerBits,
		ID: derivedID(string(old.Ref), "successor "+earliest.UTC().Format(time.DateOnly))}
	made, err := l.makeKey(ctx, req, policy.RoleAttestationSigner)
	if err != nil {
		return err
	}
	l.cfg.Log("attestation signer %.16s renewed: %.16s is published now and signs from %s on", old.Ref, made.key.Ref,
		time.Unix(made.key.UseFrom, 0).UTC().Format(time.RFC3339))
	return nil
}

// checkSigner refuses a new attestation signer before the token makes a key for it. A request that was answered before is answered again.
func (l *Ledger) checkSigner(req rpc.MakeKeysRequest, s policy.State) error {
	for _, role := range req.Roles {
		if role != policy.RoleAttestationSigner {
			continue
		}
		if _, done, err := l.store.result(derivedID(req.ID, string(role))); err != nil || done {
			return err
		}
		earliest, _, ok := l.cfg.Time().At(l.cfg.BootTime())
		if !ok {
			return rpc.ErrUnavailable.With("the time is not trusted; see time status")
		}
		if why := s.SignerRefusal(earliest); why != "" {
			return rpc.ErrRefused.With("%s", fmt.Sprintf("%s; see attestation-signer list", why))
		}
	}
	return nil
}
