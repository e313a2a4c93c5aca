package volume

import (
	"fmt"
	"os"
	"path/filepath"
)

// RaiseFloor writes the version floor into the TPM, which takes the owner's authorisation from the open volume: releases below it get
// the volume key no more. A floor that is not higher changes nothing.
func (m *Machine) RaiseFloor(to uint64) error {
	owner, err := os.ReadFile(filepath.Join(m.OwnerDir, ownerFile))
	if err != nil {
		return fmt.Errorf("the TPM owner's authorisation: %w", err)
	}
	defer clear(owner)
	return m.TPM.RaiseFloor(owner, to)
}
