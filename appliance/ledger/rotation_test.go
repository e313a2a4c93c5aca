package ledger

import (
	"context"
	"crypto/x509"
	"errors"
	"strings"
	"testing"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// turning is a node with a primary pair and the plan to replace it, the new pair made.
func turning(t *testing.T) (b *bench, k *token, a policy.Actor, fresh policy.KeyPair) {
	t.Helper()
	b = newBench(t)
	b.trust(day0)
	a = b.setUp()
	k = b.attachToken()
	pair := func(id string) policy.KeyPair {
		made, err := b.l.MakeKeys(context.Background(), rpc.MakeKeysRequest{Actor: a, ID: id, Roles: []policy.KeyRole{policy.RoleSigning, policy.RoleEncryption}, Bits: 2048})
		if err != nil {
			t.Fatal(err)
		}
		return policy.KeyPair{Signing: made.Keys[0].Ref, Encryption: made.Keys[1].Ref}
	}
	pair(newID())
	b.do(command(a, policy.CmdRotationStart, policy.RotationStart{Bits: 2048, Days: 30}))
	id := newID()
	fresh = pair(id)
	if again := pair(id); again != fresh { // after a crash
		t.Fatal("the repeated request made another pair")
	}
	b.do(b.moved(a, policy.CmdRotationPair, fresh))
	return b, k, a, fresh
}

func (b *bench) do(c policy.Command) {
	b.t.Helper()
	if _, _, err := b.l.Propose(context.Background(), c); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) moved(a policy.Actor, kind policy.Kind, pair policy.KeyPair) policy.Command {
	s, _ := b.l.Snapshot()
	return command(a, kind, policy.RotationMove{ID: s.State.Rotation.ID, From: s.State.Rotation.Step, New: pair})
}

// TestANewPairThatFailsOnAnyNodeDoesNotBecomePrimary, not even half of it; and neither does an old one that is gone from the token.
func TestANewPairThatFailsOnAnyNodeDoesNotBecomePrimary(t *testing.T) {
	b, k, a, fresh := turning(t)
	s, _ := b.l.Snapshot()
	old := s.State.Rotation.Old
	sick := func(ref policy.KeyRef, is bool) {
		k.mu.Lock()
		defer k.mu.Unlock()
		if delete(k.sick, ref); is {
			k.sick[ref] = policy.Problem{Kind: rpc.KeyNoUse, What: "the token forbids its use", Remedy: "allow it"}
		}
	}
	refuses := func(kind policy.Kind) {
		t.Helper()
		_, _, err := b.l.Propose(context.Background(), b.moved(a, kind, policy.KeyPair{}))
		if !errors.Is(err, rpc.ErrRefused) || !strings.Contains(err.Error(), "node1") || !strings.Contains(err.Error(), "the token forbids its use") {
			t.Fatalf("%s: %v", kind, err)
		}
	}
	sick(fresh.Encryption, true)
	refuses(policy.CmdRotationPrimary)
	if s, _ = b.l.Snapshot(); s.State.Rotation.Step != policy.RotationMade || s.State.Keys[fresh.Signing].Primary {
		t.Fatal("half of the pair is primary")
	}
	sick(fresh.Encryption, false)
	b.do(b.moved(a, policy.CmdRotationPrimary, policy.KeyPair{}))
	sick(old.Signing, true)
	refuses(policy.CmdRotationUndo)
	refuses(policy.CmdRotationAbort)
	sick(old.Signing, false)
	b.do(b.moved(a, policy.CmdRotationDisable, policy.KeyPair{}))
	b.do(b.moved(a, policy.CmdRotationUndo, policy.KeyPair{}))
	b.do(b.moved(a, policy.CmdRotationUndo, policy.KeyPair{}))
	if s, _ = b.l.Snapshot(); !s.State.Keys[old.Encryption].Primary {
		t.Error("undo did not give back what was")
	}
}

// TestARotationSurvivesAPowerCutAtEachStep: the plan and what is done of it are one record.
func TestARotationSurvivesAPowerCutAtEachStep(t *testing.T) {
	b, _, a, fresh := turning(t)
	for _, kind := range []policy.Kind{policy.CmdRotationPrimary, policy.CmdRotationDisable} {
		before, _ := b.l.Snapshot()
		b.crash()
		if after, _ := b.l.Snapshot(); *after.State.Rotation != *before.State.Rotation {
			t.Fatalf("%+v became %+v", before.State.Rotation, after.State.Rotation)
		}
		b.do(b.moved(a, kind, policy.KeyPair{}))
	}
	b.crash()
	b.do(b.moved(a, policy.CmdRotationRemove, policy.KeyPair{}))
	b.crash()
	s, _ := b.l.Snapshot()
	if s.State.Rotation != nil || len(s.State.Keys) != 2 || !s.State.Keys[fresh.Signing].Primary {
		t.Errorf("%+v", s.State.Rotation)
	}
}

func TestTheHalvesOfANewPairBelongTogether(t *testing.T) {
	b, _, _, fresh := turning(t)
	s, _ := b.l.Snapshot()
	signing, err := x509.ParseCertificate(s.State.Keys[fresh.Signing].Certificate)
	if err != nil {
		t.Fatal(err)
	}
	encryption, err := x509.ParseCertificate(s.State.Keys[fresh.Encryption].Certificate)
	if err != nil {
		t.Fatal(err)
	}
	if err := signing.CheckSignature(encryption.SignatureAlgorithm, encryption.RawTBSCertificate, encryption.Signature); err != nil {
		t.Errorf("the old signing key certified the new encryption key: %v", err)
	}
}
