package rpc

import (
	"encoding/json"

	"guardhouse/appliance/policy"
)

// What the node knows of its own boot, and proves of it.
var (
	InitBoot       = Method[Empty, InitBootReply]{"init.Boot"}           // [ledger]
	LedgerExplain  = Method[Empty, ExplainReply]{"ledger.Explain"}       // [console] the boot log in plain words, against the registers as they are now
	LedgerIdentity = Method[Empty, FileReply]{"ledger.Identity"}         // [console] quote.Identity
	LedgerActivate = Method[ActivateRequest, FileReply]{"ledger.Answer"} // [console] quote.Challenge to quote.Answer; audited
	LedgerQuote    = Method[QuoteRequest, FileReply]{"ledger.Quote"}     // [console] quote.File
)

// InitBootReply is the firmware's event log as the kernel keeps it (empty where there is none, then Problem says why), the kernel's own
// log of PCR 10 (IMA; empty where it has none), and the signed policy under which the data volume opened; nil where the recovery secret opened it.
type InitBootReply struct {
	Log     []byte        `json:"log"`
	Kernel  []byte        `json:"kernel,omitempty"`
	Problem string        `json:"problem,omitempty"`
	Opened  *OpenedPolicy `json:"opened,omitempty"`
}

// OpenedPolicy is a boot that the image's builder signed; registers are lower-case hex, before PCR 11 is capped.
type OpenedPolicy struct {
	Policy  string         `json:"policy"`
	Release uint64         `json:"release"`
	PCRs    map[int]string `json:"pcrs"`
}

// ExplainReply is the boot in plain words. Digests and values are lower-case hex SHA-256.
type ExplainReply struct {
	Opened    *OpenedPolicy    `json:"opened,omitempty"`
	Registers []BootRegister   `json:"registers"`
	Events    []BootEvent      `json:"events"`
	Problems  []policy.Problem `json:"problems,omitempty"`
}

// BootRegister is one PCR. State says how it came to its value, Signed whether that is what the policy says ("" where it says nothing).
type BootRegister struct {
	PCR    int    `json:"pcr"`
	Value  string `json:"value"`
	State  string `json:"state"`
	Quirk  string `json:"quirk,omitempty"`
	Signed string `json:"signed,omitempty"`
}

// BootEvent is one measurement. Digest is empty where nothing was measured.
type BootEvent struct {
	PCR    int    `json:"pcr"`
	Type   string `json:"type"`
	Digest string `json:"digest,omitempty"`
	What   string `json:"what"`
}

// FileReply is a file for people to carry: JSON with a version.
type FileReply struct {
	File json.RawMessage `json:"file"`
}

// ActivateRequest carries a challenge as it came from mkimage enroll.
type ActivateRequest struct {
	Actor     policy.Actor    `json:"actor"`
	Challenge json.RawMessage `json:"challenge"`
}

// QuoteRequest asks for a quote over a nonce of 8 to 32 bytes.
type QuoteRequest struct {
	Nonce []byte `json:"nonce"`
}
