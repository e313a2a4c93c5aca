package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Handles of our own in the TPM. Both are in the ranges for the owner (TCG registry of reserved TPM 2.0 handles and localities).
const (
	FloorIndex  tpm2.TPMHandle = 0x01804748 // NV index of the version floor
	StorageRoot tpm2.TPMHandle = 0x81004748 // persistent storage root key
)

// floorPublic is the version floor: eight bytes, big-endian, the lowest release that may still get the volume key. It is the same on
// every machine, so that its name, and with it every signed policy, is known when an image is built. It is an ordinary index and not a
// counter, because a new counter starts above everything the TPM has ever counted.
//
// Everybody may read it: TPM2_PolicyNV must, before any secret is known. Only the owner may write it, and the owner's authorisation is
// random and lies on the sealed volume (TakeOwnership), so no other operating system can lower, remove or redefine it; who clears the
// TPM loses it together with the storage root key, and the volume opens with the recovery secret alone.
func floorPublic(written bool) *tpm2.TPMSNVPublic {
	return &tpm2.TPMSNVPublic{NVIndex: FloorIndex, NameAlg: tpm2.TPMAlgSHA256, DataSize: 8,
		Attributes: tpm2.TPMANV{NT: tpm2.TPMNTOrdinary, OwnerWrite: true, AuthRead: true, NoDA: true, Written: written}}
}

// ErrNoFloor: this TPM holds no version floor of ours.
var ErrNoFloor = errors.New("the TPM holds no version floor")

// OwnerAuthSize is the length of the owner's authorisation in bytes.
const OwnerAuthSize = 32

// TakeOwnership prepares a TPM for a new volume: the storage root key is made persistent, the version floor defined at floor, and the
// authorisations of owner and lockout become owner (OwnerAuthSize random bytes, to be kept on the sealed volume). What an earlier
// installation left under an empty authorisation is replaced. A TPM that somebody owns is an *Error of KindOwned.
func (t *TPM) TakeOwnership(owner []byte, floor uint64) error {
	if len(owner) != OwnerAuthSize {
		return fmt.Errorf("the owner's authorisation has %d bytes, not %d", len(owner), OwnerAuthSize)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	srk, err := t.persistRoot()
	if err != nil {
		return owned(err)
	}
	auth := srk.owner(nil)
	if _, _, err := readFloorPublic(t.t); err == nil {
		if err := undefineFloor(t.t, srk.ownerBare(nil)); err != nil {
			return owned(err)
		}
	} else if !errors.Is(err, ErrNoFloor) {
		return err
	}
	if _, err := (tpm2.NVDefineSpace{AuthHandle: auth, PublicInfo: tpm2.New2B(*floorPublic(false))}).Execute(t.t); err != nil {
		return owned(fmt.Errorf("define version floor: %w", err))
	}
	if err := writeFloor(t.t, auth, false, floor); err != nil {
		return err
	}
	// Lockout first: while the owner's authorisation is still empty a power cut leaves a TPM that can be prepared again.
	for _, hierarchy := range []tpm2.TPMHandle{tpm2.TPMRHLockout, tpm2.TPMRHOwner} {
		if err := t.changeAuth(srk, hierarchy, nil, owner); err != nil {
			return err
		}
	}
	return nil
}

// GiveBack undoes TakeOwnership: it removes the floor and the persistent key and empties both authorisations.
func (t *TPM) GiveBack(owner []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	srk, err := t.storageRoot()
	if err != nil {
		return err
	}
	if _, _, err := readFloorPublic(t.t); err == nil {
		if err := undefineFloor(t.t, srk.ownerBare(owner)); err != nil {
			return owned(err)
		}
	}
	for _, hierarchy := range []tpm2.TPMHandle{tpm2.TPMRHLockout, tpm2.TPMRHOwner} {
		if err := t.changeAuth(srk, hierarchy, owner, nil); err != nil {
			return err
		}
	}
	_, err = tpm2.EvictControl{Auth: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		ObjectHandle: &tpm2.NamedHandle{Handle: StorageRoot, Name: srk.name}, PersistentHandle: StorageRoot}.Execute(t.t)
	if err != nil {
		return fmt.Errorf("remove storage root key: %w", err)
	}
	return nil
}

// changeAuth sets a hierarchy's authorisation. The old one goes as a password: the TPM answers with a MAC under the new one, which
// go-tpm's sessions don't expect. It is empty when a new one is set, and worthless afterwards when it is emptied; the new one crosses
// the bus encrypted.
func (t *TPM) changeAuth(srk *root, hierarchy tpm2.TPMHandle, old, new []byte) error {
	_, err := tpm2.HierarchyChangeAuth{AuthHandle: tpm2.AuthHandle{Handle: hierarchy, Auth: tpm2.PasswordAuth(old)},
		NewAuth: tpm2.TPM2BAuth{Buffer: new}}.Execute(t.t, srk.session(nil))
	if err != nil {
		return owned(fmt.Errorf("set authorisation of hierarchy %#x: %w", uint32(hierarchy), err))
	}
	return nil
}

// Floor reads the version floor; ErrNoFloor where there is none of ours.
func (t *TPM) Floor() (uint64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return readFloor(t.t)
}

// RaiseFloor writes the version floor with the owner's authorisation. A value that is not higher changes nothing.
func (t *TPM) RaiseFloor(owner []byte, to uint64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	now, err := readFloor(t.t)
	if err != nil || now >= to {
		return err
	}
	srk, err := t.storageRoot()
	if err != nil {
		return err
	}
	auth := srk.owner(owner)
	return writeFloor(t.t, auth, true, to)
}

// ownerAuth authorises one command as the owner, the authorisation itself never on the bus.
func (srk *root) owner(auth []byte) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: srk.session(auth)}
}

// ownerBare is owner for a command without a parameter that could be encrypted.
func (srk *root) ownerBare(auth []byte) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.Auth(auth), tpm2.Salted(srk.handle, srk.public))}
}

func (srk *root) session(auth []byte) tpm2.Session {
	return tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.Auth(auth), tpm2.Salted(srk.handle, srk.public), tpm2.AESEncryption(128, tpm2.EncryptIn))
}

func readFloorPublic(t transport.TPM) (*tpm2.TPMSNVPublic, *tpm2.TPM2BName, error) {
	r, err := tpm2.NVReadPublic{NVIndex: FloorIndex}.Execute(t)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, nil, ErrNoFloor
	}
	if err != nil {
		return nil, nil, fmt.Errorf("look for the version floor: %w", err)
	}
	pub, err := r.NVPublic.Contents()
	return pub, &r.NVName, err
}

// readFloor refuses an index that is not exactly ours: a name that differs would not satisfy any policy either.
func readFloor(t transport.TPM) (uint64, error) {
	_, name, err := readFloorPublic(t)
	if err != nil {
		return 0, err
	}
	want, err := tpm2.NVName(floorPublic(true))
	if err != nil {
		return 0, err
	}
	if string(name.Buffer) != string(want.Buffer) {
		return 0, ErrNoFloor
	}
	r, err := tpm2.NVRead{AuthHandle: tpm2.AuthHandle{Handle: FloorIndex, Name: *name, Auth: tpm2.PasswordAuth(nil)},
		NVIndex: tpm2.NamedHandle{Handle: FloorIndex, Name: *name}, Size: 8}.Execute(t)
	if err != nil || len(r.Data.Buffer) != 8 {
		return 0, fmt.Errorf("read version floor: %v", err)
	}
	return binary.BigEndian.Uint64(r.Data.Buffer), nil
}

func writeFloor(t transport.TPM, auth tpm2.AuthHandle, written bool, to uint64) error {
	name, err := tpm2.NVName(floorPublic(written))
	if err != nil {
		return err
	}
	_, err = tpm2.NVWrite{AuthHandle: auth, NVIndex: tpm2.NamedHandle{Handle: FloorIndex, Name: *name},
		Data: tpm2.TPM2BMaxNVBuffer{Buffer: binary.BigEndian.AppendUint64(nil, to)}}.Execute(t)
	if err != nil {
		return fmt.Errorf("write version floor: %w", err)
	}
	return nil
}

func undefineFloor(t transport.TPM, auth tpm2.AuthHandle) error {
	_, name, err := readFloorPublic(t)
	if err != nil {
		return err
	}
	_, err = tpm2.NVUndefineSpace{AuthHandle: auth, NVIndex: tpm2.NamedHandle{Handle: FloorIndex, Name: *name}}.Execute(t)
	if err != nil {
		return fmt.Errorf("remove version floor: %w", err)
	}
	return nil
}

// owned turns a refused authorisation into what a person can do about it.
func owned(err error) error {
	if errors.Is(err, tpm2.TPMRCBadAuth) || errors.Is(err, tpm2.TPMRCAuthFail) {
		return &Error{KindOwned, fmt.Sprintf("the TPM has another owner (%v)", err),
			"if this machine was set up before, open its disk with the recovery secret; else clear the TPM in the firmware's setup"}
	}
	return err
}
