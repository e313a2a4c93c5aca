package update

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/tpm"
)

func zeros() string { return strings.Repeat("0", 64) }

// boots is a file of one signed boot.
func boots(t *testing.T, k *rsa.PrivateKey, release uint64, pcr7 string) []byte {
	t.Helper()
	pem, err := tpm.AuthorityPEM(&k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	p := tpm.SignedPolicy{Name: "test", Release: release, Key: tpm.AuthorityID(&k.PublicKey), PCRs: map[uint]string{4: zeros(), 7: pcr7, 11: zeros(), 12: zeros(), 13: zeros()}}
	message, err := p.ToSign()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(message)
	if p.Signature, err = rsa.SignPKCS1v15(nil, k, crypto.SHA256, sum[:]); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(tpm.PolicyFile{Version: 1, Keys: []string{string(pem)}, Policies: []tpm.SignedPolicy{p}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRefusesAReleaseThatWouldNotServe(t *testing.T) {
	k, other := key(t), key(t)
	seven := strings.Repeat("7", 64)
	pem, err := tpm.AuthorityPEM(&k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	node := Target{Release: 6, Floor: 6, Format: 1, Reads: 2, Authority: pem, PCRs: map[uint]string{7: seven}, SlotSize: 64 << 20}
	for name, c := range map[string]struct {
		manifest func(*Manifest)
		node     func(*Target)
		policy   []byte
		want     []string
	}{
		"good":               {},
		"below the floor":    {node: func(n *Target) { n.Floor, n.Release = 8, 8 }, want: []string{KindBelowFloor}},
		"older":              {node: func(n *Target) { n.Release = 8 }, want: []string{KindOlder}},
		"the same":           {node: func(n *Target) { n.Release = 7 }, want: []string{KindSame}},
		"newer data":         {node: func(n *Target) { n.Format = 3 }, want: []string{KindFormat}},
		"older data":         {manifest: func(m *Manifest) { m.MinStoredFormat = 2 }, want: []string{KindFormat}},
		"no way back":        {node: func(n *Target) { n.Reads = 1 }, want: []string{KindFormat}},
		"a step at a time":   {node: func(n *Target) { n.Reads = 1 }, manifest: func(m *Manifest) { m.WritesFormat = 1 }},
		"evaluation":         {manifest: func(m *Manifest) { m.Evaluation = true }, want: []string{KindEvaluation}},
		"large":              {node: func(n *Target) { n.SlotSize = 34 << 20 }, manifest: func(m *Manifest) { m.UKI.Size = 40 << 20 }, want: []string{KindNoRoom}},
		"other dbx":          {policy: boots(t, k, 7, zeros()), want: []string{KindWillNotOpen}},
		"other key":          {policy: boots(t, other, 7, seven), want: []string{KindWillNotOpen}},
		"of another release": {policy: boots(t, k, 6, seven), want: []string{KindWillNotOpen}},
		"no policies":        {policy: []byte("{}"), want: []string{KindWillNotOpen}},
	} {
		b := &Bundle{Manifest: facts, Policy: boots(t, k, 7, seven)}
		b.Manifest.Policy, b.Manifest.UKI = PartOf(b.Policy), PartOf(parts.UKI)
		n := node
		if c.manifest != nil {
			c.manifest(&b.Manifest)
		}
		if c.node != nil {
			c.node(&n)
		}
		if c.policy != nil {
			b.Policy = c.policy
		}
		var got []string
		for _, p := range Judge(b, n) {
			if got = append(got, p.Kind); p.What == "" || p.Remedy == "" {
				t.Errorf("%s: %+v", name, p)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// What a release says that it reads must hold for the records that its ledger writes.
func TestAReleaseReadsItsOwnRecords(t *testing.T) {
	if m := (Manifest{StoredFormat: StoredFormat, MinStoredFormat: MinStoredFormat}); !m.Reads(policy.Version) {
		t.Errorf("records have format %d, and the manifest says %d to %d", policy.Version, MinStoredFormat, StoredFormat)
	}
}

// slot is a partition in memory.
type slot struct{ b []byte }

func (s slot) ReadAt(p []byte, off int64) (int, error)  { return copy(p, s.b[off:]), nil }
func (s slot) WriteAt(p []byte, off int64) (int, error) { return copy(s.b[off:], p), nil }
func (s slot) Sync() error                              { return nil }

const slotSize = 34 << 20

func TestASlotHoldsWhatTheBundleHeld(t *testing.T) {
	k := key(t)
	d := slot{bytes.Repeat([]byte{0xee}, slotSize)}
	b, err := Open(bytes.NewReader(made(t, facts, k)), &k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteSlot(d, slotSize, b); err != nil {
		t.Fatal(err)
	}
	if err := VerifySlot(d, slotSize, b.Manifest, b.Policy); err != nil {
		t.Error(err)
	}
	other := slot{make([]byte, slotSize)}
	if changed, err := CopySlot(other, d, slotSize); !changed || err != nil || !bytes.Equal(other.b, d.b) {
		t.Errorf("copy: %v %v", changed, err)
	}
	if changed, err := CopySlot(other, d, slotSize); changed || err != nil {
		t.Errorf("copied again: %v %v", changed, err)
	}
	other.b[bytes.Index(other.b, []byte("MZ image"))+100] ^= 1
	if err := VerifySlot(other, slotSize, b.Manifest, b.Policy); !errors.Is(err, ErrReadBack) {
		t.Errorf("a changed byte: %v", err)
	}
}

// liar loses one byte of what is written.
type liar struct{ slot }

func (l liar) WriteAt(p []byte, off int64) (int, error) {
	n, err := l.slot.WriteAt(p, off)
	if i := bytes.Index(l.b, []byte("MZ image")); i >= 0 {
		l.b[i] = 'N'
	}
	return n, err
}

// Until everything is verified, the slot is no file system: what was there is gone, and firmware finds nothing.
func TestASlotThatIsNotWholeDoesNotStart(t *testing.T) {
	k := key(t)
	good := made(t, facts, k)
	bad := bytes.Clone(good)
	bad[len(bad)-1] ^= 1
	for name, c := range map[string]struct {
		in []byte
		d  Device
	}{"cut off": {good[:len(good)-1], slot{bytes.Repeat([]byte{0xee}, slotSize)}}, "changed": {bad, slot{bytes.Repeat([]byte{0xee}, slotSize)}},
		"disk that lies": {good, liar{slot{bytes.Repeat([]byte{0xee}, slotSize)}}}} {
		b, err := Open(bytes.NewReader(c.in), &k.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		if err := WriteSlot(c.d, slotSize, b); !errors.Is(err, ErrBundle) && !errors.Is(err, ErrReadBack) {
			t.Errorf("%s: %v", name, err)
		}
		head := make([]byte, 8*512)
		c.d.ReadAt(head, 0)
		if !bytes.Equal(head[:1024], make([]byte, 1024)) || !bytes.Equal(head[6*512:7*512+512], make([]byte, 1024)) {
			t.Errorf("%s: firmware would find a file system", name)
		}
	}
}

func TestStateOutlivesTheProcess(t *testing.T) {
	f := FileStore{t.TempDir() + "/update.json"}
	if s, err := f.Load(); err != nil || !reflect.DeepEqual(s, State{}) {
		t.Errorf("%+v %v", s, err)
	}
	want := State{Version: 1, Phase: Trial, Slot: 1, Release: 7, Name: "1.4", From: 6,
		Owed: []Owed{{ID: "boot update.good", After: 9, Entry: policy.AuditEntry{Kind: policy.AuditSystem, Action: "update.good", Facts: map[string]string{"release": "7"}}}}}
	if err := f.Save(want); err != nil {
		t.Fatal(err)
	}
	if s, err := f.Load(); err != nil || !reflect.DeepEqual(s, want) {
		t.Errorf("%+v %v", s, err)
	}
	for _, bad := range []State{{Version: 2}, {Version: 1, Slot: 2}, {Version: 1, Slot: -1}} {
		if err := f.Save(bad); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Load(); err == nil {
			t.Errorf("%+v was read", bad)
		}
	}
}

// updater is a node at rest with release 6 in both slots.
func updater(t *testing.T) (*Updater, *uint64) {
	t.Helper()
	e, err := OwnEntries(&variables{m: map[string][]byte{}}, bootDisk)
	if err != nil {
		t.Fatal(err)
	}
	slots := [2]slot{{make([]byte, 8<<10)}, {make([]byte, 8<<10)}}
	floor := new(uint64)
	u := &Updater{Entries: e, Own: 0, Release: 6, Size: 8 << 10, Store: FileStore{t.TempDir() + "/u"}, Log: t.Logf,
		Open: func(i int) (Device, error) { return slots[i], nil }, Raise: func(n uint64) error { *floor = n; return nil }}
	if p, err := u.Resume(); err != nil || p.Kind != "" {
		t.Fatal(p, err)
	}
	return u, floor
}

// reboot is the next boot, in a slot with a release.
func reboot(t *testing.T, u *Updater, own int, release uint64) string {
	t.Helper()
	if err := u.Entries.NotOnce(); err != nil { // firmware takes it
		t.Fatal(err)
	}
	u.Own, u.Release = own, release
	p, err := u.Resume()
	if err != nil {
		t.Fatal(err)
	}
	return p.What
}

func TestARelaseThatDoesNotComeUpGivesWayToTheOldOne(t *testing.T) {
	try := func() *Updater {
		u, _ := updater(t)
		if err := errors.Join(u.Begin(Manifest{Number: 7, Version: "1.4"}), u.Wrote(nil), u.Try()); err != nil {
			t.Fatal(err)
		}
		return u
	}
	u := try()
	if what := reboot(t, u, 0, 6); !strings.Contains(what, "release 7 was started and did not come up") || u.State().Phase != Failed {
		t.Errorf("%q %+v", what, u.State())
	}
	u = try()
	if reboot(t, u, 1, 7); !u.OnTrial() || order(t, u.Entries.vars, bootOrder)[0] != u.Entries.numbers[0] {
		t.Error("a release on trial stands first in the boot order")
	}
	if err := u.Reject("the HSM is not ready"); err != nil {
		t.Fatal(err)
	}
	if what := reboot(t, u, 0, 6); !strings.Contains(what, "the HSM is not ready") {
		t.Errorf("%q", what)
	}
	if _, err := u.Back("ada"); err == nil {
		t.Error("goes back to a release that failed")
	}
	u = try()
	reboot(t, u, 1, 7)
	if what, err := u.Back("ada"); err != nil || !strings.Contains(what, "release 6 starts again") {
		t.Errorf("%q %v", what, err)
	}
}

func TestTheFloorRisesOnlyWhenBothSlotsHoldTheRelease(t *testing.T) {
	u, floor := updater(t)
	if err := errors.Join(u.Begin(Manifest{Number: 7, Version: "1.4"}), u.Wrote(nil), u.Try()); err != nil {
		t.Fatal(err)
	}
	reboot(t, u, 1, 7)
	if err := u.Finish(); err != nil || *floor != 0 {
		t.Fatalf("the floor rose to %d before the release was good: %v", *floor, err)
	}
	if u.Heal() == nil || u.Begin(Manifest{Number: 8}) == nil {
		t.Error("the old release is overwritten while the new one is on trial")
	}
	whole := u.Open
	u.Open = func(i int) (Device, error) { return nil, errors.New("no disk") }
	if err := u.MarkGood(); err != nil {
		t.Fatal(err)
	}
	if err := u.Finish(); err == nil || *floor != 0 {
		t.Errorf("the floor rose to %d without a copy: %v", *floor, err)
	}
	if u.Begin(Manifest{Number: 8}) == nil {
		t.Error("another release is written in the middle of the copy")
	}
	u.Open = whole
	reboot(t, u, 1, 7)
	if err := u.Finish(); err != nil || *floor != 7 || u.State().Phase != Idle || u.State().Done != 7 {
		t.Errorf("floor %d, %+v, %v", *floor, u.State(), err)
	}
	if what, err := u.Back("ada"); err != nil || !strings.Contains(what, "the same release 7") {
		t.Errorf("%q %v", what, err)
	}
}
