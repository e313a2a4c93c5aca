package ledger

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"math/big"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

func (b *bench) collector(actor policy.Actor, address string) {
	b.t.Helper()
	k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Unix(1<<31, 0)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		b.t.Fatal(err)
	}
	set := policy.SyslogSet{Syslog: &policy.Syslog{Address: address, Name: "siem.example.test", CAs: [][]byte{der}}}
	if _, _, err := b.l.Propose(context.Background(), command(actor, policy.CmdAuditSyslog, set)); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) turn(req rpc.ForwardRequest) rpc.ForwardReply {
	b.t.Helper()
	r, err := b.l.Forward(context.Background(), req)
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

func TestACollectorGetsTheChainFromWhereItWas(t *testing.T) {
	b := newBench(t)
	ada := b.setUp()
	if r := b.turn(rpc.ForwardRequest{Start: true}); r.Syslog != nil || r.Target != "" || len(r.Records) != 0 {
		t.Errorf("without a collector: %+v", r)
	}
	b.collector(ada, "siem.example.test:6514")
	r := b.turn(rpc.ForwardRequest{Start: true})
	if r.Syslog == nil || r.Target == "" || r.Position != 0 || r.Node != "node1" || r.Host != "node1.hgs.example.test" {
		t.Fatalf("%+v", r)
	}
	page := b.turn(rpc.ForwardRequest{Target: r.Target, Connected: true})
	last := b.l.audit.Status().Last
	if len(page.Records) != int(last) || page.Records[0].Seq != 1 {
		t.Fatalf("%d of %d records", len(page.Records), last)
	}
	if s := b.l.Status().Syslog; s == nil || s.Behind != last || !s.Connected {
		t.Errorf("%+v", s)
	}
	b.turn(rpc.ForwardRequest{Target: r.Target, After: last, Acked: last - 1, Connected: true, Wait: time.Millisecond})
	b.turn(rpc.ForwardRequest{Target: "another", After: last, Acked: last, Connected: true})      // no report on this collector
	b.turn(rpc.ForwardRequest{Target: r.Target, After: last, Acked: last + 100, Connected: true}) // nor is this possible
	b.restart()
	if again := b.turn(rpc.ForwardRequest{Start: true}); again.Position != last-1 || again.Target != r.Target {
		t.Errorf("after a restart it begins behind %d, not %d", again.Position, last-1)
	}
	if err := os.WriteFile(b.l.forward.path, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.l.forward.saved, b.l.forward.kept = forwardFile{}, forwardFile{}
	b.restart()
	if again := b.turn(rpc.ForwardRequest{Start: true}); again.Position != 0 {
		t.Errorf("with a damaged position it begins behind %d", again.Position)
	}
}

func TestAWaitingForwarderHearsOfRecordsAndOfAnotherCollector(t *testing.T) {
	b := newBench(t)
	ada := b.setUp()
	b.collector(ada, "siem.example.test:6514")
	target := b.turn(rpc.ForwardRequest{Start: true}).Target
	last := b.l.audit.Status().Last
	got := make(chan rpc.ForwardReply, 1)
	wait := func() {
		r, _ := b.l.Forward(context.Background(), rpc.ForwardRequest{Target: target, After: last, Connected: true, Wait: forwardWait})
		got <- r
	}
	go wait()
	if _, err := b.l.audit.Append(t.Context(), policy.AuditEntry{Kind: policy.AuditGrant, Action: "x", Outcome: "ok"}); err != nil {
		t.Fatal(err)
	}
	if r := <-got; len(r.Records) != 1 || r.Records[0].Seq != last+1 {
		t.Errorf("%+v", r)
	}
	go func() {
		r, _ := b.l.Forward(context.Background(), rpc.ForwardRequest{Idle: true, Target: target, Error: "connection refused", Wait: forwardWait})
		got <- r
	}()
	for deadline := time.Now().Add(5 * time.Second); b.problem(KindSyslog) == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the error is no problem")
		}
	}
	if p := b.problem(KindSyslog); !strings.Contains(p.What, "connection refused") || !strings.Contains(p.What, "records behind: ") || p.Remedy == "" {
		t.Errorf("%+v", p)
	}
	b.collector(ada, "other.example.test:6514")
	if r := <-got; r.Target == target || r.Syslog.Address != "other.example.test:6514" {
		t.Errorf("%+v", r)
	}
	if p := b.problem(KindSyslog); p != nil {
		t.Errorf("the earlier collector's error is still told: %+v", p)
	}
}

// TestTheClientCertificateIsReplacedWithoutAGap: its key is made and stays on the node, a request changes nothing, and forward hears of a
// new one as of another collector.
func TestTheClientCertificateIsReplacedWithoutAGap(t *testing.T) {
	b := newBench(t)
	ada := b.setUp()
	b.collector(ada, "siem.example.test:6514")
	s, _ := b.l.Snapshot()
	request := func(key string) (rpc.SyslogRequestReply, error) {
		return b.l.SyslogRequest(t.Context(), rpc.SyslogRequest{Actor: ada, Key: key})
	}
	install := func(body policy.SyslogInstall) error {
		c := command(ada, policy.CmdSyslogInstall, body)
		if err := b.l.checkSyslogInstall(c); err != nil {
			return err
		}
		_, _, err := b.l.Propose(t.Context(), c)
		return err
	}
	shakes := func() {
		t.Helper()
		shown := b.turn(rpc.ForwardRequest{Start: true}).Client
		leaf, err := x509.ParseCertificate(shown[0])
		if err != nil {
			t.Fatal(err)
		}
		digest := sha256.Sum256([]byte("handshake"))
		_, isRSA := leaf.PublicKey.(*rsa.PublicKey)
		sig, err := b.l.Sign(rpc.NodeSignRequest{Key: "syslog", Ref: policy.RefOf(leaf.RawSubjectPublicKeyInfo), Digest: digest[:], Hash: uint(crypto.SHA256), PSS: isRSA})
		if err != nil {
			t.Fatal(err)
		}
		if k, ok := leaf.PublicKey.(*rsa.PublicKey); ok {
			err = rsa.VerifyPSS(k, crypto.SHA256, digest[:], sig, nil)
		} else if !ecdsa.VerifyASN1(leaf.PublicKey.(*ecdsa.PublicKey), digest[:], sig) {
			err = errors.New("the signature does not verify")
		}
		if err != nil {
			t.Error(err)
		}
	}
	if _, err := request(rpc.HTTPSKeyCurrent); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("a current key where there is none: %v", err)
	}
	grace := ada
	grace.Name = "grace"
	if _, err := b.l.SyslogRequest(t.Context(), rpc.SyslogRequest{Actor: grace, Key: rpc.HTTPSKeyNew}); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("somebody else: %v", err)
	}
	made, err := request(rpc.HTTPSKeyNew)
	if err != nil {
		t.Fatal(err)
	}
	if csr, err := x509.ParseCertificateRequest(made.Request); err != nil || csr.Subject.CommonName != "node1.hgs.example.test" || policy.RefOf(csr.RawSubjectPublicKeyInfo) != made.Ref {
		t.Errorf("%+v, %v", csr, err)
	}
	first := issued(t, made.Request, x509.ExtKeyUsageClientAuth)
	before := b.turn(rpc.ForwardRequest{Start: true})
	if before.Client != nil {
		t.Error("a certificate is shown that nobody installed")
	}
	b.restart()
	if err := install(policy.SyslogInstall{Node: s.NodeID, Certificate: first}); err != nil {
		t.Fatal(err)
	}
	after := b.turn(rpc.ForwardRequest{Start: true})
	if len(after.Client) != 1 || string(after.Client[0]) != string(first) || after.Target == before.Target {
		t.Errorf("forward hears of %d certificates, target %q then %q", len(after.Client), before.Target, after.Target)
	}
	shakes()
	for _, kind := range []string{rpc.HTTPSKeyNewRSA, rpc.HTTPSKeyNew} {
		if made, err = request(kind); err != nil {
			t.Fatal(err)
		}
		shakes() // the request changes nothing
		if err := install(policy.SyslogInstall{Node: s.NodeID, Certificate: issued(t, made.Request, x509.ExtKeyUsageClientAuth)}); err != nil {
			t.Fatal(err)
		}
		shakes()
	}
	if again, err := request(rpc.HTTPSKeyCurrent); err != nil || again.Ref != made.Ref {
		t.Errorf("the current key is another one: %v", err)
	}
	https := b.request(ada, rpc.HTTPSRequest{Key: rpc.HTTPSKeyNew})
	for what, body := range map[string]policy.SyslogInstall{
		"another key":     {Node: s.NodeID, Certificate: issued(t, https.Request, x509.ExtKeyUsageClientAuth)},
		"another node":    {Node: "0123456789abcdef", Certificate: first},
		"a replaced key":  {Node: s.NodeID, Certificate: first},
		"for server only": {Node: s.NodeID, Certificate: s.State.HTTPSCertificate(s.NodeID)[0]},
	} {
		if err := install(body); err == nil {
			t.Errorf("%s is taken", what)
		}
	}
	shakes()
	digest := sha256.Sum256(nil)
	if _, err := b.l.Sign(rpc.NodeSignRequest{Key: "syslog", Digest: digest[:], Hash: uint(crypto.SHA256), Ref: certificateRef(s.State.HTTPSCertificate(s.NodeID)[0])}); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("forward signs with the HTTPS key: %v", err)
	}
	if err := install(policy.SyslogInstall{Node: s.NodeID}); err != nil {
		t.Fatal(err)
	}
	if r := b.turn(rpc.ForwardRequest{Start: true}); r.Client != nil || r.Target != before.Target {
		t.Errorf("%d certificates are still shown", len(r.Client))
	}
}

// TestForwardReachesWhatIsOnRecordOnly: init hears of each change before forward connects, and once that there is no collector any more.
func TestForwardReachesWhatIsOnRecordOnly(t *testing.T) {
	b := newBench(t)
	ada := b.setUp()
	var asked []string
	var fault error
	b.l.cfg.Reach = func(_ context.Context, address string) ([]string, error) {
		asked = append(asked, address)
		return []string{"192.0.2.7:6514"}, fault
	}
	turn := func() rpc.ForwardReply { return b.turn(rpc.ForwardRequest{Start: true}) }
	turn()
	turn()
	b.collector(ada, "siem.example.test:6514")
	b.turn(rpc.ForwardRequest{Idle: true, Target: "x"}) // only reports
	if r := turn(); !slices.Equal(r.Peers, []string{"192.0.2.7:6514"}) || r.Unreachable != "" {
		t.Errorf("%+v", r)
	}
	turn() // a new connection looks the name up again
	fault = errors.New("no such host")
	if r := turn(); r.Peers != nil || r.Unreachable != "no such host" {
		t.Errorf("%+v", r)
	}
	fault = nil
	if _, _, err := b.l.Propose(t.Context(), command(ada, policy.CmdAuditSyslog, policy.SyslogSet{})); err != nil {
		t.Fatal(err)
	}
	fault = errors.New("init is away")
	turn()
	fault = nil
	turn() // what failed is asked again
	turn()
	if want := []string{"", "siem.example.test:6514", "siem.example.test:6514", "siem.example.test:6514", "", ""}; !slices.Equal(asked, want) {
		t.Errorf("init was asked for %q, want %q", asked, want)
	}
}
