package ledger

import (
	"errors"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// TestNothingIsCertifiedWithoutATrustedTime asks every place of the ledger that makes certificates, once while the time was lost and, as the
// control, once with it.
func TestNothingIsCertifiedWithoutATrustedTime(t *testing.T) {
	utc := time.Date(2026, 11, 22, 10, 30, 0, 0, time.UTC)
	b, k, ada := withSigner(t, utc)
	orphan, err := k.generate(t.Context(), rpc.Caller{}, rpc.HSMGenerateRequest{Role: policy.RoleSigning, Bits: 2048})
	if err != nil {
		t.Fatal(err)
	}
	makeKeys := func(roles ...policy.KeyRole) func() error {
		req := rpc.MakeKeysRequest{Actor: ada, ID: newID(), Roles: roles, Bits: 2048, Subject: "Example"}
		return func() error { _, err := b.l.MakeKeys(t.Context(), req); return err }
	}
	selfSigned := func(shared bool) func() error {
		return func() error {
			r, err := b.l.HTTPSRequest(t.Context(), rpc.HTTPSRequest{Actor: ada, Key: rpc.HTTPSKeyNew, SelfSigned: true, Shared: shared})
			if err == nil && len(r.Certificate) == 0 {
				err = errors.New("no certificate")
			}
			return err
		}
	}
	places := []struct {
		name string
		make func() error
	}{
		{"a guardian's pair", makeKeys(policy.RoleSigning, policy.RoleEncryption)},
		{"a communications key", makeKeys(policy.RoleCommunications)},
		{"an attestation signer", makeKeys(policy.RoleAttestationSigner)},
		{"a key of the token's", func() error {
			_, err := b.l.AddKey(t.Context(), rpc.KeyAddRequest{Actor: ada, ID: newID(), Ref: orphan.Ref, Role: policy.RoleSigning})
			return err
		}},
		{"the node's HTTPS certificate", selfSigned(false)},
		{"the shared HTTPS certificate", selfSigned(true)},
	}
	before, _ := b.l.Snapshot()
	made := len(k.list)
	b.mu.Lock()
	b.time = policy.TrustedTime{Boot: "test-boot"}
	b.mu.Unlock()
	for _, p := range places {
		if err := p.make(); !errors.Is(err, rpc.ErrUnavailable) {
			t.Errorf("%s, without a trusted time: %v", p.name, err)
		}
	}
	b.renew(1)
	b.trust(utc.Add(300 * day)) // the signer is due by then, and this value expires
	b.pass(101 * time.Hour)
	b.renew(1)
	if after, _ := b.l.Snapshot(); len(after.State.Keys) != len(before.State.Keys) {
		t.Errorf("%d keys were recorded, %d before", len(after.State.Keys), len(before.State.Keys))
	}
	if len(k.list) != made {
		t.Errorf("the token made %d keys that nothing certifies", len(k.list)-made)
	}
	b.trust(utc.Add(time.Hour))
	for _, p := range places {
		if err := p.make(); err != nil {
			t.Errorf("%s, with a trusted time: %v", p.name, err)
		}
	}
}

// TestAManualTimeIsInEveryEntry: of a change, a refusal and another process's entry, with how wrong it may be.
func TestAManualTimeIsInEveryEntry(t *testing.T) {
	b := newBench(t)
	ada := b.setUp()
	before := len(b.every())
	b.trust(time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC))
	b.mu.Lock()
	b.time.Manual, b.time.Bound = true, 5*time.Minute
	b.mu.Unlock()
	b.second(ada, "grace", policy.AdminOperator)
	b.l.Refuse(policy.Refusal{Source: "192.0.2.7", Action: "attest", Outcome: "unknown", Detail: "d", Remedy: "r"})
	if _, err := b.l.audit.Append(t.Context(), b.l.stamped(policy.AuditEntry{Kind: policy.AuditSystem, Action: "other", Outcome: "ok"})); err != nil {
		t.Fatal(err)
	}
	b.restart() // writes what waits
	entries, seen := b.every()[before:], map[policy.AuditKind]bool{}
	for _, e := range entries {
		seen[e.Kind] = true
		if !e.At.Manual || e.At.Boot == "" || e.BootTime == 0 || time.Duration(e.At.Latest-e.At.Earliest)*time.Millisecond < 10*time.Minute {
			t.Errorf("%s %s: %+v at %d", e.Kind, e.Action, e.At, e.BootTime)
		}
	}
	if !seen[policy.AuditCommand] || !seen[policy.AuditSystem] {
		t.Errorf("only %v were written: this shows little", seen)
	}
}

// every is the whole audit.
func (b *bench) every() (list []policy.AuditEntry) {
	b.t.Helper()
	records, err := b.l.audit.Tail(1000)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, r := range records {
		list = append(list, r.Entry)
	}
	return list
}

// TestNoConsoleChoosesTheTimeOfAChange: the dates of records and of their audit entries are those that this node trusts, whatever the
// command says; where the time is not trusted they have none, and what needs one is refused.
func TestNoConsoleChoosesTheTimeOfAChange(t *testing.T) {
	b := newBench(t)
	ada := b.setUp()
	lie := time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli()
	propose := func(kind policy.Kind, body any) error {
		c := command(ada, kind, body)
		c.At = policy.Stamp{Earliest: lie, Latest: lie + 20, Boot: "another-boot"}
		_, _, err := b.l.Propose(t.Context(), c)
		return err
	}
	added := func(name string) policy.Stamp {
		t.Helper()
		if err := propose(policy.CmdAdminAdd, policy.AdminAdd{Name: name, Role: policy.AdminOperator, Key: sshKey(t)}); err != nil {
			t.Fatal(err)
		}
		s, _ := b.l.Snapshot()
		entries := b.audited(string(policy.CmdAdminAdd))
		if at := entries[len(entries)-1].At; at != s.State.Admins[name].Added {
			t.Errorf("%s: the audit says %+v, the record %+v", name, at, s.State.Admins[name].Added)
		}
		return s.State.Admins[name].Added
	}
	if at := added("grace"); at.Latest != 0 || at.Boot != "test-boot" {
		t.Errorf("without a trusted time a record is of %+v", at)
	}
	deny := lie / 1000
	if err := propose(policy.CmdServiceSet, policy.ServiceSet{DenyIssuedBefore: &deny}); !errors.Is(err, rpc.ErrRefused) {
		t.Errorf("no host may pass until 2099, by a console's word: %v", err)
	}
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	b.trust(now)
	if at := added("linus"); at.Earliest > now.UnixMilli() || at.Latest < now.UnixMilli() {
		t.Errorf("a record is of %+v", at)
	}
}

// TestSetupWarnsOfTimeServersThatCantHelp: shielded machines of this fabric, and too few to outvote one that lies.
func TestSetupWarnsOfTimeServersThatCantHelp(t *testing.T) {
	const few = "one that lies can't be outvoted"
	for n, warned := range map[int]bool{1: true, 2: true, 3: false, 8: false} {
		s := policy.Setup{Node: policy.Node{TimeServers: []string{"a", "b", "c", "d", "e", "f", "g", "h"}[:n]}}
		text := summary(s)
		if !strings.Contains(text, "none of these may be a shielded machine of this fabric") || strings.Contains(text, few) != warned {
			t.Errorf("%d servers:\n%s", n, text)
		}
	}
	none := strings.Replace(answerFile, `["10.0.2.2:11123"]`, "[]", 1)
	if _, err := parseAnswers([]byte(strings.ReplaceAll(none, "KEY", sshKey(t)))); err == nil || !strings.Contains(err.Error(), "name 1 to 8 time servers") {
		t.Errorf("a node without time servers: %v", err)
	}
}
