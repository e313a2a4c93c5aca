package rpc

import (
	"time"

	"guardhouse/appliance/policy"
)

// HSMStatusReply describes the token and the worker that holds it.
type HSMStatusReply struct {
	State    string           `json:"state"` // locked, starting, ready, failed
	Module   string           `json:"module"`
	Pack     string           `json:"pack,omitempty"` // name and version of the image's HSM pack
	Token    string           `json:"token"`
	Serial   string           `json:"serial"`
	OAEP     string           `json:"oaep"` // "token" or "software over raw RSA"
	Restarts int              `json:"restarts"`
	Breaker  string           `json:"breaker"`  // closed: calls are served; open: answered at once as unavailable; half-open: the token is on trial
	Waiting  int              `json:"waiting"`  // calls in the queue
	Attended bool             `json:"attended"` // the PIN is typed at each boot, and lies nowhere
	Problems []policy.Problem `json:"problems,omitempty"`
}

// HSMUnlockRequest is the PIN as typed; both sides wipe it. LastTry confirms a login although one more wrong PIN locks the token.
type HSMUnlockRequest struct {
	PIN     []byte `json:"pin"`
	LastTry bool   `json:"lastTry"`
}

// HSMRetryRequest starts the token over after a failure, with the PIN at hand: a wrong one costs one of the token's tries.
type HSMRetryRequest struct {
	LastTry bool `json:"lastTry"`
}

// HSMSiteRequest names one file of the site's own data for the HSM pack (certificates, keys, security-world files). Data is for SitePut
// only, at most pack.MaxSiteFile bytes; both sides wipe it.
type HSMSiteRequest struct {
	Actor policy.Actor `json:"actor"`
	Name  string       `json:"name"`
	Data  []byte       `json:"data,omitempty"`
}

// HSMSiteFile is what may be shown of it. SHA256 is lower-case hex, empty where the file has not been put yet; Declared is false for what
// the pack of an earlier image left.
type HSMSiteFile struct {
	Name     string `json:"name"`
	Declared bool   `json:"declared"`
	Size     int64  `json:"size"`
	SHA256   string `json:"sha256,omitempty"`
}

// HSMSiteReply is the site data of this node. Pack is name and version of the image's pack, empty outside an image.
type HSMSiteReply struct {
	Pack  string        `json:"pack"`
	Files []HSMSiteFile `json:"files"`
}

// HSMKey is a key as the token describes it, or a software key as its worker does.
type HSMKey struct {
	Store            policy.KeyStore `json:"store,omitempty"`
	Ref              policy.KeyRef   `json:"ref"`
	Role             policy.KeyRole  `json:"role"` // from the label; "" where the label is not ours
	Label            string          `json:"label"`
	ID               string          `json:"id"` // CKA_ID, hex
	SPKI             []byte          `json:"spki"`
	Bits             int             `json:"bits"`
	Sensitive        bool            `json:"sensitive"`
	Extractable      bool            `json:"extractable"`
	NeverExtractable bool            `json:"neverExtractable"`
	Sign             bool            `json:"sign"`
	Decrypt          bool            `json:"decrypt"`
}

// HSMGenerateRequest makes an RSA key; role decides its usage.
type HSMGenerateRequest struct {
	Role policy.KeyRole `json:"role"`
	Bits int            `json:"bits"`
}

// HSMSignRequest signs a digest. Hash is a crypto.Hash number; PSS uses a salt of the hash's length and MGF1 with the same hash.
type HSMSignRequest struct {
	Ref    policy.KeyRef  `json:"ref"`
	Role   policy.KeyRole `json:"role"` // what the caller believes the key is for; another role is refused
	Digest []byte         `json:"digest"`
	Hash   uint           `json:"hash"`
	PSS    bool           `json:"pss"`
}

// HSMSignReply holds the raw RSA signature.
type HSMSignReply struct {
	Signature []byte `json:"signature"`
}

// HSMDecryptRequest opens an RSA-OAEP ciphertext with an empty label. Hash and MGF are crypto.Hash numbers.
type HSMDecryptRequest struct {
	Ref        policy.KeyRef `json:"ref"`
	Ciphertext []byte        `json:"ciphertext"`
	Hash       uint          `json:"hash"`
	MGF        uint          `json:"mgf"`
}

// HSMDecryptReply holds the plaintext; both sides wipe it. A ciphertext that does not open is ErrRefused with one fixed message,
// whatever was wrong with it.
type HSMDecryptReply struct {
	Plaintext []byte `json:"plaintext"`
}

// HSMTestRequest names recorded keys by their public key; at most policy.MaxKeys.
type HSMTestRequest struct {
	Keys []HSMTestKey `json:"keys"`
}

// HSMTestKey is a key as the cluster's records know it. The label is for findings only ("another key lies under this label").
type HSMTestKey struct {
	Ref   policy.KeyRef  `json:"ref"`
	Role  policy.KeyRole `json:"role"`
	SPKI  []byte         `json:"spki"` // SubjectPublicKeyInfo DER, from the recorded certificate
	Label string         `json:"label,omitempty"`
}

// Kinds of findings of a key test: the Kind of HSMTestResult.Problems.
const (
	KeyMissing     = "key-missing"      // no private key with this public key in the token
	KeyOtherLabel  = "key-other-label"  // missing, and another key lies under its label
	KeyNoUse       = "key-no-use"       // there, but its attributes forbid what its role needs
	KeyUseFailed   = "key-use-failed"   // the signature or decryption failed, or did not verify
	KeyExtractable = "key-extractable"  // not sensitive, or extractable now or once
	KeyUnreachable = "node-unreachable" // the node's HSM process or token did not answer: counts as failed
)

// HSMTestResult tells how one key did on one node; OK only if a real operation of its role succeeded and was checked in Go, and nothing
// else is wrong with the key: then Problems is empty.
type HSMTestResult struct {
	Node     string           `json:"node,omitempty"` // node id; set by whoever asked several nodes
	Ref      policy.KeyRef    `json:"ref"`
	Role     policy.KeyRole   `json:"role"`
	OK       bool             `json:"ok"`
	Took     time.Duration    `json:"took"`            // of the token's operation
	Token    *HSMKey          `json:"token,omitempty"` // as the token describes it; nil where it is missing
	Problems []policy.Problem `json:"problems,omitempty"`
}
