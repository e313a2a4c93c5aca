package tpm

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// TimeFloor reads the newest moment that this TPM was told is over, which survives the loss of the disk's newest writes; the zero time where
// there is none of ours. Everybody may read it, only the owner write it (see FloorIndex).
func (t *TPM) TimeFloor() (time.Time, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v, err := readIndex(t.t, TimeFloorIndex)
	if errors.Is(err, errNoIndex) || err == nil && v == 0 {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, err
	}
	return time.UnixMilli(int64(v)).UTC(), nil
}

// SetTimeFloor writes it with the owner's authorisation, to the millisecond. NV memory wears out: at most daily and at a clean stop.
func (t *TPM) SetTimeFloor(owner []byte, to time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	srk, err := t.storageRoot()
	if err != nil {
		return err
	}
	written := true
	switch _, err := readIndex(t.t, TimeFloorIndex); {
	case errors.Is(err, errNoIndex):
		written = false
		_, err := tpm2.NVDefineSpace{AuthHandle: srk.owner(owner), PublicInfo: tpm2.New2B(*indexPublic(TimeFloorIndex, false))}.Execute(t.t)
		// One that is there but never written is from a try that was cut off.
		if err != nil && !errors.Is(err, tpm2.TPMRCNVDefined) {
			return owned(fmt.Errorf("define index %#x: %w", uint32(TimeFloorIndex), err))
		}
	case err != nil:
		return err
	}
	return writeIndex(t.t, srk.owner(owner), TimeFloorIndex, written, uint64(to.UnixMilli()))
}
