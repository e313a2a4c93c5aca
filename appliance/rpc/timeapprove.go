package rpc

import (
	"time"

	"guardhouse/appliance/policy"
)

// Methods of the ledger by which two administrators decide about the time of this node.
var (
	LedgerTimeAsk     = Method[TimeAskRequest, TimeDecision]{"ledger.TimeAsk"}         // [console] done at once where only one administrator exists
	LedgerTimeConfirm = Method[TimeConfirmRequest, TimeDecision]{"ledger.TimeConfirm"} // [console] by another administrator than who asked
	LedgerTimeAsked   = Method[Empty, []TimeProposal]{"ledger.TimeAsked"}              // [console] what waits for its confirmation, oldest first
)

// LedgerTimeKeySet keeps a key shared with time servers.
var LedgerTimeKeySet = Method[TimeKeyRequest, Empty]{"ledger.TimeKeySet"} // [console]

// TimeKeyRequest names a key by its number. Sealed is an age file for LedgerSealKey with the line "ALGORITHM:HEX" (rpc.TimeKey); without it
// the key is forgotten.
type TimeKeyRequest struct {
	Actor  policy.Actor `json:"actor"`
	ID     uint16       `json:"id"`
	Sealed []byte       `json:"sealed,omitempty"`
}

// What says where the ledger has a floor from, for ClockFloorRequest.From.
const (
	FloorLedger = "ledger"
	FloorAudit  = "audit"
	FloorTPM    = "tpm"
)

// TimeAskRequest is one administrator's decision. Kind is one of the Approve constants. UTC is for ApproveManual the time when
// CLOCK_BOOTTIME was BootTime, for ApproveFloor the new floor. Boot is the boot id that the administrator was shown.
type TimeAskRequest struct {
	Actor    policy.Actor  `json:"actor"`
	Kind     string        `json:"kind"`
	UTC      time.Time     `json:"utc,omitzero"`
	Boot     string        `json:"boot"`
	BootTime time.Duration `json:"bootTime"`
}

// TimeConfirmRequest confirms a proposal by its id.
type TimeConfirmRequest struct {
	Actor policy.Actor `json:"actor"`
	ID    string       `json:"id"`
}

// TimeProposal waits for another administrator. Now is UTC carried on to the moment of the answer, for ApproveManual. It lies in memory and
// ends with the process, the boot, or ExpiresIn.
type TimeProposal struct {
	ID        string        `json:"id"`
	Kind      string        `json:"kind"`
	UTC       time.Time     `json:"utc,omitzero"`
	Now       time.Time     `json:"now,omitzero"`
	By        string        `json:"by"`
	ExpiresIn time.Duration `json:"expiresIn"`
}

// TimeDecision is what became of a request: Waiting names the proposal that another administrator must confirm; nil = it was done, and
// By says by whom.
type TimeDecision struct {
	Message string        `json:"message"`
	Waiting *TimeProposal `json:"waiting,omitempty"`
	By      []string      `json:"by,omitempty"`
}
