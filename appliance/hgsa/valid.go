package hgsa

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"math/bits"
	"slices"
	"sync"
)

// list is a plain list of numbers (see plainList), found while the syntax of a
// body was checked, with the bytes it stands for.
type list struct {
	at, end int    // of its brackets
	bytes   []byte // nil if one of its numbers is no byte
}

// check is json.Valid, made fast for what makes bodies long: lists of small
// numbers, which is how the genuine serializer writes bytes. Such a list is
// checked and read here, once, and stands as [0] in what json.Valid gets to see.
// That changes nothing: outside of strings one list of numbers is as good as
// another. The lists come in their order; together they are smaller than body.
func check(body []byte) (lists []list, ok bool) {
	work := workspaces.Get().(*workspace)
	defer workspaces.Put(work)
	skeleton := work.skeleton[:0]
	from := 0
	for i := 0; i < len(body); {
		switch body[i] {
		case '"':
			for i++; i < len(body) && body[i] != '"'; i++ {
				if body[i] == '\\' {
					i++
				}
			}
			i++
		case '[':
			var end int
			var fits bool
			if work.numbers, end, fits = plainList(work.numbers[:0], body, i); end == 0 {
				i++
				continue
			}
			l := list{at: i, end: end}
			if fits {
				l.bytes = bytes.Clone(work.numbers)
			}
			lists = append(lists, l)
			skeleton = append(append(skeleton, body[from:i]...), "[0]"...)
			i = end + 1
			from = i
		default:
			i++
		}
	}
	if from == 0 {
		return nil, json.Valid(body)
	}
	skeleton = append(skeleton, body[from:]...)
	work.skeleton = skeleton
	return lists, json.Valid(skeleton)
}

// workspace is memory that check uses and nobody keeps.
type workspace struct{ numbers, skeleton []byte }

var workspaces = sync.Pool{New: func() any { return &workspace{numbers: make([]byte, 0, 64<<10)} }}

// plainList reads the list whose bracket is b[i], if it has elements and all are
// numbers of one to three digits, without sign and white space. end is the index
// of the bracket that ends it, 0 if it is no such list; fits is whether all of
// its numbers are bytes, which are then appended to out.
func plainList(out, b []byte, i int) (numbers []byte, end int, fits bool) {
	most := uint16(0)
	i++
	for base := i; ; base += 64 {
		if base+64+4 > len(b) {
			return plainTail(out, b, i, most <= 255)
		}
		// Boot logs are long, and their numbers have one to three digits in no order that a processor could guess: so first find all ends
		// of numbers in 64 bytes, then read each by the same steps.
		out = slices.Grow(out, 32) // 64 bytes hold at most so many numbers
		room := out[len(out) : len(out)+32 : len(out)+32]
		have := 0
		for ends := notDigits(b[base : base+64]); ends != 0; ends &= ends - 1 {
			at := base + bits.TrailingZeros64(ends)
			w := binary.LittleEndian.Uint32(b[i:]) // at most the four bytes after these 64: see above
			number := threeChars[w&0xf|w>>4&0xf0|w>>8&0xf00]
			if number == 0 || int(number>>12) != at-i {
				return out, 0, false
			}
			v := number & 0xfff
			most = max(most, v)
			room[have&31] = byte(v)
			have++
			i = at + 1
			if c := b[at]; c != ',' {
				if c != ']' {
					return out, 0, false
				}
				return out[:len(out)+have], at, most <= 255
			}
		}
		out = out[:len(out)+have]
	}
}

// threeChars is what begins with three characters, each by its lower four bits: the
// digits of a number up to the first that is none (a comma has 12 there, a
// bracket 13) in the upper four bits, the number in the others. It is 0 for what
// no number begins with. Whether the characters are digits at all it does not say.
var threeChars = func() (t [4096]uint16) {
	for n := range 10 {
		for _, end := range []int{12, 13} {
			for any := range 16 {
				t[n|end<<4|any<<8] = uint16(1<<12 | n)
			}
			if n > 0 {
				for m := range 10 {
					t[n|m<<4|end<<8] = uint16(2<<12 | 10*n + m)
				}
			}
		}
		for m := range 100 {
			if n > 0 {
				t[n|m/10<<4|m%10<<8] = uint16(3<<12 | 100*n + m)
			}
		}
	}
	return t
}()

// notDigits has a bit for each of 64 bytes that is not 0 to 9.
func notDigits(b []byte) (set uint64) {
	for k := range 8 {
		x := binary.LittleEndian.Uint64(b[8*k:]) ^ 0x3030303030303030
		high := (x&0x7f7f7f7f7f7f7f7f + 0x7676767676767676) | x // above 9: the top bit
		set |= (high & 0x8080808080808080) >> 7 * 0x0102040810204080 >> 56 << (8 * k)
	}
	return set
}

// plainTail is plainList from the number at i on, byte by byte.
func plainTail(out, b []byte, i int, fits bool) (numbers []byte, end int, allFit bool) {
	for ; i < len(b); i++ {
		start, n := i, 0
		for i < len(b) && b[i] >= '0' && b[i] <= '9' && i-start < 4 {
			n = n*10 + int(b[i]-'0')
			i++
		}
		digits := i - start
		if digits == 0 || digits > 3 || i == len(b) || digits > 1 && b[start] == '0' {
			return out, 0, false
		}
		fits = fits && n <= 255
		out = append(out, byte(n))
		if b[i] == ']' {
			return out, i, fits
		}
		if b[i] != ',' {
			return out, 0, false
		}
	}
	return out, 0, false
}
