package rpc

import (
	"time"

	"guardhouse/appliance/policy"
)

// Process names: the keys of UIDs, the names of sockets (/run/guardhouse/<name>.d/rpc.sock) and of the services in init's table.
const (
	Init    = "init"
	Ledger  = "ledger"
	HSM     = "hsm"
	HGS     = "hgs"
	Clock   = "clock"
	Console = "console"
	Forward = "forward"
)

// SocketDir is where each process has a folder of its own (owned by its uid, mode 0755) with its socket.
const SocketDir = "/run/guardhouse"

// SocketPath is the rpc socket of a process below dir (SocketDir on a node, a test's own folder elsewhere).
func SocketPath(dir, process string) string { return dir + "/" + process + ".d/rpc.sock" }

// Methods of the ledger. Callers in brackets.
var (
	LedgerWatch         = Stream[Empty, policy.Snapshot]{"ledger.Watch"}                   // [hgs hsm clock console init] current snapshot first, then each newer one
	LedgerPropose       = Method[policy.Command, policy.Result]{"ledger.Propose"}          // [console] durable and audited when it returns
	LedgerMakeKeys      = Method[MakeKeysRequest, MakeKeysReply]{"ledger.MakeKeys"}        // [console] has the HSM make keys, then records them
	LedgerKeyAdd        = Method[KeyAddRequest, KeyAddReply]{"ledger.KeyAdd"}              // [console] records a pair that lies in the token
	LedgerKeyImport     = Method[KeyImportRequest, KeyAddReply]{"ledger.KeyImport"}        // [console] seals a software key
	LedgerKeyRequest    = Method[KeyCSRRequest, KeyCSRReply]{"ledger.KeyRequest"}          // [console] makes a PKCS#10
	LedgerKeyTest       = Method[KeyTestRequest, KeyTestReply]{"ledger.KeyTest"}           // [console init] on every node
	LedgerSealKey       = Method[Empty, SetupKeyReply]{"ledger.SealKey"}                   // [console] to whom secrets are encrypted, this boot
	LedgerSoftwareKeys  = Method[Empty, []SoftwareKey]{"ledger.SoftwareKeys"}              // [hsm] the private halves; the receiver wipes them
	LedgerAudit         = Method[policy.AuditEntry, policy.AuditReceipt]{"ledger.Audit"}   // [hgs console init hsm clock] durable when it returns
	LedgerAuditOnce     = Method[AuditOnce, policy.AuditReceipt]{"ledger.AuditOnce"}       // [init] as Audit, and once for each ID
	LedgerRefusal       = Method[policy.Refusal, Empty]{"ledger.Refusal"}                  // [hgs] summed, written at a bounded rate
	LedgerObserve       = Method[[]policy.Observation, Empty]{"ledger.Observe"}            // [hgs] never waits for a disk
	LedgerObserved      = Method[ObservedRequest, []policy.Observation]{"ledger.Observed"} // [console]
	LedgerKeepLog       = Method[KeepLogRequest, KeepLogReply]{"ledger.KeepLog"}           // [hgs] never waits for a disk
	LedgerEvidence      = Method[EvidenceRequest, []policy.Observation]{"ledger.Evidence"} // [console] a page of the hosts' evidence
	LedgerBootLog       = Method[BootLogRequest, BootLogReply]{"ledger.BootLog"}           // [console] ErrUnavailable if it is not kept
	LedgerAuditTail     = Method[AuditTailRequest, []AuditRecord]{"ledger.AuditTail"}      // [console]
	LedgerAuditExport   = Stream[AuditRange, AuditChunk]{"ledger.AuditExport"}             // [console] bytes of an export file
	LedgerAuditTrim     = Method[AuditTrimRequest, AuditTrimReply]{"ledger.AuditTrim"}     // [console]
	LedgerAuditVerify   = Method[Empty, AuditVerifyReply]{"ledger.AuditVerify"}            // [console]
	LedgerSetupKey      = Method[Empty, SetupKeyReply]{"ledger.SetupKey"}                  // [console] before setup only
	LedgerSetupApply    = Method[SetupRequest, policy.Result]{"ledger.SetupApply"}         // [console] before setup only
	LedgerContextKeys   = Stream[Empty, ContextKeys]{"ledger.ContextKeys"}                 // [hgs] now and at each change of the hour
	LedgerPIN           = Method[Empty, PINReply]{"ledger.PIN"}                            // [hsm] ErrUnavailable before setup; no PIN in attended mode
	LedgerHSM           = Method[Empty, policy.HSM]{"ledger.HSM"}                          // [hsm] how to reach the token now; ErrUnavailable before setup
	LedgerSign          = Method[NodeSignRequest, NodeSignReply]{"ledger.Sign"}            // [hgs: tls] [console: ssh] [forward: syslog]
	LedgerPassphrase    = Method[PassphraseRequest, PassphraseReply]{"ledger.Passphrase"}  // [console] verifies a serial passphrase
	LedgerSetPassphrase = Method[PassphraseRequest, Empty]{"ledger.SetPassphrase"}         // [console] actor's own
	LedgerMeasure       = Method[Empty, MeasureReply]{"ledger.Measure"}                    // [console] reads the PCRs from the TPM
	LedgerStatus        = Method[Empty, LedgerStatusReply]{"ledger.Status"}                // [console init]
	LedgerTimeKeys      = Method[Empty, []TimeKey]{"ledger.TimeKeys"}                      // [clock] ErrUnavailable before setup; the receiver wipes them
)

// Methods of the HSM process.
var (
	HSMStatus   = Method[Empty, HSMStatusReply]{"hsm.Status"}               // [console ledger hgs]
	HSMKeys     = Method[Empty, []HSMKey]{"hsm.Keys"}                       // [console ledger]
	HSMGenerate = Method[HSMGenerateRequest, HSMKey]{"hsm.Generate"}        // [ledger]
	HSMSign     = Method[HSMSignRequest, HSMSignReply]{"hsm.Sign"}          // [hgs ledger]
	HSMDecrypt  = Method[HSMDecryptRequest, HSMDecryptReply]{"hsm.Decrypt"} // [hgs]
	HSMRequest  = Method[HSMRequestRequest, HSMSignReply]{"hsm.Request"}    // [ledger] the signature of a PKCS#10 request
	HSMSoftware = Method[Empty, Empty]{"hsm.Software"}                      // [ledger] software keys have changed: fetch them now
	HSMUnlock   = Method[HSMUnlockRequest, Empty]{"hsm.Unlock"}             // [console] the PIN, in attended mode only
	HSMRetry    = Method[HSMRetryRequest, Empty]{"hsm.Retry"}               // [console] a person says: try the token once more
	HSMTest     = Method[HSMTestRequest, []HSMTestResult]{"hsm.Test"}       // [console ledger] a real signature and decryption with each key

	HSMSiteList   = Method[Empty, HSMSiteReply]{"hsm.SiteList"}           // [console] names and hashes, never contents
	HSMSitePut    = Method[HSMSiteRequest, HSMSiteFile]{"hsm.SitePut"}    // [console] audited before it takes effect
	HSMSiteRemove = Method[HSMSiteRequest, HSMSiteFile]{"hsm.SiteRemove"} // [console] likewise
)

// Methods of the clock; its stream of trusted time is in time.go.
var (
	ClockStatus  = Method[Empty, ClockStatusReply]{"clock.Status"}                // [console ledger]
	ClockApprove = Method[ClockApproveRequest, ClockStatusReply]{"clock.Approve"} // [ledger; init where no administrators can be asked]
	ClockFloor   = Method[ClockFloorRequest, ClockFloorReply]{"clock.Floor"}      // [ledger] what its records know of the past, and back
)

// Methods of init.
var (
	InitStatus    = Method[Empty, InitStatusReply]{"init.Status"} // [console ledger]
	InitTimeFloor = Method[time.Time, Empty]{"init.TimeFloor"}    // [ledger] keeps it in the TPM; ErrUnavailable without a volume
	InitNetwork   = Method[policy.Network, Empty]{"init.Network"} // [ledger] stores and applies; error says what can't be
	InitReach     = Method[string, []string]{"init.Reach"}        // [ledger] what forward may connect to: HOST:PORT, "" = nothing; the addresses
	InitLog       = Stream[LogRequest, LogLine]{"init.Log"}       // [console]
	InitPower     = Method[PowerRequest, Empty]{"init.Power"}     // [console]
)

// Methods of the audit's way to a collector.
var (
	LedgerForward = Method[ForwardRequest, ForwardReply]{"ledger.Forward"} // [forward] the next records, and what became of the earlier ones
	// [console] a request for the certificate that this node shows collectors. Installing is a command (policy.SyslogInstall), which the
	// ledger takes only for a key that it holds.
	LedgerSyslogRequest = Method[SyslogRequest, SyslogRequestReply]{"ledger.SyslogRequest"}
	ForwardTest         = Method[Empty, ForwardTestReply]{"forward.Test"} // [console] sends one message on a connection of its own
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

// ServiceStatus is one process as init sees it.
type ServiceStatus struct {
	Name     string        `json:"name"`
	PID      int           `json:"pid"`
	State    string        `json:"state"`  // starting, ready, restarting, failed, stopped
	Status   string        `json:"status"` // the service's own STATUS= line
	Restarts int           `json:"restarts"`
	Up       time.Duration `json:"up"`
	RSS      int64         `json:"rss"` // bytes
	LastExit string        `json:"lastExit,omitempty"`
	// Confined: the kernel says that its system calls are filtered (package sandbox), and that nothing gives it new rights.
	Confined bool `json:"confined,omitempty"`
}

// LinkStatus is one network interface.
type LinkStatus struct {
	Name      string   `json:"name"`
	Device    string   `json:"device"`
	MAC       string   `json:"mac"`
	Link      bool     `json:"link"`
	Addresses []string `json:"addresses"`
	Problem   string   `json:"problem,omitempty"`
	Remedy    string   `json:"remedy,omitempty"`
}

// Unused is true for a NIC that no interface of the network uses.
func (l LinkStatus) Unused() bool { return l.Name == "(unused)" }

// InitStatusReply is the machine.
type InitStatusReply struct {
	Version  string           `json:"version"`
	Boot     string           `json:"boot"`
	Up       time.Duration    `json:"up"`
	Services []ServiceStatus  `json:"services"`
	Links    []LinkStatus     `json:"links"`
	Disk     string           `json:"disk"`
	Problems []policy.Problem `json:"problems,omitempty"`
	// NetworkUp is the CLOCK_BOOTTIME reading at which the network's settings were first in force, 0 = not yet.
	NetworkUp time.Duration `json:"networkUp,omitempty"`
}

// LogRequest selects log lines. Service "" = all; Boot 0 = this one, -1 and -2 the ones before; Lines 0 = 200; Follow keeps sending.
type LogRequest struct {
	Service string `json:"service"`
	Boot    int    `json:"boot"`
	Lines   int    `json:"lines"`
	Follow  bool   `json:"follow"`
}

// LogLine is one line, control bytes already replaced.
type LogLine struct {
	BootTime time.Duration `json:"bootTime"`
	Service  string        `json:"service"`
	Text     string        `json:"text"`
}

// PowerRequest: Action is "reboot" or "off".
type PowerRequest struct {
	Action string       `json:"action"`
	Actor  policy.Actor `json:"actor"`
}
