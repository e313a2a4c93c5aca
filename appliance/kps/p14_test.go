package kps

// One test for each open point of the specification (kps.md section 14) that this package settles; package protect and cmd/hostsim have
// the others, and TestEveryRuleHasItsTest counts them.

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
)

func TestP14_01_AVersionNobodyKnowsIsNoRoll(t *testing.T) {
	for _, segment := range []string{"v3.0", "v2.1", "2014-08", "v", "0", "V1.0.0"} {
		r := Match("/KeyProtection/service/" + segment + "/rolltransportkey")
		if r.Operation != OpUnknownVersion || r.Segment != strings.ToLower(segment) || r.Version != 0 {
			t.Errorf("%s: %+v", segment, r)
		}
	}
}

func TestP14_02_UnknownURIsAreRefusedVerbatimAndBounded(t *testing.T) {
	p, _ := testProtector(t)
	long := "urn:" + strings.Repeat("x", 5000)
	for name, old := range map[string]string{
		"certificate signature": `Algorithm="` + RSASHA256, "guardian signature": `<GuardianSignature WrappingId="1"><Signature Algorithm="` + RSASHA256,
		"key encryption": `Algorithm="` + RSAOAEP, "digest": `<ds:DigestMethod xmlns:ds="` + dsigNamespace + `" Algorithm="` + digestSHA256,
		"mask generation": `Algorithm="http://www.w3.org/2009/xmlenc11#mgf1sha256`, "key derivation": `Algorithm="` + ConcatKDF, "MAC": `Algorithm="` + HMACSHA256,
	} {
		for _, uri := range []string{"urn:unheard-of?a=1&amp;b", long} {
			_, err := ParseProtector(edited(t, p.Bytes(), old, old[:strings.LastIndex(old, `Algorithm="`)]+`Algorithm="`+uri))
			var r *Refusal
			want := strings.ReplaceAll(uri, "&amp;", "&")
			if !errors.As(err, &r) || r.Code != CodeInvalidProtector || r.Algorithm == "" || !strings.HasPrefix(want, strings.TrimSuffix(r.Algorithm, "...")) || len(err.Error()) > 600 {
				t.Errorf("%s: %.300v", name, err)
			}
		}
	}
	for i := range 3 {
		r := NewRequest([]byte{1}, []byte{1})
		*[]*string{&r.TransferKeyEncryptionAlgorithm, &r.WrappingKeyEncryptionAlgorithm, &r.TransportKeysEncryptionAlgorithm}[i] = "http://www.w3.org/2001/04/xmlenc#aes256-cbc"
		if err := r.CheckAlgorithms(); CodeOf(err) != CodeUnsupportedAlgorithm || !strings.Contains(err.Error(), "aes256-cbc") {
			t.Errorf("request %d: %v", i, err)
		}
	}
}

func TestP14_03_ParametersThatMustBeUnderstoodAre(t *testing.T) {
	p, _ := testProtector(t)
	const digest = `<ds:DigestMethod`
	for name, c := range map[string][2]string{
		"an OAEP label":         {"<Parameters>" + digest, `<Parameters><OAEPparams xmlns="` + xencNamespace + `">AQID</OAEPparams>` + digest},
		"an unknown OAEP child": {"<Parameters>" + digest, `<Parameters><Salt xmlns="urn:x"/>` + digest},
		"children out of order": {"<xenc11:MGF", `<ds:DigestMethod xmlns:ds="` + dsigNamespace + `" Algorithm="` + digestSHA256 + `"/><xenc11:MGF`},
		"content of a digest":   {digest + ` xmlns:ds="` + dsigNamespace + `" Algorithm="` + digestSHA256 + `">`, digest + ` xmlns:ds="` + dsigNamespace + `" Algorithm="` + digestSHA256 + `">x`},
		"text in Parameters":    {"<Parameters>" + digest, "<Parameters>x" + digest},
		"derivation":            {"<xenc11:ConcatKDFParams", `<x:Extra xmlns:x="urn:x"/><xenc11:ConcatKDFParams`},
	} {
		if _, err := whole(t, edited(t, p.Bytes(), c[0], c[1])); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// foreignForm signs the certificates of wrapping 2 over another form of them.
func foreignForm(t *testing.T, message func(name, text string) string) *Protector {
	t.Helper()
	p, tk := testProtector(t)
	sign := func(key int, name string, cert *x509.Certificate) Signature {
		s, err := signRSA(testKeys()[key], rand.Reader, []byte(message(name, base64.StdEncoding.EncodeToString(cert.Raw))))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	return resealed(t, p, tk, func(w []Wrapping) {
		w[1].SigningCertificateSignature = sign(ownerSigning, "SigningCertificate", w[1].SigningCertificate)
		w[1].EncryptionCertificateSignature = sign(guardianSigning, "EncryptionCertificate", w[1].EncryptionCertificate)
	})
}

func TestP14_04_OtherFormsOfCertificatesCountOnlyWhereSwitchedOn(t *testing.T) {
	for name, c := range map[string]struct {
		form string // that must be needed; empty: refused either way
		text func(name, text string) string
	}{
		"base64 text": {"base64", func(_, text string) string { return text }},
		"canonical element": {"element", func(name, text string) string {
			return "<" + name + ` xmlns="` + Namespace + `">` + text + "</" + name + ">"
		}},
		"element, no xmlns": {"", func(name, text string) string { return "<" + name + ">" + text + "</" + name + ">" }},
		"other element": {"", func(_, text string) string {
			return `<Certificate xmlns="` + Namespace + `">` + text + "</Certificate>"
		}},
		"nothing": {"", func(_, _ string) string { return "" }},
	} {
		t.Run(name, func(t *testing.T) {
			p := foreignForm(t, c.text)
			if err := p.Verify(); CodeOf(err) != CodeInvalidWrapping {
				t.Errorf("without the switch: %v", err)
			}
			used, err := p.VerifyForeign()
			if c.form == "" {
				if CodeOf(err) != CodeInvalidWrapping {
					t.Errorf("with the switch: %v", err)
				}
				return
			}
			if err != nil || len(used) != 1 || used[0] != c.form {
				t.Fatalf("with the switch: %v, %v", used, err)
			}
			key, signer := service()
			opened, err := p.OpenTransportKey(t.Context(), p.Wrapping(2), key, rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			q, _, err := p.NextVersion(Egress{Ingress: opened, Guardian: p.Wrapping(2), Signer: signer, Random: rand.Reader})
			if err != nil {
				t.Fatal(err)
			}
			if q, err = ParseProtector(q.Bytes()); err != nil {
				t.Fatal(err)
			}
			if used, err := q.VerifyForeign(); err != nil || len(used) != 1 {
				t.Errorf("the next version: %v, %v", used, err)
			}
		})
	}
}

// TestP14_04_TheTextOfACertificateSurvivesARoll, since a foreign form may cover its line breaks.
func TestP14_04_TheTextOfACertificateSurvivesARoll(t *testing.T) {
	lines := func(text string) string { return text[:64] + "\r\n" + text[64:128] + "\n" + text[128:] }
	p, tk := testProtector(t)
	q := resealed(t, p, tk, func(w []Wrapping) {
		text := lines(base64.StdEncoding.EncodeToString(w[1].SigningCertificate.Raw))
		text = strings.Replace(text, "\r\n", "\r", 1) // as it is after "&#xD;" was read
		w[1].signingText = certificateText{text: text, bare: true}
		s, err := signRSA(testKeys()[ownerSigning], rand.Reader, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		w[1].SigningCertificateSignature = s
	})
	if !bytes.Contains(q.Bytes(), []byte("&#xD;")) {
		t.Fatal("the carriage return is not in the document, so this test proves nothing")
	}
	key, signer := service()
	opened, err := q.OpenTransportKey(t.Context(), q.Wrapping(2), key, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	next, _, err := q.NextVersion(Egress{Ingress: opened, Guardian: q.Wrapping(2), Signer: signer, Random: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	if next, err = ParseProtector(next.Bytes()); err != nil {
		t.Fatal(err)
	}
	if used, err := next.VerifyForeign(); err != nil || len(used) != 1 || used[0] != "base64" {
		t.Errorf("%v, %v", used, err)
	}
}

func TestP14_05_WeakOrForeignSignatureSchemesAreRefused(t *testing.T) {
	p, _ := testProtector(t)
	for _, uri := range []string{"http://www.w3.org/2000/09/xmldsig#rsa-sha1", "http://www.w3.org/2001/04/xmldsig-more#rsa-md5", "http://www.w3.org/2007/05/xmldsig-more#sha1-rsa-MGF1",
		"http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha256", "http://www.w3.org/2007/05/xmldsig-more#rsa-pss", strings.ToUpper(RSASHA256), RSASHA256 + " "} {
		if _, err := whole(t, edited(t, p.Bytes(), `Algorithm="`+RSASHA256+`"`, `Algorithm="`+uri+`"`)); CodeOf(err) != CodeInvalidProtector {
			t.Errorf("%s: %v", uri, err)
		}
	}
	// A valid signature under another scheme's name is not valid.
	if _, err := whole(t, edited(t, p.Bytes(), `Algorithm="`+RSASHA256+`"`, `Algorithm="http://www.w3.org/2007/05/xmldsig-more#sha256-rsa-MGF1"`)); err == nil {
		t.Error("PKCS#1 v1.5 passes as PSS")
	}
}

func TestP14_06_ATransportKeySignatureOfAnotherKindIsRefused(t *testing.T) {
	p, tk := testProtector(t)
	mac := base64.StdEncoding.EncodeToString(p.TransportKeyMAC.Value)
	signature, err := signRSA(testKeys()[ownerSigning], rand.Reader, p.canonical)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string][2]string{
		"half a tag":                   {mac, base64.StdEncoding.EncodeToString(p.TransportKeyMAC.Value[:16])},
		"a longer tag":                 {mac, base64.StdEncoding.EncodeToString(append(bytes.Clone(p.TransportKeyMAC.Value), 0))},
		"a MAC with the key itself":    {mac, base64.StdEncoding.EncodeToString(macOf(tk, p.canonical))},
		"another derivation":           {`PartyUInfo="00"`, `PartyUInfo="0041"`},
		"another digest of derivation": {`</xenc11:ConcatKDFParams>`, `<!-- -->x</xenc11:ConcatKDFParams>`},
		"an RSA signature":             {HMACSHA256 + `"><SignatureValue>` + mac, RSASHA256 + `"><SignatureValue>` + base64.StdEncoding.EncodeToString(signature.Value)},
		"HMAC with SHA-1":              {`Algorithm="` + HMACSHA256, `Algorithm="http://www.w3.org/2000/09/xmldsig#hmac-sha1`},
	} {
		if _, err := whole(t, edited(t, p.Bytes(), c[0], c[1])); CodeOf(err) != CodeInvalidProtector {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// macOf is the MAC without a derivation.
func macOf(key, message []byte) []byte {
	h := crypto.SHA256.New()
	h.Write(key)
	h.Write(message)
	return h.Sum(nil)
}

func TestP14_07_AReplyThatWasTamperedWithDoesNotOpen(t *testing.T) {
	p, _ := testProtector(t)
	req := NewRequest(p.Bytes(), []byte{1})
	good, err := rollOnce(t, req, PayloadV2, 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, part := range map[string]func(*RollTransportKeyResponse) *[]byte{
		"transfer key":   func(r *RollTransportKeyResponse) *[]byte { return &r.EncryptedTransferKey },
		"wrapping key":   func(r *RollTransportKeyResponse) *[]byte { return &r.EncryptedWrappingKey },
		"transport keys": func(r *RollTransportKeyResponse) *[]byte { return &r.EncryptedTransportKeys },
	} {
		for at, change := range map[string]func([]byte) []byte{
			"first byte": func(b []byte) []byte { b[0] ^= 1; return b }, "middle": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
			"last byte": func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, "cut": func(b []byte) []byte { return b[:len(b)-1] },
			"longer": func(b []byte) []byte { return append(b, 0) }, "empty": func([]byte) []byte { return nil },
		} {
			r := *good
			value := part(&r)
			*value = change(bytes.Clone(*value))
			if _, err := req.OpenReply(t.Context(), &r, MemoryKey{testKeys()[hostKey]}); err == nil {
				t.Errorf("%s, %s: opened", name, at)
			}
		}
	}
	other := *req
	other.TransferKeyEncryptionAlgorithm = RSAOAEPMGF1P
	if _, err := other.OpenReply(t.Context(), good, MemoryKey{testKeys()[hostKey]}); err == nil {
		t.Error("opened under another padding than was asked for")
	}
}

func TestP14_08_APlaintextThatIsNeitherAKeyNorABLOBOfOneIsRefused(t *testing.T) {
	p, tk := testProtector(t)
	blob := func(v PayloadVersion, keys [][]byte, policies ...Policy) []byte {
		b, err := (&Payload{Version: v, Keys: keys, Policies: policies}).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	short := blob(PayloadV1, [][]byte{tk})
	for name, plain := range map[string][]byte{
		"two keys": blob(PayloadV1, [][]byte{tk, tk}), "with a policy": blob(PayloadV2, [][]byte{tk}, OfflinePolicy(1)), "a BLOB and a byte": append(short, 0),
		"a BLOB that was cut": short[:len(short)-1], "version 3": func() []byte { b := bytes.Clone(short); b[4] = 3; return b }(), "nothing": {},
	} {
		if _, err := p.OpenTransportKey(t.Context(), p.Wrapping(2), returning{plain}, rand.Reader); err != error(errTransportKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, plain := range map[string][]byte{"raw": tk, "V1": short, "V2": blob(PayloadV2, [][]byte{tk})} {
		if _, err := p.OpenTransportKey(t.Context(), p.Wrapping(2), returning{plain}, rand.Reader); err != nil {
			t.Errorf("the control, %s: %v", name, err)
		}
	}
}

func TestP14_09_TransportKeysHaveABoundedLengthThatARollKeeps(t *testing.T) {
	first, _ := testProtector(t)
	with := func(n int) *Protector {
		p, err := (*Protector)(nil).rewrap(&TransportKey{Key: bytes.Repeat([]byte{7}, n)},
			sealing{derivation: first.KeyDerivation, guardianID: 1, signer: testKeys()[ownerSigning], random: rand.Reader}, append([]Wrapping(nil), first.Wrappings...))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	key, signer := service()
	for _, n := range []int{1, MinTransportKey - 1, MaxTransportKey + 1} {
		p := with(n)
		if _, err := p.OpenTransportKey(t.Context(), p.Wrapping(2), key, rand.Reader); err != error(errTransportKey) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	for _, n := range []int{MinTransportKey, 24, 32, 64, MaxTransportKey} {
		p := with(n)
		opened, err := p.OpenTransportKey(t.Context(), p.Wrapping(2), key, rand.Reader)
		if err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		if _, next, err := p.NextVersion(Egress{Ingress: opened, Guardian: p.Wrapping(2), Signer: signer, Random: rand.Reader}); err != nil || len(next.Key) != n {
			t.Errorf("%d bytes became another length: %v", n, err)
		}
	}
}

func TestP14_10_ABLOBInAnotherByteOrderOrKeysInAnotherOrderAreRefused(t *testing.T) {
	big := make([]byte, 16, 80)
	for i, v := range []uint32{80, 1, 2, 32} {
		binary.BigEndian.PutUint32(big[4*i:], v)
	}
	if _, err := ParsePayload(append(big, make([]byte, 64)...)); err == nil {
		t.Error("big-endian is read")
	}
	p, tk := testProtector(t)
	key, signer := service()
	ingress, err := p.OpenTransportKey(t.Context(), p.Wrapping(2), key, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	q, egress, err := p.NextVersion(Egress{Ingress: ingress, Guardian: p.Wrapping(2), Signer: signer, Random: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	req := NewRequest(p.Bytes(), []byte{1})
	swapped, err := req.SealReply(Reply{Version: PayloadV2, Ingress: egress, Egress: &TransportKey{Key: tk}, Protector: q, HostKey: &testKeys()[hostKey].PublicKey, Random: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := req.OpenReply(t.Context(), swapped, MemoryKey{testKeys()[hostKey]}); err == nil {
		t.Error("egress before ingress is taken")
	}
}

func TestP14_11_PoliciesAreOnlyTheOneThatIsKnownAndNeverInVersion1(t *testing.T) {
	if _, err := (&Payload{Version: PayloadV1, Keys: vectorKeys(), Policies: []Policy{OfflinePolicy(1)}}).Marshal(); err == nil {
		t.Error("a policy is written into version 1")
	}
	for name, p := range map[string]Policy{"id 2": {ID: 2, Type: 6, Data: []byte{1, 0, 0, 0}}, "type 7": {ID: 1, Type: 7, Data: []byte{1, 0, 0, 0}}} {
		blob, err := (&Payload{Version: PayloadV2, Keys: vectorKeys(), Policies: []Policy{p}}).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParsePayload(blob); err == nil {
			t.Errorf("%s is read", name)
		}
	}
}

func TestP14_12_MaxOfflineUnwrapsIsANumberAndIsNeverCopied(t *testing.T) {
	p, tk := testProtector(t)
	for _, v := range []string{"-1", "4294967296", "1.0", "0x1", "true", "", " "} {
		if _, err := ParseProtector(edited(t, p.Bytes(), "<Protector ", `<Protector MaxOfflineUnwraps="`+v+`" `)); CodeOf(err) != CodeInvalidProtector {
			t.Errorf("%q: %v", v, err)
		}
	}
	// It lies outside of every signature: anybody can write it.
	q, err := ParseProtector(edited(t, p.Bytes(), "<Protector ", `<Protector MaxOfflineUnwraps="4294967295" `))
	if err != nil || q.Verify() != nil || q.MaxOfflineUnwraps != 4294967295 {
		t.Fatal(err)
	}
	_, signer := service()
	next, _, err := q.NextVersion(Egress{Ingress: &TransportKey{Key: tk}, Guardian: q.Wrapping(2), Signer: signer, Random: rand.Reader})
	if err != nil || next.MaxOfflineUnwraps != 0 || bytes.Contains(next.Bytes(), []byte("MaxOfflineUnwraps")) {
		t.Errorf("%v: the next version has it", err)
	}
}

func TestP14_14_AnErrorIsReadByLocalNamesAndNothingElseIsOne(t *testing.T) {
	for _, doc := range []string{`<Error xmlns="` + Namespace + `"><Code>A</Code></Error>`, `<Error><Message>m</Message><Code>A</Code></Error>`} {
		if e, err := ParseError([]byte(doc)); err != nil || e.Code != "A" {
			t.Errorf("%s: %v", doc, err)
		}
	}
	for _, doc := range []string{`<Errors><Code>A</Code></Errors>`, `<Error><code>A</code></Error>`, `<!DOCTYPE html><html/>`, "{}"} {
		if _, err := ParseError([]byte(doc)); err == nil {
			t.Errorf("%s: taken for an error document", doc)
		}
	}
}

func TestP14_16_AWrongDocumentSignatureIsWorseThanNone(t *testing.T) {
	raw := testMetadata(t, guardianSigning, guardianEncryption)
	if bytes.Contains(raw, []byte(` ID=`)) {
		t.Error("an ID is written")
	}
	if _, err := ParseMetadata(edited(t, raw, "<GuardianInformation>", "<GuardianInformation> ")); err == nil || !strings.Contains(err.Error(), "ds:Signature") {
		t.Errorf("a changed document: %v", err)
	}
	unsigned := edited(t, raw, "<ds:Signature "+between(t, raw, "<ds:Signature ", "</ds:Signature>")+"</ds:Signature>", "")
	m, err := ParseMetadata(unsigned)
	if err != nil || m.Signature != SignatureAbsent {
		t.Fatalf("%v", err)
	}
	if _, _, err := m.Import(ImportOptions{Now: testTime, AllowUntrustedRoot: true, Communications: certify(t, "c", testKeys()[communications])}); err == nil {
		t.Error("imported unsigned although a signer was named")
	}
}

func TestP14_17_VersionsAreNumbersAndOtherCertificatesMustBeCertificates(t *testing.T) {
	raw := testMetadata(t, guardianSigning, guardianEncryption)
	sig := "<ds:Signature " + between(t, raw, "<ds:Signature ", "</ds:Signature>") + "</ds:Signature>"
	raw = edited(t, raw, sig, "")
	if bytes.Contains(raw, []byte("OtherSigningCertificates")) {
		t.Error("other signing certificates without being asked for")
	}
	for _, v := range []string{"0", "2", "4294967295"} {
		doc := edited(t, edited(t, raw, `Version="1"`, `Version="`+v+`"`), "<Version>1<", "<Version>"+v+"<")
		if _, err := ParseMetadata(doc); err != nil {
			t.Errorf("version %s: %v", v, err)
		}
	}
	for name, c := range map[string][2]string{"word": {`Version="1"`, `Version="one"`}, "negative": {"<Version>1<", "<Version>-1<"}, "empty": {"<Version>1<", "<Version><"},
		"not a certificate": {"</GuardianInformation>", "<OtherSigningCertificates><Certificate>AAAA</Certificate></OtherSigningCertificates></GuardianInformation>"},
		"too many":          {"</GuardianInformation>", "<OtherSigningCertificates>" + strings.Repeat("<Certificate>AAAA</Certificate>", MaxOtherSigningCertificates+1) + "</OtherSigningCertificates></GuardianInformation>"},
	} {
		if _, err := ParseMetadata(edited(t, raw, c[0], c[1])); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestP14_18_OnlyMetadataOrABareGuardianInformationIsAGuardian(t *testing.T) {
	raw := testMetadata(t, guardianSigning, guardianEncryption)
	p, _ := testProtector(t)
	info := strings.Replace("<GuardianInformation>"+between(t, raw, "<GuardianInformation>", "</GuardianInformation>")+"</GuardianInformation>", ">", ` xmlns="`+Namespace+`">`, 1)
	if _, err := ParseMetadata([]byte(info)); err != nil {
		t.Errorf("bare information: %v", err)
	}
	for name, doc := range map[string][]byte{"a key protector": p.Bytes(), "a wrapper": []byte(`<Guardians xmlns="` + Namespace + `">` + info + `</Guardians>`),
		"two of them": []byte(info + info), "another namespace": []byte(strings.ReplaceAll(info, Namespace, ServiceNamespace))} {
		if _, err := ParseMetadata(doc); err == nil {
			t.Errorf("%s: taken for a guardian", name)
		}
	}
}

func TestP14_19_IdsMayBeAnyNumbersButMustBeNumbers(t *testing.T) {
	p, tk := testProtector(t)
	q, err := sealing{wrappings: renumbered(p.Wrappings, map[uint32]uint32{1: 0, 2: 4294967295, 3: 77}), transportKey: tk, derivation: p.KeyDerivation, guardianID: 0,
		signer: testKeys()[ownerSigning], random: rand.Reader}.protector()
	if err != nil {
		t.Fatal(err)
	}
	if q, err = ParseProtector(q.Bytes()); err != nil || q.Verify() != nil {
		t.Fatalf("%v, %v", err, q.Verify())
	}
	if _, err := q.Grant(t.Context(), testOwnerOf(t, q), testGuardian(t, hostKey, communications), rand.Reader); err == nil {
		t.Error("an id beyond 32 bits was given")
	}
	for _, id := range []string{"", "+", "one", "1 2", "00000000000000000000001", "1.0", "18446744073709551617"} {
		if _, err := ParseProtector(edited(t, p.Bytes(), "<Id>1</Id>", "<Id>"+id+"</Id>")); CodeOf(err) != CodeInvalidWrapping {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func renumbered(w []Wrapping, to map[uint32]uint32) []Wrapping {
	w = append([]Wrapping(nil), w...)
	for i := range w {
		w[i].ID, w[i].ParentID = to[w[i].ID], to[w[i].ParentID]
	}
	return w
}
