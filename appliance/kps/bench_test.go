package kps

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"runtime"
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
	// The guardian's signature, which is the token's, is taken off. Processor time of this thread counts, so that other work on the machine
	// does not; the ratios to raw operations of the same run tell a slow machine from slow code.
	b.Run("parse+verify+build", func(b *testing.B) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		raw1 := rawVerification(b)
		b.ReportAllocs()
		signer := &timed{PrivateKey: testKeys()[guardianSigning]}
		start := threadTime()
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
			if _, _, err := q.NextVersion(Egress{Ingress: ingress, Guardian: q.Wrapping(2), Signer: signer, Random: rand.Reader}); err != nil {
				b.Fatal(err)
			}
		}
		ours := float64(threadTime()-start-signer.spent) / float64(b.N)
		b.ReportMetric(ours/1e3, "µs-without-token")
		b.ReportMetric(ours/raw1, "raw-verifications")
		b.ReportMetric(ours/(float64(signer.spent)/float64(b.N)), "raw-signatures")
	})
}

// rawVerification is the time of one RSA-2048 verification in ns.
func rawVerification(b *testing.B) float64 {
	key := testKeys()[guardianSigning]
	sig, err := key.Sign(rand.Reader, make([]byte, 32), crypto.SHA256)
	if err != nil {
		b.Fatal(err)
	}
	const n = 500
	start := threadTime()
	for range n {
		if err := rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, make([]byte, 32), sig); err != nil {
			b.Fatal(err)
		}
	}
	return float64(threadTime()-start) / n
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

// BenchmarkSecretFailures times the ways in which a transport key is wrong, the token taken out: compare them with benchstat, they must not
// differ by more than the noise of the run.
func BenchmarkSecretFailures(b *testing.B) {
	p, tk := testProtector(b)
	two, err := (&Payload{Version: PayloadV1, Keys: [][]byte{tk, tk}}).Marshal()
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name string
		key  Decrypter
	}{{"padding", failing{ErrDecryption}}, {"structure", returning{two}}, {"short", returning{tk[:8]}}, {"another-key", returning{make([]byte, 32)}}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				if _, err := p.OpenTransportKey(b.Context(), p.Wrapping(2), c.key, rand.Reader); err != error(errTransportKey) {
					b.Fatal(err)
				}
			}
		})
	}
}
