package token

import (
	"unsafe"

	"github.com/miekg/pkcs11"

	"guardhouse/appliance/hsm"
)

// create makes the token that c names if the module has none of this name. It is
// for SoftHSM2 inside the image, where nobody else could do it: only a slot that
// no one initialised is taken. The PIN becomes the security officer's too, so
// that a power cut between the two steps can be mended by the next start.
// It loads, initialises and finalises the module before crypto11 does.
func create(c hsm.ModuleConfig, pin []byte) error {
	p := pkcs11.New(c.Module)
	if p == nil {
		return nil // configure says it better
	}
	defer p.Destroy()
	if err := p.Initialize(); err != nil {
		return fail("prepare the embedded token", err)
	}
	defer p.Finalize()
	secret := unsafe.String(unsafe.SliceData(pin), len(pin)) // copied by the binding, not kept
	slot, info, err := slotOf(p, c.TokenLabel)
	if err != nil {
		return err
	}
	if info == nil {
		if slot, info, err = slotOf(p, ""); err != nil || info == nil {
			return err
		}
		if err := p.InitToken(slot, secret, c.TokenLabel); err != nil {
			return fail("make the embedded token", err)
		}
		if slot, info, err = slotOf(p, c.TokenLabel); err != nil || info == nil { // the slot's number has changed
			return err
		}
	}
	if info.Flags&pkcs11.CKF_USER_PIN_INITIALIZED != 0 {
		return nil
	}
	s, err := p.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return fail("make the embedded token", err)
	}
	defer p.CloseSession(s)
	if err := p.Login(s, pkcs11.CKU_SO, secret); err != nil {
		return fail("make the embedded token", err)
	}
	defer p.Logout(s)
	return fail("make the embedded token", p.InitPIN(s, secret))
}

// slotOf finds the initialised token called label or, for an empty label, one
// that is not initialised. info is nil when there is none.
func slotOf(p *pkcs11.Ctx, label string) (slot uint, info *pkcs11.TokenInfo, err error) {
	slots, err := p.GetSlotList(true)
	if err != nil {
		return 0, nil, fail("list slots", err)
	}
	for _, s := range slots {
		i, err := p.GetTokenInfo(s)
		if err != nil {
			return 0, nil, fail("list slots", err)
		}
		ready := i.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0
		if label == "" && !ready || label != "" && ready && i.Label == label {
			return s, &i, nil
		}
	}
	return 0, nil, nil
}
