package policy

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"math/big"
	"reflect"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

func sshKey(t testing.TB) string {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return string(ssh.MarshalAuthorizedKey(k))
}

func rsaKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func spki(t testing.TB, k *rsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func certificate(t testing.TB, k *rsa.PrivateKey) []byte {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func command(t testing.TB, kind Kind, a Actor, body any) Command {
	t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	return Command{ID: "1", Kind: kind, Actor: a, At: Stamp{Earliest: 1_800_000_000_000, Latest: 1_800_000_001_000}, Body: b}
}

func goodSetup(t testing.TB) (Setup, map[AdminRole]Actor) {
	s := Setup{
		Service: Service{Name: "hgs.example.test", Mode: ModeHostKey, HTTP: true, HealthLife: DefaultHealthLife},
		Node:    Node{ID: "n1", Name: "node1", AuditKey: []byte{1}},
	}
	actors := map[AdminRole]Actor{}
	for _, role := range []AdminRole{AdminOwner, AdminOperator, AdminReviewer} {
		key := sshKey(t)
		fp, err := KeyFingerprint(key)
		if err != nil {
			t.Fatal(err)
		}
		s.Admins = append(s.Admins, Admin{Name: string(role) + "1", Role: role, Key: key})
		actors[role] = Actor{Name: string(role) + "1", Key: fp, Door: DoorSSH}
	}
	return s, actors
}

func setUp(t testing.TB) (State, map[AdminRole]Actor) {
	t.Helper()
	b, actors := goodSetup(t)
	s, _, err := Apply(NewState(), command(t, CmdSetup, Actor{Door: DoorSetup}, b))
	if err != nil {
		t.Fatal(err)
	}
	return s, actors
}

func must(t testing.TB, s State, c Command) (State, Result) {
	t.Helper()
	s, r, err := Apply(s, c)
	if err != nil {
		t.Fatal(err)
	}
	return s, r
}

func refused(t testing.TB, s State, c Command) {
	t.Helper()
	before, _ := json.Marshal(s)
	after, _, err := Apply(s, c)
	var r *Refused
	if !errors.As(err, &r) {
		t.Fatalf("%s: got %v, want a refusal", c.Kind, err)
	}
	b, _ := json.Marshal(after)
	if string(before) != string(b) {
		t.Fatalf("%s: a refused command changed the state", c.Kind)
	}
}

func TestApplyIsPureAndRepeatable(t *testing.T) {
	s, actors := setUp(t)
	before, _ := json.Marshal(s)
	c := command(t, CmdHostAdd, actors[AdminOperator], HostAdd{Name: "host1", HostKey: spki(t, rsaKey(t, 2048))})
	a, ra := must(t, s, c)
	b, rb := must(t, s, c)
	if !reflect.DeepEqual(a, b) || ra != rb {
		t.Fatal("the same command gave two different states")
	}
	if after, _ := json.Marshal(s); string(after) != string(before) {
		t.Fatal("Apply changed its argument")
	}
	raw, _ := json.Marshal(a)
	var back State
	if err := json.Unmarshal(raw, &back); err != nil || !reflect.DeepEqual(a, back) {
		t.Fatal("a state does not survive its own encoding:", err)
	}
}

// TestNoCommandWorksForAStrangerOrALesserRole walks every command that exists: a new one is covered from its first day.
func TestNoCommandWorksForAStrangerOrALesserRole(t *testing.T) {
	s, actors := setUp(t)
	reviewer := actors[AdminReviewer]
	impostor := reviewer
	impostor.Name = "owner1" // an owner's name with another key
	stranger := Actor{Name: "mallory", Key: reviewer.Key, Door: DoorSSH}
	for _, kind := range Kinds() {
		for _, a := range []Actor{reviewer, impostor, stranger, {Door: DoorSetup}, {}} {
			refused(t, s, command(t, kind, a, struct{}{}))
		}
		if kind != CmdSetup {
			refused(t, NewState(), command(t, kind, actors[AdminOwner], struct{}{}))
		}
		refused(t, s, Command{Kind: kind, Actor: actors[AdminOwner], Body: json.RawMessage(`{"unknown-member":1}`)})
	}
	refused(t, s, command(t, CmdAdminAdd, actors[AdminOperator], AdminAdd{"new", AdminOwner, sshKey(t)}))
	if _, _, err := Apply(s, command(t, "future.kind", actors[AdminOwner], struct{}{})); !errors.Is(err, ErrUnknownKind) {
		t.Fatal(err)
	}
}

func TestSetupRefusesWhatCouldNotServe(t *testing.T) {
	for name, spoil := range map[string]func(*Setup){
		"no name":       func(s *Setup) { s.Service.Name = "" },
		"bad name":      func(s *Setup) { s.Service.Name = "a b" },
		"no mode":       func(s *Setup) { s.Service.Mode = 0 },
		"no door":       func(s *Setup) { s.Service.HTTP = false },
		"short life":    func(s *Setup) { s.Service.HealthLife = time.Minute },
		"long life":     func(s *Setup) { s.Service.HealthLife = 48 * time.Hour },
		"no owner":      func(s *Setup) { s.Admins = s.Admins[1:] },
		"no admins":     func(s *Setup) { s.Admins = nil },
		"key twice":     func(s *Setup) { s.Admins[1].Key = s.Admins[0].Key },
		"key with opts": func(s *Setup) { s.Admins[0].Key = `command="x" ` + s.Admins[0].Key },
		"no node id":    func(s *Setup) { s.Node.ID = "" },
	} {
		t.Run(name, func(t *testing.T) {
			b, _ := goodSetup(t)
			spoil(&b)
			refused(t, NewState(), command(t, CmdSetup, Actor{Door: DoorSetup}, b))
		})
	}
	b, _ := goodSetup(t)
	refused(t, NewState(), command(t, CmdSetup, Actor{Door: DoorSSH}, b))
}

func TestHostsAreKnownByTheirKey(t *testing.T) {
	s, actors := setUp(t)
	op := actors[AdminOperator]
	k := rsaKey(t, 2048)
	s, r := must(t, s, command(t, CmdHostAdd, op, HostAdd{Name: "host1", HostKey: spki(t, k)}))
	if h := s.Hosts[r.Subject]; h.Name != "host1" || h.Class != "default" || len(r.Subject) != 64 {
		t.Fatalf("%+v", h)
	}
	refused(t, s, command(t, CmdHostAdd, op, HostAdd{Name: "host2", HostKey: spki(t, k)}))
	refused(t, s, command(t, CmdHostAdd, op, HostAdd{Name: "host1", HostKey: spki(t, rsaKey(t, 2048))}))
	refused(t, s, command(t, CmdHostAdd, op, HostAdd{Name: "weak", HostKey: spki(t, rsaKey(t, 1024))}))
	refused(t, s, command(t, CmdHostAdd, op, HostAdd{Name: "bad name", HostKey: spki(t, rsaKey(t, 2048))}))
	refused(t, s, command(t, CmdHostAdd, op, HostAdd{Name: "garbage", HostKey: []byte("x")}))

	s, _ = must(t, s, command(t, CmdHostRevoke, op, HostRevoke{Name: "host1", Reason: "stolen"}))
	if !s.Hosts[r.Subject].Revoked {
		t.Fatal("not revoked")
	}
	late := command(t, CmdHostRestore, op, ByName{"host1"})
	late.At = Stamp{}
	refused(t, s, late)
	s, _ = must(t, s, command(t, CmdHostRestore, op, ByName{"host1"}))
	if h := s.Hosts[r.Subject]; h.Revoked || h.DenyIssuedBefore != 1_800_000_001 {
		t.Fatalf("certificates from before the revocation would be good again: %+v", h)
	}
	s, _ = must(t, s, command(t, CmdHostRemove, op, ByName{"host1"}))
	if len(s.Hosts) != 0 {
		t.Fatal("not removed")
	}
}

func TestKeysKeepExactlyOnePrimary(t *testing.T) {
	s, actors := setUp(t)
	op := actors[AdminOperator]
	add := func() KeyRef {
		var r Result
		s, r = must(t, s, command(t, CmdKeyAdd, op, KeyAdd{Role: RoleSigning, Label: "l", Certificate: certificate(t, rsaKey(t, 2048))}))
		return KeyRef(r.Subject)
	}
	first, second := add(), add()
	if k, ok := s.PrimaryKey(RoleSigning); !ok || k.Ref != first {
		t.Fatal("the first key is not primary")
	}
	refused(t, s, command(t, CmdKeyDisable, op, KeyChange{first}))
	refused(t, s, command(t, CmdKeyRemove, op, KeyChange{first}))
	s, _ = must(t, s, command(t, CmdKeyPrimary, op, KeyChange{second}))
	if k, _ := s.PrimaryKey(RoleSigning); k.Ref != second || s.Keys[first].Primary {
		t.Fatal("two primaries, or the wrong one")
	}
	refused(t, s, command(t, CmdKeyRemove, op, KeyChange{first}))
	s, _ = must(t, s, command(t, CmdKeyDisable, op, KeyChange{first}))
	refused(t, s, command(t, CmdKeyPrimary, op, KeyChange{first}))
	s, _ = must(t, s, command(t, CmdKeyRemove, op, KeyChange{first}))
	if len(s.Keys) != 1 {
		t.Fatal("not removed")
	}
	refused(t, s, command(t, CmdKeyAdd, op, KeyAdd{Role: "other", Certificate: certificate(t, rsaKey(t, 2048))}))
	refused(t, s, command(t, CmdKeyAdd, op, KeyAdd{Role: RoleSigning, Certificate: certificate(t, rsaKey(t, 1024))}))
}

func TestTheLastOwnerStays(t *testing.T) {
	s, actors := setUp(t)
	refused(t, s, command(t, CmdAdminRemove, actors[AdminOwner], ByName{"owner1"}))
	s, _ = must(t, s, command(t, CmdAdminAdd, actors[AdminOwner], AdminAdd{"owner2", AdminOwner, sshKey(t)}))
	s, _ = must(t, s, command(t, CmdAdminRemove, actors[AdminOwner], ByName{"owner1"}))
	if len(s.Admins) != 3 {
		t.Fatal(s.Admins)
	}
}

func TestAttestationSignersAreTrustedByThumbprint(t *testing.T) {
	s, actors := setUp(t)
	op := actors[AdminOperator]
	cert := certificate(t, rsaKey(t, 2048))
	s, r := must(t, s, command(t, CmdSignerTrust, op, SignerTrust{"branch", cert}))
	if s.Signers[r.Subject].Name != "branch" {
		t.Fatal(s.Signers)
	}
	refused(t, s, command(t, CmdSignerTrust, op, SignerTrust{"again", cert}))
	refused(t, s, command(t, CmdSignerTrust, op, SignerTrust{"garbage", []byte{1, 2}}))
	s, _ = must(t, s, command(t, CmdSignerDistrust, op, ByName{"branch"}))
	if len(s.Signers) != 0 {
		t.Fatal("still trusted")
	}
}

func TestServiceSettings(t *testing.T) {
	s, actors := setUp(t)
	op := actors[AdminOperator]
	off, deny, earlier := false, int64(1000), int64(999)
	refused(t, s, command(t, CmdServiceSet, op, ServiceSet{HTTP: &off}))
	s, _ = must(t, s, command(t, CmdServiceSet, op, ServiceSet{DenyIssuedBefore: &deny}))
	refused(t, s, command(t, CmdServiceSet, op, ServiceSet{DenyIssuedBefore: &earlier}))
	if s.Service.DenyIssuedBefore != 1000 || !s.Service.HTTP {
		t.Fatalf("%+v", s.Service)
	}
}

func FuzzApply(f *testing.F) {
	s, actors := setUp(f)
	for _, k := range Kinds() {
		f.Add(string(k), []byte(`{"name":"x"}`))
	}
	f.Fuzz(func(t *testing.T, kind string, body []byte) {
		Apply(s, Command{Kind: Kind(kind), Actor: actors[AdminOwner], Body: body})
	})
}
