package volume

import (
	"fmt"
	"os"
	"path/filepath"

	"guardhouse/appliance/tpm"
)

// RaiseFloor writes the version floor of the TPM with the owner's authorisation that lies in ownerDir of an open volume.
func RaiseFloor(t *tpm.TPM, ownerDir string, to uint64) error {
	owner, err := os.ReadFile(filepath.Join(ownerDir, ownerFile))
	if err != nil {
		return fmt.Errorf("owner of the TPM: %w", err)
	}
	defer clear(owner)
	return t.RaiseFloor(owner, to)
}
