package kps

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"testing"
)

// BenchmarkWithoutToken is what a roll costs beside the two private operations
// of the token: parse and verify a protector of 3 wrappings, build the next one.
func BenchmarkWithoutToken(b *testing.B) {
	p, tk := testProtector(b)
	raw := p.Bytes()
	b.Run("parse", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := ParseProtector(raw); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("verify", func(b *testing.B) {
		for b.Loop() {
			if err := p.Verify(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("parse+verify+build", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			q, err := ParseProtector(raw)
			if err != nil {
				b.Fatal(err)
			}
			if err := q.Verify(); err != nil {
				b.Fatal(err)
			}
			ingress, err := q.OpenTransportKey(b.Context(), q.Wrapping(2), returning{tk}, rand.Reader)
			if err != nil {
				b.Fatal(err)
			}
			if _, _, err := q.NextVersion(Egress{Ingress: ingress, Guardian: q.Wrapping(2), Signer: untimed{testKeys()[guardianSigning], b}, Random: rand.Reader}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkRawRSA is the private key part of one roll alone: a decryption and a
// signature with keys in memory.
func BenchmarkRawRSA(b *testing.B) {
	key := testKeys()[guardianEncryption]
	sealed, err := encryptOAEP(key.Public(), rand.Reader, OAEP{crypto.SHA256, crypto.SHA256}, make([]byte, 32))
	if err != nil {
		b.Fatal(err)
	}
	b.Run("decrypt", func(b *testing.B) {
		for b.Loop() {
			if _, err := (MemoryKey{key}).Decrypt(b.Context(), sealed, OAEP{crypto.SHA256, crypto.SHA256}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("sign", func(b *testing.B) {
		for b.Loop() {
			if _, err := key.Sign(rand.Reader, make([]byte, 32), crypto.SHA256); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("verify", func(b *testing.B) {
		sig, _ := key.Sign(rand.Reader, make([]byte, 32), crypto.SHA256)
		for b.Loop() {
			if err := rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, make([]byte, 32), sig); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkRoll is a whole roll with keys in memory, request bytes to response bytes.
func BenchmarkRoll(b *testing.B) {
	p, _ := testProtector(b)
	body := NewRequest(p.Bytes(), certify(b, "host", testKeys()[hostKey]).Raw).Marshal()
	b.ReportAllocs()
	for b.Loop() {
		req, err := ParseRequest(body)
		if err != nil {
			b.Fatal(err)
		}
		resp, err := rollOnce(b, req, PayloadV2, 0)
		if err != nil {
			b.Fatal(err)
		}
		resp.Marshal()
	}
}
