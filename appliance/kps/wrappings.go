package kps

// CanonicalWrappings is what both signatures of a protector cover [MS-KPS 2.2.2.7, 2.2.2.8]: the exclusive canonical form of the element
// Wrappings of a document, whatever its other content. It checks nothing else, so that published vectors without real certificates work.
func CanonicalWrappings(document []byte) ([]byte, error) {
	root, err := readTree(document, documentBounds)
	if err != nil {
		return nil, err
	}
	for _, kid := range root.ChildElements() {
		if kid.Tag == "Wrappings" && kid.NamespaceURI() == Namespace {
			return canonical(kid)
		}
	}
	return nil, refuse(CodeInvalidProtector, "there is no element Wrappings")
}
