package audit

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"guardhouse/appliance/disk"
)

// segment is one file of the chain: records first to last, the hash before the first and of the last.
type segment struct {
	first, last    uint64
	prev, lastHash string
	size           int64
}

// Open opens or begins the chain in dir, which must exist. It reads the newest segment whole and of the others the ends; [Log.Check]
// reads all. A torn tail that nobody was told of is cut off; any other damage is a problem that Status shows, never an error here:
// errors are those of a folder that can't be read or written.
func Open(dir string, opt Options) (*Log, error) {
	opt.defaults()
	l := &Log{dir: dir, opt: opt, wake: make(chan struct{}, 1), done: make(chan struct{}), hash: zeroHash, broken: map[uint64]string{}, more: make(chan struct{})}
	if err := l.load(); err != nil {
		return nil, fmt.Errorf("open audit: %w", err)
	}
	l.takeReserve()
	go l.run()
	return l, nil
}

func (l *Log) load() error {
	var soft error // a damaged note is a problem of its own, the records may be whole
	soft = errors.Join(soft, l.readJSON(brokenFile, &l.broken))
	soft = errors.Join(soft, l.readJSON(headFile, &l.head))
	soft = errors.Join(soft, l.readJSON(baseFile, &l.base))
	var e exported
	soft = errors.Join(soft, l.readJSON(exportedFile, &e))
	l.exported = e.Exported
	if l.broken == nil {
		l.broken = map[uint64]string{}
	}
	if soft != nil {
		l.broken[0] = soft.Error()
	}
	firsts, err := l.listSegments()
	if err != nil {
		return err
	}
	if firsts, err = l.dropTrimmed(firsts); err != nil {
		return err
	}
	firsts, err = l.openNewest(firsts)
	if err != nil {
		return err
	}
	l.checkLinks(firsts)
	return l.quarantineNewest()
}

func (l *Log) listSegments() ([]uint64, error) {
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return nil, err
	}
	var firsts []uint64
	for _, e := range entries {
		digits, ok := strings.CutSuffix(e.Name(), segmentSuffix)
		n, err := strconv.ParseUint(digits, 10, 64)
		if ok && err == nil && segmentName(n) == e.Name() {
			firsts = append(firsts, n)
		}
		if filepath.Ext(e.Name()) == ".new" {
			os.Remove(l.path(e.Name()))
		}
	}
	slices.Sort(firsts)
	return firsts, nil
}

// dropTrimmed finishes a trim that a power cut interrupted.
func (l *Log) dropTrimmed(firsts []uint64) ([]uint64, error) {
	if l.base == nil {
		return firsts, nil
	}
	for len(firsts) > 0 && firsts[0] <= l.base.Checkpoint.Last {
		if err := os.Remove(l.path(segmentName(firsts[0]))); err != nil {
			return nil, err
		}
		firsts = firsts[1:]
	}
	return firsts, nil
}

// openNewest recovers the segment that was being written. One that holds no whole record is removed, and the one before it, which was
// closed and so durable, becomes the open one.
func (l *Log) openNewest(firsts []uint64) ([]uint64, error) {
	closed := false
	for len(firsts) > 0 {
		first := firsts[len(firsts)-1]
		s, why, err := l.recoverSegment(first, closed)
		if err != nil {
			return nil, err
		}
		if s.size > 0 || why != "" {
			f, err := os.OpenFile(l.path(segmentName(first)), os.O_RDWR, 0o600)
			if err != nil {
				return nil, err
			}
			l.cur, l.segments, l.last, l.hash = f, []segment{s}, s.last, s.lastHash
			if why != "" {
				l.broken[first] = why
			} else if l.head != nil && l.head.Last > s.last {
				l.broken[first] = fmt.Sprintf("records %d to %d, which a checkpoint covers, are missing", s.last+1, l.head.Last)
			}
			break
		}
		if err := os.Remove(l.path(segmentName(first))); err != nil {
			return nil, err
		}
		firsts, closed = firsts[:len(firsts)-1], true
	}
	if len(firsts) == 0 && l.base != nil {
		l.last, l.hash = l.base.Checkpoint.Last, l.base.Checkpoint.Hash
	}
	if len(firsts) == 0 && l.head != nil && l.head.Last > l.last {
		l.broken[l.last+1] = fmt.Sprintf("records %d to %d, which a checkpoint covers, are missing", l.last+1, l.head.Last)
		l.last, l.hash = l.head.Last, l.head.Hash
	}
	return firsts, disk.SyncDir(l.dir)
}

// recoverSegment reads a segment from its start. A tail that does not parse is cut off when nothing says that it was ever durable: no
// later record knew of it, no checkpoint covers it, it is no longer than one batch, and the segment was not closed. Otherwise why says
// what is wrong and the segment stays as it is, counted up to the last record that can be read in it.
func (l *Log) recoverSegment(first uint64, closed bool) (s segment, why string, err error) {
	name := l.path(segmentName(first))
	data, err := os.ReadFile(name)
	if err != nil {
		return s, "", err
	}
	s = segment{first: first, last: first - 1, size: int64(len(data))}
	good, bad := 0, error(nil)
	var at chain
	for good < len(data) && bad == nil {
		end := bytes.IndexByte(data[good:], '\n')
		if end < 0 {
			bad = errors.New("it has no end")
			break
		}
		b := data[good : good+end]
		if good == 0 { // the first record says what it follows; checkLinks compares that with the segment before
			if l, err := parseLine(b); err == nil {
				at, s.prev = chain{first - 1, l.prev}, l.prev
			}
		}
		if _, bad = at.next(b); bad == nil {
			good += end + 1
			s.last, s.lastHash = at.seq, at.hash
		}
	}
	if good == 0 && s.prev == "" {
		s.lastHash = zeroHash
	}
	if closed && len(data) == 0 {
		return s, "it is empty", nil
	}
	if bad == nil {
		return s, "", nil
	}
	lastSeen, known := scanTail(data[good:])
	acknowledged := closed || known.sync > s.last || len(data)-good > maxBatch+maxRecord || l.head != nil && l.head.Last > s.last
	if acknowledged {
		if lastSeen.seq > s.last {
			s.last, s.lastHash = lastSeen.seq, lastSeen.hash
		}
		if l.head != nil && l.head.Last > s.last {
			s.last, s.lastHash = l.head.Last, l.head.Hash
		}
		if s.last < first { // nothing at all can be read: count it as one record, so that the next segment has a name of its own
			s.last, s.lastHash = first, zeroHash
		}
		return s, bad.Error(), nil
	}
	if err := truncate(name, int64(good)); err != nil {
		return s, "", err
	}
	s.size = int64(good)
	return s, "", nil
}

// scanTail looks for whole records behind a damaged one: the last of them, and the one that knew of the most durable records.
func scanTail(b []byte) (last, known line) {
	for part := range bytes.SplitSeq(b, []byte("\n")) {
		r, err := parseLine(part)
		if err != nil {
			continue
		}
		if r.seq >= last.seq {
			last = r
		}
		if r.sync >= known.sync {
			known = r
		}
	}
	return last, known
}

func truncate(name string, size int64) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Sync(), f.Close())
}

// checkLinks reads the ends of the closed segments and compares them: nothing may lie between one and the next.
func (l *Log) checkLinks(firsts []uint64) {
	at := chain{0, zeroHash}
	if l.base != nil {
		at = chain{l.base.Checkpoint.Last, l.base.Checkpoint.Hash}
	}
	var all []segment
	for i, first := range firsts {
		var s segment
		if i == len(firsts)-1 {
			s = l.segments[0]
		} else {
			var err error
			if s, err = l.readEnds(first); err != nil {
				l.broken[first] = err.Error()
			}
		}
		if s.first != at.seq+1 {
			l.broken[first] = fmt.Sprintf("records %d to %d are missing", at.seq+1, s.first-1)
		} else if s.prev != at.hash && l.broken[first] == "" {
			l.broken[first] = fmt.Sprintf("record %d does not follow from the record before it", first)
		}
		at = chain{s.last, s.lastHash}
		all = append(all, s)
		l.bytes += s.size
	}
	l.segments = all
	for first := range l.broken { // segments that are gone can't be broken any more
		if l.base != nil && first != 0 && first <= l.base.Checkpoint.Last {
			delete(l.broken, first)
		}
	}
}

// readEnds reads the first and the last record of a closed segment.
func (l *Log) readEnds(first uint64) (segment, error) {
	s := segment{first: first, last: first}
	f, err := os.Open(l.path(segmentName(first)))
	if err != nil {
		return s, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return s, err
	}
	s.size = st.Size()
	head, err := bufio.NewReaderSize(f, maxRecord).ReadSlice('\n')
	if err != nil {
		return s, fmt.Errorf("record %d was cut", first)
	}
	l1, err := parseLine(head[:len(head)-1])
	if err != nil || l1.seq != first {
		return s, fmt.Errorf("record %d was changed or cut", first)
	}
	s.prev, s.lastHash = l1.prev, l1.hash
	tail := make([]byte, min(s.size, maxRecord+1))
	if _, err := f.ReadAt(tail, s.size-int64(len(tail))); err != nil && err != io.EOF {
		return s, err
	}
	end, ok := bytes.CutSuffix(tail, []byte("\n"))
	if !ok {
		return s, fmt.Errorf("the last record of the segment that begins with record %d was cut", first)
	}
	l2, err := parseLine(end[bytes.LastIndexByte(end, '\n')+1:])
	if err != nil || l2.seq < first {
		return s, fmt.Errorf("the last record of the segment that begins with record %d was changed", first)
	}
	s.last, s.lastHash = l2.seq, l2.hash
	return s, nil
}

// quarantineNewest begins a new segment where the newest one is damaged, so that the cure can be recorded and the damaged one can be
// exported and trimmed like any other.
func (l *Log) quarantineNewest() error {
	if len(l.broken) == 0 {
		return nil
	}
	if err := l.saveBroken(); err != nil {
		return err
	}
	if n := len(l.segments); n == 0 || l.broken[l.segments[n-1].first] == "" {
		return nil
	}
	if l.hash == "" {
		l.hash = zeroHash
	}
	return l.rotate("the chain before this record is broken: " + l.broken[l.segments[len(l.segments)-1].first])
}

// Check reads the whole chain and compares it with what Open and Append know. Damage becomes a problem that refuses grants until the
// damaged segments were exported and trimmed. It takes about a second for 100 MB.
func (l *Log) Check(ctx context.Context) error {
	l.emu.Lock() // no trim meanwhile
	defer l.emu.Unlock()
	l.mu.Lock()
	segments := slices.Clone(l.segments)
	l.mu.Unlock()
	for _, s := range segments {
		if err := ctx.Err(); err != nil {
			return err
		}
		why := l.checkSegment(s)
		if why == nil {
			continue
		}
		if err := l.quarantine(s.first, why.Error()); err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.broken) > 0 {
		return l.brokenError()
	}
	return nil
}

func (l *Log) checkSegment(s segment) error {
	f, err := os.Open(l.path(segmentName(s.first)))
	if err != nil {
		return err
	}
	defer f.Close()
	at := chain{s.first - 1, s.prev}
	r := bufio.NewReaderSize(io.LimitReader(f, s.size), maxRecord)
	for at.seq < s.last {
		b, err := r.ReadSlice('\n')
		if err != nil {
			return fmt.Errorf("record %d was cut", at.seq+1)
		}
		if _, err := at.next(b[:len(b)-1]); err != nil {
			return err
		}
	}
	if at.hash != s.lastHash {
		return fmt.Errorf("record %d is not the one that was written", at.seq)
	}
	if _, err := r.ReadByte(); err != io.EOF {
		return fmt.Errorf("something follows record %d in its segment", at.seq)
	}
	return nil
}

// quarantine marks a segment as broken and closes it if it is the open one.
func (l *Log) quarantine(first uint64, why string) error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	l.mu.Lock()
	if l.broken[first] != "" {
		l.mu.Unlock()
		return nil
	}
	l.broken[first] = why
	open := l.segments[len(l.segments)-1].first == first
	l.mu.Unlock()
	if err := l.saveBroken(); err != nil {
		return err
	}
	if open {
		return l.rotate("the chain before this record is broken: " + why)
	}
	return nil
}

func (l *Log) saveBroken() error {
	l.mu.Lock()
	m := maps.Clone(l.broken)
	l.mu.Unlock()
	delete(m, 0) // found anew at each start
	return l.writeJSON(brokenFile, m)
}

// brokenError describes the first damage; l.mu is held.
func (l *Log) brokenError() *Error {
	first := sortedKeys(l.broken)[0]
	end := l.last
	for _, s := range l.segments {
		if _, ok := l.broken[s.first]; ok {
			end = s.last
		}
	}
	if first == 0 {
		return problem(KindBroken, fmt.Sprintf("run audit export, keep the file, then audit trim %d", l.last+1), "the audit chain is broken: %s", l.broken[0])
	}
	return problem(KindBroken, fmt.Sprintf("run audit export, keep the file, then audit trim %d", end+1),
		"the audit chain is broken in the segment that begins with record %d: %s", first, l.broken[first])
}
