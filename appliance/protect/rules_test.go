package protect

// Rules of kps.md 9 and proposals of its section 14 that the service keeps; package kps counts them (TestEveryRuleHasItsTest).

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/health"
	"guardhouse/appliance/kps"
	"guardhouse/appliance/policy"
)

// mixedGuardian pairs somebody's signing key with an encryption certificate, as an owner who wants to confuse a service could.
func mixedGuardian(t *testing.T, signer *rsa.PrivateKey, encryption *x509.Certificate) kps.Guardian {
	t.Helper()
	raw, err := kps.MakeMetadata(kps.MetadataSpec{SigningCertificate: certify(t, "somebody", signer), EncryptionCertificate: encryption, Signer: signer, Random: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	m, err := kps.ParseMetadata(raw)
	if err != nil {
		t.Fatal(err)
	}
	return m.Guardian
}

func TestRule9_1_5_AProtectorWithoutAWrappingForUsIsRefused(t *testing.T) {
	n := newNode(t)
	k := testKeys()
	for name, g := range map[string][]kps.Guardian{
		"nobody":           nil,
		"somebody else":    {mixedGuardian(t, k[spareSigning], certify(t, "else", k[spareEncryption]))},
		"our name only":    {mixedGuardian(t, k[spareSigning], certify(t, "guardian encryption", k[spareEncryption]))},
		"our signing only": {mixedGuardian(t, k[signing], certify(t, "else", k[spareEncryption]))},
	} {
		p, _, err := kps.New(owner(t), g, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		before := n.signatures.Load()
		wantRefusal(t, n.roll(p.Bytes(), n.certificate()), http.StatusBadRequest, kps.CodeInvalidProtector, "")
		if n.signatures.Load() != before || t.Failed() {
			t.Fatalf("%s: the token was asked", name)
		}
	}
}

func TestRule9_2_SigningKeyHeldAndEnabled_AlsoWhereTheEncryptionKeyIsOurs(t *testing.T) {
	n := newNode(t)
	k := testKeys()
	p, _, err := kps.New(owner(t), []kps.Guardian{mixedGuardian(t, k[spareSigning], n.guardian().EncryptionCertificate)}, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, n.roll(p.Bytes(), n.certificate()), http.StatusBadRequest, kps.CodeInvalidProtector, "signing key that is not ours")
}

func TestRule9_2_ComparedByPublicKey_NotByNameOrCertificate(t *testing.T) {
	n := newNode(t)
	protector, _ := n.protector()
	// The same subject and serial number with another key, recorded under the reference of the old one: not usable for anything.
	forged := certify(t, "guardian encryption", testKeys()[spareEncryption])
	n.changeKey(policy.RoleEncryption, func(k *policy.Key) { k.Certificate = forged.Raw })
	wantRefusal(t, n.roll(protector, n.certificate()), http.StatusBadRequest, kps.CodeInvalidProtector, "")
}

// TestRule9_2_SecretsFailAlike_InEveryByteAndEveryTokenOperation compares whole replies (status, headers, body), what is recorded and
// logged, and what the token was asked for.
func TestRule9_2_SecretsFailAlike_InEveryByteAndEveryTokenOperation(t *testing.T) {
	n := newNode(t)
	protector, tk := n.protector()
	cert := n.certificate()
	blob := func(keys ...[]byte) []byte {
		b, err := (&kps.Payload{Version: kps.PayloadV1, Keys: keys}).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	decryptions := 0
	var want, first string
	for name, decrypt := range map[string]func([]byte) ([]byte, error){
		"padding":       func([]byte) ([]byte, error) { return nil, kps.ErrDecryption },
		"padding, long": func([]byte) ([]byte, error) { return nil, fmt.Errorf("token says: %w", kps.ErrDecryption) },
		"nothing":       func([]byte) ([]byte, error) { return nil, nil },
		"structure":     func([]byte) ([]byte, error) { return blob(tk, tk), nil },
		"short":         func([]byte) ([]byte, error) { return []byte{1}, nil },
		"long":          func([]byte) ([]byte, error) { return make([]byte, 4096), nil },
		"other key":     func([]byte) ([]byte, error) { return make([]byte, 32), nil },
		"other BLOB":    func([]byte) ([]byte, error) { return blob(make([]byte, 32)), nil },
		"one bit":       func([]byte) ([]byte, error) { b := slices.Clone(tk); b[0] ^= 1; return b, nil },
	} {
		n.entries, n.refused = nil, nil
		n.log.Reset()
		decryptions = 0
		n.decrypt = func(c []byte) ([]byte, error) { decryptions++; return decrypt(c) }
		n.boot += time.Minute
		before := n.signatures.Load()
		w := n.roll(protector, cert)
		wantRefusal(t, w, http.StatusBadRequest, kps.CodeInvalidProtector, "TransportKeySignature")
		if len(n.entries) != 1 || len(n.refused) != 0 {
			t.Fatalf("%s: entries %v, %v", name, n.entries, n.refused)
		}
		e := n.entries[0]
		got := fmt.Sprintf("%d decryptions, %d signatures\n%d %q\n", decryptions, n.signatures.Load()-before, w.Code, w.Body)
		for _, k := range slices.Sorted(maps.Keys(w.Header())) {
			got += fmt.Sprintf("%s: %q\n", k, w.Header()[k])
		}
		got += fmt.Sprintf("audit %s %s %s %s %v\nlog %q", e.Kind, e.Outcome, e.Detail, e.Remedy, e.Facts, n.log.String())
		if want == "" {
			want, first = got, name
		}
		if got != want {
			t.Errorf("%s differs from %s:\n%s\nand\n%s", name, first, got, want)
		}
	}
	if !strings.HasPrefix(want, "1 decryptions, 0 signatures") {
		t.Errorf("the token was asked for %s", want)
	}
}

// TestRule9_2_NoProofOfIdentity_ButTheSourceIsRecorded: whoever saw a certificate and a protector can send them; the audit names the
// address and says who alone can read the reply.
func TestRule9_2_NoProofOfIdentity_ButTheSourceIsRecorded(t *testing.T) {
	n := newNode(t)
	protector, _ := n.protector()
	r := httptest.NewRequest(http.MethodPost, kps.RollPathV2, bytes.NewReader(kps.NewRequest(protector, n.certificate()).Marshal()))
	r.RemoteAddr = "198.51.100.9:1"
	w := httptest.NewRecorder()
	n.service.ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		t.Fatal(w.Body)
	}
	if e := n.entries[0]; e.Source != "198.51.100.9" || !strings.Contains(e.Detail, "readable only with the key of the host's health certificate") {
		t.Errorf("%+v", e)
	}
	resp, err := kps.ParseResponse(w.Body.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	for i, k := range testKeys() {
		if _, err := kps.NewRequest(protector, nil).OpenReply(t.Context(), resp, kps.MemoryKey{Key: k}); (err == nil) != (i == vsm) {
			t.Errorf("key %d: %v", i, err)
		}
	}
}

// TestP14_02_UnknownURIsInTheLogAreBoundedAndCannotForgeLines: the first contact with a real host reveals them.
func TestP14_02_UnknownURIsInTheLogAreBoundedAndCannotForgeLines(t *testing.T) {
	n := newNode(t)
	protector, _ := n.protector()
	uri := "urn:x&#x1F600;" + strings.Repeat("y", 4000)
	bad := bytes.Replace(protector, []byte(kps.RSAOAEP), []byte(uri), 1)
	wantRefusal(t, n.roll(bad, n.certificate()), http.StatusBadRequest, kps.CodeInvalidProtector, "urn:x")
	r := kps.NewRequest(protector, n.certificate())
	r.TransferKeyEncryptionAlgorithm = "urn:a\n2026-01-01 forged line\x1b[2J"
	body := bytes.Replace(r.Marshal(), []byte("\x1b"), []byte("&#x9b;"), 1)
	wantRefusal(t, n.do(http.MethodPost, kps.RollPathV2, body), http.StatusBadRequest, kps.CodeUnsupportedAlgorithm, "urn:a")
	log := n.log.String()
	if strings.Count(log, "\n") != 2 || len(log) > 1500 || strings.ContainsAny(log, "\x1b\u009b") || !strings.Contains(log, "urn:x") || !strings.Contains(log, `urn:a\n2026`) {
		t.Errorf("log %q", log)
	}
	for _, e := range n.entries {
		if len(e.Detail) > 600 || strings.ContainsAny(e.Detail, "\n\x1b\u009b") {
			t.Errorf("audit %q", e.Detail)
		}
	}
}

func TestP14_13_EachErrorHasItsStatusAndNeverIsItNoContent(t *testing.T) {
	n := newNode(t)
	protector, _ := n.protector()
	seen := map[int]bool{}
	for _, c := range []struct {
		w    *httptest.ResponseRecorder
		want int
	}{
		{n.roll(protector, []byte("x")), 400}, {n.roll([]byte("x"), n.certificate()), 400},
		{n.roll(bytes.Replace(protector, []byte("<Id>2</Id>"), []byte("<Id>x</Id>"), 1), n.certificate()), 400},
		{n.do("POST", "/KeyProtection/service/v9/rolltransportkey", nil), 404}, {n.do("POST", "/KeyProtection/x", nil), 404},
		{n.do("GET", kps.RollPathV2, nil), 405}, {n.do("POST", kps.RollPathV2, make([]byte, kps.MaxRequest+1)), 413},
		{n.do("POST", kps.RollPathV2, []byte("x"), "Content-Type", "text/plain"), 415}, {n.do("POST", kps.RollPathV2, nil), 400},
	} {
		if c.w.Code != c.want || c.w.Body.Len() == 0 {
			t.Errorf("%d, want %d: %s", c.w.Code, c.want, c.w.Body)
		}
		seen[c.w.Code] = true
	}
	n.changeKey(policy.RoleEncryption, func(k *policy.Key) { k.Primary = false })
	if w := n.do("GET", kps.MetadataPath, nil); w.Code != 500 {
		t.Errorf("metadata without a key: %d", w.Code)
	}
	if seen[http.StatusNoContent] {
		t.Error("204")
	}
}

func TestP14_14_MetadataErrorsStandInCodeAndMessage(t *testing.T) {
	for role, want := range map[policy.KeyRole]string{policy.RoleEncryption: "Primary Encryption Certificate not found", policy.RoleSigning: "Primary Signing Certificate not found"} {
		n := newNode(t)
		n.changeKey(role, func(k *policy.Key) { k.Primary = false })
		w := n.do("GET", kps.MetadataPath, nil)
		e, err := kps.ParseError(w.Body.Bytes())
		if err != nil || string(e.Code) != want || e.Message != want || !strings.Contains(w.Body.String(), `<Error xmlns="`+kps.ServiceNamespace+`">`) {
			t.Errorf("%s: %v %s", role, err, w.Body)
		}
	}
}

func TestP14_15_NotForUsIsAnInvalidProtectorThatSaysSo(t *testing.T) {
	n := newNode(t)
	p, _, err := kps.New(owner(t), nil, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, n.roll(p.Bytes(), n.certificate()), http.StatusBadRequest, kps.CodeInvalidProtector, kps.NotForUs)
}

func TestP14_20_OnlyXMLIsTakenAndEveryReplyHasItsLength(t *testing.T) {
	n := newNode(t)
	protector, _ := n.protector()
	body := kps.NewRequest(protector, n.certificate()).Marshal()
	for contentType, want := range map[string]int{"": 200, "application/xml": 200, "text/xml; charset=utf-8": 200, "application/soap+xml": 200, "APPLICATION/XML": 200,
		"application/json": 415, "text/plain": 415, "multipart/form-data; boundary=x": 415, "application/octet-stream": 415} {
		header := []string{}
		if contentType != "" {
			header = []string{"Content-Type", contentType}
		}
		w := n.do("POST", kps.RollPathV2, body, header...)
		if w.Code != want || w.Header().Get("Content-Length") != fmt.Sprint(w.Body.Len()) || w.Header().Get("Content-Type") != "application/xml; charset=utf-8" {
			t.Errorf("%q: %d, headers %v", contentType, w.Code, w.Header())
		}
	}
	// A client that waits for "100 Continue" gets it, over a real connection.
	s := httptest.NewServer(n.service)
	defer s.Close()
	r, err := http.NewRequest("POST", s.URL+kps.RollPathV2, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Expect", "100-continue")
	client := &http.Client{Transport: &http.Transport{ExpectContinueTimeout: time.Minute}, Timeout: 20 * time.Second}
	defer client.CloseIdleConnections()
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("status %d", resp.StatusCode)
	}
}

func TestP14_21_HealthCertificatesOfAnotherProfileAreRefused(t *testing.T) {
	n := newNode(t)
	protector, _ := n.protector()
	k := testKeys()
	own := n.signerCert()
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	make := func(key any, edit func(*x509.Certificate)) []byte {
		tmpl := &x509.Certificate{SerialNumber: own.SerialNumber, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), KeyUsage: x509.KeyUsageKeyEncipherment}
		tmpl.Subject.CommonName = hostID
		edit(tmpl)
		der, err := x509.CreateCertificate(rand.Reader, tmpl, own, key, k[attestation])
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	for name, c := range map[string]struct {
		cert []byte
		want health.Reason
	}{
		"good":             {make(&k[vsm].PublicKey, func(*x509.Certificate) {}), health.Accepted},
		"weak":             {make(&weak.PublicKey, func(*x509.Certificate) {}), health.WeakKey},
		"signing only":     {make(&k[vsm].PublicKey, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }), health.WrongKeyUsage},
		"an authority":     {make(&k[vsm].PublicKey, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }), health.CertificateOfCA},
		"over":             {make(&k[vsm].PublicKey, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second / 2) }), health.Expired},
		"perhaps over":     {make(&k[vsm].PublicKey, func(c *x509.Certificate) { c.NotAfter = now }), health.Expired},
		"perhaps to begin": {make(&k[vsm].PublicKey, func(c *x509.Certificate) { c.NotBefore = now }), health.NotYetValid},
	} {
		n.refused = nil
		w := n.roll(protector, c.cert)
		if c.want == health.Accepted {
			if w.Code != http.StatusOK {
				t.Errorf("%s: %s", name, w.Body)
			}
			continue
		}
		wantRefusal(t, w, http.StatusBadRequest, kps.CodeHealthCertificate, "")
		if len(n.refused) != 1 || n.refused[0].Outcome != string(c.want) {
			t.Errorf("%s: %+v, want %s", name, n.refused, c.want)
		}
	}
}
