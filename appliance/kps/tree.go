package kps

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/beevik/etree"

	text16 "guardhouse/appliance/text"
)

// MaxDocument is the largest document in bytes that any parser here accepts;
// a roll request may be larger by the base64 form of its protector.
const MaxDocument = 1 << 20

// bounds limit what a document may cost before anything in it is understood.
type bounds struct {
	bytes        int
	depth        int
	elements     int
	attributes   int  // of one element
	declarations int  // namespace declarations in scope at one place
	bare         bool // elements may be in no namespace
}

var documentBounds = bounds{bytes: MaxDocument, depth: 24, elements: 8192, attributes: 16, declarations: 32}

// readTree parses one XML document. It refuses what the canonical form could
// show in two ways or what could hide text from one reader: document type
// declarations, processing instructions, unknown entities, duplicate
// attributes, white space other than blanks in attribute values, more than one
// prefixed attribute on an element. Comments are dropped, so that text on both
// sides of one is read as one. Namespace prefixes are all declared.
func readTree(raw []byte, lim bounds) (*etree.Element, error) {
	if len(raw) > lim.bytes {
		return nil, fmt.Errorf("the document has %d bytes, %d are allowed", len(raw), lim.bytes)
	}
	raw, declared, err := inUTF8(raw)
	if err != nil {
		return nil, err
	}
	b := treeBuilder{lim: lim}
	s := scanner{in: raw, encodings: declared}
	if err := s.run(&b); err != nil {
		return nil, err
	}
	return b.finish()
}

// inUTF8 goes by the byte order mark, and without one by the first two bytes, as .NET's readers of XML do. declared are the names that the
// XML declaration may have for what the bytes say: another name would let two readers see two texts. What is made of UTF-16 is not larger
// than it was.
func inUTF8(raw []byte) (doc []byte, declared []string, err error) {
	e, mark := text16.Detect(raw)
	raw = raw[mark:]
	switch e {
	case text16.UTF16LE:
		doc, err = text16.FromUTF16(raw, e, len(raw))
		return doc, []string{"utf-16", "utf-16le"}, err
	case text16.UTF16BE:
		doc, err = text16.FromUTF16(raw, e, len(raw))
		return doc, []string{"utf-16", "utf-16be"}, err
	}
	if !utf8.Valid(raw) {
		return nil, nil, errors.New("the document is neither UTF-8 nor UTF-16")
	}
	return raw, []string{"utf-8"}, nil
}

type treeBuilder struct {
	lim          bounds
	root         *etree.Element
	open         []*etree.Element
	text         []byte
	elements     int
	declarations int
}

// end closes the innermost element.
func (b *treeBuilder) end(name xml.Name) error {
	if len(b.open) == 0 {
		return errors.New("an end tag has no start tag")
	}
	b.flush()
	el := b.open[len(b.open)-1]
	if el.Space != name.Space || el.Tag != name.Local {
		return errors.New("start and end tags do not match")
	}
	b.open = b.open[:len(b.open)-1]
	for _, a := range el.Attr {
		if isDeclaration(a) {
			b.declarations--
		}
	}
	return nil
}

// characters adds text, which is copied.
func (b *treeBuilder) characters(t []byte) error {
	if len(b.open) > 0 {
		b.text = append(b.text, t...)
	} else if len(bytes.TrimLeft(t, " \t\r\n")) > 0 {
		return errors.New("there is text outside the root element")
	}
	return nil
}

func errTooManyAttributes(lim bounds) error {
	return fmt.Errorf("an element has more than %d attributes", lim.attributes)
}

func (b *treeBuilder) flush() {
	if len(b.text) == 0 {
		return
	}
	b.open[len(b.open)-1].AddChild(etree.NewText(string(b.text)))
	b.text = b.text[:0]
}

func (b *treeBuilder) start(t xml.StartElement) error {
	b.elements++
	switch {
	case b.elements > b.lim.elements:
		return fmt.Errorf("the document has more than %d elements", b.lim.elements)
	case len(b.open) >= b.lim.depth:
		return fmt.Errorf("elements are nested deeper than %d", b.lim.depth)
	case len(b.open) == 0 && b.root != nil:
		return errors.New("the document has more than one root element")
	case strings.Contains(t.Name.Local, ":") || t.Name.Space == "xmlns" || t.Name.Space == "xml":
		return errors.New("an element name is not a qualified name")
	}
	el := &etree.Element{Space: t.Name.Space, Tag: t.Name.Local}
	if err := b.attributes(el, t.Attr); err != nil {
		return err
	}
	if len(b.open) > 0 {
		b.flush()
		b.open[len(b.open)-1].AddChild(el)
	} else {
		b.root = el
	}
	b.open = append(b.open, el)
	if el.NamespaceURI() == "" && (el.Space != "" || !b.lim.bare) {
		return errors.New("an element is in no namespace")
	}
	for _, a := range el.Attr {
		if a.Space != "" && a.Space != "xmlns" && a.Space != "xml" && prefixURI(el, a.Space) == "" {
			return errors.New("a namespace prefix is not declared")
		}
	}
	return nil
}

func (b *treeBuilder) attributes(el *etree.Element, attrs []xml.Attr) error {
	if len(attrs) > b.lim.attributes {
		return errTooManyAttributes(b.lim)
	}
	prefixed := 0
	for i, a := range attrs {
		for _, other := range attrs[:i] {
			if other.Name == a.Name {
				return errors.New("an attribute is given twice")
			}
		}
		if strings.Contains(a.Name.Local, ":") {
			return errors.New("an attribute name is not a qualified name")
		}
		if strings.ContainsAny(a.Value, "\t\r\n") {
			return errors.New("an attribute value holds a line break or a tab")
		}
		declares := a.Name.Space == "xmlns" || (a.Name.Space == "" && a.Name.Local == "xmlns")
		switch {
		case declares:
			if b.declarations++; b.declarations > b.lim.declarations {
				return fmt.Errorf("more than %d namespace declarations are in scope", b.lim.declarations)
			}
			if err := checkDeclaration(a); err != nil {
				return err
			}
		case a.Name.Space != "":
			// The order of attributes with several prefixes is where
			// canonicalisers are known to differ.
			if prefixed++; prefixed > 1 {
				return errors.New("an element has more than one prefixed attribute")
			}
		}
		el.Attr = append(el.Attr, etree.Attr{Space: a.Name.Space, Key: a.Name.Local, Value: a.Value})
	}
	return nil
}

func checkDeclaration(a xml.Attr) error {
	const xmlURI, xmlnsURI = "http://www.w3.org/XML/1998/namespace", "http://www.w3.org/2000/xmlns/"
	if a.Name.Space == "xmlns" && (a.Value == "" || a.Name.Local == "xml" || a.Name.Local == "xmlns") {
		return errors.New("a namespace prefix is declared wrongly")
	}
	if a.Value == xmlURI || a.Value == xmlnsURI {
		return errors.New("a reserved namespace is declared")
	}
	return nil
}

func (b *treeBuilder) finish() (*etree.Element, error) {
	if b.root == nil || len(b.open) > 0 {
		return nil, errors.New("the document ends too early")
	}
	return b.root, nil
}

// prefixURI looks a prefix up from el outwards; empty when undeclared.
func prefixURI(el *etree.Element, prefix string) string {
	for ; el != nil; el = el.Parent() {
		for _, a := range el.Attr {
			if a.Space == "xmlns" && a.Key == prefix {
				return a.Value
			}
		}
	}
	return ""
}

// is reports whether el has this expanded name.
func is(el *etree.Element, ns, name string) bool {
	return el.Tag == name && el.NamespaceURI() == ns
}

// sequence walks the children of an element in the mandatory order of the schema.
type sequence struct {
	el   *etree.Element
	kids []*etree.Element
}

// children begins a sequence; it refuses text between the child elements.
func children(el *etree.Element) (*sequence, error) {
	s := &sequence{el: el, kids: make([]*etree.Element, 0, len(el.Child))}
	for _, c := range el.Child {
		switch t := c.(type) {
		case *etree.Element:
			s.kids = append(s.kids, t)
		case *etree.CharData:
			if !t.IsWhitespace() && strings.Trim(t.Data, " \t\r\n") != "" {
				return nil, fmt.Errorf("%s holds text", el.Tag)
			}
		}
	}
	return s, nil
}

// take returns the next child, which must have this name.
func (s *sequence) take(ns, name string) (*etree.Element, error) {
	if el := s.optional(ns, name); el != nil {
		return el, nil
	}
	if len(s.kids) == 0 {
		return nil, fmt.Errorf("%s lacks %s", s.el.Tag, name)
	}
	return nil, fmt.Errorf("%s has %s where %s belongs", s.el.Tag, bounded(s.kids[0].Tag), name)
}

// optional returns the next child if it has this name, else nil.
func (s *sequence) optional(ns, name string) *etree.Element {
	if len(s.kids) == 0 || !is(s.kids[0], ns, name) {
		return nil
	}
	el := s.kids[0]
	s.kids = s.kids[1:]
	return el
}

// end refuses children that the schema does not have.
func (s *sequence) end() error {
	if len(s.kids) > 0 {
		return fmt.Errorf("%s has the unexpected element %s", s.el.Tag, bounded(s.kids[0].Tag))
	}
	return nil
}

// text returns the character data of an element without children or attributes.
func text(el *etree.Element) (string, error) {
	if err := onlyAttributes(el); err != nil {
		return "", err
	}
	for _, c := range el.Child {
		if _, ok := c.(*etree.CharData); !ok {
			return "", fmt.Errorf("%s holds an element", el.Tag)
		}
	}
	return el.Text(), nil
}

// onlyAttributes refuses attributes other than the named ones, namespace
// declarations and those of XML Schema instances.
func onlyAttributes(el *etree.Element, names ...string) error {
next:
	for _, a := range el.Attr {
		if a.Space == "xmlns" || (a.Space == "" && a.Key == "xmlns") {
			continue
		}
		if a.Space != "" {
			if prefixURI(el, a.Space) == xsiNamespace {
				continue
			}
			return fmt.Errorf("%s has the unexpected attribute %s", el.Tag, bounded(a.Key))
		}
		for _, n := range names {
			if a.Key == n {
				continue next
			}
		}
		return fmt.Errorf("%s has the unexpected attribute %s", el.Tag, bounded(a.Key))
	}
	return nil
}

// attribute returns an unprefixed attribute.
func attribute(el *etree.Element, name string) (string, bool) {
	for _, a := range el.Attr {
		if a.Space == "" && a.Key == name {
			return a.Value, true
		}
	}
	return "", false
}
