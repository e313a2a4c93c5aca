package tpm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Handles of our own in the TPM. All are in the ranges for the owner (TCG registry of reserved TPM 2.0 handles and localities).
const (
	FloorIndex      tpm2.TPMHandle = 0x01804748 // NV index of the version floor
	GenerationIndex tpm2.TPMHandle = 0x01804749 // NV index of the volume's generation
	TimeFloorIndex  tpm2.TPMHandle = 0x0180474b // NV index of the time's floor
	StorageRoot     tpm2.TPMHandle = 0x81004748 // persistent storage root key
)

// floorPublic is the version floor: eight bytes, big-endian, the lowest release that may still get the volume key. It is the same on
// every machine, so that its name, and with it every signed policy, is known when an image is built. It is an ordinary index and not a
// counter, because a new counter starts above everything the TPM has ever counted.
//
// Everybody may read it: TPM2_PolicyNV must, before any secret is known. Only the owner may write it, and the owner's authorisation is
// random and lies on the sealed volume (Own), so no other operating system can lower, remove or redefine it; who clears the TPM loses
// it together with the storage root key, and the volume opens with the recovery secret alone.
func floorPublic(written bool) *tpm2.TPMSNVPublic { return indexPublic(FloorIndex, written) }

func indexPublic(index tpm2.TPMHandle, written bool) *tpm2.TPMSNVPublic {
	return &tpm2.TPMSNVPublic{NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: 8,
		Attributes: tpm2.TPMANV{NT: tpm2.TPMNTOrdinary, OwnerWrite: true, AuthRead: true, NoDA: true, Written: written}}
}

// indexes are all of ours.
var indexes = []tpm2.TPMHandle{FloorIndex, GenerationIndex, TimeFloorIndex}

// ErrNoFloor: this TPM holds no version floor of ours.
var ErrNoFloor = errors.New("the TPM holds no version floor")

// errNoIndex: there is no NV index of ours under the handle.
var errNoIndex = errors.New("the TPM holds no such index")

// OwnerAuthSize is the length of the owner's authorisation in bytes.
const OwnerAuthSize = 32

// Prepare readies a TPM that nobody owns for a volume: the storage root key is made persistent, the version floor defined at floor,
// the volume's generation at generation. What an earlier, unfinished try left is replaced, so a power cut does no harm. A TPM that
// somebody owns is an *Error of KindOwned.
func (t *TPM) Prepare(floor, generation uint64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	srk, err := t.persistRoot()
	if err != nil {
		return owned(err)
	}
	if err := t.removeIndexes(srk, nil); err != nil {
		return err
	}
	for index, value := range map[tpm2.TPMHandle]uint64{FloorIndex: floor, GenerationIndex: generation} {
		if _, err := (tpm2.NVDefineSpace{AuthHandle: srk.owner(nil), PublicInfo: tpm2.New2B(*indexPublic(index, false))}).Execute(t.t); err != nil {
			return owned(fmt.Errorf("define index %#x: %w", uint32(index), err))
		}
		if err := writeIndex(t.t, srk.owner(nil), index, false, value); err != nil {
			return err
		}
	}
	return nil
}

// NewOwnerAuth makes an owner's authorisation. It holds no zero byte: the TPM drops zeros at its end, and go-tpm (v0.9.8) computes its
// MACs with nothing that follows the first zero, so that one value in nine would be refused by the TPM for ever.
func NewOwnerAuth(random io.Reader) ([]byte, error) {
	auth := make([]byte, 0, OwnerAuthSize)
	b := make([]byte, 1)
	for len(auth) < OwnerAuthSize {
		if _, err := io.ReadFull(random, b); err != nil {
			clear(auth)
			return nil, err
		}
		if b[0] != 0 {
			auth = append(auth, b[0])
		}
	}
	return auth, nil
}

// Own sets the authorisations of owner and lockout to owner (of NewOwnerAuth) where they are still empty. owner must lie on
// the volume, durable, before this is called: afterwards nobody else can change what Prepare made. Calling it again does no harm.
func (t *TPM) Own(owner []byte) error {
	if len(owner) != OwnerAuthSize {
		return fmt.Errorf("the owner's authorisation has %d bytes, not %d", len(owner), OwnerAuthSize)
	}
	if bytes.IndexByte(owner, 0) >= 0 {
		return errors.New("the owner's authorisation holds a zero byte: it would never be accepted again")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	srk, err := t.storageRoot()
	if err != nil {
		return err
	}
	set, err := t.authsSet()
	if err != nil {
		return err
	}
	for _, h := range hierarchies {
		if set&h.flag != 0 {
			continue
		}
		if err := t.changeAuth(srk, h.handle, nil, owner); err != nil {
			return err
		}
	}
	return nil
}

// hierarchies are the two whose authorisation is ours, in the order in which they are taken and given back; flag is in TPMA_PERMANENT
// (TPM 2.0 part 2, 8.6). The owner's goes last: while it stands the rest can be done again.
var hierarchies = []struct {
	handle tpm2.TPMHandle
	flag   uint32
}{{tpm2.TPMRHLockout, 1 << 2}, {tpm2.TPMRHOwner, 1 << 0}}

// authsSet gives TPMA_PERMANENT: which hierarchies have an authorisation that is not empty.
func (t *TPM) authsSet() (uint32, error) {
	r, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTPermanent), PropertyCount: 1}.Execute(t.t)
	if err != nil {
		return 0, fmt.Errorf("ask who owns the TPM: %w", err)
	}
	properties, err := r.CapabilityData.Data.TPMProperties()
	if err != nil || len(properties.TPMProperty) == 0 || properties.TPMProperty[0].Property != tpm2.TPMPTPermanent {
		return 0, fmt.Errorf("ask who owns the TPM: unusable answer (%v)", err)
	}
	return properties.TPMProperty[0].Value, nil
}

// GiveBack undoes Prepare and Own, and proves it by reading again: no index and no key of ours is left, and the owner's authorisation is
// empty. A TPM that holds nothing of ours any more is fine, so it may be called again after a power cut.
func (t *TPM) GiveBack(owner []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	srk, err := t.storageRoot()
	var e *Error
	if errors.As(err, &e) && e.Kind == KindOtherTPM {
		return nil
	}
	if err != nil {
		return err
	}
	set, err := t.authsSet()
	if err != nil {
		return err
	}
	last := hierarchies[len(hierarchies)-1]
	auth := owner
	if set&last.flag == 0 {
		auth = nil
	}
	if err := t.removeIndexes(srk, auth); err != nil {
		return err
	}
	for _, h := range hierarchies {
		if set&h.flag == 0 {
			continue
		}
		if err := t.changeAuth(srk, h.handle, owner, nil); err != nil {
			return err
		}
	}
	_, err = tpm2.EvictControl{Auth: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		ObjectHandle: &tpm2.NamedHandle{Handle: StorageRoot, Name: srk.name}, PersistentHandle: StorageRoot}.Execute(t.t)
	if err != nil {
		return fmt.Errorf("remove storage root key: %w", err)
	}
	return t.provedGone()
}

// provedGone reads what GiveBack removed.
func (t *TPM) provedGone() error {
	for _, index := range indexes {
		if _, err := indexName(t.t, index); !errors.Is(err, errNoIndex) {
			return fmt.Errorf("index %#x is still in the TPM (%v)", uint32(index), err)
		}
	}
	if _, err := (tpm2.ReadPublic{ObjectHandle: StorageRoot}).Execute(t.t); !errors.Is(err, tpm2.TPMRCHandle) {
		return fmt.Errorf("the storage root key is still in the TPM (%v)", err)
	}
	set, err := t.authsSet()
	if err == nil && set&(hierarchies[0].flag|hierarchies[1].flag) != 0 {
		err = errors.New("the TPM still has an owner")
	}
	return err
}

// removeIndexes removes what lies under our handles, ours or not.
func (t *TPM) removeIndexes(srk *root, owner []byte) error {
	for _, index := range indexes {
		name, err := indexName(t.t, index)
		if errors.Is(err, errNoIndex) {
			continue
		}
		if err != nil {
			return err
		}
		_, err = tpm2.NVUndefineSpace{AuthHandle: srk.ownerBare(owner), NVIndex: tpm2.NamedHandle{Handle: index, Name: *name}}.Execute(t.t)
		if err != nil {
			return owned(fmt.Errorf("remove index %#x: %w", uint32(index), err))
		}
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
	return t.write(owner, FloorIndex, to)
}

// Generation reads the generation of the volume that this TPM saw last.
func (t *TPM) Generation() (uint64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return readIndex(t.t, GenerationIndex)
}

// SetGeneration writes it with the owner's authorisation.
func (t *TPM) SetGeneration(owner []byte, to uint64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.write(owner, GenerationIndex, to)
}

func (t *TPM) write(owner []byte, index tpm2.TPMHandle, value uint64) error {
	srk, err := t.storageRoot()
	if err != nil {
		return err
	}
	return writeIndex(t.t, srk.owner(owner), index, true, value)
}

// session encrypts the first parameter on the bus and proves that the caller knows auth.
func (srk *root) session(auth []byte) tpm2.Session {
	return tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.Auth(auth), tpm2.Salted(srk.handle, srk.public), tpm2.AESEncryption(128, tpm2.EncryptIn))
}

// owner authorises one command as the owner, the authorisation itself never on the bus.
func (srk *root) owner(auth []byte) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: srk.session(auth)}
}

// ownerBare is owner for a command without a parameter that could be encrypted.
func (srk *root) ownerBare(auth []byte) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.Auth(auth), tpm2.Salted(srk.handle, srk.public))}
}

func indexName(t transport.TPM, index tpm2.TPMHandle) (*tpm2.TPM2BName, error) {
	r, err := tpm2.NVReadPublic{NVIndex: index}.Execute(t)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, errNoIndex
	}
	if err != nil {
		return nil, fmt.Errorf("look for index %#x: %w", uint32(index), err)
	}
	return &r.NVName, nil
}

func readFloor(t transport.TPM) (uint64, error) {
	v, err := readIndex(t, FloorIndex)
	if errors.Is(err, errNoIndex) {
		return 0, ErrNoFloor
	}
	return v, err
}

// readIndex refuses an index that is not exactly ours: a name that differs would not satisfy any policy either.
func readIndex(t transport.TPM, index tpm2.TPMHandle) (uint64, error) {
	name, err := indexName(t, index)
	if err != nil {
		return 0, err
	}
	want, err := tpm2.NVName(indexPublic(index, true))
	if err != nil {
		return 0, err
	}
	if string(name.Buffer) != string(want.Buffer) {
		return 0, errNoIndex
	}
	r, err := tpm2.NVRead{AuthHandle: tpm2.AuthHandle{Handle: index, Name: *name, Auth: tpm2.PasswordAuth(nil)},
		NVIndex: tpm2.NamedHandle{Handle: index, Name: *name}, Size: 8}.Execute(t)
	if err != nil || len(r.Data.Buffer) != 8 {
		return 0, fmt.Errorf("read index %#x: %v", uint32(index), err)
	}
	return binary.BigEndian.Uint64(r.Data.Buffer), nil
}

func writeIndex(t transport.TPM, auth tpm2.AuthHandle, index tpm2.TPMHandle, written bool, to uint64) error {
	name, err := tpm2.NVName(indexPublic(index, written))
	if err != nil {
		return err
	}
	_, err = tpm2.NVWrite{AuthHandle: auth, NVIndex: tpm2.NamedHandle{Handle: index, Name: *name},
		Data: tpm2.TPM2BMaxNVBuffer{Buffer: binary.BigEndian.AppendUint64(nil, to)}}.Execute(t)
	if err != nil {
		return fmt.Errorf("write index %#x: %w", uint32(index), err)
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
