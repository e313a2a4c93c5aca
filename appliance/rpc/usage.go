package rpc

import "guardhouse/appliance/policy"

// What is known of the use of keys (rows B08, B10, B18).
var (
	LedgerUsed  = Method[policy.ProtectorUse, Empty]{"ledger.Used"} // [hgs] never waits for a disk
	LedgerUsage = Method[UsageRequest, UsageReply]{"ledger.Usage"}  // [console]
)

// UsageRequest asks for the use of all keys and, where Keys is not empty, for the key protectors that were last seen on one of them: at
// most Limit, newest first; 0 = 200. Days is what counts as recent; 0 = DefaultUsageDays.
type UsageRequest struct {
	Keys  []policy.KeyRef `json:"keys,omitempty"`
	Days  int             `json:"days"`
	Limit int             `json:"limit"`
}

// DefaultUsageDays is the window of a UsageRequest that names none.
const DefaultUsageDays = 90

// UsageReply: Keys holds the keys with any use; Protectors those asked for. Total counts all of them, Recent those seen within Days.
type UsageReply struct {
	Days       int              `json:"days"`
	Keys       []KeyUsage       `json:"keys"`
	Protectors []ProtectorUsage `json:"protectors,omitempty"`
	Total      int              `json:"total"`
	Recent     int              `json:"recent"`
	Newest     policy.Stamp     `json:"newest"` // of Protectors, over all of Total
}

// KeyUsage tells how a key is used. Protectors are those that were last seen on this key, Recent those of them seen within the window.
type KeyUsage struct {
	Ref        policy.KeyRef `json:"ref"`
	Rolls      uint64        `json:"rolls"`
	First      policy.Stamp  `json:"first"`
	Last       policy.Stamp  `json:"last"`
	Protectors int           `json:"protectors"`
	Recent     int           `json:"recent"`
}

// ProtectorUsage is a key protector as it was last seen: a chain of versions of which each was made from the one before.
type ProtectorUsage struct {
	policy.ProtectorUse
	First policy.Stamp `json:"first"`
	Rolls uint64       `json:"rolls"`
}
