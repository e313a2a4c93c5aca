package hgsa

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"guardhouse/appliance/text"
)

// reader walks one JSON text that json.Valid has accepted. It keeps no copies
// but the values asked for, so memory stays below the size of the body.
type reader struct {
	b      []byte
	i      int
	depth  int
	lists  []list // of plain numbers, from those not passed on
	base64 bool   // some binary value came as a base64 string
}

// newReader checks the syntax of the whole body first: every later surprise is
// then a question of payload, not of syntax.
func newReader(body []byte, limit int) (*reader, error) {
	if len(body) > limit {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are read", ErrPayload, len(body), limit)
	}
	body, err := inUTF8(body)
	if err != nil {
		return nil, err
	}
	lists, ok := check(body)
	if !ok {
		return nil, ErrSyntax
	}
	return &reader{b: body, lists: lists}, nil
}

// inUTF8 tells the encodings of JSON apart as the genuine serializer does, by the first two bytes; a byte order mark is taken too. What is
// made of UTF-16 is not larger than it was.
func inUTF8(body []byte) ([]byte, error) {
	e, mark := text.Detect(body)
	if e == text.UTF8 {
		return body[mark:], nil
	}
	wide := body[mark:]
	body, err := text.FromUTF16(wide, e, len(wide))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSyntax, err)
	}
	return body, nil
}

func payload(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrPayload}, args...)...)
}

// peek skips white space and returns the next byte, 0 at the end.
func (r *reader) peek() byte {
	for r.i < len(r.b) {
		switch r.b[r.i] {
		case ' ', '\t', '\r', '\n':
			r.i++
		default:
			return r.b[r.i]
		}
	}
	return 0
}

func (r *reader) expect(c byte) error {
	if r.peek() != c {
		return payload("expected %q", c)
	}
	r.i++
	return nil
}

func (r *reader) enter() error {
	if r.depth++; r.depth > maxDepth {
		return payload("nested deeper than %d levels", maxDepth)
	}
	return nil
}

// null consumes a null and says whether there was one.
func (r *reader) null() bool {
	if r.peek() == 'n' {
		r.i += len("null")
		return true
	}
	return false
}

// object calls f for each member; f consumes the value. Two members of one name
// are refused: which of them counts would depend on the reader.
func (r *reader) object(f func(name string) error) error {
	if err := r.expect('{'); err != nil {
		return err
	}
	if err := r.enter(); err != nil {
		return err
	}
	var names []string
	for r.peek() != '}' {
		if len(names) > 0 {
			if err := r.expect(','); err != nil {
				return err
			}
		}
		name, err := r.str()
		if err != nil {
			return err
		}
		for _, n := range names {
			if n == name {
				return payload("a member is given twice")
			}
		}
		if names = append(names, name); len(names) > maxMembers {
			return payload("an object has more than %d members", maxMembers)
		}
		if err := r.expect(':'); err != nil {
			return err
		}
		if err := f(name); err != nil {
			return err
		}
	}
	r.i++
	r.depth--
	return nil
}

// array calls f for each element, at most max times; f consumes the element.
func (r *reader) array(max int, f func() error) error {
	if err := r.expect('['); err != nil {
		return err
	}
	if err := r.enter(); err != nil {
		return err
	}
	for n := 0; r.peek() != ']'; n++ {
		if n >= max {
			return payload("a list has more than %d elements", max)
		}
		if n > 0 {
			if err := r.expect(','); err != nil {
				return err
			}
		}
		if err := f(); err != nil {
			return err
		}
	}
	r.i++
	r.depth--
	return nil
}

// token returns a JSON string with its quotes.
func (r *reader) token() ([]byte, error) {
	if r.peek() != '"' {
		return nil, payload("expected a string")
	}
	start := r.i
	for r.i++; r.i < len(r.b); r.i++ {
		switch r.b[r.i] {
		case '\\':
			r.i++
		case '"':
			r.i++
			return r.b[start:r.i], nil
		}
	}
	return nil, payload("unterminated string")
}

func (r *reader) str() (string, error) {
	t, err := r.token()
	if err != nil {
		return "", err
	}
	if bytes.IndexByte(t, '\\') < 0 {
		return string(t[1 : len(t)-1]), nil
	}
	var s string
	if err := json.Unmarshal(t, &s); err != nil {
		return "", payload("a string does not decode")
	}
	return s, nil
}

// skip consumes any value.
func (r *reader) skip() error {
	switch r.peek() {
	case '{':
		return r.object(func(string) error { return r.skip() })
	case '[':
		return r.array(len(r.b), r.skip)
	case '"':
		_, err := r.token()
		return err
	}
	start := r.i
	for r.i < len(r.b) && strings.IndexByte(",]} \t\r\n", r.b[r.i]) < 0 {
		r.i++
	}
	if r.i == start {
		return payload("expected a value")
	}
	return nil
}

// integer reads a whole number, also one in quotes.
func (r *reader) integer(min, max int64) (int64, error) {
	var text string
	if r.peek() == '"' {
		s, err := r.str()
		if err != nil {
			return 0, err
		}
		text = strings.TrimSpace(s)
	} else {
		start := r.i
		for r.i < len(r.b) && (r.b[r.i] == '-' || r.b[r.i] >= '0' && r.b[r.i] <= '9') {
			r.i++
		}
		if c := r.peek(); c != 0 && c != ',' && c != ']' && c != '}' {
			return 0, payload("expected a whole number")
		}
		text = string(bytes.TrimSpace(r.b[start:r.i]))
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < min || n > max {
		return 0, payload("expected a whole number from %d to %d", min, max)
	}
	return n, nil
}

func (r *reader) uint32() (uint32, error) {
	n, err := r.integer(0, 1<<32-1)
	return uint32(n), err
}

func (r *reader) boolean() (bool, error) {
	switch r.peek() {
	case 't':
		r.i += len("true")
		return true, nil
	case 'f':
		r.i += len("false")
		return false, nil
	}
	return false, payload("expected true or false")
}

// binary reads a value in any form of 3.3: numbers from -128 to 255, base64,
// null for empty, or an EndorsementKey object, which stands for its Key.
func (r *reader) binary() ([]byte, error) {
	switch r.peek() {
	case 'n':
		r.null()
		return nil, nil
	case '[':
		return r.numbers()
	case '"':
		s, err := r.str()
		if err != nil {
			return nil, err
		}
		b, err := decodeBase64(s)
		if len(b) > 0 {
			r.base64 = true
		}
		return b, err
	case '{':
		return r.endorsementKey()
	}
	return nil, payload("expected a list of numbers or a base64 string")
}

// numbers is the hot path: a key is some 300 elements, a boot log 50,000. Most
// lists were read when the syntax was checked.
func (r *reader) numbers() ([]byte, error) {
	for len(r.lists) > 0 && r.lists[0].at < r.i {
		r.lists = r.lists[1:]
	}
	if len(r.lists) > 0 && r.lists[0].at == r.i && r.lists[0].bytes != nil && r.depth < maxDepth {
		r.i = r.lists[0].end + 1
		return r.lists[0].bytes, nil
	}
	var out []byte
	err := r.array(len(r.b), func() error {
		n, err := r.small()
		out = append(out, byte(n))
		return err
	})
	return out, err
}

// small reads an element of a number array without an allocation.
func (r *reader) small() (int, error) {
	c := r.peek()
	neg := c == '-'
	if neg {
		r.i++
	}
	n, digits := 0, 0
	for ; r.i < len(r.b) && r.b[r.i] >= '0' && r.b[r.i] <= '9' && digits < 4; r.i++ {
		n, digits = n*10+int(r.b[r.i]-'0'), digits+1
	}
	if neg {
		n = -n
	}
	if digits == 0 || n < -128 || n > 255 {
		return 0, payload("a byte must be a number from -128 to 255")
	}
	return n, nil
}

// endorsementKey reads {"Key": ...}; no other member is allowed (2.2.2.12).
func (r *reader) endorsementKey() ([]byte, error) {
	var key []byte
	have := false
	err := r.object(func(name string) (err error) {
		switch name {
		case "__type":
			return r.skip()
		case "Key":
			have = true
			key, err = r.binary()
			return err
		}
		return payload("an EndorsementKey has no members but Key")
	})
	if err == nil && !have {
		err = payload("an EndorsementKey lacks its Key")
	}
	return key, err
}

// decodeBase64 accepts white space inside and missing padding.
func decodeBase64(s string) ([]byte, error) {
	clean := strings.Map(func(c rune) rune {
		switch c {
		case ' ', '\t', '\r', '\n':
			return -1
		}
		return c
	}, s)
	clean = strings.TrimRight(clean, "=")
	b, err := base64.RawStdEncoding.DecodeString(clean)
	if err != nil {
		return nil, payload("a binary value is not base64")
	}
	return b, nil
}

// guid reads any of the three forms of 13.4; null is the zero GUID. Its form
// does not count for the mirror rule.
func (r *reader) guid() (GUID, error) {
	switch r.peek() {
	case 'n':
		r.null()
		return GUID{}, nil
	case '[':
		b, err := r.numbers()
		if err != nil {
			return GUID{}, err
		}
		return guidFromNet(b)
	}
	s, err := r.str()
	if err != nil {
		return GUID{}, err
	}
	if strings.Contains(s, "-") {
		return ParseGUID(strings.TrimSpace(s))
	}
	b, err := decodeBase64(s)
	if err != nil {
		return GUID{}, err
	}
	return guidFromNet(b)
}

// typeName cuts the namespace off a __type hint.
func typeName(hint string) (string, error) {
	if n, ok := strings.CutSuffix(hint, Namespace); ok {
		return n, nil
	}
	if n, ok := strings.CutSuffix(hint, longNamespace); ok {
		return n, nil
	}
	return "", payload("a type hint of an unknown namespace")
}
