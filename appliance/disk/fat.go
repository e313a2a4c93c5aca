package disk

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf16"
)

// FATFile is a file of a planned FAT32 file system. Path is absolute, with slashes; each name is printable ASCII of at most 255 bytes.
// SHA256 is of its content; it only makes volume ids differ.
type FATFile struct {
	Path   string
	Size   int64
	SHA256 [32]byte
}

// FAT is a FAT32 file system that is known in full before a byte of it is written: the names, sizes and order of the files decide where
// everything lies, and each file lies in one piece. The same plan gives the same bytes, so a slot that a node writes is the one that the
// image's builder would write. It is written whole and never changed; nothing here reads one.
//
// Limits: sectors of 512 bytes; at most 2 GiB (maxFAT); at most maxFATFiles files.
type FAT struct {
	size    int64
	cluster int64 // bytes
	fatSize int64 // bytes of one of the two tables
	data    int64 // offset of cluster 2
	total   uint32
	next    uint32 // first free cluster
	id      uint32
	epoch   int64
	root    *fatNode
	files   []*fatNode
	table   []uint32
}

type fatNode struct {
	name    string
	size    int64
	first   uint32 // 0 = no cluster
	count   uint32
	dir     bool
	entries []*fatNode
	parent  *fatNode
}

const (
	fatSector   = 512
	fatReserved = 32 * fatSector
	maxFAT      = int64(2) << 30
	minFAT      = int64(34) << 20 // FAT32 begins at 65525 clusters; firmware takes fewer for FAT16
	maxFATFiles = 64
	fatLabel    = "GUARDHOUSE "
)

// ErrFAT is a plan that can't be a FAT32 file system.
var ErrFAT = errors.New("not a possible FAT file system")

// PlanFAT lays the files out in a file system of size bytes. All times in it are epoch, in unix seconds.
func PlanFAT(size int64, files []FATFile, epoch int64) (*FAT, error) {
	if size < minFAT || size > maxFAT || size%fatSector != 0 || len(files) > maxFATFiles {
		return nil, fmt.Errorf("%w: %d bytes, %d files", ErrFAT, size, len(files))
	}
	f := &FAT{size: size, cluster: fatSector, epoch: epoch, root: &fatNode{dir: true}}
	for size/f.cluster > 1<<18 {
		f.cluster *= 2
	}
	clusters := (size - fatReserved) / f.cluster
	f.fatSize = (4*(clusters+2) + fatSector - 1) / fatSector * fatSector
	f.data = fatReserved + 2*f.fatSize
	f.data = (f.data + f.cluster - 1) / f.cluster * f.cluster
	reserved := f.data - 2*f.fatSize // alignment goes into the reserved sectors
	if reserved/fatSector > 0xffff {
		return nil, fmt.Errorf("%w: %d bytes", ErrFAT, size)
	}
	f.total = uint32((size - f.data) / f.cluster)
	id := sha256.New()
	for _, file := range files {
		if err := f.add(file); err != nil {
			return nil, fmt.Errorf("%s: %w", file.Path, err)
		}
		fmt.Fprintf(id, "%s\n%x\n", file.Path, file.SHA256)
	}
	f.id = binary.LittleEndian.Uint32(id.Sum(nil))
	f.table = []uint32{0x0ffffff8, 0x0fffffff}
	f.next = 2
	f.place(f.root)
	for _, n := range f.files {
		f.allot(n, n.size)
	}
	if f.next-2 > f.total {
		return nil, fmt.Errorf("%w: the files need %d clusters of %d bytes, there are %d", ErrFAT, f.next-2, f.cluster, f.total)
	}
	return f, nil
}

func (f *FAT) add(file FATFile) error {
	if !path.IsAbs(file.Path) || path.Clean(file.Path) != file.Path || file.Path == "/" || file.Size < 0 || file.Size > maxFAT {
		return fmt.Errorf("%w: the path must be absolute and clean", ErrFAT)
	}
	dir := f.root
	parts := strings.Split(file.Path[1:], "/")
	for i, name := range parts {
		if !fatName(name) {
			return fmt.Errorf("%w: name %.40q", ErrFAT, name)
		}
		at := slices.IndexFunc(dir.entries, func(n *fatNode) bool { return strings.EqualFold(n.name, name) })
		last := i == len(parts)-1
		switch {
		case at >= 0 && (last || !dir.entries[at].dir):
			return fmt.Errorf("%w: %.40q is there twice", ErrFAT, name)
		case at >= 0:
			dir = dir.entries[at]
			continue
		}
		n := &fatNode{name: name, dir: !last, parent: dir}
		dir.entries = append(dir.entries, n)
		if last {
			n.size = file.Size
			f.files = append(f.files, n)
		}
		dir = n
	}
	return nil
}

func fatName(s string) bool {
	if s == "" || len(s) > 255 || s == "." || s == ".." || strings.HasSuffix(s, ".") || strings.HasSuffix(s, " ") {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r > 0x7e || strings.ContainsRune(`"*/:<>?\|`, r) })
}

// place allots the folders, each before what is in it.
func (f *FAT) place(dir *fatNode) {
	n := 0
	for i, e := range dir.entries {
		_, long := shortName(e.name, i)
		n += 1 + long
	}
	f.allot(dir, int64(n+2)*32) // two more: "." and "..", or the label
	for _, e := range dir.entries {
		if e.dir {
			f.place(e)
		}
	}
}

func (f *FAT) allot(n *fatNode, size int64) {
	n.count = uint32((size + f.cluster - 1) / f.cluster)
	if n.count == 0 || int64(len(f.table))+int64(n.count) > int64(f.total)+2 {
		f.next += n.count // PlanFAT refuses a plan that went over
		return
	}
	n.first = f.next
	for i := uint32(1); i < n.count; i++ {
		f.table = append(f.table, f.next+i)
	}
	f.table = append(f.table, 0x0fffffff)
	f.next += n.count
}

func (f *FAT) offset(cluster uint32) int64 { return f.data + int64(cluster-2)*f.cluster }

// Offset tells where in the file system the bytes of the i-th file lie, in one piece.
func (f *FAT) Offset(i int) int64 {
	if f.files[i].first == 0 {
		return f.data
	}
	return f.offset(f.files[i].first)
}

// Piece is some bytes of a file system and where they lie.
type Piece struct {
	Offset int64
	Data   []byte
}

// Frame is everything but the files' contents and the boot sectors: tables and folders.
func (f *FAT) Frame() []Piece {
	table := make([]byte, f.fatSize)
	for i, v := range f.table {
		binary.LittleEndian.PutUint32(table[4*i:], v)
	}
	first := f.data - 2*f.fatSize
	pieces := []Piece{{first, table}, {first + f.fatSize, table}}
	return f.folder(f.root, pieces)
}

// Boot are the sectors that make the rest a file system; they are written last. Without them firmware sees none.
func (f *FAT) Boot() []Piece {
	b := make([]byte, fatSector)
	le := binary.LittleEndian
	copy(b, []byte{0xeb, 0x58, 0x90})
	copy(b[3:], "MSWIN4.1") // what the FAT specification advises for the widest understanding
	le.PutUint16(b[11:], fatSector)
	b[13] = byte(f.cluster / fatSector)
	le.PutUint16(b[14:], uint16((f.data-2*f.fatSize)/fatSector))
	b[16] = 2
	b[21] = 0xf8
	le.PutUint16(b[24:], 32)
	le.PutUint16(b[26:], 64)
	le.PutUint32(b[32:], uint32(f.size/fatSector))
	le.PutUint32(b[36:], uint32(f.fatSize/fatSector))
	le.PutUint32(b[44:], f.root.first)
	le.PutUint16(b[48:], 1)
	le.PutUint16(b[50:], 6)
	b[64], b[66] = 0x80, 0x29
	le.PutUint32(b[67:], f.id)
	copy(b[71:], fatLabel)
	copy(b[82:], "FAT32   ")
	le.PutUint16(b[510:], 0xaa55)
	info := make([]byte, fatSector)
	le.PutUint32(info, 0x41615252)
	le.PutUint32(info[484:], 0x61417272)
	le.PutUint32(info[488:], f.total-(f.next-2))
	le.PutUint32(info[492:], f.next)
	le.PutUint32(info[508:], 0xaa550000)
	both := slices.Concat(b, info)
	return []Piece{{6 * fatSector, both}, {0, both}}
}

// NoBoot is Boot's opposite: with these sectors there is no file system.
func (f *FAT) NoBoot() []Piece {
	none := make([]byte, 2*fatSector)
	return []Piece{{0, none}, {6 * fatSector, none}}
}

func (f *FAT) folder(dir *fatNode, pieces []Piece) []Piece {
	b := make([]byte, 0, int64(dir.count)*f.cluster)
	if dir.parent == nil {
		b = f.entry(b, [11]byte([]byte(fatLabel)), 0x08, 0, 0)
	} else {
		b = f.entry(b, [11]byte([]byte(".          ")), 0x10, dir.first, 0)
		up := dir.parent.first
		if dir.parent.parent == nil {
			up = 0 // the root is written as 0 there
		}
		b = f.entry(b, [11]byte([]byte("..         ")), 0x10, up, 0)
	}
	for i, e := range dir.entries {
		short, long := shortName(e.name, i)
		if long > 0 {
			b = longName(b, e.name, short, long)
		}
		attr, size := byte(0x20), e.size
		if e.dir {
			attr, size = 0x10, 0
		}
		b = f.entry(b, short, attr, e.first, size)
	}
	pieces = append(pieces, Piece{f.offset(dir.first), b[:cap(b)]})
	for _, e := range dir.entries {
		if e.dir {
			pieces = f.folder(e, pieces)
		}
	}
	return pieces
}

func (f *FAT) entry(b []byte, name [11]byte, attr byte, first uint32, size int64) []byte {
	t := time.Unix(f.epoch, 0).UTC()
	if t.Year() < 1980 || t.Year() > 2107 {
		t = time.Unix(315532800, 0).UTC() // what FAT's years can't hold becomes its first day
	}
	date := uint16(t.Year()-1980)<<9 | uint16(t.Month())<<5 | uint16(t.Day())
	clock := uint16(t.Hour())<<11 | uint16(t.Minute())<<5 | uint16(t.Second()/2)
	le := binary.LittleEndian
	e := make([]byte, 32)
	copy(e, name[:])
	e[11] = attr
	le.PutUint16(e[14:], clock)
	le.PutUint16(e[16:], date)
	le.PutUint16(e[18:], date)
	le.PutUint16(e[20:], uint16(first>>16))
	le.PutUint16(e[22:], clock)
	le.PutUint16(e[24:], date)
	le.PutUint16(e[26:], uint16(first))
	le.PutUint32(e[28:], uint32(size))
	return append(b, e...)
}

// shortName is the 8.3 name of the i-th entry of a folder, and how many entries its long name takes; 0 where it needs none.
func shortName(name string, i int) (short [11]byte, long int) {
	const plain = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
	base, ext, _ := strings.Cut(name, ".")
	fits := base != "" && len(base) <= 8 && len(ext) <= 3 && strings.Trim(base, plain) == "" && strings.Trim(ext, plain) == ""
	for j := range short {
		short[j] = ' '
	}
	if fits {
		copy(short[:8], base)
		copy(short[8:], ext)
		return short, 0
	}
	copy(short[:], fmt.Sprintf("GH%04d~1", i)) // unique in its folder; nobody types it
	return short, (len(name) + 12) / 13
}

// longName writes the entries before the short one, last part first.
func longName(b []byte, name string, short [11]byte, n int) []byte {
	var sum byte
	for _, c := range short {
		sum = sum>>1 | sum<<7
		sum += c
	}
	text := utf16.Encode([]rune(name))
	for i := n; i >= 1; i-- {
		e := make([]byte, 32)
		e[0], e[11], e[13] = byte(i), 0x0f, sum
		if i == n {
			e[0] |= 0x40
		}
		for j := range 13 {
			c, at := uint16(0xffff), (i-1)*13+j
			if at < len(text) {
				c = text[at]
			} else if at == len(text) {
				c = 0
			}
			binary.LittleEndian.PutUint16(e[longAt[j]:], c)
		}
		b = append(b, e...)
	}
	return b
}

// longAt is where the 13 characters of an entry of a long name lie in it.
var longAt = [13]int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30}

// Write writes the whole file system: contents[i] are the bytes of the i-th file, exactly as many as planned.
func (f *FAT) Write(w io.WriterAt, contents [][]byte) error {
	if len(contents) != len(f.files) {
		return fmt.Errorf("%w: %d contents for %d files", ErrFAT, len(contents), len(f.files))
	}
	pieces := f.Frame()
	for i, c := range contents {
		if int64(len(c)) != f.files[i].size {
			return fmt.Errorf("%w: file %d has %d bytes, %d were planned", ErrFAT, i, len(c), f.files[i].size)
		}
		pieces = append(pieces, Piece{f.Offset(i), c})
	}
	return WritePieces(w, append(pieces, f.Boot()...))
}

// WritePieces writes each piece in its place.
func WritePieces(w io.WriterAt, pieces []Piece) error {
	for _, p := range pieces {
		if _, err := w.WriteAt(p.Data, p.Offset); err != nil {
			return err
		}
	}
	return nil
}
