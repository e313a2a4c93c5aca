package kps

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"github.com/beevik/etree"
	dsig "github.com/russellhaering/goxmldsig"
)

func TestMetadataIsReadBack(t *testing.T) {
	raw := testMetadata(t, guardianSigning, guardianEncryption)
	m, err := ParseMetadata(raw)
	if err != nil {
		t.Fatal(err)
	}
	if m.Version != 1 || m.GuardianVersion != 1 || m.Signature != SignatureValid || m.CommunicationsCertificate.Subject.CommonName != "communications" {
		t.Errorf("got %+v", m)
	}
	again, err := ParseMetadata(append([]byte("\xef\xbb\xbf"), raw...))
	if err != nil || !bytes.Equal(again.SigningCertificate.Raw, m.SigningCertificate.Raw) {
		t.Errorf("byte order mark: %v", err)
	}
}

// A second implementation of XML signatures judges what we make.
func TestAnotherImplementationAcceptsOurDocumentSignature(t *testing.T) {
	raw := testMetadata(t, guardianSigning, guardianEncryption)
	m, err := ParseMetadata(raw)
	if err != nil {
		t.Fatal(err)
	}
	check := func(raw []byte) error {
		doc := etree.NewDocument()
		if err := doc.ReadFromBytes(raw); err != nil {
			return err
		}
		v := dsig.NewDefaultValidationContext(&dsig.MemoryX509CertificateStore{Roots: []*x509.Certificate{m.CommunicationsCertificate}})
		v.Clock = dsig.NewFakeClockAt(testTime)
		_, err := v.Validate(doc.Root())
		return err
	}
	if err := check(raw); err != nil {
		t.Error(err)
	}
	if check(edited(t, raw, `Version="1"`, `Version="2"`)) == nil {
		t.Error("the other implementation accepts a changed document, so this test proves nothing")
	}
}

func TestRefusesChangedMetadata(t *testing.T) {
	raw := testMetadata(t, guardianSigning, guardianEncryption)
	signing := between(t, raw, "<SigningCertificate>", "</SigningCertificate>")
	encryption := between(t, raw, "<EncryptionCertificate>", "</EncryptionCertificate>")
	other := base64.StdEncoding.EncodeToString(certify(t, "other", testKeys()[otherEncryption]).Raw)
	value := between(t, raw, "<ds:SignatureValue>", "</ds:SignatureValue>")
	for name, c := range map[string][2]string{
		"version":                   {`Version="1"`, `Version="2"`},
		"no version":                {` Version="1"`, ``},
		"other encryption key":      {encryption, other},
		"other signing key":         {signing, other},
		"other namespace":           {Namespace, ServiceNamespace},
		"unknown child":             {"</GuardianInformation>", "<Extra/></GuardianInformation>"},
		"SHA-1 inside":              {`EncryptionCertificateSignature Algorithm="` + RSASHA256, `EncryptionCertificateSignature Algorithm="http://www.w3.org/2000/09/xmldsig#rsa-sha1`},
		"reference to elsewhere":    {`URI=""`, `URI="#x"`},
		"wrong signature":           {value, base64.StdEncoding.EncodeToString(make([]byte, 256))},
		"wrong digest":              {between(t, raw, "<ds:DigestValue>", "</ds:DigestValue>"), base64.StdEncoding.EncodeToString(make([]byte, 32))},
		"text added":                {"<GuardianInformation>", "<GuardianInformation>\n"},
		"element after the end":     {"</Metadata>", `<Extra/></Metadata>`},
		"second signature":          {"</Metadata>", `<ds:Signature xmlns:ds="` + dsigNamespace + `"/></Metadata>`},
		"two references":            {"</ds:SignedInfo>", "<ds:Reference/></ds:SignedInfo>"},
		"embedded certificate swap": {between(t, raw, "<ds:X509Certificate>", "</ds:X509Certificate>"), other},
	} {
		if _, err := ParseMetadata(edited(t, raw, c[0], c[1])); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestUnsignedMetadataIsReadWithAWarning(t *testing.T) {
	raw := testMetadata(t, guardianSigning, guardianEncryption)
	sig := "<ds:Signature " + between(t, raw, "<ds:Signature ", "</ds:Signature>") + "</ds:Signature>"
	info := "<GuardianInformation>" + between(t, raw, "<GuardianInformation>", "</GuardianInformation>") + "</GuardianInformation>"
	for name, c := range map[string]struct {
		doc  []byte
		want DocumentSignature
	}{
		"no signature":        {edited(t, raw, sig, ""), SignatureAbsent},
		"bare information":    {[]byte(strings.Replace(info, ">", ` xmlns="`+Namespace+`">`, 1)), SignatureAbsent},
		"further elements":    {edited(t, raw, sig, `<x:Extra xmlns:x="urn:x">text</x:Extra>`), SignatureAbsent},
		"SHA-1 signature":     {edited(t, raw, `<ds:SignatureMethod Algorithm="`+RSASHA256, `<ds:SignatureMethod Algorithm="http://www.w3.org/2000/09/xmldsig#rsa-sha1`), SignatureUnsupported},
		"other canonical":     {edited(t, raw, `<ds:CanonicalizationMethod Algorithm="`+excC14N, `<ds:CanonicalizationMethod Algorithm="urn:c`), SignatureUnsupported},
		"other transform":     {edited(t, raw, `<ds:Transform Algorithm="`+excC14N, `<ds:Transform Algorithm="urn:c`), SignatureUnsupported},
		"SHA-1 digest":        {edited(t, raw, `<ds:DigestMethod Algorithm="`+digestSHA256, `<ds:DigestMethod Algorithm="http://www.w3.org/2000/09/xmldsig#sha1`), SignatureUnsupported},
		"key without X.509":   {edited(t, raw, "<ds:KeyInfo>", "<ds:KeyInfo><ds:KeyName>x</ds:KeyName>"), SignatureUnsupported},
		"no certificate list": {edited(t, raw, "<ds:X509Certificate>"+between(t, raw, "<ds:X509Certificate>", "</ds:X509Certificate>")+"</ds:X509Certificate>", ""), SignatureUnsupported},
	} {
		m, err := ParseMetadata(c.doc)
		if err != nil || m.Signature != c.want {
			t.Errorf("%s: %v, %v", name, m, err)
			continue
		}
		if _, warnings, err := m.Import(ImportOptions{AllowUntrustedRoot: true, Now: testTime}); err != nil || len(warnings) != 3 {
			t.Errorf("%s: warnings %q, %v", name, warnings, err)
		}
		if _, _, err := m.Import(ImportOptions{AllowUntrustedRoot: true, Now: testTime, Communications: certify(t, "c", testKeys()[communications])}); err == nil {
			t.Errorf("%s: imported although a communications certificate was demanded", name)
		}
	}
}

func TestImportNeedsTrustAndValidityUnlessAllowed(t *testing.T) {
	m, err := ParseMetadata(testMetadata(t, guardianSigning, guardianEncryption))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(m.SigningCertificate)
	roots.AddCert(m.EncryptionCertificate)
	late := testTime.Add(48 * time.Hour)
	for name, c := range map[string]struct {
		o        ImportOptions
		ok       bool
		warnings int
	}{
		"trusted":                      {ImportOptions{Roots: roots, Now: testTime}, true, 0},
		"untrusted":                    {ImportOptions{Now: testTime}, false, 0},
		"untrusted allowed":            {ImportOptions{Now: testTime, AllowUntrustedRoot: true}, true, 2},
		"expired":                      {ImportOptions{Roots: roots, Now: late}, false, 0},
		"not yet valid":                {ImportOptions{Roots: roots, Now: testTime.Add(-48 * time.Hour)}, false, 0},
		"expired allowed":              {ImportOptions{Roots: roots, Now: late, AllowExpired: true}, true, 2},
		"expired allowed, untrusted":   {ImportOptions{Now: late, AllowExpired: true}, false, 0},
		"the named communications key": {ImportOptions{Roots: roots, Now: testTime, Communications: m.CommunicationsCertificate}, true, 0},
		"another communications key":   {ImportOptions{Roots: roots, Now: testTime, Communications: m.SigningCertificate}, false, 0},
	} {
		_, warnings, err := m.Import(c.o)
		if (err == nil) != c.ok || len(warnings) != c.warnings {
			t.Errorf("%s: %v, %q", name, err, warnings)
		}
	}
}

func TestMetadataNamesTheMissingCertificate(t *testing.T) {
	c := certify(t, "x", testKeys()[guardianSigning])
	if _, err := MakeMetadata(MetadataSpec{}); CodeOf(err) != CodeNoPrimaryEncryption {
		t.Error(err)
	}
	if _, err := MakeMetadata(MetadataSpec{EncryptionCertificate: c}); CodeOf(err) != CodeNoPrimarySigning {
		t.Error(err)
	}
}

func TestOtherSigningCertificatesTravel(t *testing.T) {
	k := testKeys()
	other := certify(t, "other", k[otherSigning])
	raw, err := MakeMetadata(MetadataSpec{SigningCertificate: certify(t, "s", k[guardianSigning]), EncryptionCertificate: certify(t, "e", k[guardianEncryption]),
		Others: []*x509.Certificate{other}, Signer: k[guardianSigning], Random: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	m, err := ParseMetadata(raw)
	if err != nil || len(m.OtherSigningCertificates) != 1 || !m.OtherSigningCertificates[0].Equal(other) || m.Signature != SignatureAbsent {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestMetadataIsSignedWithTheKeysOfItsCertificates(t *testing.T) {
	k := testKeys()
	spec := MetadataSpec{SigningCertificate: certify(t, "s", k[guardianSigning]), EncryptionCertificate: certify(t, "e", k[guardianEncryption]),
		Signer: k[guardianSigning], CommunicationsCertificate: certify(t, "c", k[communications]), CommunicationsSigner: k[otherSigning], Random: rand.Reader}
	if _, err := MakeMetadata(spec); err == nil {
		t.Error("a communications key that is not the certificate's is used")
	}
}
