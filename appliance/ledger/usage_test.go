package ledger

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

var (
	oldPair = [2]policy.KeyRef{policy.KeyRef(strings.Repeat("01", 32)), policy.KeyRef(strings.Repeat("02", 32))}
	newPair = [2]policy.KeyRef{policy.KeyRef(strings.Repeat("03", 32)), policy.KeyRef(strings.Repeat("04", 32))}
	onFile  = map[policy.KeyRef]policy.Key{oldPair[0]: {Role: policy.RoleEncryption}, oldPair[1]: {Role: policy.RoleSigning},
		newPair[0]: {Role: policy.RoleEncryption}, newPair[1]: {Role: policy.RoleSigning}}
	day0 = time.Date(2027, 4, 1, 12, 0, 0, 0, time.UTC)
)

// roll is one roll from version m to version n.
func roll(m, n string, pair [2]policy.KeyRef, at time.Time) policy.ProtectorUse {
	version := func(s string) string { return fmt.Sprintf("%032x", s)[:32] }
	long := func(s string) string { return strings.Repeat(version(s), 2) }
	return policy.ProtectorUse{Mark: version(m), Next: version(n), Protector: long(n), Owner: long("owner"), OwnerName: "tenant", Encryption: pair[0], Signing: pair[1],
		Host: "H", HostName: "host1", At: policy.Stamp{Earliest: at.UnixMilli(), Latest: at.UnixMilli()}}
}

func (u *usage) of(pair [2]policy.KeyRef, now time.Time, days int) rpc.UsageReply {
	return u.report(rpc.UsageRequest{Keys: pair[:], Days: days}, now, true)
}

func TestAProtectorIsCountedOnTheKeyItWasLastSeenOn(t *testing.T) {
	u := openUsage(nil, t.Logf)
	u.add(roll("a", "a1", oldPair, day0), onFile)
	u.add(roll("b", "b1", oldPair, day0.Add(time.Hour)), onFile)
	u.add(roll("a1", "a2", oldPair, day0.Add(2*time.Hour)), onFile)
	if r := u.of(oldPair, day0, 30); r.Total != 2 || r.Recent != 2 || r.Protectors[0].Rolls != 2 || r.Newest.Latest != day0.Add(2*time.Hour).UnixMilli() {
		t.Fatalf("%+v", r)
	}
	// The owner grants to the new guardian, which leaves the transport key alone; the next start is opened by the new pair.
	u.add(roll("a2", "a3", newPair, day0.AddDate(0, 0, 40)), onFile)
	old, fresh := u.of(oldPair, day0.AddDate(0, 0, 40), 30), u.of(newPair, day0.AddDate(0, 0, 40), 30)
	if old.Total != 1 || old.Recent != 0 || fresh.Total != 1 || fresh.Protectors[0].Rolls != 3 || fresh.Protectors[0].First.Latest != day0.UnixMilli() {
		t.Errorf("old %+v, new %+v", old, fresh)
	}
	for _, k := range old.Keys {
		want := map[policy.KeyRef]uint64{oldPair[0]: 3, oldPair[1]: 3, newPair[0]: 1, newPair[1]: 1}[k.Ref]
		if k.Rolls != want || k.Protectors != 1 {
			t.Errorf("%+v, want %d rolls", k, want)
		}
	}
	if r := u.report(rpc.UsageRequest{Keys: oldPair[:]}, time.Time{}, false); r.Recent != 1 {
		t.Error("without a trusted time a key looks unused")
	}
}

// TestCountsTooManyRatherThanTooFew: machines from one shielding data file begin with the same version. Were they one record, a key would
// look unused while a machine still needs it.
func TestCountsTooManyRatherThanTooFew(t *testing.T) {
	u := openUsage(nil, t.Logf)
	u.add(roll("file", "a1", oldPair, day0), onFile)
	u.add(roll("file", "b1", oldPair, day0), onFile)
	u.add(roll("b1", "b2", newPair, day0), onFile)
	if r := u.of(oldPair, day0, 30); r.Total != 1 || r.Protectors[0].Next != roll("", "a1", oldPair, day0).Next {
		t.Errorf("%+v", r)
	}
	u.add(roll("b1", "b3", oldPair, day0), onFile) // a copy from a backup
	if r := u.of(oldPair, day0, 30); r.Total != 2 {
		t.Errorf("%+v", r)
	}
}

func TestUseIsBoundedWhateverTheFaceSends(t *testing.T) {
	u := openUsage(nil, t.Logf)
	bad := roll("m", "n", oldPair, day0)
	bad.OwnerName = strings.Repeat("x", policy.MaxOwnerName+1)
	u.add(bad, onFile)
	u.add(roll("m", "n", [2]policy.KeyRef{oldPair[1], oldPair[0]}, day0), onFile)
	u.add(roll("m", "n", oldPair, day0), nil)
	same := roll("m", "n", oldPair, day0)
	same.Next = same.Mark
	u.add(same, onFile)
	if len(u.protectors)+len(u.keys) != 0 {
		t.Fatalf("kept %+v", u.protectors)
	}
	for i := range 3 * maxSiblings { // a host that sends one protector again and again
		u.add(roll("m", fmt.Sprint("x", i), oldPair, day0.Add(time.Duration(i)*time.Second)), onFile)
	}
	if len(u.protectors) != maxSiblings || len(u.from) != 1 {
		t.Errorf("%d records", len(u.protectors))
	}
	for i := range maxProtectors + 10 {
		u.add(roll(fmt.Sprint("s", i), fmt.Sprint("t", i), oldPair, day0.Add(time.Duration(i)*time.Minute)), onFile)
	}
	if n := len(u.protectors); n > maxProtectors || n < maxProtectors*14/16 || len(u.from) > n {
		t.Errorf("%d records of %d origins", n, len(u.from))
	}
	if _, kept := u.protectors[roll("", fmt.Sprint("t", maxProtectors+9), oldPair, day0).Next]; !kept {
		t.Error("the newest is gone")
	}
}

func TestUseSurvivesARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "observed.db")
	cfg := Config{Log: t.Logf}
	o := openObservations(t.Context(), path, cfg)
	u := openUsage(o.db, t.Logf)
	u.add(roll("a", "a1", oldPair, day0), onFile)
	if err := u.flush(); err != nil {
		t.Fatal(err)
	}
	u.add(roll("a1", "a2", newPair, day0), onFile)
	u.add(roll("file", "b1", oldPair, day0), onFile)
	if err := u.flush(); err != nil {
		t.Fatal(err)
	}
	before := u.of(oldPair, day0, 30)
	if err := o.close(); err != nil {
		t.Fatal(err)
	}
	o = openObservations(t.Context(), path, cfg)
	defer o.close()
	u = openUsage(o.db, t.Logf)
	if after := u.of(oldPair, day0, 30); fmt.Sprint(before) != fmt.Sprint(after) || after.Total != 1 || len(after.Keys) != 4 {
		t.Errorf("before %+v\nafter %+v", before, after)
	}
	u.add(roll("b1", "b2", oldPair, day0), onFile)
	if r := u.of(oldPair, day0, 30); r.Total != 1 || r.Protectors[0].Rolls != 2 {
		t.Errorf("the chain is broken by the restart: %+v", r)
	}
}
