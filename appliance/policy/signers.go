package policy

import (
	"cmp"
	"crypto/x509"
	"fmt"
	"slices"
	"time"
)

// Life of an attestation signer. SQL drivers cache the published list for up to a day (hgsa.md 6.7), so a signer is published that long
// before it signs, and that long after its last signature.
const (
	SignerBits    = 3072 // the least that a new one gets
	SignerOverlap = 24 * time.Hour
	// signerMargin is how long before the end of its certificate a signer surely hands over to the next one.
	signerMargin = time.Hour
	// signerSlack is what the clocks of the nodes that judge and issue may differ by when a retired signer stops to count.
	signerSlack = time.Hour
)

// SignerStage is where an attestation signer is in its life.
type SignerStage string

// The stages in their order. The strings are part of --json.
const (
	SignerNext      SignerStage = "next"      // published, signs later
	SignerInUse     SignerStage = "in-use"    // may sign; of several the newest does
	SignerRetired   SignerStage = "retired"   // signs no more, still published
	SignerWithdrawn SignerStage = "withdrawn" // not published; what it signed last counts until it expires
	SignerDisabled  SignerStage = "disabled"  // an administrator took it away: nothing it signed counts
)

// SignerStage tells the stage at a moment, the earliest that the present may be. It does not look at the certificate's dates.
func (k Key) SignerStage(now time.Time) SignerStage {
	t := now.Unix()
	switch {
	case !k.Enabled:
		return SignerDisabled
	case k.RetiredAt != 0 && t >= k.RetiredAt+int64(SignerOverlap/time.Second):
		return SignerWithdrawn
	case k.RetiredAt != 0 && t >= k.RetiredAt:
		return SignerRetired
	case t < k.UseFrom:
		return SignerNext
	}
	return SignerInUse
}

// Published reports whether signingCertificates shows the signer in this stage.
func (s SignerStage) Published() bool {
	return s == SignerNext || s == SignerInUse || s == SignerRetired
}

// SignerAcceptedUntil is when the last health certificate of a retired signer has surely expired: from then on whatever bears its
// signature is a forgery. The zero time means no end yet.
func (k Key) SignerAcceptedUntil() time.Time {
	if k.RetiredAt == 0 {
		return time.Time{}
	}
	return time.Unix(k.RetiredAt, 0).Add(MaxHealthLife + signerSlack)
}

// AttestationSigners are the recorded attestation signers, whatever their stage: the one that signing is at or moves to first, then by
// the moment of their first use, newest first.
func (s State) AttestationSigners() []Key {
	var list []Key
	for _, k := range s.Keys {
		if k.Role == RoleAttestationSigner {
			list = append(list, k)
		}
	}
	slices.SortFunc(list, func(a, b Key) int {
		if a.Primary != b.Primary {
			if a.Primary {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(b.UseFrom, a.UseFrom), cmp.Compare(a.Ref, b.Ref))
	})
	return list
}

// SignerInUse is the attestation signer that signs at a moment, the earliest that the present may be; ok is false where there is none.
func (s State) SignerInUse(now time.Time) (k Key, ok bool) {
	for _, k := range s.AttestationSigners() {
		if k.SignerStage(now) == SignerInUse {
			return k, true
		}
	}
	return Key{}, false
}

// SignerRenewal is the newest attestation signer and the moment from which it needs a successor: at two thirds of its certificate's
// life. ok is false where there is no enabled one. A certificate that is not valid yet, because the clock was wrong when it was made,
// needs one now; that is for the caller to see from valid.
func (s State) SignerRenewal() (k Key, valid Span, due time.Time, ok bool) {
	for _, k := range s.AttestationSigners() {
		if !k.Enabled {
			continue
		}
		valid := spanOf(k)
		return k, valid, valid.From.Add(valid.To.Sub(valid.From) / 3 * 2), true
	}
	return Key{}, Span{}, time.Time{}, false
}

// Span is the validity of a certificate.
type Span struct{ From, To time.Time }

// Holds reports whether a moment lies within.
func (s Span) Holds(t time.Time) bool { return !t.Before(s.From) && !t.After(s.To) }

// spanOf is empty for a certificate that does not parse, which Apply has kept out.
func spanOf(k Key) Span {
	cert, err := x509.ParseCertificate(k.Certificate)
	if err != nil {
		return Span{}
	}
	return Span{cert.NotBefore, cert.NotAfter}
}

// SignerRefusal says why there is no use in another attestation signer now, or is empty: one that waits for its first use would never
// be used.
func (s State) SignerRefusal(now time.Time) string {
	k, valid, _, ok := s.SignerRenewal()
	if ok && k.SignerStage(now) == SignerNext && valid.Holds(now) {
		return fmt.Sprintf("the next attestation signer is published already; it signs from %s on", time.Unix(k.UseFrom, 0).UTC().Format("2006-01-02 15:04:05 UTC"))
	}
	return ""
}

// startSigner gives a new attestation signer its times and retires the others: they sign until the new one does. The first one, or one
// where no other could sign now, is used at once.
func startSigner(s *State, c Command, k *Key) error {
	k.Primary = true
	signers := s.AttestationSigners()
	if c.At.Latest == 0 {
		if len(signers) > 0 {
			return &Refused{c.Kind, "without a trusted time it can't be told when the attestation signer may be used", "wait until time status says trusted"}
		}
		return nil // a first one, used at once
	}
	now := time.UnixMilli(c.At.Earliest)
	if why := s.SignerRefusal(now); why != "" {
		return &Refused{c.Kind, why, "nothing to do; to use it now: key primary; to replace it: key primary for another one, then key disable for this one"}
	}
	k.PublishedAt, k.UseFrom = now.Unix(), atOnce(now)
	used, ok := s.SignerInUse(now)
	if ok {
		if valid := spanOf(used); valid.Holds(now) {
			late := (c.At.Latest+999)/1000 + int64(SignerOverlap/time.Second)
			k.UseFrom = max(now.Unix(), min(late, valid.To.Add(-signerMargin).Unix()))
		}
	}
	retireSigners(s, signers, now.Unix(), map[KeyRef]int64{used.Ref: max(now.Unix(), k.UseFrom)})
	return nil
}

// atOnce is a first use that has come for every process and node, whose clocks may be a little behind: back-dated as the certificate is.
func atOnce(now time.Time) int64 { return now.Add(-HealthBackdate).Unix() }

// succeed has the next attestation signer sign at once when the one before it is disabled.
func succeed(s *State, c Command, disabled Key) {
	next, ok := s.PrimaryKey(RoleAttestationSigner)
	if disabled.Role != RoleAttestationSigner || !ok || disabled.RetiredAt == 0 || disabled.RetiredAt != next.UseFrom {
		return
	}
	if c.At.Latest != 0 && next.SignerStage(time.UnixMilli(c.At.Earliest)) != SignerNext {
		return // it signs already
	}
	next.UseFrom = next.PublishedAt
	s.Keys[next.Ref] = next
}

// retireSigners ends the use of attestation signers at a moment, some of them at another one; those that ended before are left alone.
func retireSigners(s *State, signers []Key, now int64, others map[KeyRef]int64) {
	for _, k := range signers {
		at, ok := others[k.Ref]
		if !ok {
			at = now
		}
		k.Primary = false
		if k.RetiredAt == 0 || k.RetiredAt > at {
			k.RetiredAt = at
		}
		s.Keys[k.Ref] = k
	}
}

// preferSigner is key primary for an attestation signer: it signs from now on, published long enough or not.
func preferSigner(s *State, c Command, k *Key) error {
	if c.At.Latest == 0 {
		return &Refused{c.Kind, "without a trusted time it can't be told from when the attestation signer is used", "wait until time status says trusted"}
	}
	now := time.UnixMilli(c.At.Earliest)
	if k.SignerStage(now) == SignerWithdrawn || k.PublishedAt > now.Unix() {
		k.PublishedAt = now.Unix()
	}
	if k.RetiredAt != 0 || k.UseFrom > now.Unix() {
		k.UseFrom = atOnce(now)
	}
	k.RetiredAt = 0 // the caller records k after the others
	retireSigners(s, s.AttestationSigners(), now.Unix(), nil)
	return nil
}

// applyHostReattest refuses what a host has, as service.set does for all hosts. The second after the latest that now may be is the first
// that counts again, so that nothing issued before survives, on whichever node.
func applyHostReattest(s *State, c Command) (Result, error) {
	b, err := decode[ByName](c)
	if err != nil {
		return Result{}, err
	}
	if c.At.Latest == 0 {
		return Result{}, &Refused{c.Kind, "without a trusted time older certificates can't be told from later ones", "wait until time status says trusted"}
	}
	h, err := changeHost(s, c, b.Name, func(h Host) Host {
		h.DenyIssuedBefore = max(h.DenyIssuedBefore, NextSecond(c.At))
		h.DenyForeignBefore = max(h.DenyForeignBefore, NextSecond(c.At))
		return h
	})
	if err != nil {
		return Result{}, err
	}
	return Result{Message: "host " + h.Name + " must attest again: its present health certificates are refused", Subject: h.ID}, nil
}

// NextSecond is the first unix second that surely lies behind the stamp. Health certificates carry the second that surely lay before
// their issue, so those with NextSecond or later were issued after it.
func NextSecond(at Stamp) int64 { return at.Latest/1000 + 1 }

// KeyRolesUsed are the roles for which this service needs keys: all, or only the attestation signer's where it protects no keys (A05).
func (s State) KeyRolesUsed() []KeyRole {
	if s.Service != nil && s.Service.AttestationOnly {
		return []KeyRole{RoleAttestationSigner}
	}
	return KeyRoles
}
