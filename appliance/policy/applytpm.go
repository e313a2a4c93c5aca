package policy

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// TPMHostAdd registers a host by its TPM's endorsement key (D02). Chain is the proposer's finding: Apply checks that it names anchors that
// are trusted; whoever judges the host's evidence verifies the signatures again.
type TPMHostAdd struct {
	Name      string        `json:"name"`
	EK        []byte        `json:"ek"` // SubjectPublicKeyInfo DER: RSA of 2048 to 4096 bits, or ECC
	NameAlg   uint16        `json:"nameAlg"`
	Symmetric int           `json:"symmetric"`
	EKCert    []byte        `json:"ekCert,omitempty"`
	Chain     []string      `json:"chain,omitempty"`
	Untrusted string        `json:"untrusted,omitempty"` // why there is no chain, for the refusal
	Version   PolicyVersion `json:"version,omitempty"`   // default v2
	Force     bool          `json:"force,omitempty"`     // without a trusted certificate; v1 only
	Reason    string        `json:"reason,omitempty"`    // of Force; required
	Class     string        `json:"class,omitempty"`
	Note      string        `json:"note,omitempty"`
	Inventory string        `json:"inventory,omitempty"`
	Machine   *Machine      `json:"machine,omitempty"`
}

// BaselineAdd registers what a boot log measured into PCR 7.
type BaselineAdd struct {
	Name        string        `json:"name"`
	Version     PolicyVersion `json:"version,omitempty"` // default v2
	LogDigest   string        `json:"logDigest"`
	Variables   []Measured    `json:"variables"`
	Authorities []Measured    `json:"authorities"`
	NoDMA       bool          `json:"noDma,omitempty"`
}

// CIPolicyAdd registers a code integrity policy.
type CIPolicyAdd struct {
	Name     string        `json:"name"`
	Version  PolicyVersion `json:"version,omitempty"` // default v2
	Digests  []HashValue   `json:"digests"`
	Audit    bool          `json:"audit,omitempty"`
	PolicyID string        `json:"policyId,omitempty"`
	Title    string        `json:"title,omitempty"`
	Revision string        `json:"revision,omitempty"`
}

// DumpKeyAdd registers a key for crash dumps by the SHA-256 of its public key.
type DumpKeyAdd struct {
	Name   string `json:"name"`
	SHA256 []byte `json:"sha256"`
}

// PolicySwitch switches a built-in policy on or off for a class, or for all hosts where Class is FabricWide; with Enabled nil the set says
// nothing of it any more.
type PolicySwitch struct {
	Policy  string `json:"policy"`
	Class   string `json:"class,omitempty"`
	Enabled *bool  `json:"enabled"`
}

// TrustImport trusts certificates of one TPM vendor. Those that are there already are left as they are. A Virtual vendor (D10) begins
// switched off.
type TrustImport struct {
	Vendor  string        `json:"vendor"`
	Anchors []TrustAnchor `json:"anchors"`
	Virtual bool          `json:"virtual,omitempty"`
}

// TrustAnchor is one certificate of a TrustImport, in DER; Go's parser need not understand it.
type TrustAnchor struct {
	Root        bool   `json:"root"`
	Name        string `json:"name"`
	Certificate []byte `json:"certificate"`
}

// VendorSwitch switches all anchors of a vendor.
type VendorSwitch struct {
	Vendor string `json:"vendor"`
	On     bool   `json:"on"`
}

// put stores a record in a map that may be nil.
func put[K comparable, V any](m *map[K]V, k K, v V) {
	if *m == nil {
		*m = map[K]V{}
	}
	(*m)[k] = v
}

func (v *PolicyVersion) check(c Command) error {
	if *v == "" {
		*v = Version2
	}
	if !v.Valid() {
		return &Refused{c.Kind, fmt.Sprintf("%.64q is not a policy version", *v), "use v1 or v2"}
	}
	return nil
}

// newRecord checks the name of a record to be added and that there is room.
func newRecord[V any](c Command, what, name string, have map[string]V, most int) error {
	if !ValidName(name) {
		return &Refused{c.Kind, fmt.Sprintf("%.64q is not a valid name for a %s", name, what), "use letters, digits, dots, dashes; at most 64"}
	}
	if _, ok := have[name]; ok {
		return &Refused{c.Kind, fmt.Sprintf("there is a %s %.64q already", what, name), "remove it first, or choose another name"}
	}
	if len(have) >= most {
		return &Refused{c.Kind, fmt.Sprintf("%d of this kind are registered, the limit: %s", most, what), "remove one that no host needs"}
	}
	return nil
}

// removeRecord removes a record of TPM mode; result is what that means for hosts.
func removeRecord[V any](s *State, c Command, what, list string, have map[string]V, result string) (Result, error) {
	b, err := decode[Removal](c)
	if err != nil {
		return Result{}, err
	}
	if _, ok := have[b.Name]; !ok {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("there is no %s %.64q", what, b.Name), "see " + list}
	}
	note, err := s.keepOld(c, ModeTPM, b.Phrase)
	if err != nil {
		return Result{}, err
	}
	delete(have, b.Name)
	return Result{Message: what + " " + b.Name + " removed: " + result + note, Subject: b.Name}, nil
}

func applyHostAddTPM(s *State, c Command) (Result, error) {
	b, err := decode[TPMHostAdd](c)
	if err != nil {
		return Result{}, err
	}
	if err := b.Version.check(c); err != nil {
		return Result{}, err
	}
	if !ValidName(b.Name) || b.Class != "" && !ValidName(b.Class) {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("%.64q or its host class is not a valid name", b.Name), "use letters, digits, dots, dashes; at most 64"}
	}
	if !validText(b.Note, MaxNote) || !validText(b.Reason, MaxNote) || !validText(b.Inventory, MaxNameLength) {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("a note, reason or inventory number is no printable text, or longer than %d bytes", MaxNote), ""}
	}
	if !b.Machine.valid() {
		return Result{}, &Refused{c.Kind, "what the file says of the machine is malformed", "capture it again with Get-PlatformIdentifier, or give the endorsement key's certificate alone"}
	}
	t := TPMIdentity{EK: b.EK, NameAlg: b.NameAlg, Symmetric: b.Symmetric, EKCert: b.EKCert, Chain: b.Chain, Version: b.Version, Inventory: b.Inventory, Machine: b.Machine}
	if err := t.checkKey(c); err != nil {
		return Result{}, err
	}
	if err := s.checkTrust(c, &t, b); err != nil {
		return Result{}, err
	}
	id := HostID(t.EK)
	if h, ok := s.Hosts[id]; ok {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("this TPM is registered as %q", h.Name), "nothing to do, or remove that host first"}
	}
	return registerHost(s, c, Host{ID: id, Name: b.Name, TPM: &t, Class: b.Class, Note: b.Note})
}

// checkKey bounds the endorsement key and brings it into the one encoding over which its id is taken.
func (t *TPMIdentity) checkKey(c Command) error {
	pub, err := x509.ParsePKIXPublicKey(t.EK)
	if len(t.EK) > maxEK || err != nil {
		return &Refused{c.Kind, "the endorsement key is no public key, or one that is too large", "capture it on the host with Get-PlatformIdentifier"}
	}
	usable := false
	switch k := pub.(type) {
	case *rsa.PublicKey:
		usable = k.N.BitLen() >= 2048 && k.N.BitLen() <= 4096
	case *ecdsa.PublicKey:
		usable = k.Curve == elliptic.P256() || k.Curve == elliptic.P384()
	}
	if !usable || hashSizes[t.NameAlg] < sha256.Size || t.Symmetric != 128 && t.Symmetric != 192 && t.Symmetric != 256 {
		return &Refused{c.Kind, "the endorsement key is not RSA of 2048 to 4096 bits or on P-256 or P-384, or has an unknown template", "capture it on the host with Get-PlatformIdentifier"}
	}
	if t.EK, err = x509.MarshalPKIXPublicKey(pub); err != nil {
		return &Refused{c.Kind, "the endorsement key can't be used: " + err.Error(), ""}
	}
	if len(t.EKCert) > MaxEKCertificate {
		return &Refused{c.Kind, fmt.Sprintf("the endorsement key's certificate has %d bytes, %d are accepted", len(t.EKCert), MaxEKCertificate), ""}
	}
	// A vendor's certificate that Go can't read is compared by whoever judges.
	if cert, err := x509.ParseCertificate(t.EKCert); err == nil && cert.PublicKey != nil {
		if spki, err := x509.MarshalPKIXPublicKey(cert.PublicKey); err == nil && !bytes.Equal(spki, t.EK) {
			return &Refused{c.Kind, "the certificate is for another endorsement key", "capture both again with Get-PlatformIdentifier"}
		}
	}
	return nil
}

// checkTrust is C21 and C22: version 2 needs a certificate that leads to a trusted root; version 1 can be forced to do without.
func (s *State) checkTrust(c Command, t *TPMIdentity, b TPMHostAdd) error {
	why, remedy := s.untrusted(*t)
	if why == "" {
		return nil
	}
	t.Chain = nil
	if b.Untrusted != "" && len(t.EKCert) > 0 && len(b.Chain) == 0 && validText(b.Untrusted, 512) {
		why = b.Untrusted
	}
	switch {
	case t.Version == Version2 && b.Force:
		return &Refused{c.Kind, why + "; a host of policy version v2 can't be forced", "register it with --policy-version v1 --force, and its baseline and code integrity policy as v1 too"}
	case t.Version == Version2:
		return &Refused{c.Kind, why, remedy + ", or register it as v1 with --force, and its baseline and code integrity policy as v1 too"}
	case !b.Force:
		return &Refused{c.Kind, why, remedy + ", or use --force with a --reason"}
	case strings.TrimSpace(b.Reason) == "":
		return &Refused{c.Kind, "a host without a trusted certificate needs a reason that others can read later", "give --reason"}
	}
	t.Forced = b.Reason
	return nil
}

// untrusted says why a TPM's chain does not hold under the anchors of this state, "" if it does, and what to do.
func (s *State) untrusted(t TPMIdentity) (why, remedy string) {
	if len(t.EKCert) == 0 {
		return "the TPM has no endorsement key certificate, so nothing proves that it is a TPM", "capture the platform identifier again from an elevated prompt"
	}
	if len(t.Chain) == 0 || len(t.Chain) > maxChain {
		return "the endorsement key's certificate does not lead to a trusted root", "import its vendor with tpm-trust import"
	}
	for i, tp := range t.Chain {
		a, ok := s.Anchors[tp]
		switch {
		case !ok:
			return fmt.Sprintf("the certificate %.64q is not among the trusted TPM certificates", tp), "import its vendor with tpm-trust import"
		case s.VendorOff(a.Vendor):
			return fmt.Sprintf("the TPM vendor %q is switched off", a.Vendor), "tpm-trust vendor " + a.Vendor + " on"
		case i == len(t.Chain)-1 && !a.Root:
			return fmt.Sprintf("the chain ends with %q, which is no root", a.Name), "import the root with tpm-trust import"
		}
	}
	return "", ""
}

func checkMeasured(c Command, list []Measured, most int, what string) error {
	if len(list) > most {
		return &Refused{c.Kind, fmt.Sprintf("%d %s are measured, %d are accepted", len(list), what, most), ""}
	}
	for _, m := range list {
		// What JSON would have to escape is no name of a UEFI variable, and would make a baseline six times as large.
		if !validText(m.Name, MaxNameLength) || strings.ContainsAny(m.Name, "<>&\"\\") || !validText(m.GUID, 36) || strings.ContainsAny(m.GUID, "<>&\"\\") || len(m.SHA256) != sha256.Size {
			return &Refused{c.Kind, "one of the measured " + what + " is malformed", ""}
		}
	}
	return nil
}

func applyBaselineAdd(s *State, c Command) (Result, error) {
	b, err := decode[BaselineAdd](c)
	if err != nil {
		return Result{}, err
	}
	if err := b.Version.check(c); err != nil {
		return Result{}, err
	}
	if err := newRecord(c, "baseline", b.Name, s.Baselines, MaxBaselines); err != nil {
		return Result{}, err
	}
	if err := checkMeasured(c, b.Variables, maxVariables, "variables"); err != nil {
		return Result{}, err
	}
	if err := checkMeasured(c, b.Authorities, maxAuthorities, "authorities"); err != nil {
		return Result{}, err
	}
	if digest, err := hex.DecodeString(b.LogDigest); err != nil || len(digest) != sha256.Size || len(b.Variables) == 0 {
		return Result{}, &Refused{c.Kind, "the baseline holds no variables, or not the digest of its log", "capture it with Get-HgsAttestationBaselinePolicy"}
	}
	r := Baseline{Name: b.Name, Version: b.Version, LogDigest: strings.ToLower(b.LogDigest), Variables: b.Variables, Authorities: b.Authorities, NoDMA: b.NoDMA, Added: c.At}
	for _, name := range sortedNames(s.Baselines) {
		if other := s.Baselines[name]; other.Version == r.Version && other.same(r) {
			return Result{}, &Refused{c.Kind, fmt.Sprintf("baseline %q says the same", other.Name), "nothing to do"}
		}
	}
	put(&s.Baselines, b.Name, r)
	return Result{Message: fmt.Sprintf("baseline %s (%s) registered", b.Name, b.Version), Subject: b.Name}, nil
}

// same reports whether two baselines accept the same hosts.
func (b Baseline) same(other Baseline) bool {
	equal := func(x, y Measured) bool {
		return x.Name == y.Name && x.GUID == y.GUID && bytes.Equal(x.SHA256, y.SHA256)
	}
	return b.NoDMA == other.NoDMA && slices.EqualFunc(b.Variables, other.Variables, equal) && slices.EqualFunc(b.Authorities, other.Authorities, equal)
}

func sortedNames[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func applyBaselineRemove(s *State, c Command) (Result, error) {
	return removeRecord(s, c, "baseline", "baseline list", s.Baselines, "hosts that match no other one fail")
}

// hashSizes are the hashes that a host may measure with, by TCG algorithm id.
var hashSizes = map[uint16]int{0x0004: 20, 0x000b: 32, 0x000c: 48, 0x000d: 64}

func applyCIPolicyAdd(s *State, c Command) (Result, error) {
	b, err := decode[CIPolicyAdd](c)
	if err != nil {
		return Result{}, err
	}
	if err := b.Version.check(c); err != nil {
		return Result{}, err
	}
	if err := newRecord(c, "code integrity policy", b.Name, s.CIPolicies, MaxCIPolicies); err != nil {
		return Result{}, err
	}
	if !validText(b.PolicyID, 36) || !validText(b.Title, MaxNote) || !validText(b.Revision, 32) {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("its identifier, title or version is no printable text, or longer than %d bytes", MaxNote), ""}
	}
	seen := map[uint16]bool{}
	for _, d := range b.Digests {
		if hashSizes[d.Alg] == 0 || len(d.Digest) != hashSizes[d.Alg] || seen[d.Alg] {
			return Result{}, &Refused{c.Kind, fmt.Sprintf("the digest with the algorithm 0x%04x is malformed, or given twice", d.Alg), ""}
		}
		seen[d.Alg] = true
		for _, name := range sortedNames(s.CIPolicies) {
			if other := s.CIPolicies[name]; other.Version == b.Version && other.has(d) {
				return Result{}, &Refused{c.Kind, fmt.Sprintf("this policy is registered as %q", other.Name), "nothing to do"}
			}
		}
	}
	if !seen[0x000b] {
		return Result{}, &Refused{c.Kind, "its SHA-256 is missing", "give the policy file itself"}
	}
	put(&s.CIPolicies, b.Name, CIPolicy{Name: b.Name, Version: b.Version, Digests: b.Digests, Audit: b.Audit, PolicyID: b.PolicyID, Title: b.Title, Revision: b.Revision, Added: c.At})
	return Result{Message: fmt.Sprintf("code integrity policy %s (%s) registered", b.Name, b.Version), Subject: b.Name}, nil
}

func (p CIPolicy) has(d HashValue) bool { return p.Matches(d.Alg, d.Digest) }

// Matches reports whether a digest that a host measured is this policy's.
func (p CIPolicy) Matches(alg uint16, digest []byte) bool {
	for _, d := range p.Digests {
		if d.Alg == alg && len(digest) > 0 && bytes.Equal(d.Digest, digest) {
			return true
		}
	}
	return false
}

func applyCIPolicyRemove(s *State, c Command) (Result, error) {
	return removeRecord(s, c, "code integrity policy", "ci-policy list", s.CIPolicies, "hosts that run under no other one fail")
}

func applyDumpKeyAdd(s *State, c Command) (Result, error) {
	b, err := decode[DumpKeyAdd](c)
	if err != nil {
		return Result{}, err
	}
	if err := newRecord(c, "dump key", b.Name, s.DumpKeys, MaxDumpKeys); err != nil {
		return Result{}, err
	}
	if len(b.SHA256) != sha256.Size {
		return Result{}, &Refused{c.Kind, "a dump key is named by the SHA-256 of its public key", "give 64 hexadecimal digits"}
	}
	for _, name := range sortedNames(s.DumpKeys) {
		if bytes.Equal(s.DumpKeys[name].SHA256, b.SHA256) {
			return Result{}, &Refused{c.Kind, fmt.Sprintf("this key is registered as %q", name), "nothing to do"}
		}
	}
	put(&s.DumpKeys, b.Name, DumpKey{Name: b.Name, SHA256: b.SHA256, Added: c.At})
	return Result{Message: "dump key " + b.Name + " registered", Subject: b.Name}, nil
}

func applyDumpKeyRemove(s *State, c Command) (Result, error) {
	return removeRecord(s, c, "dump key", "dump-key list", s.DumpKeys, "hosts that encrypt dumps to it fail")
}
