package policy

// AuditKind says what an audit entry records.
type AuditKind string

const (
	AuditCommand  AuditKind = "command"  // an administrator's change, applied or refused
	AuditLogin    AuditKind = "login"    // a door opened, closed or refused
	AuditGrant    AuditKind = "grant"    // a health certificate issued, a transport key rolled
	AuditRefusal  AuditKind = "refusal"  // a known host refused
	AuditUnknown  AuditKind = "unknown"  // refusals of unknown callers, summed per source and reason
	AuditSystem   AuditKind = "system"   // start, stop, time locked, HSM lost, audit trimmed
	AuditContinue AuditKind = "continue" // first entry of a segment: carries the previous segment's last hash
)

// AuditEntry is one thing that happened, before the chain gives it a number and a hash (appliance/audit). It never holds a secret.
// Strings are bounded to MaxAuditField bytes each; longer ones are cut by the writer with an ellipsis.
type AuditEntry struct {
	Kind     AuditKind         `json:"kind"`
	At       Stamp             `json:"at"`
	BootTime int64             `json:"bootTime"` // CLOCK_BOOTTIME, milliseconds
	Actor    *Actor            `json:"actor,omitempty"`
	Source   string            `json:"source,omitempty"` // caller's address without its port, for requests from the network
	Subject  string            `json:"subject,omitempty"`
	Action   string            `json:"action"`  // "hostkeyattest", "rolltransportkey", a command's kind, a verb
	Outcome  string            `json:"outcome"` // "ok" or the reason's kind
	Detail   string            `json:"detail,omitempty"`
	Remedy   string            `json:"remedy,omitempty"`
	Policy   uint64            `json:"policy"` // snapshot index that decided
	Count    int               `json:"count,omitempty"`
	Facts    map[string]string `json:"facts,omitempty"` // certificate serials, key refs, hashes; at most MaxAuditFacts
}

// FactWindowsEvent is the fact that holds the event ids of Microsoft's event log which an entry corresponds to: decimal, with commas.
const FactWindowsEvent = "windowsEvent"

const (
	MaxAuditField = 512
	MaxAuditFacts = 16
)

// AuditReceipt proves that an entry is durable on this node: its number in the chain and its hash (SHA-256, hex).
type AuditReceipt struct {
	Seq  uint64 `json:"seq"`
	Hash string `json:"hash"`
}

// Refusal is one refused request of an unknown caller. The audit sums them per (Source, Action, Outcome): the first is written at once,
// later ones at a bounded rate with their count, so a flood can neither fill the disk nor hide who floods.
type Refusal struct {
	Source  string `json:"source"`
	Action  string `json:"action"`
	Outcome string `json:"outcome"`
	Detail  string `json:"detail"`
	Remedy  string `json:"remedy"`
	Subject string `json:"subject,omitempty"`
}

// Problem is something an administrator should know: a stable kind, what is wrong, and what to do.
type Problem struct {
	Kind   string `json:"kind"`
	What   string `json:"what"`
	Remedy string `json:"remedy"`
}
