package rpc

import "guardhouse/appliance/policy"

// AuditOnce is an entry of a process that keeps the intent to write it over a power cut: an entry of the chain after number After that has
// the ID is the answer, and only where there is none the entry is written. 0 = looks through all that is kept. An ID has 1 to 128 bytes;
// the entry is a system's and leaves room for one more fact.
type AuditOnce struct {
	ID    string            `json:"id"`
	After uint64            `json:"after"`
	Entry policy.AuditEntry `json:"entry"`
}

// AuditTailRequest selects the newest entries, oldest first; Limit 0 = 50.
type AuditTailRequest struct {
	Limit int `json:"limit"`
}

// AuditRecord is an entry in its place in the chain. Hashes are lower-case hex SHA-256.
type AuditRecord struct {
	Seq   uint64            `json:"seq"`
	Prev  string            `json:"prev"`
	Hash  string            `json:"hash"`
	Entry policy.AuditEntry `json:"entry"`
}

// AuditRange selects whole segments by the first sequence number they must reach; 0,0 = all.
type AuditRange struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
}

// AuditChunk is part of an export file.
type AuditChunk struct {
	Data []byte `json:"data"`
}

// AuditTrimRequest drops closed segments that end below Below and were exported.
type AuditTrimRequest struct {
	Actor policy.Actor `json:"actor"`
	Below uint64       `json:"below"`
}

// AuditTrimReply tells how many segments and bytes went.
type AuditTrimReply struct {
	Segments int   `json:"segments"`
	Bytes    int64 `json:"bytes"`
}

// AuditVerifyReply is the state of the chain on this node.
type AuditVerifyReply struct {
	First    uint64 `json:"first"`
	Last     uint64 `json:"last"`
	Hash     string `json:"hash"`
	Segments int    `json:"segments"`
	Bytes    int64  `json:"bytes"`
	Problem  string `json:"problem,omitempty"`
	Remedy   string `json:"remedy,omitempty"`
}
