package kps

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
)

// rollOnce answers a request as the service would.
func rollOnce(t testing.TB, req *RollTransportKeyRequest, version PayloadVersion, offline uint32) (*RollTransportKeyResponse, error) {
	t.Helper()
	p, err := ParseProtector(req.IngressProtector)
	if err != nil {
		return nil, err
	}
	if err := p.Verify(); err != nil {
		return nil, err
	}
	key, signer := service()
	ingress, err := p.OpenTransportKey(t.Context(), p.Wrapping(2), key, rand.Reader)
	if err != nil {
		return nil, err
	}
	q, egress, err := p.NextVersion(Egress{Ingress: ingress, Guardian: p.Wrapping(2), Signer: signer, MaxOffline: offline, Random: rand.Reader})
	if err != nil {
		return nil, err
	}
	return req.SealReply(Reply{Version: version, Ingress: ingress, Egress: egress, Protector: q, HostKey: &testKeys()[hostKey].PublicKey, Random: rand.Reader})
}

func TestHostOpensTheReplyToItsRoll(t *testing.T) {
	p, tk := testProtector(t)
	for _, c := range []struct {
		version  PayloadVersion
		offline  uint32
		policies int
	}{{PayloadV1, 0, 0}, {PayloadV2, 0, 0}, {PayloadV2, 3, 1}, {PayloadV1, 3, 0}} {
		req := NewRequest(p.Bytes(), certify(t, "host", testKeys()[hostKey]).Raw)
		onWire, err := ParseRequest(req.Marshal())
		if err != nil {
			t.Fatal(err)
		}
		resp, err := rollOnce(t, onWire, c.version, c.offline)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err = ParseResponse(resp.Marshal()); err != nil {
			t.Fatal(err)
		}
		got, err := req.OpenReply(t.Context(), resp, MemoryKey{testKeys()[hostKey]})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.IngressKey, tk) || len(got.Policies) != c.policies || got.Egress.MaxOfflineUnwraps != c.offline {
			t.Errorf("version %d: policies %v, offline %d", c.version, got.Policies, got.Egress.MaxOfflineUnwraps)
		}
		// The egress protector is the next ingress protector.
		if _, err := rollOnce(t, NewRequest(got.Egress.Bytes(), nil), c.version, 0); err != nil {
			t.Errorf("second roll: %v", err)
		}
	}
}

func TestHostRefusesAForgedReply(t *testing.T) {
	p, tk := testProtector(t)
	stranger, _ := testProtector(t)
	req := NewRequest(p.Bytes(), []byte{1})
	good, err := rollOnce(t, req, PayloadV2, 0)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := rollOnce(t, NewRequest(stranger.Bytes(), []byte{1}), PayloadV2, 0)
	if err != nil {
		t.Fatal(err)
	}
	seal := func(ingress, egress []byte, q *Protector) *RollTransportKeyResponse {
		r, err := req.SealReply(Reply{Version: PayloadV2, Ingress: &TransportKey{Key: ingress}, Egress: &TransportKey{Key: egress}, Protector: q,
			HostKey: &testKeys()[hostKey].PublicKey, Random: rand.Reader})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	other := make([]byte, 32)
	byService, err := (*Protector)(nil).rewrap(&TransportKey{Key: tk},
		sealing{derivation: p.KeyDerivation, guardianID: 2, signer: testKeys()[guardianSigning], random: rand.Reader}, append([]Wrapping(nil), p.Wrappings...))
	if err != nil {
		t.Fatal(err)
	}
	mixed := *good
	mixed.EncryptedTransportKeys = foreign.EncryptedTransportKeys
	flip := *good
	flip.EncryptedWrappingKey = append([]byte(nil), good.EncryptedWrappingKey...)
	flip.EncryptedWrappingKey[20] ^= 1
	short := *good
	short.EncryptedWrappingKey = []byte{1, 2}
	tampered := *good
	tampered.EgressProtector = edited(t, good.EgressProtector, "<Id>3</Id>", "<Id>4</Id>")
	for name, resp := range map[string]*RollTransportKeyResponse{
		"another tenant's protector": foreign, "keys of another reply": &mixed, "flipped bit": &flip, "short value": &short,
		"tampered protector": &tampered, "the ingress protector again": seal(tk, tk, p), "an unchanged key": seal(tk, tk, byService),
		"a wrong ingress key": seal(other, tk, byService), "a wrong egress key": seal(tk, other, byService),
	} {
		if _, err := req.OpenReply(t.Context(), resp, MemoryKey{testKeys()[hostKey]}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := req.OpenReply(t.Context(), good, MemoryKey{testKeys()[otherEncryption]}); err == nil {
		t.Error("another host opened the reply")
	}
}

func TestRefusesMalformedRequests(t *testing.T) {
	raw := NewRequest([]byte("protector"), []byte("certificate")).Marshal()
	b64 := base64.StdEncoding.EncodeToString
	for name, c := range map[string]struct {
		old, to string
		code    Code
	}{
		"not XML":                {"<RollTransportKeyRequest", "{", CodeInvalidRequest},
		"namespace of documents": {ServiceNamespace, Namespace, CodeInvalidRequest},
		"response":               {"<RollTransportKeyRequest", "<RollTransportKeyResponse", CodeInvalidRequest},
		"missing certificate":    {"<HealthCertificate>" + b64([]byte("certificate")) + "</HealthCertificate>", "", CodeInvalidRequest},
		"extra element":          {"<HealthCertificate>", "<Extra/><HealthCertificate>", CodeInvalidRequest},
		"extra at the end":       {"</RollTransportKeyRequest>", "<Extra/></RollTransportKeyRequest>", CodeInvalidRequest},
		"protector not base64":   {b64([]byte("protector")), "*", CodeInvalidProtector},
		"protector empty":        {b64([]byte("protector")), "", CodeInvalidProtector},
		"certificate not base64": {b64([]byte("certificate")), "*", CodeHealthCertificate},
		"certificate empty":      {b64([]byte("certificate")), "", CodeHealthCertificate},
		"certificate too long":   {b64([]byte("certificate")), strings.Repeat("AAAA", MaxHealthCertificate/3+1), CodeHealthCertificate},
		"no algorithm":           {RSAOAEP, " ", CodeInvalidRequest},
		"singular spelling":      {"<TransportKeysEncryptionAlgorithm>", "<TransportKeyEncryptionAlgorithm>", CodeInvalidRequest},
		"document type":          {"<RollTransportKeyRequest", "<!DOCTYPE x><RollTransportKeyRequest", CodeInvalidRequest},
	} {
		if _, err := ParseRequest(edited(t, raw, c.old, c.to)); err == nil || CodeOf(err) != c.code {
			t.Errorf("%s: %v, want %s", name, err, c.code)
		}
	}
	spaced := edited(t, raw, b64([]byte("protector")), "\r\n\tcHJv dGVj\ndG9y ")
	if r, err := ParseRequest(spaced); err != nil || string(r.IngressProtector) != "protector" {
		t.Errorf("white space in base64: %v", err)
	}
}

func TestRefusesUnknownAlgorithmsOfARequestVerbatim(t *testing.T) {
	for i := range 3 {
		r := NewRequest([]byte{1}, []byte{1})
		*[]*string{&r.TransferKeyEncryptionAlgorithm, &r.WrappingKeyEncryptionAlgorithm, &r.TransportKeysEncryptionAlgorithm}[i] = "urn:x"
		err := r.CheckAlgorithms()
		var refusal *Refusal
		if !errors.As(err, &refusal) || refusal.Code != CodeUnsupportedAlgorithm || refusal.Algorithm != "urn:x" {
			t.Errorf("algorithm %d: %v", i, err)
		}
		if _, err := r.SealReply(Reply{}); CodeOf(err) != CodeUnsupportedAlgorithm {
			t.Errorf("algorithm %d: sealed: %v", i, err)
		}
	}
}

func TestErrorDocument(t *testing.T) {
	want := ErrorDocument{Code: CodeInvalidProtector, Message: "a <b> & \"c\"\x00"}
	got, err := ParseError(want.Marshal())
	if err != nil || got.Code != want.Code || got.Message != "a <b> & \"c\"\uFFFD" {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, doc := range []string{`<Error><Code>A</Code><Message>m</Message></Error>`, `<x:Error xmlns:x="urn:y"><x:Code>A</x:Code></x:Error>`} {
		if got, err := ParseError([]byte(doc)); err != nil || got.Code != "A" {
			t.Errorf("%s: %v", doc, err)
		}
	}
	for _, doc := range []string{`<html><body>Server Error in /KeyProtection Application.<br></body></html>`, ``, `<Error/>`, `<Fault><Code>A</Code></Fault>`} {
		if _, err := ParseError([]byte(doc)); err == nil {
			t.Errorf("%s: accepted", doc)
		}
	}
}

func TestRoutesMatchInAnyCase(t *testing.T) {
	for path, want := range map[string]Route{
		"/KeyProtection/service/metadata/2014-07/metadata.xml":  {Operation: OpMetadata},
		"/keyprotection/SERVICE/Metadata/2014-07/Metadata.XML/": {Operation: OpMetadata},
		"/keyprotection/service/metadata/2015-07/metadata.xml":  {},
		"/KeyProtection/service/v1.0/rolltransportkey":          {Operation: OpRoll, Version: PayloadV1, Segment: "v1.0"},
		"/KeyProtection/service/2014-07/RollTransportKey":       {Operation: OpRoll, Version: PayloadV1, Segment: "2014-07"},
		"/keyprotection/service/V2.0/rolltransportkey/":         {Operation: OpRoll, Version: PayloadV2, Segment: "v2.0"},
		"/keyprotection/service/v2/rolltransportkey":            {Operation: OpRoll, Version: PayloadV2, Segment: "v2"},
		"/keyprotection/service/v3.0/rolltransportkey":          {Operation: OpUnknownVersion, Segment: "v3.0"},
		"/keyprotection/service//rolltransportkey":              {},
		"/keyprotection/service/a/b/rolltransportkey":           {},
		"/keyprotection/service/rolltransportkey":               {},
		"/keyprotection/":               {},
		"/" + strings.Repeat("a", 1000): {},
	} {
		if got := Match(path); got != want {
			t.Errorf("%s: %+v", path, got)
		}
	}
}
