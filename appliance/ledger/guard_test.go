package ledger

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// TestNoConsoleTalksTheLedgerOutOfTheWayBack: whatever a command says of the hosts, the ledger's own observations decide, and the phrase
// that overrides them is on the record.
func TestNoConsoleTalksTheLedgerOutOfTheWayBack(t *testing.T) {
	b := newBench(t)
	ada := b.setUp()
	now := int64(1_800_000_000_000)
	stamp := func() policy.Stamp {
		now += 1000
		return policy.Stamp{Earliest: now, Latest: now + 20, Boot: "test-boot"}
	}
	propose := func(kind policy.Kind, body any, lie *policy.Stragglers) (policy.Result, error) {
		b.trust(time.UnixMilli(stamp().Earliest).Add(20 * time.Millisecond))
		c := command(ada, kind, body)
		c.Stragglers = lie
		_, r, err := b.l.Propose(context.Background(), c)
		return r, err
	}
	must := func(kind policy.Kind, body any) policy.Result {
		t.Helper()
		r, err := propose(kind, body, nil)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	host := must(policy.CmdHostAdd, policy.HostAdd{Name: "hv1", HostKey: spki}).Subject
	must(policy.CmdDumpKeyAdd, policy.DumpKeyAdd{Name: "ops", SHA256: make([]byte, 32)})
	must(policy.CmdDumpKeyAdd, policy.DumpKeyAdd{Name: "more", SHA256: []byte(strings.Repeat("x", 32))})
	tpm, back := policy.ModeTPM, policy.ModeHostKey
	must(policy.CmdServiceSet, policy.ServiceSet{Mode: &tpm})
	must(policy.CmdServiceSet, policy.ServiceSet{Mode: &back})
	s, _ := b.l.Snapshot()
	lie := &policy.Stragglers{Mode: policy.ModeHostKey, Since: s.State.Service.Switched.At, Of: 1}
	if _, err := propose(policy.CmdDumpKeyRemove, policy.Removal{Name: "ops"}, lie); !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "hv1 not seen") {
		t.Fatalf("a console that claims that all have passed: %v", err)
	}
	see := func(verdict string) {
		at := stamp()
		b.l.observed.add([]policy.Observation{{Kind: policy.ObservedHost, Subject: host, First: at, Last: at, Count: 1, Facts: map[string]string{"verdict": verdict}}})
	}
	see("signature-wrong")
	_, err = propose(policy.CmdDumpKeyRemove, policy.Removal{Name: "ops"}, lie)
	if err == nil || !strings.Contains(err.Error(), "hv1 failed") || !strings.Contains(err.Error(), "signature-wrong") {
		t.Fatal(err)
	}
	const phrase = "remove-TPM-although-1-of-1-hosts-have-not-passed-in-HostKey"
	if !strings.Contains(err.Error(), "--phrase "+phrase) {
		t.Fatal(err)
	}
	if _, err := propose(policy.CmdDumpKeyRemove, policy.Removal{Name: "more", Phrase: phrase}, nil); err != nil {
		t.Fatal(err)
	}
	tail, err := b.l.audit.Tail(3)
	if err != nil {
		t.Fatal(err)
	}
	var text []string
	for _, r := range tail {
		text = append(text, r.Entry.Outcome+" "+r.Entry.Detail)
	}
	if all := strings.Join(text, "\n"); !strings.Contains(all, "refused it belongs to TPM mode") || !strings.Contains(all, "ok dump key more removed") || !strings.Contains(all, "by typed phrase, while 1 of 1 hosts have not passed in HostKey mode") {
		t.Errorf("the audit holds\n%s", all)
	}
	see("ok")
	b.restart() // what was seen and when the mode was switched are both kept
	if _, err := propose(policy.CmdDumpKeyRemove, policy.Removal{Name: "ops"}, nil); err != nil {
		t.Error(err)
	}
}
