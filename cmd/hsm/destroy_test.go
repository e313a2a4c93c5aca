package main

import (
	"errors"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// objectFiles are the objects in the token's own folder, which nobody's session can colour.
func objectFiles(t *testing.T, env string) []string {
	t.Helper()
	_, conf, _ := strings.Cut(env, "=")
	list, err := filepath.Glob(filepath.Join(filepath.Dir(conf), "tokens", "*", "*.object"))
	if err != nil || len(list) == 0 {
		t.Fatalf("the token keeps its files elsewhere: %v", err)
	}
	return slices.DeleteFunc(list, func(f string) bool { return filepath.Base(f) == "token.object" })
}

// TestFactoryResetTakesOnlyTheNodesOwnKeysFromTheToken: a real ledger over a real hsm process on a SoftHSM2 token.
func TestFactoryResetTakesOnlyTheNodesOwnKeysFromTheToken(t *testing.T) {
	env := newSoftHSM(t)
	var brought, unknown []byte
	t.Run("the vendor's tool makes pairs", func(t *testing.T) {
		p, s := vendorTool(t, env)
		brought = makeForeign(t, p, s, foreign{label: "brought", id: 1, sign: true})
		unknown = makeForeign(t, p, s, foreign{label: "unknown", id: 2, sign: true})
	})
	n := startNode(t, rpc.Ledger, env, configured)
	n.await(t, "STATUS=token ready")
	l, ada := oneLedger(t, n.client, nil)
	ada.Door = policy.DoorSerial
	made, err := l.MakeKeys(t.Context(), rpc.MakeKeysRequest{Actor: ada, ID: fresh(), Roles: []policy.KeyRole{policy.RoleSigning, policy.RoleEncryption}, Bits: 2048})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.AddKey(t.Context(), rpc.KeyAddRequest{Actor: ada, ID: fresh(), Ref: policy.RefOf(brought), Role: policy.RoleSigning}); err != nil {
		t.Fatal(err)
	}
	plan, err := l.ResetKeys(t.Context())
	if err != nil || plan.Away != "" || len(plan.Keys) != 4 {
		t.Fatalf("%+v, %v", plan, err)
	}
	var ours []policy.KeyRef
	for _, k := range plan.Keys {
		if k.Stays == "" {
			ours = append(ours, k.Ref)
		}
	}
	if len(ours) != 2 || !slices.Contains(ours, made.Keys[0].Ref) || !slices.Contains(ours, made.Keys[1].Ref) {
		t.Fatalf("%+v", plan.Keys)
	}
	before := len(objectFiles(t, env))
	// What a ledger that was taken over could ask for directly.
	own := plan.Keys[slices.IndexFunc(plan.Keys, func(k rpc.ResetKey) bool { return k.Stays == "" })]
	for name, spki := range map[string][]byte{"brought": brought, "unknown": unknown} {
		if _, err := rpc.HSMDestroy.Call(t.Context(), n.client, rpc.HSMDestroyRequest{SPKI: spki, ID: "01", Label: name}); !errors.Is(err, rpc.ErrRefused) {
			t.Errorf("%s under its own name: %v", name, err)
		}
		if _, err := rpc.HSMDestroy.Call(t.Context(), n.client, rpc.HSMDestroyRequest{SPKI: spki, ID: own.ID, Label: own.Label}); !errors.Is(err, rpc.ErrRefused) {
			t.Errorf("%s under one of ours: %v", name, err)
		}
	}
	if after := len(objectFiles(t, env)); after != before {
		t.Fatalf("%d objects in the token, %d before", after, before)
	}
	r, err := l.DestroyKeys(t.Context(), rpc.DestroyKeysRequest{Actor: ada, Refs: ours})
	if err != nil || len(r.Gone) != 2 || len(r.Left) != 0 || r.Objects != 4 {
		t.Fatalf("%+v, %v", r, err)
	}
	if after := len(objectFiles(t, env)); after != before-4 {
		t.Errorf("%d objects in the token, %d before", after, before)
	}
	out, err := exec.Command("grep", "-lrE", "guardhouse-(signing|encryption)-", filepath.Dir(objectFiles(t, env)[0])).CombinedOutput() // labels lie there in clear
	if err == nil {
		t.Errorf("files with a label of ours: %s", out)
	}
	left, err := rpc.HSMKeys.Call(t.Context(), n.client, rpc.Empty{})
	if err != nil || len(left) != 2 {
		t.Errorf("%+v, %v", left, err)
	}
	if again, err := l.ResetKeys(t.Context()); err != nil || slices.ContainsFunc(again.Keys, func(k rpc.ResetKey) bool { return k.Stays == "" }) {
		t.Errorf("%+v, %v", again, err)
	}
}
