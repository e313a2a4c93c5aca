package ledger

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// destroy is hsm.Destroy.
func (k *token) destroy(_ context.Context, _ rpc.Caller, req rpc.HSMDestroyRequest) (rpc.HSMDestroyReply, error) {
	if k.destroying != nil {
		if err := k.destroying(req); err != nil {
			return rpc.HSMDestroyReply{}, err
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	ref := policy.RefOf(req.SPKI)
	delete(k.keys, ref)
	k.list = slices.DeleteFunc(k.list, func(h rpc.HSMKey) bool { return h.Ref == ref && h.Label == req.Label && h.ID == req.ID })
	return rpc.HSMDestroyReply{Objects: 2}, nil
}

// withPair has a token with a guardian's pair that the node made, and a key that it did not.
func withPair(t *testing.T) (b *bench, k *token, ada policy.Actor, made []policy.KeyRef) {
	t.Helper()
	b = newBench(t)
	k = b.attachToken()
	ada = b.setUp()
	b.trust(time.Date(2026, 11, 22, 10, 30, 0, 0, time.UTC))
	r, err := b.l.MakeKeys(t.Context(), rpc.MakeKeysRequest{Actor: ada, ID: newID(), Roles: []policy.KeyRole{policy.RoleSigning, policy.RoleEncryption}, Bits: 2048})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range r.Keys {
		made = append(made, key.Ref)
	}
	if _, err := k.generate(t.Context(), rpc.Caller{}, rpc.HSMGenerateRequest{Role: policy.RoleSigning, Bits: 2048}); err != nil { // another node's
		t.Fatal(err)
	}
	ada.Door = policy.DoorSerial
	return b, k, ada, made
}

func TestFactoryResetDestroysOnlyWhatThisNodeMade(t *testing.T) {
	b, k, ada, made := withPair(t)
	plan, err := b.l.ResetKeys(t.Context())
	if err != nil || len(plan.Keys) != 3 || plan.Away != "" {
		t.Fatalf("%+v %v", plan, err)
	}
	var foreign policy.KeyRef
	for _, key := range plan.Keys {
		if slices.Contains(made, key.Ref) != (key.Stays == "") {
			t.Errorf("%+v", key)
		}
		if key.Stays != "" {
			foreign = key.Ref
		}
	}
	ssh := ada
	ssh.Door = policy.DoorSSH
	operator := b.second(ada, "olga", policy.AdminOperator)
	operator.Door = policy.DoorSerial
	for name, req := range map[string]rpc.DestroyKeysRequest{
		"over SSH":                     {Actor: ssh, Refs: made},
		"by an operator":               {Actor: operator, Refs: made},
		"by nobody":                    {Actor: policy.Actor{Name: "eve", Door: policy.DoorSerial}, Refs: made},
		"another node's":               {Actor: ada, Refs: []policy.KeyRef{made[0], foreign}},
		"one that nobody has heard of": {Actor: ada, Refs: []policy.KeyRef{"00"}},
	} {
		if r, err := b.l.DestroyKeys(t.Context(), req); !errors.Is(err, rpc.ErrRefused) || len(r.Gone) > 0 || len(k.list) != 3 {
			t.Errorf("%s: %+v %v", name, r, err)
		}
	}
	k.destroying = func(req rpc.HSMDestroyRequest) error { // what the audit holds when the token is asked
		for _, e := range b.audited(actionKeyDestroy) {
			if e.Subject == string(policy.RefOf(req.SPKI)) && e.Outcome == "begun" && e.Actor.Name == ada.Name {
				return nil
			}
		}
		return errors.New("the audit does not know of it")
	}
	r, err := b.l.DestroyKeys(t.Context(), rpc.DestroyKeysRequest{Actor: ada, Refs: made})
	if err != nil || len(r.Gone) != 2 || r.Objects != 4 || len(r.Left) != 0 {
		t.Fatalf("%+v %v", r, err)
	}
	if len(k.list) != 1 || k.list[0].Ref != foreign {
		t.Errorf("the token holds %+v", k.list)
	}
}

func TestFactoryResetNamesTheKeysThatAreLeft(t *testing.T) {
	b, k, ada, made := withPair(t)
	calls := 0
	k.destroying = func(rpc.HSMDestroyRequest) error {
		if calls++; calls == 2 {
			return rpc.ErrUnavailable.With("the link broke")
		}
		return nil
	}
	r, err := b.l.DestroyKeys(t.Context(), rpc.DestroyKeysRequest{Actor: ada, Refs: made})
	if err != nil || len(r.Gone) != 1 || len(r.Left) != 1 || r.Left[0].Ref != made[1] || r.Why == "" {
		t.Fatalf("%+v %v", r, err)
	}
	if e := b.audited(actionKeyDestroy); e[len(e)-1].Outcome != "failed" {
		t.Errorf("the audit ends with %+v", e[len(e)-1])
	}
	k.away = rpc.ErrUnavailable.With("no link")
	plan, err := b.l.ResetKeys(t.Context())
	if err != nil || plan.Away == "" || len(plan.Keys) != 2 || plan.Keys[0].Stays == "" || plan.Keys[0].Label == "" {
		t.Errorf("%+v %v", plan, err)
	}
	if r, err := b.l.DestroyKeys(t.Context(), rpc.DestroyKeysRequest{Actor: ada, Refs: made[1:]}); err != nil || len(r.Gone) != 0 || len(r.Left) != 1 || r.Why == "" {
		t.Errorf("without a token: %+v %v", r, err)
	}
	k.away, k.destroying = nil, nil
	b.restart() // what was made is known again
	if r, err := b.l.DestroyKeys(t.Context(), rpc.DestroyKeysRequest{Actor: ada, Refs: made[1:]}); err != nil || len(r.Gone) != 1 {
		t.Errorf("begun again: %+v %v", r, err)
	}
}

func TestKeysOfTenantsAndOfTheClusterStay(t *testing.T) {
	s := policy.NewState()
	s.Nodes["one"] = policy.Node{}
	s.Keys["tenant"] = policy.Key{Ref: "tenant", Tenant: "fabrikam"}
	s.Keys["ours"] = policy.Key{Ref: "ours"}
	ours, tenants := rpc.HSMKey{Ref: "ours", Role: policy.RoleSigning}, rpc.HSMKey{Ref: "tenant"}
	if why := whyStays(s, ours, true); why != "" {
		t.Errorf("alone: %s", why)
	}
	for name, stays := range map[string]string{
		"a tenant's":                  whyStays(s, tenants, false),
		"a tenant's that we made":     whyStays(s, tenants, true),
		"recorded, not made here":     whyStays(s, ours, false),
		"not recorded, not made here": whyStays(s, rpc.HSMKey{Ref: "x", Role: policy.RoleSigning}, false),
		"nothing that we know at all": whyStays(s, rpc.HSMKey{Ref: "x"}, false),
	} {
		if stays == "" {
			t.Errorf("%s: it would go", name)
		}
	}
	s.Nodes["two"] = policy.Node{}
	if whyStays(s, ours, true) == "" {
		t.Error("a key of the cluster would go with one node")
	}
}
