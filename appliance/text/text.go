// Package text reads what Windows writes as text: UTF-8 or UTF-16 of either byte order, with or without a byte order mark.
//
// Promise. What comes out is the same text in UTF-8, without the mark. Text that two readers could take for two texts is refused: half a
// character, one half of a surrogate pair, a second mark that would hide behind the first.
//
// Limits. UTF-32 and code pages are not read. Text without a mark is known for UTF-16 by a zero in the first two bytes, which neither
// XML nor JSON may have in UTF-8; what can be binary must not be asked that way (see [Marked]).
package text

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf16"
	"unicode/utf8"
)

// Encoding is how text is written down.
type Encoding int

// Encodings. UTF8 is also what nothing is known of.
const (
	UTF8 Encoding = iota
	UTF16LE
	UTF16BE
)

// Marked is the encoding that the byte order mark says, and how many bytes the mark has; without one it is UTF8 and 0.
func Marked(raw []byte) (e Encoding, mark int) {
	switch {
	case len(raw) >= 3 && raw[0] == 0xef && raw[1] == 0xbb && raw[2] == 0xbf:
		return UTF8, 3
	case len(raw) >= 2 && raw[0] == 0xff && raw[1] == 0xfe:
		return UTF16LE, 2
	case len(raw) >= 2 && raw[0] == 0xfe && raw[1] == 0xff:
		return UTF16BE, 2
	}
	return UTF8, 0
}

// Detect is Marked for XML and JSON: without a mark the first character, which is ASCII in both, tells.
func Detect(raw []byte) (e Encoding, mark int) {
	if e, mark = Marked(raw); mark > 0 || len(raw) < 2 {
		return e, mark
	}
	switch {
	case raw[0] != 0 && raw[1] == 0:
		return UTF16LE, 0
	case raw[0] == 0 && raw[1] != 0:
		return UTF16BE, 0
	}
	return UTF8, 0
}

var errHalf = errors.New("UTF-16 with half a character")

// FromUTF16 gives text of either byte order in UTF-8, refusing more than most bytes; the mark must be gone. Control characters, NUL among them,
// stay what they are.
func FromUTF16(raw []byte, e Encoding, most int) ([]byte, error) {
	var order binary.ByteOrder = binary.LittleEndian
	if e == UTF16BE {
		order = binary.BigEndian
	}
	if len(raw)%2 != 0 {
		return nil, errHalf
	}
	out := make([]byte, 0, min(len(raw)/2+64, max(most, 0))) // most of it is ASCII
	for i := 0; i < len(raw); i += 2 {
		r := rune(order.Uint16(raw[i:]))
		if i == 0 && r == 0xfeff {
			return nil, errors.New("UTF-16 with two byte order marks")
		}
		if utf16.IsSurrogate(r) {
			low := rune(0)
			if i += 2; i < len(raw) {
				low = rune(order.Uint16(raw[i:]))
			}
			if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
				return nil, errHalf
			}
		}
		if len(out)+utf8.RuneLen(r) > most {
			return nil, fmt.Errorf("text in UTF-16 has more than %d bytes in UTF-8", most)
		}
		out = utf8.AppendRune(out, r)
	}
	return out, nil
}
