package hsm

import (
	"crypto"

	"guardhouse/appliance/policy"
)

// The keeper and its worker exchange frames over socket pairs:
//
//	uint32 header length | uint32 body length | uint64 id | header (JSON) | body
//
// big endian; no header at all stands for the empty one. Whatever may be secret
// (a plaintext) travels in the body only, which both sides wipe. On the first
// socket the keeper sends one hello, the worker answers with phases and at last
// "ready". Each further socket is a lane (see lane): one call, then its answer,
// which has the call's id.
const (
	frameHead = 16      // bytes in front of the header
	maxHeader = 1 << 20 // a listing of some thousand keys
	maxBody   = 1 << 16
)

// The operations of a call.
const (
	opHello    = "hello"
	opList     = "list"
	opGenerate = "generate"
	opSign     = "sign"
	opDecrypt  = "decrypt"
	opCheck    = "check"
	opRequest  = "request"
	opDestroy  = "destroy"
	opLoad     = "load" // of a software worker only: the body is a private key, PKCS#8
)

// The phases a worker reports before it is ready. phaseLogin is sent before the
// PIN is shown to the token: a worker that dies after it may have used up a try.
const (
	phaseLoad  = "load"
	phaseLogin = "login"
	phaseReady = "ready"
)

// call is the header of a frame to the worker. The body is the digest of a
// sign, the ciphertext of a decrypt.
type call struct {
	Op     string         `json:"op"`
	Module *ModuleConfig  `json:"module,omitempty"`
	Ref    policy.KeyRef  `json:"ref,omitempty"`
	Role   policy.KeyRole `json:"role,omitempty"`
	Bits   int            `json:"bits,omitempty"`
	Hash   crypto.Hash    `json:"hash,omitempty"`
	Scheme Scheme         `json:"scheme,omitempty"`
	OAEP   *OAEP          `json:"oaep,omitempty"`

	Destroy *DestroyRequest `json:"destroy,omitempty"`
}

// answer is the header of a frame from the worker. The body is a signature or
// a plaintext.
type answer struct {
	Phase string     `json:"phase,omitempty"`
	Error *Error     `json:"error,omitempty"`
	Keys  []Key      `json:"keys,omitempty"`
	Info  *TokenInfo `json:"info,omitempty"`

	Objects int `json:"objects,omitempty"` // destroyed
}
