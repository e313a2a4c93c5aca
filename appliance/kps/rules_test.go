package kps

// One negative test for each rule of kps.md 9.1 and 9.2 that this package keeps.

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestEveryRuleHasItsTest reads the test files of everybody who keeps these rules, by name.
func TestEveryRuleHasItsTest(t *testing.T) {
	var all strings.Builder
	for _, dir := range []string{".", "../protect", "../../cmd/hostsim"} {
		files, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if strings.HasSuffix(f.Name(), "_test.go") {
				b, err := os.ReadFile(dir + "/" + f.Name())
				if err != nil {
					t.Fatal(err)
				}
				all.Write(b)
			}
		}
	}
	want := []string{"Rule9_1_1", "Rule9_1_2", "Rule9_1_3", "Rule9_1_4a", "Rule9_1_4b", "Rule9_1_4c", "Rule9_1_4d", "Rule9_1_4e", "Rule9_1_5", "Rule9_1_6", "Rule9_1_7", "Rule9_1_8",
		"Rule9_2_DuplicateIds", "Rule9_2_OneOwner", "Rule9_2_Cycles", "Rule9_2_TooManyWrappings", "Rule9_2_DocumentType", "Rule9_2_Entities", "Rule9_2_UnknownChildren",
		"Rule9_2_Size", "Rule9_2_WeakKeys", "Rule9_2_ComparedByPublicKey", "Rule9_2_SigningKeyHeldAndEnabled", "Rule9_2_SecretsFailAlike", "Rule9_2_RateLimit", "Rule9_2_NoProofOfIdentity"}
	for i := 1; i <= 22; i++ {
		want = append(want, fmt.Sprintf("P14_%02d", i))
	}
	for _, name := range want {
		if !regexp.MustCompile(`\nfunc Test` + name + `_`).MatchString(all.String()) {
			t.Errorf("no test named Test%s_...", name)
		}
	}
}

// refusedWith wants a code for an edited protector.
func refusedWith(t *testing.T, raw []byte, code Code) {
	t.Helper()
	if _, err := whole(t, raw); err == nil || CodeOf(err) != code {
		t.Errorf("%v, want %s", err, code)
	}
}

func TestRule9_1_2_WhatIsNotXMLIsNoProtector(t *testing.T) {
	p, _ := testProtector(t)
	for _, raw := range [][]byte{nil, []byte("x"), {0, 0, 0, 4}, p.Bytes()[:len(p.Bytes())-1], append(bytes.Clone(p.Bytes()), 'x'), bytes.Replace(p.Bytes(), []byte("</Id>"), []byte("</ID>"), 1),
		bytes.Repeat([]byte("<a>"), 1000), []byte("\xff\xfe<\x00")} {
		refusedWith(t, raw, CodeInvalidProtector)
	}
}

func TestRule9_1_3_BothSignaturesOfTheProtectorMustHold(t *testing.T) {
	p, tk := testProtector(t)
	guardian := base64.StdEncoding.EncodeToString(p.GuardianSignature.Value)
	mac := base64.StdEncoding.EncodeToString(p.TransportKeyMAC.Value)
	zero := base64.StdEncoding.EncodeToString(make([]byte, 256))
	for name, c := range map[string][2]string{
		"dangling guardian":      {`<GuardianSignature WrappingId="1"`, `<GuardianSignature WrappingId="4"`},
		"no guardian":            {` WrappingId="1"`, ``},
		"another guardian":       {`<GuardianSignature WrappingId="1"`, `<GuardianSignature WrappingId="3"`},
		"guardian signature":     {guardian, zero},
		"short signature":        {guardian, base64.StdEncoding.EncodeToString(p.GuardianSignature.Value[:255])},
		"transport key MAC":      {mac, base64.StdEncoding.EncodeToString(make([]byte, 32))},
		"no transport signature": {"<TransportKeySignature>" + between(t, p.Bytes(), "<TransportKeySignature>", "</TransportKeySignature>") + "</TransportKeySignature>", ""},
	} {
		t.Run(name, func(t *testing.T) { refusedWith(t, edited(t, p.Bytes(), c[0], c[1]), CodeInvalidProtector) })
	}
	// Both are over the bytes as received: the same infoset, written otherwise, is another document.
	refusedWith(t, edited(t, p.Bytes(), "<Wrappings><Wrapping>", "<Wrappings>\n<Wrapping>"), CodeInvalidProtector)
	q := resealed(t, p, tk, func(w []Wrapping) { w[2].TransportKey.Value = w[1].TransportKey.Value })
	mixed := edited(t, p.Bytes(), base64.StdEncoding.EncodeToString(p.Wrappings[2].TransportKey.Value), base64.StdEncoding.EncodeToString(q.Wrappings[2].TransportKey.Value))
	refusedWith(t, mixed, CodeInvalidProtector)
}

func TestRule9_1_4a_CertificatesMustBeX509(t *testing.T) {
	p, _ := testProtector(t)
	for _, element := range []string{"SigningCertificate", "EncryptionCertificate"} {
		cert := between(t, p.Bytes(), "<"+element+">", "</"+element+">")
		der, _ := base64.StdEncoding.DecodeString(cert)
		for name, to := range map[string]string{"empty": "", "not base64": "%", "not DER": "AAAA", "cut": base64.StdEncoding.EncodeToString(der[:len(der)-1]),
			"bytes after": base64.StdEncoding.EncodeToString(append(bytes.Clone(der), 0)), "an element": "<x/>", "PEM": "-----BEGIN CERTIFICATE-----"} {
			t.Run(element+" "+name, func(t *testing.T) {
				refusedWith(t, edited(t, p.Bytes(), "<"+element+">"+cert, "<"+element+">"+to), CodeInvalidWrapping)
			})
		}
	}
}

func TestRule9_1_4b_EveryParentMustBeThere(t *testing.T) {
	p, tk := testProtector(t)
	refusedWith(t, resealed(t, p, tk, func(w []Wrapping) { w[2].ParentID = 9 }).Bytes(), CodeInvalidWrapping)
	refusedWith(t, edited(t, p.Bytes(), ` ParentWrappingId="1"`, ""), CodeInvalidWrapping)
	refusedWith(t, edited(t, p.Bytes(), `ParentWrappingId="1"`, `ParentWrappingId="x"`), CodeInvalidWrapping)
}

func TestRule9_1_4c_EveryWrappingMustChainUpToTheOwner(t *testing.T) {
	p, tk := testProtector(t)
	refusedWith(t, resealed(t, p, tk, func(w []Wrapping) { w[1].ParentID, w[2].ParentID = 3, 2 }).Bytes(), CodeInvalidWrapping)
}

func TestRule9_1_4d_TheParentMustHaveSignedTheSigningCertificate(t *testing.T) {
	p, tk := testProtector(t)
	for name, change := range map[string]func(w []Wrapping){
		"by another wrapping": func(w []Wrapping) { w[2].ParentID = 2 },
		"of another one":      func(w []Wrapping) { w[2].SigningCertificateSignature = w[1].SigningCertificateSignature },
		"owner by a guardian": func(w []Wrapping) { w[0].SigningCertificateSignature = w[1].SigningCertificateSignature },
		"certificate swapped": func(w []Wrapping) {
			w[1].SigningCertificate, w[1].signingText = certify(t, "x", testKeys()[guardianSigning]), certificateText{}
		},
	} {
		t.Run(name, func(t *testing.T) { refusedWith(t, resealed(t, p, tk, change).Bytes(), CodeInvalidWrapping) })
	}
}

func TestRule9_1_4e_ItsOwnKeyMustHaveSignedTheEncryptionCertificate(t *testing.T) {
	p, tk := testProtector(t)
	for name, change := range map[string]func(w []Wrapping){
		"of another one": func(w []Wrapping) { w[1].EncryptionCertificateSignature = w[2].EncryptionCertificateSignature },
		"owner's":        func(w []Wrapping) { w[0].EncryptionCertificateSignature = w[1].EncryptionCertificateSignature },
		"certificate swapped": func(w []Wrapping) {
			w[1].EncryptionCertificate, w[1].encryptionText = certify(t, "x", testKeys()[hostKey]), certificateText{}
		},
	} {
		t.Run(name, func(t *testing.T) { refusedWith(t, resealed(t, p, tk, change).Bytes(), CodeInvalidWrapping) })
	}
}

func TestRule9_1_6_OnlyTheKeyOfTheServicesWrappingSignsTheNextVersion(t *testing.T) {
	p, tk := testProtector(t)
	for name, key := range map[string]int{"another guardian's": otherSigning, "the encryption key": guardianEncryption, "the owner's": ownerSigning} {
		if _, _, err := p.NextVersion(Egress{Ingress: &TransportKey{Key: tk}, Guardian: p.Wrapping(2), Signer: testKeys()[key], Random: rand.Reader}); err == nil {
			t.Errorf("signed with %s key", name)
		}
	}
	// A token that signs wrongly gives nobody a protector that nobody can open.
	if _, _, err := p.NextVersion(Egress{Ingress: &TransportKey{Key: tk}, Guardian: p.Wrapping(2), Signer: faulty{testKeys()[guardianSigning]}, Random: rand.Reader}); err == nil {
		t.Error("a wrong signature was written")
	}
}

func TestRule9_1_7_TheNextVersionIsSignedWithTheNewTransportKeyOnly(t *testing.T) {
	p, tk := testProtector(t)
	_, signer := service()
	q, next, err := p.NextVersion(Egress{Ingress: &TransportKey{Key: tk}, Guardian: p.Wrapping(2), Signer: signer, Random: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	if q.VerifyTransportKey(tk) == nil {
		t.Error("the old key still signs")
	}
	if q.VerifyTransportKey(next.Key) != nil {
		t.Error("the new key does not sign")
	}
	if p.VerifyTransportKey(next.Key) == nil {
		t.Error("the new key signs the old version")
	}
}

func TestRule9_1_8_OnlyTheCertifiedKeyReadsTheReply(t *testing.T) {
	p, tk := testProtector(t)
	req := NewRequest(p.Bytes(), []byte{1})
	resp, err := rollOnce(t, req, PayloadV2, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range testKeys() {
		_, err := req.OpenReply(t.Context(), resp, MemoryKey{testKeys()[i]})
		if (err == nil) != (i == hostKey) {
			t.Errorf("key %d: %v", i, err)
		}
	}
	if bytes.Contains(resp.Marshal(), []byte(base64.StdEncoding.EncodeToString(tk))) {
		t.Error("the transport key lies in the reply")
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := req.SealReply(Reply{Version: PayloadV2, Ingress: &TransportKey{Key: tk}, Egress: &TransportKey{Key: make([]byte, 32)}, Protector: p, HostKey: &weak.PublicKey, Random: rand.Reader}); err == nil {
		t.Error("sealed to a weak key")
	}
}

func TestRule9_2_DuplicateIds_AreRefused(t *testing.T) {
	p, tk := testProtector(t)
	for _, id := range []uint32{1, 3} {
		refusedWith(t, resealed(t, p, tk, func(w []Wrapping) { w[1].ID = id }).Bytes(), CodeInvalidWrapping)
	}
}

func TestRule9_2_OneOwner_NoMoreAndNoLess(t *testing.T) {
	p, tk := testProtector(t)
	refusedWith(t, resealed(t, p, tk, func(w []Wrapping) { w[0].ParentID = 2 }).Bytes(), CodeInvalidWrapping)
	refusedWith(t, resealed(t, p, tk, func(w []Wrapping) { w[1].ParentID = 2 }).Bytes(), CodeInvalidWrapping)
}

func TestRule9_2_Cycles_AreRefused(t *testing.T) {
	p, tk := testProtector(t)
	refusedWith(t, resealed(t, p, tk, func(w []Wrapping) { w[1].ParentID, w[2].ParentID = 3, 2 }).Bytes(), CodeInvalidWrapping)
	refusedWith(t, resealed(t, p, tk, func(w []Wrapping) { w[0].ParentID, w[1].ParentID, w[2].ParentID = 2, 3, 1 }).Bytes(), CodeInvalidWrapping)
}

func TestRule9_2_TooManyWrappings_AreRefusedBeforeAnySignature(t *testing.T) {
	p, _ := testProtector(t)
	one := "<Wrapping>" + between(t, p.Bytes(), "<Wrapping>", "</Wrapping>") + "</Wrapping>"
	for _, n := range []int{0, MaxWrappings + 1, 150} {
		raw := edited(t, p.Bytes(), between(t, p.Bytes(), "<Wrappings>", "</Wrappings>"), strings.Repeat(one, n))
		if _, err := ParseProtector(raw); CodeOf(err) != CodeInvalidProtector {
			t.Errorf("%d: %v", n, err)
		}
	}
}

func TestRule9_2_DocumentType_IsRefused(t *testing.T) {
	p, _ := testProtector(t)
	for _, dtd := range []string{`<!DOCTYPE Protector>`, `<!DOCTYPE Protector SYSTEM "http://192.0.2.1/x">`, `<!DOCTYPE a [<!ENTITY b "c">]>`, `<!doctype html>`, `<!ELEMENT a ANY>`} {
		refusedWith(t, edited(t, p.Bytes(), "<Protector", dtd+"<Protector"), CodeInvalidProtector)
		refusedWith(t, edited(t, p.Bytes(), "<Wrapping>", dtd+"<Wrapping>"), CodeInvalidProtector)
	}
}

func TestRule9_2_Entities_AreRefused(t *testing.T) {
	p, _ := testProtector(t)
	for _, to := range []string{"<Id>&one;</Id>", "<Id>&lol9;</Id>", "<Id>&#x0;1</Id>", "<Id>&#x110000;1</Id>", "<Id>&nbsp;1</Id>", "<Id>&1</Id>"} {
		refusedWith(t, edited(t, p.Bytes(), "<Id>1</Id>", to), CodeInvalidProtector)
	}
}

func TestRule9_2_UnknownChildren_AreRefusedOutsideOfParameters(t *testing.T) {
	p, _ := testProtector(t)
	raw := p.Bytes()
	for _, element := range []string{"Protector", "Wrappings", "Wrapping", "SigningCertificateSignature", "Signature", "EncryptionCertificateSignature", "TransportKey", "EncryptedData", "TransportKeySignature", "KeyDerivationMethod", "GuardianSignature"} {
		if _, err := whole(t, edited(t, raw, "</"+element+">", "<Extra/></"+element+">")); err == nil {
			t.Errorf("a last child of %s is accepted", element)
		}
		if _, err := whole(t, edited(t, raw, "</"+element+">", "text</"+element+">")); err == nil {
			t.Errorf("text in %s is accepted", element)
		}
	}
	for _, leaf := range []string{"Id", "SigningCertificate", "EncryptionCertificate", "SignatureValue", "CipherValue"} {
		if _, err := whole(t, edited(t, raw, "</"+leaf+">", "<Extra/></"+leaf+">")); err == nil {
			t.Errorf("a child of %s is accepted", leaf)
		}
		if _, err := whole(t, edited(t, raw, "<"+leaf+">", "<"+leaf+` extra="1">`)); err == nil {
			t.Errorf("an attribute of %s is accepted", leaf)
		}
	}
}

func TestRule9_2_Size_IsBounded(t *testing.T) {
	p, _ := testProtector(t)
	pad := strings.Repeat(" ", MaxDocument)
	refusedWith(t, edited(t, p.Bytes(), "</Wrappings>", "</Wrappings>"+pad), CodeInvalidProtector)
	refusedWith(t, edited(t, p.Bytes(), "<Wrappings>", strings.Repeat("<a>", 100)+strings.Repeat("</a>", 100)+"<Wrappings>"), CodeInvalidProtector)
	refusedWith(t, edited(t, p.Bytes(), "<Wrappings>", strings.Repeat("<a/>", 10000)+"<Wrappings>"), CodeInvalidProtector)
	refusedWith(t, edited(t, p.Bytes(), "<Protector ", "<Protector "+strings.Repeat(`a="1" `, 100)), CodeInvalidProtector)
}

func TestRule9_2_WeakKeys_AreRefused(t *testing.T) {
	p, _ := testProtector(t)
	for _, bits := range []int{1024, 2040} {
		weak, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		cert := base64.StdEncoding.EncodeToString(certify(t, "weak", weak).Raw)
		for _, element := range []string{"SigningCertificate", "EncryptionCertificate"} {
			old := between(t, p.Bytes(), "<"+element+">", "</"+element+">")
			refusedWith(t, edited(t, p.Bytes(), old, cert), CodeInvalidWrapping)
		}
	}
}
