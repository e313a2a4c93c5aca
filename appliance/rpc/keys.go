package rpc

import "guardhouse/appliance/policy"

// KeyAddRequest records a pair that lies in the token already: made by the vendor's tools, brought by a tenant (row B20), or left by a
// MakeKeys that was interrupted. The pair is found by its public key.
type KeyAddRequest struct {
	Actor policy.Actor   `json:"actor"`
	ID    string         `json:"id"` // of the command, 32 hex digits
	Ref   policy.KeyRef  `json:"ref"`
	Role  policy.KeyRole `json:"role"`
	// Tenant is a recorded tenant's name where the pair is that tenant's.
	Tenant string `json:"tenant,omitempty"`
	// Certificate is DER; empty has the node certify the pair as MakeKeys does, with Subject as the name in it.
	Certificate []byte `json:"certificate,omitempty"`
	Subject     string `json:"subject,omitempty"`
}

// KeyAddReply tells what was recorded and how the key did on every node.
type KeyAddReply struct {
	Key     policy.Key      `json:"key"`
	Index   uint64          `json:"index"`
	Message string          `json:"message"`
	Tests   []HSMTestResult `json:"tests"`
}

// KeyImportRequest brings a software key. Sealed is an age file (armored or not, at most 64 KiB) encrypted to LedgerSealKey's recipient:
// a line with the PFX's passphrase, then the PFX itself (DER, or base64).
type KeyImportRequest struct {
	Actor  policy.Actor   `json:"actor"`
	ID     string         `json:"id"`
	Role   policy.KeyRole `json:"role"`
	Tenant string         `json:"tenant,omitempty"`
	Sealed []byte         `json:"sealed"`
}

// KeyCSRRequest asks for a PKCS#10 request for a recorded key. Profile is a name of policy.CSRProfiles; Subject is a CN, empty = that of
// the present certificate.
type KeyCSRRequest struct {
	Actor   policy.Actor  `json:"actor"`
	Ref     policy.KeyRef `json:"ref"`
	Profile string        `json:"profile"`
	Subject string        `json:"subject,omitempty"`
}

// KeyCSRReply is the request, DER.
type KeyCSRReply struct {
	Request []byte `json:"request"`
}

// KeyTestRequest names recorded keys; none = all.
type KeyTestRequest struct {
	Refs []policy.KeyRef `json:"refs,omitempty"`
}

// KeyTestReply has one result for each key and node, by key, then by node.
type KeyTestReply struct {
	Results []HSMTestResult `json:"results"`
}

// SoftwareKey is the private half of a software key: PKCS#8 DER. Both sides wipe it.
type SoftwareKey struct {
	Ref   policy.KeyRef  `json:"ref"`
	Role  policy.KeyRole `json:"role"`
	PKCS8 []byte         `json:"pkcs8"`
}

// HSMRequestRequest asks for the signature of a PKCS#10 request: Info is its CertificationRequestInfo (RFC 2986 4.1), whose public key
// must be that of Ref. The signature is PKCS#1 v1.5 with SHA-256. It is the only thing that an encryption key ever signs.
type HSMRequestRequest struct {
	Ref  policy.KeyRef `json:"ref"`
	Info []byte        `json:"info"`
}
