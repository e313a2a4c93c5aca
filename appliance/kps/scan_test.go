package kps

import (
	"bytes"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/beevik/etree"
)

// slowTree is readTree over the tokens of encoding/xml, which is lenient where the scanner is not.
func slowTree(raw []byte, lim bounds) (*etree.Element, error) {
	b := treeBuilder{lim: lim}
	raw, _, err := inUTF8(raw)
	if err != nil {
		return nil, err
	}
	dec := xml.NewDecoder(bytes.NewReader(raw))
	dec.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil } // converted already
	for n := 0; ; n++ {
		tok, err := dec.RawToken()
		if err == io.EOF {
			return b.finish()
		}
		if err == nil {
			switch t := tok.(type) {
			case xml.StartElement:
				err = b.start(t)
			case xml.EndElement:
				err = b.end(t.Name)
			case xml.CharData:
				err = b.characters(t)
			case xml.ProcInst:
				if t.Target != "xml" || n != 0 {
					err = errors.New("processing instruction")
				}
			case xml.Directive:
				err = errors.New("directive")
			}
		}
		if err != nil {
			return nil, err
		}
	}
}

// shape writes everything of a tree that canonical XML keeps, and the declarations it drops.
func shape(w *strings.Builder, el *etree.Element) {
	w.WriteString("<" + el.FullTag())
	for _, a := range el.Attr {
		w.WriteString(" " + a.FullKey() + "=" + a.Value + "\x00")
	}
	for _, c := range el.Child {
		switch t := c.(type) {
		case *etree.Element:
			shape(w, t)
		case *etree.CharData:
			w.WriteString("\x01" + t.Data)
		}
	}
	w.WriteString(">")
}

// wide is a document in UTF-16, little-endian or not, as a .NET writer of that encoding makes it.
func wide(doc string, little bool) []byte {
	doc = "\ufeff" + strings.Replace(strings.Replace(doc, `encoding="utf-8"`, `encoding="utf-16"`, 1), `encoding='UTF-8'`, `encoding='UTF-16'`, 1)
	var b []byte
	for _, u := range utf16.Encode([]rune(doc)) {
		if little {
			b = binary.LittleEndian.AppendUint16(b, u)
		} else {
			b = binary.BigEndian.AppendUint16(b, u)
		}
	}
	return b
}

func sameAsSlow(t *testing.T, raw []byte) {
	t.Helper()
	lim := documentBounds
	lim.bare = true
	fast, err := readTree(raw, lim)
	if err != nil {
		return
	}
	slow, err := slowTree(raw, lim)
	if err != nil {
		t.Fatalf("accepts what encoding/xml refuses: %v\n%q", err, raw)
	}
	var a, b strings.Builder
	shape(&a, fast)
	shape(&b, slow)
	if a.String() != b.String() {
		t.Fatalf("reads\n%q\nencoding/xml reads\n%q", &a, &b)
	}
}

// odd are documents that are accepted although no usual writer makes them.
var odd = []string{
	`<?xml version="1.0"?><a xmlns="u"/>`, `<?xml version='1.0' encoding='UTF-8' standalone="no" ?>` + "\r\n" + `<a xmlns='u' ></a >`,
	"<a xmlns=\"u\"\n\tx = '\"' y=\"'\">&#x41;&#65;&amp;&lt;&gt;&quot;&apos;&#13;\r\n\rz</a>\n<!-- c -->",
	`<a xmlns="u"><![CDATA[<&]]]]><![CDATA[>]]>]]<!-- - - -->x</a>`, `<p:a xmlns:p="u" p:x="1"><b xmlns="v"/><c xmlns=""/></p:a>`,
	"<a xmlns=\"u\">\u00e4\u20ac\U0001F600 ]</a>", `<a xmlns="u" xml:lang="de"/>`, `<a.b-c_1 xmlns="u"/>`, "<a>\x7f</a>", "  \n<a/>",
}

// refusedXML is not well-formed, or is not accepted here; encoding/xml reads some of it.
var refusedXML = []string{
	`<a xmlns="u"y="v"/>`, `<a xmlns="u">]]></a>`, `<a xmlns="u">&#xD800;</a>`, `<a xmlns="u">&#0;</a>`, `<a xmlns="u">&#x110000;</a>`, `<a xmlns="u">&nbsp;</a>`, `<a xmlns="u">&amp</a>`,
	"<a xmlns=\"u\">\x01</a>", "<a xmlns=\"u\">\ufffe</a>", `<a xmlns="u"><!-- -- --></a>`, `<a xmlns="u"><!----->`, `<a xmlns="u"><!-- `, `<a xmlns="u"><![CDATA[`, `<![CDATA[]]><a xmlns="u"/>`,
	`<a xmlns="u" x="<"/>`, `<a xmlns="u" x=1/>`, `<a xmlns="u" x/>`, `<a xmlns="u" / >`, `< a xmlns="u"/>`, `<a xmlns="u"></ a>`, `<1 xmlns="u"/>`, `<\u00e4 xmlns="u"/>`, `<a: xmlns="u"/>`,
	`<?xml version="1.1"?><a xmlns="u"/>`, `<?xml encoding="utf-8"?><a xmlns="u"/>`, `<?xml version="1.0" encoding="latin1"?><a xmlns="u"/>`, `<?xml version="1.0"><a xmlns="u"/>`,
	`<?xml?><a xmlns="u"/>`, ` <?xml version="1.0"?><a xmlns="u"/>`, `<?xml-x version="1.0"?><a xmlns="u"/>`, `<`, `<a xmlns="u"`, `<a xmlns="u">&`, `<a xmlns="u" x="`, `</a>`, `<a/></a>`,
}

func TestScannerReadsWhatEncodingXMLReads(t *testing.T) {
	p, _ := testProtector(t)
	docs := append([]string{string(p.Bytes()), string(testMetadata(t, guardianSigning, guardianEncryption)), string(NewRequest([]byte{1}, []byte{2}).Marshal())}, odd...)
	for _, name := range []string{"wrappings.xml", "c14n-a.xml", "c14n-b.xml"} {
		docs = append(docs, string(readFile(t, name)))
	}
	lim := documentBounds
	lim.bare = true
	for _, doc := range docs {
		if _, err := readTree([]byte(doc), lim); err != nil {
			t.Errorf("%q: %v", doc, err)
		}
		sameAsSlow(t, []byte(doc))
		// The same document in UTF-16 is the same tree, also without its mark.
		narrow, err := readTree([]byte(doc), lim)
		if err != nil {
			continue // told above
		}
		for _, raw := range [][]byte{wide(doc, true), wide(doc, false), wide(doc, true)[2:], wide(doc, false)[2:]} {
			sameAsSlow(t, raw)
			tree, err := readTree(raw, lim)
			if err != nil {
				t.Errorf("%.40q in UTF-16: %v", doc, err)
				continue
			}
			var want, got strings.Builder
			shape(&want, narrow)
			if shape(&got, tree); got.String() != want.String() {
				t.Errorf("%q in UTF-16 reads as %q", doc, &got)
			}
		}
	}
	for _, doc := range refusedXML {
		if _, err := readTree([]byte(doc), lim); err == nil {
			t.Errorf("%q: accepted", doc)
		}
	}
}

// FuzzScanner holds the scanner against encoding/xml: whatever it accepts, that reads alike.
func FuzzScanner(f *testing.F) {
	for _, doc := range append(append([]string{}, odd...), refusedXML...) {
		f.Add([]byte(doc))
		f.Add(wide(doc, true))
		f.Add(wide(doc, false))
	}
	f.Add(readFile(f, "wrappings.xml"))
	f.Fuzz(sameAsSlow)
}

// TestBothCanonicalisersAgree: the library's bytes are the truth, the fast writer's are what rolls check.
func TestBothCanonicalisersAgree(t *testing.T) {
	p, _ := testProtector(t)
	plain := string(readFile(t, "wrappings.xml"))
	docs := append([]string{string(p.Bytes()), plain, strings.ReplaceAll(plain, "\n", "\r\n"), string(readFile(t, "c14n-a.xml")), string(readFile(t, "c14n-b.xml"))}, odd...)
	prefixed := strings.NewReplacer("</", "</k:", "<?", "<?", "<!", "<!", "<", "<k:").Replace(plain)
	docs = append(docs, strings.Replace(prefixed, ` xmlns="`, ` xmlns:k="`, 1))
	compared := 0
	for _, doc := range docs {
		lim := documentBounds
		lim.bare = strings.Contains(doc, "foo") // libxml2's samples; the library declares no namespace where none is needed
		root, err := readTree([]byte(doc), lim)
		if err != nil {
			continue // without a namespace; what must be accepted is in the test before
		}
		compared += canonicalisersAgree(t, root)
	}
	if compared < 100 {
		t.Errorf("only %d elements were compared", compared)
	}
}

// canonicalisersAgree compares every element where it stands, and counts them.
func canonicalisersAgree(t *testing.T, el *etree.Element) int {
	t.Helper()
	want, err := canonical(el)
	if err != nil {
		t.Fatal(err)
	}
	if got := canonicalFast(el); !bytes.Equal(got, want) {
		t.Fatalf("%s:\ngot  %q\nwant %q", el.FullTag(), got, want)
	}
	n := 1
	for _, kid := range el.ChildElements() {
		n += canonicalisersAgree(t, kid)
	}
	return n
}
