package hsm

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
)

// FuzzRequestDigest: what is signed for a CA is a request for this very key, whatever came.
func FuzzRequestDigest(f *testing.F) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "x"}}, key)
	if err != nil {
		f.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		f.Fatal(err)
	}
	spki := csr.RawSubjectPublicKeyInfo
	f.Add(csr.RawTBSCertificateRequest)
	f.Add(der)
	f.Add([]byte{0x30, 0})
	f.Fuzz(func(t *testing.T, info []byte) {
		digest, block, err := RequestDigest(info, spki, key.Size())
		if err != nil {
			return
		}
		// The raw private operation over the block is a PKCS#1 v1.5 signature over the digest.
		sig := new(big.Int).Exp(new(big.Int).SetBytes(block), key.D, key.N).FillBytes(make([]byte, key.Size()))
		if err := rsa.VerifyPKCS1v15(&key.PublicKey, 5, digest[:], sig); err != nil {
			t.Fatal(err)
		}
		if _, _, err := RequestDigest(info, spki, key.Size()-1); err == nil {
			t.Fatal("a block of another size")
		}
	})
}

func TestTheSeedsOfRequestDigestAreSigned(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "x"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr, _ := x509.ParseCertificateRequest(der)
	if _, block, err := RequestDigest(csr.RawTBSCertificateRequest, csr.RawSubjectPublicKeyInfo, key.Size()); err != nil || len(block) != key.Size() {
		t.Errorf("%v", err)
	}
}
