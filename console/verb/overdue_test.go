package verb_test

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/console/verb"
	"guardhouse/console/verb/verbtest"
)

// TestHostsThatFellSilentAreNamed after 9 hours, not before, and not where another node may have heard of them.
func TestHostsThatFellSilentAreNamed(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	made := int64(0)
	add := func(name string, ago time.Duration) {
		made++
		key, err := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), 2047), big.NewInt(2*made+1)), E: 65537})
		if err != nil {
			t.Fatal(err)
		}
		f.Do(t, policy.CmdHostAdd, policy.HostAdd{Name: name, HostKey: key})
		if ago > 0 {
			at := verbtest.At
			at.Earliest -= ago.Milliseconds()
			at.Latest -= ago.Milliseconds()
			f.ObserveAt(at, policy.ObservedHost, policy.HostID(key), map[string]string{"verdict": "ok"})
		}
	}
	hint := func() string {
		for _, h := range verb.GatherStatus(context.Background(), f.Node).Hints {
			if h.Kind == "host-overdue" {
				return h.What
			}
		}
		return ""
	}
	add("fresh", 8*time.Hour+50*time.Minute)
	add("never", 0)
	waitFor(t, f, func(st policy.State) bool { return len(st.Hosts) == 2 })
	if text := hint(); text != "" {
		t.Fatalf("too early: %s", text)
	}
	add("silent", 9*time.Hour+time.Minute)
	add("revoked", 20*time.Hour)
	f.Do(t, policy.CmdHostRevoke, policy.HostRevoke{Name: "revoked"})
	waitFor(t, f, func(st policy.State) bool { h, _ := st.HostByName("revoked"); return h.Revoked })
	if text := hint(); !strings.Contains(text, "silent (1 of 4 hosts") {
		t.Errorf("the hint is %q", text)
	}
	if text := flat(t, s, "host list", ""); strings.Count(text, "overdue") != 1 {
		t.Errorf("host list said %s", text)
	}
	if text := flat(t, s, "host show silent", ""); !strings.Contains(text, "ok, overdue") {
		t.Errorf("host show said %s", text)
	}
	for i := range 6 {
		add(fmt.Sprint("more", i), 10*time.Hour)
	}
	waitFor(t, f, func(st policy.State) bool { return len(st.Hosts) == 10 })
	if text := hint(); !strings.Contains(text, "7 of 10 hosts") || strings.Contains(text, "silent (") || !strings.Contains(text, ", ...") {
		t.Errorf("the hint is %q", text)
	}
	f.EditState(func(st *policy.State) {
		service := *st.Service
		service.Mode = policy.ModeTPM
		st.Service = &service
	})
	waitFor(t, f, func(st policy.State) bool { return st.Service.Mode == policy.ModeTPM })
	if text := hint(); text != "" {
		t.Errorf("hosts of another mode: %s", text)
	}
}
