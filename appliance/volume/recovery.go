package volume

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"

	"guardhouse/appliance/disk"
	"guardhouse/appliance/tpm"
)

// Recovery is what is known of a volume's recovery secret: nothing that helps to guess it.
type Recovery struct {
	ID   string // names the secret; "" where there is none
	Form string // FormPassphrase or FormShares
}

// Recovery says which recovery secret opens the volume.
func (v *Volume) Recovery() (Recovery, error) { return recoveryOf(v.header) }

// RecoveryOf is Recovery of a volume that is shut.
func RecoveryOf(d disk.Disk) (Recovery, error) {
	v, err := (&Machine{Log: func(string, ...any) {}}).read(d)
	if err != nil {
		return Recovery{}, err
	}
	defer v.release()
	return v.Recovery()
}

func recoveryOf(h *disk.Header) (Recovery, error) {
	stored := h.Slot(SlotRecovery)
	if stored == nil {
		return Recovery{}, nil
	}
	s, err := parseRecoverySlot(stored.Data)
	return Recovery{s.ID, s.Form}, err
}

// Draft is a recovery secret that was made and counts for nothing yet. Wipe it when it was confirmed or given up.
type Draft struct {
	Recovery
	Texts [][]byte // what is shown: one passphrase or three shares

	slot []byte
	key  *keyPage
}

// Wipe forgets the texts.
func (d *Draft) Wipe() {
	for _, t := range d.Texts {
		clear(t)
	}
	d.Texts = nil
	d.key.wipe()
}

// DraftRecovery makes a recovery secret of a form. Where the volume has one already, current must be that one: whoever merely holds the
// running node can't put another in its place. Without one the key must not be forgotten yet.
func (v *Volume) DraftRecovery(form string, current [][]byte) (*Draft, error) {
	key, err := v.keyFor(current)
	if err != nil {
		return nil, err
	}
	d := &Draft{Recovery: Recovery{Form: form}}
	if d.ID, err = newSecretID(rand.Reader); err != nil {
		clear(key)
		return nil, err
	}
	secret, texts, err := newSecret(form, rand.Reader)
	if err != nil {
		clear(key)
		return nil, err
	}
	defer clear(secret)
	s := recoverySlot{Version: 1, ID: d.ID, Form: form}
	if err := s.wrap(secret, v.header.Volume, key); err != nil {
		clear(key)
		return nil, err
	}
	d.Texts = texts
	if d.slot, err = json.Marshal(s); err != nil {
		clear(key)
		return nil, err
	}
	d.key, err = lockKey(key)
	return d, err
}

// keyFor gives a copy of the volume key to whoever may make a recovery secret.
func (v *Volume) keyFor(current [][]byte) ([]byte, error) {
	old, err := v.Recovery()
	if err != nil {
		return nil, err
	}
	if old.ID == "" {
		if v.key == nil || v.key.key == nil {
			return nil, &disk.Error{Kind: KindSecretNeeded, What: "the volume key is out of reach until the next boot", Remedy: "reboot, then make the recovery secret"}
		}
		return append([]byte(nil), v.key.key...), nil
	}
	if len(current) == 0 {
		return nil, &disk.Error{Kind: KindSecretNeeded, What: fmt.Sprintf("recovery secret %s stands; a new one takes it", old.ID), Remedy: "type the present one"}
	}
	return v.unwrap(current)
}

// unwrap gets the key out of the recovery slot.
func (v *Volume) unwrap(texts [][]byte) ([]byte, error) {
	stored := v.header.Slot(SlotRecovery)
	if stored == nil {
		return nil, &disk.Error{Kind: KindNoSecret, What: "this volume has no recovery secret: none was confirmed when it was set up", Remedy: "put disk and TPM back together, or restore from a backup"}
	}
	s, err := parseRecoverySlot(stored.Data)
	if err != nil {
		return nil, err
	}
	secret, err := readSecret(s.Form, texts)
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	key, err := s.unwrap(secret, v.header.Volume)
	if err == nil && len(key) != disk.KeySize {
		clear(key)
		return nil, errors.New("the recovery slot holds no volume key")
	}
	return key, err
}

// CheckRecovery fails unless texts are the volume's recovery secret. It opens nothing and keeps nothing.
func (v *Volume) CheckRecovery(texts [][]byte) error {
	key, err := v.unwrap(texts)
	if err != nil {
		return err
	}
	defer clear(key)
	return v.header.Prove(key)
}

// ConfirmRecovery puts a draft into force: typed must be all its texts in their order. The volume key is forgotten then, unless Reseal
// still needs it. A power cut leaves the secret before or this one.
func (v *Volume) ConfirmRecovery(d *Draft, typed [][]byte) error {
	if d.key == nil || d.key.key == nil {
		return errKeyGone
	}
	if len(typed) != len(d.Texts) {
		return &disk.Error{Kind: KindMistyped, What: fmt.Sprintf("%d texts of %d", len(typed), len(d.Texts)), Remedy: "type each as it was shown"}
	}
	for i := range typed {
		got, err := canonical(typed[i])
		if err != nil {
			return err
		}
		want, err := canonical(d.Texts[i])
		if err != nil {
			return err
		}
		same := subtle.ConstantTimeCompare(got, want) == 1
		clear(got)
		clear(want)
		if !same {
			return &disk.Error{Kind: KindMistyped, What: "that is another one than was shown", Remedy: "type it as it was shown"}
		}
	}
	if err := v.machine.before("recovery"); err != nil {
		return err
	}
	v.header.SetSlot(SlotRecovery, d.slot)
	if err := disk.WriteHeader(v.device, v.header, d.key.key); err != nil {
		return err
	}
	if v.Changed == nil {
		v.Forget()
	}
	return nil
}

// Changes is what keeps the TPM from opening a volume, for people, and what Reseal needs.
type Changes struct {
	TPM        string // which TPM this is
	Boot       string // how this boot was measured
	Generation string
	Refused    error // why Reseal would refuse; nil: it will do

	boot Boot
	fits tpm.SignedPolicy
	same bool // the TPM that sealed the volume, not cleared since
	seen uint64
}

// Lines are the changes for a screen.
func (c *Changes) Lines() []string { return []string{c.TPM, c.Boot, c.Generation} }

// compare looks at TPM, boot and header before anything is changed.
func (m *Machine) compare(h *disk.Header, boot Boot) *Changes {
	c := &Changes{boot: boot, TPM: "TPM: none answers", Boot: "boot: not measured", Generation: fmt.Sprintf("generation: the disk is at %d", h.Generation)}
	if m.TPM == nil {
		c.Refused = &tpm.Error{Kind: tpm.KindNoTPM, What: "there is no TPM to seal to", Remedy: "enable the TPM 2.0 in the firmware's settings and reboot"}
		return c
	}
	if stored := h.Slot(SlotTPM); stored != nil {
		if slot, err := tpm.ParseVolumeSlot(stored.Data); err == nil {
			c.same, _ = m.TPM.Holds(slot)
		}
	}
	c.TPM = "TPM: another one than sealed the volume, or it was cleared"
	if c.same {
		c.TPM = "TPM: the one that sealed the volume"
		if seen, err := m.TPM.Generation(); err == nil {
			c.seen = seen
			c.Generation += fmt.Sprintf(", the TPM saw %d", seen)
		}
	}
	authority, err := tpm.ParseAuthority(boot.Authority)
	if err != nil {
		c.Boot = "boot: the image names nobody who may sign its boots"
		c.Refused = &tpm.Error{Kind: tpm.KindNoPolicy, What: "the image names nobody who may sign its boots", Remedy: "boot the image as it was delivered, by UEFI firmware"}
		return c
	}
	if c.fits, err = m.TPM.Fitting(authority, boot.Policies); err != nil {
		err = m.because(err, boot)
		c.Boot, c.Refused = "boot: not signed: "+whatOf(err), notAgain(err)
		return c
	}
	c.Boot = fmt.Sprintf("boot: signed as %.64q, release %d, by policy key %.16s..", c.fits.Name, c.fits.Release, tpm.AuthorityID(authority))
	if floor, err := m.TPM.Floor(); c.same && err == nil && floor > c.fits.Release {
		c.Refused = &tpm.Error{Kind: tpm.KindBelowFloor, What: fmt.Sprintf("this image is release %d, and this machine's version floor is %d", c.fits.Release, floor), Remedy: "boot the newer image and reseal there"}
	}
	return c
}

// notAgain replaces the remedy: the volume is open already, and a seal to this boot would not open again.
func notAgain(err error) error {
	return &tpm.Error{Kind: tpm.KindNoPolicy, What: "a seal to this boot would not open again: " + whatOf(err),
		Remedy: "undo the change, or install a release whose policies cover it, reboot, recover and reseal"}
}

func whatOf(err error) string {
	var e *tpm.Error
	if errors.As(err, &e) {
		return e.What
	}
	return err.Error()
}

// OpenWithRecovery opens the volume with its recovery secret, whatever the TPM says; Machine.TPM may be nil. The TPM's registers are
// capped all the same. Generation and seal stay as they are until Reseal.
func (m *Machine) OpenWithRecovery(ctx context.Context, d disk.Disk, boot Boot, texts [][]byte) (*Volume, error) {
	v, err := m.read(d)
	if err != nil {
		return nil, err
	}
	key, err := v.unwrap(texts)
	if err != nil {
		return nil, errors.Join(err, v.release())
	}
	fail := func(err error) (*Volume, error) { return nil, errors.Join(err, v.Close()) }
	if v.key, err = lockKey(key); err != nil {
		return fail(err)
	}
	if err := v.header.Prove(v.key.key); err != nil {
		return fail(err)
	}
	v.Changed = m.compare(v.header, boot)
	if m.TPM != nil {
		if err := m.TPM.CapAlone(); err != nil {
			return fail(err)
		}
	}
	owner, err := v.mount(ctx)
	clear(owner)
	if err != nil {
		return fail(err)
	}
	return v, nil
}

// Reseal gives a volume that was opened with its recovery secret to the present TPM, for the boots that this image's builder signs. It
// accepts the disk's generation, whatever the TPM saw. Power may fail at any step: the recovery secret opens the volume afterwards, or
// the TPM does. It forgets the key. t is the open TPM.
func (v *Volume) Reseal(t *tpm.TPM) error {
	c := v.Changed
	switch {
	case c == nil:
		return &tpm.Error{Kind: KindNotRecovered, What: "the TPM opened this volume: there is nothing to reseal", Remedy: "none needed"}
	case c.Refused != nil:
		return c.Refused
	case v.key == nil || v.key.key == nil:
		return errKeyGone
	}
	owner, err := v.owner()
	if err != nil {
		return err
	}
	defer clear(owner)
	m := v.machine
	m.TPM = t
	authority, err := tpm.ParseAuthority(c.boot.Authority)
	if err != nil {
		return err
	}
	v.header.Generation = max(v.header.Generation, c.seen) + 1
	if !c.same {
		if err := m.TPM.Prepare(c.fits.Release, v.header.Generation); err != nil {
			return err
		}
	}
	if err := m.before("seal"); err != nil {
		return err
	}
	slot, err := m.TPM.SealVolume(authority, c.boot.Authority, v.key.key)
	if err != nil {
		return err
	}
	if err := m.before("header"); err != nil {
		return err
	}
	if err := v.setSlot(slot); err != nil {
		return err
	}
	if err := v.settle(owner, v.header.Generation); err != nil {
		return err
	}
	if err := m.TPM.ProveCapped(slot, c.fits); err != nil {
		return err
	}
	v.Changed, v.Used = nil, c.fits
	v.Forget()
	return nil
}

// KindNotRecovered: there is nothing to reseal.
const KindNotRecovered = "volume-sealed"
