package policy

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// message is rpc.MaxElement, which this level may not import.
const message = 96 << 20

// wide is n bytes of the character whose JSON is widest.
func wide(n int) string { return strings.Repeat("<", n) }

// revokedKeys are n different hashes.
func revokedKeys(n int) (keys []string) {
	for i := range n {
		keys = append(keys, Thumbprint([]byte{byte(i)}))
	}
	return keys
}

func size(t *testing.T, v any) int {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return len(b)
}

// TestTheLargestStateFitsOneMessage has Apply accept each kind of record at its largest and counts how much as many as allowed would be.
func TestTheLargestStateFitsOneMessage(t *testing.T) {
	s, actors := setUp(t)
	op := actors[AdminOperator]
	at := Stamp{Earliest: 1_800_000_000_000, Latest: 1_800_000_001_000, Boot: strings.Repeat("b", MaxNameLength)}
	send := func(kind Kind, body any) {
		t.Helper()
		c := command(t, kind, op, body)
		c.At = at
		s, _ = must(t, s, c)
	}
	name := strings.Repeat("n", MaxNameLength)
	// A public key of the largest size costs seconds to make and its value does not matter.
	largest := &rsa.PublicKey{N: new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 8192), big.NewInt(1)), E: 1<<31 - 1}
	der, err := x509.MarshalPKIXPublicKey(largest)
	if err != nil {
		t.Fatal(err)
	}
	send(CmdHostAdd, HostAdd{Name: name, HostKey: der, Class: name, Note: wide(MaxNote)})
	send(CmdHostRevoke, HostRevoke{Name: name, Reason: wide(MaxNote), Keys: revokedKeys(maxRevokedKeys)})
	send(CmdHostDeny, HostDeny{Name: name, Subject: wide(MaxSubject), Key: revokedKeys(1)[0], Note: wide(MaxNote)})
	send(CmdClassOffline, OfflineSet{Class: name, MaxUnwraps: MaxOfflineUnwraps, Until: at.Latest/1000 + 60, Note: wide(MaxNote)})
	cert := padded(t, MaxCertificate)
	send(CmdKeyAdd, KeyAdd{Role: RoleAttestationSigner, Label: wide(MaxLabel), Certificate: cert})
	send(CmdTenantAdd, TenantAdd{Name: name, Note: wide(MaxNote)})
	s.Admins[op.Name] = Admin{Name: op.Name, Role: AdminOwner, Key: s.Admins[op.Name].Key}
	send(CmdPeerAdd, PeerAdd{Name: name, Address: "[2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff]:65535", Key: make([]byte, PeerKeySize)})
	brought := s.Tenants[name]
	brought.Classes = slices.Repeat([]string{name}, MaxTenantClasses)
	send(CmdSignerTrust, SignerTrust{Name: name, Certificate: cert})
	send(CmdTrustImport, TrustImport{Vendor: name, Anchors: []TrustAnchor{{Root: true, Name: wide(MaxNameLength), Certificate: padded(t, MaxEKCertificate)}}})
	var anchors []string
	for tp := range s.Anchors {
		anchors = append(anchors, tp)
	}
	ek := new(big.Int).Rsh(largest.N, 8192-4096)
	spki4096, err := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: ek, E: 1<<31 - 1})
	if err != nil {
		t.Fatal(err)
	}
	other := strings.Repeat("o", MaxNameLength)
	send(CmdHostAddTPM, TPMHostAdd{Name: other, EK: spki4096, NameAlg: 13, Symmetric: 256, EKCert: bytes.Repeat([]byte{0x30}, MaxEKCertificate),
		Chain: append(anchors, anchors[0]), Version: Version1, Class: name, Note: wide(MaxNote), Inventory: wide(MaxNameLength),
		Machine: &Machine{SMBIOS: wide(MaxNameLength), Serial: wide(MaxNameLength), MACs: slices.Repeat([]string{strings.Repeat("A", 40)}, MaxMACs)}})
	measured := func(n int) []Measured {
		return slices.Repeat([]Measured{{Name: strings.Repeat("v", MaxNameLength), GUID: strings.Repeat("g", 36), SHA256: make([]byte, 32)}}, n)
	}
	send(CmdBaselineAdd, BaselineAdd{Name: name, LogDigest: strings.Repeat("ab", 32), Variables: measured(maxVariables), Authorities: measured(maxAuthorities), NoDMA: true})
	var digests []HashValue
	for alg, n := range hashSizes {
		digests = append(digests, HashValue{alg, make([]byte, n)})
	}
	send(CmdCIPolicyAdd, CIPolicyAdd{Name: name, Digests: digests, Audit: true, PolicyID: wide(36), Title: wide(MaxNote), Revision: wide(32)})
	send(CmdDumpKeyAdd, DumpKeyAdd{Name: name, SHA256: make([]byte, 32)})
	for _, b := range Builtins {
		if !b.Locked {
			send(CmdPolicySet, PolicySwitch{Policy: b.Name, Class: name, Enabled: new(bool)})
		}
	}
	entry := func(k string, v any) int { return size(t, k) + size(t, v) + 2 }
	for _, h := range s.Hosts {
		if got := entry(h.ID, h); got > h.room() {
			t.Errorf("a host of %d bytes counts as one of %d", got, h.room())
		}
	}
	key, signer := 0, 0
	for _, k := range s.Keys {
		k.Tenant, k.Store, k.DenyIssuedBefore = name, StoreSoftware, at.Latest
		key = entry(string(k.Ref), k)
	}
	for _, x := range s.Signers {
		x.DenyIssuedBefore = at.Latest
		signer = entry(x.Thumbprint, x)
	}
	anchor := s.Anchors[anchors[0]]
	anchor.Certificate = nil
	const admin = 6*maxSSHKey + 1<<10
	const node = 6*(4*maxEntries*maxEntries*maxEntry+MaxTimeServers*maxHost+maxSSHKey) + 2*(2+MaxChain)*MaxCertificate
	attestation := MaxBaselines*entry(name, s.Baselines[name]) + MaxCIPolicies*entry(name, s.CIPolicies[name]) + MaxDumpKeys*entry(name, s.DumpKeys[name]) +
		MaxPolicySets*entry(name, s.PolicySets[name]) + MaxAnchors*(entry(anchors[0], anchor)+entry(name, true)) + MaxAnchorBytes/3*4 +
		MaxDenials*entry(name, s.Denials[name]) + MaxOfflineClasses*entry(name, s.Offline[name]) + MaxPeers*entry(name, s.Peers[name])
	total := maxHostBytes + key*MaxKeys + entry(name, brought)*MaxTenants + signer*MaxSigners + admin*MaxAdmins + 8*node + attestation
	total += 2 * (MaxDraftBytes + MaxDraftSteps*entry(name, s.Baselines[name])) // the draft, and what undoes one that removed as many baselines
	t.Logf("hosts %d, key %d, attestation signer %d, attestation policies %d bytes; %d bytes in all", maxHostBytes, key, signer, attestation, total)
	if total > message {
		t.Fatalf("%d bytes, one message holds %d: the processes would hear of nothing any more", total, message)
	}
}

// padded is a certificate of almost size bytes.
func padded(t *testing.T, size int) []byte {
	t.Helper()
	k := rsaKey(t, 2048)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, NotAfter: time.Now().Add(time.Hour),
		ExtraExtensions: []pkix.Extension{{Id: []int{1, 2, 3, 4}, Value: make([]byte, size-1024)}}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestRefusesWhatWouldFillOrSpoilTheRecords(t *testing.T) {
	s, actors := setUp(t)
	owner := actors[AdminOwner]
	key := spki(t, rsaKey(t, 2048))
	tooBig := padded(t, MaxCertificate+2048)
	many := make([]string, MaxTimeServers+1)
	for i := range many {
		many[i] = "ntp.example.test"
	}
	long := strings.Repeat("a", 300)
	for name, c := range map[string]Command{
		"note too long":              command(t, CmdHostAdd, owner, HostAdd{Name: "h", HostKey: key, Note: strings.Repeat("a", MaxNote+1)}),
		"note that moves a cursor":   command(t, CmdHostAdd, owner, HostAdd{Name: "h", HostKey: key, Note: "\x1b[2J"}),
		"note with another line":     command(t, CmdHostAdd, owner, HostAdd{Name: "h", HostKey: key, Note: "a\nb"}),
		"label too long":             command(t, CmdKeyAdd, owner, KeyAdd{Role: RoleSigning, Label: long, Certificate: certificate(t, rsaKey(t, 2048))}),
		"key's certificate too big":  command(t, CmdKeyAdd, owner, KeyAdd{Role: RoleSigning, Certificate: tooBig}),
		"signer's too big":           command(t, CmdSignerTrust, owner, SignerTrust{Name: "x", Certificate: tooBig}),
		"too many time servers":      command(t, CmdNodeSet, owner, NodeSet{Node: "n1", TimeServers: many}),
		"time server too long":       command(t, CmdNodeSet, owner, NodeSet{Node: "n1", TimeServers: []string{long}}),
		"time server with escapes":   command(t, CmdNodeSet, owner, NodeSet{Node: "n1", TimeServers: []string{"[\x1b[2J]"}}),
		"too many interfaces":        command(t, CmdNodeSet, owner, NodeSet{Node: "n1", Network: &Network{Interfaces: make([]Interface, maxEntries+1)}}),
		"interface name too long":    command(t, CmdNodeSet, owner, NodeSet{Node: "n1", Network: &Network{Interfaces: []Interface{{Name: long}}}}),
		"resolver too long":          command(t, CmdNodeSet, owner, NodeSet{Node: "n1", Network: &Network{Resolvers: []string{long}}}),
		"HTTPS certificate too big":  command(t, CmdHTTPSInstall, owner, HTTPSInstall{Node: "n1", Certificate: tooBig}),
		"client certificate too big": command(t, CmdSyslogInstall, owner, SyslogInstall{Node: "n1", Certificate: tooBig}),
		"client chain too long":      command(t, CmdSyslogInstall, owner, SyslogInstall{Node: "n1", Certificate: tooBig[:10], Chain: make([][]byte, MaxChain+1)}),
	} {
		t.Run(name, func(t *testing.T) { refused(t, s, c) })
	}
	good := command(t, CmdHostAdd, owner, HostAdd{Name: "h", HostKey: key})
	for name, spoil := range map[string]func(*Command){
		"endless boot id":     func(c *Command) { c.At.Boot = long },
		"endless session":     func(c *Command) { c.Actor.Session = long },
		"session that writes": func(c *Command) { c.Actor.Session = "\x1b]0;x\a" },
		"time that runs back": func(c *Command) { c.At.Earliest = c.At.Latest + 1 },
	} {
		t.Run(name, func(t *testing.T) {
			c := good
			spoil(&c)
			refused(t, s, c)
		})
	}
	must(t, s, good)
}

// TestARefusalIsShortWhateverWasSent, because it is kept under the request's id.
func TestARefusalIsShortWhateverWasSent(t *testing.T) {
	s, actors := setUp(t)
	long := strings.Repeat("a", 32<<10)
	for _, kind := range Kinds() {
		for _, body := range []string{`{"` + long + `":1}`, `{"name":"` + long + `"}`, `{"node":"` + long + `"}`, `{"role":"` + long + `"}`, `{"ref":"` + long + `"}`} {
			_, _, err := Apply(s, Command{Kind: kind, Actor: actors[AdminOwner], Body: json.RawMessage(body)})
			if err != nil && len(err.Error()) > 600 {
				t.Errorf("%s %.12s...: a refusal of %d bytes", kind, body, len(err.Error()))
			}
		}
	}
}

// TestAModuleComesFromTheImage: it becomes code beside the PIN, so a place where another process could put a file is none.
func TestAModuleComesFromTheImage(t *testing.T) {
	s, actors := setUp(t)
	set := func(module string) Command {
		return command(t, CmdNodeSet, actors[AdminOwner], NodeSet{Node: "n1", HSM: &HSM{Module: module, Token: "t"}})
	}
	for _, module := range []string{"", "lib.so", "/run/guardhouse/console.d/x.so", "/tmp/x.so", "/data/hsm/x.so", "/proc/self/fd/3", "/usr/lib/../../run/x.so",
		"/dev/shm/x.so", "/usr/lib/x\n.so", "/usr/lib/" + strings.Repeat("a", maxPath)} {
		refused(t, s, set(module))
	}
	must(t, s, set("/usr/lib/pkcs11/vendor.so"))
	must(t, s, set("/running/x.so"))
}

// TestAHostThatReturnsLeavesItsOldCertificatesBehind: revoked, removed and added again with the same key, as after a new installation.
func TestAHostThatReturnsLeavesItsOldCertificatesBehind(t *testing.T) {
	s, actors := setUp(t)
	op := actors[AdminOperator]
	add := command(t, CmdHostAdd, op, HostAdd{Name: "host1", HostKey: spki(t, rsaKey(t, 2048))})
	s, r := must(t, s, add)
	issued := add.At.Earliest / 1000 // second of issue in a certificate that the host got at once
	if h := s.Hosts[r.Subject]; issued < h.DenyIssuedBefore {
		t.Fatal("a certificate issued after the host was added is refused")
	}
	s, _ = must(t, s, command(t, CmdHostRevoke, op, HostRevoke{Name: "host1"}))
	s, _ = must(t, s, command(t, CmdHostRemove, op, ByName{"host1"}))
	again := add
	again.At.Earliest += 60_000
	again.At.Latest += 60_000
	s, _ = must(t, s, again)
	if h := s.Hosts[r.Subject]; issued >= h.DenyIssuedBefore {
		t.Fatalf("a certificate from before the revocation is good again: issued %d, refused before %d", issued, h.DenyIssuedBefore)
	}
}

// TestTheDenyDateLiesNotInTheFuture: it can't be taken back, so one typing mistake would shut every host out until then.
func TestTheDenyDateLiesNotInTheFuture(t *testing.T) {
	s, actors := setUp(t)
	deny := func(at Stamp, seconds int64) Command {
		c := command(t, CmdServiceSet, actors[AdminOwner], ServiceSet{DenyIssuedBefore: &seconds})
		c.At = at
		return c
	}
	now := Stamp{Earliest: 1_800_000_000_000, Latest: 1_800_000_001_000}
	refused(t, s, deny(now, 1_800_000_004))
	refused(t, s, deny(Stamp{}, 1_700_000_000))
	must(t, s, deny(now, 1_800_000_001))
}

func TestAdministratorsKeysAreStrongAndBare(t *testing.T) {
	s, actors := setUp(t)
	weak, err := ssh.NewPublicKey(rsaKey(t, 1024).Public())
	if err != nil {
		t.Fatal(err)
	}
	dsa := "ssh-dss AAAAB3NzaC1kc3MAAACBAL5gAAAA"
	for _, key := range []string{string(ssh.MarshalAuthorizedKey(weak)), dsa, sshKey(t) + sshKey(t), strings.TrimSpace(sshKey(t)) + " " + strings.Repeat("c", maxSSHKey)} {
		refused(t, s, command(t, CmdAdminAdd, actors[AdminOwner], AdminAdd{"new", AdminReviewer, key}))
		if _, err := KeyFingerprint(key); err == nil {
			t.Errorf("%.30s... has a fingerprint to log in with", key)
		}
	}
	line := strings.TrimSpace(sshKey(t))
	s, _ = must(t, s, command(t, CmdAdminAdd, actors[AdminOwner], AdminAdd{"new", AdminReviewer, line + " eve\x1b[2J@host\n"}))
	if got := s.Admins["new"].Key; got != line {
		t.Fatalf("the record holds %q", got)
	}
}
