package verb

import (
	"context"
	"time"

	"guardhouse/appliance/policy"
)

// ownSigner is an attestation signer of this service with its life.
func ownSigner(state policy.State, k policy.Key, now policy.Stamp) SignerValue {
	v := signerValue("this service", true, k.Certificate, max(k.DenyIssuedBefore, state.Service.DenyIssuedBefore))
	v.Ref, v.PublishedAt, v.UseFrom, v.RetiredAt = k.Ref, moment(k.PublishedAt), moment(k.UseFrom), moment(k.RetiredAt)
	if now.Latest != 0 {
		v.Stage = k.SignerStage(time.UnixMilli(now.Earliest))
	}
	if newest, _, due, ok := state.SignerRenewal(); ok && newest.Ref == k.Ref {
		v.Renewal = due.UTC()
	}
	return v
}

// moment is the zero time for 0.
func moment(seconds int64) time.Time {
	if seconds == 0 {
		return time.Time{}
	}
	return time.Unix(seconds, 0).UTC()
}

// life shows the stage and what comes next.
func (v SignerValue) life(p *Page) {
	if !v.Own {
		return
	}
	at := func(t time.Time) string { return t.Format("2006-01-02 15:04:05 UTC") }
	switch v.Stage {
	case policy.SignerNext:
		p.Field("  stage", "published, signs from %s on", at(v.UseFrom))
	case policy.SignerInUse:
		if v.RetiredAt.IsZero() {
			p.Field("  stage", "published, signs now")
		} else {
			p.Field("  stage", "published, signs now, until %s", at(v.RetiredAt))
		}
	case policy.SignerRetired:
		p.Field("  stage", "signs no more, published until %s", at(v.RetiredAt.Add(policy.SignerOverlap)))
	case policy.SignerWithdrawn:
		p.Field("  stage", "withdrawn; what it signed counts until it expires")
	case policy.SignerDisabled:
		p.Field("  stage", "disabled: nothing that it signed counts")
	default:
		p.Field("  stage", "not known: the time is not trusted")
	}
	if !v.Renewal.IsZero() {
		p.Field("  renewal", "successor is made by itself at %s", at(v.Renewal))
	}
}

func signerRenew(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	out, err := makeKeys(ctx, s, []policy.KeyRole{policy.RoleAttestationSigner}, policy.SignerBits, snap.State.Service.Name)
	if err != nil {
		return Output{}, err
	}
	snap, _ = s.Node.Snapshot()
	for _, k := range snap.State.AttestationSigners() {
		if k.Primary {
			ownSigner(snap.State, k, s.Node.Stamp()).life(out.Text)
		}
	}
	return out, nil
}

func hostReattest(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	return byName(ctx, s, policy.CmdHostReattest, a)
}
