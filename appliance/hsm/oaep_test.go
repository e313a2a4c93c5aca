package hsm

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"encoding/hex"
	"math/big"
	"testing"
)

// RSA Laboratories, oaep-vect.txt (PKCS #1 v2.1), key 1, examples 1.1 and 1.2:
// SHA-1, MGF1 with SHA-1, no label.
const (
	vectorN = "a8b3b284af8eb50b387034a860f146c4919f318763cd6c5598c8ae4811a1e0abc4c7e0b082d693a5e7fced675cf466851277" +
		"2c0cbc64a742c6c630f533c8cc72f62ae833c40bf25842e984bb78bdbf97c0107d55bdb662f5c4e0fab9845cb5148ef7392d" +
		"d3aaff93ae1e6b667bb3d4247616d4f5ba10d4cfd226de88d39f16fb"
	vectorD = "53339cfdb79fc8466a655c7316aca85c55fd8f6dd898fdaf119517ef4f52e8fd8e258df93fee180fa0e4ab29693cd83b152a" +
		"553d4ac4d1812b8b9fa5af0e7f55fe7304df41570926f3311f15c4d65a732c483116ee3d3d2d0af3549ad9bf7cbfb78ad884" +
		"f84d5beb04724dc7369b31def37d0cf539e9cfcdd3de653729ead5d1"
)

var vectors = []struct{ msg, ciphertext string }{
	{"6628194e12073db03ba94cda9ef9532397d50dba79b987004afefe34",
		"354fe67b4a126d5d35fe36c777791a3f7ba13def484e2d3908aff722fad468fb21696de95d0be911c2d3174f8afcc201035f" +
			"7b6d8e69402de5451618c21a535fa9d7bfc5b8dd9fc243f8cf927db31322d6e881eaa91a996170e657a05a266426d98c8800" +
			"3f8477c1227094a0d9fa1e8c4024309ce1ecccb5210035d47ac72e8a"},
	{"750c4047f547e8e41411856523298ac9bae245efaf1397fbe56f9dd5",
		"640db1acc58e0568fe5407e5f9b701dff8c3c91e716c536fc7fcec6cb5b71c1165988d4a279e1577d730fc7a29932e3f00c8" +
			"1515236d8d8e31017a7a09df4352d904cdeb79aa583adcc31ea698a4c05283daba9089be5491f67c1a4ee48dc74bbbe6643a" +
			"ef846679b4cb395a352d5ed115912df696ffe0702932946d71492b44"},
}

// raw is the private operation as a token's CKM_RSA_X_509 does it.
func raw(n, d *big.Int, ciphertext []byte) []byte {
	return new(big.Int).Exp(new(big.Int).SetBytes(ciphertext), d, n).FillBytes(make([]byte, (n.BitLen()+7)/8))
}

func fromHex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestOpensPublishedOAEPVectors(t *testing.T) {
	n, d := new(big.Int).SetBytes(fromHex(t, vectorN)), new(big.Int).SetBytes(fromHex(t, vectorD))
	for i, v := range vectors {
		em := raw(n, d, fromHex(t, v.ciphertext))
		got, err := DecodeOAEP(em, OAEP{Hash: crypto.SHA1, MGF: crypto.SHA1})
		if err != nil || !bytes.Equal(got, fromHex(t, v.msg)) {
			t.Errorf("example 1.%d: %x, %v", i+1, got, err)
		}
		if !bytes.Equal(em, make([]byte, len(em))) {
			t.Errorf("example 1.%d: the encoded message was left in memory", i+1)
		}
	}
}

func TestDecodesWhatTheStandardLibraryEncrypts(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	hashes := []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512}
	for _, h := range hashes {
		for _, mgf := range hashes {
			for _, label := range [][]byte{nil, []byte("label")} {
				p := OAEP{Hash: h, MGF: mgf, Label: label}
				most := key.Size() - 2*h.Size() - 2
				for _, size := range []int{0, 1, 32, most} {
					msg := bytes.Repeat([]byte{1}, size) // 01 is the separator's own value
					ct, err := rsa.EncryptOAEPWithOptions(rand.Reader, &key.PublicKey, msg, &rsa.OAEPOptions{Hash: h, MGFHash: mgf, Label: label})
					if err != nil {
						t.Fatal(err)
					}
					got, err := DecodeOAEP(raw(key.N, key.D, ct), p)
					if err != nil || !bytes.Equal(got, msg) {
						t.Errorf("%v/%v %d bytes: %v", h, mgf, size, err)
					}
				}
			}
		}
	}
}

// encode is OAEP encoding with every field free, to make blocks that no honest
// sender makes.
func encode(p OAEP, k int, first byte, lHash, rest []byte) []byte {
	h := p.Hash.Size()
	em := make([]byte, k)
	em[0] = first
	seed, db := em[1:1+h], em[1+h:]
	for i := range seed {
		seed[i] = byte(i * 7)
	}
	copy(db, lHash)
	copy(db[h:], rest)
	mgf1XOR(db, p.MGF, seed)
	mgf1XOR(seed, p.MGF, db)
	return em
}

func TestRefusesBadOAEPWithOneError(t *testing.T) {
	p := OAEP{Hash: crypto.SHA256, MGF: crypto.SHA256}
	const k = 256
	h := p.Hash.New()
	lHash := h.Sum(nil)
	room := k - 2*32 - 1
	rest := func(b ...byte) []byte { return append(make([]byte, room-len(b)), b...) }
	if got, err := DecodeOAEP(encode(p, k, 0, lHash, rest(1, 'o', 'k')), p); err != nil || string(got) != "ok" {
		t.Fatalf("a good block: %q, %v", got, err)
	}
	if got, err := DecodeOAEP(encode(p, k, 0, lHash, rest(1)), p); err != nil || len(got) != 0 {
		t.Fatalf("an empty message: %q, %v", got, err)
	}
	wrong := bytes.Clone(lHash)
	wrong[31] ^= 1
	early := rest(1, 'x')
	early[0] = 2
	for name, em := range map[string][]byte{
		"first byte 1":              encode(p, k, 1, lHash, rest(1, 'x')),
		"first byte 255":            encode(p, k, 255, lHash, rest(1, 'x')),
		"label hash":                encode(p, k, 0, wrong, rest(1, 'x')),
		"label hash and first byte": encode(p, k, 9, wrong, rest(1, 'x')),
		"no separator":              encode(p, k, 0, lHash, rest()),
		"wrong separator":           encode(p, k, 0, lHash, rest(2, 'x')),
		"dirt before the separator": encode(p, k, 0, lHash, early),
		"all zero":                  make([]byte, k),
		"too short":                 make([]byte, 65),
		"empty":                     {},
	} {
		got, err := DecodeOAEP(em, p)
		if err != error(ErrDecrypt) || got != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := DecodeOAEP(make([]byte, k), OAEP{Hash: crypto.MD5, MGF: crypto.SHA256}); err != error(ErrDecrypt) {
		t.Errorf("MD5: %v", err)
	}
}

func FuzzDecodeOAEP(f *testing.F) {
	p := OAEP{Hash: crypto.SHA256, MGF: crypto.SHA1}
	h := p.Hash.New()
	f.Add(encode(p, 128, 0, h.Sum(nil), append(make([]byte, 60), 1, 2)))
	f.Add([]byte{})
	f.Add(make([]byte, 66))
	f.Fuzz(func(t *testing.T, em []byte) {
		size := len(em)
		got, err := DecodeOAEP(em, p)
		if (err == nil) != (got != nil || err == nil) || len(got) > max(0, size-66) {
			t.Fatalf("%d bytes out of %d, %v", len(got), size, err)
		}
	})
}
