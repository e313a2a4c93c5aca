package hgsa

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unicode/utf16"
)

func seeds(f *testing.F) {
	names, err := filepath.Glob("testdata/wire/*.json")
	if err != nil || len(names) == 0 {
		f.Fatal("no golden files", err)
	}
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(wide(string(b), true))
		f.Add(wide(string(b), false)[2:])
	}
	f.Add([]byte(`{"SessionId":null,"RequestedContent":["1"],"ProvidedContent":[{"m_Item2":{"Key":"\/v8="},"m_Item1":1}]}`))
}

// wide is text in UTF-16 with a mark, little-endian or not.
func wide(s string, little bool) (b []byte) {
	for _, u := range utf16.Encode([]rune("\ufeff" + s)) {
		if little {
			b = binary.LittleEndian.AppendUint16(b, u)
		} else {
			b = binary.BigEndian.AppendUint16(b, u)
		}
	}
	return b
}

// checkRequest: what decodes encodes to what decodes to the same.
func checkRequest(t *testing.T, body []byte, r Request, err error, decode func([]byte) (Request, Style, error)) {
	if err != nil {
		if !errors.Is(err, ErrSyntax) && !errors.Is(err, ErrPayload) {
			t.Fatalf("an error of no kind: %v", err)
		}
		return
	}
	if doc, err := inUTF8(body); err != nil || !json.Valid(doc) {
		t.Fatal("accepted what is not JSON")
	}
	for _, style := range []Style{{}, {Base64: true, BinaryGUIDs: true}} {
		again, _, err := decode(EncodeRequest(r, style))
		if err != nil || !reflect.DeepEqual(normal(r), normal(again)) {
			t.Fatalf("%+v became %+v, %v", r, again, err)
		}
	}
}

// normal writes a request in one form, so that nil and empty compare equal.
func normal(r Request) string { return string(EncodeRequest(r, Style{})) }

func FuzzDecodeAttest(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		r, _, err := DecodeAttest(body)
		checkRequest(t, body, r, err, DecodeAttest)
	})
}

func FuzzDecodeDomainAttest(f *testing.F) {
	seeds(f)
	decode := func(b []byte) (Request, Style, error) { return nilless(DecodeDomainAttest(b)) }
	f.Fuzz(func(t *testing.T, body []byte) {
		r, _, err := decode(body)
		checkRequest(t, body, r, err, decode)
	})
}

func FuzzDecodeHostKeyAttest(f *testing.F) {
	seeds(f)
	decode := func(b []byte) (Request, Style, error) { return nilless(DecodeHostKeyAttest(b)) }
	f.Fuzz(func(t *testing.T, body []byte) {
		r, _, err := decode(body)
		checkRequest(t, body, r, err, decode)
	})
}

func FuzzDecodeReply(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		r, _, err := DecodeReply(body)
		if err != nil {
			if r != nil {
				t.Fatal("a reply beside an error")
			}
			return
		}
		wire := EncodeReply(r, Style{})
		again, _, err := DecodeReply(wire)
		if err != nil || !bytes.Equal(EncodeReply(again, Style{}), wire) {
			t.Fatalf("%+v became %+v, %v", r, again, err)
		}
	})
}

func FuzzParsePublicKey(f *testing.F) {
	key := &testKey().PublicKey
	for _, e := range []KeyEncoding{KeySPKI, KeyPKCS1, KeyBcrypt, KeyCryptoAPI, KeySIPA, KeyTPMT, KeyTPM2B} {
		raw, err := EncodePublicKey(key, e)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add(selfSigned(f, testKey(), "host").Raw)
	f.Add([]byte(`{"Key":"MIIBIjAN"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		k, err := ParsePublicKey(raw)
		if err != nil {
			return
		}
		if bits := k.RSA.N.BitLen(); bits < 2048 || k.RSA.E < 3 || !bytes.Equal(k.Raw, raw) {
			t.Fatalf("accepted a key of %d bits, exponent %d", bits, k.RSA.E)
		}
		spki, err := EncodePublicKey(k.RSA, KeySPKI)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParsePublicKey(spki)
		if err != nil || !SameKey(k.RSA, again.RSA) {
			t.Fatal("the key changes on the way", err)
		}
	})
}

func FuzzDecodeSigningCertificates(f *testing.F) {
	seeds(f)
	body, err := EncodeSigningCertificates([]*x509.Certificate{selfSigned(f, testKey(), "a")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Fuzz(func(t *testing.T, body []byte) {
		_ = CheckSigningBody(body)
		if certs, err := DecodeSigningCertificates(body); err == nil && len(certs) == 0 {
			t.Fatal("an empty list without an error")
		}
	})
}

func FuzzParseRoute(f *testing.F) {
	f.Add("/Attestation//attestationservice.svc/v2.0/signingCertificates/")
	f.Fuzz(func(t *testing.T, path string) {
		if r, ok := ParseRoute(path); ok && r.Operation.Method() == "" {
			t.Fatal(path)
		}
	})
}

func BenchmarkDecodeHostKeyAttest(b *testing.B) {
	for name, style := range map[string]Style{"numbers": {}, "base64": {Base64: true}} {
		r := &AttestationRequest{RequestedContent: []AttestationResultType{1}}
		for i, n := range []int{275, 294, 256} {
			r.ProvidedContent = append(r.ProvidedContent, TupleOfAttestationProvidedContentTypebase64Binary{
				AttestationProvidedContentType([]int{1, 8, 9}[i]), bytes.Repeat([]byte{0xb5}, n)})
		}
		body := EncodeRequest(r, style)
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := DecodeHostKeyAttest(body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func FuzzParseGUID(f *testing.F) {
	f.Add(session.String())
	f.Add("{0B8C6C1E-6D0E-4C6F-9F0A-3D1F6F6B2A11}")
	f.Add("--------------------------------------")
	f.Fuzz(func(t *testing.T, s string) {
		g, err := ParseGUID(s)
		if err != nil {
			return
		}
		if again, err := ParseGUID(g.String()); err != nil || again != g || !strings.EqualFold(strings.Trim(s, "{}"), g.String()) {
			t.Fatalf("%q became %s", s, g)
		}
	})
}

// BenchmarkDecodeLog reads a request with a boot log of 43 KB, whose bytes come
// in no order. Compare with BenchmarkDecodeLogWithJSON.
func BenchmarkDecodeLog(b *testing.B) {
	body := logRequest()
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := DecodeAttest(body); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodeLogWithJSON(b *testing.B) {
	body := logRequest()
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		var m struct{ RtpmNewContext []uint16 }
		if err := json.Unmarshal(body, &m); err != nil {
			b.Fatal(err)
		}
	}
}

func logRequest() []byte {
	log := make([]byte, 43000)
	for i := range log {
		log[i] = byte(i * i * 31 >> (i % 5))
	}
	return EncodeRequest(&TpmRequestContinue{TpmRequest: TpmRequest{RtpmPublicEndorsementKey: log[:300]}, RtpmNewContext: log}, Style{})
}
