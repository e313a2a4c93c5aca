package kps

import (
	"bytes"
	"testing"
)

func FuzzParseProtector(f *testing.F) {
	p, _ := testProtector(f)
	f.Add(p.Bytes())
	f.Add(readFile(f, "wrappings.xml"))
	f.Add([]byte(`<Protector xmlns="` + Namespace + `"><Wrappings/></Protector>`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := ParseProtector(raw)
		if err != nil {
			if c := CodeOf(err); c != CodeInvalidProtector && c != CodeInvalidWrapping {
				t.Errorf("code %q", c)
			}
			return
		}
		_ = p.Verify()
		p.Summary()
	})
}

// FuzzCanonical checks that the canonical form is a fixed point: what was signed
// reads back as the same signed bytes.
func FuzzCanonical(f *testing.F) {
	for _, name := range []string{"wrappings.xml", "c14n-a.xml", "c14n-b.xml"} {
		f.Add(readFile(f, name))
	}
	f.Add([]byte(`<a xmlns="u" x="&#x41;"><!-- c --><b>&#13;<![CDATA[<]]></b></a>`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		root, err := readTree(raw, documentBounds)
		if err != nil {
			return
		}
		once, err := canonical(root)
		if err != nil {
			t.Fatalf("accepted but has no canonical form: %v", err)
		}
		if len(raw) < 1<<12 { // every element is compared, which is quadratic
			canonicalisersAgree(t, root)
		}
		lim := documentBounds
		lim.bytes = 8 * MaxDocument
		again, err := readTree(once, lim)
		if err != nil {
			t.Fatalf("canonical form is not accepted: %v\n%q", err, once)
		}
		twice, err := canonical(again)
		if err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%v\nonce  %q\ntwice %q", err, once, twice)
		}
	})
}

func FuzzParseMessages(f *testing.F) {
	f.Add(NewRequest([]byte("p"), []byte("c")).Marshal())
	f.Add(wide(string(NewRequest([]byte("p"), []byte("c")).Marshal()), true))
	f.Add(wide(string(NewRequest([]byte("p"), []byte("c")).Marshal()), false))
	f.Add((&RollTransportKeyResponse{[]byte{1}, []byte{2}, []byte{3}, []byte{4}}).Marshal())
	f.Add((&ErrorDocument{CodeInternal, "m"}).Marshal())
	f.Fuzz(func(t *testing.T, raw []byte) {
		if r, err := ParseRequest(raw); err == nil {
			back, err := ParseRequest(r.Marshal())
			if err != nil || !bytes.Equal(back.IngressProtector, r.IngressProtector) || back.TransferKeyEncryptionAlgorithm != r.TransferKeyEncryptionAlgorithm {
				t.Errorf("request does not survive writing: %v", err)
			}
		}
		if r, err := ParseResponse(raw); err == nil {
			if back, err := ParseResponse(r.Marshal()); err != nil || !bytes.Equal(back.EncryptedTransportKeys, r.EncryptedTransportKeys) {
				t.Errorf("response does not survive writing: %v", err)
			}
		}
		_, _ = ParseError(raw)
	})
}

func FuzzParseMetadata(f *testing.F) {
	f.Add(testMetadata(f, guardianSigning, guardianEncryption))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if m, err := ParseMetadata(raw); err == nil {
			_, _, _ = m.Import(ImportOptions{Now: testTime})
		}
	})
}

func FuzzParsePayload(f *testing.F) {
	for _, p := range []Payload{{Version: PayloadV1, Keys: vectorKeys()}, {Version: PayloadV2, Keys: vectorKeys(), Policies: []Policy{OfflinePolicy(1)}}} {
		b, err := p.Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, blob []byte) {
		p, err := ParsePayload(blob)
		if err != nil {
			return
		}
		if back, err := p.Marshal(); err != nil || !bytes.Equal(back, blob) {
			t.Errorf("%x reads back as %x, %v", blob, back, err)
		}
	})
}

func FuzzMatch(f *testing.F) {
	f.Add(RollPathV1)
	f.Add(MetadataPath)
	f.Fuzz(func(t *testing.T, path string) {
		if r := Match(path); (r.Operation == OpRoll) != (r.Version != 0) {
			t.Errorf("%q: %+v", path, r)
		}
	})
}
