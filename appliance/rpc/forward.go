package rpc

import (
	"time"

	"guardhouse/appliance/policy"
)

// ForwardRequest asks for records after number After, at most 256 and about 256 KiB, and waits at most Wait (10 s) for the first, or for
// another collector than Target. With Start or Idle no records come: Start asks at once where to begin, Idle only reports and waits.
// Acked, Connected and Error report on Target; zero values of another target are not kept.
type ForwardRequest struct {
	Start     bool          `json:"start,omitempty"`
	Idle      bool          `json:"idle,omitempty"`
	After     uint64        `json:"after"`
	Acked     uint64        `json:"acked"`
	Target    string        `json:"target,omitempty"`
	Connected bool          `json:"connected"`
	Error     string        `json:"error,omitempty"`
	Wait      time.Duration `json:"wait"`
}

// ForwardReply is the collector to send to (nil = none), a name for it that changes whenever it does, and the records. Position is the
// last record that a collector is known to have; Behind the last of the chain. Skipped records could not be read, or were trimmed.
type ForwardReply struct {
	Syslog   *policy.Syslog `json:"syslog,omitempty"`
	Target   string         `json:"target"`
	Host     string         `json:"host"` // HOSTNAME of the messages
	Node     string         `json:"node"`
	Client   [][]byte       `json:"client,omitempty"` // the certificate to show a collector that asks for one, with its chain, DER; its key: LedgerSign
	Position uint64         `json:"position"`
	Records  []AuditRecord  `json:"records,omitempty"`
	Skipped  uint64         `json:"skipped,omitempty"`
	// Of the answer to Start: addresses of the collector, which are all that the process can reach, or why there are none. Neither = it
	// finds the collector itself (a node without a fence).
	Peers       []string `json:"peers,omitempty"`
	Unreachable string   `json:"unreachable,omitempty"`
}

// SyslogRequest: Key as in HTTPSRequest.
type SyslogRequest struct {
	Actor policy.Actor `json:"actor"`
	Key   string       `json:"key"`
}

// SyslogRequestReply: DER of a PKCS#10 request, and the reference of its key.
type SyslogRequestReply struct {
	Request []byte        `json:"request"`
	Ref     policy.KeyRef `json:"ref"`
}

// ForwardTestReply tells who took the test message. SHA1 and SHA256 are thumbprints of the collector's certificate.
type ForwardTestReply struct {
	Address string        `json:"address"`
	Subject string        `json:"subject"`
	SHA1    string        `json:"sha1"`
	SHA256  string        `json:"sha256"`
	TLS     string        `json:"tls"`
	Took    time.Duration `json:"took"`
}

// SyslogStatus is how far the audit has got to its collector.
type SyslogStatus struct {
	Address   string `json:"address"`
	Connected bool   `json:"connected"`
	Position  uint64 `json:"position"` // last record that the collector is known to have
	Behind    uint64 `json:"behind"`   // records after it
	Skipped   uint64 `json:"skipped"`  // records that no collector got: trimmed before, or damaged
	LastError string `json:"lastError,omitempty"`
}
