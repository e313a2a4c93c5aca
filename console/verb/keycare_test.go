package verb_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/console/verb"
	"guardhouse/console/verb/verbtest"
)

func newKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// issuedFor is a certificate that a CA gave a public key, and the CA's own.
func issuedFor(t testing.TB, pub any, until time.Time, usage x509.KeyUsage) (leaf, ca []byte) {
	t.Helper()
	key := newKey(t)
	issuer := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Example CA"}, NotAfter: until, IsCA: true, BasicConstraintsValid: true}
	ca, err := x509.CreateCertificate(rand.Reader, issuer, issuer, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "Contoso HGS"}, NotAfter: until, KeyUsage: usage}
	leaf, err = x509.CreateCertificate(rand.Reader, tmpl, issuer, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	return leaf, ca
}

func primaryOf(t testing.TB, f *verbtest.Fake, role policy.KeyRole) (policy.Key, *x509.Certificate) {
	t.Helper()
	snap, _ := f.Node.Snapshot()
	k, ok := snap.State.PrimaryKey(role)
	if !ok {
		t.Fatalf("no primary %s key", role)
	}
	cert, err := x509.ParseCertificate(k.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	return k, cert
}

func TestAnIssuedCertificateIsInstalledInEveryForm(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	mustCall(t, s, "key new --roles all", "")
	k, cert := primaryOf(t, f, policy.RoleSigning)
	at := time.UnixMilli(verbtest.At.Earliest)
	for name, wrap := range map[string]func(leaf, ca []byte) string{
		"PEM":        func(leaf, _ []byte) string { return armor("CERTIFICATE", leaf) },
		"chain":      func(leaf, ca []byte) string { return armor("CERTIFICATE", ca) + armor("CERTIFICATE", leaf) },
		"DER":        func(leaf, _ []byte) string { return string(leaf) },
		"base64":     func(leaf, _ []byte) string { return base64.StdEncoding.EncodeToString(leaf) },
		"PKCS#7 DER": func(leaf, ca []byte) string { return string(degenerate(t, leaf, ca)) },
		"PKCS#7 PEM": func(leaf, ca []byte) string { return armor("PKCS7", degenerate(t, leaf, ca)) },
	} {
		leaf, ca := issuedFor(t, cert.PublicKey, at.AddDate(1, 0, 0), x509.KeyUsageDigitalSignature)
		if text := flat(t, s, "key install "+string(k.Ref[:8]), wrap(leaf, ca)); !strings.Contains(text, policy.Thumbprint(leaf)) || !strings.Contains(text, "still open") {
			t.Errorf("%s: %s", name, text)
		}
		if now, _ := primaryOf(t, f, policy.RoleSigning); string(now.Certificate) != string(leaf) {
			t.Errorf("%s: another certificate is on record", name)
		}
		if text := mustCall(t, s, "metadata", ""); !strings.Contains(strings.Join(strings.Fields(text), " "), policy.Thumbprint(leaf)) {
			t.Errorf("%s: metadata names another certificate", name)
		}
	}
	past, _ := issuedFor(t, cert.PublicKey, at.AddDate(-1, 0, 0), 0)
	dry := flat(t, s, "key install "+string(k.Ref[:8])+" --dry-run", armor("CERTIFICATE", past))
	if now, _ := primaryOf(t, f, policy.RoleSigning); string(now.Certificate) == string(past) || !strings.Contains(dry, "Nothing was changed") {
		t.Errorf("a rehearsal: %s", dry)
	}
	// Expiry never stops a key (row B05): a notice, and nothing else.
	for _, line := range []string{"key install " + string(k.Ref[:8]), "key list"} {
		stdin := ""
		if strings.HasPrefix(line, "key install") {
			stdin = armor("CERTIFICATE", past)
		}
		if text := flat(t, s, line, stdin); !strings.Contains(text, "EXPIRED, no effect on VMs") {
			t.Errorf("%s: %s", line, text)
		}
	}
	other, otherCA := issuedFor(t, newKey(t).Public(), at.AddDate(1, 0, 0), 0)
	for name, c := range map[string]struct{ input, says string }{
		"another key's": {armor("CERTIFICATE", other), "another public key"},
		"a chain of":    {armor("CERTIFICATE", other) + armor("CERTIFICATE", otherCA), "none of the certificates"},
		"private":       {"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "private key"},
		"nothing":       {"", "no certificate"},
	} {
		if _, err := call(s, "key install "+string(k.Ref[:8]), c.input); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// degenerate is a PKCS#7 of certificates only, as certreq and a CA's web page give it.
func degenerate(t testing.TB, certs ...[]byte) []byte {
	t.Helper()
	var all []byte
	for _, c := range certs {
		all = append(all, c...)
	}
	der, err := pkcs7.DegenerateCertificate(all)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestTheRequestComesWithItsTemplateSheet(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	mustCall(t, s, "key new --roles signing", "")
	k, _ := primaryOf(t, f, policy.RoleSigning)
	bare := mustCall(t, s, "key csr "+string(k.Ref[:8]), "")
	if !strings.HasPrefix(bare, "-----BEGIN CERTIFICATE REQUEST-----\n") || !strings.HasSuffix(bare, "-----END CERTIFICATE REQUEST-----\n") {
		t.Errorf("not the request alone, which goes into a file:\n%s", bare)
	}
	sheet := flat(t, s, "key csr "+string(k.Ref[:8])+" --profile luna --sheet", "")
	for _, want := range []string{"signature and encryption", "RSA, 2048", "allow encryption of user data", "digital signature, key encipherment", "0xa0", "server authentication"} {
		if !strings.Contains(sheet, want) {
			t.Errorf("the sheet lacks %q: %s", want, sheet)
		}
	}
	out, err := call(s, "key csr "+string(k.Ref[:8])+" --profile utimaco --sheet", "")
	if err != nil {
		t.Fatal(err)
	}
	var v verb.CSRValue
	if b, err := json.Marshal(out.Value); err != nil || json.Unmarshal(b, &v) != nil || v.Profile != "utimaco" || len(v.Sheet) < 10 || !strings.Contains(v.Request, "BEGIN CERTIFICATE REQUEST") {
		t.Errorf("%+v", v)
	}
}

func TestKeyTestNamesNodeFindingAndRemedy(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	mustCall(t, s, "key new --roles signing,encryption", "")
	if text := mustCall(t, s, "key test", ""); strings.Contains(text, "FAILED") || strings.Count(text, "passed in 1.2ms") != 2 {
		t.Errorf("%s", text)
	}
	k, _ := primaryOf(t, f, policy.RoleEncryption)
	f.Sick(k.Ref, policy.Problem{Kind: rpc.KeyNoUse, What: "encryption key: its attributes forbid decryption", Remedy: "make a new pair"})
	text := flat(t, s, "key test", "")
	if !strings.Contains(text, "FAILED") || !strings.Contains(text, "on node node1: encryption key: its attributes forbid decryption") || !strings.Contains(text, "do: make a new pair") {
		t.Errorf("%s", text)
	}
	if text := mustCall(t, s, "key test "+string(primaryRef(t, f, policy.RoleSigning))[:8], ""); strings.Contains(text, "encryption") {
		t.Errorf("one key was asked for: %s", text)
	}
	if text := flat(t, s, "key primary "+string(k.Ref[:8])+" --dry-run", ""); !strings.Contains(text, "would be refused") {
		t.Errorf("%s", text)
	}
}

func primaryRef(t testing.TB, f *verbtest.Fake, role policy.KeyRole) policy.KeyRef {
	k, _ := primaryOf(t, f, role)
	return k.Ref
}

func TestAPairInTheTokenIsRecorded(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	key := newKey(t)
	ref := f.Born(key, "vendor-7")
	if text := flat(t, s, "key list", ""); !strings.Contains(text, "in the token, not in the records") || !strings.Contains(text, string(ref)) {
		t.Errorf("%s", text)
	}
	if _, err := call(s, "key add "+string(ref[:8]), ""); err == nil || !strings.Contains(err.Error(), "--role") {
		t.Errorf("a label that says nothing: %v", err)
	}
	f.Sick(ref, policy.Problem{Kind: rpc.KeyMissing, What: "the token does not hold it", Remedy: "bring it there"})
	leaf, _ := issuedFor(t, key.Public(), time.Now().AddDate(1, 0, 0), x509.KeyUsageDigitalSignature)
	text := flat(t, s, "key add "+string(ref[:8])+" --role signing --certificate", armor("CERTIFICATE", leaf))
	if !strings.Contains(text, "can't become primary before it passes") || !strings.Contains(text, "bring it there") || !strings.Contains(text, policy.Thumbprint(leaf)) {
		t.Errorf("%s", text)
	}
	snap, _ := f.Node.Snapshot()
	if k := snap.State.Keys[ref]; k.Primary || k.Role != policy.RoleSigning {
		t.Errorf("%+v", k)
	}
}

func TestATenantsPairIsShownApartAndRefusedAsPrimary(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	mustCall(t, s, "key new --roles all", "")
	sign, enc := f.Born(newKey(t), "contoso-sign"), f.Born(newKey(t), "contoso-enc")
	if _, err := call(s, "tenant adopt contoso "+string(sign[:8])+" --role signing", ""); err == nil || !strings.Contains(err.Error(), "no tenant") {
		t.Errorf("%v", err)
	}
	mustCall(t, s, "tenant add contoso --classes gold,silver", "")
	mustCall(t, s, "tenant adopt contoso "+string(sign[:8])+" --role signing", "")
	mustCall(t, s, "tenant adopt contoso "+string(enc[:8])+" --role encryption", "")
	if _, err := call(s, "key primary "+string(enc[:8]), ""); err == nil || !strings.Contains(err.Error(), "belongs to the tenant contoso") {
		t.Errorf("%v", err)
	}
	list := flat(t, s, "key list", "")
	ours, brought, ok := strings.Cut(list, "Keys that tenants brought")
	if !ok || strings.Contains(ours, string(enc)) || !strings.Contains(brought, string(enc)) || !strings.Contains(brought, string(sign)) || !strings.Contains(brought, "of the tenant contoso") {
		t.Errorf("%s", list)
	}
	if text := flat(t, s, "tenant list", ""); !strings.Contains(text, "gold, silver") || !strings.Contains(text, string(enc[:16])) {
		t.Errorf("%s", text)
	}
	mustCall(t, s, "host add hv7 --class gold", armor("CERTIFICATE", f.Certificate(t, "hv7")))
	another, _ := issuedFor(t, newKey(t).Public(), time.Now().AddDate(1, 0, 0), 0)
	mustCall(t, s, "host add hv8 --class bronze", armor("CERTIFICATE", another))
	dry := flat(t, s, "tenant set contoso --classes silver --dry-run", "")
	if !strings.Contains(dry, "Nothing was changed") || !strings.Contains(dry, "1 host for which") || !strings.Contains(dry, "hv7") || strings.Contains(dry, "hv8") {
		t.Errorf("%s", dry)
	}
	for line, says := range map[string]string{"tenant set contoso --per-minute 600": "at most 600 transport keys a minute", "tenant list": "at most 600 transport keys a minute"} {
		if line == "tenant list" {
			mustCall(t, s, "tenant set contoso --per-minute 600", "")
		}
		if text := flat(t, s, line, ""); !strings.Contains(text, says) {
			t.Errorf("%s: %s", line, text)
		}
	}
	if _, err := call(s, "tenant set contoso --per-minute 1000001", ""); err == nil || !strings.Contains(err.Error(), "a quota of 1000001") {
		t.Errorf("%v", err)
	}
	mustCall(t, s, "tenant set contoso --state off", "")
	if text := mustCall(t, s, "tenant list", ""); !strings.Contains(text, "DISABLED") {
		t.Errorf("%s", text)
	}
	if _, err := call(s, "tenant remove contoso", ""); err == nil || !strings.Contains(err.Error(), "2 keys") {
		t.Errorf("%v", err)
	}
	mustCall(t, s, "tenant set contoso --state on --classes all", "")
	if text := mustCall(t, s, "tenant list", ""); !strings.Contains(text, "every host class") {
		t.Errorf("%s", text)
	}
}

func TestASoftwareKeyComesSealedAndIsNamedSo(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	if text := mustCall(t, s, "key seal-key", ""); !strings.HasPrefix(text, "age1") {
		t.Errorf("%s", text)
	}
	for name, in := range map[string]string{"a PFX in the clear": "0\x82\x01", "nothing": ""} {
		if _, err := call(s, "key import-pfx --role signing", in); err == nil || !strings.Contains(err.Error(), "no age file") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := call(s, "key import-pfx", "age-encryption.org/v1\n"); err == nil || !strings.Contains(err.Error(), "--role") {
		t.Errorf("%v", err)
	}
	const file = "age-encryption.org/v1\n-> X25519 x\n"
	if text := flat(t, s, "key import-pfx --role signing", file); !strings.Contains(text, "signing software key") || !strings.Contains(text, "SOFTWARE KEY") {
		t.Errorf("%s", text)
	}
	if string(f.Sealed()) != file {
		t.Error("the ledger got something else")
	}
	if text := flat(t, s, "key list", ""); !strings.Contains(text, "SOFTWARE KEY: sealed on the node's disk, not in the token") {
		t.Errorf("%s", text)
	}
	for _, e := range f.Audit() {
		if strings.Contains(e.Detail, "X25519") {
			t.Error("the file is in the audit")
		}
	}
}

func TestRehearsingADisableSaysWhatDependsOnTheKey(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	mustCall(t, s, "key new --roles signing,encryption", "")
	mustCall(t, s, "key new --roles encryption", "")
	snap, _ := f.Node.Snapshot()
	for ref, k := range snap.State.Keys {
		if k.Role != policy.RoleEncryption || k.Primary {
			continue
		}
		if text := flat(t, s, "key disable "+string(ref[:8])+" --dry-run", ""); !strings.Contains(text, "Nothing was changed") || !strings.Contains(text, "No key protector was last seen on it") {
			t.Errorf("%s", text)
		}
	}
	if _, err := call(s, "key disable "+string(primaryRef(t, f, policy.RoleEncryption))[:8]+" --dry-run", ""); err == nil || !strings.Contains(err.Error(), "primary") {
		t.Errorf("%v", err)
	}
	after, _ := f.Node.Snapshot()
	if after.Index != snap.Index {
		t.Error("a rehearsal changed something")
	}
}
