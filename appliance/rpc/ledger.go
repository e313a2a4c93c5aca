package rpc

import (
	"time"

	"guardhouse/appliance/policy"
)

// MakeKeysRequest has the HSM make one RSA key for each role, with a self-signed certificate. Bits is 2048, 3072 or 4096.
type MakeKeysRequest struct {
	Actor   policy.Actor     `json:"actor"`
	ID      string           `json:"id"` // request id; the commands derive theirs from it
	Roles   []policy.KeyRole `json:"roles"`
	Bits    int              `json:"bits"`
	Subject string           `json:"subject"` // CN that tenants see on the guardian certificates
}

// MakeKeysReply tells what was made and how the token describes it.
type MakeKeysReply struct {
	Keys  []policy.Key `json:"keys"`
	Token []HSMKey     `json:"token"`
	Index uint64       `json:"index"`
	// Tests are the self-tests of the new keys on every node. A key that failed one is recorded, but not as primary.
	Tests []HSMTestResult `json:"tests,omitempty"`
}

// SetupKeyReply is what a person needs to encrypt the secret part of the answers to this node.
type SetupKeyReply struct {
	Recipient string `json:"recipient"` // age1..., valid for this boot only
	Boot      string `json:"boot"`
}

// SetupRequest is the answer file as typed, and the secrets as an armored age file encrypted to the setup key. With DryRun only the
// checks run.
type SetupRequest struct {
	Answers []byte       `json:"answers"`
	Secrets []byte       `json:"secrets"`
	Actor   policy.Actor `json:"actor"`
	DryRun  bool         `json:"dryRun"`
}

// ContextKeys seal protocol state that travels through clients. Epoch counts hours since 1970 as the node's TrustedTime or, before
// that, boot time knows them; any node of the cluster derives the same keys. Both keys are 32 bytes; holders wipe the old ones.
type ContextKeys struct {
	Epoch    uint64 `json:"epoch"`
	Current  []byte `json:"current"`
	Previous []byte `json:"previous"`
}

// PINReply holds the token's user PIN; the receiver wipes it.
type PINReply struct {
	PIN []byte     `json:"pin"`
	HSM policy.HSM `json:"hsm"`
}

// NodeSignRequest asks for a signature by one of the node's own keys: "tls" and, towards collectors, "syslog" (ECDSA or RSA, Digest is
// SHA-256/384/512; of syslog Ref is never empty) or "ssh" (Ed25519,
// Digest is the exchange hash, 32 to 64 bytes, which is signed as it is). Hash is a crypto.Hash number; 0 for ssh. Of tls there may be
// several: Ref names the public key of the certificate that is served; empty = the one of the node's record. PSS is for RSA, with a salt
// of the hash's length.
type NodeSignRequest struct {
	Key    string        `json:"key"`
	Ref    policy.KeyRef `json:"ref,omitempty"`
	Digest []byte        `json:"digest"`
	Hash   uint          `json:"hash"`
	PSS    bool          `json:"pss,omitempty"`
}

// NodeSignReply: ASN.1 ECDSA signature, RSA signature, or a raw Ed25519 one.
type NodeSignReply struct {
	Signature []byte `json:"signature"`
}

// PassphraseRequest carries what was typed on the serial line. The ledger waits longer after each wrong one.
type PassphraseRequest struct {
	Admin      string        `json:"admin"`
	Passphrase []byte        `json:"passphrase"`
	Actor      *policy.Actor `json:"actor,omitempty"` // SetPassphrase: who asks
}

// PassphraseReply: OK, or how long until the next try is looked at.
type PassphraseReply struct {
	OK    bool          `json:"ok"`
	Delay time.Duration `json:"delay"`
}

// MeasureReply holds PCR number -> lower-case hex SHA-256 bank value, read from the TPM at the call.
type MeasureReply struct {
	PCRs map[int]string `json:"pcrs"`
	TPM  string         `json:"tpm"` // manufacturer and firmware, for people
}

// LedgerStatusReply is the ledger's own health.
type LedgerStatusReply struct {
	Index      uint64           `json:"index"`
	SetUp      bool             `json:"setUp"`
	NodeID     string           `json:"nodeId"`
	Format     int              `json:"format"`  // of the stored records: policy.State's version
	Sealing    string           `json:"sealing"` // "on the sealed volume", or what is wrong
	AuditSeq   uint64           `json:"auditSeq"`
	AuditBytes int64            `json:"auditBytes"`
	AuditLimit int64            `json:"auditLimit"`
	Syslog     *SyslogStatus    `json:"syslog,omitempty"` // nil where no collector is set
	Problems   []policy.Problem `json:"problems,omitempty"`
}
