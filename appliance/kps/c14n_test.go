package kps

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"github.com/beevik/etree"
)

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func find(el *etree.Element, tag string) *etree.Element {
	if el.Tag == tag {
		return el
	}
	for _, kid := range el.ChildElements() {
		if f := find(kid, tag); f != nil {
			return f
		}
	}
	return nil
}

func TestCanonicalWrappingsMatchThePublishedVector(t *testing.T) {
	plain := string(readFile(t, "wrappings.xml"))
	prefixed := strings.NewReplacer("</", "</k:", "<?", "<?", "<!", "<!", "<", "<k:").Replace(plain)
	prefixed = strings.Replace(prefixed, ` xmlns="`, ` xmlns:k="`, 1)
	for _, c := range []struct {
		name, doc, sum string
		size           int
	}{
		{"default namespace", plain, "17a82b54c8c269eb2ebb92cff51701a387c142d8f83cf6d158b9606102098da6", 640},
		{"prefix k", prefixed, "832f79e174592c65759f476fd4285beb13d92f4dde2e002d84aa9a362b1ca142", 702},
		{"UTF-16", string(wide(plain, true)), "17a82b54c8c269eb2ebb92cff51701a387c142d8f83cf6d158b9606102098da6", 640},
		{"UTF-16, big-endian", string(wide(plain, false)), "17a82b54c8c269eb2ebb92cff51701a387c142d8f83cf6d158b9606102098da6", 640},
		{"byte order mark", "\xef\xbb\xbf" + plain, "17a82b54c8c269eb2ebb92cff51701a387c142d8f83cf6d158b9606102098da6", 640},
		{"line ends", strings.ReplaceAll(plain, "\n", "\r\n"), "17a82b54c8c269eb2ebb92cff51701a387c142d8f83cf6d158b9606102098da6", 640},
	} {
		t.Run(c.name, func(t *testing.T) {
			root, err := readTree([]byte(c.doc), documentBounds)
			if err != nil {
				t.Fatal(err)
			}
			got, err := canonical(find(root, "Wrappings"))
			if err != nil {
				t.Fatal(err)
			}
			if fast := canonicalFast(find(root, "Wrappings")); !bytes.Equal(fast, got) {
				t.Errorf("the fast writer gives\n%s", fast)
			}
			sum := sha256.Sum256(got)
			if len(got) != c.size || hex.EncodeToString(sum[:]) != c.sum {
				t.Errorf("got %d bytes, sha256 %x, want %d, %s:\n%s", len(got), sum, c.size, c.sum, got)
			}
		})
	}
}

func TestCanonicalFormMatchesLibxml2(t *testing.T) {
	for _, name := range []string{"c14n-a", "c14n-b"} {
		lim := documentBounds
		lim.bare = true
		root, err := readTree(readFile(t, name+".xml"), lim)
		if err != nil {
			t.Fatal(err)
		}
		got, err := canonical(root)
		if err != nil {
			t.Fatal(err)
		}
		if want := readFile(t, name+".c14n"); !bytes.Equal(got, want) {
			t.Errorf("%s:\ngot  %q\nwant %q", name, got, want)
		}
	}
}

func TestCanonicalFormOfWhatWeWriteIsWhatWeSigned(t *testing.T) {
	p, _ := testProtector(t)
	q, err := ParseProtector(p.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p.canonical, q.canonical) {
		t.Errorf("wrote\n%s\ncanonical\n%s", p.canonical, q.canonical)
	}
}

func TestRefusesDangerousXML(t *testing.T) {
	deep := strings.Repeat("<a>", 30) + strings.Repeat("</a>", 30)
	many := "<a>" + strings.Repeat("<b/>", 9000) + "</a>"
	for name, doc := range map[string]string{
		"document type":            `<!DOCTYPE a [<!ENTITY x "y">]><a xmlns="u"/>`,
		"unknown entity":           `<a xmlns="u">&x;</a>`,
		"external entity":          `<!DOCTYPE a SYSTEM "file:///etc/passwd"><a xmlns="u"/>`,
		"processing instruction":   `<a xmlns="u"><?php x?></a>`,
		"late declaration":         `<a xmlns="u"/><?xml version="1.0"?>`,
		"other encoding":           `<?xml version="1.0" encoding="iso-8859-1"?><a xmlns="u"/>`,
		"utf-16, half a document":  "\xff\xfe<\x00a\x00",
		"utf-16, half a character": string(wide(`<a xmlns="u"/>`, true)) + "\x20",
		"half a surrogate pair":    "\xff\xfe" + string(wide(`<a xmlns="u">`, true)[2:]) + "\x3d\xd8" + string(wide(`</a>`, true)[2:]),
		"utf-16 as utf-8":          string(wide(`<?xml version="1.0" encoding="UTF-8"?><a xmlns="u"/>`, true)),
		"utf-16 of another order":  string(wide(`<?xml version="1.0" encoding="utf-16be"?><a xmlns="u"/>`, true)),
		"utf-8 as utf-16":          `<?xml version="1.0" encoding="utf-16"?><a xmlns="u"/>`,
		"two byte order marks":     string(wide("\ufeff<a xmlns=\"u\"/>", false)),
		"utf-16, NUL":              string(wide("<a xmlns=\"u\">\x00</a>", false)),
		"utf-16, more as utf-8":    string(wide(`<a xmlns="u">`+strings.Repeat("日", 100)+`</a>`, true)),
		"utf-16, too large":        string(wide(`<a xmlns="u">`+strings.Repeat(" ", MaxDocument/2)+`</a>`, true)),
		"utf-32":                   "\x00\x00\xfe\xff\x00\x00\x00<\x00\x00\x00a",
		"invalid utf-8":            "<a xmlns=\"u\">\xc3\x28</a>",
		"two roots":                `<a xmlns="u"/><a xmlns="u"/>`,
		"text after root":          `<a xmlns="u"/>x`,
		"mismatched tags":          `<a xmlns="u"><b></c></a>`,
		"mismatched prefix":        `<p:a xmlns:p="u" xmlns:q="u"></q:a>`,
		"open end":                 `<a xmlns="u">`,
		"empty":                    ``,
		"duplicate attribute":      `<a xmlns="u" x="1" x="2"/>`,
		"undeclared prefix":        `<p:a/>`,
		"undeclared in attribute":  `<a xmlns="u" p:x="1"/>`,
		"undeclared again":         `<a xmlns="u" xmlns:p=""/>`,
		"xml redeclared":           `<a xmlns="u" xmlns:xml="v"/>`,
		"xml namespace as default": `<a xmlns="http://www.w3.org/XML/1998/namespace"/>`,
		"two prefixed attributes":  `<a xmlns="u" xmlns:p="v" xmlns:q="w" p:x="1" q:x="2"/>`,
		"newline in attribute":     "<a xmlns=\"u\" x=\"1\n2\"/>",
		"colons":                   `<a:b:c xmlns:a="u"/>`,
		"leading colon":            `<:a xmlns="u"/>`,
		"no namespace":             `<a/>`,
		"too deep":                 strings.Replace(deep, "<a>", `<a xmlns="u">`, 1),
		"too many elements":        strings.Replace(many, "<a>", `<a xmlns="u">`, 1),
		"too large":                `<a xmlns="u">` + strings.Repeat(" ", MaxDocument) + `</a>`,
		"too many declarations":    `<a xmlns="u" ` + strings.Repeat(`xmlns:p="u" `, 20) + `/>`,
	} {
		if _, err := readTree([]byte(doc), documentBounds); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestTextAroundACommentIsOneText(t *testing.T) {
	root, err := readTree([]byte(`<a xmlns="u">1<!-- x -->2<![CDATA[3]]></a>`), documentBounds)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := text(root); err != nil || got != "123" {
		t.Errorf("got %q, %v", got, err)
	}
}
