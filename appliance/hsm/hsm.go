// Package hsm keeps a PKCS#11 token usable: named keys, one deadline on every
// call, and a restart of whatever got stuck, without losing the PIN.
//
// Promise. Two processes share the work. The keeper (Keeper) holds the PIN in
// locked memory and never loads foreign code. The worker (Serve) loads the
// vendor's module and is the only one that is ever killed: a call that misses
// its deadline, a dead session that cannot be replaced or a lost device ends
// the worker, and the keeper starts a new one and hands it the PIN over a pipe.
// A wrong PIN is tried once and never again, so that a token is not locked by
// our own retries; once a PIN has worked, a token of another serial number is not
// shown it before a person says so (Retry). Calls wait in a bounded queue in
// which callers and kinds of operations take turns; while the token is away they
// are answered at once (Breaker), and the token is served again by itself, within
// five seconds of its return, after a real signature on trial. Keys are found by
// their public key (Key.Ref), never by label, and a key does only what its role
// says.
//
// Limits. RSA only. The PIN passes through a C string inside the worker while
// it logs in. A signature that was under way when the worker died may or may
// not have been made; both operations offered here are safe to repeat.
// This package is free of cgo; package token, the only one that loads a
// module, is reached from cmd/hsm alone.
package hsm

import (
	"crypto"
	"encoding/hex"
	"regexp"
	"slices"

	"guardhouse/appliance/policy"
)

// KnownRole tells whether r is one of policy.KeyRoles.
func KnownRole(r policy.KeyRole) bool { return slices.Contains(policy.KeyRoles, r) }

// Decrypts tells whether a key of role r decrypts; keys of all other roles
// sign.
func Decrypts(r policy.KeyRole) bool { return r == policy.RoleEncryption }

// Scheme is an RSA signature scheme.
type Scheme string

// The signature schemes. PSS uses MGF1 with the digest's hash and a salt as
// long as the digest.
const (
	PKCS1v15 Scheme = "pkcs1v15"
	PSS      Scheme = "pss"
)

// Key is one RSA key pair as the token describes it. All booleans are read
// back from the private object, none is remembered from its making.
type Key struct {
	Ref   policy.KeyRef  `json:"ref"`
	Role  policy.KeyRole `json:"role,omitempty"`  // from the label; empty when the label is not ours
	Label string         `json:"label,omitempty"` // CKA_LABEL
	ID    string         `json:"id"`              // CKA_ID, hex
	Bits  int            `json:"bits"`            // size of the modulus
	SPKI  []byte         `json:"spki"`            // SubjectPublicKeyInfo, DER

	Private          bool `json:"private"`
	Sensitive        bool `json:"sensitive"`
	AlwaysSensitive  bool `json:"alwaysSensitive"`
	Extractable      bool `json:"extractable"`
	NeverExtractable bool `json:"neverExtractable"`
	Local            bool `json:"local"` // made inside the token
	Sign             bool `json:"sign"`
	Decrypt          bool `json:"decrypt"`
	Unwrap           bool `json:"unwrap"`

	Store policy.KeyStore `json:"store,omitempty"` // a software key is in no token
}

// The kinds of findings about a key: a property that differs from what its role
// demands.
const (
	FindingExtractable = "extractable"  // the token would give the private key out, or once could
	FindingNotPrivate  = "not-private"  // usable without the PIN
	FindingDualUse     = "dual-use"     // both signs and decrypts, or unwraps
	FindingWrongUse    = "wrong-use"    // cannot do what its role needs
	FindingSmall       = "small"        // modulus below 2048 bits
	FindingNotOurs     = "unknown-role" // the label names no role
)

const replaceKey = "make a new key for this role and retire this one"

// Findings compares the attributes of k with what its role demands; an empty
// answer means that nothing is wrong.
func (k Key) Findings() []policy.Problem {
	var f []policy.Problem
	add := func(kind, remedy string) {
		f = append(f, policy.Problem{Kind: kind, What: "key " + string(k.Ref[:min(16, len(k.Ref))]) + " (" + k.Label + ")", Remedy: remedy})
	}
	if !k.Sensitive || k.Extractable || !k.NeverExtractable {
		add(FindingExtractable, replaceKey)
	}
	if !k.Private {
		add(FindingNotPrivate, replaceKey)
	}
	if k.Unwrap || (k.Sign && k.Decrypt) {
		add(FindingDualUse, replaceKey)
	}
	if k.Bits < 2048 {
		add(FindingSmall, replaceKey)
	}
	switch {
	case !KnownRole(k.Role):
		add(FindingNotOurs, "check who else uses this token; this node will not use the key by role")
	case Decrypts(k.Role) && !k.Decrypt, !Decrypts(k.Role) && !k.Sign:
		add(FindingWrongUse, replaceKey)
	}
	return f
}

// MaySign tells whether k may make signatures: the token allows it and its
// role is not to decrypt.
func (k Key) MaySign() bool { return k.Sign && !Decrypts(k.Role) }

// MayDecrypt tells whether k may decrypt: the token allows it and its role, if
// it has one, is to decrypt.
func (k Key) MayDecrypt() bool { return k.Decrypt && (k.Role == "" || Decrypts(k.Role)) }

var labelForm = regexp.MustCompile(`^guardhouse-([a-z-]+)-[0-9a-f]{8}$`)

// LabelFor returns the CKA_LABEL of a new key: guardhouse-<role>-<8 hex of id>.
// id must have at least four bytes.
func LabelFor(r policy.KeyRole, id []byte) string {
	return "guardhouse-" + string(r) + "-" + hex.EncodeToString(id[:4])
}

// RoleOf reads the role out of a label made by LabelFor; empty when the label
// is not ours.
func RoleOf(label string) policy.KeyRole {
	m := labelForm.FindStringSubmatch(label)
	if m == nil || !KnownRole(policy.KeyRole(m[1])) {
		return ""
	}
	return policy.KeyRole(m[1])
}

// SignRequest asks for one signature. Role is what the caller believes the key
// is for: a key labelled with another role is refused; empty asks for no check.
// Digest has the length of Hash, which is of the SHA-2 family.
type SignRequest struct {
	Ref    policy.KeyRef
	Role   policy.KeyRole
	Digest []byte
	Hash   crypto.Hash
	Scheme Scheme
}

// OAEPMode tells who decodes OAEP.
type OAEPMode string

// The OAEP modes. OAEPUnknown stands until an encryption key was first tried.
const (
	OAEPUnknown  OAEPMode = ""
	OAEPToken    OAEPMode = "token"    // CKM_RSA_PKCS_OAEP inside the token
	OAEPSoftware OAEPMode = "software" // CKM_RSA_X_509 in the token, decoding here
)

// OAEP are the parameters of one decryption. MGF is the hash of MGF1, which
// XML encryption allows to differ from the digest (kps.md section 15).
type OAEP struct {
	Hash  crypto.Hash `json:"hash"`
	MGF   crypto.Hash `json:"mgf"`
	Label []byte      `json:"label,omitempty"`
}

// TokenInfo describes the token that answered.
type TokenInfo struct {
	Label        string   `json:"label"`
	Serial       string   `json:"serial"`
	Manufacturer string   `json:"manufacturer,omitempty"`
	Model        string   `json:"model,omitempty"`
	OAEP         OAEPMode `json:"oaep"` // for SHA-256 with MGF1-SHA-256
	// Problems are the findings about keys whose label names a role of ours.
	Problems []policy.Problem `json:"problems,omitempty"`
}

// Token is what a worker serves. Every method may block for as long as the
// module likes: deadlines are the keeper's. Methods are called from several
// goroutines. Errors are *Error.
type Token interface {
	Info() TokenInfo
	// List reads all RSA key pairs and their attributes from the token.
	List() ([]Key, error)
	// Generate makes a key pair in the token.
	Generate(role policy.KeyRole, bits int) (Key, error)
	// Sign signs what r describes.
	Sign(r SignRequest) ([]byte, error)
	// Decrypt opens an OAEP ciphertext; the caller wipes the answer.
	Decrypt(ref policy.KeyRef, ciphertext []byte, p OAEP) ([]byte, error)
	// Request signs a certificate request, also with a key that may sign
	// nothing else; see RequestDigest.
	Request(ref policy.KeyRef, info []byte) ([]byte, error)
	// Destroy takes a pair that Generate made out of the token and proves it by
	// looking again; r is Valid. It gives the number of objects that went.
	Destroy(r DestroyRequest) (int, error)
	// Check is the canary: session, login and one real signature.
	Check() error
}
