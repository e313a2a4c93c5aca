package verb_test

import (
	"fmt"
	"strings"
	"testing"

	"guardhouse/appliance/policy"
	"guardhouse/console/verb"
	"guardhouse/console/verb/verbtest"
)

// use is a key protector that was last seen on the primary pair so many hours ago.
func use(f *verbtest.Fake, n int, hours int64) policy.ProtectorUse {
	snap, _ := f.Node.Snapshot()
	enc, _ := snap.State.PrimaryKey(policy.RoleEncryption)
	sig, _ := snap.State.PrimaryKey(policy.RoleSigning)
	at := verbtest.At
	at.Earliest, at.Latest = at.Earliest-hours*3600e3, at.Latest-hours*3600e3
	long := func(what string) string { return fmt.Sprintf("%064x", fmt.Sprint(what, n))[:64] }
	return policy.ProtectorUse{Mark: long("m")[:32], Next: long("n")[:32], Protector: long("p"), Owner: long("o"), OwnerName: "Contoso\x1b[2J tenant",
		Encryption: enc.Ref, Signing: sig.Ref, Host: "H", HostName: "hv7", At: at}
}

func TestKeyUsageListsWhatWouldNotOpenWithoutTheKey(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	mustCall(t, s, "key new --roles all", "")
	mustCall(t, s, "key usage "+string(use(f, 0, 0).Encryption[:12]), "")
	f.Use(use(f, 1, 50), use(f, 2, 3))
	ref := string(use(f, 0, 0).Signing)
	text := mustCall(t, s, "key usage "+ref[:12]+" --days 30", "")
	for _, want := range []string{"2 key protectors last seen on it, newest 3 h ago; 2 of them within 30 days.", "hv7", "Contoso?[2J tenant", "2 days ago"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, "\x1b") {
		t.Error("a tenant's words move the cursor")
	}
	if list := mustCall(t, s, "key list", ""); strings.Count(list, "2 key protectors last") != 2 {
		t.Errorf("key list:\n%s", list)
	}
	out, err := call(s, "key usage "+ref[:12]+" --limit 1", "")
	if v, ok := out.Value.(verb.UsageValue); err != nil || !ok || v.Total != 2 || len(v.Protectors) != 1 || v.Use == nil || v.Use.Rolls != 2 {
		t.Errorf("%+v, %v", out.Value, err)
	}
}
