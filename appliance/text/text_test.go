package text

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
	"unicode/utf16"
	"unicode/utf8"
)

func wide(order binary.AppendByteOrder, s string) (b []byte) {
	for _, u := range utf16.Encode([]rune(s)) {
		b = order.AppendUint16(b, u)
	}
	return b
}

func TestReadsBothByteOrders(t *testing.T) {
	for _, s := range []string{"", "<a/>", "{\"Ä\": \"€ 😀\"}", "a\x00b\uffff\ufeff", strings.Repeat("日本", 1000)} {
		for e, order := range map[Encoding]binary.AppendByteOrder{UTF16LE: binary.LittleEndian, UTF16BE: binary.BigEndian} {
			raw := wide(order, "\ufeff"+s)
			got, mark := Marked(raw)
			if got != e || mark != 2 {
				t.Errorf("%q: encoding %d, %d bytes of mark", s, got, mark)
			}
			out, err := FromUTF16(raw[mark:], e, len(s))
			if err != nil || string(out) != s {
				t.Errorf("%q became %q, %v", s, out, err)
			}
			if _, err := FromUTF16(raw[mark:], e, len(s)-1); err == nil && s != "" {
				t.Errorf("%q: more than was allowed", s)
			}
		}
	}
}

func TestTellsEncodingsApart(t *testing.T) {
	for in, want := range map[string]struct {
		marked, detected Encoding
		mark             int
	}{
		"": {}, "<": {}, "<a": {}, "\xef\xbb\xbf<": {mark: 3}, "\xef\xbb": {},
		"\xff\xfe<\x00": {UTF16LE, UTF16LE, 2}, "\xfe\xff\x00<": {UTF16BE, UTF16BE, 2},
		"<\x00a\x00": {UTF8, UTF16LE, 0}, "\x00{\x00}": {UTF8, UTF16BE, 0},
		"\x00\x00\xfe\xff\x00\x00\x00<": {}, // UTF-32 is nobody's
	} {
		marked, mark := Marked([]byte(in))
		detected, again := Detect([]byte(in))
		if marked != want.marked || detected != want.detected || mark != want.mark || again != want.mark {
			t.Errorf("%q: %d %d %d %d", in, marked, detected, mark, again)
		}
	}
}

func TestRefusesTextThatTwoReadersWouldReadAsTwo(t *testing.T) {
	for name, in := range map[string]string{
		"half a character": "a\x00b", "high surrogate at the end": "\x3d\xd8", "high surrogate alone": "\x3d\xd8a\x00", "low surrogate alone": "\x00\xdea\x00",
		"pair the wrong way round": "\x00\xde\x3d\xd8", "two marks": "\xff\xfea\x00",
	} {
		if out, err := FromUTF16([]byte(in), UTF16LE, 100); err == nil {
			t.Errorf("%s: read as %q", name, out)
		}
	}
}

// FuzzFromUTF16: what is accepted is valid UTF-8 that becomes the same bytes again, and within the bound.
func FuzzFromUTF16(f *testing.F) {
	f.Add(wide(binary.LittleEndian, "<a>é😀</a>"), false)
	f.Add(wide(binary.BigEndian, "{\"a\":1}"), true)
	f.Add([]byte("\x3d\xd8\x00"), false)
	f.Fuzz(func(t *testing.T, raw []byte, big bool) {
		e, order := UTF16LE, binary.AppendByteOrder(binary.LittleEndian)
		if big {
			e, order = UTF16BE, binary.BigEndian
		}
		out, err := FromUTF16(raw, e, len(raw))
		if err != nil {
			return
		}
		if !utf8.Valid(out) || len(out) > len(raw) || !bytes.Equal(wide(order, string(out)), raw) {
			t.Errorf("%x became %q", raw, out)
		}
	})
}
