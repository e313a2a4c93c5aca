package verb_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/appraise"
	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
	"guardhouse/console/verb"
	"guardhouse/console/verb/verbtest"
)

// vendor is a maker of TPMs.
type vendor struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newVendor(t *testing.T) *vendor {
	t.Helper()
	v := &vendor{}
	var err error
	if v.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Lab TPM Root"}, NotAfter: time.Unix(2e9, 0), IsCA: true, BasicConstraintsValid: true, SubjectKeyId: []byte{1, 2, 3}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, v.key.Public(), v.key)
	if err != nil {
		t.Fatal(err)
	}
	if v.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return v
}

// tpm is an endorsement key and its certificate.
func (v *vendor) tpm(t *testing.T) (spki, cert []byte) {
	t.Helper()
	return v.tpmUntil(t, time.Unix(2e9, 0))
}

func (v *vendor) tpmUntil(t *testing.T, until time.Time) (spki, cert []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "TPM"}, NotAfter: until,
		IssuingCertificateURL: []string{"http://vendor.test/root.cer"}}
	if cert, err = x509.CreateCertificate(rand.Reader, tmpl, v.cert, key.Public(), v.key); err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(cert)
	if err != nil {
		t.Fatal(err)
	}
	return c.RawSubjectPublicKeyInfo, cert
}

func platform(t *testing.T, spki, cert []byte) string {
	t.Helper()
	p := &evidence.Platform{Name: "hv7", NoCertReason: "no certificate found"}
	if cert != nil {
		c, err := evidence.ParseCertificate(cert)
		if err != nil {
			t.Fatal(err)
		}
		p.Certificate, p.NoCertReason = c, ""
	}
	b, err := evidence.WritePlatform(p, spki)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// absent is a setting that an old host does not measure.
const absent = ^uint64(0)

// bootLog is a boot that passes every policy; settings changes some.
func bootLog(dbx, ci string, settings map[evidence.SettingID]uint64) []byte {
	w := evidence.NewWriter(evidence.SHA256)
	for _, v := range [][2]string{{"SecureBoot", "\x01"}, {"PK", "pk"}, {"KEK", "kek"}, {"db", "db"}, {"dbx", dbx}} {
		w.Event(7, evidence.EventVariable, evidence.UEFIVariable(v[0], []byte(v[1])))
	}
	w.Separator(7)
	w.Event(7, evidence.EventVariableAuthz, evidence.UEFIVariable("db", []byte("windows")))
	var events [][]byte
	for _, id := range evidence.SettingIDs() {
		value, on := settings[id]
		switch id {
		case evidence.TransferControl, evidence.CodeIntegrity, evidence.PageFileEncryption, evidence.HibernationDisabled, evidence.DumpsDisabled, evidence.DumpEncryption,
			evidence.VBSIOMMU, evidence.VSMLaunch, evidence.HVCI:
			if !on {
				value = 1
			}
		case evidence.BootDebug, evidence.KernelDebug, evidence.TestSigning:
		default:
			continue
		}
		if value != absent {
			events = append(events, id.Tagged(value, 8))
		}
	}
	idk := append([]byte{1, 0, 0, 0, 0, 8, 0, 0, 3, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1}, make([]byte, 256)...)
	sum := sha256.Sum256([]byte(ci))
	events = append(events, evidence.TaggedIDK(idk, false), evidence.TaggedIDK(idk, true), evidence.TaggedPolicy("lab", [4]uint16{1, 0, 0, 0}, evidence.SHA256, sum[:]),
		evidence.TaggedDumpKey(sum[:]))
	w.Event(12, evidence.EventTag, evidence.TrustBoundary(events...))
	for pcr := 12; pcr <= 14; pcr++ {
		w.Separator(pcr)
	}
	return w.Log()
}

// ciFile is a small binary policy.
func ciFile(audit bool) string {
	le := binary.LittleEndian
	b := append(le.AppendUint32(nil, 5), make([]byte, 32)...)
	options := uint32(1 << 31)
	if audit {
		options |= 1 << 16
	}
	b = append(le.AppendUint32(b, options), make([]byte, 16+8)...)
	b = le.AppendUint32(b, uint32(len(b)))
	b = append(b, make([]byte, 16)...)
	return string(le.AppendUint32(le.AppendUint32(le.AppendUint32(b, 3), 4), 5))
}

// attest judges a boot of a host as the attestation service does, and notes it.
func attest(t *testing.T, f *verbtest.Fake, name string, log []byte) appraise.Verdict {
	t.Helper()
	facts, failure := evidence.ParseBaseline(log)
	if failure != nil {
		t.Fatal(failure)
	}
	snap, _ := f.Node.Snapshot()
	h := snap.State.HostsByName(name)[0]
	ek, err := evidence.ParseEK(h.TPM.EK)
	if err != nil {
		t.Fatal(err)
	}
	v := appraise.Judge(appraise.Input{State: snap.State, Host: h, EK: ek, Facts: facts})
	kind := policy.ObservedFindings
	if v.Passed {
		kind = policy.ObservedGood
	}
	sum := sha256.Sum256(log)
	pcrs, failure := evidence.Replay(log, facts.Bank)
	if failure != nil {
		t.Fatal(failure)
	}
	record, err := appraise.Record(&v, facts, map[string]string{"log": fmt.Sprintf("%x", sum), "source": "10.0.2.7", "pcrs": appraise.RecordPCRs(facts.Bank, &pcrs)})
	if err != nil {
		t.Fatal(err)
	}
	f.KeepLog(fmt.Sprintf("%x", sum), log)
	f.Observe(kind, h.ID, record)
	return v
}

// waitFor lets the snapshot arrive.
func waitFor(t *testing.T, f *verbtest.Fake, ok func(policy.State) bool) {
	t.Helper()
	for limit := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if snap, _ := f.Node.Snapshot(); ok(snap.State) {
			return
		}
		if time.Now().After(limit) {
			t.Fatal("the change did not arrive")
		}
	}
}

func refusedCall(t *testing.T, s *verb.Session, line, stdin string, says ...string) {
	t.Helper()
	_, err := call(s, line, stdin)
	for _, want := range says {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", line, err, want)
		}
	}
}

// flat is what a verb says, without line breaks and columns.
func flat(t *testing.T, s *verb.Session, line, stdin string) string {
	t.Helper()
	return strings.Join(strings.Fields(mustCall(t, s, line, stdin)), " ")
}

// TestTPMModeByVerbs is an administrator's day: vendor, host, what its first attestation lacks, adoption, a policy tried and switched.
func TestTPMModeByVerbs(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	maker := newVendor(t)
	spki, cert := maker.tpm(t)
	mustCall(t, s, "service set --mode TPM", "")

	refusedCall(t, s, "host add-tpm hv7", platform(t, spki, cert), `issuer "Lab TPM Root"`, "vendor.test/root.cer", "tpm-trust import")
	refusedCall(t, s, "host add-tpm hv7 --force --reason old", platform(t, spki, nil), "can't be forced")
	mustCall(t, s, "tpm-trust import lab", armor("CERTIFICATE", maker.cert.Raw))
	waitFor(t, f, func(st policy.State) bool { return len(st.Anchors) == 1 })
	text := flat(t, s, "host add-tpm hv7 --class edge --inventory 4711", platform(t, spki, cert))
	if !strings.Contains(text, policy.HostID(spki)) || !strings.Contains(text, "yes, its certificate") {
		t.Errorf("host add-tpm said %s", text)
	}
	waitFor(t, f, func(st policy.State) bool { return len(st.Hosts) == 1 })
	if text := flat(t, s, "host list", ""); !strings.Contains(text, "TPM v2") || !strings.Contains(text, "0 baselines") {
		t.Errorf("host list said %s", text)
	}
	if text := flat(t, s, "host show hv7", ""); !strings.Contains(text, "ECC P-256") || !strings.Contains(text, "4711") {
		t.Errorf("host show said %s", text)
	}
	if text := flat(t, s, "host findings hv7", ""); !strings.Contains(text, "nothing wrong") {
		t.Errorf("host findings said %s", text)
	}
	refusedCall(t, s, "baseline add b --host hv7", "", "has seen no boot")

	good := bootLog("revoked", ciFile(false), nil)
	if v := attest(t, f, "hv7", good); len(v.Findings) != 2 {
		t.Fatalf("%+v", v)
	}
	text = flat(t, s, "host findings hv7", "")
	for _, want := range []string{"no baseline of policy version v2", "Hgs_CiPolicy", "baseline add NAME --host hv7", "ci-policy add NAME --host hv7"} {
		if !strings.Contains(text, want) {
			t.Errorf("host findings lacks %q:\n%s", want, text)
		}
	}
	mustCall(t, s, "baseline add first --host hv7 --policy-version v2", "")
	waitFor(t, f, func(st policy.State) bool { return len(st.Baselines) == 1 })
	refusedCall(t, s, "baseline add again", string(good), "says the same")
	refusedCall(t, s, "baseline add again", base64.StdEncoding.EncodeToString(good), "says the same")
	text = flat(t, s, "ci-policy add allow --dry-run", ciFile(false))
	if !strings.Contains(text, "Nothing was changed") || !strings.Contains(text, "1 that fail would pass") {
		t.Errorf("dry run said %s", text)
	}
	mustCall(t, s, "ci-policy add allow", ciFile(false))
	waitFor(t, f, func(st policy.State) bool { return len(st.CIPolicies) == 1 })
	if v := attest(t, f, "hv7", good); !v.Passed {
		t.Fatalf("%+v", v.Findings)
	}
	if text := flat(t, s, "policy enable Hgs_BitLockerEnabled --dry-run", ""); !strings.Contains(text, "1 that pass would fail") || !strings.Contains(text, "- hv7:") {
		t.Errorf("dry run said %s", text)
	}
	mustCall(t, s, "policy enable hgs_bitlockerenabled --class edge", "")
	waitFor(t, f, func(st policy.State) bool { return len(st.PolicySets) == 1 })
	if text := flat(t, s, "policy list --class edge", ""); !strings.Contains(text, "Hgs_BitLockerEnabled on edge") {
		t.Errorf("policy list said %s", text)
	}
	if text := flat(t, s, "host set hv7 --class core --dry-run", ""); !strings.Contains(text, "1 that fail would pass") {
		t.Errorf("dry run said %s", text)
	}
	mustCall(t, s, "policy inherit Hgs_BitLockerEnabled --class edge", "")
	mustCall(t, s, "host set hv7 --note 'rack 3'", "")
	refusedCall(t, s, "policy disable VsmRunning", "", "locked")
	if text := flat(t, s, "baseline remove first --dry-run", ""); !strings.Contains(text, "1 that pass would fail") {
		t.Errorf("dry run said %s", text)
	}
	mustCall(t, s, "dump-key add ops --host hv7", "")
	mustCall(t, s, "dump-key add hex --sha256 "+strings.Repeat("ab", 32), "")
	mustCall(t, s, "tpm-trust vendor lab off", "")
	waitFor(t, f, func(st policy.State) bool { return st.VendorOff("lab") && len(st.DumpKeys) == 2 })
	if v := attest(t, f, "hv7", good); v.Passed || v.Findings[0].Kind != appraise.UntrustedEK {
		t.Errorf("a vendor that is off is trusted: %+v", v)
	}
	for _, line := range []string{"baseline list", "ci-policy list", "dump-key list", "policy list", "tpm-trust list", "tpm-trust list lab", "host findings hv7",
		"tpm-trust remove lab", "baseline remove first", "ci-policy remove allow", "dump-key remove ops"} {
		mustCall(t, s, line, "")
	}
}

// TestAdoptionShowsWhatIsDifferentInWords: for each of the three things that a failed boot can give, without changing anything.
func TestAdoptionShowsWhatIsDifferentInWords(t *testing.T) {
	f, s, _ := tpmNode(t, "hv7")
	good := bootLog("revoked", ciFile(false), nil)
	mustCall(t, s, "baseline add base", string(good))
	mustCall(t, s, "ci-policy add allow", ciFile(false))
	mustCall(t, s, "policy disable Hgs_NoDumps", "")
	waitFor(t, f, func(st policy.State) bool {
		return len(st.Hosts) == 1 && len(st.CIPolicies) == 1 && len(st.PolicySets) == 1
	})
	mustCall(t, s, "dump-key add ops", string(good))
	waitFor(t, f, func(st policy.State) bool { return len(st.DumpKeys) == 1 })
	if v := attest(t, f, "hv7", good); !v.Passed {
		t.Fatalf("%+v", v.Findings)
	}
	if text := flat(t, s, "baseline add same --policy-version v1 --host hv7 --dry-run", ""); strings.Contains(text, "since the last boot") {
		t.Errorf("of the last good boot itself: %s", text)
	}
	bad := bootLog("revoked twice", ciFile(true), map[evidence.SettingID]uint64{evidence.DumpsDisabled: 0, evidence.BootDebug: 1})
	if v := attest(t, f, "hv7", bad); v.Passed {
		t.Fatal("it passes")
	}
	const since = "changed since the last boot of hv7 that passed: "
	for _, line := range []string{"baseline add new --host hv7 --dry-run", "ci-policy add new --host hv7 --dry-run", "dump-key add new --host hv7 --dry-run"} {
		text := flat(t, s, line, "")
		for _, want := range []string{"Nothing was changed", since + "+ variable dbx ", "- variable dbx ", `+ code integrity policy "lab" 1.0.0.0, sha256 `, `- code integrity policy "lab"`,
			"dump key: ", evidence.DumpsDisabled.String() + ": 1, now 0", evidence.BootDebug.String() + ": 0, now 1"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s lacks %q: %s", line, want, text)
			}
		}
		for _, not := range []string{"variable KEK", "variable db ", "authority", evidence.HVCI.String() + ":", "DMA"} {
			if _, after, _ := strings.Cut(text, since); strings.Contains(after, not) {
				t.Errorf("%s says %q, which is the same: %s", line, not, text)
			}
		}
	}
	if snap, _ := f.Node.Snapshot(); len(snap.State.Baselines)+len(snap.State.CIPolicies)+len(snap.State.DumpKeys) != 3 {
		t.Error("a dry run has registered something")
	}
}

func TestACertificateThatRanOutIsToldAndAccepted(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	maker := newVendor(t)
	spki, cert := maker.tpmUntil(t, time.Unix(1.6e9, 0))
	mustCall(t, s, "tpm-trust import lab", string(maker.cert.Raw))
	waitFor(t, f, func(st policy.State) bool { return len(st.Anchors) == 1 })
	const note = `"TPM" has expired on 2020-09-13 (a note`
	if text := flat(t, s, "host add-tpm hv7", platform(t, spki, cert)); !strings.Contains(text, note) || !strings.Contains(text, "yes, its certificate") {
		t.Errorf("host add-tpm said %s", text)
	}
	waitFor(t, f, func(st policy.State) bool { return len(st.Hosts) == 1 })
	if text := flat(t, s, "host show hv7", ""); !strings.Contains(text, note) {
		t.Errorf("host show said %s", text)
	}
	_, cert = maker.tpm(t)
	if text := flat(t, s, "host add-tpm hv8", string(append(cert, 0xff, 0xff))); !strings.Contains(text, "padding after the certificate") {
		t.Errorf("what was forgiven is not told: %s", text)
	}
}

func TestForcedHostsSayWhy(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	spki, _ := newVendor(t).tpm(t)
	refusedCall(t, s, "host add-tpm hv8 --policy-version v1", platform(t, spki, nil), "no endorsement key certificate", "--force")
	text := flat(t, s, "host add-tpm hv8 --policy-version v1 --force --reason 'lab machine'", platform(t, spki, nil))
	if !strings.Contains(text, "no certificate found") || !strings.Contains(text, "HostKey mode") {
		t.Errorf("host add-tpm said %s", text)
	}
	waitFor(t, f, func(st policy.State) bool { return len(st.Hosts) == 1 })
	if text := flat(t, s, "host show hv8", ""); !strings.Contains(text, "lab machine") || !strings.Contains(text, "TPM v1, forced") {
		t.Errorf("host show said %s", text)
	}
	if text := flat(t, s, "host add hv8", armor("CERTIFICATE", f.Certificate(t, "hv8"))); !strings.Contains(text, "registered") {
		t.Errorf("host add said %s", text)
	}
	waitFor(t, f, func(st policy.State) bool { return len(st.Hosts) == 2 })
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	mustCall(t, s, "host add only", armor("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&other.PublicKey)))
	waitFor(t, f, func(st policy.State) bool { return len(st.Hosts) == 3 })
	if text := flat(t, s, "service set --mode TPM", ""); !strings.Contains(text, "1 of 2 machines are not registered in TPM mode") || !strings.Contains(text, "to go back: mode undo") {
		t.Errorf("service set said %s", text)
	}
	waitFor(t, f, func(st policy.State) bool { return st.Service.Mode == policy.ModeTPM })
	mustCall(t, s, "service set --mode HostKey", "")
	mustCall(t, s, "host remove only", "")
	waitFor(t, f, func(st policy.State) bool { return len(st.Hosts) == 2 && st.Service.Mode == policy.ModeHostKey })
	f.Observe(policy.ObservedHost, policy.HostID(spki), map[string]string{"verdict": "ok"})
	if text := flat(t, s, "mode status", ""); !strings.Contains(text, "0 of 1 machines have passed here, 0 failed, 1 not seen") {
		t.Errorf("mode status said %s", text)
	}
	if text := flat(t, s, "mode status --mode TPM", ""); !strings.Contains(text, "1 of 1 machines have passed here") {
		t.Errorf("mode status said %s", text)
	}
	if text := flat(t, s, "host show hv8", ""); !strings.Contains(text, "host key") || !strings.Contains(text, "TPM v1") {
		t.Errorf("host show said %s", text)
	}
}

func TestAcceptsAPendingTPMByTheVerbItShows(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	maker := newVendor(t)
	spki, cert := maker.tpm(t)
	mustCall(t, s, "tpm-trust import lab", string(maker.cert.Raw))
	waitFor(t, f, func(st policy.State) bool { return len(st.Anchors) == 1 })
	f.PendingTPM(policy.HostID(spki), map[string]string{"mode": "TPM", "source": "10.0.2.9", "spki": base64.StdEncoding.EncodeToString(spki), "nameAlg": "11",
		"symmetric": "128", "certificate": base64.StdEncoding.EncodeToString(cert), "tpm": "id:494E5443 x", "issuer": "CN=Lab TPM Root"})
	out, err := call(s, "host pending", "")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := verb.JSON(out.Value)
	var v struct{ Pending []verb.PendingValue }
	if err := json.Unmarshal(b, &v); err != nil || len(v.Pending) != 1 || v.Pending[0].Issuer != "CN=Lab TPM Root" {
		t.Fatalf("%v: %s", err, b)
	}
	if text := flat(t, s, "host pending", ""); !v.Pending[0].Trusted || !strings.Contains(text, "trusted yes, its certificate leads to a trusted root") || !strings.Contains(text, "1 times, first 2026") {
		t.Errorf("host pending said %s", text)
	}
	refusedCall(t, s, strings.Replace(v.Pending[0].Accept, "add-tpm NAME", "add hv9", 1), "", "host add-tpm")
	mustCall(t, s, strings.Replace(v.Pending[0].Accept, "NAME", "hv9", 1), "")
	waitFor(t, f, func(st policy.State) bool { return len(st.Hosts[policy.HostID(spki)].TPM.Chain) == 1 })
}

// TestPendingSaysWhatACertificateIsWorthBeforeAnybodyAcceptsIt, naming what is missing.
func TestPendingSaysWhatACertificateIsWorthBeforeAnybodyAcceptsIt(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	maker := newVendor(t)
	b64 := base64.StdEncoding.EncodeToString
	ask := func(spki []byte, cert []byte) {
		facts := map[string]string{"mode": "TPM", "source": "10.0.2.9", "spki": b64(spki), "nameAlg": "11", "symmetric": "128"}
		if cert != nil {
			facts["certificate"] = b64(cert)
		}
		f.PendingTPM(policy.HostID(spki), facts)
	}
	untrusted, cert := maker.tpm(t)
	ask(untrusted, cert)
	bare, _ := maker.tpm(t)
	ask(bare, nil)
	other, _ := maker.tpm(t)
	ask(other, cert) // of another TPM
	text := flat(t, s, "host pending", "")
	for want, times := range map[string]int{`trusted NO: the issuer "Lab TPM Root" of "TPM" is in neither store, key id 010203, available at http://vendor.test/root.cer`: 1,
		"trusted NO: it has no certificate": 2, "trusted yes": 0} {
		if strings.Count(text, want) != times {
			t.Errorf("host pending says %q %d times: %s", want, strings.Count(text, want), text)
		}
	}
	refusedCall(t, s, "host add-tpm hv1 --pending "+policy.HostID(untrusted)[:16], "", `issuer "Lab TPM Root"`)
	mustCall(t, s, "tpm-trust import lab", string(maker.cert.Raw))
	waitFor(t, f, func(st policy.State) bool { return len(st.Anchors) == 1 })
	if text := flat(t, s, "host pending", ""); strings.Count(text, "trusted yes") != 1 {
		t.Errorf("host pending said %s", text)
	}
}

func TestRefusesWhatIsNoEvidence(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	refusedCall(t, s, "host add-tpm x", "", "nothing came")
	refusedCall(t, s, "host add-tpm x", "<a/>", "no endorsement key")
	refusedCall(t, s, "host add-tpm x", "hello", "no platform identifier")
	refusedCall(t, s, "baseline add x", "", "nothing came")
	refusedCall(t, s, "baseline add x", "hello", "no usable boot log")
	refusedCall(t, s, "baseline add x --host hv7", "", "no host")
	refusedCall(t, s, "ci-policy add x", "hello", "ConvertFrom-CIPolicy")
	refusedCall(t, s, "dump-key add x --sha256 12", "", "64 hexadecimal")
	refusedCall(t, s, "tpm-trust import x", "hello", "no certificates")
	refusedCall(t, s, "tpm-trust import x", "MSCF....", "expand -F:*")
	refusedCall(t, s, "tpm-trust vendor x on", "", "no TPM vendor")
	refusedCall(t, s, "host findings hv7", "", "no host")
	f.Do(t, policy.CmdHostAdd, policy.HostAdd{Name: "hv7", HostKey: spki(t, f.Certificate(t, "hv7"))})
	waitFor(t, f, func(st policy.State) bool { return len(st.Hosts) == 1 })
	refusedCall(t, s, "host findings hv7", "", "host key only")
	if text := flat(t, s, "ci-policy add audit", ciFile(true)); !strings.Contains(text, "audit mode") {
		t.Errorf("ci-policy add said %s", text)
	}
}

// TestAKeyThatCanNotAttestIsRefusedAtRegistration, and one that an older version registered is marked.
func TestAKeyThatCanNotAttestIsRefusedAtRegistration(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	spki, err := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 4095, 1), E: 65537})
	if err != nil {
		t.Fatal(err)
	}
	refusedCall(t, s, "host add-tpm hv7 --policy-version v1 --force --reason lab", platform(t, spki, nil), "can't attest here", "RSA of 4096 bits", "host add")
	f.Do(t, policy.CmdHostAddTPM, policy.TPMHostAdd{Name: "hv7", EK: spki, NameAlg: 13, Symmetric: 256, Version: policy.Version1, Force: true, Reason: "lab"})
	waitFor(t, f, func(st policy.State) bool { return len(st.Hosts) == 1 })
	if text := flat(t, s, "host list", ""); !strings.Contains(text, "TPM v1, can't attest") {
		t.Errorf("host list said %s", text)
	}
	if text := flat(t, s, "host show hv7", ""); !strings.Contains(text, "RSA of 4096 bits") || !strings.Contains(text, "host add") {
		t.Errorf("host show said %s", text)
	}
}
