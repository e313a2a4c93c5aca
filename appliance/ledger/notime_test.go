package ledger

import (
	"errors"
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
