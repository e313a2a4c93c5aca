package verb_test

import (
	"crypto/sha1"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"strings"
	"testing"
	"unicode/utf16"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/console/verb"
	"guardhouse/console/verb/verbtest"
)

func spki(t testing.TB, cert []byte) []byte {
	t.Helper()
	c, err := x509.ParseCertificate(cert)
	if err != nil {
		t.Fatal(err)
	}
	return c.RawSubjectPublicKeyInfo
}

func armor(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func utf16le(s string) string {
	b := []byte{0xff, 0xfe}
	for _, u := range utf16.Encode([]rune(s)) {
		b = append(b, byte(u), byte(u>>8))
	}
	return string(b)
}

// utf16be is what Out-File -Encoding BigEndianUnicode writes.
func utf16be(s string) string {
	b := []byte(utf16le(s))
	for i := 0; i < len(b); i += 2 {
		b[i], b[i+1] = b[i+1], b[i]
	}
	return string(b)
}

func TestTakesHostKeysInEveryFormThatWindowsAndOpenSSLWrite(t *testing.T) {
	f := verbtest.Start(t, true)
	cert := f.Certificate(t, "hv7")
	key := spki(t, cert)
	parsed, _ := x509.ParseCertificate(cert)
	pkcs1 := x509.MarshalPKCS1PublicKey(mustRSA(t, parsed))
	b64 := base64.StdEncoding.EncodeToString(cert)
	for name, input := range map[string]string{
		"certificate DER":         string(cert),
		"certificate PEM":         armor("CERTIFICATE", cert),
		"PEM after text":          "Bag Attributes\r\n" + strings.ReplaceAll(armor("CERTIFICATE", cert), "\n", "\r\n"),
		"certificate base64":      b64[:64] + "\r\n" + b64[64:] + "\r\n",
		"base64 from Out-File":    utf16le(b64 + "\r\n"),
		"PEM from Out-File":       utf16le(armor("CERTIFICATE", cert)),
		"Out-File BigEndian":      utf16be(armor("CERTIFICATE", cert)),
		"PEM with byte order":     "\xef\xbb\xbf" + armor("CERTIFICATE", cert),
		"public key PEM":          armor("PUBLIC KEY", key),
		"public key DER":          string(key),
		"RSA public key PEM":      armor("RSA PUBLIC KEY", pkcs1),
		"RSA public key base64":   base64.StdEncoding.EncodeToString(pkcs1),
		"public key base64, bare": base64.StdEncoding.EncodeToString(key),
	} {
		in, err := verb.ParseInput([]byte(input))
		if err != nil || string(in.SPKI) != string(key) {
			t.Errorf("%s: %v", name, err)
		}
		if (in.Certificate != nil) != strings.Contains(name, "cert") && !strings.Contains(name, "PEM") && !strings.Contains(name, "Out-File") {
			t.Errorf("%s: certificate %v", name, in.Certificate != nil)
		}
	}
}

func TestRefusesWhatIsNotOnePublicKey(t *testing.T) {
	f := verbtest.Start(t, true)
	cert := f.Certificate(t, "hv7")
	for name, c := range map[string]struct{ input, says string }{
		"nothing":      {" \n", "nothing came"},
		"private key":  {"-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n", "private key"},
		"two":          {armor("CERTIFICATE", cert) + armor("CERTIFICATE", cert), "more than one"},
		"cut":          {armor("CERTIFICATE", cert)[:300], "damaged"},
		"text":         {"hello, world", "neither PEM"},
		"other base64": {"aGVsbG8gd29ybGQ=", "not a certificate"},
		"much":         {strings.Repeat("A", 1<<17), "larger"},
	} {
		if _, err := verb.ParseInput([]byte(c.input)); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHostLifeByVerbs(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	cert := f.Certificate(t, "hv7")
	text := mustCall(t, s, "host add hv7 --note 'rack 3'", armor("CERTIFICATE", cert))
	if !strings.Contains(text, policy.HostID(spki(t, cert))) || !strings.Contains(text, "SHA-1") || !strings.Contains(text, policy.Thumbprint(cert)) {
		t.Errorf("host add said %s", text)
	}
	mustCall(t, s, "host show hv7", "")
	mustCall(t, s, "host revoke hv7 --reason stolen", "")
	if text := mustCall(t, s, "host list", ""); !strings.Contains(text, "revoked") {
		t.Errorf("host list said %s", text)
	}
	mustCall(t, s, "host restore hv7", "")
	mustCall(t, s, "host remove hv7", "")
	if snap, _ := f.Node.Snapshot(); len(snap.State.Hosts) != 0 {
		t.Error("the host is still there")
	}
	for _, e := range f.Audit() {
		if e.Actor == nil || e.Actor.Name != "ada" && e.Action != "setup" {
			t.Errorf("audit entry without actor: %+v", e)
		}
	}
}

func TestAcceptsAPendingHostByTheVerbItShows(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	key := spki(t, f.Certificate(t, "hv9"))
	f.Pending(key)
	out, err := call(s, "host pending", "")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := verb.JSON(out.Value)
	var v struct{ Pending []verb.PendingValue }
	if err := json.Unmarshal(b, &v); err != nil || len(v.Pending) != 1 {
		t.Fatalf("%v: %s", err, b)
	}
	mustCall(t, s, strings.Replace(v.Pending[0].Accept, "NAME", "hv9", 1), "")
	if snap, _ := f.Node.Snapshot(); snap.State.Hosts[policy.HostID(key)].Name != "hv9" {
		t.Error("the host was not registered")
	}
	if text := mustCall(t, s, "host pending", ""); !strings.Contains(text, "No unknown host") {
		t.Errorf("still pending: %s", text)
	}
}

func TestKeysByVerbs(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	mustCall(t, s, "key new --roles all --subject 'Contoso HGS'", "")
	mustCall(t, s, "key new --roles encryption", "")
	text := mustCall(t, s, "key list", "")
	for _, want := range []string{"signing: primary, enabled", "encryption: enabled", "never extractable yes", "CN=Contoso HGS", "CN=hgs.example.test", "use decrypt"} {
		if !strings.Contains(text, want) {
			t.Errorf("key list lacks %q:\n%s", want, text)
		}
	}
	snap, _ := f.Node.Snapshot()
	var second policy.Key
	for _, k := range snap.State.Keys {
		if k.Role == policy.RoleEncryption && !k.Primary {
			second = k
		}
	}
	if _, err := call(s, "key primary "+string(second.Ref)[:5], ""); verb.Explain(err).Code != verb.ExitUsage {
		t.Errorf("a 5 character prefix gave %v", err)
	}
	mustCall(t, s, "key primary "+string(second.Ref)[:12], "")
	first := policy.Thumbprint(second.Certificate)[:16]
	if _, err := call(s, "key disable "+first, ""); err == nil || !strings.Contains(err.Error(), "primary") {
		t.Errorf("disabling the primary key by its thumbprint gave %v", err)
	}
	if text := mustCall(t, s, "metadata", ""); !strings.Contains(text, policy.Thumbprint(second.Certificate)) {
		t.Errorf("metadata lacks the new primary key:\n%s", text)
	}
	f.Fail("hsm.Keys", rpc.ErrUnavailable)
	if text := mustCall(t, s, "key list", ""); !strings.Contains(text, "is not known") {
		t.Errorf("key list without an HSM said:\n%s", text)
	}
}

func TestServiceNetworkAndSigners(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	mustCall(t, s, "service set --http off --health-life 4h --mode hostkey", "")
	mustCall(t, s, "network set", mustCall(t, s, "network show --toml", ""))
	mustCall(t, s, "network set", "[node.network]\nresolvers=['10.0.0.1']\n[[node.network.interface]]\nname='front'\nmac=['any']\ndhcp=true\nroles=['service']\n")
	mustCall(t, s, "time set ntp1.example.test ntp2.example.test:11123", "")
	snap, _ := f.Node.Snapshot()
	n := snap.State.Nodes[snap.NodeID]
	if svc := snap.State.Service; svc.HTTP || svc.HealthLife.Hours() != 4 || len(n.TimeServers) != 2 || !n.Network.Interfaces[0].DHCP {
		t.Errorf("records: %+v %+v", svc, n)
	}
	if _, err := call(s, "network set", "[[interface]]\nname='x'\ncolour='red'\n"); err == nil || !strings.Contains(err.Error(), "line 3: unknown key interface.colour") {
		t.Errorf("an unknown key gave %v", err)
	}
	cert := f.Certificate(t, "other signer")
	mustCall(t, s, "attestation-signer trust site2", armor("CERTIFICATE", cert))
	if text := mustCall(t, s, "attestation-signer list", ""); !strings.Contains(text, policy.Thumbprint(cert)) {
		t.Errorf("attestation-signer list said %s", text)
	}
	mustCall(t, s, "attestation-signer renew", "")
	now := verbtest.At.Latest/1000 + 1
	for _, word := range []string{"site2", strings.ToUpper(policy.Thumbprint(cert)), sha1Of(cert)} {
		text := mustCall(t, s, "attestation-signer deny-before now "+word, "")
		snap, _ = f.Node.Snapshot()
		if got := snap.State.Signers[policy.Thumbprint(cert)].DenyIssuedBefore; got != now || !strings.Contains(text, sha1Of(cert)) {
			t.Errorf("deny-before now %s: %d, want %d; it said %s", word, got, now, text)
		}
	}
	own := snap.State.AttestationSigners()[0]
	mustCall(t, s, "attestation-signer deny-before now "+string(own.Ref), "")
	snap, _ = f.Node.Snapshot()
	if got := snap.State.Keys[own.Ref].DenyIssuedBefore; got != now || snap.State.Service.DenyIssuedBefore != 0 {
		t.Errorf("of the own signer: %d, of all: %d, want %d and 0", got, snap.State.Service.DenyIssuedBefore, now)
	}
	if text := mustCall(t, s, "attestation-signer list", ""); strings.Count(text, "certificates issued before") != 2 {
		t.Errorf("attestation-signer list said %s", text)
	}
	if _, err := call(s, "attestation-signer deny-before now site9", ""); err == nil || !strings.Contains(err.Error(), "no attestation signer") {
		t.Errorf("an unknown signer gave %v", err)
	}
	mustCall(t, s, "attestation-signer trust site2", armor("CERTIFICATE", f.Certificate(t, "third signer")))
	if _, err := call(s, "attestation-signer deny-before now site2", ""); err == nil || !strings.Contains(err.Error(), "2 attestation signers") {
		t.Errorf("a name that two bear gave %v", err)
	}
	mustCall(t, s, "attestation-signer distrust site2", "")
	mustCall(t, s, "attestation-signer deny-before now", "")
	snap, _ = f.Node.Snapshot()
	// A certificate issued at the latest moment that "now" can be must be refused, one of the next second not.
	if got, want := snap.State.Service.DenyIssuedBefore, verbtest.At.Latest/1000+1; got != want {
		t.Errorf("deny-before now is %d, want %d", got, want)
	}
	mustCall(t, s, "host add hv8", armor("CERTIFICATE", f.Certificate(t, "hv8")))
	mustCall(t, s, "host reattest hv8", "")
	snap, _ = f.Node.Snapshot()
	if h, _ := snap.State.HostByName("hv8"); h.DenyIssuedBefore != verbtest.At.Latest/1000+1 {
		t.Errorf("host reattest refuses what was issued before %d", h.DenyIssuedBefore)
	}
	if _, err := call(s, "attestation-signer deny-before 2199-01-01", ""); err == nil || !strings.Contains(err.Error(), "future") {
		t.Errorf("a date in the future gave %v", err)
	}
}

func TestSignerListShowsTheLifeOfEachSigner(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	mustCall(t, s, "attestation-signer renew", "") // the first one
	if text := mustCall(t, s, "attestation-signer list", ""); !strings.Contains(text, "signs now") || !strings.Contains(text, "successor is made") {
		t.Errorf("attestation-signer list said:\n%s", text)
	}
	mustCall(t, s, "attestation-signer renew", "")
	text := mustCall(t, s, "attestation-signer list", "")
	if !strings.Contains(text, "published, signs from 2026-11-23") || !strings.Contains(text, "signs now, until 2026-11-23") || strings.Count(text, "successor is made") != 1 {
		t.Errorf("attestation-signer list said:\n%s", text)
	}
	if _, err := call(s, "attestation-signer renew", ""); err == nil || !strings.Contains(err.Error(), "published already") {
		t.Errorf("a third one: %v", err)
	}
	if text := mustCall(t, s, "help Start-ScheduledTask", ""); !strings.Contains(text, "attestation-signer renew") {
		t.Errorf("help said %s", text)
	}
}

func TestAttestationOnlyAsksForNoGuardianKeys(t *testing.T) {
	f := verbtest.Start(t, true)
	f.Edit(func(v *policy.Service) { v.AttestationOnly = true })
	s := f.Session(policy.DoorSSH)
	mustCall(t, s, "key new", "")
	snap, _ := f.Node.Snapshot()
	if len(snap.State.Keys) != 1 || len(snap.State.AttestationSigners()) != 1 {
		t.Errorf("key new made %d keys", len(snap.State.Keys))
	}
	if text := mustCall(t, s, "status", ""); strings.Contains(text, "primary key") {
		t.Errorf("status misses keys:\n%s", text)
	}
	if text := mustCall(t, s, "metadata", ""); !strings.Contains(text, "only attests") || strings.Contains(text, "KeyProtection") {
		t.Errorf("metadata said:\n%s", text)
	}
	if text := mustCall(t, s, "service show", ""); !strings.Contains(text, "only attests") {
		t.Errorf("service show said:\n%s", text)
	}
}

func TestAdminsByVerbs(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINNwMHM8lLcve+HMdKmjaanRnkdOE0Sm3ZUxkjv5LTgg grace@example.test\n"
	mustCall(t, s, "admin add grace OPERATOR", key)
	snap, _ := f.Node.Snapshot()
	if a := snap.State.Admins["grace"]; a.Role != policy.AdminOperator || strings.Contains(a.Key, "grace@") {
		t.Errorf("enrolled %+v", a)
	}
	for _, input := range []string{"", "hello", key + key, "-----BEGIN OPENSSH PRIVATE KEY-----\n"} {
		if _, err := call(s, "admin add bob reviewer", input); err == nil {
			t.Errorf("took %q for a key", input)
		}
	}
	mustCall(t, s, "admin remove grace", "")
	if _, err := call(s, "admin remove ada", ""); err == nil || !strings.Contains(err.Error(), "owner") {
		t.Errorf("removing the last owner gave %v", err)
	}
}

func TestUnlockTakesOneLine(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	for _, good := range []string{"1234", "12 34\n", "1234\r\n"} {
		mustCall(t, s, "hsm unlock", good)
	}
	mustCall(t, s, "hsm unlock --last-try", "1234\n")
	if got := strings.Join(f.Unlocked(), ","); got != "1234 false,12 34 false,1234 false,1234 true" {
		t.Errorf("the HSM process got %q", got)
	}
	for _, bad := range []string{"", "\n", "12\n34\n", strings.Repeat("1", 256)} {
		if _, err := call(s, "hsm unlock", bad); verb.Explain(err).Code != verb.ExitUsage || strings.Contains(err.Error(), "1") {
			t.Errorf("%.10q: %v", bad, err)
		}
	}
	f.Fail("hsm.Unlock", rpc.ErrRefused.With("this node keeps its PIN"))
	if _, err := call(s, "hsm unlock", "1234"); err == nil {
		t.Error("a refusal was not told")
	}
}

func sha1Of(der []byte) string {
	sum := sha1.Sum(der)
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}
