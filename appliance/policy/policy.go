// Package policy is the vocabulary of the cluster: the records every node agrees on, the commands that change them, who may send
// which command, and the limits of each. It promises that Apply is a pure function: the same records and the same command give the
// same records on every node and in every replay, because time, identifiers, randomness and key handles travel inside the command.
//
// Limits: it touches no file, socket or clock. Nothing in it is secret: a Command, a Snapshot and an AuditEntry may be shown to any
// reviewer, so PINs, passphrases and private keys have no field here (they live behind appliance/tpm.Secrets).
package policy

import (
	"encoding/json"
	"maps"
	"time"
)

// Version is the format of State; a node refuses a snapshot of a newer one.
const Version = 1

// Limits that Apply and Validate enforce. Counts are records; sizes are bytes.
const (
	MaxHosts          = 20000
	MaxKeys           = 256
	MaxAdmins         = 64
	MaxSigners        = 64
	MaxNameLength     = 64
	MaxCommandSize    = 1 << 20
	MinHealthLife     = 15 * time.Minute
	MaxHealthLife     = 24 * time.Hour
	DefaultHealthLife = 8 * time.Hour
	// HealthBackdate is how far before issuing a health certificate becomes valid, so that a host whose clock is a little behind takes it.
	HealthBackdate = 5 * time.Minute
)

// Mode is the attestation mode that getinfo advertises; the numbers are MS-HGSA 2.2.1.1.
type Mode int

const (
	ModeUnknown Mode = 0
	ModeTPM     Mode = 1
	ModeAD      Mode = 2
	ModeHostKey Mode = 3
)

// KeyRole is what a key in the HSM is for; it decides the key's usage attributes and who may use it.
type KeyRole string

const (
	RoleSigning           KeyRole = "signing"            // guardian pair: signs egress key protectors and the metadata's certificates
	RoleEncryption        KeyRole = "encryption"         // guardian pair: unwraps transport keys
	RoleCommunications    KeyRole = "communications"     // signs metadata.xml as a document (MS-KPS ds:Signature)
	RoleAttestationSigner KeyRole = "attestation-signer" // signs health certificates
)

// KeyRoles lists all roles in the order in which a console shows them.
var KeyRoles = []KeyRole{RoleSigning, RoleEncryption, RoleCommunications, RoleAttestationSigner}

// KeyRef names a key by what it is: the lower-case hex SHA-256 of its SubjectPublicKeyInfo DER (64 characters). Labels in a token can
// be changed by whoever administers the token; a public key can't be.
type KeyRef string

// KeyStore is where the private half of a key lies.
type KeyStore string

const (
	StoreToken    KeyStore = ""         // in the PKCS#11 token, as all keys are that were made here
	StoreSoftware KeyStore = "software" // imported from a PFX: sealed by the ledger, in memory of its own while in use, never in the token
)

// Key is one key pair with its certificate.
type Key struct {
	Ref         KeyRef  `json:"ref"`
	Role        KeyRole `json:"role"`
	Label       string  `json:"label"`       // CKA_LABEL, for people; never used to find the key
	Certificate []byte  `json:"certificate"` // DER
	Primary     bool    `json:"primary"`
	Enabled     bool    `json:"enabled"`
	Added       Stamp   `json:"added"`
	// Store tells software keys, which everything that shows keys must name so.
	Store KeyStore `json:"store,omitempty"`
	// Tenant is whose key this is where a tenant brought it (row B20): then it is never primary, and Tenants says for which hosts it is used.
	Tenant string `json:"tenant,omitempty"`
	// Of attestation signers only, unix seconds: shown in signingCertificates from PublishedAt, signs from UseFrom, signs no more from
	// RetiredAt on (0 = no successor yet) and is withdrawn SignerOverlap later. All 0: of a version that did not know these.
	PublishedAt int64 `json:"publishedAt,omitempty"`
	UseFrom     int64 `json:"useFrom,omitempty"`
	RetiredAt   int64 `json:"retiredAt,omitempty"`
	// DenyIssuedBefore refuses what this attestation signer signed before it (B25 for one signer): unix seconds, compared with the second in
	// the serial number; 0 = none.
	DenyIssuedBefore int64 `json:"denyIssuedBefore,omitempty"`
}

// Host is a machine that may get health certificates in one mode. ID is the upper-case hex SHA-256 of the SubjectPublicKeyInfo DER of its
// host key or, in TPM mode, of its TPM's endorsement key; it is also the subject CN of its health certificates (hgsa.md 13.16). A machine
// that is known in both modes has two records with one name, which are revoked, restored and removed together.
type Host struct {
	ID      string       `json:"id"`
	Name    string       `json:"name"`
	HostKey []byte       `json:"hostKey,omitempty"` // SubjectPublicKeyInfo DER; nil for a host of TPM mode
	TPM     *TPMIdentity `json:"tpm,omitempty"`     // nil for a host of host-key mode
	Class   string       `json:"class"`             // host class; "default" where none was named
	Revoked bool         `json:"revoked"`
	// DenyIssuedBefore refuses this host's health certificates that were issued before it (D20, B25 for one host): those from before it was
	// added or restored, or told to attest again. Unix seconds, compared with the second in the serial number; 0 = none.
	DenyIssuedBefore int64 `json:"denyIssuedBefore,omitempty"`
	// DenyForeignBefore does so for certificates of trusted foreign attestation signers that bear this host's name: of restore and reattest, not
	// of host add, so that a host moves here with what it has. Of theirs the beginning of the validity counts.
	DenyForeignBefore int64 `json:"denyForeignBefore,omitempty"`
	// CertifiedKeys are, of a revoked host, the keys that its health certificates were seen with (lower-case hex SHA-256 of the
	// SubjectPublicKeyInfo): a certificate with one of them is refused, whoever issued it and whatever name it bears.
	CertifiedKeys []string `json:"certifiedKeys,omitempty"`
	Note          string   `json:"note,omitempty"`
	Added         Stamp    `json:"added"`
}

// TrustedSigner is an attestation signer certificate whose health certificates the key protection service accepts (row B24). The
// cluster's own attestation signers (Key records of RoleAttestationSigner) are always trusted and have no record here.
type TrustedSigner struct {
	Thumbprint       string `json:"thumbprint"` // lower-case hex SHA-256 of the DER certificate
	Name             string `json:"name"`
	Certificate      []byte `json:"certificate"`
	DenyIssuedBefore int64  `json:"denyIssuedBefore,omitempty"` // unix seconds; 0 = none
	Added            Stamp  `json:"added"`
}

// AdminRole is what an administrator may do; each role includes the ones after it.
type AdminRole string

const (
	AdminOwner    AdminRole = "owner"    // everything, administrators included
	AdminOperator AdminRole = "operator" // hosts, keys, certificates
	AdminReviewer AdminRole = "reviewer" // reads
)

// Admin is a person who may open a door. Passphrase hashes are not here: they are secrets of the node (appliance/tpm.Secrets).
type Admin struct {
	Name  string    `json:"name"`
	Role  AdminRole `json:"role"`
	Key   string    `json:"key"` // one line of authorized_keys: type and base64, no options, no comment
	Added Stamp     `json:"added"`
}

// Stamp is a moment as the proposer knew it: the interval in which its TrustedTime put it, in unix milliseconds, and the boot in which
// it was made. Both zero = made before the node had TrustedTime. Manual: not by the word of time servers, but of administrators.
type Stamp struct {
	Earliest int64  `json:"earliest"`
	Latest   int64  `json:"latest"`
	Boot     string `json:"boot,omitempty"`
	Manual   bool   `json:"manual,omitempty"`
}

// Service is what all nodes of the cluster serve under one name.
type Service struct {
	Name       string        `json:"name"` // FQDN that hosts have in their URLs
	Mode       Mode          `json:"mode"`
	HTTP       bool          `json:"http"`
	HTTPS      bool          `json:"https"`
	HealthLife time.Duration `json:"healthLife"`
	// DenyIssuedBefore refuses every health certificate issued before it (unix seconds; 0 = none): "make everyone attest now".
	DenyIssuedBefore int64 `json:"denyIssuedBefore,omitempty"`
	// AttestationOnly is a service without key protection (row A05, the SQL Server case): it has no guardian keys. Chosen at setup.
	AttestationOnly bool `json:"attestationOnly,omitempty"`
	// SharedHTTPS is served by each node without a certificate of its own.
	SharedHTTPS *SharedHTTPS `json:"sharedHTTPS,omitempty"`
	// OtherSigning lists the enabled signing keys that are not primary in metadata.xml (OtherSigningCertificates).
	OtherSigning bool `json:"otherSigning,omitempty"`
	// ForeignForms accepts key protectors whose certificate signatures cover another form of the certificate than its DER bytes (kps.md 14.4).
	ForeignForms bool `json:"foreignForms,omitempty"`
	// Syslog is where every node sends its audit, nil if nowhere.
	Syslog *Syslog `json:"syslog,omitempty"`
	// Switched is the last change of Mode, nil if it is still that of setup.
	Switched *ModeSwitch `json:"switched,omitempty"`
	// TimeBound is how uncertain a node's time may become before it issues nothing any more; 0 = DefaultTimeBound.
	TimeBound time.Duration `json:"timeBound,omitempty"`
}

// Node is what the cluster knows of one node. Addresses are settings of that node only.
type Node struct {
	ID          string   `json:"id"` // lower-case hex SHA-256 of the first AuditKey, first 16 characters
	Name        string   `json:"name"`
	AuditKey    []byte   `json:"auditKey"`    // signs this node's audit checkpoints; an audit.PublicKey
	SSHHostKey  string   `json:"sshHostKey"`  // authorized_keys form
	Certificate []byte   `json:"certificate"` // of HTTPS, DER: self-signed at setup, then what was installed
	Chain       [][]byte `json:"chain,omitempty"`
	// OwnHTTPS has the node serve Certificate although there is a shared one.
	OwnHTTPS bool `json:"ownHTTPS,omitempty"`
	// SyslogCertificate is what the node shows a syslog collector that asks for a client certificate, DER; nil = nothing.
	SyslogCertificate []byte   `json:"syslogCertificate,omitempty"`
	SyslogChain       [][]byte `json:"syslogChain,omitempty"`
	Network           Network  `json:"network"`
	TimeServers       []string `json:"timeServers"` // host or host:port
	// TimeKeys names, by the server's address as in TimeServers, the symmetric key (1 to 65535) that its answers must be made with. The keys
	// themselves are secrets of the node.
	TimeKeys map[string]uint16 `json:"timeKeys,omitempty"`
	HSM      HSM               `json:"hsm"`
	Added    Stamp             `json:"added"`
	// FormerAuditKeys are those before AuditKey, the oldest first.
	FormerAuditKeys []FormerAuditKey `json:"formerAuditKeys,omitempty"`
}

// HSM is how a node reaches its token; the PIN is not here.
type HSM struct {
	Module string `json:"module"`           // path of the PKCS#11 module in the image
	Token  string `json:"token"`            // CKA label of the token
	Attach string `json:"attach,omitempty"` // "virtio:NAME": bridge the module's socket to this virtio-serial port
	// Attended: the PIN is not kept; an administrator types it after each boot (hsm unlock).
	Attended bool `json:"attended,omitempty"`
}

// State is all records at one index. Treat it and everything reachable from it as immutable: Apply makes a new one.
type State struct {
	Version int                      `json:"version"`
	Service *Service                 `json:"service"` // nil until setup
	Nodes   map[string]Node          `json:"nodes"`
	Admins  map[string]Admin         `json:"admins"`  // by name
	Hosts   map[string]Host          `json:"hosts"`   // by ID
	Keys    map[KeyRef]Key           `json:"keys"`    // by ref
	Signers map[string]TrustedSigner `json:"signers"` // by thumbprint
	// Rotation is the plan under way, nil where there is none.
	Rotation *Rotation `json:"rotation,omitempty"`
	// Tenants bring keys of their own; by name, may be nil.
	Tenants map[string]Tenant `json:"tenants,omitempty"`
	// TPM mode; each map may be nil.
	Baselines  map[string]Baseline  `json:"baselines,omitempty"`  // by name
	CIPolicies map[string]CIPolicy  `json:"ciPolicies,omitempty"` // by name
	DumpKeys   map[string]DumpKey   `json:"dumpKeys,omitempty"`   // by name
	PolicySets map[string]PolicySet `json:"policySets,omitempty"` // by class
	Anchors    map[string]Anchor    `json:"anchors,omitempty"`    // by thumbprint
	VendorsOff map[string]bool      `json:"vendorsOff,omitempty"` // by vendor label
	// Draft is what is staged, Undo what takes the last commit of a draft back; nil where there is none.
	Draft *Draft `json:"draft,omitempty"`
	Undo  *Draft `json:"undo,omitempty"`
	// Of key protection; each map may be nil.
	Denials map[string]Denial         `json:"denials,omitempty"` // by name
	Offline map[string]OfflineCaching `json:"offline,omitempty"` // by host class
	// Peers are the other nodes that this one compares clocks with; by name, may be nil.
	Peers map[string]Peer `json:"peers,omitempty"`
}

// Snapshot is State at a log index, streamed by the ledger to the other processes. NodeID tells which node is speaking; it is empty
// before setup. Floor is the newest moment, in unix milliseconds, of which this node's disk knows that it is over: the newest earliest
// bound of a trusted time (0 = none). Nothing is issued by it.
type Snapshot struct {
	Index  uint64 `json:"index"`
	NodeID string `json:"nodeId"`
	State  State  `json:"state"`
	Floor  int64  `json:"floor,omitempty"`
}

// NewState is an empty state, before setup.
func NewState() State {
	return State{Version: Version, Nodes: map[string]Node{}, Admins: map[string]Admin{}, Hosts: map[string]Host{},
		Keys: map[KeyRef]Key{}, Signers: map[string]TrustedSigner{}}
}

// clone copies the maps, not the records: records are replaced whole, never edited.
func (s State) clone() State {
	s.Nodes, s.Admins, s.Hosts = maps.Clone(s.Nodes), maps.Clone(s.Admins), maps.Clone(s.Hosts)
	s.Keys, s.Signers = maps.Clone(s.Keys), maps.Clone(s.Signers)
	s.Tenants = maps.Clone(s.Tenants)
	s.Baselines, s.CIPolicies, s.DumpKeys = maps.Clone(s.Baselines), maps.Clone(s.CIPolicies), maps.Clone(s.DumpKeys)
	s.PolicySets, s.Anchors, s.VendorsOff = maps.Clone(s.PolicySets), maps.Clone(s.Anchors), maps.Clone(s.VendorsOff)
	s.Denials, s.Offline = maps.Clone(s.Denials), maps.Clone(s.Offline)
	s.Peers = maps.Clone(s.Peers)
	return s
}

// SetUp reports whether setup has been applied.
func (s State) SetUp() bool { return s.Service != nil }

// PrimaryKey is the enabled primary key of a role; ok is false where there is none.
func (s State) PrimaryKey(role KeyRole) (k Key, ok bool) {
	for _, k := range s.Keys {
		if k.Role == role && k.Primary && k.Enabled {
			return k, true
		}
	}
	return Key{}, false
}

// HostByName finds a machine by its name; of two records it gives the one of host-key mode.
func (s State) HostByName(name string) (Host, bool) {
	if hosts := s.HostsByName(name); len(hosts) > 0 {
		return hosts[0], true
	}
	return Host{}, false
}

// Command is one change, asked for by Actor. ID makes it idempotent: a second command with the same ID changes nothing and gets the
// first one's result. All that Apply needs is inside; Body is the JSON of the type that Kind names (see commands.go).
type Command struct {
	ID    string `json:"id"` // 16 random bytes in hex
	Kind  Kind   `json:"kind"`
	Actor Actor  `json:"actor"`
	// At is when it is proposed, by the time that the node trusts: the ledger sets it, whatever a sender says. Only a dry run's is the sender's.
	At   Stamp           `json:"at"`
	Body json.RawMessage `json:"body"`
	// Stragglers is the ledger's to set, in commands that remove what another mode than the present one needs.
	Stragglers *Stragglers `json:"stragglers,omitempty"`
}

// Door is the way a person came in.
type Door string

const (
	DoorSerial Door = "serial"
	DoorSSH    Door = "ssh"
	DoorSetup  Door = "setup" // the serial line before setup: possession of the machine is the proof
	DoorNode   Door = "node"  // the node itself, for example renewing its own certificate
)

// Actor is who asks. The ledger checks that Key is an enrolled administrator's and that its role suffices, whatever the console said.
type Actor struct {
	Name    string `json:"name"`
	Key     string `json:"key"` // "SHA256:..." fingerprint of the administrator's SSH key; empty for DoorSetup and DoorNode
	Door    Door   `json:"door"`
	Session string `json:"session"`
}

// Result is what applying a command gave: a line for people and, where the command made something, its name.
type Result struct {
	Index   uint64 `json:"index"`
	Message string `json:"message"`
	Subject string `json:"subject,omitempty"` // host id, key ref, thumbprint, admin name
}
