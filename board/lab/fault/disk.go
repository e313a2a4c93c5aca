// Package fault makes disks that lose power the way real ones do. A [Disk] keeps what was written since the last
// flush in memory only; a cut drops a seeded subset of it, tears one write at a sector boundary and refuses all
// later I/O. Two fronts expose it: NBD for QEMU ([ServeNBD]) and a mounted ext4 file system for native programs
// ([Volume]).
//
// Promise: what was covered by a completed flush, or written with FUA, survives every cut; the same sequence of
// calls and the same seed lose the same bytes. When the process that holds the disk dies, everything held is lost,
// which is one more legal power cut.
//
// Limits: sectors of 512 bytes are atomic. Held writes are bounded by MaxHeld; beyond it the oldest become durable,
// as a real cache writes back. The image file itself is trusted and never synced: the workstation's own power is not
// part of the experiment. Not modelled: bit rot, misdirected writes, lying flushes.
package fault

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
)

// Sector is the size that a power cut never splits.
const Sector = 512

// MaxHeld is how many bytes of writes are held before the oldest are written back.
const MaxHeld = 128 << 20

// Errors of a disk.
var (
	// ErrCut is what every call gets between a cut and PowerOn.
	ErrCut = errors.New("the disk has no power")
	// ErrRange is an access beyond the end of the disk.
	ErrRange = errors.New("access beyond the end of the disk")
)

// Disk is an image file behind a volatile write cache. Its methods may be called at any time by any goroutine; each
// is atomic to the others.
type Disk struct {
	mu     sync.Mutex
	file   *os.File
	size   int64
	held   []*write         // since the last flush, oldest first
	newest map[int64]*write // sector number -> the held write that a read must see
	bytes  int64            // in held
	cut    bool
	stats  Stats
	inject func(Op) error
}

// write is one held write of whole sectors; data nil stands for zeros.
type write struct {
	first, count int64 // sectors
	data         []byte
	durable      bool // written with FUA: in the file already, kept here for the order
}

// Op is what an injected fault sees: the kind ("read", "write", "flush"), and the range in bytes.
type Op struct {
	Kind        string
	Offset, Len int64
}

// Stats counts what a disk did since it was opened.
type Stats struct {
	Reads, Writes, Flushes, FUA int64
	HeldWrites, HeldBytes       int64 // now
	Cuts, Dropped, Torn         int64
}

// Report tells what one cut did, in writes.
type Report struct {
	Seed    uint64 `json:"seed"`
	Held    int    `json:"held"`    // held when the power went
	Kept    int    `json:"kept"`    // of these reached the disk whole
	Dropped int    `json:"dropped"` // of these are lost whole
	Torn    int    `json:"torn"`    // of these are there in part: 0 or 1
	TornAt  int64  `json:"torn_at"` // byte offset of the tear on the disk; -1 without one
}

// Open opens the image at path, making it with size bytes when absent. An existing image keeps its own size, which
// must be a multiple of the sector.
func Open(path string, size int64) (*Disk, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("fault disk: %w", err)
	}
	st, err := f.Stat()
	if err == nil && st.Size() == 0 {
		err = f.Truncate(size)
	} else if err == nil {
		size = st.Size()
	}
	if err == nil && (size <= 0 || size%Sector != 0) {
		err = fmt.Errorf("size %d is not a multiple of %d", size, Sector)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("fault disk: %w", err)
	}
	return &Disk{file: f, size: size, newest: map[int64]*write{}}, nil
}

// Size is the disk's size in bytes.
func (d *Disk) Size() int64 { return d.size }

// Stats returns the counters.
func (d *Disk) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.stats
	s.HeldWrites, s.HeldBytes = int64(len(d.held)), d.bytes
	return s
}

// Inject makes every later operation ask f first; an error of f is the operation's. f runs under the disk's lock and
// must not call the disk. nil removes it.
func (d *Disk) Inject(f func(Op) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.inject = f
}

// begin checks an operation; the lock is held.
func (d *Disk) begin(kind string, off, n int64) error {
	if d.cut {
		return ErrCut
	}
	if off < 0 || n < 0 || off > d.size || n > d.size-off {
		return ErrRange
	}
	if d.inject != nil {
		return d.inject(Op{Kind: kind, Offset: off, Len: n})
	}
	return nil
}

// ReadAt reads what was written last, held or not. It is an [io.ReaderAt] but for a read over the end, which gives
// ErrRange and no bytes.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.begin("read", off, int64(len(p))); err != nil {
		return 0, err
	}
	d.stats.Reads++
	if err := d.read(p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (d *Disk) read(p []byte, off int64) error {
	if _, err := d.file.ReadAt(p, off); err != nil && err != io.EOF {
		return err
	}
	if len(d.newest) == 0 {
		return nil
	}
	for at := off; at < off+int64(len(p)); {
		sector, skip := at/Sector, at%Sector
		n := min(Sector-skip, off+int64(len(p))-at)
		if w := d.newest[sector]; w != nil {
			dst := p[at-off : at-off+n]
			if w.data == nil {
				clear(dst)
			} else {
				copy(dst, w.data[(sector-w.first)*Sector+skip:])
			}
		}
		at += n
	}
	return nil
}

// WriteAt is Write without FUA.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.Write(p, off, false); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Write writes p, of any alignment; with fua it is durable when Write returns, otherwise after the next Flush.
func (d *Disk) Write(p []byte, off int64, fua bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.begin("write", off, int64(len(p))); err != nil || len(p) == 0 {
		return err
	}
	// Widen to whole sectors: a disk cannot write less.
	first, end := off/Sector, (off+int64(len(p))+Sector-1)/Sector
	data := make([]byte, (end-first)*Sector)
	if len(data) != len(p) {
		if err := d.read(data, first*Sector); err != nil {
			return err
		}
	}
	copy(data[off-first*Sector:], p)
	return d.hold(&write{first: first, count: end - first, data: data}, fua)
}

// WriteZeroes writes n zero bytes at off, both multiples of the sector, without needing their memory.
func (d *Disk) WriteZeroes(off, n int64, fua bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.begin("write", off, n); err != nil || n == 0 {
		return err
	}
	if off%Sector != 0 || n%Sector != 0 {
		return fmt.Errorf("zeroes of unaligned range %d+%d", off, n)
	}
	return d.hold(&write{first: off / Sector, count: n / Sector}, fua)
}

func (d *Disk) hold(w *write, fua bool) error {
	d.stats.Writes++
	if fua {
		d.stats.FUA++
		w.durable = true
		if err := d.store(w, 0, w.count); err != nil {
			return err
		}
	}
	d.held = append(d.held, w)
	d.bytes += int64(len(w.data))
	for s := w.first; s < w.first+w.count; s++ {
		d.newest[s] = w
	}
	for d.bytes > MaxHeld {
		if err := d.destage(); err != nil {
			return err
		}
	}
	return nil
}

// destage makes the oldest held write durable.
func (d *Disk) destage() error {
	w := d.held[0]
	if err := d.store(w, 0, w.count); err != nil {
		return err
	}
	d.held[0] = nil
	d.held = d.held[1:]
	d.bytes -= int64(len(w.data))
	for s := w.first; s < w.first+w.count; s++ {
		if d.newest[s] == w {
			delete(d.newest, s)
		}
	}
	return nil
}

// store writes sectors [from, to) of w to the file.
func (d *Disk) store(w *write, from, to int64) error {
	if w.data != nil {
		_, err := d.file.WriteAt(w.data[from*Sector:to*Sector], (w.first+from)*Sector)
		return err
	}
	zeros := make([]byte, 64<<10)
	for at, end := (w.first+from)*Sector, (w.first+to)*Sector; at < end; {
		n := min(int64(len(zeros)), end-at)
		if _, err := d.file.WriteAt(zeros[:n], at); err != nil {
			return err
		}
		at += n
	}
	return nil
}

// Flush makes every earlier write durable.
func (d *Disk) Flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.begin("flush", 0, 0); err != nil {
		return err
	}
	d.stats.Flushes++
	for _, w := range d.held {
		if err := d.store(w, 0, w.count); err != nil {
			return err
		}
	}
	d.forget()
	return nil
}

func (d *Disk) forget() {
	d.held, d.bytes = nil, 0
	clear(d.newest)
}

// Cut takes the power away. Of the held writes some reach the disk, in their order, and some do not; one that is
// longer than a sector is torn. How many get lost varies by seed from none to all. Until PowerOn every call but
// Stats, Size and Close gives ErrCut. Cutting a cut disk does nothing.
func (d *Disk) Cut(seed uint64) Report {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := Report{Seed: seed, TornAt: -1}
	if d.cut {
		return r
	}
	d.cut = true
	rnd := rand.New(rand.NewPCG(seed, 0x67756172645f6873))
	var volatile, long []int
	for i, w := range d.held {
		if !w.durable {
			volatile = append(volatile, i)
			if w.count > 1 {
				long = append(long, i)
			}
		}
	}
	r.Held = len(volatile)
	// Two shapes of loss: everything after a moment, or any subset with a probability of its own.
	keep := make(map[int]bool, len(volatile))
	if p := rnd.Float64()*1.2 - 0.1; rnd.IntN(4) == 0 {
		upTo := rnd.IntN(len(volatile) + 1)
		for _, i := range volatile[:upTo] {
			keep[i] = true
		}
	} else {
		for _, i := range volatile {
			keep[i] = rnd.Float64() < p
		}
	}
	torn := -1
	if len(long) > 0 {
		torn = long[rnd.IntN(len(long))]
	}
	for i, w := range d.held {
		from, to := int64(0), w.count
		switch {
		case w.durable: // again, since an older write below it may just have been stored
		case i == torn:
			at := 1 + rnd.Int64N(w.count-1)
			if rnd.IntN(2) == 0 {
				to = at
			} else {
				from = at
			}
			r.Torn, r.TornAt = 1, (w.first+at)*Sector
		case keep[i]:
			r.Kept++
		default:
			r.Dropped++
			continue
		}
		// The image is trusted: a failure to write it shows as a lost write, which is legal here.
		_ = d.store(w, from, to)
	}
	d.forget()
	d.stats.Cuts++
	d.stats.Dropped += int64(r.Dropped)
	d.stats.Torn += int64(r.Torn)
	return r
}

// PowerOn makes a cut disk usable again.
func (d *Disk) PowerOn() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cut = false
}

// Close closes the image. What is held is lost, without a tear.
func (d *Disk) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cut = true
	d.forget()
	return d.file.Close()
}
