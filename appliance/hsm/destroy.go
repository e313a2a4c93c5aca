package hsm

import (
	"context"
	"encoding/hex"
	"strings"

	"guardhouse/appliance/policy"
)

// DestroyRequest names one pair that Generate made, by everything that Generate gave it: public key, CKA_ID and label. A pair of which
// one of them is another is not destroyed.
type DestroyRequest struct {
	SPKI  []byte `json:"spki"`  // SubjectPublicKeyInfo, DER
	ID    string `json:"id"`    // CKA_ID, lower-case hex
	Label string `json:"label"` // CKA_LABEL
}

// Valid refuses whatever Generate can't have made: a label that is not LabelFor a known role and this CKA_ID, as a tenant's key has, or
// one of the vendor's tools.
func (r DestroyRequest) Valid() error {
	id, err := hex.DecodeString(r.ID)
	switch role := RoleOf(r.Label); {
	case err != nil || len(id) != IDSize || hex.EncodeToString(id) != r.ID:
		return badRequest("only keys with an identifier of ours are destroyed")
	case role == "" || LabelFor(role, id) != r.Label:
		return badRequest("only keys with a label of ours are destroyed, which this is not: %.64q", strings.ToValidUTF8(r.Label, "?"))
	case len(r.SPKI) == 0 || len(r.SPKI) > maxSPKI:
		return badRequest("a key that is destroyed is named by its public key")
	}
	return nil
}

// IDSize is how many random bytes Generate gives a pair as CKA_ID.
const IDSize = 16

const maxSPKI = 4 << 10 // bytes

// Destroy takes a pair that Generate made out of the token, with its public half and its certificates, and looks for it again: without
// an error nothing of it is left. objects is how many there were; 0 means that it was gone before. Safe to repeat.
func (k *Keeper) Destroy(ctx context.Context, r DestroyRequest) (objects int, err error) {
	if err := r.Valid(); err != nil {
		return 0, err
	}
	a, _, err := k.call(ctx, call{Op: opDestroy, Ref: policy.RefOf(r.SPKI), Destroy: &r}, nil, k.timing.Generate)
	return a.Objects, err
}
