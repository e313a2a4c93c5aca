package native

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// now is the trusted time of the clock process, as the console would put it into a command.
func (s *Stack) now(t testing.TB) policy.Stamp {
	t.Helper()
	clock := s.Client(rpc.Clock)
	defer clock.Close()
	st, err := rpc.ClockStatus.Call(t.Context(), clock, rpc.Empty{})
	if err != nil || !st.Trusted.OK {
		t.Fatal("no trusted time:", err)
	}
	return policy.Stamp{Earliest: st.Trusted.Earliest.UnixMilli(), Latest: st.Trusted.Latest.UnixMilli()}
}

func (s *Stack) proposeNow(t testing.TB, kind policy.Kind, body func(policy.Stamp) any) {
	t.Helper()
	a, err := s.Actor()
	if err != nil {
		t.Fatal(err)
	}
	ledger := s.Client(rpc.Ledger)
	defer ledger.Close()
	at := s.now(t)
	b, err := json.Marshal(body(at))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rpc.LedgerPropose.Call(t.Context(), ledger, policy.Command{ID: NewID(), Kind: kind, Actor: a, At: at, Body: b}); err != nil {
		t.Fatal(err)
	}
}

// TestReattestNowWithRealProcesses: what the host has is refused at once; it attests when a second has passed, and gets its keys.
func TestReattestNowWithRealProcesses(t *testing.T) {
	s, p := running(t)
	ctx := t.Context()
	for name, verb := range map[string]func(){
		"one host": func() {
			s.proposeNow(t, policy.CmdHostReattest, func(policy.Stamp) any { return policy.ByName{Name: "host1"} })
		},
		"all hosts": func() {
			s.proposeNow(t, policy.CmdServiceSet, func(at policy.Stamp) any {
				deny := policy.NextSecond(at)
				return policy.ServiceSet{DenyIssuedBefore: &deny}
			})
		},
	} {
		if err := p.roll(ctx); err != nil {
			t.Fatalf("%s: before: %v", name, err)
		}
		verb()
		until := time.Now().Add(2 * time.Second) // hgs has the records within a moment
		for err := p.roll(ctx); ; err = p.roll(ctx) {
			if err != nil && strings.Contains(err.Error(), "attest again") {
				break
			}
			if time.Now().After(until) {
				t.Fatalf("%s: the older certificate still opens: %v", name, err)
			}
		}
		at := s.now(t)
		time.Sleep(time.Second + time.Duration(at.Latest-at.Earliest)*time.Millisecond)
		if err := p.attest(ctx); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := p.roll(ctx); err != nil {
			t.Errorf("%s: attested again: %v", name, err)
		}
		t.Logf("%s: refused, then served; the time was known within %d ms", name, at.Latest-at.Earliest)
	}
}

// TestAHostIsServedWhileTheSignerChanges: the next signer signs, and what the retired one signed still opens.
func TestAHostIsServedWhileTheSignerChanges(t *testing.T) {
	s, p := running(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	a, err := s.Actor()
	if err != nil {
		t.Fatal(err)
	}
	ledger := s.Client(rpc.Ledger)
	defer ledger.Close()
	made, err := rpc.LedgerMakeKeys.Call(ctx, ledger, rpc.MakeKeysRequest{Actor: a, ID: NewID(), Roles: []policy.KeyRole{policy.RoleAttestationSigner}, Bits: policy.SignerBits, Subject: "native"})
	if err != nil {
		t.Fatal(err)
	}
	if k := made.Keys[0]; k.SignerStage(time.UnixMilli(s.now(t).Earliest)) != policy.SignerNext || time.Unix(k.UseFrom, 0).Sub(time.Unix(k.PublishedAt, 0)) < policy.SignerOverlap {
		t.Errorf("%+v", k)
	}
	if err := p.attest(ctx); err != nil {
		t.Fatal("while the next one waits:", err)
	}
	s.proposeNow(t, policy.CmdKeyPrimary, func(policy.Stamp) any { return policy.KeyChange{Ref: made.Keys[0].Ref} })
	if err := p.roll(ctx); err != nil {
		t.Error("with a certificate of the retired signer:", err)
	}
	if err := p.attest(ctx); err != nil {
		t.Fatal(err)
	}
	if err := p.roll(ctx); err != nil {
		t.Error("with a certificate of the new signer:", err)
	}
}
