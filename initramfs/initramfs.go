// Package initramfs is the list of what is inside the image and the packer
// that turns it into an archive for the kernel.
//
// Promise: the same entries give the same bytes, whatever the order in which
// they were added, the folder, the clock or the user that built them; owners
// are root, times are zero, parents come before children, the root directory
// is mode 0755 (a closed root locks every unprivileged service out). A
// script or a well known interpreter is refused: nothing in the image can be
// talked into running text.
//
// Limits: entries are held in memory (the product's archive is about 60 MB).
// Hard links, owners other than root and extended attributes do not exist.
package initramfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/mkuimage/cpio"
)

// Kind says what an Entry becomes.
type Kind uint8

// The kinds of entries.
const (
	File Kind = iota
	Dir
	Link
	CharDevice
)

// Entry is one path in the image.
type Entry struct {
	Path   string // absolute and clean, for instance "/bin/hgs"
	Kind   Kind
	Perm   uint32 // permission bits, octal 0755 and the like
	Data   []byte // File only
	Target string // Link only
	Major  uint32 // CharDevice only
	Minor  uint32 // CharDevice only
	// Origin says where the bytes came from, for the manifest and the licence
	// notice: "go ./cmd/hgs", "file /usr/lib/..", "kernel", "made".
	Origin string
}

// Errors of List.Add; both are wrapped with the path.
var (
	ErrConflict    = errors.New("two different things at one path")
	ErrInterpreter = errors.New("scripts and interpreters are not allowed in the image")
)

// interpreters are names that must never appear in the image, whatever their
// folder. The list is a tripwire, not a proof.
var interpreters = []string{"sh", "bash", "dash", "busybox", "python", "python3", "perl", "lua", "awk", "tclsh", "modprobe"}

// List is the contents of one image. The zero value is empty and usable. Not
// safe for concurrent use.
type List struct{ byPath map[string]Entry }

// Add puts e and its missing parent directories (0755) into the list. Adding
// the same thing twice is fine.
func (l *List) Add(e Entry) error {
	if !path.IsAbs(e.Path) || path.Clean(e.Path) != e.Path || strings.ContainsAny(e.Path, "\x00\n") {
		return fmt.Errorf("image path %q: must be absolute and clean", e.Path)
	}
	if e.Path == "/"+cpio.Trailer {
		return fmt.Errorf("image path %q: reserved by the archive format", e.Path)
	}
	if slices.Contains(interpreters, path.Base(e.Path)) && e.Kind != Dir {
		return fmt.Errorf("%s: %w", e.Path, ErrInterpreter)
	}
	if e.Kind == File && e.Perm&0o111 != 0 && bytes.HasPrefix(e.Data, []byte("#!")) {
		return fmt.Errorf("%s: %w", e.Path, ErrInterpreter)
	}
	if e.Perm&^0o1777 != 0 {
		return fmt.Errorf("%s: mode %o: set-id bits are not allowed", e.Path, e.Perm)
	}
	if l.byPath == nil {
		l.byPath = map[string]Entry{}
	}
	if old, ok := l.byPath[e.Path]; ok {
		if !same(old, e) {
			return fmt.Errorf("%s: %w (%s and %s)", e.Path, ErrConflict, old.Origin, e.Origin)
		}
		return nil
	}
	if e.Path != "/" {
		if err := l.addParent(path.Dir(e.Path)); err != nil {
			return err
		}
	}
	l.byPath[e.Path] = e
	return nil
}

func (l *List) addParent(dir string) error {
	if old, ok := l.byPath[dir]; ok {
		if old.Kind != Dir {
			return fmt.Errorf("%s: %w: used as a folder", dir, ErrConflict)
		}
		return nil
	}
	return l.Add(Entry{Path: dir, Kind: Dir, Perm: 0o755, Origin: "made"})
}

func same(a, b Entry) bool {
	return a.Kind == b.Kind && a.Perm == b.Perm && a.Target == b.Target && a.Major == b.Major && a.Minor == b.Minor && bytes.Equal(a.Data, b.Data)
}

// AddFile reads a file of the workstation (following links) into the image.
func (l *List) AddFile(at, from string, perm uint32) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("contents of %s: %w", at, err)
	}
	return l.Add(Entry{Path: at, Kind: File, Perm: perm, Data: data, Origin: "file " + from})
}

// Entries returns the contents sorted by path; parents precede children.
func (l *List) Entries() []Entry {
	out := make([]Entry, 0, len(l.byPath))
	for _, e := range l.byPath {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
	return out
}

// WriteCPIO writes the list as a newc archive, the format of the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst.
func (l *List) WriteCPIO(w io.Writer) error {
	var records []cpio.Record
	for _, e := range l.Entries() {
		r, err := record(e)
		if err != nil {
			return err
		}
		records = append(records, r)
	}
	cpio.MakeAllReproducible(records)
	for i := range records {
		records[i].NLink = 1 // the kernel looks for hard links when it is 2 or more
	}
	out := cpio.Newc.Writer(w)
	if err := cpio.WriteRecords(out, records); err != nil {
		return fmt.Errorf("archive: %w", err)
	}
	return cpio.WriteTrailer(out)
}

func record(e Entry) (cpio.Record, error) {
	name := strings.TrimPrefix(e.Path, "/")
	if name == "" {
		name = "."
	}
	switch e.Kind {
	case Dir:
		return cpio.Directory(name, uint64(e.Perm)), nil
	case Link:
		return cpio.Symlink(name, e.Target), nil
	case CharDevice:
		return cpio.CharDev(name, uint64(e.Perm), uint64(e.Major), uint64(e.Minor)), nil
	case File:
		return cpio.StaticRecord(e.Data, cpio.Info{Name: name, Mode: cpio.S_IFREG | uint64(e.Perm)}), nil
	}
	return cpio.Record{}, fmt.Errorf("%s: unknown kind %d", e.Path, e.Kind)
}

// CompressorID names the compressor and its settings; a cache key must hold
// it, because other settings give other bytes.
const CompressorID = "klauspost-zstd best window 8MiB single"

// Compress writes src as one zstd frame that the kernel's decompressor takes
// (it refuses windows above 128 MiB). One goroutine only: the split into
// blocks must not depend on the number of processors.
func Compress(dst io.Writer, src io.Reader) error {
	z, err := zstd.NewWriter(dst, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(8<<20))
	if err != nil {
		return fmt.Errorf("compressor: %w", err)
	}
	if _, err := io.Copy(z, src); err != nil {
		z.Close()
		return fmt.Errorf("compress: %w", err)
	}
	return z.Close()
}
