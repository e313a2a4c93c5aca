package verb_test

import (
	"strings"
	"testing"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/console/verb/verbtest"
)

func resetKey(digit, label, stays string) rpc.ResetKey {
	return rpc.ResetKey{Ref: policy.KeyRef(strings.Repeat(digit, 64)), Role: policy.RoleSigning, Label: label, ID: strings.Repeat(digit, 32), Stays: stays}
}

func TestFactoryResetAsksForTheKeysInTheHSMSeparately(t *testing.T) {
	ours, tenants := resetKey("a", "guardhouse-signing-aaaaaaaa", ""), resetKey("b", "fabrikam", "it is the tenant fabrikam's")
	found := rpc.ResetKeysReply{Token: "vault", Keys: []rpc.ResetKey{ours, tenants}}
	away := rpc.ResetKeysReply{Away: "unavailable: no link", Keys: []rpc.ResetKey{resetKey("a", "guardhouse-signing-aaaaaaaa", "the token does not answer")}}
	left := &rpc.DestroyKeysReply{Token: "vault", Left: []rpc.ResetKey{ours}, Why: "the link broke"}
	for _, c := range []struct {
		name      string
		keys      rpc.ResetKeysReply
		fate      *rpc.DestroyKeysReply
		answers   []string
		destroyed bool
		ends      bool
		says      []string
	}{
		{"destroyed", found, nil, []string{"destroy the keys", "end this node"}, true, true,
			[]string{"guardhouse-signing-aaaaaaaa", strings.Repeat("a", 64), "id " + strings.Repeat("a", 32), "token vault", "stays: it is the tenant fabrikam's"}},
		{"kept", found, nil, []string{"keep", "end this node"}, false, true, nil},
		{"neither phrase", found, nil, []string{"yes"}, false, false, nil},
		{"thought better of", found, nil, []string{"destroy the keys", "no"}, false, false, nil},
		{"none of this node's", rpc.ResetKeysReply{Token: "vault", Keys: []rpc.ResetKey{tenants}}, nil, []string{"end this node"}, false, true, []string{"No key in the HSM", "fabrikam"}},
		{"away and left", away, nil, []string{"leave", "end this node"}, false, true, []string{"no link", "guardhouse-signing-aaaaaaaa"}},
		{"away and stopped", away, nil, []string{"stop"}, false, false, []string{"no link"}},
		{"breaks and left", found, left, []string{"destroy the keys", "end this node", "leave"}, true, true, []string{"0 of 1 keys", "the link broke"}},
		{"breaks and stopped", found, left, []string{"destroy the keys", "end this node", "stop"}, true, false, []string{"the link broke"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := verbtest.Start(t, true)
			f.SetVolume(rpc.VolumeReply{State: rpc.VolumeTPM})
			f.SetResetKeys(c.keys, c.fate)
			a, err := hold(t, f.Session(policy.DoorSerial), "factory-reset", c.answers...)
			if got := len(f.Power()) == 1; got != c.ends || got != (err == nil) {
				t.Errorf("the node ends: %v (%v)", got, err)
			}
			if got := f.Destroyed(); (len(got) == 1 && got[0] == ours.Ref) != c.destroyed || len(got) > 1 {
				t.Errorf("destroyed: %v", got)
			}
			for _, want := range c.says {
				if !strings.Contains(a.said.String(), want) {
					t.Errorf("it does not say %q:\n%s", want, a.said.String())
				}
			}
			if len(a.list) != 0 {
				t.Errorf("not asked for: %q", a.list)
			}
		})
	}
}

func TestFactoryResetTellsTheAuditWhichKeysAreLeft(t *testing.T) {
	f := verbtest.Start(t, true)
	f.SetVolume(rpc.VolumeReply{State: rpc.VolumeTPM})
	f.SetResetKeys(rpc.ResetKeysReply{Away: "no link", Keys: []rpc.ResetKey{resetKey("a", "guardhouse-signing-aaaaaaaa", "away")}}, nil)
	if _, err := hold(t, f.Session(policy.DoorSerial), "factory-reset", "leave", "end this node"); err != nil {
		t.Fatal(err)
	}
	for _, e := range f.Audit() {
		if e.Action == "factory-reset" && strings.Contains(e.Detail, "guardhouse-signing-aaaaaaaa") {
			return
		}
	}
	t.Errorf("the audit: %+v", f.Audit())
}
