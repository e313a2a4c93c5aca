package fault

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	mrand "math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"guardhouse/appliance/disk"
	"guardhouse/appliance/update"
)

// box is a machine that may lose power at any step: two slots, firmware variables, the state on the data volume and the version floor.
// Variables, state and floor change whole or not at all; what the slots lose is the fault disk's to decide.
type box struct {
	t        *testing.T
	slots    [2]*Disk
	parts    disk.BootDisk
	vars     map[string][]byte
	state    update.State
	floor    uint64
	rng      *mrand.Rand
	steps    int // so far in this boot and those before
	cutAt    int // the step before or after which the power fails; 0 = never
	off      bool
	releases map[uint64]release
	restarts int      // after a broken entry
	audit    []string // IDs of the entries of updates, in their order
	boots    int
}

type release struct {
	manifest update.Manifest
	policy   []byte
	bundle   []byte
}

const slotSize = 34 << 20

var errPower = errors.New("the power failed")

// step counts one thing that can be last. For those that are atomic, applied says whether the one at which the power fails still happened.
func (b *box) step() (applied bool, err error) {
	if b.off {
		return false, errPower
	}
	b.steps++
	if b.steps != b.cutAt {
		return true, nil
	}
	b.off = true
	return b.rng.IntN(2) == 0, errPower
}

func (b *box) atomic(change func()) error {
	applied, err := b.step()
	if applied {
		change()
	}
	return err
}

// Firmware's variables.
func (b *box) Names() ([]string, error) { return slices.Sorted(maps.Keys(b.vars)), nil }
func (b *box) Read(name string) ([]byte, error) {
	v, ok := b.vars[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return v, nil
}
func (b *box) Write(name string, data []byte) error { return b.atomic(func() { b.vars[name] = data }) }
func (b *box) Remove(name string) error {
	if _, ok := b.vars[name]; !ok {
		return nil
	}
	return b.atomic(func() { delete(b.vars, name) })
}

// The state on the volume.
func (b *box) Load() (update.State, error) { return b.state, nil }
func (b *box) Save(s update.State) error   { return b.atomic(func() { b.state = s }) }

// tell writes what an update owes the audit, once for each ID as the ledger does.
func (b *box) tell(u *update.Updater) error {
	for _, o := range u.State().Owed {
		if !slices.Contains(b.audit, o.ID) {
			if err := b.atomic(func() { b.audit = append(b.audit, o.ID) }); err != nil {
				return err
			}
		}
		if err := u.Told(o.ID); err != nil {
			return err
		}
	}
	return nil
}

// audited counts the entries of an action.
func (b *box) audited(action string) (n int) {
	for _, id := range b.audit {
		if strings.HasSuffix(id, " "+action) {
			n++
		}
	}
	return n
}

// device is a slot's disk with the step counter in front.
type device struct {
	*Disk
	b        *box
	readOnly bool
}

func (d device) WriteAt(p []byte, off int64) (int, error) {
	if d.readOnly {
		d.b.t.Error("the running slot is written")
	}
	if _, err := d.b.step(); err != nil {
		return 0, err
	}
	return d.Disk.WriteAt(p, off)
}

func (d device) Sync() error {
	if _, err := d.b.step(); err != nil {
		return err
	}
	return d.Flush()
}

func (d device) Close() error { return nil } // the disk stays in the box

func newBox(t *testing.T, k *rsa.PrivateKey) *box {
	b := &box{t: t, vars: map[string][]byte{"Boot0000" + global: []byte("somebody else's entry")}, floor: 1, releases: map[uint64]release{}, rng: mrand.New(mrand.NewPCG(1, 2))}
	for n := uint64(1); n <= 2; n++ {
		parts := update.Parts{Policy: fmt.Appendf(nil, `{"release": %d}`, n), SBOM: []byte("{}"), UKI: bytes.Repeat(fmt.Appendf(nil, "image %d ", n), 300_000)}
		m := update.Manifest{Version: fmt.Sprint(n), Number: n, BuildEpoch: 1795000000, Kernel: "6", Go: "1", KeySet: "test", StoredFormat: 1, MinStoredFormat: 1}
		var out bytes.Buffer
		if err := update.Write(&out, m, parts, k); err != nil {
			t.Fatal(err)
		}
		m.Policy, m.SBOM, m.UKI = update.PartOf(parts.Policy), update.PartOf(parts.SBOM), update.PartOf(parts.UKI)
		b.releases[n] = release{m, parts.Policy, out.Bytes()}
	}
	for i := range b.slots {
		d, err := Open(filepath.Join(t.TempDir(), "slot"), slotSize)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		b.slots[i] = d
		b.parts.Slots[i] = disk.Partition{Number: i + 1, GUID: [16]byte{byte(i + 1), 0xaa}, Start: 1 << 20, Size: slotSize}
	}
	b.fill(k)
	return b
}

const global = "-8be4df61-93ca-11d2-aa0d-00e098032b8c"

// fill makes the box as it comes from the factory: release 1 in both slots.
func (b *box) fill(k *rsa.PrivateKey) {
	for _, s := range b.slots {
		u, err := update.Open(bytes.NewReader(b.releases[1].bundle), &k.PublicKey)
		if err == nil {
			err = update.WriteSlot(device{Disk: s, b: b}, slotSize, u)
		}
		if err != nil {
			b.t.Fatal(err)
		}
	}
}

// holds is the release that a slot holds whole; 0 where it holds none.
func (b *box) holds(slot int) uint64 {
	for n, r := range b.releases {
		if update.VerifySlot(device{Disk: b.slots[slot], b: b}, slotSize, r.manifest, r.policy) == nil {
			return n
		}
	}
	return 0
}

func (b *box) numbers(name string) (list []uint16) {
	for v := b.vars[name+global]; len(v) >= 2; v = v[2:] {
		list = append(list, binary.LittleEndian.Uint16(v))
	}
	return list
}

// firmware starts what the variables say and, where the first entry failed, has init restart once so that only its own was tried. It
// fails the test where no slot starts unattended with its data.
func (b *box) firmware() (slot int, ok bool) {
	for range 3 {
		order := append(b.numbers("BootNext"), b.numbers("BootOrder")...)
		delete(b.vars, "BootNext"+global)
		if len(order) == 0 {
			return 0, true // out of its box: the first slot, by its path
		}
		for tried, n := range order {
			option := b.vars[fmt.Sprintf("Boot%04X%s", n, global)]
			slot := slices.IndexFunc(b.parts.Slots[:], func(p disk.Partition) bool { return bytes.Contains(option, p.GUID[:]) })
			if slot < 0 || b.holds(slot) == 0 {
				continue
			}
			if tried == 0 && b.holds(slot) >= b.floor {
				return slot, true
			}
			if tried == 0 {
				return slot, false // it starts, and the TPM does not give it the data
			}
			b.restarts++
			e, err := update.OwnEntries(b, b.parts)
			if err != nil {
				return 0, false
			}
			if again, err := e.Retry(slot); err != nil || !again {
				return 0, false
			}
			break
		}
	}
	return 0, false
}

// run is one boot: what init does, and an administrator who wants release 2.
func (b *box) run(slot int, k *rsa.PrivateKey) error {
	e, err := update.OwnEntries(b, b.parts)
	if err != nil {
		return err
	}
	u := &update.Updater{Entries: e, Own: slot, Release: b.holds(slot), Size: slotSize, Store: b, Log: b.t.Logf,
		Open:  func(i int) (update.Device, error) { return device{b.slots[i], b, i == slot}, nil },
		Raise: func(n uint64) error { return b.atomic(func() { b.floor = max(b.floor, n) }) }}
	b.boots++
	boot := b.boots
	u.Note = func(_ update.State, action, _, _ string) update.Owed {
		return update.Owed{ID: fmt.Sprintf("boot %d %s", boot, action)}
	}
	if _, err := u.Resume(); err != nil {
		return err
	}
	if err := b.tell(u); err != nil {
		return err
	}
	if e.Retried() {
		if err := errors.Join(u.NoteBroken(), e.Succeeded()); err != nil {
			return err
		}
	}
	if u.OnTrial() {
		if err := errors.Join(u.MarkGood(), b.tell(u)); err != nil {
			return err
		}
	}
	if u.State().Phase == update.Good || u.State().Phase == update.Idle || u.State().Phase == update.Failed {
		if err := errors.Join(u.Finish(), b.tell(u), u.Heal()); err != nil {
			return err
		}
	}
	if u.Release == 2 {
		return nil
	}
	if u.State().Phase != update.Written {
		in, err := update.Open(bytes.NewReader(b.releases[2].bundle), &k.PublicKey)
		if err != nil {
			return err
		}
		if err := u.Begin(in.Manifest); err != nil {
			return err
		}
		if err := u.Wrote(update.WriteSlot(device{Disk: b.slots[1-slot], b: b}, slotSize, in)); err != nil {
			return err
		}
	}
	return u.Try()
}

// life boots until release 2 is in both slots and protected by the floor.
func (b *box) life(k *rsa.PrivateKey, what string) {
	for range 8 {
		slot, ok := b.firmware()
		if b.off {
			ok = true // the power failed while init prepared its restart
		} else if ok {
			if err := b.run(slot, k); err != nil && !b.off {
				b.t.Fatalf("%s: %v (state %+v)", what, err, b.state)
			}
		}
		if !ok {
			b.t.Fatalf("%s: no slot starts with its data: A holds %d, B %d, floor %d, order %v, next %v, state %+v", what, b.holds(0), b.holds(1), b.floor,
				b.numbers("BootOrder"), b.numbers("BootNext"), b.state)
		}
		if b.off {
			for _, s := range b.slots {
				s.Cut(b.rng.Uint64())
				s.PowerOn()
			}
			b.off = false
		}
		if b.holds(0) == 2 && b.holds(1) == 2 && b.floor == 2 && b.state.Phase == update.Idle && len(b.state.Owed) == 0 {
			if b.audited("update.good") != 1 || b.audited("update.floor") != 1 {
				b.t.Errorf("%s: the audit says %q", what, b.audit)
			}
			return
		}
	}
	b.t.Fatalf("%s: the update never ends: state %+v", what, b.state)
}

// The power fails once at each step of an update: writing, first boot, marking good, telling the audit, copying, raising the floor. Whatever
// the disk loses, one whole slot starts unattended with its data, the update ends well when it is tried again, and the audit says once that
// the release was good and once that the floor rose.
func TestUpdateSurvivesAPowerCutAtEveryStep(t *testing.T) {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	b := newBox(t, k)
	start := b.steps
	b.life(k, "without a cut")
	total := b.steps - start
	if total < 30 {
		t.Fatalf("only %d steps were seen", total)
	}
	restarts := 0
	for i := 1; i <= total; i++ {
		b := newBox(t, k)
		b.rng = mrand.New(mrand.NewPCG(uint64(i), 7))
		b.cutAt = b.steps + i
		b.life(k, fmt.Sprintf("cut at step %d of %d", i, total))
		restarts += b.restarts
	}
	t.Logf("%d steps, %d restarts because of a broken entry", total, restarts)
}

// After an update the floor forbids the old release, and somebody destroys the slot that is started first. The box comes up from the other
// one unattended, and makes both whole again.
func TestComesUpFromTheOtherSlotWhenOneIsDestroyed(t *testing.T) {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, at := range map[string]int64{"boot sector": 0, "image": 1 << 20} {
		b := newBox(t, k)
		b.life(k, "the update")
		first, ok := b.firmware()
		if !ok {
			t.Fatal("does not start")
		}
		if err := b.slots[first].Write(bytes.Repeat([]byte{0xff}, 4096), at, true); err != nil {
			t.Fatal(err)
		}
		slot, ok := b.firmware()
		if !ok || slot == first || b.restarts != 1 {
			t.Fatalf("%s: starts %v from slot %d after %d restarts", name, ok, slot, b.restarts)
		}
		if err := b.run(slot, k); err != nil || b.holds(0) != 2 || b.holds(1) != 2 || b.state.Broken {
			t.Errorf("%s: %v; slots hold %d and %d", name, err, b.holds(0), b.holds(1))
		}
	}
}
