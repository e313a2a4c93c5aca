package hgsa

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func golden(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "wire", name))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.TrimRight(b, "\n")
}

var session = mustGUID("0b8c6c1e-6d0e-4c6f-9f0a-3d1f6f6b2a11")

// decodeAny reads a golden request with the decoder of its endpoint.
func decodeAny(name string, body []byte) (Request, Style, error) {
	switch {
	case strings.HasPrefix(name, "hostkey"):
		return nilless(DecodeHostKeyAttest(body))
	case strings.HasPrefix(name, "domain"):
		return nilless(DecodeDomainAttest(body))
	}
	return DecodeAttest(body)
}

func nilless[R Request](r R, s Style, err error) (Request, Style, error) {
	if err != nil {
		return nil, s, err
	}
	return r, s, nil
}

func TestReadsAndWritesTheDocumentedRequests(t *testing.T) {
	base := ProtocolRequestBase{session}
	both := []AttestationResultType{1, 2}
	cases := map[string]Request{
		"hostkeyattest.request.json": &AttestationRequest{base, []AttestationResultType{2}, []TupleOfAttestationProvidedContentTypebase64Binary{
			{VirtualSecureModeIdentityKey, []byte{1, 0, 0, 0}}, {HostKeyPublicKey, []byte{48, 130}}, {HostKeySignature, []byte{17, 34}}}},
		"domainattest.request.json": &ADRequest{base, []TupleOfAttestationResultTypebase64Binary{
			{VSMIdentityEncryptionKeyCertificate, []byte{1, 0, 0, 0}}, {VSMIdentitySigningKeyCertificate, []byte{1, 0, 0, 0}}}},
		"attest-v1-initial.request.json":  &TpmRequestInitial{TpmRequest{base, both, []byte{0, 1}}},
		"attest-v1-continue.request.json": &TpmRequestContinue{TpmRequest{base, both, []byte{0, 1}}, []byte{80, 0, 0, 0}},
		"attest-v2-initial.request.json":  &AttestationRequest{base, both, []TupleOfAttestationProvidedContentTypebase64Binary{{EndorsementKeyCertificate, []byte{48, 130}}}},
		"attest-v2-continue.request.json": &AttestationRequest{base, both, []TupleOfAttestationProvidedContentTypebase64Binary{{EndorsementKeyCertificate, []byte{48, 130}}, {RtpmContext, []byte{80, 0, 0, 0}}}},
	}
	for name, want := range cases {
		body := golden(t, name)
		got, style, err := decodeAny(name, body)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: read %+v, %v", name, got, err)
			continue
		}
		if style != (Style{}) || got.Session() != session {
			t.Errorf("%s: style %+v session %s", name, style, got.Session())
		}
		if again := EncodeRequest(want, Style{}); !bytes.Equal(again, body) {
			t.Errorf("%s: wrote\n%s\nwant\n%s", name, again, body)
		}
		testOtherForms(t, name, want)
	}
}

// testOtherForms writes a message in base64 and binary GUIDs, and expects the
// same message and the style back.
func testOtherForms(t *testing.T, name string, want Request) {
	t.Helper()
	body := EncodeRequest(want, Style{Base64: true, BinaryGUIDs: true})
	got, style, err := decodeAny(name, body)
	if err != nil || !reflect.DeepEqual(got, want) || !style.Base64 {
		t.Errorf("%s in base64: read %+v, style %+v, %v", name, got, style, err)
	}
}

func TestReadsAndWritesTheDocumentedReplies(t *testing.T) {
	cases := map[string]Reply{
		"getinfo.reply.json":          &ServiceInfoReply{2, ModeHostKey, []uint32{1, 2}},
		"hostkeyattest.reply.json":    &HealthCertificateReply{[]TupleOfAttestationResultTypebase64Binary{{2, []byte{48, 130, 3, 186}}}},
		"attest-v1.reply.json":        &TpmReplyContinue{[]byte{64, 0, 0, 0}},
		"operationmode.reply.json":    OperationModeError(ModeHostKey),
		"policyevaluation.reply.json": PolicyEvaluationError(PolicyIDs[0].ID),
		"unauthorized.reply.json":     UnauthorizedError(),
	}
	for name, want := range cases {
		body := golden(t, name)
		got, _, err := DecodeReply(body)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: read %+v, %v", name, got, err)
		}
		if again := EncodeReply(want, Style{}); !bytes.Equal(again, body) {
			t.Errorf("%s: wrote\n%s\nwant\n%s", name, again, body)
		}
	}
}

func TestP13_11_EveryErrorReplyCarriesItsTypeAndRetryable(t *testing.T) {
	cases := []struct {
		reply Failure
		wire  string
	}{
		{InternalError(), `ErrorReply:true`},
		{OperationModeError(ModeAD), `OperationModeErrorReply:true`},
		{PayloadError(), `PayloadErrorReply:false`},
		{PolicyEvaluationError(), `PolicyEvaluationErrorReply:false`},
		{RtpmError(), `RtpmErrorReply:true`},
		{TcgLogValidationError(), `TcgLogValidationErrorReply:false`},
		{UnauthorizedError(), `UnauthorizedErrorReply:false`},
		{UnavailableError(), `UnavailableErrorReply:true`},
		{VirtualSecureModeError(), `VirtualSecureModeErrorReply:false`},
		{VsmReportValidationError(), `VsmReportValidationErrorReply:false`},
	}
	for _, c := range cases {
		body := EncodeReply(c.reply, Style{})
		typ, retry, _ := strings.Cut(c.wire, ":")
		want := `{"__type":"` + typ + `:#Microsoft.Windows.RemoteAttestation.Core","Retryable":` + retry
		if !strings.HasPrefix(string(body), want) || !json.Valid(body) {
			t.Errorf("%s: %s", typ, body)
		}
		for _, status := range []int{200, 500} {
			_, err := ParseReply(status, body)
			var f Failure
			if !errors.As(err, &f) || f.Type() != typ || f.CanRetry() != c.reply.CanRetry() || f.Error() == "" {
				t.Errorf("%s: client got %v", typ, err)
			}
		}
	}
}

func TestReaderAcceptsEveryDocumentedForm(t *testing.T) {
	const tail = `,"ProvidedContent":[{"m_Item2":%,"m_Item1":8}],"RequestedContent":["1"]}`
	binaries := map[string]bool{ // value of m_Item2 -> must be mirrored as base64
		`[254,255,0,62]`: false, `[ -2 , -1 , 0 , 62 ]`: false,
		`"/v8APg=="`: true, `"\/v8APg"`: true, `"/v8\r\n APg="`: true, `"\u002fv8APg=="`: true,
		`{"Key":[254,255,0,62]}`: false, `{"__type":"EndorsementKey:#Microsoft.Windows.RemoteAttestation.Core","Key":"/v8APg"}`: true,
	}
	sessions := []string{
		`"0b8c6c1e-6d0e-4c6f-9f0a-3d1f6f6b2a11"`, `"{0B8C6C1E-6D0E-4C6F-9F0A-3D1F6F6B2A11}"`,
		`"HmyMCw5tb0yfCj0fb2sqEQ=="`, `[30,108,140,11,14,109,111,76,159,10,61,31,111,107,42,17]`,
	}
	hints := []string{``, `,"__type":"AttestationRequest:#Microsoft.Windows.RemoteAttestation.Core"`,
		`,"__type":"AttestationRequest:http:\/\/schemas.datacontract.org\/2004\/07\/Microsoft.Windows.RemoteAttestation.Core"`,
		`,"Extra":{"a":[1,{"b":null}],"c":1.5e3}`, `,"RtpmNewContext":null`}
	for value, mirrored := range binaries {
		for _, id := range sessions {
			for _, hint := range hints {
				body := "\xef\xbb\xbf { \"SessionId\":" + id + hint + strings.Replace(tail, "%", value, 1)
				r, style, err := DecodeHostKeyAttest([]byte(body))
				if err != nil {
					t.Errorf("%s: %v", body, err)
					continue
				}
				if r.SessionId != session || style.Base64 != mirrored || !bytes.Equal(r.ProvidedContent[0].Item2, []byte{254, 255, 0, 62}) {
					t.Errorf("%s: %+v %+v", body, r, style)
				}
			}
		}
	}
}

// The genuine serializer's reader tells UTF-16 by the first character and needs no mark; one is taken all the same.
func TestReadsBodiesInUTF16(t *testing.T) {
	body := `{"SessionId":"0b8c6c1e-6d0e-4c6f-9f0a-3d1f6f6b2a11","Note":"é😀","RequestedContent":[1],"ProvidedContent":[{"m_Item1":1,"m_Item2":[254,255,0,62]}]}`
	want, _, err := DecodeHostKeyAttest([]byte(body))
	if err != nil {
		t.Fatal(err)
	}
	le, be := wide(body, true), wide(body, false)
	for name, raw := range map[string][]byte{"little-endian": le, "big-endian": be, "little-endian without mark": le[2:], "big-endian without mark": be[2:]} {
		r, _, err := DecodeHostKeyAttest(raw)
		if err != nil || !reflect.DeepEqual(r, want) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	for name, raw := range map[string][]byte{
		"half a character": append(bytes.Clone(le), ' '), "half a surrogate pair": bytes.Replace(le, []byte("\x00\xde"), []byte("a\x00"), 1),
		"two marks": wide("\ufeff"+body, true), "larger in UTF-8": wide(`{"a":"`+strings.Repeat("日", 100)+`"}`, false), "mark alone": {0xff, 0xfe},
	} {
		if _, _, err := DecodeHostKeyAttest(raw); !errors.Is(err, ErrSyntax) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMirrorsBase64AsTheGenuineSerializerWritesIt(t *testing.T) {
	reply := &HealthCertificateReply{[]TupleOfAttestationResultTypebase64Binary{{1, []byte{254, 255, 0, 62}}}}
	got := string(EncodeReply(reply, Style{Base64: true}))
	if !strings.HasSuffix(got, `"m_Item2":"\/v8APg=="}]}`) {
		t.Error(got)
	}
}

func TestRefusesBodiesThatAreNotTheMessage(t *testing.T) {
	deep := strings.Repeat(`[`, 40) + strings.Repeat(`]`, 40)
	syntax := []string{``, `<xml/>`, `{"a":}`, `{`, `[1,2`, "\x00", `{"a":1}{"b":2}`, `{"a":01}`}
	bad := []string{`[]`, `null`, `"x"`, `7`, `{}`,
		`{"ProvidedContent":[]}`,
		`{"RequestedContent":[1]}`,
		`{"RequestedContent":[1.5],"ProvidedContent":[]}`,
		`{"RequestedContent":[-1],"ProvidedContent":[]}`,
		`{"RequestedContent":1,"ProvidedContent":[]}`,
		`{"RequestedContent":[99999999999],"ProvidedContent":[]}`,
		`{"RequestedContent":[{"m_Item1":1,"m_Item2":[1]}],"ProvidedContent":[]}`,
		`{"RequestedContent":[1,{"m_Item1":1,"m_Item2":[1]}],"ProvidedContent":[]}`,
		`{"RequestedContent":[1],"ProvidedContent":[{"m_Item1":1}]}`,
		`{"RequestedContent":[1],"ProvidedContent":[{"m_Item1":1,"m_Item2":[256]}]}`,
		`{"RequestedContent":[1],"ProvidedContent":[{"m_Item1":1,"m_Item2":[-129]}]}`,
		`{"RequestedContent":[1],"ProvidedContent":[{"m_Item1":1,"m_Item2":[1.5]}]}`,
		`{"RequestedContent":[1],"ProvidedContent":[{"m_Item1":1,"m_Item2":"***"}]}`,
		`{"RequestedContent":[1],"ProvidedContent":[{"m_Item1":1,"m_Item2":{"Key":[1],"Other":1}}]}`,
		`{"RequestedContent":[1],"ProvidedContent":[{"m_Item1":1,"m_Item2":true}]}`,
		`{"RequestedContent":[1],"RequestedContent":[2],"ProvidedContent":[]}`,
		`{"SessionId":"x-y","RequestedContent":[1],"ProvidedContent":[]}`,
		`{"SessionId":"AAAA","RequestedContent":[1],"ProvidedContent":[]}`,
		`{"__type":"ADRequest:#Microsoft.Windows.RemoteAttestation.Core","RequestedContent":[1],"ProvidedContent":[]}`,
		`{"__type":"AttestationRequest:#Elsewhere","RequestedContent":[1],"ProvidedContent":[]}`,
		`{"X":` + deep + `,"RequestedContent":[1],"ProvidedContent":[]}`,
		`{"RequestedContent":[1` + strings.Repeat(`,1`, 100) + `],"ProvidedContent":[]}`,
	}
	for _, b := range syntax {
		if _, _, err := DecodeHostKeyAttest([]byte(b)); !errors.Is(err, ErrSyntax) {
			t.Errorf("%.60q: %v, want ErrSyntax", b, err)
		}
	}
	for _, b := range bad {
		if _, _, err := DecodeHostKeyAttest([]byte(b)); !errors.Is(err, ErrPayload) {
			t.Errorf("%.60q: %v, want ErrPayload", b, err)
		}
	}
	big := []byte(`{"X":"` + strings.Repeat("a", MaxBody) + `"}`)
	if _, _, err := DecodeHostKeyAttest(big); !errors.Is(err, ErrPayload) {
		t.Errorf("oversize: %v", err)
	}
	for _, name := range []string{"hostkeyattest.request.json", "attest-v1-initial.request.json"} {
		if _, _, err := DecodeDomainAttest(golden(t, name)); !errors.Is(err, ErrPayload) {
			t.Errorf("%s on domainattest: %v", name, err)
		}
	}
	if _, _, err := DecodeAttest(golden(t, "domainattest.request.json")); !errors.Is(err, ErrPayload) {
		t.Errorf("ADRequest on attest: %v", err)
	}
}

func TestRoutes(t *testing.T) {
	good := map[string]Route{
		"/Attestation/Getinfo":                                                      {OpGetInfo, ""},
		"/attestation/getinfo/":                                                     {OpGetInfo, ""},
		"/Attestation/v2.0/getinfo":                                                 {OpGetInfo, "v2.0"},
		"/Attestation/v1.0/attest":                                                  {OpAttest, "v1.0"},
		"/Attestation/V2.0/Attest":                                                  {OpAttest, "v2.0"},
		"/Attestation/v1.0/domainattest":                                            {OpDomainAttest, "v1.0"},
		"/ATTESTATION/v2.0/HOSTKEYATTEST":                                           {OpHostKeyAttest, "v2.0"},
		"/Attestation/v2.0/signingCertificates":                                     {OpSigningCertificates, "v2.0"},
		"/Attestation/attestationservice.svc/v2.0/signingCertificates/":             {OpSigningCertificates, "v2.0"},
		"/Attestation//attestationservice.svc/v2.0/signingCertificates/":            {OpSigningCertificates, "v2.0"},
		"/Attestation/AttestationService.svc/signingCertificates":                   {OpSigningCertificates, ""},
		"//Attestation///attestationservice.svc//v2.0//hostkeyattest///":            {OpHostKeyAttest, "v2.0"},
		"/Attestation/attestationservice.svc/v1.0/attest":                           {OpAttest, "v1.0"},
		"/Attestation/attestationservice.svc/getinfo":                               {OpGetInfo, ""},
		strings.TrimPrefix(URL("http://h/Attestation/", OpGetInfo, ""), "http://h"): {OpGetInfo, ""},
	}
	for path, want := range good {
		if got, ok := ParseRoute(path); !ok || got != want {
			t.Errorf("%s: %+v %v", path, got, ok)
		}
	}
	for _, path := range []string{"", "/", "/Attestation", "/Attestation/", "/getinfo", "/KeyProtection/getinfo", "/Attestation/v3.0/attest",
		"/Attestation/v2.0", "/Attestation/v2.0/attest/more", "/Attestation/v2.0/attestationservice.svc/attest", "/x/Attestation/getinfo",
		"/Attestation/attestationservice.svc", "/Attestation/../getinfo", "/Attestation/" + strings.Repeat("/", 300) + "getinfo"} {
		if got, ok := ParseRoute(path); ok {
			t.Errorf("%q: %+v", path, got)
		}
	}
}

func TestClientChangesModeOnlyWhenToldToRetry(t *testing.T) {
	if m, ok := NextMode(ModeTPM, OperationModeError(ModeHostKey)); !ok || m != ModeHostKey {
		t.Error(m, ok)
	}
	for _, f := range []error{&OperationModeErrorReply{ErrorReply{false}, ModeHostKey}, OperationModeError(ModeTPM),
		OperationModeError(9), UnauthorizedError(), &StatusError{Status: 500}} {
		if _, ok := NextMode(ModeTPM, f); ok {
			t.Errorf("switched after %v", f)
		}
	}
	_, err := ParseReply(503, []byte("<html>"))
	var s *StatusError
	if !errors.As(err, &s) || !s.CanRetry() || !errors.Is(err, ErrSyntax) {
		t.Error(err)
	}
	if _, err := ParseReply(404, golden(t, "getinfo.reply.json")); err == nil {
		t.Error("a success with status 404 was believed")
	}
}
