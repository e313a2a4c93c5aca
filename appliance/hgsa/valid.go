package hgsa

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
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
	from, next := 0, -1 // next is the first closing bracket that is not behind us
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
			if next < i {
				if next = bytes.IndexByte(body[i:], ']'); next < 0 {
					next = len(body)
				} else {
					next += i
				}
			}
			var end int
			var fits bool
			if work.numbers, end, fits = plainList(work.numbers[:0], body, i, next); end == 0 {
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

// longList is from how many bytes on a list is read by streams.
const longList = 512

// plainList reads the list whose bracket is b[i], if it has elements and all are
// numbers of one to three digits, without sign and white space. next is where
// the first closing bracket behind i is, len(b) if there is none. end is the index of
// the bracket that ends the list, 0 if it is no such list; fits is whether all of
// its numbers are bytes, which are then appended to out.
func plainList(out, b []byte, i, next int) (numbers []byte, end int, fits bool) {
	i++
	if next < len(b) && next-i >= longList {
		return longPlainList(out, b[:next+1], i)
	}
	return plainTail(out, b, i, true)
}

// longPlainList is plainList from the number at i on for a list that can only end
// with b. The lists of boot logs are long, and their numbers have one to three
// digits in no order that a processor could guess. So nothing here branches on a
// digit, and as the place of a number is known only when the one before it has
// been read, four parts of the list are read by turns.
func longPlainList(out, b []byte, i int) (numbers []byte, end int, fits bool) {
	last := len(b) - 1 // the bracket
	commas, ok := onlyDigitsAndCommas(b[i:last])
	if !ok {
		return out, 0, false
	}
	var from [5]int // of the parts; each but the last ends with a comma
	from[0], from[4] = i, len(b)
	for k := 1; k < 4; k++ {
		at := i + k*(last-i)/4
		comma := bytes.IndexByte(b[at:at+4], ',')
		if comma < 0 {
			return out, 0, false
		}
		from[k] = at + comma + 1
	}
	stride := (last-i)/8 + 8 // a number has two bytes at least
	out = slices.Grow(out, 4*stride)
	room := out[len(out) : len(out)+4*stride]
	r0, r1, r2, r3 := room[:stride], room[stride:2*stride], room[2*stride:3*stride], room[3*stride:]
	r1, r2, r3 = r1[:len(r0)], r2[:len(r0)], r3[:len(r0)]
	p0, p1, p2, p3 := from[0], from[1], from[2], from[3]
	e0, e1, e2, e3 := from[1]-4, from[2]-4, from[3]-4, from[4]-4
	var seen uint16
	n := 0
	for ; n < len(r0) && p0 <= e0 && p1 <= e1 && p2 <= e2 && p3 <= e3; n++ {
		v0, v1 := number(binary.LittleEndian.Uint32(b[p0:])), number(binary.LittleEndian.Uint32(b[p1:]))
		v2, v3 := number(binary.LittleEndian.Uint32(b[p2:])), number(binary.LittleEndian.Uint32(b[p3:]))
		r0[n], r1[n], r2[n], r3[n] = byte(v0), byte(v1), byte(v2), byte(v3)
		p0, p1, p2, p3 = p0+int(v0>>12), p1+int(v1>>12), p2+int(v2>>12), p3+int(v3>>12)
		seen |= v0 | v1 | v2 | v3
	}
	count := 0
	for k, p := range [4]int{p0, p1, p2, p3} {
		part, have := room[k*stride:(k+1)*stride], n
		for ; p < from[k+1]; have++ {
			var four [4]byte
			copy(four[:], b[p:])
			v := number(binary.LittleEndian.Uint32(four[:]))
			if have == len(part) {
				return out, 0, false
			}
			part[have] = byte(v)
			p, seen = p+int(v>>12), seen|v
		}
		if p != from[k+1] {
			return out, 0, false
		}
		out = append(out, part[:have]...) // never over what is still to be moved: each part ends before the next begins
		count += have
	}
	// A number's digits hold no comma. So if there is one for each number but the last, one is behind each.
	if seen&noNumber != 0 || count != commas+1 {
		return out, 0, false
	}
	return out, last, seen&0x300 == 0
}

// onlyDigitsAndCommas counts commas and reports whether every other byte is one
// of 0 to 9 or the six characters that follow.
func onlyDigitsAndCommas(b []byte) (commas int, ok bool) {
	const ones = 0x0101010101010101
	for len(b) >= 64 {
		var bad, sum uint64
		for k := range 8 {
			w := binary.LittleEndian.Uint64(b[8*k:])
			c := ^w >> 4 & ones // what could be a comma
			bad |= (w ^ '0'*ones ^ c*('0'^',')) & (0xf0*ones | c*0xff)
			sum += c
		}
		if bad != 0 {
			return 0, false
		}
		commas += int(sum * ones >> 56)
		b = b[64:]
	}
	for _, c := range b {
		switch {
		case c == ',':
			commas++
		case c&0xf0 != '0':
			return 0, false
		}
	}
	return commas, true
}

// number looks up what begins with four characters, of which it reads three.
func number(w uint32) uint16 { return threeChars[w&0xf|w>>4&0xf0|w>>8&0xf00] }

// threeChars is what begins with three characters, each by its lower four bits:
// the digits of a number up to the first that is none (a comma has 12 there, a
// bracket 13). The number is in the lower ten bits; the upper four are how far
// it is to the next, which is behind one character that is no digit. It has the
// bit noNumber for what no number begins with. Whether the characters are digits
// at all, and what is behind three of them, it does not say.
var threeChars = func() (t [4096]uint16) {
	for i := range t {
		t[i] = noNumber | 1<<12
	}
	for n := range 10 {
		for _, end := range []int{12, 13} {
			for any := range 16 {
				t[n|end<<4|any<<8] = uint16(2<<12 | n)
			}
			if n > 0 {
				for m := range 10 {
					t[n|m<<4|end<<8] = uint16(3<<12 | 10*n + m)
				}
			}
		}
		for m := range 100 {
			if n > 0 {
				t[n|m/10<<4|m%10<<8] = uint16(4<<12 | 100*n + m)
			}
		}
	}
	return t
}()

const noNumber = 1 << 11

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
