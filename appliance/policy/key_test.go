package policy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"math/big"
	"strings"
	"testing"
	"time"
)

// issued is a certificate of pub that another key issued, with these usages.
func issued(t testing.TB, ca *rsa.PrivateKey, pub any, edit func(*x509.Certificate)) []byte {
	t.Helper()
	issuer := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Example CA"}}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "x"}, NotAfter: time.Unix(1_900_000_000, 0)}
	if edit != nil {
		edit(leaf)
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, issuer, pub, ca)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// added records a key and gives its reference.
func added(t testing.TB, s State, a Actor, b KeyAdd) (State, KeyRef) {
	t.Helper()
	s, r := must(t, s, command(t, CmdKeyAdd, a, b))
	return s, KeyRef(r.Subject)
}

func TestInstallsAnIssuedCertificateOnTheSameKeyOnly(t *testing.T) {
	s, actors := setUp(t)
	op := actors[AdminOperator]
	ca, sign, enc := rsaKey(t, 2048), rsaKey(t, 2048), rsaKey(t, 2048)
	s, signing := added(t, s, op, KeyAdd{Role: RoleSigning, Certificate: certificate(t, sign)})
	s, encryption := added(t, s, op, KeyAdd{Role: RoleEncryption, Certificate: certificate(t, enc)})
	s, signer := added(t, s, op, KeyAdd{Role: RoleAttestationSigner, Certificate: certificate(t, ca)})
	usage := func(u x509.KeyUsage) func(*x509.Certificate) { return func(c *x509.Certificate) { c.KeyUsage = u } }
	small := rsaKey(t, 1024)
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	install := func(ref KeyRef, der []byte) Command {
		return command(t, CmdKeyInstall, op, KeyInstall{Ref: ref, Certificate: der})
	}
	for name, c := range map[string]struct {
		command Command
		says    string
	}{
		"another key's":         {install(signing, issued(t, ca, enc.Public(), nil)), "another public key"},
		"forbids signatures":    {install(signing, issued(t, ca, sign.Public(), usage(x509.KeyUsageDataEncipherment))), "forbids signatures"},
		"forbids encryption":    {install(encryption, issued(t, ca, enc.Public(), usage(x509.KeyUsageDigitalSignature))), "forbids encryption"},
		"1024 bits":             {install(signing, issued(t, ca, small.Public(), nil)), "1024 bits"},
		"no RSA":                {install(signing, issued(t, ca, curve.Public(), nil)), "not an RSA key"},
		"no certificate":        {install(signing, []byte("x")), "does not parse"},
		"an unknown key":        {install("00", issued(t, ca, sign.Public(), nil)), "there is no key"},
		"an attestation signer": {install(signer, issued(t, sign, ca.Public(), nil)), "certify themselves"},
		"the one it has":        {install(signing, s.Keys[signing].Certificate), "installed already"},
	} {
		if r := refusal(t, s, c.command); !strings.Contains(r.Reason, c.says) {
			t.Errorf("%s: %s", name, r.Reason)
		}
	}
	past := issued(t, ca, enc.Public(), func(c *x509.Certificate) {
		c.KeyUsage, c.NotAfter = x509.KeyUsageDataEncipherment, time.Unix(1_000_000_000, 0)
	})
	next, _ := must(t, s, install(encryption, past))
	if k := next.Keys[encryption]; string(k.Certificate) != string(past) || !k.Primary || !k.Enabled || k.Added != s.Keys[encryption].Added {
		t.Errorf("%+v", k)
	}
}

func TestCertificateFindingsTellWarningsFromRefusals(t *testing.T) {
	ca, k := rsaKey(t, 2048), rsaKey(t, 2048)
	both := x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageDataEncipherment
	for name, c := range map[string]struct {
		role  KeyRole
		edit  func(*x509.Certificate)
		kinds string
	}{
		"both usages, signing":    {RoleSigning, func(c *x509.Certificate) { c.KeyUsage = both }, ""},
		"both usages, encryption": {RoleEncryption, func(c *x509.Certificate) { c.KeyUsage = both }, ""},
		"own usage, signing":      {RoleSigning, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }, ""},
		"Luna's 0xa0, encryption": {RoleEncryption, func(c *x509.Certificate) { c.KeyUsage = signAndEncipher }, CertificateUsage},
		"no usage":                {RoleSigning, nil, CertificateUsage},
		"client only": {RoleSigning, func(c *x509.Certificate) {
			c.KeyUsage, c.ExtKeyUsage = both, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		}, CertificatePurpose},
		"a CA's": {RoleSigning, func(c *x509.Certificate) { c.KeyUsage, c.IsCA, c.BasicConstraintsValid = both, true, true }, CertificateAuthority},
		"wrong":  {RoleEncryption, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign }, "!" + CertificateWrongUsage},
	} {
		cert, err := x509.ParseCertificate(issued(t, ca, k.Public(), c.edit))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range CheckKeyCertificate(c.role, cert) {
			kind := f.Kind
			if f.Refuses {
				kind = "!" + kind
			}
			if f.What == "" || f.Remedy == "" {
				t.Errorf("%s: %+v", name, f)
			}
			got = append(got, kind)
		}
		if strings.Join(got, " ") != c.kinds {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestATenantsKeysAreNeverPrimary(t *testing.T) {
	s, actors := setUp(t)
	op := actors[AdminOperator]
	cert := certificate(t, rsaKey(t, 2048))
	if r := refusal(t, s, command(t, CmdKeyAdd, op, KeyAdd{Role: RoleEncryption, Certificate: cert, Tenant: "contoso"})); !strings.Contains(r.Reason, "no tenant") {
		t.Error(r)
	}
	s, _ = must(t, s, command(t, CmdTenantAdd, op, TenantAdd{Name: "contoso", Classes: []string{"gold", "default", "gold"}}))
	refused(t, s, command(t, CmdTenantAdd, op, TenantAdd{Name: "contoso"}))
	refused(t, s, command(t, CmdTenantAdd, op, TenantAdd{Name: "x", Classes: []string{"\x1b"}}))
	refused(t, s, command(t, CmdTenantAdd, op, TenantAdd{Name: "x", Classes: make([]string, MaxTenantClasses+1)}))
	refused(t, s, command(t, CmdKeyAdd, op, KeyAdd{Role: RoleAttestationSigner, Certificate: cert, Tenant: "contoso"}))
	s, ref := added(t, s, op, KeyAdd{Role: RoleEncryption, Certificate: cert, Tenant: "contoso"})
	if _, ok := s.PrimaryKey(RoleEncryption); ok {
		t.Error("a tenant's key became primary as the first of its role")
	}
	if r := refusal(t, s, command(t, CmdKeyPrimary, op, KeyChange{ref})); !strings.Contains(r.Reason, "tenant contoso") {
		t.Error(r)
	}
	if r := refusal(t, s, command(t, CmdTenantRemove, op, ByName{"contoso"})); !strings.Contains(r.Reason, "1 keys") {
		t.Error(r)
	}
	k := s.Keys[ref]
	for class, allowed := range map[string]bool{"gold": true, "default": true, "silver": false, "": false} {
		if why := s.TenantRefusal(k, class); (why == "") != allowed {
			t.Errorf("class %q: %q", class, why)
		}
	}
	every, off := []string{}, true
	all, _ := must(t, s, command(t, CmdTenantSet, op, TenantSet{Name: "contoso", Classes: &every}))
	if why := all.TenantRefusal(k, ""); why != "" {
		t.Error(why)
	}
	s, _ = must(t, s, command(t, CmdTenantSet, op, TenantSet{Name: "contoso", Disabled: &off}))
	if why := s.TenantRefusal(k, "gold"); !strings.Contains(why, "disabled") {
		t.Errorf("%q", why)
	}
	s, _ = must(t, s, command(t, CmdKeyDisable, op, KeyChange{ref}))
	s, _ = must(t, s, command(t, CmdKeyRemove, op, KeyChange{ref}))
	must(t, s, command(t, CmdTenantRemove, op, ByName{"contoso"}))
}

func TestSoftwareKeysAndSparesAreToldApart(t *testing.T) {
	s, actors := setUp(t)
	op := actors[AdminOperator]
	refused(t, s, command(t, CmdKeyAdd, op, KeyAdd{Role: RoleAttestationSigner, Certificate: certificate(t, rsaKey(t, 2048)), Store: StoreSoftware}))
	refused(t, s, command(t, CmdKeyAdd, op, KeyAdd{Role: RoleSigning, Certificate: certificate(t, rsaKey(t, 2048)), Store: "cloud"}))
	s, spare := added(t, s, op, KeyAdd{Role: RoleSigning, Certificate: certificate(t, rsaKey(t, 2048)), Spare: true})
	if s.Keys[spare].Primary {
		t.Error("a spare is primary")
	}
	s, r := must(t, s, command(t, CmdKeyAdd, op, KeyAdd{Role: RoleSigning, Certificate: certificate(t, rsaKey(t, 2048)), Store: StoreSoftware}))
	if k := s.Keys[KeyRef(r.Subject)]; !k.Primary || k.Store != StoreSoftware || !strings.Contains(r.Message, "software key") {
		t.Errorf("%+v, %s", k, r.Message)
	}
}

// TestOldRecordsStillLoad: a key of the version before stores, tenants and installed certificates.
func TestOldRecordsStillLoad(t *testing.T) {
	var s State
	old := `{"version":1,"service":null,"nodes":{},"admins":{},"hosts":{},"signers":{},"keys":{"aa":{"ref":"aa","role":"signing","label":"l","certificate":"AA==","primary":true,"enabled":true,"added":{"earliest":1,"latest":2}}}}`
	if err := json.Unmarshal([]byte(old), &s); err != nil {
		t.Fatal(err)
	}
	if k := s.Keys["aa"]; k.Store != StoreToken || k.Tenant != "" || s.TenantRefusal(k, "") != "" {
		t.Errorf("%+v", k)
	}
}

func TestProfilesAskForWhatTheVendorsSay(t *testing.T) {
	for _, c := range []struct {
		profile    string
		role       KeyRole
		usage, eku string
	}{
		{"luna", RoleSigning, "030205a0", "300a06082b06010505070301"},
		{"luna", RoleEncryption, "030204b0", "300a06082b06010505070301"},
		{"generic", RoleSigning, "03020780", "300a06082b06010505070301"},
		{"generic", RoleEncryption, "03020430", "300a06082b06010505070301"},
		{"nshield", RoleSigning, "030204b0", "300a06082b06010505070301"},
		{"utimaco", RoleEncryption, "030204b0", "300a06082b06010505070301"},
	} {
		p, ok := ProfileByName(c.profile)
		usage, eku, has := p.Extensions(c.role)
		if !ok || !has || hex.EncodeToString(usage) != c.usage || hex.EncodeToString(eku) != c.eku {
			t.Errorf("%s %s: %x %x", c.profile, c.role, usage, eku)
		}
		if _, _, ok := p.Extensions(RoleAttestationSigner); ok {
			t.Errorf("%s: attestation signers certify themselves", c.profile)
		}
	}
}
