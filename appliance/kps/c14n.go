package kps

import (
	"fmt"

	"github.com/beevik/etree"
	dsig "github.com/russellhaering/goxmldsig"
)

// excC14N is the identifier of Exclusive XML Canonicalization 1.0 without comments.
const excC14N = "http://www.w3.org/2001/10/xml-exc-c14n#"

// canonical returns the exclusive canonical form, without comments, of el where
// it stands in its document. The library's ordering of attributes that carry
// different prefixes is known to be incomplete; readTree refuses those.
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
