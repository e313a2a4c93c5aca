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

// Methods of the ledger. Callers in brackets. Requests and replies lie in a file for each process or concern: ledger.go, audit.go,
// evidence.go, hsm.go, clock.go, init.go, forward.go. What came as a whole later has its methods beside them, as peers.go and update.go do.
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
