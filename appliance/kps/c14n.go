package kps

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/beevik/etree"
	dsig "github.com/russellhaering/goxmldsig"
)

// excC14N is the identifier of Exclusive XML Canonicalization 1.0 without comments.
const excC14N = "http://www.w3.org/2001/10/xml-exc-c14n#"

// canonical returns the exclusive canonical form, without comments, of el where
// it stands in its document, as a maintained library has it. The library's
// ordering of attributes that carry different prefixes is known to be
// incomplete; readTree refuses those.
func canonical(el *etree.Element) ([]byte, error) {
	out := el.Copy()
	have := map[string]bool{}
	for _, a := range out.Attr {
		have[a.FullKey()] = isDeclaration(a)
	}
	// Namespaces in scope are declared on the ancestors; the canonicaliser sees
	// only the copy, so they move there. Nearest first.
	for up := el.Parent(); up != nil; up = up.Parent() {
		for _, a := range up.Attr {
			if isDeclaration(a) && !have[a.FullKey()] {
				have[a.FullKey()] = true
				out.Attr = append(out.Attr, etree.Attr{Space: a.Space, Key: a.Key, Value: a.Value})
			}
		}
	}
	bytes, err := dsig.MakeC14N10ExclusiveCanonicalizerWithPrefixList("").Canonicalize(out)
	if err != nil {
		return nil, fmt.Errorf("canonical form of %s: %w", el.Tag, err)
	}
	return bytes, nil
}

func isDeclaration(a etree.Attr) bool {
	return a.Space == "xmlns" || (a.Space == "" && a.Key == "xmlns")
}

// canonicalFast is canonical for the element whose signatures every roll
// checks, without the library's copies. It gives the same bytes for every tree
// that readTree accepts; FuzzCanonical and the vectors compare the two.
func canonicalFast(el *etree.Element) []byte {
	c := canonicaliser{}
	var above []*etree.Element
	for up := el.Parent(); up != nil; up = up.Parent() {
		above = append(above, up)
	}
	for _, up := range slices.Backward(above) {
		c.declare(up)
	}
	c.out.Grow(len(el.Child) * usualWrapping)
	c.element(el)
	return c.out.Bytes()
}

// binding is a namespace prefix, empty for the default one, and its URI.
type binding struct{ prefix, uri string }

type canonicaliser struct {
	out      bytes.Buffer
	scope    []binding // declared in the document, innermost last
	rendered []binding // declared in the output, innermost last
}

func (c *canonicaliser) declare(el *etree.Element) {
	for _, a := range el.Attr {
		switch {
		case a.Space == "xmlns":
			c.scope = append(c.scope, binding{a.Key, a.Value})
		case isDeclaration(a):
			c.scope = append(c.scope, binding{"", a.Value})
		}
	}
}

func lookup(list []binding, prefix string) string {
	for i := len(list) - 1; i >= 0; i-- {
		if list[i].prefix == prefix {
			return list[i].uri
		}
	}
	return ""
}

func (c *canonicaliser) element(el *etree.Element) {
	scope, rendered := len(c.scope), len(c.rendered)
	c.declare(el)
	c.out.WriteByte('<')
	c.name(el.Space, el.Tag)
	c.attributes(el)
	c.out.WriteByte('>')
	for _, child := range el.Child {
		switch t := child.(type) {
		case *etree.Element:
			c.element(t)
		case *etree.CharData:
			c.text(t.Data)
		}
	}
	c.out.WriteString("</")
	c.name(el.Space, el.Tag)
	c.out.WriteByte('>')
	c.scope, c.rendered = c.scope[:scope], c.rendered[:rendered]
}

func (c *canonicaliser) name(prefix, local string) {
	if prefix != "" {
		c.out.WriteString(prefix)
		c.out.WriteByte(':')
	}
	c.out.WriteString(local)
}

// attributes writes the namespaces that are visibly used and not yet declared,
// by prefix, then the attributes: those without a prefix by name, then the one
// that may have one.
func (c *canonicaliser) attributes(el *etree.Element) {
	used := []string{el.Space}
	var plain []etree.Attr
	for _, a := range el.Attr {
		if isDeclaration(a) {
			continue
		}
		plain = append(plain, a)
		if a.Space != "" && a.Space != el.Space {
			used = append(used, a.Space)
		}
	}
	slices.Sort(used)
	for _, prefix := range used {
		uri := lookup(c.scope, prefix)
		if prefix == "xml" || lookup(c.rendered, prefix) == uri {
			continue
		}
		c.rendered = append(c.rendered, binding{prefix, uri})
		if prefix == "" {
			c.attribute("", "xmlns", uri)
		} else {
			c.attribute("xmlns", prefix, uri)
		}
	}
	slices.SortFunc(plain, func(a, b etree.Attr) int {
		if (a.Space == "") != (b.Space == "") {
			return len(a.Space) - len(b.Space)
		}
		return strings.Compare(a.Key, b.Key)
	})
	for _, a := range plain {
		c.attribute(a.Space, a.Key, a.Value)
	}
}

func (c *canonicaliser) attribute(prefix, key, value string) {
	c.out.WriteByte(' ')
	c.name(prefix, key)
	c.out.WriteString(`="`)
	if strings.ContainsAny(value, "&<\"\t\n\r") {
		value = escapeAttribute.Replace(value)
	}
	c.out.WriteString(value)
	c.out.WriteByte('"')
}

var escapedInText = [256]bool{'&': true, '<': true, '>': true, '\r': true}

func (c *canonicaliser) text(s string) {
	for i := range len(s) {
		if escapedInText[s[i]] {
			s = escapeText.Replace(s)
			break
		}
	}
	c.out.WriteString(s)
}
