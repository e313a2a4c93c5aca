package volume

import (
	"fmt"

	"guardhouse/appliance/disk"
)

// Owner is the authorisation with which the TPM is given back; the caller wipes it. The volume must be mounted.
func (v *Volume) Owner() ([]byte, error) { return v.owner() }

// FactoryReset gives the TPM back and ends the volume for ever. It needs the volume closed, and owner from Owner while it was open: with
// nil the TPM is left alone, because nobody else may change it. What is done is proved by reading again; each line of the report is one
// thing. The TPM goes first: its authorisation lies on the volume. After a power cut between the two the disk asks for its recovery
// secret; a reset from there ends it.
func (m *Machine) FactoryReset(d disk.Disk, owner []byte) (report []string, err error) {
	switch {
	case owner == nil:
		report = append(report, "TPM: left alone, because its owner's authorisation lies on the volume, which was shut; clear it in the firmware's setup")
	case m.TPM == nil:
		report = append(report, "TPM: none answers")
	default:
		if err := m.TPM.GiveBack(owner); err != nil {
			return report, fmt.Errorf("give the TPM back: %w", err)
		}
		report = append(report, "TPM: version floor, generation, storage root key and owner removed; read again: gone")
	}
	if err := m.before("zeroise"); err != nil {
		return report, err
	}
	if err := disk.Zeroise(d); err != nil {
		return report, err
	}
	return append(report, fmt.Sprintf("disk %s: both headers and the ends overwritten; read again: blank", d.Name)), nil
}
