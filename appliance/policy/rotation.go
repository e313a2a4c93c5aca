package policy

import (
	"fmt"
	"slices"
)

// RotationStep is how far a rotation of the guardian's keys has come. Each step can be taken back until the old pair is removed.
type RotationStep string

const (
	RotationStarted  RotationStep = "started"  // the new pair is being made
	RotationMade     RotationStep = "made"     // it is recorded, and not primary
	RotationPrimary  RotationStep = "primary"  // metadata names it; key protectors of the old pair still open
	RotationDisabled RotationStep = "disabled" // those that only the old pair opens are refused
)

// KeyPair is a guardian's pair.
type KeyPair struct {
	Signing    KeyRef `json:"signing"`
	Encryption KeyRef `json:"encryption"`
}

func (p KeyPair) refs() []KeyRef { return []KeyRef{p.Signing, p.Encryption} }

// Rotation replaces the primary pair by a new one (row B18). It is a record, so whoever goes on with it, after a crash, a reboot or a
// change of shift, finds it as it was left. There is one at a time; it is gone when the old pair is removed or the plan is aborted.
type Rotation struct {
	ID      string       `json:"id"` // the request id of rotation.start; the new pair's request ids derive from it
	Step    RotationStep `json:"step"`
	Old     KeyPair      `json:"old"`
	New     KeyPair      `json:"new"` // empty until made
	Bits    int          `json:"bits"`
	Subject string       `json:"subject,omitempty"`
	Days    int          `json:"days"`             // the window within which a key protector counts as in use
	Served  bool         `json:"served,omitempty"` // the new pair was primary at some time: tenants may have granted to it
	By      string       `json:"by"`
	Started Stamp        `json:"started"`
	Changed Stamp        `json:"changed"`
}

// RotationStart is the body of rotation.start. Bits is 2048, 3072 or 4096; Days 1 to MaxRotationDays.
type RotationStart struct {
	Bits    int    `json:"bits"`
	Subject string `json:"subject,omitempty"`
	Days    int    `json:"days"`
}

// MaxRotationDays bounds the window of a rotation.
const MaxRotationDays = 3650

// RotationMove is the body of the other steps. From is the step that the administrator saw: when somebody else was faster, nothing
// happens. Seen is how many key protectors they knew to be last seen on the old pair, for the audit.
type RotationMove struct {
	ID   string       `json:"id"`
	From RotationStep `json:"from"`
	New  KeyPair      `json:"new,omitzero"` // of rotation.pair
	Seen int          `json:"seen,omitempty"`
}

func applyRotationStart(s *State, c Command) (Result, error) {
	b, err := decode[RotationStart](c)
	if err != nil {
		return Result{}, err
	}
	if r := s.Rotation; r != nil {
		return Result{}, &Refused{c.Kind, "a rotation is under way", "see rotation status; finish it or rotation abort"}
	}
	signing, hasSigning := s.PrimaryKey(RoleSigning)
	encryption, hasEncryption := s.PrimaryKey(RoleEncryption)
	switch {
	case !hasSigning || !hasEncryption:
		return Result{}, &Refused{c.Kind, "there is no primary signing and encryption key to replace", "make them: key new --roles signing,encryption"}
	case b.Bits != 2048 && b.Bits != 3072 && b.Bits != 4096:
		return Result{}, &Refused{c.Kind, "a key has 2048, 3072 or 4096 bits", ""}
	case b.Days < 1 || b.Days > MaxRotationDays:
		return Result{}, &Refused{c.Kind, fmt.Sprintf("the window is 1 to %d days", MaxRotationDays), ""}
	case !validText(b.Subject, MaxNameLength):
		return Result{}, &Refused{c.Kind, "the subject is too long or can't be shown", ""}
	case len(s.Keys)+2 > MaxKeys:
		return Result{}, &Refused{c.Kind, fmt.Sprintf("%d keys are recorded; there is no room for a new pair", len(s.Keys)), "remove keys that are not in use"}
	}
	s.Rotation = &Rotation{ID: c.ID, Step: RotationStarted, Old: KeyPair{signing.Ref, encryption.Ref}, Bits: b.Bits, Subject: b.Subject, Days: b.Days,
		By: c.Actor.Name, Started: c.At, Changed: c.At}
	return Result{Message: "rotation started: the pair that is primary now will be replaced", Subject: c.ID}, nil
}

// rotationAt gives the rotation that the command means, if it is at one of the steps.
func rotationAt(s *State, c Command, at ...RotationStep) (Rotation, RotationMove, error) {
	b, err := decode[RotationMove](c)
	switch {
	case err != nil:
		return Rotation{}, b, err
	case s.Rotation == nil:
		return Rotation{}, b, &Refused{c.Kind, "no rotation is under way", "rotation start"}
	case s.Rotation.ID != b.ID || s.Rotation.Step != b.From:
		return Rotation{}, b, &Refused{c.Kind, "the rotation was changed meanwhile", "see rotation status"}
	case !slices.Contains(at, s.Rotation.Step):
		return Rotation{}, b, &Refused{c.Kind, fmt.Sprintf("the rotation is at the step %s", s.Rotation.Step), "see rotation status"}
	}
	return *s.Rotation, b, nil
}

// move records the next step.
func (r Rotation) move(s *State, c Command, to RotationStep) {
	r.Step, r.Changed = to, c.At
	s.Rotation = &r
}

// pairOf checks that both halves of a pair are recorded, ours and of the right roles.
func pairOf(s *State, c Command, p KeyPair) (signing, encryption Key, err error) {
	signing, okSigning := s.Keys[p.Signing]
	encryption, okEncryption := s.Keys[p.Encryption]
	switch {
	case !okSigning || !okEncryption || signing.Role != RoleSigning || encryption.Role != RoleEncryption:
		err = &Refused{c.Kind, fmt.Sprintf("the pair %.16s, %.16s is not recorded any more", p.Signing, p.Encryption), "rotation abort"}
	case signing.Tenant != "" || encryption.Tenant != "":
		err = &Refused{c.Kind, "a tenant's key can't be this service's", "rotation abort"}
	}
	return signing, encryption, err
}

// setPair enables or disables both halves; with primary they take the place of whichever are primary.
func setPair(s *State, p KeyPair, enabled, primary bool) {
	for ref, k := range s.Keys {
		mine := slices.Contains(p.refs(), ref)
		switch {
		case mine:
			k.Enabled, k.Primary = enabled, primary
		case primary && (k.Role == RoleSigning || k.Role == RoleEncryption):
			k.Primary = false
		default:
			continue
		}
		s.Keys[ref] = k
	}
}

func applyRotationPair(s *State, c Command) (Result, error) {
	r, b, err := rotationAt(s, c, RotationStarted)
	if err != nil {
		return Result{}, err
	}
	signing, encryption, err := pairOf(s, c, b.New)
	if err != nil {
		return Result{}, err
	}
	if !signing.Enabled || !encryption.Enabled || signing.Primary || encryption.Primary {
		return Result{}, &Refused{c.Kind, "the new pair is disabled, or primary already", "rotation abort"}
	}
	r.New = b.New
	r.move(s, c, RotationMade)
	return Result{Message: fmt.Sprintf("the new pair is signing key %.16s and encryption key %.16s", b.New.Signing, b.New.Encryption), Subject: r.ID}, nil
}

// applyRotationPrimary makes both halves primary at once: between two commands metadata.xml would name an old half and a new one. That
// they work on every node was tested before (the ledger asks).
func applyRotationPrimary(s *State, c Command) (Result, error) {
	r, _, err := rotationAt(s, c, RotationMade)
	if err != nil {
		return Result{}, err
	}
	signing, encryption, err := pairOf(s, c, r.New)
	if err != nil {
		return Result{}, err
	}
	if !signing.Enabled || !encryption.Enabled {
		return Result{}, &Refused{c.Kind, "a key of the new pair is disabled", "key enable, or rotation abort"}
	}
	setPair(s, r.New, true, true)
	r.Served = true
	r.move(s, c, RotationPrimary)
	return Result{Message: "the new pair is primary: metadata.xml names it; key protectors of the old pair still open", Subject: r.ID}, nil
}

func applyRotationDisable(s *State, c Command) (Result, error) {
	r, b, err := rotationAt(s, c, RotationPrimary)
	if err != nil {
		return Result{}, err
	}
	for _, role := range []KeyRole{RoleSigning, RoleEncryption} {
		if k, ok := s.PrimaryKey(role); !ok || !slices.Contains(r.New.refs(), k.Ref) {
			return Result{}, &Refused{c.Kind, fmt.Sprintf("the new %s key is not primary any more", role), "rotation undo, or rotation abort"}
		}
	}
	setPair(s, r.Old, false, false)
	r.move(s, c, RotationDisabled)
	return Result{Message: fmt.Sprintf("the old pair is disabled; known to be last seen on it: %d", b.Seen), Subject: r.ID}, nil
}

func applyRotationRemove(s *State, c Command) (Result, error) {
	r, b, err := rotationAt(s, c, RotationDisabled)
	if err != nil {
		return Result{}, err
	}
	for _, ref := range r.Old.refs() {
		if k, ok := s.Keys[ref]; ok && k.Enabled {
			return Result{}, &Refused{c.Kind, fmt.Sprintf("the old key %.16s was enabled again", ref), "key disable, or rotation undo"}
		}
	}
	for _, ref := range r.Old.refs() {
		delete(s.Keys, ref)
	}
	s.Rotation = nil
	return Result{Message: fmt.Sprintf("rotation finished: the old pair is removed from the records; known to be last seen on it: %d", b.Seen), Subject: r.ID}, nil
}

func applyRotationUndo(s *State, c Command) (Result, error) {
	r, _, err := rotationAt(s, c, RotationPrimary, RotationDisabled)
	if err != nil {
		return Result{}, err
	}
	if _, _, err := pairOf(s, c, r.Old); err != nil {
		return Result{}, err
	}
	if r.Step == RotationDisabled {
		setPair(s, r.Old, true, false)
		r.move(s, c, RotationPrimary)
		return Result{Message: "the old pair is enabled again", Subject: r.ID}, nil
	}
	setPair(s, r.New, true, false)
	setPair(s, r.Old, true, true)
	r.move(s, c, RotationMade)
	return Result{Message: "the old pair is primary again; key protectors of the new one still open", Subject: r.ID}, nil
}

// applyRotationAbort gives back what was before. A new pair that was never primary protects nothing and is disabled; one that was stays
// enabled, because tenants may have granted to it.
func applyRotationAbort(s *State, c Command) (Result, error) {
	r, _, err := rotationAt(s, c, RotationStarted, RotationMade, RotationPrimary, RotationDisabled)
	if err != nil {
		return Result{}, err
	}
	message := "rotation aborted"
	if r.Step == RotationPrimary || r.Step == RotationDisabled {
		if _, _, err := pairOf(s, c, r.Old); err == nil {
			setPair(s, r.Old, true, true)
			message += ": the old pair is primary again"
		}
	}
	switch {
	case r.New == KeyPair{}:
	case r.Served:
		setPair(s, r.New, true, false)
		message += "; the new pair stays enabled, for it was primary and key protectors may need it"
	default:
		setPair(s, r.New, false, false)
		message += "; the new pair is disabled, see key remove"
	}
	s.Rotation = nil
	return Result{Message: message, Subject: r.ID}, nil
}

// applyKeyFreeze disables a key at once, primary or not (row B19): its holder may be somebody else.
func applyKeyFreeze(s *State, c Command) (Result, error) {
	k, err := changeKey(s, c, func(k *Key) error {
		if k.Role == RoleAttestationSigner {
			return &Refused{c.Kind, "an attestation signer is replaced, not frozen: without one no host attests", "attestation-signer renew, key primary, then key disable"}
		}
		k.Enabled, k.Primary = false, false
		return nil
	})
	if err != nil {
		return Result{}, err
	}
	return Result{Message: k.describe() + " is frozen: nothing is opened or signed with it", Subject: string(k.Ref)}, nil
}
