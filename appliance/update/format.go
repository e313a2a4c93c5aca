package update

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"guardhouse/appliance/disk"
)

// KindUnreadable: the data volume holds data of a form that this release can't read.
const KindUnreadable = "volume-format"

// formatMark is what a data volume says of the data on it.
type formatMark struct {
	Version int    `json:"version"` // 1
	Format  int    `json:"format"`
	Release uint64 `json:"release"` // which made it that
}

// ReadFormat reads the mark in file; a volume without one holds the first form.
func ReadFormat(file string) (format int, release uint64, err error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return 1, 0, nil
	}
	if err != nil {
		return 0, 0, err
	}
	var m formatMark
	if len(b) > maxState || json.Unmarshal(b, &m) != nil || m.Version != 1 || m.Format < 1 {
		return 0, 0, fmt.Errorf("%s does not say which form the stored data have", file)
	}
	return m.Format, m.Release, nil
}

// ClaimFormat takes the data of a volume into use, before anything else of it is read: it marks them with the form that the release
// writes, where that is newer, and refuses data that the release can't read. A power cut leaves the old mark or the new one.
func ClaimFormat(file string, release uint64) (format int, err error) {
	return claimFormat(file, release, Manifest{StoredFormat: StoredFormat, MinStoredFormat: MinStoredFormat, WritesFormat: WritesFormat})
}

func claimFormat(file string, release uint64, own Manifest) (int, error) {
	format, by, err := ReadFormat(file)
	if err != nil {
		return 0, &disk.Error{Kind: KindUnreadable, What: err.Error(), Remedy: "restore the node from a backup, or set it up anew"}
	}
	if !own.Reads(format) {
		return 0, &disk.Error{Kind: KindUnreadable, What: fmt.Sprintf("release %d reads stored data of format %d to %d, and this volume's is %d, by release %d", release, own.MinStoredFormat, own.StoredFormat, format, by),
			Remedy: "start a release that reads it"}
	}
	_, err = os.Stat(file)
	if own.Writes() <= format && err == nil {
		return format, nil
	}
	format = max(format, own.Writes())
	b, err := json.Marshal(formatMark{Version: 1, Format: format, Release: release})
	if err == nil {
		err = disk.ReplaceFile(file, b)
	}
	if err != nil {
		return 0, fmt.Errorf("mark the form of the stored data: %w", err)
	}
	return format, nil
}
