package rpc

import "guardhouse/appliance/policy"

// Methods for the keys in the HSM at a factory reset. The right to destroy goes one way only: init asks the ledger while it ends the
// node, the ledger asks hsm for the keys that the node made, and hsm takes nothing else.
var (
	LedgerResetKeys   = Method[Empty, ResetKeysReply]{"ledger.ResetKeys"}                  // [console] what would go and what stays; changes nothing
	LedgerDestroyKeys = Method[DestroyKeysRequest, DestroyKeysReply]{"ledger.DestroyKeys"} // [init] each key is audited before it goes
	HSMDestroy        = Method[HSMDestroyRequest, HSMDestroyReply]{"hsm.Destroy"}          // [ledger] one pair that hsm.Generate made
)

// ResetKey is a key of the token as a factory reset sees it. Ref is its SPKI fingerprint.
type ResetKey struct {
	Ref   policy.KeyRef  `json:"ref"`
	Role  policy.KeyRole `json:"role"`
	Label string         `json:"label"`
	ID    string         `json:"id"` // CKA_ID, hex
	// Stays is why nobody destroys it; "" = it may be destroyed.
	Stays string `json:"stays,omitempty"`
}

// ResetKeysReply lists every key in the token, and those made here that were not found in it. Away is why the token does not answer, ""
// where it did; then Keys are those of this node's records alone, and none can be destroyed.
type ResetKeysReply struct {
	Token string     `json:"token"` // label
	Keys  []ResetKey `json:"keys"`
	Away  string     `json:"away,omitempty"`
}

// DestroyKeysRequest names keys of a ResetKeysReply that may be destroyed. Actor is an owner on the serial line.
type DestroyKeysRequest struct {
	Actor policy.Actor    `json:"actor"`
	Refs  []policy.KeyRef `json:"refs"`
}

// DestroyKeysReply tells what became of each key. Of those in Gone the token was asked again and shows nothing; Objects counts what went.
// Left are still there, or may be: Why tells.
type DestroyKeysReply struct {
	Token   string     `json:"token"`
	Gone    []ResetKey `json:"gone,omitempty"`
	Objects int        `json:"objects"`
	Left    []ResetKey `json:"left,omitempty"`
	Why     string     `json:"why,omitempty"`
}

// HSMDestroyRequest names a pair completely; see hsm.DestroyRequest.
type HSMDestroyRequest struct {
	SPKI  []byte `json:"spki"`
	ID    string `json:"id"`
	Label string `json:"label"`
}

// HSMDestroyReply counts the objects that went: 0 = the pair was gone before. Without an error nothing of it is left.
type HSMDestroyReply struct {
	Objects int `json:"objects"`
}
