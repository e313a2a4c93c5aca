package ledger

import (
	"encoding/json"
	"path/filepath"
	"reflect"
	"testing"

	"guardhouse/appliance/policy"
)

// everyRecord has a record in each map of a State.
func everyRecord() policy.State {
	s := policy.NewState()
	at := policy.Stamp{Earliest: 1, Latest: 2, Boot: "b"}
	s.Service = &policy.Service{Name: "hgs.example.test", Mode: policy.ModeTPM, Switched: &policy.ModeSwitch{From: policy.ModeHostKey, At: at}}
	s.Nodes["n1"] = policy.Node{ID: "n1", Name: "node1"}
	s.Admins["ada"] = policy.Admin{Name: "ada", Role: policy.AdminOwner}
	s.Hosts["A1"] = policy.Host{ID: "A1", Name: "hv1", TPM: &policy.TPMIdentity{EK: []byte{1}, Version: policy.Version2, Chain: []string{"c"}}}
	s.Keys["k1"] = policy.Key{Ref: "k1", Role: policy.RoleSigning}
	s.Signers["t1"] = policy.TrustedSigner{Thumbprint: "t1", Name: "site2"}
	s.Denials = map[string]policy.Denial{"d": {Name: "d", Subject: "hv7"}}
	s.Offline = map[string]policy.OfflineCaching{"edge": {Class: "edge", MaxUnwraps: 1}}
	s.Tenants = map[string]policy.Tenant{"acme": {Name: "acme"}}
	s.Peers = map[string]policy.Peer{"node2": {Name: "node2", Address: "192.0.2.7:7443", Key: []byte{5}, Added: at}}
	s.Baselines = map[string]policy.Baseline{"r740": {Name: "r740", Version: policy.Version2, Variables: []policy.Measured{{Name: "PK", SHA256: []byte{1}}}}}
	s.CIPolicies = map[string]policy.CIPolicy{"allow": {Name: "allow", Digests: []policy.HashValue{{Alg: 11, Digest: []byte{2}}}}}
	s.DumpKeys = map[string]policy.DumpKey{"ops": {Name: "ops", SHA256: []byte{3}}}
	s.PolicySets = map[string]policy.PolicySet{policy.FabricWide: {Enabled: map[string]bool{"x": true}}, "edge": {Class: "edge", Enabled: map[string]bool{"x": false}}}
	s.Anchors = map[string]policy.Anchor{"a1": {Thumbprint: "a1", Vendor: "infineon", Root: true, Certificate: []byte{4}}}
	s.VendorsOff = map[string]bool{"infineon": true}
	s.Rotation = &policy.Rotation{ID: "r", Step: policy.RotationMade, Old: policy.KeyPair{Signing: "k1"}, Days: 30, Started: at}
	s.Draft = &policy.Draft{By: "ada", Steps: []policy.DraftStep{{Kind: policy.CmdDumpKeyRemove, Body: json.RawMessage(`{"name":"ops"}`)}}}
	s.Undo = &policy.Draft{By: "bob", At: at, Steps: []policy.DraftStep{{Kind: policy.CmdPolicySet, Body: json.RawMessage(`{}`)}}}
	return s
}

// TestEveryKindOfRecordSurvivesARestart walks the fields of a State: one that a later version adds is missed here from its first day.
func TestEveryKindOfRecordSurvivesARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	check := CheckInChild("/bin/true")
	full := everyRecord()
	v := reflect.ValueOf(full)
	for i := range v.NumField() {
		if f := v.Field(i); f.IsZero() || f.Kind() == reflect.Map && f.Len() == 0 {
			t.Fatalf("this test has no record of %s", v.Type().Field(i).Name)
		}
	}
	states := []policy.State{policy.NewState(), full, policy.NewState()} // all of it comes, and all of it goes
	states[2].Service = full.Service
	for i := 1; i < len(states); i++ {
		s, _, err := openStore(t.Context(), path, check)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.commit(change{index: uint64(i), old: states[i-1], new: states[i], id: newID()}); err != nil {
			t.Fatal(err)
		}
		s.db.Close()
		s, c, err := openStore(t.Context(), path, check)
		if err != nil {
			t.Fatal(err)
		}
		s.db.Close()
		want, _ := json.Marshal(states[i])
		got, _ := json.Marshal(c.state)
		if string(got) != string(want) || !reflect.DeepEqual(c.state, states[i]) {
			t.Errorf("step %d: came back as\n%s\nwant\n%s", i, got, want)
		}
	}
}

// TestNoFieldOfAHostIsLeftOutOfAChange: the comparison is written by hand for speed.
func TestNoFieldOfAHostIsLeftOutOfAChange(t *testing.T) {
	differ := func(a reflect.Value, same func(x, y any) bool) {
		t.Helper()
		for i := range a.NumField() {
			b := reflect.New(a.Type()).Elem()
			b.Set(a)
			switch f := b.Field(i); f.Kind() {
			case reflect.String:
				f.SetString("other")
			case reflect.Bool:
				f.SetBool(!f.Bool())
			case reflect.Int64:
				f.SetInt(7)
			case reflect.Slice:
				f.Set(reflect.MakeSlice(f.Type(), 3, 3))
			case reflect.Pointer:
				f.Set(reflect.New(f.Type().Elem()))
			case reflect.Struct:
				f.Field(0).SetInt(7)
			default:
				t.Fatalf("%s is of a kind that this test does not know", a.Type().Field(i).Name)
			}
			if same(a.Interface(), b.Interface()) && a.Type().Field(i).Name != "Certificate" { // which the thumbprint stands for
				t.Errorf("a change of %s.%s is not stored", a.Type(), a.Type().Field(i).Name)
			}
		}
	}
	full := everyRecord()
	differ(reflect.ValueOf(full.Hosts["A1"]), func(x, y any) bool { return sameHost(x.(policy.Host), y.(policy.Host)) })
	differ(reflect.ValueOf(full.Anchors["a1"]), func(x, y any) bool { return sameAnchor(x.(policy.Anchor), y.(policy.Anchor)) })
}
