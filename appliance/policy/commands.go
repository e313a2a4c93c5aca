package policy

import (
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Kind names a command; its string is also the action in the audit. Never rename one: old logs carry it.
type Kind string

const (
	CmdSetup        Kind = "setup"         // Setup
	CmdServiceSet   Kind = "service.set"   // ServiceSet
	CmdNodeSet      Kind = "node.set"      // NodeSet
	CmdHTTPSInstall Kind = "https.install" // HTTPSInstall
	CmdKeyFreeze    Kind = "key.freeze"    // KeyChange

	CmdAuditKey      Kind = "node.audit-key"           // AuditKeyChange
	CmdAuditSyslog   Kind = "audit.syslog"             // SyslogSet
	CmdSyslogInstall Kind = "audit.syslog-certificate" // SyslogInstall

	CmdRotationStart   Kind = "rotation.start" // RotationStart
	CmdRotationPair    Kind = "rotation.pair"  // RotationMove, and so the others
	CmdRotationPrimary Kind = "rotation.primary"
	CmdRotationDisable Kind = "rotation.disable"
	CmdRotationRemove  Kind = "rotation.remove"
	CmdRotationUndo    Kind = "rotation.undo"
	CmdRotationAbort   Kind = "rotation.abort"

	CmdAdminAdd       Kind = "admin.add"       // AdminAdd
	CmdAdminRemove    Kind = "admin.remove"    // ByName
	CmdHostAdd        Kind = "host.add"        // HostAdd
	CmdHostRevoke     Kind = "host.revoke"     // HostRevoke
	CmdHostRestore    Kind = "host.restore"    // ByName
	CmdHostRemove     Kind = "host.remove"     // HostRemove
	CmdHostReattest   Kind = "host.reattest"   // ByName
	CmdKeyAdd         Kind = "key.add"         // KeyAdd
	CmdKeyPrimary     Kind = "key.primary"     // KeyChange
	CmdKeyEnable      Kind = "key.enable"      // KeyChange
	CmdKeyDisable     Kind = "key.disable"     // KeyChange
	CmdKeyRemove      Kind = "key.remove"      // KeyChange
	CmdKeyInstall     Kind = "key.install"     // KeyInstall
	CmdTenantAdd      Kind = "tenant.add"      // TenantAdd
	CmdTenantSet      Kind = "tenant.set"      // TenantSet
	CmdTenantRemove   Kind = "tenant.remove"   // ByName
	CmdSignerTrust    Kind = "signer.trust"    // SignerTrust
	CmdSignerDistrust Kind = "signer.distrust" // ByName (thumbprint)
	CmdSignerDeny     Kind = "signer.deny"     // SignerDeny

	CmdHostAddTPM     Kind = "host.add-tpm"     // TPMHostAdd
	CmdHostSet        Kind = "host.set"         // HostSet
	CmdBaselineAdd    Kind = "baseline.add"     // BaselineAdd
	CmdBaselineRemove Kind = "baseline.remove"  // Removal
	CmdCIPolicyAdd    Kind = "ci-policy.add"    // CIPolicyAdd
	CmdCIPolicyRemove Kind = "ci-policy.remove" // Removal
	CmdDumpKeyAdd     Kind = "dump-key.add"     // DumpKeyAdd
	CmdDumpKeyRemove  Kind = "dump-key.remove"  // Removal
	CmdPolicySet      Kind = "policy.set"       // PolicySwitch
	CmdDraftAdd       Kind = "draft.add"        // DraftStep
	CmdDraftCommit    Kind = "draft.commit"     // DraftCommit
	CmdDraftDrop      Kind = "draft.drop"       // DraftDrop
	CmdDraftUndo      Kind = "draft.undo"       // DraftUndo
	CmdTrustImport    Kind = "tpm-trust.import" // TrustImport
	CmdTrustRemove    Kind = "tpm-trust.remove" // Removal (thumbprint or vendor)
	CmdTrustVendor    Kind = "tpm-trust.vendor" // VendorSwitch

	CmdHostDeny     Kind = "host.deny"             // HostDeny
	CmdHostAllow    Kind = "host.allow"            // ByName
	CmdClassOffline Kind = "class.offline-caching" // OfflineSet

	CmdPeerAdd    Kind = "peer.add"    // PeerAdd
	CmdPeerRemove Kind = "peer.remove" // ByName
)

// Setup is the body of the first command: it makes the service, its first node and its first administrators.
type Setup struct {
	Service Service `json:"service"`
	Node    Node    `json:"node"`
	Admins  []Admin `json:"admins"`
}

// ServiceSet changes the fields that are not nil. Durations in nanoseconds, DenyIssuedBefore in unix seconds.
type ServiceSet struct {
	Mode             *Mode          `json:"mode,omitempty"`
	HTTP             *bool          `json:"http,omitempty"`
	HTTPS            *bool          `json:"https,omitempty"`
	HealthLife       *time.Duration `json:"healthLife,omitempty"`
	DenyIssuedBefore *int64         `json:"denyIssuedBefore,omitempty"`
	OtherSigning     *bool          `json:"otherSigning,omitempty"`
	ForeignForms     *bool          `json:"foreignForms,omitempty"`
	TimeBound        *time.Duration `json:"timeBound,omitempty"`
}

// NodeSet replaces one node's settings; nil leaves them. TimeKeys go with TimeServers.
type NodeSet struct {
	Node        string            `json:"node"` // id
	Network     *Network          `json:"network,omitempty"`
	TimeServers []string          `json:"timeServers,omitempty"`
	TimeKeys    map[string]uint16 `json:"timeKeys,omitempty"`
	HSM         *HSM              `json:"hsm,omitempty"`
}

// AdminAdd enrols an administrator.
type AdminAdd struct {
	Name string    `json:"name"`
	Role AdminRole `json:"role"`
	Key  string    `json:"key"`
}

// HostAdd registers a host in host-key mode; HostKey is SubjectPublicKeyInfo DER of an RSA key of 2048 to 8192 bits.
type HostAdd struct {
	Name    string `json:"name"`
	HostKey []byte `json:"hostKey"`
	Class   string `json:"class,omitempty"`
	Note    string `json:"note,omitempty"`
}

// HostRevoke refuses the host from now on, its still valid health certificates included. Keys are what they were seen to certify
// (lower-case hex SHA-256 of the SubjectPublicKeyInfo), as far as the console knows.
type HostRevoke struct {
	Name   string   `json:"name"`
	Reason string   `json:"reason,omitempty"`
	Keys   []string `json:"keys,omitempty"`
}

// ByName is the body of commands that need only a name.
type ByName struct {
	Name string `json:"name"`
}

// KeyAdd records a key pair. The first key of a role becomes primary unless it is spare or a tenant's. A new attestation signer always
// does; when it is published and used follows from the command's time (startSigner).
type KeyAdd struct {
	Role        KeyRole `json:"role"`
	Label       string  `json:"label"`
	Certificate []byte  `json:"certificate"` // DER; its public key is the key's name
	// Spare keeps the key from becoming primary even as the first of its role: it failed its test on some node.
	Spare  bool     `json:"spare,omitempty"`
	Store  KeyStore `json:"store,omitempty"`
	Tenant string   `json:"tenant,omitempty"` // a recorded tenant's name; "" = this service's own key
}

// KeyInstall gives a recorded key the certificate (DER) that a CA issued for it.
type KeyInstall struct {
	Ref         KeyRef `json:"ref"`
	Certificate []byte `json:"certificate"`
}

// KeyChange names the key of a primary, enable, disable or remove command.
type KeyChange struct {
	Ref KeyRef `json:"ref"`
}

// SignerTrust accepts health certificates of a foreign attestation signer.
type SignerTrust struct {
	Name        string `json:"name"`
	Certificate []byte `json:"certificate"`
}

// Refused is a command that the state does not allow: nothing has changed. Reason and Remedy are for the administrator.
type Refused struct {
	Kind   Kind
	Reason string
	Remedy string
}

func (e *Refused) Error() string {
	if e.Remedy == "" {
		return fmt.Sprintf("%s refused: %s", e.Kind, e.Reason)
	}
	return fmt.Sprintf("%s refused: %s; %s", e.Kind, e.Reason, e.Remedy)
}

// ErrUnknownKind is a command of a newer version.
var ErrUnknownKind = errors.New("unknown command kind")

// handlers is the whole list of commands: how each changes the state and which role it needs. DoorNode may send those marked node.
var handlers = map[Kind]struct {
	role  AdminRole
	node  bool
	apply func(*State, Command) (Result, error)
}{
	CmdSetup:           {AdminOwner, false, applySetup},
	CmdServiceSet:      {AdminOperator, false, applyServiceSet},
	CmdNodeSet:         {AdminOperator, true, applyNodeSet},
	CmdHTTPSInstall:    {AdminOperator, false, applyHTTPSInstall},
	CmdAdminAdd:        {AdminOwner, false, applyAdminAdd},
	CmdAdminRemove:     {AdminOwner, false, applyAdminRemove},
	CmdHostAdd:         {AdminOperator, false, applyHostAdd},
	CmdHostRevoke:      {AdminOperator, false, applyHostRevoke},
	CmdHostRestore:     {AdminOperator, false, applyHostRestore},
	CmdHostRemove:      {AdminOperator, false, applyHostRemove},
	CmdHostReattest:    {AdminOperator, false, applyHostReattest},
	CmdKeyAdd:          {AdminOperator, true, applyKeyAdd},
	CmdKeyPrimary:      {AdminOperator, false, applyKeyPrimary},
	CmdKeyEnable:       {AdminOperator, false, applyKeyEnable},
	CmdKeyDisable:      {AdminOperator, false, applyKeyDisable},
	CmdKeyRemove:       {AdminOperator, false, applyKeyRemove},
	CmdKeyInstall:      {AdminOperator, false, applyKeyInstall},
	CmdTenantAdd:       {AdminOperator, false, applyTenantAdd},
	CmdTenantSet:       {AdminOperator, false, applyTenantSet},
	CmdTenantRemove:    {AdminOperator, false, applyTenantRemove},
	CmdSignerTrust:     {AdminOperator, false, applySignerTrust},
	CmdSignerDistrust:  {AdminOperator, false, applySignerDistrust},
	CmdSignerDeny:      {AdminOperator, false, applySignerDeny},
	CmdHostAddTPM:      {AdminOperator, false, applyHostAddTPM},
	CmdHostSet:         {AdminOperator, false, applyHostSet},
	CmdBaselineAdd:     {AdminOperator, false, applyBaselineAdd},
	CmdBaselineRemove:  {AdminOperator, false, applyBaselineRemove},
	CmdCIPolicyAdd:     {AdminOperator, false, applyCIPolicyAdd},
	CmdCIPolicyRemove:  {AdminOperator, false, applyCIPolicyRemove},
	CmdDumpKeyAdd:      {AdminOperator, false, applyDumpKeyAdd},
	CmdDumpKeyRemove:   {AdminOperator, false, applyDumpKeyRemove},
	CmdPolicySet:       {AdminOperator, false, applyPolicySet},
	CmdDraftAdd:        {AdminOperator, false, applyDraftAdd},
	CmdDraftCommit:     {AdminOperator, false, applyDraftCommit},
	CmdDraftDrop:       {AdminOperator, false, applyDraftDrop},
	CmdDraftUndo:       {AdminOperator, false, applyDraftUndo},
	CmdTrustImport:     {AdminOperator, false, applyTrustImport},
	CmdTrustRemove:     {AdminOperator, false, applyTrustRemove},
	CmdTrustVendor:     {AdminOperator, false, applyTrustVendor},
	CmdHostDeny:        {AdminOperator, false, applyHostDeny},
	CmdHostAllow:       {AdminOperator, false, applyHostAllow},
	CmdClassOffline:    {AdminOperator, false, applyClassOffline},
	CmdKeyFreeze:       {AdminOperator, false, applyKeyFreeze},
	CmdAuditKey:        {AdminOwner, true, applyAuditKey},
	CmdAuditSyslog:     {AdminOwner, false, applyAuditSyslog},
	CmdSyslogInstall:   {AdminOwner, false, applySyslogInstall},
	CmdRotationStart:   {AdminOperator, false, applyRotationStart},
	CmdRotationPair:    {AdminOperator, false, applyRotationPair},
	CmdRotationPrimary: {AdminOperator, false, applyRotationPrimary},
	CmdRotationDisable: {AdminOperator, false, applyRotationDisable},
	CmdRotationRemove:  {AdminOperator, false, applyRotationRemove},
	CmdRotationUndo:    {AdminOperator, false, applyRotationUndo},
	CmdRotationAbort:   {AdminOperator, false, applyRotationAbort},
	CmdPeerAdd:         {AdminOwner, false, applyPeerAdd},
	CmdPeerRemove:      {AdminOwner, false, applyPeerRemove},
}

// Kinds lists every command kind, for tests that walk them all.
func Kinds() []Kind {
	kinds := make([]Kind, 0, len(handlers))
	for k := range handlers {
		kinds = append(kinds, k)
	}
	return kinds
}

// Apply gives the state after c, or an error of type *Refused that leaves s as it is. It is pure; s is not changed in any case.
// It does not check the request id: the ledger does, because it keeps the results.
func Apply(s State, c Command) (State, Result, error) {
	h, ok := handlers[c.Kind]
	if !ok {
		return s, Result{}, fmt.Errorf("%w %.64q", ErrUnknownKind, c.Kind)
	}
	if len(c.Body) > MaxCommandSize {
		return s, Result{}, &Refused{c.Kind, "the command is larger than 1 MiB", ""}
	}
	if err := checkEnvelope(c); err != nil {
		return s, Result{}, err
	}
	if err := authorize(s, c, h.role, h.node); err != nil {
		return s, Result{}, err
	}
	next := s.clone()
	r, err := h.apply(&next, c)
	if err != nil {
		return s, Result{}, err
	}
	return next, r, nil
}

// authorize checks the actor against the records, not against what the console claims.
func authorize(s State, c Command, need AdminRole, node bool) error {
	if c.Kind == CmdSetup {
		if s.SetUp() {
			return &Refused{c.Kind, "this node is already set up", "change single settings with their verbs, or reset the node first"}
		}
		if c.Actor.Door != DoorSetup {
			return &Refused{c.Kind, "setup is only possible on the serial line", ""}
		}
		return nil
	}
	if !s.SetUp() {
		return &Refused{c.Kind, "this node is not set up", "run setup on the serial line first"}
	}
	if c.Actor.Door == DoorNode {
		if node {
			return nil
		}
		return &Refused{c.Kind, "a node may not do this by itself", ""}
	}
	if err := Allowed(s, c.Actor, need); err != nil {
		return &Refused{c.Kind, err.Error(), "ask an owner to give you the role, or another administrator to do it"}
	}
	return nil
}

// Allowed reports whether the actor is an enrolled administrator, with the key on record, whose role includes need.
func Allowed(s State, a Actor, need AdminRole) error {
	admin, ok := s.Admins[a.Name]
	if !ok {
		return fmt.Errorf("there is no administrator %q", a.Name)
	}
	fp, err := KeyFingerprint(admin.Key)
	if err != nil {
		return err
	}
	if fp != a.Key {
		return fmt.Errorf("the key of administrator %q has changed since the session began", a.Name)
	}
	if !admin.Role.Includes(need) {
		return fmt.Errorf("administrator %q is %s; this needs %s", a.Name, admin.Role, need)
	}
	return nil
}

var rank = map[AdminRole]int{AdminReviewer: 1, AdminOperator: 2, AdminOwner: 3}

// Includes reports whether r may do what need may do.
func (r AdminRole) Includes(need AdminRole) bool { return rank[r] >= rank[need] && rank[need] > 0 }

// Valid reports whether r is one of the three roles.
func (r AdminRole) Valid() bool { return rank[r] > 0 }

// ValidName accepts 1 to 64 of a-z, A-Z, 0-9, dot, dash, underscore, beginning with a letter or digit: names that need no quoting on
// any console and cannot hold control bytes.
func ValidName(name string) bool {
	if name == "" || len(name) > MaxNameLength {
		return false
	}
	for i := range len(name) {
		c := name[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || !strings.ContainsRune(".-_", rune(c))) {
			return false
		}
	}
	return true
}

// decode reads the body strictly: an unknown member is an error, so that a typing mistake never silently does less.
func decode[T any](c Command) (T, error) {
	var v T
	d := json.NewDecoder(strings.NewReader(string(c.Body)))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		return v, &Refused{c.Kind, fmt.Sprintf("the command does not parse: %.200s", err), ""} // it quotes what was sent
	}
	return v, nil
}

// HostID is the id of a host in host-key mode: upper-case hex SHA-256 of the SubjectPublicKeyInfo DER.
func HostID(spki []byte) string {
	sum := sha256.Sum256(spki)
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}

// RefOf is the KeyRef of a SubjectPublicKeyInfo DER.
func RefOf(spki []byte) KeyRef {
	sum := sha256.Sum256(spki)
	return KeyRef(hex.EncodeToString(sum[:]))
}

// Thumbprint is the lower-case hex SHA-256 of a DER certificate.
func Thumbprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// usableRSA checks a public key that a host or a key protector may depend on.
func usableRSA(pub any) error {
	k, ok := pub.(*rsa.PublicKey)
	if !ok {
		return errors.New("it is not an RSA key")
	}
	if n := k.N.BitLen(); n < 2048 || n > 8192 {
		return fmt.Errorf("its RSA key has %d bits; 2048 to 8192 are accepted", n)
	}
	return nil
}

func parseCertificate(c Command, der []byte) (*x509.Certificate, error) {
	if len(der) > MaxCertificate {
		return nil, &Refused{c.Kind, fmt.Sprintf("the certificate has %d bytes, %d are accepted", len(der), MaxCertificate), ""}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, &Refused{c.Kind, "the certificate does not parse: " + err.Error(), "give one DER or PEM certificate"}
	}
	if err := usableRSA(cert.PublicKey); err != nil {
		return nil, &Refused{c.Kind, "the certificate can't be used: " + err.Error(), "use an RSA key of at least 2048 bits"}
	}
	return cert, nil
}
