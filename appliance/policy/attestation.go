package policy

import (
	"slices"
	"strings"
)

// Limits of what TPM mode adds. Counts are records; sizes are bytes.
const (
	MaxBaselines     = 256
	MaxCIPolicies    = 256
	MaxDumpKeys      = 64
	MaxPolicySets    = 64
	MaxAnchors       = 2048
	MaxAnchorBytes   = 2 << 20 // of all trusted TPM certificates in DER; Microsoft's package of all vendors has about half of that
	MaxEKCertificate = 4 << 10
	maxEK            = 1 << 10 // SubjectPublicKeyInfo of RSA 4096
	maxChain         = 8
	maxVariables     = 16 // of a baseline
	maxAuthorities   = 64 // of a baseline
)

// Version1 and Version2 are the two generations of attestation policies (C20): a host passes with a baseline and a code integrity policy of
// its own version only. Version 2 wants an endorsement key certificate from a trusted vendor; version 1 can do without.
const (
	Version1 PolicyVersion = "v1"
	Version2 PolicyVersion = "v2"
)

// PolicyVersion is "v1" or "v2".
type PolicyVersion string

// Valid reports whether v is one of the two.
func (v PolicyVersion) Valid() bool { return v == Version1 || v == Version2 }

// TPMIdentity is what makes a host one of TPM mode: its endorsement key, and how that came to be trusted.
type TPMIdentity struct {
	EK        []byte        `json:"ek"`                  // SubjectPublicKeyInfo DER
	NameAlg   uint16        `json:"nameAlg"`             // TCG algorithm id of the key's name, and so of its OAEP or ECDH
	Symmetric int           `json:"symmetric"`           // bits of the AES that protects the key's children
	EKCert    []byte        `json:"ekCert,omitempty"`    // DER, without NV header and padding
	Chain     []string      `json:"chain,omitempty"`     // SHA-256 thumbprints of the anchors from its issuer to the root, as found when registered
	Version   PolicyVersion `json:"version"`             //
	Forced    string        `json:"forced,omitempty"`    // why it was registered without a trusted certificate (C21); empty = it has one
	Inventory string        `json:"inventory,omitempty"` // the owner's own number for the machine (D04)
	Machine   *Machine      `json:"machine,omitempty"`   // nil where its file said nothing of it, or came before it was kept
}

// Machine is what a platform identifier says of the computer around the TPM. Nothing proves it: it is for finding a host, never for judging one.
type Machine struct {
	SMBIOS string   `json:"smbios,omitempty"` // its UUID, as the file has it
	Serial string   `json:"serial,omitempty"`
	MACs   []string `json:"macs,omitempty"` // upper-case hexadecimal without separators; at most MaxMACs
}

// MaxMACs is the most MAC addresses that are kept of a machine.
const MaxMACs = 16

func (m *Machine) valid() bool {
	if m == nil {
		return true
	}
	return validText(m.SMBIOS, MaxNameLength) && validText(m.Serial, MaxNameLength) && len(m.MACs) <= MaxMACs && !slices.ContainsFunc(m.MACs, func(mac string) bool { return !ValidMAC(mac) })
}

// ValidMAC reports whether s is an address of 6 to 20 bytes as Machine has it.
func ValidMAC(s string) bool {
	return len(s) >= 12 && len(s) <= 40 && len(s)%2 == 0 && strings.Trim(s, "0123456789ABCDEF") == ""
}

// Baseline is what firmware of one class of hardware measures into PCR 7, digested from a boot log (D13).
type Baseline struct {
	Name        string        `json:"name"`
	Version     PolicyVersion `json:"version"`
	LogDigest   string        `json:"logDigest"` // lower-case hex SHA-256 of the .tcglog
	Variables   []Measured    `json:"variables"`
	Authorities []Measured    `json:"authorities"`
	NoDMA       bool          `json:"noDma,omitempty"` // firmware says that it started without DMA protection
	Added       Stamp         `json:"added"`
}

// Measured is one UEFI variable, or one entry of a signature database by which an image was allowed to run.
type Measured struct {
	Name   string `json:"name"`
	GUID   string `json:"guid"`
	SHA256 []byte `json:"sha256"` // of its contents, whatever bank it was measured into
}

// CIPolicy is a code integrity policy that hosts may run under (D15).
type CIPolicy struct {
	Name     string        `json:"name"`
	Version  PolicyVersion `json:"version"`
	Digests  []HashValue   `json:"digests"` // of the policy without its signature, one for each hash that a host may measure with
	Audit    bool          `json:"audit"`   // violations are logged, not prevented
	PolicyID string        `json:"policyId,omitempty"`
	Title    string        `json:"title,omitempty"`    // the name inside of the file
	Revision string        `json:"revision,omitempty"` // a.b.c.d
	Added    Stamp         `json:"added"`
}

// HashValue is a digest with its TCG algorithm id.
type HashValue struct {
	Alg    uint16 `json:"alg"`
	Digest []byte `json:"digest"`
}

// DumpKey is a key that crash dumps may be encrypted to (E18).
type DumpKey struct {
	Name   string `json:"name"`
	SHA256 []byte `json:"sha256"` // of the public key, 32 bytes
	Added  Stamp  `json:"added"`
}

// PolicySet says which of the policies that may be switched are on. The set of FabricWide holds for all hosts; the set of a host class
// goes before it for the hosts of that class (E26). A policy that a set does not name keeps what the next wider one says.
type PolicySet struct {
	Class   string          `json:"class"`
	Enabled map[string]bool `json:"enabled"` // by policy name
	Changed Stamp           `json:"changed"`
}

// FabricWide is the class of the policy set that holds for all hosts.
const FabricWide = ""

// Anchor is a TPM vendor's certificate that endorsement key certificates may lead to.
type Anchor struct {
	Thumbprint  string `json:"thumbprint"` // lower-case hex SHA-256 of the DER certificate
	Vendor      string `json:"vendor"`     // label; all anchors of one label are switched together
	Root        bool   `json:"root"`       // trusted by itself; the others only help to reach a root
	Name        string `json:"name"`       // its common name, for people
	Certificate []byte `json:"certificate"`
	Added       Stamp  `json:"added"`
}

// Built-in attestation policies by name; VsmRunning has no name in Microsoft's documents.
const (
	HgsSecureBootEnabled          = "Hgs_SecureBootEnabled"
	HgsSecureBootSettings         = "Hgs_SecureBootSettings"
	HgsUefiDebugDisabled          = "Hgs_UefiDebugDisabled"
	HgsCiPolicy                   = "Hgs_CiPolicy"
	HgsHypervisorEnforcedCiPolicy = "Hgs_HypervisorEnforcedCiPolicy"
	HgsFullBoot                   = "Hgs_FullBoot"
	HgsVsmIdkPresent              = "Hgs_VsmIdkPresent"
	VsmRunning                    = "VsmRunning"
	HgsIommuEnabled               = "Hgs_IommuEnabled"
	HgsPageFileEncryptionEnabled  = "Hgs_PageFileEncryptionEnabled"
	HgsBitLockerEnabled           = "Hgs_BitLockerEnabled"
	HgsNoHibernation              = "Hgs_NoHibernation"
	HgsNoDumps                    = "Hgs_NoDumps"
	HgsDumpEncryption             = "Hgs_DumpEncryption"
	HgsDumpEncryptionKey          = "Hgs_DumpEncryptionKey"
)

// Builtin is an attestation policy that every service has.
type Builtin struct {
	Name      string `json:"name"`
	GUID      string `json:"guid"`      // of EvaluationLog.Reason, lower case (hgsa.md 4.6)
	SubStatus string `json:"subStatus"` // what the host shows as AttestationSubStatus
	Events    []int  `json:"events"`    // ids of Microsoft's event log; the first is the one we write; none is known for a full boot
	Default   bool   `json:"default"`   // on without anybody's doing
	Locked    bool   `json:"locked"`    // always on
	Negative  bool   `json:"negative"`  // fails unless something that administrators registered matches (E25)
	Asks      string `json:"asks"`      // what it asks of a host
}

// Builtins are the policies in the order of the documents; readers must not change it. Defaults and locks that Microsoft does not publish
// are the safer choice.
var Builtins = []Builtin{
	{HgsSecureBootEnabled, "6a460ee1-62ea-416f-ae6c-04e29634506d", "SecureBoot", []int{1508}, true, true, false, "Secure Boot is on"},
	{HgsSecureBootSettings, "756dc455-9528-479a-a86a-c646417316c9", "SecureBootSettings", []int{1508}, true, true, true,
		"Secure Boot's variables and launch authorities are those of a registered baseline"},
	{HgsUefiDebugDisabled, "20188fda-d40b-460d-b078-2e7898a42ae9", "DebugMode", []int{1510}, true, true, false, "no debugger of firmware, boot manager, kernel or hypervisor"},
	{HgsCiPolicy, "81f110ba-53c5-4064-9d64-51029fa24f49", "CodeIntegrityPolicy", []int{1513, 1538}, true, true, true, "a registered code integrity policy is in use"},
	{HgsHypervisorEnforcedCiPolicy, "5408bd30-3250-4ac1-a150-c410af756699", "HypervisorEnforcedCodeIntegrityPolicy", []int{1537}, true, false, false,
		"the hypervisor enforces code integrity"},
	{HgsFullBoot, "75ad09c9-7254-4d00-96f3-3b09d0aaac54", "FullBoot", nil, true, true, false, "a full boot, no resume from sleep or hibernation"},
	{HgsVsmIdkPresent, "75d595de-12f5-41e9-a61e-469d3205ecca", "VirtualSecureMode", []int{1534}, true, true, false, "the identity key of virtual secure mode was measured"},
	{VsmRunning, "6c0a6d29-5bcb-4f28-bafb-f71eb60fdae0", "VirtualSecureMode", []int{1534}, true, true, false, "virtual secure mode runs"},
	{HgsIommuEnabled, "da0776e5-6570-44b3-9a17-7e95b4fc7779", "Iommu", []int{1533}, true, false, false, "virtualization-based security requires an IOMMU"},
	{HgsPageFileEncryptionEnabled, "12df0ee9-b38e-4086-90f8-703d9e7cb878", "PagefileEncryption", []int{1535}, true, false, false, "the page file is encrypted"},
	{HgsBitLockerEnabled, "347da547-d266-4939-bf3d-9ec73a90bdbc", "BitLocker", []int{1536}, false, false, false, "the operating system's volume is protected by BitLocker"},
	{HgsNoHibernation, "a32022c6-dccd-4bf5-be76-3b5ca1542559", "HibernationEnabled", []int{1539}, true, false, false, "hibernation is off"},
	{HgsNoDumps, "2a796e36-e918-454f-b610-60f086e8d334", "DumpsEnabled", []int{1540}, true, false, false, "crash and live dumps are off"},
	{HgsDumpEncryption, "6f390a71-753c-43aa-a326-74e30aedcd9d", "DumpEncryption", []int{1541}, true, false, false, "dumps, if they are on, are encrypted"},
	{HgsDumpEncryptionKey, "85dac0a4-8ba9-4a7f-a342-211862ce0be8", "DumpEncryptionKey", []int{1542}, true, false, true,
		"dumps, if they are on, are encrypted to a registered key; not applied while Hgs_DumpEncryption is off"},
}

// BuiltinByName finds a policy by its name in any case, or by its GUID.
func BuiltinByName(name string) (*Builtin, bool) {
	for i := range Builtins {
		if b := &Builtins[i]; strings.EqualFold(b.Name, name) || strings.EqualFold(b.GUID, name) {
			return b, true
		}
	}
	return nil, false
}

// Enabled reports whether a built-in policy holds for the hosts of a class, and why: "locked", the class whose set says so, "fabric" or
// "default".
func (s State) Enabled(b *Builtin, class string) (on bool, because string) {
	if b.Locked {
		return true, "locked"
	}
	if class != FabricWide {
		if on, ok := s.PolicySets[class].Enabled[b.Name]; ok {
			return on, class
		}
	}
	if on, ok := s.PolicySets[FabricWide].Enabled[b.Name]; ok {
		return on, "fabric"
	}
	return b.Default, "default"
}

// HostsByName gives the records of a machine: at most one for its host key and one for its TPM, in that order.
func (s State) HostsByName(name string) (hosts []Host) {
	for _, h := range s.Hosts {
		if h.Name == name {
			hosts = append(hosts, h)
		}
	}
	slices.SortFunc(hosts, func(a, b Host) int { return int(b.Mode()) - int(a.Mode()) })
	return hosts
}

// Mode is the attestation mode in which the host is known.
func (h Host) Mode() Mode {
	if h.TPM != nil {
		return ModeTPM
	}
	return ModeHostKey
}

// VendorOff reports whether a vendor's anchors are switched off.
func (s State) VendorOff(vendor string) bool { return s.VendorsOff[vendor] }
