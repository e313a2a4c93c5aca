package ledger

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"os"
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
