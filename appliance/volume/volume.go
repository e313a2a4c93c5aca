// Package volume opens the node's data volume: by itself for a boot that the image's builder signed, by a person's recovery secret for
// any other, and for nobody else. It joins the TPM (who gets the key) and the disk (what the key opens).
//
// Promise. A blank disk is prepared only for a boot that will open it again. Power may fail at any step of preparing, opening or
// resealing: the volume opens afterwards by the same means as before, or the disk counts as blank because nothing was kept on it. The
// header proves itself with the volume key before the file system is looked at. An older copy of the disk is refused: each boot raises
// the volume's generation on the disk first and in the TPM then, and a disk must be at the TPM's generation or one above. When Open or
// Make returns, the TPM gives the key to nothing in this boot any more, and has proved it.
//
// A recovery secret, made once and kept by people, opens the volume where the TPM does not: after a swap of TPM or board, after a boot
// that nobody signed. It is shown once and counts only when it was typed back. Reseal then gives the volume to the present TPM.
//
// Limits. A copy taken since the last boot has the TPM's generation and is not told from the disk itself. Whoever controls the running
// image can read the volume. The key stays in a locked page of this process until Forget; Go's garbage collector may leave copies of
// what crossed the TPM's library.
package volume

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"guardhouse/appliance/disk"
	"guardhouse/appliance/quote"
	"guardhouse/appliance/tpm"
)

// Kinds of slots in the header.
const (
	SlotTPM      = "tpm"      // tpm.VolumeSlot
	SlotRecovery = "recovery" // see recovery.go
)

// KindRolledBack: the disk is an older copy of itself.
const KindRolledBack = "volume-rolled-back"

// Boot is what the boot disk and the image say of this boot.
type Boot struct {
	Authority []byte // PEM, measured with the image: whose policies count for a new seal
	Policies  []tpm.SignedPolicy
	Log       []byte // the firmware's boot log, for telling why the TPM refuses; may be empty
}

// Machine is what a volume is opened with.
type Machine struct {
	TPM      *tpm.TPM
	Finder   *disk.Finder
	Target   string // where the file system is mounted
	OwnerDir string // folder below Target, root's alone, with the TPM owner's authorisation
	Progress disk.Progress
	Log      func(format string, args ...any)
	Now      func() time.Duration // since the machine started; nil = not wanted

	cut func(step string) error // tests: the power fails before this step
}

// before names a step after which power may have failed, for tests.
func (m *Machine) before(step string) error {
	if m.cut == nil {
		return nil
	}
	return m.cut(step)
}

// Volume is an open volume.
type Volume struct {
	Disk disk.Disk
	Did  string           // in a few words, for people: Formatted, "clean"
	Used tpm.SignedPolicy // the policy that opened it; zero where the recovery secret did
	// Commands is how many commands the TPM was sent until the volume was mounted: raising the generation, cap and proof come after that.
	Commands int
	// Mounted is when that was, by Machine.Now.
	Mounted time.Duration
	// Changed is what the TPM did not accept; nil where it opened the volume.
	Changed *Changes

	machine *Machine
	header  *disk.Header
	device  disk.HeaderDevice
	path    string   // of the opened layers
	key     *keyPage // wiped once forgotten
}

// Formatted is what Make did.
const Formatted = "formatted"

const ownerFile = "tpm-owner"

// Make prepares a blank disk and opens it.
func (m *Machine) Make(ctx context.Context, d disk.Disk, boot Boot) (*Volume, error) {
	if d.Content != disk.Blank {
		return nil, &disk.Error{Kind: disk.KindForeign, What: fmt.Sprintf("disk %s holds %s", d.Name, d.Holds), Remedy: "attach a blank disk"}
	}
	authority, err := tpm.ParseAuthority(boot.Authority)
	if err != nil {
		return nil, &tpm.Error{Kind: tpm.KindNoPolicy, What: fmt.Sprintf("the image names nobody who may sign its boots: %v", err), Remedy: "build the image with a key set (mkimage build --keys)"}
	}
	used, err := m.TPM.Fitting(authority, boot.Policies)
	if err != nil {
		return nil, asBlank(m.because(err, boot))
	}
	if err := m.TPM.Prepare(used.Release, 0); err != nil {
		return nil, err
	}
	if err := m.before("format"); err != nil {
		return nil, err
	}
	v, owner, err := m.begin(ctx, d)
	if err != nil {
		return nil, err
	}
	defer clear(owner)
	if err := v.finish(authority, boot.Authority, owner, used); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	v.Did, v.Used = Formatted, used
	return v, nil
}

// finish gives a new volume to the TPM. With the slot's header the disk stops being blank.
func (v *Volume) finish(authority *rsa.PublicKey, text, owner []byte, used tpm.SignedPolicy) error {
	m := v.machine
	if err := m.before("seal"); err != nil {
		return err
	}
	slot, err := m.TPM.SealVolume(authority, text, v.key.key)
	if err == nil {
		err = m.before("header")
	}
	if err == nil {
		err = v.setSlot(slot)
	}
	if err == nil {
		err = m.before("own")
	}
	if err == nil {
		err = m.TPM.Own(owner)
	}
	if err == nil {
		err = m.before("cap")
	}
	if err == nil {
		err = m.TPM.Cap(slot, used)
	}
	return err
}

// because puts before a refusal what the boot log proves to be its reason.
func (m *Machine) because(err error, boot Boot) error {
	var e *tpm.Error
	if !errors.As(err, &e) || e.Kind != tpm.KindNoPolicy {
		return err
	}
	pcrs, failed := m.TPM.Measurements()
	if failed != nil {
		return err
	}
	var signed []string
	for _, p := range boot.Policies {
		signed = append(signed, p.PCRs[7])
	}
	why := quote.Unsigned(boot.Log, pcrs, signed)
	return &tpm.Error{Kind: e.Kind, What: strings.Join(append(why, e.What), "; "), Remedy: e.Remedy}
}

// asBlank replaces the remedy, which on a blank disk can't be a recovery secret.
func asBlank(err error) error {
	var e *tpm.Error
	if !errors.As(err, &e) {
		return err
	}
	return &tpm.Error{Kind: e.Kind, What: e.What + "; the blank disk is left as it is, because it would not open again",
		Remedy: "enrol the Secure Boot keys that came with the image in the firmware's setup, switch Secure Boot on, and boot the image as it was delivered"}
}

// begin makes the encrypted volume with a file system that holds the owner's authorisation and nothing else. Until the header loses its
// mark the disk counts as blank.
func (m *Machine) begin(ctx context.Context, d disk.Disk) (v *Volume, owner []byte, err error) {
	h, err := disk.NewHeader()
	if err != nil {
		return nil, nil, err
	}
	h.Preparing = true
	device, err := os.OpenFile(d.Path, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	v = &Volume{Disk: d, machine: m, header: h, device: device}
	key := make([]byte, disk.KeySize)
	defer func() {
		if err != nil {
			clear(owner)
			err = errors.Join(err, v.Close())
			v = nil
		}
	}()
	if owner, err = tpm.NewOwnerAuth(rand.Reader); err != nil {
		return v, owner, err
	}
	if _, err := io.ReadFull(rand.Reader, key); err != nil {
		return v, owner, err
	}
	if v.key, err = lockKey(key); err != nil {
		return v, owner, err
	}
	if err := disk.WriteHeader(device, h, v.key.key); err != nil {
		return v, owner, err
	}
	if err := m.before("create"); err != nil {
		return v, owner, err
	}
	path, err := disk.Create(ctx, d, v.key.key, m.Progress)
	if err != nil {
		return v, owner, err
	}
	v.path = path
	if err := m.Finder.MakeFS(ctx, path); err != nil {
		return v, owner, err
	}
	if err := disk.Mount(path, m.Target); err != nil {
		return v, owner, err
	}
	v.noteMounted()
	if err := disk.Folder(m.OwnerDir, 0, 0, 0o700); err != nil {
		return v, owner, err
	}
	return v, owner, disk.ReplaceFile(filepath.Join(m.OwnerDir, ownerFile), owner)
}

// Open opens the volume for a boot that was signed.
func (m *Machine) Open(ctx context.Context, d disk.Disk, boot Boot) (*Volume, error) {
	v, err := m.read(d)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*Volume, error) { return nil, errors.Join(err, v.Close()) }
	stored := v.header.Slot(SlotTPM)
	if stored == nil {
		return fail(&tpm.Error{Kind: tpm.KindOtherTPM, What: "the volume is not sealed to any TPM", Remedy: "open it with the recovery secret and reseal"})
	}
	slot, err := tpm.ParseVolumeSlot(stored.Data)
	if err != nil {
		return fail(err)
	}
	key, used, err := m.TPM.UnsealVolume(slot, boot.Policies)
	if err != nil {
		return fail(m.because(err, boot))
	}
	v.Used = used
	if v.key, err = lockKey(key); err != nil {
		return fail(err)
	}
	if err := v.header.Prove(v.key.key); err != nil {
		return fail(err)
	}
	next, err := v.nextGeneration()
	if err != nil {
		return fail(err)
	}
	owner, err := v.mount(ctx)
	if err != nil {
		return fail(err)
	}
	defer clear(owner)
	if err := v.settle(owner, next); err != nil {
		return fail(err)
	}
	if slot, err = v.follow(slot, boot); err != nil {
		return fail(err)
	}
	if err := m.TPM.Cap(slot, v.Used); err != nil {
		return fail(err)
	}
	return v, nil
}

// settle tells the TPM that the disk is at this generation. Own is for a volume whose Make was ended by a power cut before it.
func (v *Volume) settle(owner []byte, generation uint64) error {
	m := v.machine
	if err := m.before("own"); err != nil {
		return err
	}
	if err := m.TPM.Own(owner); err != nil {
		return err
	}
	if err := m.before("generation"); err != nil {
		return err
	}
	return m.TPM.SetGeneration(owner, generation)
}

// read opens the disk's header.
func (m *Machine) read(d disk.Disk) (*Volume, error) {
	device, err := os.OpenFile(d.Path, os.O_RDWR, 0)
	if err != nil {
		return nil, &disk.Error{Kind: disk.KindFailed, What: err.Error(), Remedy: "restart the node; if it stays, replace the disk"}
	}
	h, damaged, err := disk.ReadHeader(device)
	if err != nil {
		return nil, errors.Join(err, device.Close())
	}
	if damaged != "" {
		m.Log("volume header: %s; the other copy serves, and this one is written again", damaged)
	}
	return &Volume{Disk: d, machine: m, header: h, device: device}, nil
}

// nextGeneration compares disk and TPM, and raises the disk's.
func (v *Volume) nextGeneration() (uint64, error) {
	seen, err := v.machine.TPM.Generation()
	if err != nil {
		return 0, err
	}
	if g := v.header.Generation; g != seen && g != seen+1 {
		return 0, &disk.Error{Kind: KindRolledBack, What: fmt.Sprintf("this disk is at generation %d, and this machine's TPM saw %d: it is an older copy, or another machine ran with it", g, seen),
			Remedy: "attach the newest disk; or let the node rejoin its cluster or restore a backup; or open this one with the recovery secret and reseal, which accepts what it lacks"}
	}
	if err := v.machine.before("header"); err != nil {
		return 0, err
	}
	v.header.Generation = seen + 1
	return seen + 1, disk.WriteHeader(v.device, v.header, v.key.key)
}

// mount opens the layers, checks and mounts the file system, and reads the owner's authorisation.
func (v *Volume) mount(ctx context.Context) ([]byte, error) {
	path, err := disk.Open(v.Disk, v.key.key)
	if err != nil {
		return nil, err
	}
	v.path = path
	if v.Did, err = v.machine.Finder.CheckFS(ctx, path); err != nil {
		return nil, err
	}
	if err := disk.Mount(path, v.machine.Target); err != nil {
		return nil, err
	}
	v.noteMounted()
	return v.owner()
}

// noteMounted takes the counts that end with the mounted volume.
func (v *Volume) noteMounted() {
	if t := v.machine.TPM; t != nil {
		v.Commands = t.Commands()
	}
	if now := v.machine.Now; now != nil {
		v.Mounted = now()
	}
}

// owner reads the owner's authorisation from the mounted volume.
func (v *Volume) owner() ([]byte, error) {
	owner, err := os.ReadFile(filepath.Join(v.machine.OwnerDir, ownerFile))
	if err == nil && len(owner) != tpm.OwnerAuthSize {
		err = fmt.Errorf("it has %d bytes", len(owner))
	}
	if err != nil {
		return nil, &disk.Error{Kind: disk.KindDamaged, What: fmt.Sprintf("the volume lacks the TPM owner's authorisation: %v", err), Remedy: "restore the node from a backup or from its cluster"}
	}
	return owner, nil
}

// SetTimeFloor writes the time's floor into the TPM, which takes the owner's authorisation from the open volume.
func (m *Machine) SetTimeFloor(at time.Time) error {
	owner, err := os.ReadFile(filepath.Join(m.OwnerDir, ownerFile))
	if err != nil {
		return fmt.Errorf("the TPM owner's authorisation: %w", err)
	}
	defer clear(owner)
	return m.TPM.SetTimeFloor(owner, at)
}

// follow reseals to the image's own authority where that is another one than the volume's: a release that both have signed hands the
// volume over. It waits until the floor has reached the release, that is until the release has proved itself and lies in both slots: on a
// trial boot the release before must still open the volume, and its policies know the old authority alone. A failure leaves the old seal,
// which opens as well.
func (v *Volume) follow(slot tpm.VolumeSlot, boot Boot) (tpm.VolumeSlot, error) {
	if bytes.Equal(bytes.TrimSpace(slot.Authority), bytes.TrimSpace(boot.Authority)) {
		return slot, nil
	}
	authority, err := tpm.ParseAuthority(boot.Authority)
	if err != nil {
		return slot, nil
	}
	used, err := v.machine.TPM.Fitting(authority, boot.Policies)
	if err != nil {
		v.machine.Log("the image names another policy key than the volume's, but no policy of it fits this boot: the volume keeps the old one")
		return slot, nil
	}
	if floor, err := v.machine.TPM.Floor(); err != nil || floor < used.Release {
		v.machine.Log("the volume keeps policy key %.16s.. until release %d is marked good (%v)", v.Used.Key, used.Release, err)
		return slot, nil
	}
	if err := v.machine.before("follow"); err != nil {
		return slot, err
	}
	next, err := v.machine.TPM.SealVolume(authority, boot.Authority, v.key.key)
	if err == nil {
		err = v.setSlot(next)
	}
	if err != nil {
		v.machine.Log("reseal to the image's policy key: %v; the volume keeps the old one", err)
		return slot, nil
	}
	v.machine.Log("the volume is sealed to policy key %.16s.. now", tpm.AuthorityID(authority))
	v.Used = used
	return next, nil
}

func (v *Volume) setSlot(slot tpm.VolumeSlot) error {
	b, err := slot.Encode()
	if err != nil {
		return err
	}
	v.header.Preparing = false
	v.header.SetSlot(SlotTPM, b)
	return disk.WriteHeader(v.device, v.header, v.key.key)
}

// Scrub reads the whole volume and reports each place that gives no data; see [disk.Scrub].
func (v *Volume) Scrub(ctx context.Context, idle int, found func(disk.Damage)) error {
	return disk.Scrub(ctx, v.path, idle, found)
}

// Forget wipes the volume key. The volume stays open.
func (v *Volume) Forget() { v.key.wipe() }

// Close unmounts and closes the volume and forgets the key. It may be called on a volume that never got as far as being mounted.
func (v *Volume) Close() error {
	failed := disk.Unmount(v.machine.Target)
	if failed == nil {
		failed = disk.Close()
	}
	return errors.Join(failed, v.release())
}

// release forgets the key and lets go of the disk.
func (v *Volume) release() error {
	v.Forget()
	if c, ok := v.device.(io.Closer); ok {
		return c.Close()
	}
	return nil
}
