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

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
	"guardhouse/console/verb"
	"guardhouse/console/verb/verbtest"
)

// TestSaysWhichHostsToUpdateBeforeDumpEncryptionIsEnabled: their logs lack the events (E20), whether they pass now or not.
func TestSaysWhichHostsToUpdateBeforeDumpEncryptionIsEnabled(t *testing.T) {
	f, s, _ := tpmNode(t, "old")
	old := bootLog("revoked", ciFile(false), map[evidence.SettingID]uint64{evidence.DumpsDisabled: absent, evidence.DumpEncryption: absent})
	mustCall(t, s, "baseline add base", string(old))
	mustCall(t, s, "ci-policy add allow", ciFile(false))
	mustCall(t, s, "policy disable Hgs_NoDumps", "")
	mustCall(t, s, "policy disable Hgs_DumpEncryption", "")
	waitFor(t, f, func(st policy.State) bool { return len(st.PolicySets[""].Enabled) == 2 && len(st.CIPolicies) == 1 })
	if v := attest(t, f, "old", old); !v.Passed {
		t.Fatalf("%+v", v.Findings)
	}
	for _, name := range []string{policy.HgsDumpEncryption, policy.HgsNoDumps} {
		text := flat(t, s, "policy enable "+name+" --dry-run", "")
		if !strings.Contains(text, "1 that pass would fail") || !strings.Contains(text, "Update first, their logs don't tell how they write dumps: old") || !strings.Contains(text, "cumulative updates") {
			t.Errorf("%s: %s", name, text)
		}
	}
	if text := flat(t, s, "policy enable Hgs_BitLockerEnabled --dry-run", ""); strings.Contains(text, "Update first") {
		t.Errorf("another policy: %s", text)
	}
	out, err := call(s, "policy enable Hgs_DumpEncryption", "")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := json.Marshal(out.Value)
	var v verb.Changed
	if err := json.Unmarshal(b, &v); err != nil || v.Effect == nil || len(v.Effect.Update) != 1 || !strings.Contains(v.Effect.Fail[0].Remedy, "before Hgs_DumpEncryption") {
		t.Errorf("%s: %v", b, err)
	}
	// A host that fails for this reason already is named all the same.
	waitFor(t, f, func(st policy.State) bool { return st.PolicySets[""].Enabled[policy.HgsDumpEncryption] })
	if text := flat(t, s, "policy enable Hgs_NoDumps --dry-run", ""); !strings.Contains(text, "1 fail as before") || !strings.Contains(text, "Update first") {
		t.Errorf("it said %s", text)
	}
}

// TestDumpKeyIsTheHashThatHostsMeasure: of a certificate in any form, and of the blob in the registry itself.
func TestDumpKeyIsTheHashThatHostsMeasure(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	issue := func(key any, public any) []byte {
		t.Helper()
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "dumps"}, NotAfter: time.Unix(2e9, 0)}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, public, key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der := issue(key, &key.PublicKey)
	blob := []byte("RSA1") // BCRYPT_RSAKEY_BLOB: bits, bytes of exponent and modulus, no primes
	for _, n := range []uint32{2048, 3, 256, 0, 0} {
		blob = binary.LittleEndian.AppendUint32(blob, n)
	}
	blob = append(append(blob, 1, 0, 1), key.N.FillBytes(make([]byte, 256))...)
	want := fmt.Sprintf("%x", sha256.Sum256(blob))
	for i, stdin := range []string{string(der), armor("CERTIFICATE", der), base64.StdEncoding.EncodeToString(der), string(blob), base64.StdEncoding.EncodeToString(blob)} {
		name := fmt.Sprintf("k%d", i)
		if text := flat(t, s, "dump-key add "+name, stdin); !strings.Contains(text, want) {
			t.Errorf("form %d: %s, want %s", i, text, want)
		}
		waitFor(t, f, func(st policy.State) bool { return len(st.DumpKeys) == 1 })
		mustCall(t, s, "dump-key remove "+name, "")
		waitFor(t, f, func(st policy.State) bool { return len(st.DumpKeys) == 0 })
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	large, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	refusedCall(t, s, "dump-key add x", string(issue(ec, &ec.PublicKey)), "RSA key of 2048 bits")
	refusedCall(t, s, "dump-key add x", armor("CERTIFICATE", issue(large, &large.PublicKey)), "RSA key of 2048 bits")
	refusedCall(t, s, "dump-key add x", armor("PRIVATE KEY", private), "private key")
	refusedCall(t, s, "dump-key add x", "RSA1"+strings.Repeat("\x01", 40), "key blob")
	refusedCall(t, s, "dump-key add x", "neither key nor log", "no usable boot log")
	// A boot log still gives the key that it has measured.
	if text := flat(t, s, "dump-key add log", string(bootLog("revoked", "ci", nil))); !strings.Contains(text, fmt.Sprintf("%x", sha256.Sum256([]byte("ci")))) {
		t.Errorf("of a log: %s", text)
	}
}

// TestHostWithOldTLSIsFoundWithoutEverAsking: in status, among the unknown hosts and in its own findings; a pass from there ends it.
func TestHostWithOldTLSIsFoundWithoutEverAsking(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	maker := newVendor(t)
	spki, cert := maker.tpm(t)
	mustCall(t, s, "tpm-trust import lab", armor("CERTIFICATE", maker.cert.Raw))
	waitFor(t, f, func(st policy.State) bool { return len(st.Anchors) == 1 })
	mustCall(t, s, "host add-tpm hv7", platform(t, spki, cert))
	waitFor(t, f, func(st policy.State) bool { return len(st.Hosts) == 1 })
	if text := flat(t, s, "status", ""); strings.Contains(text, "TLS") {
		t.Errorf("status said %s", text)
	}
	at := func(seconds int64) policy.Stamp {
		return policy.Stamp{Earliest: verbtest.At.Earliest + seconds*1000, Latest: verbtest.At.Latest + seconds*1000, Boot: "boot"}
	}
	f.ObserveAt(at(-60), policy.ObservedHost, policy.HostID(spki), map[string]string{"verdict": "ok", "source": "10.0.2.7"})
	f.ObserveAt(at(-30), policy.ObservedOldTLS, "10.0.2.7", map[string]string{"offered": "TLS 1.0", "name": "hgs.example.test"})
	f.ObserveAt(at(-20), policy.ObservedOldTLS, "10.0.2.99", map[string]string{"offered": "SSLv3", "name": ""})
	f.ObserveAt(at(-3*86400), policy.ObservedOldTLS, "10.0.2.50", map[string]string{"offered": "TLS 1.0"})
	const cure = "SystemDefaultTlsVersions"
	for line, wants := range map[string][]string{
		"status":            {"2 addresses asked for HTTPS without TLS 1.2", "10.0.2.99, 10.0.2.7 (hv7)", cure},
		"host pending":      {"10.0.2.7 TLS 1.0, asked for hgs.example.test", "10.0.2.99 SSLv3, asked for no name", cure},
		"host findings hv7": {"from its address 10.0.2.7 somebody asked for HTTPS with TLS 1.0 at best", cure},
	} {
		text := flat(t, s, line, "")
		for _, want := range wants {
			if !strings.Contains(text, want) {
				t.Errorf("%s lacks %q: %s", line, want, text)
			}
		}
		if strings.Contains(text, "10.0.2.50") {
			t.Errorf("%s tells of what is three days old: %s", line, text)
		}
	}
	// Anybody can knock like this: it is a hint, and the node is as well as before.
	out, err := call(s, "status", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range out.Value.(verb.StatusValue).Problems {
		if p.Kind == "tls-old" {
			t.Errorf("a stranger made a problem: %+v", p)
		}
	}
	f.ObserveAt(at(-10), policy.ObservedHost, policy.HostID(spki), map[string]string{"verdict": "ok", "source": "10.0.2.7"})
	if text := flat(t, s, "host findings hv7", ""); strings.Contains(text, cure) {
		t.Errorf("a host that has passed since: %s", text)
	}
}
