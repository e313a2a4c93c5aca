package kps

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf8"
)

// errNotXML is the one reason for bytes that are not well-formed XML.
var errNotXML = errors.New("the document is not well-formed XML")

// scanner cuts a document into the tokens that treeBuilder takes. It accepts a
// subset of what encoding/xml does, which reads byte by byte and takes half of
// the time that a whole roll may: names are ASCII, white space stands between
// attributes, character references are characters of XML. FuzzScanner compares
// the two. The input is in UTF-8 (readTree sees to it); tokens may share its memory.
type scanner struct {
	in        []byte
	encodings []string // names of the document's encoding that its declaration may give
	pos       int
	buf       []byte // of the last unescaped text
}

// A byte of text is plain where it stands for itself, whatever is around it.
var plainText = func() (plain [256]bool) {
	for c := 0x20; c < 0x80; c++ {
		plain[c] = c != '<' && c != '&' && c != ']'
	}
	plain['\t'], plain['\n'] = true, true
	return plain
}()

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

func isNameStart(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_'
}

func isNamePart(c byte) bool {
	return isNameStart(c) || c >= '0' && c <= '9' || c == '-' || c == '.'
}

// run gives all tokens to b.
func (s *scanner) run(b *treeBuilder) error {
	if err := s.declaration(); err != nil {
		return err
	}
	for s.pos < len(s.in) {
		if s.in[s.pos] != '<' {
			end := bytes.IndexByte(s.in[s.pos:], '<')
			if end < 0 {
				end = len(s.in) - s.pos
			}
			text, err := s.text(s.in[s.pos:s.pos+end], false)
			if err == nil {
				err = b.characters(text)
			}
			if err != nil {
				return err
			}
			s.pos += end
			continue
		}
		if err := s.markup(b); err != nil {
			return err
		}
	}
	return nil
}

// markup reads what begins with "<".
func (s *scanner) markup(b *treeBuilder) error {
	rest := s.in[s.pos:]
	if len(rest) < 2 {
		return errNotXML
	}
	switch {
	case rest[1] == '/':
		return s.end(b)
	case rest[1] == '?':
		return errors.New("processing instructions are not accepted")
	case bytes.HasPrefix(rest, []byte("<!--")):
		body, after, ok := bytes.Cut(rest[4:], []byte("--"))
		if !ok || len(after) == 0 || after[0] != '>' {
			return errNotXML
		}
		s.pos += 4 + len(body) + 3
		_, err := s.text(body, true)
		return err
	case bytes.HasPrefix(rest, []byte("<![CDATA[")):
		body, _, ok := bytes.Cut(rest[9:], []byte("]]>"))
		if !ok || len(b.open) == 0 {
			return errNotXML
		}
		s.pos += 9 + len(body) + 3
		text, err := s.text(body, true)
		if err != nil {
			return err
		}
		return b.characters(text)
	case rest[1] == '!':
		return errors.New("document type declarations are not accepted")
	}
	return s.start(b)
}

// declaration skips the XML declaration, which must say version 1.0 and the encoding that the document has.
func (s *scanner) declaration() error {
	if !bytes.HasPrefix(s.in, []byte("<?xml")) {
		return nil
	}
	s.pos = len("<?xml")
	for _, want := range []struct {
		name   string
		values []string
		needed bool
	}{{"version", []string{"1.0"}, true}, {"encoding", s.encodings, false}, {"standalone", []string{"yes", "no"}, false}} {
		before := s.pos
		spaced := s.spaces()
		if name, value, err := s.attribute(); err == nil && spaced && name.Space == "" && name.Local == want.name {
			known := false
			for _, v := range want.values {
				known = known || bytes.EqualFold([]byte(value), []byte(v))
			}
			if !known {
				return fmt.Errorf("the XML declaration is not that of XML 1.0 in %s", s.encodings[0])
			}
			continue
		}
		if s.pos = before; want.needed {
			return errNotXML
		}
	}
	s.spaces()
	if !bytes.HasPrefix(s.in[s.pos:], []byte("?>")) {
		return errNotXML
	}
	s.pos += 2
	return nil
}

func (s *scanner) spaces() bool {
	before := s.pos
	for s.pos < len(s.in) && isSpace(s.in[s.pos]) {
		s.pos++
	}
	return s.pos > before
}

// name reads a qualified name.
func (s *scanner) name() (xml.Name, error) {
	local, err := s.ncName()
	if err != nil || s.pos >= len(s.in) || s.in[s.pos] != ':' {
		return xml.Name{Local: local}, err
	}
	s.pos++
	prefix := local
	local, err = s.ncName()
	return xml.Name{Space: prefix, Local: local}, err
}

func (s *scanner) ncName() (string, error) {
	from := s.pos
	if from >= len(s.in) || !isNameStart(s.in[from]) {
		return "", errNotXML
	}
	for s.pos < len(s.in) && isNamePart(s.in[s.pos]) {
		s.pos++
	}
	return intern(s.in[from:s.pos]), nil
}

func (s *scanner) end(b *treeBuilder) error {
	s.pos += 2
	name, err := s.name()
	if err != nil {
		return err
	}
	s.spaces()
	if s.pos >= len(s.in) || s.in[s.pos] != '>' {
		return errNotXML
	}
	s.pos++
	return b.end(name)
}

func (s *scanner) start(b *treeBuilder) error {
	s.pos++
	name, err := s.name()
	if err != nil {
		return err
	}
	t := xml.StartElement{Name: name}
	for {
		spaced := s.spaces()
		rest := s.in[s.pos:]
		switch {
		case bytes.HasPrefix(rest, []byte(">")):
			s.pos++
			return b.start(t)
		case bytes.HasPrefix(rest, []byte("/>")):
			s.pos += 2
			if err := b.start(t); err != nil {
				return err
			}
			return b.end(name)
		case !spaced:
			return errNotXML
		}
		name, value, err := s.attribute()
		if err != nil {
			return err
		}
		if t.Attr = append(t.Attr, xml.Attr{Name: name, Value: value}); len(t.Attr) > b.lim.attributes {
			return errTooManyAttributes(b.lim)
		}
	}
}

func (s *scanner) attribute() (xml.Name, string, error) {
	name, err := s.name()
	if err != nil {
		return name, "", err
	}
	s.spaces()
	if s.pos >= len(s.in) || s.in[s.pos] != '=' {
		return name, "", errNotXML
	}
	s.pos++
	s.spaces()
	if s.pos >= len(s.in) || s.in[s.pos] != '"' && s.in[s.pos] != '\'' {
		return name, "", errNotXML
	}
	quote := s.in[s.pos]
	s.pos++
	end := bytes.IndexByte(s.in[s.pos:], quote)
	if end < 0 {
		return name, "", errNotXML
	}
	raw := s.in[s.pos : s.pos+end]
	s.pos += end + 1
	if bytes.IndexByte(raw, '<') >= 0 {
		return name, "", errNotXML
	}
	value, err := s.text(raw, false)
	return name, intern(value), err
}

// text undoes escapes and line ends. The result is valid until the next call.
func (s *scanner) text(raw []byte, verbatim bool) ([]byte, error) {
	i := 0
	for i < len(raw) && plainText[raw[i]] {
		i++
	}
	if i == len(raw) {
		return raw, nil
	}
	out := append(s.buf[:0], raw[:i]...)
	defer func() { s.buf = out }()
	for i < len(raw) {
		c := raw[i]
		switch {
		case plainText[c]:
			out = append(out, c)
			i++
		case c == '\r':
			if out, i = append(out, '\n'), i+1; i < len(raw) && raw[i] == '\n' {
				i++
			}
		case c == '&' && !verbatim:
			r, n, err := reference(raw[i:])
			if err != nil {
				return nil, err
			}
			out, i = utf8.AppendRune(out, r), i+n
		case c == ']' && !verbatim && bytes.HasPrefix(raw[i:], []byte("]]>")):
			return nil, errNotXML
		default:
			r, n := utf8.DecodeRune(raw[i:])
			if !isChar(r) {
				return nil, errNotXML
			}
			out, i = append(out, raw[i:i+n]...), i+n
		}
	}
	return out, nil
}

// isChar is the production Char of XML 1.0.
func isChar(r rune) bool {
	return r == '\t' || r == '\n' || r == '\r' || r >= 0x20 && r <= 0xD7FF || r >= 0xE000 && r <= 0xFFFD || r >= 0x10000 && r <= 0x10FFFF
}

// reference reads a character or a predefined entity reference at the beginning of raw.
func reference(raw []byte) (r rune, n int, err error) {
	const longest = 12
	end := bytes.IndexByte(raw[:min(len(raw), longest)], ';')
	if end < 2 {
		return 0, 0, errNotXML
	}
	name := string(raw[1:end])
	switch name {
	case "amp":
		r = '&'
	case "lt":
		r = '<'
	case "gt":
		r = '>'
	case "quot":
		r = '"'
	case "apos":
		r = '\''
	default:
		if name[0] != '#' {
			return 0, 0, errNotXML
		}
		digits, base := name[1:], 10
		if len(digits) > 0 && digits[0] == 'x' {
			digits, base = digits[1:], 16
		}
		v, err := strconv.ParseUint(digits, base, 32)
		if err != nil || v > utf8.MaxRune || !isChar(rune(v)) {
			return 0, 0, errNotXML
		}
		r = rune(v)
	}
	return r, end + 1, nil
}

// known are the names and values that most documents consist of.
var known = func() map[string]string {
	m := map[string]string{}
	for _, s := range []string{Namespace, ServiceNamespace, dsigNamespace, xenc11Namespace, xsiNamespace, RSASHA256, HMACSHA256, ConcatKDF, RSAOAEP, AES256GCM,
		digestSHA256, "http://www.w3.org/2009/xmlenc11#mgf1sha256", "xmlns", "xsi", "xsd", "ds", "xenc11", "Protector", "Wrappings", "Wrapping", "Id",
		"SigningCertificate", "SigningCertificateSignature", "ParentWrappingId", "Signature", "Algorithm", "SignatureValue", "EncryptionCertificate",
		"EncryptionCertificateSignature", "TransportKey", "EncryptedData", "Parameters", "CipherValue", "TransportKeySignature", "KeyDerivationMethod",
		"GuardianSignature", "WrappingId", "DigestMethod", "MGF", "ConcatKDFParams", "MaxOfflineUnwraps"} {
		m[s] = s
	}
	return m
}()

// intern is string(b) without an allocation where the string is known.
func intern(b []byte) string {
	if s, ok := known[string(b)]; ok {
		return s
	}
	return string(b)
}
