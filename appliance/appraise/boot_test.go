package appraise

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"math/big"
	"testing"
	"time"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
)

// boot is what a host measures; change a field and measure again.
type boot struct {
	settings  map[evidence.SettingID]uint64
	dbx       string
	authority []string
	ciPolicy  string
	dumpKey   []byte
	idk, idks bool
	foreign   bool
	debugger  bool
	noDMA     bool
	twice     map[evidence.SettingID]uint64 // measured again by another boot program
	once      bool                          // Windows measures everything a second time into PCR 13; not here
}

func goodBoot() *boot {
	b := &boot{settings: map[evidence.SettingID]uint64{}, dbx: "revoked", authority: []string{"vendor"}, ciPolicy: "policy", dumpKey: bytes.Repeat([]byte{0xd0}, 32), idk: true, idks: true}
	for _, id := range []evidence.SettingID{evidence.SecureBoot, evidence.CodeIntegrity, evidence.PageFileEncryption, evidence.HibernationDisabled, evidence.DumpsDisabled,
		evidence.DumpEncryption, evidence.VBSIOMMU, evidence.VSMLaunch, evidence.HVCI, evidence.HypervisorLaunch, evidence.TransferControl, evidence.BitLockerUnlock} {
		b.settings[id] = 1
	}
	for _, id := range []evidence.SettingID{evidence.BootDebug, evidence.KernelDebug, evidence.HypervisorDebug, evidence.TestSigning, evidence.SafeMode, evidence.WinPE} {
		b.settings[id] = 0
	}
	return b
}

// with is a good boot with one setting changed.
func with(id evidence.SettingID, v uint64) func(*boot) {
	return func(b *boot) { b.settings[id] = v }
}

func lacking(ids ...evidence.SettingID) func(*boot) {
	return func(b *boot) {
		for _, id := range ids {
			delete(b.settings, id)
		}
	}
}

// identityKey is a VSM identity key as it is measured (hgsa.md 9.3); its value does not matter here.
func identityKey() []byte {
	b := []byte{1, 0, 0, 0, 0, 8, 0, 0, 3, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1}
	return append(b, bytes.Repeat([]byte{0xc3}, 256)...)
}

func (b *boot) write() *evidence.Writer {
	w := evidence.NewWriter(evidence.SHA1, evidence.SHA256)
	variable := func(name, value string) {
		w.Event(7, evidence.EventVariable, evidence.UEFIVariable(name, []byte(value)))
	}
	variable("SecureBoot", string([]byte{byte(b.settings[evidence.SecureBoot])}))
	for _, v := range []string{"PK", "KEK", "db"} {
		variable(v, "the "+v)
	}
	variable("dbx", b.dbx)
	if b.debugger {
		w.Event(7, evidence.EventEFIAction, []byte("UEFI Debug Mode"))
	}
	if b.noDMA {
		w.Event(7, evidence.EventEFIAction, []byte("DMA Protection Disabled"))
	}
	for pcr := range 8 {
		w.Separator(pcr)
	}
	for _, a := range b.authority {
		w.Event(7, evidence.EventVariableAuthz, evidence.UEFIVariable("db", []byte(a)))
	}
	if b.foreign {
		w.Event(8, evidence.EventIPL, []byte("other loader"))
	}
	var events [][]byte
	for _, id := range evidence.SettingIDs() {
		if v, ok := b.settings[id]; ok && id.SIPA() != 0 {
			events = append(events, evidence.Tagged(id.SIPA(), binary.LittleEndian.AppendUint64(nil, v)...))
		}
	}
	for id, v := range b.twice {
		events = append(events, evidence.Tagged(id.SIPA(), binary.LittleEndian.AppendUint64(nil, v)...))
	}
	if b.idk {
		events = append(events, evidence.TaggedIDK(identityKey(), false))
	}
	if b.idks {
		events = append(events, evidence.TaggedIDK(identityKey(), true))
	}
	if b.ciPolicy != "" {
		sum := sha256.Sum256([]byte(b.ciPolicy))
		events = append(events, evidence.TaggedPolicy("SIPolicy.p7b", [4]uint16{10, 0, 0, 1}, evidence.SHA256, sum[:]))
	}
	if b.dumpKey != nil {
		events = append(events, evidence.TaggedDumpKey(b.dumpKey))
	}
	w.Event(12, evidence.EventTag, evidence.TrustBoundary(events...))
	if !b.once {
		w.Event(13, evidence.EventTag, evidence.TrustBoundary(events...))
	}
	for pcr := 12; pcr <= 14; pcr++ {
		w.Separator(pcr)
	}
	return w
}

// facts measures, proves and gives what was proved.
func (b *boot) facts(t testing.TB) *evidence.Facts {
	t.Helper()
	w := b.write()
	f, failure := evidence.Prove(w.Log(), w.PCRs(evidence.SHA256), evidence.SHA256)
	if failure != nil {
		t.Fatal(failure)
	}
	return f
}

// site is a fabric with one host of each version, and everything registered that a good boot needs.
type site struct {
	state policy.State
	ek    *evidence.EK
	root  *ecdsa.PrivateKey
	cert  []byte // of root
}

func newSite(t testing.TB) *site {
	t.Helper()
	s := &site{state: policy.NewState()}
	var err error
	if s.root, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	s.cert = s.issue(t, "Vendor Root", &s.root.PublicKey, true)
	ekKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ekCert := s.issue(t, "TPM", &ekKey.PublicKey, false)
	if s.ek, err = evidence.ParseEK(ekCert); err != nil {
		t.Fatal(err)
	}
	tp := policy.Thumbprint(s.cert)
	s.state.Anchors = map[string]policy.Anchor{tp: {Thumbprint: tp, Vendor: "vendor", Root: true, Name: "Vendor Root", Certificate: s.cert}}
	spki, err := x509.MarshalPKIXPublicKey(s.ek.Public)
	if err != nil {
		t.Fatal(err)
	}
	s.state.Hosts[s.ek.ID()] = policy.Host{ID: s.ek.ID(), Name: "hv7", Class: "default",
		TPM: &policy.TPMIdentity{EK: spki, EKCert: ekCert, Chain: []string{tp}, Version: policy.Version2}}
	good := goodBoot()
	s.state.Baselines = map[string]policy.Baseline{"r740": s.baseline(t, good, policy.Version2)}
	s.state.CIPolicies = map[string]policy.CIPolicy{"allow": s.ciPolicy(good, policy.Version2)}
	s.state.DumpKeys = map[string]policy.DumpKey{"ops": {Name: "ops", SHA256: good.dumpKey}}
	return s
}

func (s *site) issue(t testing.TB, name string, pub *ecdsa.PublicKey, ca bool) []byte {
	t.Helper()
	return s.issueFor(t, name, pub, ca, time.Time{}, time.Unix(2e9, 0))
}

func (s *site) issueFor(t testing.TB, name string, pub *ecdsa.PublicKey, ca bool, from, until time.Time) []byte {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: name}, NotBefore: from, NotAfter: until, IsCA: ca, BasicConstraintsValid: true}
	parent := &x509.Certificate{Subject: pkix.Name{CommonName: "Vendor Root"}}
	if ca {
		parent = tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, s.root)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (s *site) baseline(t testing.TB, b *boot, v policy.PolicyVersion) policy.Baseline {
	base := policy.Baseline{Name: "r740", Version: v}
	base.Variables, base.Authorities, base.NoDMA = Baseline(b.facts(t))
	return base
}

func (s *site) ciPolicy(b *boot, v policy.PolicyVersion) policy.CIPolicy {
	sum := sha256.Sum256([]byte(b.ciPolicy))
	return policy.CIPolicy{Name: "allow", Version: v, Digests: []policy.HashValue{{Alg: uint16(evidence.SHA256), Digest: sum[:]}}}
}

// set switches policies for all hosts.
func (s *site) set(on bool, names ...string) {
	enabled := map[string]bool{}
	for name, was := range s.state.PolicySets[policy.FabricWide].Enabled {
		enabled[name] = was
	}
	for _, name := range names {
		enabled[name] = on
	}
	s.state.PolicySets = map[string]policy.PolicySet{policy.FabricWide: {Enabled: enabled}}
}

func (s *site) host() policy.Host { return s.state.Hosts[s.ek.ID()] }

func (s *site) judge(t testing.TB, change ...func(*boot)) Verdict {
	t.Helper()
	b := goodBoot()
	for _, c := range change {
		c(b)
	}
	return Judge(Input{State: s.state, Host: s.host(), EK: s.ek, Facts: b.facts(t), LastGood: goodBoot().facts(t)})
}
