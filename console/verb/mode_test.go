package verb_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"strings"
	"testing"

	"guardhouse/appliance/policy"
	"guardhouse/console/verb/verbtest"
)

// TestWayBackIsKeptUntilHostsPassedOrSomebodyTypesThePhrase is the administrator's view of policy.Stragglers, dry run included.
func TestWayBackIsKeptUntilHostsPassedOrSomebodyTypesThePhrase(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	mustCall(t, s, "host add hv1", armor("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&key.PublicKey)))
	mustCall(t, s, "dump-key add ops --sha256 "+strings.Repeat("ab", 32), "")
	mustCall(t, s, "dump-key add more --sha256 "+strings.Repeat("cd", 32), "")
	mustCall(t, s, "service set --mode TPM", "")
	waitFor(t, f, func(st policy.State) bool { return st.Service.Mode == policy.ModeTPM && len(st.DumpKeys) == 2 })
	if text := flat(t, s, "mode status", ""); !strings.Contains(text, "Switched from HostKey mode, 2026") || !strings.Contains(text, "What HostKey mode needs can't be removed") {
		t.Errorf("mode status said %s", text)
	}
	mustCall(t, s, "service set --mode HostKey", "")
	waitFor(t, f, func(st policy.State) bool { return st.Service.Mode == policy.ModeHostKey })

	const phrase = "remove-TPM-although-1-of-1-hosts-have-not-passed-in-HostKey"
	for _, line := range []string{"dump-key remove ops", "dump-key remove ops --dry-run", "dump-key remove ops --phrase yes"} {
		_, err := call(s, line, "")
		if err == nil || !strings.Contains(err.Error(), "hv1 not seen") || !strings.Contains(err.Error(), "--phrase "+phrase) {
			t.Errorf("%s: %v", line, err)
		}
	}
	if text := flat(t, s, "dump-key remove more --phrase "+phrase, ""); !strings.Contains(text, "by typed phrase, while 1 of 1 hosts have not passed") {
		t.Errorf("it said %s", text)
	}
	snap, _ := f.Node.Snapshot()
	id := snap.State.HostsByName("hv1")[0].ID
	f.Observe(policy.ObservedHost, id, map[string]string{"verdict": "ok"}) // in the very moment of the switch: not certainly after it
	if text := flat(t, s, "mode status", ""); !strings.Contains(text, "0 of 1 machines have passed here") || !strings.Contains(text, "before the switch: ok") {
		t.Errorf("mode status said %s", text)
	}
	later := policy.Stamp{Earliest: verbtest.At.Latest + 5000, Latest: verbtest.At.Latest + 5020, Boot: "boot"}
	f.ObserveAt(later, policy.ObservedHost, id, map[string]string{"verdict": "ok"})
	if text := flat(t, s, "mode status", ""); !strings.Contains(text, "1 of 1 machines have passed here") || strings.Contains(text, "can't be removed") {
		t.Errorf("mode status said %s", text)
	}
	mustCall(t, s, "dump-key remove ops", "")
	if _, err := call(s, "host remove hv1 --mode TPM", ""); err == nil || !strings.Contains(err.Error(), "in TPM mode") {
		t.Error(err)
	}
}
