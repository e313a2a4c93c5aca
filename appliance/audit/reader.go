package audit

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
)

// Reader reads the chain from a place on, beside everything else: it holds no lock while it reads, so nobody who appends waits for it.
// For one goroutine.
type Reader struct {
	l    *Log
	at   uint64 // number of the next record
	file uint64 // first record of the segment that offset belongs to
	off  int64  // where record at begins in it
}

// NewReader reads the records after number after.
func (l *Log) NewReader(after uint64) *Reader { return &Reader{l: l, at: after + 1} }

// At is the number of the record before the next one.
func (r *Reader) At() uint64 { return r.at - 1 }

// Next gives at most n durable records, about size bytes of them at most but at least one. skipped counts numbers in between that are
// not there any more (trimmed) or can't be read. Where there is nothing yet, more is closed as soon as there is.
func (r *Reader) Next(n, size int) (records []Record, skipped uint64, more <-chan struct{}, err error) {
	for {
		r.l.mu.Lock()
		segments, last, grown := slices.Clone(r.l.segments), r.l.last, r.l.more
		r.l.mu.Unlock()
		if r.at > last {
			r.at = min(r.at, last+1) // a chain that began anew
			return nil, skipped, grown, nil
		}
		i, _ := slices.BinarySearchFunc(segments, r.at, func(s segment, at uint64) int {
			if s.last < at {
				return -1
			}
			return 1
		})
		if i == len(segments) { // all of it was trimmed
			skipped += last + 1 - r.at
			r.at = last + 1
			continue
		}
		s := segments[i]
		if s.first > r.at {
			skipped += s.first - r.at
			r.at = s.first
		}
		records, missed, err := r.read(s, n, size)
		skipped += missed
		if errors.Is(err, fs.ErrNotExist) { // trimmed since the list was made
			skipped += s.last + 1 - r.at
			r.at = s.last + 1
			continue
		}
		if len(records) > 0 || err != nil {
			return records, skipped, nil, err
		}
	}
}

// read gives records of one segment and moves on behind them.
func (r *Reader) read(s segment, n, size int) (records []Record, missed uint64, err error) {
	if r.file != s.first {
		r.file, r.off = s.first, 0
	}
	f, err := os.Open(r.l.path(segmentName(s.first)))
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	br := bufio.NewReaderSize(io.NewSectionReader(f, r.off, s.size-r.off), maxRecord)
	for len(records) < n && size > 0 {
		b, err := br.ReadSlice('\n')
		r.off += int64(len(b))
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err == io.EOF { // whatever is left of this segment can't be read
			if r.at <= s.last {
				missed += s.last + 1 - r.at
				r.at = s.last + 1
			}
			return records, missed, nil
		}
		if err != nil {
			return records, missed, err
		}
		l, perr := parseLine(bytes.TrimSuffix(b, []byte("\n")))
		if perr != nil || l.seq < r.at || l.seq > s.last {
			continue
		}
		rec, perr := l.record()
		if perr != nil {
			continue
		}
		missed += l.seq - r.at
		r.at = l.seq + 1
		size -= len(b)
		records = append(records, rec)
	}
	return records, missed, nil
}
