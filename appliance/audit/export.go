package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"guardhouse/appliance/disk"
	"guardhouse/appliance/policy"
)

// header is the first line of an export.
type header struct {
	Version int    `json:"guardhouseAudit"` // 1
	Node    string `json:"node"`
	Key     []byte `json:"key"`   // PublicKey
	First   uint64 `json:"first"` // number of the first record
	Prev    string `json:"prev"`  // hash that it follows
}

// footer is the last line of an export.
type footer struct {
	Checkpoint Checkpoint `json:"checkpoint"`
}

type exported struct {
	Exported uint64 `json:"exported"`
}

const chunkSize = 256 << 10

// Export gives the segments that hold any of the records from to to (0, 0 = all) to emit, in the format that [Verify] reads, in pieces
// of at most 256 KiB. Records that arrive meanwhile are left for the next one. When emit took everything, and nothing older is missing,
// the records count as exported and may be trimmed. Damaged segments are exported as they are: Verify will say what is wrong.
func (l *Log) Export(ctx context.Context, from, to uint64, emit func([]byte) error) error {
	l.emu.Lock()
	defer l.emu.Unlock()
	segments, err := l.closeForExport(from, to)
	if err != nil {
		return err
	}
	begin := chain{segments[0].first - 1, segments[0].prev}
	end := segments[len(segments)-1]
	c, err := l.sign(begin, chain{end.last, end.lastHash})
	if err != nil {
		return err
	}
	l.mu.Lock()
	key := l.key
	l.mu.Unlock()
	head, err := json.Marshal(header{1, c.Node, key, c.First, c.Prev})
	if err != nil {
		return err
	}
	if err := emit(append(head, '\n')); err != nil {
		return err
	}
	for _, s := range segments {
		if err := l.emitSegment(ctx, s, emit); err != nil {
			return err
		}
	}
	foot, err := json.Marshal(footer{*c})
	if err != nil {
		return err
	}
	if err := emit(append(foot, '\n')); err != nil {
		return err
	}
	return l.markExported(segments[0].first, end.last)
}

// closeForExport makes the newest checkpoint and picks the segments.
func (l *Log) closeForExport(from, to uint64) ([]segment, error) {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	l.mu.Lock()
	n := len(l.segments)
	// The open segment is closed, so that what is exported now can be trimmed although the chain grows meanwhile.
	whole := n > 0 && l.signer != nil && l.last > l.segments[n-1].first && (to == 0 || to >= l.last)
	l.mu.Unlock()
	if whole {
		// Failing is no reason to stop: on a full disk the export must work all the more, and its own footer is signed in any case.
		_ = l.rotate("")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.signer == nil {
		return nil, errNoKey
	}
	picked := slices.DeleteFunc(slices.Clone(l.segments), func(s segment) bool { return s.last < from || to != 0 && s.first > to })
	if len(picked) == 0 {
		return nil, fmt.Errorf("there are no records from %d to %d", from, to)
	}
	return picked, nil
}

func (l *Log) emitSegment(ctx context.Context, s segment, emit func([]byte) error) error {
	f, err := os.Open(l.path(segmentName(s.first)))
	if err != nil {
		return fmt.Errorf("export audit: %w", err)
	}
	defer f.Close()
	r := io.LimitReader(f, s.size)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := make([]byte, chunkSize)
		n, err := io.ReadFull(r, b)
		if n > 0 {
			if err := emit(b[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("export audit: %w", err)
		}
	}
}

func (l *Log) markExported(first, last uint64) error {
	l.mu.Lock()
	oldest := uint64(0)
	if len(l.segments) > 0 {
		oldest = l.segments[0].first
	}
	if first > max(l.exported+1, oldest) || last <= l.exported {
		l.mu.Unlock()
		return nil
	}
	l.exported = last
	l.mu.Unlock()
	if err := l.writeJSON(exportedFile, exported{last}); err != nil {
		// On a full disk the mark lives until the next start, which is long enough to trim.
		if e := new(Error); !errors.As(l.writeError(err), &e) || e.Kind != KindFull {
			return err
		}
	}
	return nil
}

// base says what was trimmed.
type base struct {
	Checkpoint Checkpoint `json:"checkpoint"` // covers the records that are gone
}

// Trim removes the oldest segments whose records all lie below below, were exported and are covered by a signed checkpoint, and records
// that in the chain as note (AuditSystem or AuditCommand). It is how a full or broken audit is cured; it works without free space.
func (l *Log) Trim(ctx context.Context, below uint64, note policy.AuditEntry) (segments int, size int64, err error) {
	l.emu.Lock()
	defer l.emu.Unlock()
	if err := l.closeForTrim(below); err != nil {
		return 0, 0, err
	}
	l.mu.Lock()
	for _, s := range l.segments[:len(l.segments)-1] {
		if s.last >= below || s.last > l.exported {
			break
		}
		segments++
		size += s.size
	}
	exported := l.exported
	l.mu.Unlock()
	if segments == 0 {
		return 0, 0, problem(KindFull, "run audit export, keep the file, then ask for a number above its records",
			"nothing can be trimmed below record %d: records up to %d are exported, and only whole closed segments are trimmed", below, exported)
	}
	note.Facts = map[string]string{"below": fmt.Sprint(below), "segments": fmt.Sprint(segments), "bytes": fmt.Sprint(size)}
	_, noteErr := l.append(ctx, note, true)
	if err := l.drop(segments); err != nil {
		return 0, 0, err
	}
	if noteErr != nil { // the disk was full; now there is room
		_, noteErr = l.append(ctx, note, true)
	}
	return segments, size, noteErr
}

// closeForTrim closes the open segment if all of it may go.
func (l *Log) closeForTrim(below uint64) error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	l.mu.Lock()
	n := len(l.segments)
	whole := n > 0 && l.last < below && l.last <= l.exported && l.segments[n-1].last > l.segments[n-1].first
	noKey := l.signer == nil
	l.mu.Unlock()
	if noKey {
		return errNoKey
	}
	if n == 0 {
		return problem(KindFull, "nothing is to be done", "there are no records")
	}
	if !whole {
		return nil
	}
	err := l.rotate("")
	if err != nil && l.releaseReserve() {
		err = l.rotate("")
	}
	return err
}

// drop writes the signed note of what goes, then removes it, so that a power cut in between is finished at the next start.
func (l *Log) drop(n int) error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	l.mu.Lock()
	from := l.start()
	gone := slices.Clone(l.segments[:n])
	to := chain{l.segments[n].first - 1, l.segments[n].prev}
	l.mu.Unlock()
	c, err := l.sign(from, to)
	if err != nil {
		return err
	}
	b := &base{*c}
	err = l.writeJSON(baseFile, b)
	if err != nil && l.releaseReserve() {
		err = l.writeJSON(baseFile, b)
	}
	if err != nil {
		return l.writeError(err)
	}
	for _, s := range gone {
		if err := os.Remove(l.path(segmentName(s.first))); err != nil {
			return l.writeError(err)
		}
	}
	if err := disk.SyncDir(l.dir); err != nil {
		return l.writeError(err)
	}
	l.mu.Lock()
	l.base = b
	l.segments = slices.Clone(l.segments[n:])
	for _, s := range gone {
		l.bytes -= s.size
	}
	maps.DeleteFunc(l.broken, func(first uint64, _ string) bool { return first <= c.Last })
	l.mu.Unlock()
	l.takeReserve()
	return errors.Join(l.saveBroken(), l.checkpoint())
}

// Tail gives the newest n records, oldest first. It reads only the segments it needs and passes over lines that are damaged.
func (l *Log) Tail(n int) ([]Record, error) {
	l.emu.Lock()
	defer l.emu.Unlock()
	return l.newest(func(got int, _ segment) bool { return got >= n }, n)
}

// Since gives the records from number first on, oldest first.
func (l *Log) Since(first uint64) ([]Record, error) {
	l.emu.Lock()
	defer l.emu.Unlock()
	all, err := l.newest(func(_ int, s segment) bool { return s.last < first }, -1)
	i, _ := slices.BinarySearchFunc(all, first, func(r Record, seq uint64) int {
		if r.Seq < seq {
			return -1
		}
		return 1
	})
	return all[i:], err
}

// newest reads whole segments from the end until enough; at most n records unless n < 0.
func (l *Log) newest(enough func(int, segment) bool, n int) ([]Record, error) {
	l.mu.Lock()
	segments := slices.Clone(l.segments)
	l.mu.Unlock()
	var all []Record
	for _, s := range slices.Backward(segments) {
		if enough(len(all), s) {
			break
		}
		part, err := l.readSegment(s)
		if err != nil {
			return nil, err
		}
		all = append(part, all...)
	}
	if n >= 0 && len(all) > n {
		all = all[len(all)-n:]
	}
	return all, nil
}
