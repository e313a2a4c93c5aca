package rpc

import "guardhouse/appliance/policy"

// LedgerHTTPSRequest has the ledger make a request for an HTTPS certificate, or a self-signed one [console]. Installing is a command
// (policy.HTTPSInstall), which the ledger takes only for a key that it holds.
var LedgerHTTPSRequest = Method[HTTPSRequest, HTTPSRequestReply]{"ledger.HTTPSRequest"}

// Keys that an HTTPSRequest may ask for.
const (
	HTTPSKeyNew     = "new"     // P-256; takes the place of the key of an earlier request whose certificate was not installed
	HTTPSKeyNewRSA  = "new-rsa" // RSA of 3072 bits, for a CA whose template takes nothing else; not for a shared certificate
	HTTPSKeyCurrent = "current" // the one in use
)

// HTTPSRequest: Names are DNS names and IP addresses beside the service's name. SelfSigned asks for a certificate instead of a request.
type HTTPSRequest struct {
	Actor      policy.Actor `json:"actor"`
	Shared     bool         `json:"shared"`
	SelfSigned bool         `json:"selfSigned"`
	Key        string       `json:"key"`
	Names      []string     `json:"names,omitempty"`
}

// HTTPSRequestReply: DER of a PKCS#10 request or of a certificate, the key's reference, and the generation of a shared key.
type HTTPSRequestReply struct {
	Request     []byte        `json:"request,omitempty"`
	Certificate []byte        `json:"certificate,omitempty"`
	Ref         policy.KeyRef `json:"ref"`
	Generation  int           `json:"generation,omitempty"`
}
