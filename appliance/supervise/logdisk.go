package supervise

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"guardhouse/appliance/rpc"
)

// On disk, each boot has a folder NNNNNNNN-BOOTID with segments NNNNNN.log, lines of "milliseconds source text", and last-SOURCE.txt.
// The segment size is a sixteenth of the limit; this boot keeps seven, each of two earlier boots four: fifteen sixteenths, the rest is
// for last words.
const (
	MaxLog       = 64 << 20
	keptSegments = 7
	oldSegments  = 4
	earlierBoots = 2
	flushEvery   = 500 * time.Millisecond
	syncEvery    = 5 * time.Second // the most that a power cut takes
)

type logDisk struct {
	dir     string // of this boot
	root    string
	segment int64 // bytes

	mu      sync.Mutex
	file    *os.File
	w       *bufio.Writer
	number  int
	written int64
	failed  error // the latest write error; nil once a write works again
	lost    uint64
}

// OpenDisk starts to keep the log below dir (made if missing), the lines of the memory first. limit is the most bytes that all boots
// together may take; boot is the boot id. Writing happens in a goroutine until Close.
func (l *Log) OpenDisk(dir, boot string, limit int64) error {
	boots, err := bootDirs(dir)
	if err != nil {
		return fmt.Errorf("open the log folder: %w", err)
	}
	seq := 1
	if len(boots) > 0 {
		seq = boots[len(boots)-1].seq + 1
	}
	d := &logDisk{root: dir, dir: filepath.Join(dir, fmt.Sprintf("%08d-%s", seq, boot)), segment: max(min(limit, MaxLog)/16, 16<<10)}
	for i, b := range boots {
		if i < len(boots)-earlierBoots {
			err = errors.Join(err, os.RemoveAll(b.path))
		} else {
			err = errors.Join(err, trimSegments(b.path, oldSegments))
		}
	}
	if err = errors.Join(err, os.MkdirAll(d.dir, 0o700), d.rotate()); err != nil {
		return fmt.Errorf("open the log folder: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.disk != nil {
		d.file.Close()
		return errors.New("the log is on a disk already")
	}
	l.disk = d
	l.flushed = make(chan struct{})
	go l.drain(d, l.flushed)
	return nil
}

// drain writes new entries in batches. What falls out of the memory before it was written is counted as lost.
func (l *Log) drain(d *logDisk, done chan struct{}) {
	defer close(done)
	var next uint64
	var synced time.Time
	dirty := false
	for {
		entries, changed := l.since(next)
		if len(entries) > 0 {
			dirty = true
			d.mu.Lock()
			d.lost += entries[0].seq - next
			d.write(entries)
			d.mu.Unlock()
			next = entries[len(entries)-1].seq + 1
		}
		if dirty && time.Since(synced) > syncEvery {
			d.file.Sync() // only this goroutine replaces the file
			synced, dirty = time.Now(), false
		}
		l.mu.Lock()
		over := l.disk != d && next >= l.next
		l.mu.Unlock()
		if over {
			return
		}
		select {
		case <-changed:
			time.Sleep(flushEvery / 10) // gather a batch
		case <-time.After(flushEvery):
		}
	}
}

// write needs d.mu.
func (d *logDisk) write(entries []entry) {
	for _, e := range entries {
		n, err := fmt.Fprintf(d.w, "%d %s %s\n", e.line.BootTime.Milliseconds(), e.line.Service, e.line.Text)
		d.written += int64(n)
		if err != nil {
			d.lost++
		}
		if d.written >= d.segment {
			if err := d.rotate(); err != nil {
				d.failed = err
				return
			}
		}
	}
	err := d.w.Flush()
	if err != nil {
		d.w.Reset(d.file) // a bufio.Writer stays broken otherwise
	}
	d.failed = err
}

// rotate needs d.mu (or to be alone). The old segment stays in use where a new one can't be made.
func (d *logDisk) rotate() error {
	f, err := os.OpenFile(filepath.Join(d.dir, fmt.Sprintf("%06d.log", d.number+1)), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		d.written = 0
		return err
	}
	if d.file != nil {
		err = errors.Join(d.w.Flush(), d.file.Close())
	}
	d.file, d.w, d.written = f, bufio.NewWriterSize(f, 64<<10), 0
	d.number++
	return errors.Join(err, trimSegments(d.dir, keptSegments))
}

func (d *logDisk) lastWords(name string, words []rpc.LogLine) {
	var b strings.Builder
	for _, w := range words {
		text := w.Text
		if len(text) > 512 {
			text = strings.ToValidUTF8(text[:512], "") + "..."
		}
		fmt.Fprintf(&b, "%d %s %s\n", w.BootTime.Milliseconds(), w.Service, text)
	}
	path := filepath.Join(d.dir, "last-"+filepath.Base(name)+".txt")
	d.mu.Lock()
	defer d.mu.Unlock()
	err := os.WriteFile(path+".new", []byte(b.String()), 0o600)
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		d.failed = err
	}
}

// CloseDisk writes what is left, makes it durable and stops writing. ctx bounds the wait.
func (l *Log) CloseDisk(ctx context.Context) {
	l.mu.Lock()
	d, done := l.disk, l.flushed
	l.disk = nil
	l.mu.Unlock()
	if d == nil {
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.w.Flush()
	d.file.Sync()
	d.file.Close()
}

// DiskProblem says why lines don't reach the disk, and how many were lost in this boot; "" where all is well.
func (l *Log) DiskProblem() string {
	l.mu.Lock()
	d := l.disk
	l.mu.Unlock()
	if d == nil {
		return ""
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failed == nil {
		return ""
	}
	return fmt.Sprintf("log lines don't reach the disk: %v (%d lost)", d.failed, d.lost)
}

type bootDir struct {
	seq  int
	path string
}

// bootDirs lists the boots below dir, oldest first, and makes dir.
func bootDirs(dir string) ([]bootDir, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var boots []bootDir
	for _, e := range list {
		n, _, ok := strings.Cut(e.Name(), "-")
		if seq, err := strconv.Atoi(n); ok && err == nil && e.IsDir() {
			boots = append(boots, bootDir{seq, filepath.Join(dir, e.Name())})
		}
	}
	slices.SortFunc(boots, func(a, b bootDir) int { return cmp.Compare(a.seq, b.seq) })
	return boots, nil
}

func segments(dir string) []string {
	list, _ := filepath.Glob(filepath.Join(dir, "*.log")) // sorted, numbers have a fixed width
	return list
}

func trimSegments(dir string, keep int) error {
	list := segments(dir)
	var err error
	for _, f := range list[:max(0, len(list)-keep)] {
		if rerr := os.Remove(f); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}
