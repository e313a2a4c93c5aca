package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"guardhouse/appliance/disk"
)

const (
	segmentSuffix = ".jsonl"
	headFile      = "head.json"
	baseFile      = "base.json"
	exportedFile  = "exported.json"
	brokenFile    = "broken.json"
	reserveFile   = "reserve"
)

func sortedKeys[K ~string | ~uint64, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

func segmentName(first uint64) string { return fmt.Sprintf("%020d%s", first, segmentSuffix) }

func (l *Log) path(name string) string { return filepath.Join(l.dir, name) }

// writeJSON replaces a small file so that after a power cut either the old or the new one is there.
func (l *Log) writeJSON(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return disk.ReplaceFile(l.path(name), b)
}

// readJSON leaves v as it is where the file is missing.
func (l *Log) readJSON(name string, v any) error {
	b, err := os.ReadFile(l.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s does not parse: %w", name, err)
	}
	return nil
}

// takeReserve allocates the space that releaseReserve gives back when the disk is full. Failing is no error: the disk is full now.
func (l *Log) takeReserve() {
	const size = 256 << 10
	if st, err := os.Stat(l.path(reserveFile)); err == nil && st.Size() == size {
		return
	}
	f, err := os.OpenFile(l.path(reserveFile), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return
	}
	_, err = f.Write(make([]byte, size))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		os.Remove(l.path(reserveFile))
	}
}

func (l *Log) releaseReserve() bool {
	return os.Remove(l.path(reserveFile)) == nil && disk.SyncDir(l.dir) == nil
}
