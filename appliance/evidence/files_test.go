package evidence

import (
	"bytes"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// ciFile writes a small policy of format 7 with one rule, one signer and a name, as the schema lays it out.
func ciFile(options uint32) []byte {
	le := binary.LittleEndian
	u := func(b []byte, vs ...uint32) []byte {
		for _, v := range vs {
			b = le.AppendUint32(b, v)
		}
		return b
	}
	blob := func(b, data []byte) []byte {
		b = append(u(b, uint32(len(data))), data...)
		return append(b, make([]byte, -len(data)&3)...)
	}
	text := func(b []byte, s string) []byte { return blob(b, appendUTF16(nil, s)) }
	b := u(nil, 7)
	b = append(b, 0x0e, 0x37, 0x44, 0xa2, 0xc9, 0x44, 0x06, 0x4c, 0xb5, 0x51, 0xf6, 0x01, 0x6e, 0x56, 0x30, 0x76)
	b = append(b, make([]byte, 16)...)
	b = u(b, options|ciValid, 1, 1, 1, 1)
	b = append(b, 4, 0, 3, 0, 2, 0, 10, 0)
	b = u(b, ciHeader-4)
	b = blob(b, []byte{1, 2, 3})
	b = text(u(b, 1), "a.exe")
	b = blob(append(b, make([]byte, 8)...), make([]byte, 32))
	b = blob(u(b, 0), make([]byte, 32))
	b = u(b, 1, 0)
	b = text(text(text(b, "CN"), "Publisher"), "")
	b = u(b, 1, 0)          // file attributes
	b = u(b, 1, 0)          // update signers
	b = u(b, 0)             // CI signers
	b = u(b, 131, 0, 32780) // scenario
	for range 3 {
		b = u(b, 1, 0, 1, 5, 0, 1, 0)
	}
	b = u(b, 0, 2) // hypervisor options, settings
	b = u(text(text(text(b, "P"), "K"), "V"), 1, 99)
	b = text(u(text(text(text(b, "PolicyInfo"), "Information"), "Name"), 3), "Fabric hosts")
	b = u(append(u(b, 3), make([]byte, 8)...), 0)
	b = append(b, make([]byte, 8)...)
	b = text(text(text(u(b, 4), "x"), "y"), "z")
	b = append(text(u(b, 5), ""), make([]byte, 8)...)
	b = append(u(b, 6), bytes.Repeat([]byte{0xaa}, 16)...)
	b = append(b, bytes.Repeat([]byte{0xbb}, 16)...)
	return u(text(u(b, 0, 7), "path"), 8)
}

func ciSigned(content []byte) []byte {
	zero := cbasn1.Tag(0).Constructed().ContextSpecific()
	var p7 cryptobyte.Builder
	p7.AddASN1(cbasn1.SEQUENCE, func(o *cryptobyte.Builder) {
		o.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2})
		o.AddASN1(zero, func(o *cryptobyte.Builder) {
			o.AddASN1(cbasn1.SEQUENCE, func(o *cryptobyte.Builder) {
				o.AddASN1Int64(1)
				o.AddASN1(cbasn1.SET, func(*cryptobyte.Builder) {})
				o.AddASN1(cbasn1.SEQUENCE, func(o *cryptobyte.Builder) {
					o.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 79, 1})
					o.AddASN1(zero, func(o *cryptobyte.Builder) { o.AddASN1OctetString(content) })
				})
				o.AddASN1(cbasn1.SET, func(*cryptobyte.Builder) {})
			})
		})
	})
	return p7.BytesOrPanic()
}

func TestSignedAndUnsignedPolicyAreTheSame(t *testing.T) {
	plain := ciFile(ciAudit)
	sum := sha256.Sum256(plain)
	measured := &SIPolicy{Hash: SHA256, Digest: sum[:]}
	for _, raw := range [][]byte{plain, ciSigned(plain)} {
		p, err := ParseCIPolicy(raw)
		if err != nil {
			t.Fatal(err)
		}
		if !p.Matches(measured) || p.Signed == bytes.Equal(raw, plain) {
			t.Error("the digest is not that of the policy without its signature")
		}
		if p.Name != "Fabric hosts" || !p.Audit || p.Version != "10.2.3.4" || p.TypeID != EnterprisePolicy ||
			!strings.HasPrefix(p.PolicyID, "aaaaaaaa-") || !strings.HasPrefix(p.BaseID, "bbbbbbbb-") {
			t.Errorf("read as %+v", *p)
		}
	}
	if p, err := ParseCIPolicy(ciFile(0)); err != nil || p.Audit {
		t.Errorf("an enforced policy: %v", err)
	}
}

func TestPolicyOfUnknownFormatStillHasItsDigest(t *testing.T) {
	b := ciFile(0)
	b = append(b[:ciHeader], 0xff, 0xff, 0xff, 0xff)
	p, err := ParseCIPolicy(b)
	if err != nil || p.Name != "" || p.PolicyID != "" || len(p.Digest(SHA256)) != 32 {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestRefusesFilesThatAreNoPolicy(t *testing.T) {
	for name, raw := range map[string][]byte{
		"empty": nil, "text": []byte(strings.Repeat("<SiPolicy/>", 20)), "signed nothing": ciSigned(nil), "XML signed": ciSigned([]byte(strings.Repeat("<SiPolicy/>", 20))),
		"cut header": ciFile(0)[:ciHeader-1],
	} {
		if _, err := ParseCIPolicy(raw); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// swapped has the other byte order.
func swapped(b []byte) []byte {
	b = bytes.Clone(b)
	for i := 0; i+1 < len(b); i += 2 {
		b[i], b[i+1] = b[i+1], b[i]
	}
	return b
}

func TestReadsPlatformIdentifiers(t *testing.T) {
	_, middle := hierarchy(t)
	key := &rsaKeys()[2].PublicKey
	cert := mustParse(t, middle.issue(t, issue{name: "ek", key: key}))
	in := &Platform{Name: "Host01 & Söhne", Machine: "4C4C4544-0042", Serial: "B00", MACs: []string{"00-15-5D-00-00-01", "00-15-5D-00-00-02"}, Certificate: cert}
	raw, err := WritePlatform(in, tpmt(t, key, 0x300b2))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.TrimPrefix(string(raw), "\xef\xbb\xbf")
	wide := appendUTF16([]byte{0xff, 0xfe}, strings.Replace(text, "UTF-8", "utf-16", 1))
	extra := strings.Replace(text, "<Name>", "<Future a=\"1\"><Deep>?</Deep></Future><Name>", 1)
	for name, b := range map[string][]byte{
		"as written": raw, "without mark": []byte(text), "UTF-16": wide, "UTF-16 without mark": wide[2:], "UTF-16 big-endian": swapped(wide), "UTF-16 big-endian without mark": swapped(wide)[2:], "unknown elements": []byte(extra),
		"one line (InnerXml)": []byte(strings.ReplaceAll(text[strings.Index(text, "<Platform"):], "\n", "")),
	} {
		p, err := ParsePlatform(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if p.Name != in.Name || p.Machine != in.Machine || p.Serial != in.Serial || !slices.Equal(p.MACs, in.MACs) || p.EK.Form != EKTPMT || p.Certificate == nil {
			t.Errorf("%s: read as %+v", name, p)
		}
	}
	other, err := WritePlatform(in, tpmt(t, &rsaKeys()[1].PublicKey, 0x300b2))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParsePlatform(other); err == nil || !strings.Contains(err.Error(), "another key") {
		t.Errorf("a certificate for another key: %v", err)
	}
	without, err := WritePlatform(&Platform{Name: "h", NoCertReason: "no certificate was found"}, tpmt(t, key, 0x300b2))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := ParsePlatform(without); err != nil || p.Certificate != nil || p.NoCertReason != "no certificate was found" {
		t.Errorf("without certificate: %v", err)
	}
	for _, bad := range []string{"", "<a>", "<a/>", "hello", "<a><Name>x</Name></a>", "\xff\xfe<", "<!DOCTYPE a [<!ENTITY b \"c\">]><a>&b;</a>"} {
		if _, err := ParsePlatform([]byte(bad)); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func FuzzParseCIPolicy(f *testing.F) {
	f.Add(read(f, "hostsim.sipolicy.bin"))
	f.Add(ciFile(0))
	f.Add(ciSigned(ciFile(ciAudit)))
	f.Fuzz(func(t *testing.T, raw []byte) { _, _ = ParseCIPolicy(raw) })
}

func FuzzParsePlatform(f *testing.F) {
	raw, err := WritePlatform(&Platform{Name: "h", MACs: []string{"m"}}, tpmt(f, &rsaKeys()[0].PublicKey, 0x300b2))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(read(f, "hostsim.identifier.xml"))
	f.Add([]byte("\xff\xfe<\x00"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if p, err := ParsePlatform(raw); err == nil && p.EK == nil {
			t.Fatal("a platform without a key")
		}
	})
}
