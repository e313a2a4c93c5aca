package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/disk"
	"guardhouse/appliance/policy"
)

// maxBatch bounds what one fsync covers, in bytes, and with it how long a torn tail can be.
const maxBatch = 1 << 20

// run is the only goroutine that writes records.
func (l *Log) run() {
	defer close(l.done)
	for range l.wake {
		for l.commitSome() {
		}
	}
	for l.commitSome() {
	}
}

// commitSome takes a batch off the queue; false when there was nothing.
func (l *Log) commitSome() bool {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	l.mu.Lock()
	n, size := 0, 0
	for n < len(l.queue) && (n == 0 || size+len(l.queue[n].entry)+512 <= maxBatch) {
		size += len(l.queue[n].entry) + 512
		n++
	}
	batch := l.queue[:n:n]
	l.queue = l.queue[n:]
	if len(l.queue) == 0 {
		l.queue = nil
	}
	l.mu.Unlock()
	if n == 0 {
		return false
	}
	l.commit(batch)
	return true
}

// commit writes a batch and answers everyone in it. l.wmu is held.
func (l *Log) commit(batch []*waiting) {
	var taken []*waiting
	l.mu.Lock()
	more := int64(0)
	for _, w := range batch {
		size := int64(len(w.entry) + 256)
		err := l.admit(w.kind, more+size)
		if err != nil && (!w.forced || l.failed != nil) {
			w.reply <- answer{err: err}
			continue
		}
		more += size
		taken = append(taken, w)
	}
	l.mu.Unlock()
	if len(taken) == 0 {
		return
	}
	receipts, err := l.write(taken)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		taken = l.refuseForSpace(taken)
		if len(taken) == 0 {
			return
		}
		if l.releaseReserve() {
			receipts, err = l.write(taken)
		}
	}
	for i, w := range taken {
		if err != nil {
			w.reply <- answer{err: l.writeError(err)}
			continue
		}
		w.reply <- answer{Receipt: receipts[i]}
	}
}

// refuseForSpace answers those that may not use the reserve and returns the others.
func (l *Log) refuseForSpace(batch []*waiting) (kept []*waiting) {
	for _, w := range batch {
		if privileged(w.kind) || w.forced {
			kept = append(kept, w)
			continue
		}
		w.reply <- answer{err: problem(KindFull, trimRemedy, "the data disk is full")}
	}
	return kept
}

func (l *Log) writeError(err error) error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return problem(KindFull, trimRemedy, "the data disk is full")
	}
	return problem(KindDisk, diskRemedy, "the audit can't be written: %v", err)
}

// write puts the batch on the disk, beginning a new segment where the open one is full. After a failed write the file is as before;
// after a failed flush nobody knows, so the log takes nothing more.
func (l *Log) write(batch []*waiting) ([]Receipt, error) {
	if l.cur == nil || l.open().size >= l.opt.SegmentSize {
		if err := l.rotate(""); err != nil {
			return nil, err
		}
	}
	l.mu.Lock()
	at := chain{l.last, l.hash}
	l.mu.Unlock()
	var buf []byte
	receipts := make([]Receipt, len(batch))
	durable := at.seq
	for i, w := range batch {
		buf, at.hash = appendRecord(buf, at.seq+1, durable, at.hash, w.entry)
		at.seq++
		receipts[i] = Receipt{Seq: at.seq, Hash: at.hash}
	}
	if err := l.flush(l.cur, buf, l.open().size, false); err != nil {
		return nil, err
	}
	l.grown(at, int64(len(buf)))
	return receipts, nil
}

// open is the newest segment. l.wmu is held, so nobody else changes the list.
func (l *Log) open() segment {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.segments) == 0 {
		return segment{}
	}
	return l.segments[len(l.segments)-1]
}

func (l *Log) grown(at chain, n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &l.segments[len(l.segments)-1]
	s.size += n
	s.last, s.lastHash = at.seq, at.hash
	l.bytes += n
	l.last, l.hash = at.seq, at.hash
	close(l.more)
	l.more = make(chan struct{})
}

// flush writes b at off and makes it durable; with dir also the file's name.
func (l *Log) flush(f *os.File, b []byte, off int64, dir bool) error {
	if _, err := l.opt.write(f, b, off); err != nil {
		if terr := f.Truncate(off); terr != nil {
			return l.fail(fmt.Errorf("%w, and the half-written record can't be removed: %w", err, terr))
		}
		return err
	}
	err := f.Sync()
	if err == nil && dir {
		err = disk.SyncDir(l.dir)
	}
	if err != nil {
		return l.fail(err)
	}
	return nil
}

func (l *Log) fail(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed = problem(KindDisk, diskRemedy, "the disk failed while the audit was being written: %v", err)
	return l.failed
}

// rotate closes the open segment with a checkpoint and begins the next one with a record that names what went before. why is put into
// that record. l.wmu is held.
func (l *Log) rotate(why string) error {
	l.mu.Lock()
	at := chain{l.last, l.hash}
	l.mu.Unlock()
	if l.cur != nil {
		if err := l.checkpoint(); err != nil {
			return err
		}
	}
	detail := "the segment before is closed"
	if at.seq == 0 {
		detail = "the chain begins"
	}
	if why != "" {
		detail = why
	}
	e := policy.AuditEntry{Kind: policy.AuditContinue, Action: "audit.continue", Outcome: "ok", Detail: detail, Facts: map[string]string{"previous": at.hash}}
	if l.opt.Stamp != nil {
		now := time.Duration(0)
		e.At, now = l.opt.Stamp()
		e.BootTime = now.Milliseconds()
	}
	entry, err := encodeEntry(e)
	if err != nil {
		return err
	}
	buf, hash := appendRecord(nil, at.seq+1, at.seq, at.hash, entry)
	name := l.path(segmentName(at.seq + 1))
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return l.fail(err)
	}
	if err != nil {
		return err
	}
	if err := l.flush(f, buf, 0, true); err != nil {
		f.Close()
		os.Remove(name)
		return err
	}
	if l.cur != nil {
		l.cur.Close()
	}
	l.cur = f
	l.mu.Lock()
	l.segments = append(l.segments, segment{first: at.seq + 1, last: at.seq, prev: at.hash})
	l.mu.Unlock()
	l.grown(chain{at.seq + 1, hash}, int64(len(buf)))
	return nil
}
