package ledger

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/crypto/ssh"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

func TestAnswerFileErrorsHaveTheirLine(t *testing.T) {
	good := strings.Replace(answerFile, "KEY", sshKey(t), 1)
	if s, err := parseAnswers([]byte(good)); err != nil || s.Node.HSM.Attach != "virtio:org.guardhouse.hsm" || s.Node.Network.Interfaces[0].Gateways[0] != "10.0.2.2" || summary(s) == "" {
		t.Fatalf("%+v %v", s, err)
	}
	swap := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("no %q", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	for name, c := range map[string]struct {
		file string
		want string // begins like this behind "answer file, "
	}{
		"unknown key":               {swap("http = true", "htp = true"), "line 5: there is no setting \"service.htp\""},
		"unknown table":             {good + "[extra]\nx = 1\n", "line 27: there is no setting"},
		"unknown key in array":      {swap("role = \"owner\"", "role = \"owner\"\nroll = 1"), "line 26: there is no setting \"admin.roll\""},
		"wrong type":                {swap("http = true", "http = \"true\""), "line 5: the value of"},
		"wrong type in a list":      {swap(`["any"]`, `"any"`), "line 15: the value of"},
		"syntax":                    {swap("[node]", "[node"), "line 8: it is not valid TOML here"},
		"twice":                     {swap("http = true", "http = true\nhttp = false"), "line 6: "},
		"version":                   {swap("version = 1", "version = 2"), "line 1: version: this image reads version 1"},
		"no version":                {swap("version = 1\n", ""), "version: this image reads version 1"},
		"mode":                      {swap(`"HostKey"`, `"hostkey"`), "line 4: service.mode"},
		"name":                      {swap(`"hgs.example.test"`, `"https://hgs"`), "line 3: service.name"},
		"life":                      {swap(`"8h"`, `"8d"`), "line 7: service.health-life"},
		"life too long":             {swap(`"8h"`, `"25h"`), "line 7: service.health-life"},
		"address":                   {swap(`"10.0.2.15/24"`, `"10.0.2.15"`), "line 16: node.network.interface[0].addresses"},
		"module from a disk":        {swap(`"/usr/lib/pkcs11/p11-kit-client.so"`, `"/run/guardhouse/console.d/x.so"`), "line 20: node.hsm.module"},
		"time server that writes":   {swap(`"10.0.2.2:11123"`, `"[\u001b[2J"`), "line 10: node.time-servers"},
		"limit of the time":         {swap("[node]\n", "time-limit = \"10m\"\n[node]\n"), "line 8: service.time-limit"},
		"both lists of servers":     {swap("[node.network]", "[[node.time]]\nserver = \"10.0.2.2\"\n[node.network]"), "line 11: node.time"},
		"number of a time key":      {swap("time-servers = [\"10.0.2.2:11123\"]", "[[node.time]]\nserver = \"10.0.2.2\"\nkey-id = 70000"), "line 12: node.time[0].key-id"},
		"time key in the answers":   {swap("time-servers = [\"10.0.2.2:11123\"]", "[[node.time]]\nserver = \"10.0.2.2\"\nsecret = \"1234\""), "line 12: \"secret\" is a secret"},
		"a server that votes twice": {swap("[\"10.0.2.2:11123\"]", "[\"10.0.2.2\", \"10.0.2.2\"]"), "line 10: node.time-servers"},
		"nine time servers":         {swap("[\"10.0.2.2:11123\"]", "[\"a\", \"b\", \"c\", \"d\", \"e\", \"f\", \"g\", \"h\", \"i\"]"), "line 10: node.time-servers"},
		"module":                    {swap(`"/usr/lib/pkcs11/p11-kit-client.so"`, `"p11-kit-client.so"`), "line 20: node.hsm.module"},
		"role":                      {swap(`"owner"`, `"root"`), "line 25: admin[0].role"},
		"key":                       {swap("ssh-ed25519 ", "ssh-ed25519"), "line 26: admin[0].key"},
		"no owner":                  {swap(`"owner"`, `"operator"`), "line 23: admin: there must be"},
		"no admin":                  {good[:strings.Index(good, "[[admin]]")], "admin: there must be"},
		"PIN":                       {swap("attach =", "pin = \"1234\"\nattach ="), "line 22: \"pin\" is a secret"},
		"PIN as a word":             {swap("attach =", "pin = \"attended1\"\nattach ="), "line 22: \"pin\" is a secret"},
		"PIN of an admin":           {swap("role = \"owner\"", "role = \"owner\"\npin = \"attended\""), "line 26: \"pin\" is a secret"},
		"PIN by another name":       {swap("attach =", "HSM_PIN = \"1234\"\nattach ="), "line 22: \"HSM_PIN\" is a secret"},
		"PIN in an inline table":    {swap("token = \"guardhouse\"", "token = {user-pin = \"1234\"}"), "line 21: \"user-pin\" is a secret"},
		"passphrase table":          {good + "[passphrase]\nada = \"x\"\n", "line 27: \"passphrase\" is a secret"},
		"age identity in comment":   {swap("http = true", "# AGE-SECRET-KEY-1QQQ\nhttp = true"), "line 5: this looks like a private key"},
		"private key as value":      {swap("key = \"ssh-", "key = \"-----BEGIN OPENSSH PRIVATE KEY-----\" #"), "line 26: this looks like a private key"},
		"encrypted file as answer":  {"-----BEGIN AGE ENCRYPTED FILE-----\n", "line 1: this looks like"},
		"binary":                    {"\xff\xfe", "it is not UTF-8"},
		"huge":                      {strings.Repeat("#\n", 40000), "it is larger"},
		"empty":                     {"", "version: this image reads"},
	} {
		_, err := parseAnswers([]byte(c.file))
		if err == nil {
			t.Errorf("%s: taken", name)
			continue
		}
		got := strings.TrimPrefix(strings.TrimPrefix(strings.TrimPrefix(err.Error(), "answer file"), ", "), ": ")
		if !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		if strings.Contains(err.Error(), "1234") {
			t.Errorf("%s: the error repeats a secret", name)
		}
	}
}

func FuzzAnswers(f *testing.F) {
	f.Add([]byte(answerFile))
	f.Add([]byte("version = 1\n[a.b]\nc = {d = [1, {pin = 2}]}\n[[x.y]]\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseAnswers(b)
		if err == nil && (s.Service.Name == "" || len(s.Admins) == 0) {
			t.Errorf("an incomplete file was taken: %+v", s)
		}
	})
}

func TestSetupTakesNothingOrAll(t *testing.T) {
	b := newBench(t)
	answers := []byte(strings.Replace(answerFile, "KEY", sshKey(t), 1))
	other, _ := age.GenerateX25519Identity()
	var foreign bytes.Buffer
	w, _ := age.Encrypt(&foreign, other.Recipient())
	io.WriteString(w, secretsFile)
	w.Close()
	cut := b.encrypt(secretsFile)
	for name, req := range map[string]rpc.SetupRequest{
		"bad answers":            {Answers: []byte("version = 1\n"), Secrets: b.encrypt(secretsFile)},
		"no secrets":             {Answers: answers},
		"for another key":        {Answers: answers, Secrets: foreign.Bytes()},
		"cut":                    {Answers: answers, Secrets: cut[:len(cut)/2]},
		"not encrypted":          {Answers: answers, Secrets: []byte(secretsFile)},
		"unknown secret":         {Answers: answers, Secrets: b.encrypt("version = 1\nhsm-pin = \"12345678\"\nextra = \"topsecret\"\n")},
		"no PIN":                 {Answers: answers, Secrets: b.encrypt("version = 1\n")},
		"stranger's passphrase":  {Answers: answers, Secrets: b.encrypt("version = 1\nhsm-pin = \"12345678\"\n[passphrase]\nbob = \"correct horse\"\n")},
		"short passphrase":       {Answers: answers, Secrets: b.encrypt("version = 1\nhsm-pin = \"12345678\"\n[passphrase]\nada = \"short\"\n")},
		"secrets of version two": {Answers: answers, Secrets: b.encrypt("version = 2\nhsm-pin = \"12345678\"\n")},
	} {
		req.Actor = setupActor
		_, err := b.l.SetUp(context.Background(), req)
		if !errors.Is(err, rpc.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && (strings.Contains(err.Error(), "topsecret") || strings.Contains(err.Error(), "12345678")) {
			t.Errorf("%s: the error repeats a secret", name)
		}
		if names, _ := b.l.secrets.Names(); len(names) != 0 {
			t.Errorf("%s: left %q", name, names)
		}
	}
	for _, secrets := range [][]byte{nil, b.encrypt(secretsFile)} {
		r, err := b.l.SetUp(context.Background(), rpc.SetupRequest{Answers: answers, Secrets: secrets, Actor: setupActor, DryRun: true})
		if err != nil || !strings.Contains(r.Message, "node1") || !strings.Contains(r.Message, "10.0.2.15/24") {
			t.Errorf("dry run: %+v %v", r, err)
		}
	}
	if s, _ := b.l.Snapshot(); s.State.SetUp() || s.Index != 0 {
		t.Errorf("%+v", s)
	}
	b.setUp()
}

func TestSetupThatCrashedBeforeItsCommandIsDoneAgain(t *testing.T) {
	b := newBench(t)
	setup, err := parseAnswers([]byte(strings.Replace(answerFile, "KEY", sshKey(t), 1)))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.l.putSecrets(&setup, setupSecrets{PIN: "an earlier PIN", Passphrases: map[string]string{"ada": "an earlier passphrase"}}); err != nil {
		t.Fatal(err)
	}
	b.crash()
	if s, _ := b.l.Snapshot(); s.State.SetUp() || s.NodeID != "" {
		t.Fatalf("%+v", s)
	}
	if _, err := b.l.PIN(context.Background()); !errors.Is(err, rpc.ErrUnavailable) {
		t.Errorf("%v", err)
	}
	b.setUp()
	pin, err := b.l.PIN(context.Background())
	if err != nil || string(pin.PIN) != testPIN {
		t.Errorf("PIN of the earlier try: %v", err)
	}
	s, _ := b.l.Snapshot()
	if k, _, err := b.l.auditKey(); err != nil || auditPublic(t, k).Fingerprint()[:16] != s.NodeID {
		t.Errorf("the audit key is not the one on record: %v", err)
	}
}

func TestNetworkIsSentAgainAtTheStart(t *testing.T) {
	b := newBench(t)
	b.setUp()
	b.crash()
	b.mu.Lock()
	b.net = nil
	b.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { b.l.Run(ctx); close(done) }()
	for range 200 {
		b.mu.Lock()
		n := len(b.net)
		b.mu.Unlock()
		if n > 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	<-done
	if len(b.net) != 1 {
		t.Errorf("sent %d times", len(b.net))
	}
}

// nodeKey signs by the ledger, as hgs does over rpc.
type nodeKey struct {
	l   *Ledger
	key string
	pub any
}

func (k nodeKey) Public() crypto.PublicKey { return k.pub }

func (k nodeKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.l.Sign(rpc.NodeSignRequest{Key: k.key, Digest: digest, Hash: uint(opts.HashFunc())})
}

func TestNodeKeysServeTLSAndSSH(t *testing.T) {
	b := newBench(t)
	b.setUp()
	s, _ := b.l.Snapshot()
	node := s.State.Nodes[s.NodeID]
	cert, err := x509.ParseCertificate(node.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	if err := cert.VerifyHostname("hgs.example.test"); err != nil {
		t.Error(err)
	}
	if err := cert.VerifyHostname("10.0.2.15"); err != nil {
		t.Error(err)
	}
	if !cert.NotBefore.Equal(b.cfg.Epoch) || cert.NotAfter.Year() < 2050 {
		t.Errorf("valid from %s to %s", cert.NotBefore, cert.NotAfter)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.NotFoundHandler()}
	go server.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{node.Certificate},
		PrivateKey: nodeKey{b.l, "tls", cert.PublicKey}}}}))
	defer server.Close()
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "hgs.example.test"}}}
	resp, err := client.Get("https://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()

	pub, _, _, _, err := ssh.ParseAuthorizedKey([]byte(node.SSHHostKey))
	if err != nil {
		t.Fatal(err)
	}
	exchange := bytes.Repeat([]byte("hash"), 8)
	sig, err := b.l.Sign(rpc.NodeSignRequest{Key: "ssh", Digest: exchange})
	if err != nil || pub.Verify(exchange, &ssh.Signature{Format: pub.Type(), Blob: sig}) != nil {
		t.Errorf("ssh: %v", err)
	}
	for _, bad := range []rpc.NodeSignRequest{{Key: "tls", Digest: []byte("short"), Hash: 5}, {Key: "tls", Digest: make([]byte, 20), Hash: 3},
		{Key: "ssh", Digest: make([]byte, 65)}, {Key: "ssh", Digest: []byte("SSHSIG")}, {Key: "audit-key", Digest: []byte("x")}, {Key: "audit"}} {
		if _, err := b.l.Sign(bad); !errors.Is(err, rpc.ErrRefused) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func TestPassphraseWaitsLongerAfterEachWrongOneAndAcrossRestarts(t *testing.T) {
	b := newBench(t)
	ada := b.setUp()
	try := func(name, p string) rpc.PassphraseReply {
		t.Helper()
		r, err := b.l.CheckPassphrase(context.Background(), rpc.PassphraseRequest{Admin: name, Passphrase: []byte(p)})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := try("ada", testPassphrase); !r.OK {
		t.Fatalf("%+v", r)
	}
	wait := time.Duration(0)
	for range 4 {
		r := try("ada", "wrong passphrase")
		if r.OK || r.Delay <= wait {
			t.Fatalf("%+v after a wait of %s", r, wait)
		}
		wait = r.Delay
		if r := try("ada", testPassphrase); r.OK || r.Delay == 0 {
			t.Fatalf("the right one was looked at during the wait: %+v", r)
		}
		b.pass(wait)
	}
	try("ada", "wrong passphrase")
	b.crash()
	if r := try("ada", testPassphrase); r.OK || r.Delay < wait {
		t.Errorf("a restart shortened the wait to %s", r.Delay)
	}
	b.pass(maxWait)
	if r := try("ada", testPassphrase); !r.OK {
		t.Errorf("%+v", r)
	}
	if r := try("nobody", "x"); r.OK || r.Delay == 0 {
		t.Errorf("%+v", r)
	}
	if r := try("somebody else", "x"); r.OK || r.Delay == 0 || len(b.l.logins.Wrong) != 1 {
		t.Errorf("unknown names have waits of their own: %+v", r)
	}

	err := b.l.SetPassphrase(context.Background(), rpc.PassphraseRequest{Admin: "ada", Passphrase: []byte("another passphrase"), Actor: &ada})
	if err != nil {
		t.Fatal(err)
	}
	if r := try("ada", "another passphrase"); !r.OK {
		t.Errorf("%+v", r)
	}
	for name, req := range map[string]rpc.PassphraseRequest{
		"nobody's": {Admin: "ada", Passphrase: []byte("12345678")}, "somebody else's": {Admin: "bob", Passphrase: []byte("12345678"), Actor: &ada},
		"short": {Admin: "ada", Passphrase: []byte("1234567"), Actor: &ada}, "wrong key": {Admin: "ada", Passphrase: []byte("12345678"), Actor: &policy.Actor{Name: "ada", Key: "SHA256:x"}},
	} {
		if err := b.l.SetPassphrase(context.Background(), req); !errors.Is(err, rpc.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDamagedCountsOfWrongTriesAreNoWayIn: whoever can spoil that file must not get rid of the wait by it.
func TestDamagedCountsOfWrongTriesAreNoWayIn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "logins.json")
	now := func() time.Duration { return time.Minute }
	for _, text := range []string{"", "{", "null", "[]", "{\"ada\":\"x\"}"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		g, err := openLogins(path, now)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"ada", ""} {
			if wait, err := g.begin(name); err != nil || wait < maxWait {
				t.Errorf("%q: %q waits %s, %v", text, name, wait, err)
			}
		}
	}
}

func TestPassphraseOfARemovedAdministratorOpensNothing(t *testing.T) {
	b := newBench(t)
	ada := b.setUp()
	for _, c := range []policy.Command{
		command(ada, policy.CmdAdminAdd, policy.AdminAdd{Name: "eve", Role: policy.AdminOwner, Key: sshKey(t)}),
		command(ada, policy.CmdAdminRemove, policy.ByName{Name: "ada"}),
	} {
		if _, _, err := b.l.Propose(context.Background(), c); err != nil {
			t.Fatal(err)
		}
	}
	s, _ := b.l.Snapshot()
	fp, _ := policy.KeyFingerprint(s.State.Admins["eve"].Key)
	eve := policy.Actor{Name: "eve", Key: fp, Door: policy.DoorSSH}
	if _, _, err := b.l.Propose(context.Background(), command(eve, policy.CmdAdminAdd, admin(t, "ada"))); err != nil {
		t.Fatal(err)
	}
	r, err := b.l.CheckPassphrase(context.Background(), rpc.PassphraseRequest{Admin: "ada", Passphrase: []byte(testPassphrase)})
	if err != nil || r.OK {
		t.Errorf("the old passphrase opens the door for a new person: %+v %v", r, err)
	}
}

func TestContextKeysFollowTheHourAndAreTheClusters(t *testing.T) {
	b := newBench(t)
	if err := b.l.WatchContextKeys(context.Background(), nil); !errors.Is(err, rpc.ErrUnavailable) {
		t.Errorf("before setup: %v", err)
	}
	b.setUp()
	before := b.l.epochHour()
	b.trust(time.Date(2026, 11, 22, 10, 30, 0, 0, time.UTC))
	epoch := b.l.epochHour()
	if before != 0 || epoch != uint64(time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC).Unix()/3600) {
		t.Errorf("epochs %d, %d", before, epoch)
	}
	one, err := b.l.contextKeys(epoch)
	if err != nil {
		t.Fatal(err)
	}
	b.pass(time.Hour)
	two, err := b.l.contextKeys(b.l.epochHour())
	if err != nil || two.Epoch != epoch+1 || !bytes.Equal(two.Previous, one.Current) || bytes.Equal(two.Current, one.Current) || len(one.Current) != 32 {
		t.Errorf("epoch %d after %d: %v", two.Epoch, epoch, err)
	}
}

func TestAttendedSetupKeepsNoPIN(t *testing.T) {
	for _, word := range []string{"sealed", "attended"} {
		b := newBench(t)
		answers := []byte(strings.Replace(strings.Replace(answerFile, "KEY", sshKey(t), 1), "attach =", "pin = \""+word+"\" # why\nattach =", 1))
		right, wrong := "version = 1\n", secretsFile
		if word == "sealed" {
			right, wrong = wrong, right
		}
		if _, err := b.l.SetUp(t.Context(), rpc.SetupRequest{Answers: answers, Secrets: b.encrypt(wrong), Actor: setupActor}); !errors.Is(err, rpc.ErrRefused) {
			t.Errorf("%s: the wrong secrets file: %v", word, err)
		}
		r, err := b.l.SetUp(t.Context(), rpc.SetupRequest{Answers: answers, Secrets: b.encrypt(right), Actor: setupActor})
		if err != nil {
			t.Fatalf("%s: %+v %v", word, r, err)
		}
		pin, err := b.l.PIN(t.Context())
		if err != nil || pin.HSM.Attended != (word == "attended") || (len(pin.PIN) == 0) != pin.HSM.Attended {
			t.Errorf("%s: %+v, %v", word, pin.HSM, err)
		}
		if h, err := b.l.HSM(t.Context()); err != nil || h != pin.HSM {
			t.Errorf("%s: %+v, %v", word, h, err)
		}
		names, err := b.l.secrets.Names()
		if err != nil || slices.Contains(names, secretPIN) == pin.HSM.Attended {
			t.Errorf("%s: the node keeps %q, %v", word, names, err)
		}
	}
}
