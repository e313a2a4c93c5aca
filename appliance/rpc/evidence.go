package rpc

import "guardhouse/appliance/policy"

// ObservedRequest selects observations; Kind "" = all, Subject "" = all. At most Limit, newest first; 0 = 200.
type ObservedRequest struct {
	Kind    policy.ObservationKind `json:"kind"`
	Subject string                 `json:"subject,omitempty"`
	Limit   int                    `json:"limit"`
}

// KeepLogRequest offers the boot log that a host's last good or last bad boot refers to. Digest is its SHA-256 in lower-case hexadecimal.
// Without Log it only asks whether the ledger has it. It comes after the observation that names it.
type KeepLogRequest struct {
	Host   string `json:"host"`
	Digest string `json:"digest"`
	Log    []byte `json:"log,omitempty"`
}

// KeepLogReply tells whether the ledger has the log now. It does not take every log at any time: it comes again.
type KeepLogReply struct {
	Have bool `json:"have"`
}

// EvidenceRequest asks for the evidence of the hosts whose id comes after After, in the order of ids: of each the newest, or its last good
// and its last bad boot. Limit counts hosts; it is at most 256, which is also meant by 0. The last page is empty.
type EvidenceRequest struct {
	After string `json:"after,omitempty"`
	Limit int    `json:"limit,omitempty"`
	Both  bool   `json:"both,omitempty"`
}

// BootLogRequest names a log by its SHA-256 in lower-case hexadecimal.
type BootLogRequest struct {
	Digest string `json:"digest"`
}

// BootLogReply holds the log as the host sent it.
type BootLogReply struct {
	Log []byte `json:"log"`
}
