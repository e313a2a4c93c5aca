package ledger

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"guardhouse/appliance/audit"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/tpm"
)

func auditPublic(t *testing.T, k crypto.Signer) audit.PublicKey {
	t.Helper()
	pub, err := audit.EncodeKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return pub
}

// proveExport verifies the node's export against the key on record and gives its entries.
func (b *bench) proveExport(key []byte) (entries []policy.AuditEntry) {
	b.t.Helper()
	var file bytes.Buffer
	if err := b.l.audit.Export(context.Background(), 0, 0, func(p []byte) error { file.Write(p); return nil }); err != nil {
		b.t.Fatal(err)
	}
	_, err := audit.VerifyEach(&file, key, func(r audit.Record) error { entries = append(entries, r.Entry); return nil })
	if err != nil {
		b.t.Fatal(err)
	}
	return entries
}

func (b *bench) problem(kind string) *policy.Problem {
	all := b.l.Status().Problems
	i := slices.IndexFunc(all, func(p policy.Problem) bool { return p.Kind == kind })
	if i < 0 {
		return nil
	}
	return &all[i]
}

func TestCheckpointsAreSignedInTheTPM(t *testing.T) {
	b := newBench(t)
	b.setUp()
	key, why, err := b.l.auditKey()
	if err != nil || why != "" {
		t.Fatal(why, err)
	}
	if _, ok := key.(*tpm.SigningKey); !ok {
		t.Fatalf("the audit key is a %T", key)
	}
	if _, ok := key.Public().(*ecdsa.PublicKey); !ok {
		t.Fatalf("%T", key.Public())
	}
	s, _ := b.l.Snapshot()
	b.proveExport(s.State.Nodes[s.NodeID].AuditKey)
	b.restart()
	if err := b.l.replaceAuditKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	if again, _ := b.l.Snapshot(); again.Index != s.Index || b.l.audit.Status().Problem != nil {
		t.Errorf("a restart changed the records from %d to %d, or broke the audit: %+v", s.Index, again.Index, b.l.audit.Status().Problem)
	}
	b.proveExport(s.State.Nodes[s.NodeID].AuditKey)
}

// TestALostAuditKeyIsAFindingAndNoDeadNode: the TPM was cleared, or the disk was opened in another machine.
func TestALostAuditKeyIsAFindingAndNoDeadNode(t *testing.T) {
	b := newBench(t)
	b.setUp()
	s, _ := b.l.Snapshot()
	first := s.State.Nodes[s.NodeID].AuditKey
	grant := policy.AuditEntry{Kind: policy.AuditGrant, Action: "rolltransportkey", Outcome: "ok"}
	if _, err := b.l.audit.Append(t.Context(), grant); err != nil {
		t.Fatal(err)
	}
	elsewhere, err := tpm.Open(startTPM(t))
	if err != nil {
		t.Fatal(err)
	}
	defer elsewhere.Close()
	foreign, err := elsewhere.NewSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	blob, _ := foreign.Encode()
	if err := b.l.secrets.Put(secretAudit, blob); err != nil {
		t.Fatal(err)
	}
	b.restart()
	if _, err := b.l.audit.Append(t.Context(), grant); err != nil {
		t.Fatalf("without a key nothing is granted: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan struct{})
	go func() { defer close(ran); b.l.keepAuditKey(ctx) }()
	for deadline := time.Now().Add(10 * time.Second); b.problem(auditKeyNew) == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no finding: %+v", b.l.Status().Problems)
		}
	}
	cancel()
	<-ran
	s, _ = b.l.Snapshot()
	n := s.State.Nodes[s.NodeID]
	if bytes.Equal(n.AuditKey, first) || len(n.FormerAuditKeys) != 1 || !bytes.Equal(n.FormerAuditKeys[0].Key, first) || n.ID != audit.NodeID(first) {
		t.Fatalf("%+v", n)
	}
	entries := b.proveExport(n.AuditKey)
	if !slices.ContainsFunc(entries, func(e policy.AuditEntry) bool {
		return e.Action == string(policy.CmdAuditKey) && e.Outcome == "ok" && e.Actor.Door == policy.DoorNode
	}) {
		t.Error("the change of the key is not in the audit")
	}
	b.restart()
	if p := b.l.audit.Status().Problem; p != nil {
		t.Errorf("after the next start: %+v", p)
	}
	if _, err := b.l.audit.Append(t.Context(), grant); err != nil {
		t.Error(err)
	}
}

// TestASoftwareAuditKeyGivesWayToTheTPMs: a node that an earlier image set up.
func TestASoftwareAuditKeyGivesWayToTheTPMs(t *testing.T) {
	b := newBench(t)
	b.setUp()
	_, old, _ := ed25519.GenerateKey(rand.Reader)
	pkcs8, _ := x509.MarshalPKCS8PrivateKey(old)
	if err := b.l.secrets.Put(secretOldKey, pkcs8); err != nil {
		t.Fatal(err)
	}
	if err := b.l.secrets.Delete(secretAudit); err != nil {
		t.Fatal(err)
	}
	s, _ := b.l.Snapshot()
	if err := b.l.recordAuditKey(t.Context(), s, auditPublic(t, old), "the test says so"); err != nil {
		t.Fatal(err)
	}
	if err := b.l.adoptKeys(); err != nil {
		t.Fatal(err)
	}
	b.proveExport(auditPublic(t, old))
	b.restart() // signs a checkpoint with the old key
	b.proveExport(auditPublic(t, old))
	if err := b.l.replaceAuditKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	s, _ = b.l.Snapshot()
	b.proveExport(s.State.Nodes[s.NodeID].AuditKey)
	if key, why, err := b.l.auditKey(); err != nil || why != "" || !bytes.Equal(auditPublic(t, key), s.State.Nodes[s.NodeID].AuditKey) {
		t.Errorf("%T, %s, %v", key, why, err)
	}
	if _, err := b.l.secrets.Get(secretOldKey); err == nil {
		t.Error("the software key is still there")
	}
	if b.problem(auditKeyNew) != nil {
		t.Error("an upgrade is shown as an alarm")
	}
	b.restart()
	if p := b.l.audit.Status().Problem; p != nil {
		t.Errorf("after the next start: %+v", p)
	}
}

// TestAKeyThatWasNotRecordedIsRecordedAtTheNextStart: a crash between the box and the record.
func TestAKeyThatWasNotRecordedIsRecordedAtTheNextStart(t *testing.T) {
	b := newBench(t)
	b.setUp()
	blob, public, err := b.l.newAuditKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.l.secrets.Put(secretAudit, blob); err != nil {
		t.Fatal(err)
	}
	b.crash()
	if err := b.l.replaceAuditKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	s, _ := b.l.Snapshot()
	if !bytes.Equal(s.State.Nodes[s.NodeID].AuditKey, public) {
		t.Error("it is not on record")
	}
	b.proveExport(public)
}

func TestNoAdministratorSetsTheAuditKey(t *testing.T) {
	b := newBench(t)
	ada := b.setUp()
	s, _ := b.l.Snapshot()
	body, _ := json.Marshal(policy.AuditKeyChange{Node: s.NodeID, Key: make([]byte, 32), Why: "I say so"})
	if _, _, err := b.l.Propose(t.Context(), policy.Command{ID: command(ada, policy.CmdAuditKey, struct{}{}).ID, Kind: policy.CmdAuditKey, Actor: ada, Body: body}); err == nil {
		t.Error("it was taken")
	}
}
