package ledger

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"software.sslmate.com/src/go-pkcs12"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// keyed is a bench with a token, an administrator, a trusted time and one pair.
func keyed(t *testing.T) (*bench, *token, policy.Actor, map[policy.KeyRole]policy.Key) {
	t.Helper()
	b := newBench(t)
	k := b.attachToken()
	ada := b.setUp()
	b.trust(noon)
	made, err := b.l.MakeKeys(t.Context(), rpc.MakeKeysRequest{Actor: ada, ID: newID(), Roles: []policy.KeyRole{policy.RoleSigning, policy.RoleEncryption}, Bits: 2048})
	if err != nil {
		t.Fatal(err)
	}
	keys := map[policy.KeyRole]policy.Key{}
	for _, key := range made.Keys {
		keys[key.Role] = key
	}
	return b, k, ada, keys
}

// born makes a pair in the token that no record knows.
func (k *token) born(t *testing.T, role policy.KeyRole) rpc.HSMKey {
	t.Helper()
	made, err := k.generate(t.Context(), rpc.Caller{}, rpc.HSMGenerateRequest{Role: role, Bits: 2048})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// TestAnOrphanOfAnInterruptedMakeKeysIsAdopted: the HSM made the key, then the power went, before the records knew.
func TestAnOrphanOfAnInterruptedMakeKeysIsAdopted(t *testing.T) {
	b, k, ada, keys := keyed(t)
	orphan := k.born(t, policy.RoleEncryption)
	b.crash()
	if s, _ := b.l.Snapshot(); s.State.Keys[orphan.Ref].Ref != "" {
		t.Fatal("it is recorded already")
	}
	req := rpc.KeyAddRequest{Actor: ada, ID: newID(), Ref: orphan.Ref, Role: policy.RoleEncryption}
	for name, c := range map[string]struct {
		edit func(*rpc.KeyAddRequest)
		says string
	}{
		"another role":    {func(r *rpc.KeyAddRequest) { r.Role = policy.RoleSigning }, "label says"},
		"not there":       {func(r *rpc.KeyAddRequest) { r.Ref = policy.KeyRef(strings.Repeat("0", 64)) }, "holds no pair"},
		"no such tenant":  {func(r *rpc.KeyAddRequest) { r.Tenant = "contoso" }, "no tenant"},
		"no administator": {func(r *rpc.KeyAddRequest) { r.Actor.Name = "eve" }, "no administrator"},
		"the node":        {func(r *rpc.KeyAddRequest) { r.Actor.Door = policy.DoorNode }, "administrator"},
		"other's certificate": {func(r *rpc.KeyAddRequest) { r.Certificate = keys[policy.RoleEncryption].Certificate },
			"another public key"},
	} {
		bad := req
		bad.ID = newID()
		c.edit(&bad)
		if _, err := b.l.AddKey(t.Context(), bad); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	added, err := b.l.AddKey(t.Context(), req)
	if err != nil || added.Key.Ref != orphan.Ref || added.Key.Primary || len(added.Tests) != 1 || !added.Tests[0].OK {
		t.Fatalf("%+v, %v", added, err)
	}
	if again, err := b.l.AddKey(t.Context(), req); err != nil || again.Key.Ref != orphan.Ref {
		t.Errorf("a retry: %v", err)
	}
	req.ID = newID()
	if _, err := b.l.AddKey(t.Context(), req); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "recorded already") {
		t.Errorf("twice: %v", err)
	}
}

func TestRefusesAPairThatTheTokenWouldGiveOut(t *testing.T) {
	b, k, ada, _ := keyed(t)
	k.leaky = true
	pair := k.born(t, policy.RoleSigning)
	if _, err := b.l.AddKey(t.Context(), rpc.KeyAddRequest{Actor: ada, ID: newID(), Ref: pair.Ref, Role: policy.RoleSigning}); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "CKA_EXTRACTABLE") {
		t.Errorf("%v", err)
	}
}

// TestAKeyThatAnyNodeCannotUseDoesNotBecomePrimary: also not where a node does not answer, and not as the first of its role.
func TestAKeyThatAnyNodeCannotUseDoesNotBecomePrimary(t *testing.T) {
	b, k, ada, keys := keyed(t)
	next := k.born(t, policy.RoleSigning)
	added, err := b.l.AddKey(t.Context(), rpc.KeyAddRequest{Actor: ada, ID: newID(), Ref: next.Ref, Role: policy.RoleSigning})
	if err != nil {
		t.Fatal(err)
	}
	other, client := b.newToken()
	b.l.cfg.HSMs = map[string]*rpc.Client{"node2": client}
	primary := func() error {
		_, _, err := b.l.Propose(t.Context(), command(ada, policy.CmdKeyPrimary, policy.KeyChange{Ref: added.Key.Ref}))
		return err
	}
	if err := primary(); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "on node node2: the token does not hold it; bring it") {
		t.Errorf("missing on node2: %v", err)
	}
	records, err := b.l.audit.Tail(1)
	if e := records[0].Entry; err != nil || e.Action != "key.primary" || e.Outcome != "refused" || e.Subject != string(next.Ref) || !strings.Contains(e.Detail, "node2") || e.Actor == nil {
		t.Errorf("the audit says %+v", records)
	}
	b.l.cfg.HSMs = map[string]*rpc.Client{"node2": rpc.NewClient(filepath.Join(t.TempDir(), "nobody.sock"))}
	if err := primary(); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "node2") || !strings.Contains(err.Error(), "not tested") {
		t.Errorf("node2 is away: %v", err)
	}
	b.l.cfg.HSMs = map[string]*rpc.Client{"node2": nil}
	if err := primary(); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "can't be reached") {
		t.Errorf("nobody knows how to reach node2: %v", err)
	}
	// A first communications key: it would be primary by itself.
	b.l.cfg.HSMs = map[string]*rpc.Client{"node2": client}
	made, err := b.l.MakeKeys(t.Context(), rpc.MakeKeysRequest{Actor: ada, ID: newID(), Roles: []policy.KeyRole{policy.RoleCommunications}, Bits: 2048})
	if err != nil || made.Keys[0].Primary || len(made.Tests) != 2 || made.Tests[1].OK && made.Tests[0].OK {
		t.Errorf("%+v, %v", made, err)
	}
	if s, _ := b.l.Snapshot(); !s.State.Keys[keys[policy.RoleSigning].Ref].Primary {
		t.Error("the old primary key is none any more")
	}
	k.mu.Lock()
	other.keys[next.Ref] = k.keys[next.Ref]
	k.mu.Unlock()
	if err := primary(); err != nil {
		t.Errorf("with the key on both: %v", err)
	}
}

func TestANewAttestationSignerThatFailsItsTestIsNotUsed(t *testing.T) {
	b, _, ada, _ := keyed(t)
	b.l.cfg.HSMs = map[string]*rpc.Client{"node2": nil}
	_, err := b.l.MakeKeys(t.Context(), rpc.MakeKeysRequest{Actor: ada, ID: newID(), Roles: []policy.KeyRole{policy.RoleAttestationSigner}, Bits: 3072})
	if !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "fails its test") {
		t.Errorf("%v", err)
	}
	if s, _ := b.l.Snapshot(); len(s.State.AttestationSigners()) != 0 {
		t.Error("it is on record, and would sign")
	}
}

func TestANewKeyBecomesPrimaryAlthoughItsTokenWasSlowForAMoment(t *testing.T) {
	for silent, primary := range map[int]bool{2: true, 3: false} {
		b, k, ada, _ := keyed(t)
		k.mu.Lock()
		k.silent = silent
		k.mu.Unlock()
		made, err := b.l.MakeKeys(t.Context(), rpc.MakeKeysRequest{Actor: ada, ID: newID(), Roles: []policy.KeyRole{policy.RoleCommunications}, Bits: 2048})
		if err != nil || len(made.Keys) != 1 {
			t.Fatalf("%+v %v", made, err)
		}
		if made.Keys[0].Primary != primary {
			t.Errorf("after %d tests without an answer: primary %v", silent, made.Keys[0].Primary)
		}
	}
}

func TestAKeyThatFailsAtTheStartIsAFinding(t *testing.T) {
	b, k, _, keys := keyed(t)
	ref := keys[policy.RoleEncryption].Ref
	k.mu.Lock()
	k.sick[ref] = policy.Problem{Kind: rpc.KeyNoUse, What: "encryption key: its attributes forbid decryption", Remedy: "make a new pair"}
	k.mu.Unlock()
	b.restart()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); b.l.Run(ctx) }()
	defer func() { cancel(); <-done }()
	find := func() (policy.Problem, bool) {
		list := b.l.Status().Problems
		i := slices.IndexFunc(list, func(p policy.Problem) bool { return p.Kind == testKind })
		if i < 0 {
			return policy.Problem{}, false
		}
		return list[i], true
	}
	eventually(t, func() bool { _, found := find(); return found })
	if p, _ := find(); !strings.Contains(p.What, "on node node1: encryption key: its attributes forbid decryption") || p.Remedy != "make a new pair" {
		t.Errorf("%+v", p)
	}
	k.mu.Lock()
	delete(k.sick, ref)
	k.mu.Unlock()
	if _, err := b.l.KeyTest(ctx, rpc.KeyTestRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, found := find(); found {
		t.Error("it stands although all keys work")
	}
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	const limit = 30 * time.Second // as a bound for a hang; how fast anything is is not what these tests are about
	for began := time.Now(); time.Since(began) < limit; time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within %s", limit)
}

// TestRequestsProvePossessionOfEachKey (rows B03, B15): also of the encryption key, and with the usages of the profile.
func TestRequestsProvePossessionOfEachKey(t *testing.T) {
	b, _, ada, keys := keyed(t)
	for role, usage := range map[policy.KeyRole]byte{policy.RoleSigning: 0xa0, policy.RoleEncryption: 0xb0} {
		got, err := b.l.CertificateRequest(rpc.KeyCSRRequest{Actor: ada, Ref: keys[role].Ref, Profile: "luna"})
		if err != nil {
			t.Fatal(err)
		}
		csr, err := x509.ParseCertificateRequest(got.Request)
		if err != nil || csr.CheckSignature() != nil || policy.RefOf(csr.RawSubjectPublicKeyInfo) != keys[role].Ref {
			t.Fatalf("%s: %v", role, err)
		}
		if want := "CN=hgs.example.test " + string(role); csr.Subject.String() != want {
			t.Errorf("subject %s, not %s", csr.Subject, want)
		}
		found := slices.ContainsFunc(csr.Extensions, func(e pkix.Extension) bool {
			return e.Id.String() == "2.5.29.15" && e.Critical && e.Value[len(e.Value)-1] == usage
		})
		if !found {
			t.Errorf("%s: key usage %+v", role, csr.Extensions)
		}
	}
	named, err := b.l.CertificateRequest(rpc.KeyCSRRequest{Actor: ada, Ref: keys[policy.RoleSigning].Ref, Profile: "generic", Subject: "Contoso"})
	if csr, perr := x509.ParseCertificateRequest(named.Request); err != nil || perr != nil || csr.Subject.CommonName != "Contoso" {
		t.Errorf("%v %v", err, perr)
	}
	records, _ := b.l.audit.Tail(1)
	if e := records[0].Entry; e.Action != "key.csr" || e.Outcome != "ok" || e.Actor.Name != "ada" {
		t.Errorf("%+v", e)
	}
	for name, bad := range map[string]rpc.KeyCSRRequest{
		"nobody":  {Actor: policy.Actor{Name: "eve"}, Ref: keys[policy.RoleSigning].Ref, Profile: "luna"},
		"profile": {Actor: ada, Ref: keys[policy.RoleSigning].Ref, Profile: "abacus"},
		"key":     {Actor: ada, Ref: "00", Profile: "luna"},
		"subject": {Actor: ada, Ref: keys[policy.RoleSigning].Ref, Profile: "luna", Subject: "a/b"},
	} {
		if _, err := b.l.CertificateRequest(bad); !errors.Is(err, rpc.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// pfx is a PFX of a new key with its certificate.
func pfx(t testing.TB, bits int, usage x509.KeyUsage, passphrase string) ([]byte, *rsa.PrivateKey) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1 << 30), Subject: pkix.Name{CommonName: "Fabric"}, NotBefore: noon, NotAfter: noon.AddDate(1, 0, 0), KeyUsage: usage}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	out, err := pkcs12.Modern.Encode(key, cert, nil, passphrase)
	if err != nil {
		t.Fatal(err)
	}
	return out, key
}

func (b *bench) sealed(text []byte) []byte {
	b.t.Helper()
	var out bytes.Buffer
	w, err := age.Encrypt(&out, b.l.sealKey.Recipient())
	if err != nil {
		b.t.Fatal(err)
	}
	w.Write(text)
	if err := w.Close(); err != nil {
		b.t.Fatal(err)
	}
	return out.Bytes()
}

const pfxPassphrase = "not-a-real-passphrase"

// TestAnImportedKeyIsSealedMarkedAndWiped (row B16): its private half lies nowhere in the clear and goes with its record.
func TestAnImportedKeyIsSealedMarkedAndWiped(t *testing.T) {
	b, k, ada, _ := keyed(t)
	k.software = func() ([]rpc.SoftwareKey, error) { return b.l.SoftwareKeys() }
	file, key := pfx(t, 2048, x509.KeyUsageDataEncipherment, pfxPassphrase)
	req := rpc.KeyImportRequest{Actor: ada, ID: newID(), Role: policy.RoleEncryption, Sealed: b.sealed(append([]byte(pfxPassphrase+"\r\n"), file...))}
	made, err := b.l.ImportKey(t.Context(), req)
	if err != nil || made.Key.Store != policy.StoreSoftware || made.Key.Primary || !made.Key.Enabled {
		t.Fatalf("%+v, %v", made, err)
	}
	if len(k.loaded) != 1 || k.keys[made.Key.Ref] != nil {
		t.Errorf("%d software keys at the HSM process", len(k.loaded))
	}
	secret := key.D.Bytes()
	_ = filepath.Walk(b.cfg.Dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if bytes.Contains(content, secret[:32]) || bytes.Contains(content, []byte(pfxPassphrase)) {
			t.Errorf("%s holds the key or its passphrase in the clear", path)
		}
		return err
	})
	b.restart()
	list, err := b.l.SoftwareKeys()
	if err != nil || len(list) != 1 || list[0].Ref != made.Key.Ref || list[0].Role != policy.RoleEncryption {
		t.Fatalf("after a restart: %d keys, %v", len(list), err)
	}
	for _, kind := range []policy.Kind{policy.CmdKeyDisable, policy.CmdKeyRemove} {
		if _, _, err := b.l.Propose(t.Context(), command(ada, kind, policy.KeyChange{Ref: made.Key.Ref})); err != nil {
			t.Fatal(err)
		}
	}
	k.mu.Lock()
	k.deaf = 1 // as one that is being started: it must hear of the removal all the same
	k.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); b.l.Run(ctx) }()
	eventually(t, func() bool {
		list, err := b.l.SoftwareKeys()
		k.mu.Lock()
		defer k.mu.Unlock()
		return err == nil && len(list) == 0 && len(k.loaded) == 0
	})
	cancel()
	<-done
	if b.logged(pfxPassphrase) {
		t.Error("the passphrase is in the log")
	}
}

func (b *bench) logged(s string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Contains(b.logs.String(), s)
}

func TestRefusesAPFXAndNamesTheProperty(t *testing.T) {
	b, k, ada, _ := keyed(t)
	k.software = func() ([]rpc.SoftwareKey, error) { return b.l.SoftwareKeys() }
	good, _ := pfx(t, 2048, 0, pfxPassphrase)
	small, _ := pfx(t, 1024, 0, pfxPassphrase)
	signs, _ := pfx(t, 2048, x509.KeyUsageDigitalSignature, pfxPassphrase)
	line := []byte(pfxPassphrase + "\n")
	for name, c := range map[string]struct {
		sealed []byte
		role   policy.KeyRole
		says   string
	}{
		"in the clear":       {append(slices.Clone(line), good...), policy.RoleEncryption, "does not open with this node's key"},
		"wrong passphrase":   {b.sealed(append([]byte("wrong\n"), good...)), policy.RoleEncryption, "passphrase does not open"},
		"1024 bits":          {b.sealed(append(slices.Clone(line), small...)), policy.RoleEncryption, "1024 bits"},
		"usage":              {b.sealed(append(slices.Clone(line), signs...)), policy.RoleEncryption, "forbids encryption"},
		"no PFX":             {b.sealed(line), policy.RoleEncryption, "then a PFX"},
		"garbage":            {b.sealed(append(slices.Clone(line), "hello"...)), policy.RoleEncryption, "does not open"},
		"attestation":        {b.sealed(append(slices.Clone(line), good...)), policy.RoleAttestationSigner, "never leaves the token"},
		"too much":           {make([]byte, maxSealed+1), policy.RoleEncryption, "64 KiB"},
		"a tenant's, absent": {b.sealed(append(slices.Clone(line), good...)), policy.RoleEncryption, "no tenant"},
	} {
		req := rpc.KeyImportRequest{Actor: ada, ID: newID(), Role: c.role, Sealed: c.sealed}
		if strings.HasPrefix(name, "a tenant's") {
			req.Tenant = "contoso"
		}
		_, err := b.l.ImportKey(t.Context(), req)
		if !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), pfxPassphrase) {
			t.Errorf("%s: %v", name, err)
		}
		if list, err := b.l.SoftwareKeys(); err != nil || len(list) != 0 {
			t.Errorf("%s: %d keys stay sealed, %v", name, len(list), err)
		}
	}
}

// TestAPFXThatWouldComputeForHoursIsRefused before anything is computed.
func TestAPFXThatWouldComputeForHoursIsRefused(t *testing.T) {
	file, _ := pfx(t, 2048, 0, pfxPassphrase)
	if !modestIterations(file, 0) {
		t.Fatal("an honest one is refused")
	}
	// MacData ends in INTEGER iterations.
	i := bytes.LastIndex(file, []byte{2, 2}) // 2048 rounds
	if i < 0 {
		t.Fatal("no count of rounds found")
	}
	long := slices.Concat(file[:i], []byte{2, 4, 0x7f, 0xff, 0xff, 0xff}, file[i+4:])
	if modestIterations(long[bytes.Index(long, []byte{2, 4, 0x7f}):], 0) {
		t.Error("2^31 rounds are accepted")
	}
}

func FuzzParsePFX(f *testing.F) {
	file, _ := pfx(f, 2048, 0, pfxPassphrase)
	f.Add(file)
	f.Add([]byte(base64.StdEncoding.EncodeToString(file)))
	f.Add([]byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > maxSealed {
			return
		}
		key, err := parsePFX(in, pfxPassphrase, policy.RoleEncryption)
		if err == nil && policy.RefOf(key.spki) != key.ref {
			t.Error("a key under another name")
		}
	})
}
