package hgsa

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/smallstep/pkcs7"
)

var testKey = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

func selfSigned(t testing.TB, key crypto.Signer, cn string) *x509.Certificate {
	t.Helper()
	from := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	tpl := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: cn}, NotBefore: from, NotAfter: from.AddDate(1, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// tpmPublic is the key as go-tpm writes it: an encoder that is not ours.
func tpmPublic(key *rsa.PublicKey) []byte {
	return tpm2.Marshal(tpm2.TPMTPublic{
		Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, Decrypt: true, Restricted: true},
		AuthPolicy:       tpm2.TPM2BDigest{Buffer: make([]byte, 32)},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
			Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgAES, KeyBits: tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(128)),
				Mode: tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB)},
			Scheme:  tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgOAEP, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgOAEP, &tpm2.TPMSEncSchemeOAEP{HashAlg: tpm2.TPMAlgSHA256})},
			KeyBits: 2048, Exponent: uint32(key.E),
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.Bytes()}),
	})
}

func TestP13_05_EveryKeyEncodingNamesTheSameKey(t *testing.T) {
	key := &testKey().PublicKey
	spki, _ := x509.MarshalPKIXPublicKey(key)
	tpmt := tpmPublic(key)
	object, _ := json.Marshal(map[string][]byte{"Key": spki})
	numbers := append(appendNumbers([]byte(` { "Key" : `)[1:], spki), '}')
	cases := []struct {
		encoding KeyEncoding
		raw      []byte
	}{
		{KeySPKI, spki},
		{KeyPKCS1, x509.MarshalPKCS1PublicKey(key)},
		{KeyCertificate, selfSigned(t, testKey(), "host").Raw},
		{KeyTPMT, tpmt},
		{KeyTPM2B, append(binary.BigEndian.AppendUint16(nil, uint16(len(tpmt))), tpmt...)},
		{KeyObject, object},
		{KeyObject, numbers},
	}
	for _, own := range []KeyEncoding{KeySPKI, KeyPKCS1, KeyBcrypt, KeyCryptoAPI, KeySIPA, KeyTPMT, KeyTPM2B} {
		raw, err := EncodePublicKey(key, own)
		if err != nil {
			t.Fatal(own, err)
		}
		cases = append(cases, struct {
			encoding KeyEncoding
			raw      []byte
		}{own, raw})
	}
	for _, c := range cases {
		got, err := ParsePublicKey(c.raw)
		if err != nil || !SameKey(got.RSA, key) || got.Encoding != c.encoding || !bytes.Equal(got.Raw, c.raw) {
			t.Errorf("%s: %s %v", c.encoding, got.Encoding, err)
		}
		for _, broken := range [][]byte{append(bytes.Clone(c.raw), 0), c.raw[:len(c.raw)-1], c.raw[:8], c.raw[:1]} {
			if _, err := ParsePublicKey(broken); !errors.Is(err, ErrKeyEncoding) {
				t.Errorf("%s with %d of %d bytes: %v", c.encoding, len(broken), len(c.raw), err)
			}
		}
	}
	id, err := HostID(key)
	sum := sha256.Sum256(spki)
	if err != nil || id != strings.ToUpper(hex.EncodeToString(sum[:])) {
		t.Error(id, err)
	}
}

// The layouts of 9.3 and 13.5, byte by byte, not made by our encoder.
func TestKeyLayoutsAreTheDocumentedOnes(t *testing.T) {
	key := &rsa.PublicKey{N: new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), 2047), big.NewInt(0x0305)), E: 65537}
	n := hex.EncodeToString(key.N.Bytes())
	le := bytes.Clone(key.N.Bytes())
	for i, j := 0, len(le)-1; i < j; i, j = i+1, j-1 {
		le[i], le[j] = le[j], le[i]
	}
	for encoding, want := range map[KeyEncoding]string{
		KeySIPA:      "01000000" + "00080000" + "03000000" + "00010000" + "010001" + n,
		KeyBcrypt:    "52534131" + "00080000" + "03000000" + "00010000" + "00000000" + "00000000" + "010001" + n,
		KeyCryptoAPI: "06020000" + "00a40000" + "52534131" + "00080000" + "01000100" + hex.EncodeToString(le),
		KeyTPMT:      "0001" + "000b" + "000300b2" + "0000" + "0006" + "0080" + "0043" + "0010" + "0800" + "00000000" + "0100" + n,
	} {
		got, err := EncodePublicKey(key, encoding)
		if err != nil || hex.EncodeToString(got) != want {
			t.Errorf("%s:\n%x\n%s\n%v", encoding, got, want, err)
		}
		raw, _ := hex.DecodeString(want)
		if p, err := ParsePublicKey(raw); err != nil || !SameKey(p.RSA, key) {
			t.Errorf("%s does not parse: %v", encoding, err)
		}
	}
}

func TestRefusesWeakAndAbsurdKeys(t *testing.T) {
	modulus := func(bits uint) *big.Int {
		return new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), bits-1), big.NewInt(1))
	}
	sipa := func(n *big.Int, e string) []byte {
		b := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, 1), uint32(n.BitLen()))
		b = binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(b, uint32(len(e))), uint32(len(n.Bytes())))
		return append(append(b, e...), n.Bytes()...)
	}
	even := new(big.Int).Lsh(big.NewInt(1), 2047)
	for _, c := range []struct {
		raw  []byte
		want error
	}{
		{sipa(modulus(2047), "\x01\x00\x01"), ErrKeySize},
		{sipa(modulus(1024), "\x01\x00\x01"), ErrKeySize},
		{sipa(modulus(16385), "\x01\x00\x01"), ErrKeySize},
		{sipa(modulus(2048), "\x01"), ErrKeyExponent},
		{sipa(modulus(2048), ""), ErrKeyExponent},
		{sipa(modulus(2048), "\x01\x00\x00"), ErrKeyExponent},
		{sipa(modulus(2048), "\xff\xff\xff\xff"), ErrKeyExponent},
		{sipa(modulus(2048), "\x01\x00\x00\x00\x00\x00\x00\x01"), ErrKeyExponent},
		{sipa(modulus(2048), "\x00\x00\x00\x00\x00\x00\x00\x00\x03"), ErrKeyEncoding},
		{sipa(even, "\x01\x00\x01"), ErrKeyModulus},
		{nil, ErrKeyEncoding},
		{[]byte("{}"), ErrKeyEncoding},
		{[]byte(`{"Key":"eyJLZXkiOiJBQSJ9"}`), ErrKeyEncoding}, // an object in an object
		{make([]byte, maxKeyBytes+1), ErrKeyEncoding},
	} {
		if _, err := ParsePublicKey(c.raw); !errors.Is(err, c.want) {
			t.Errorf("%.24x: %v, want %v", c.raw, err, c.want)
		}
	}
	ec, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	spki, _ := x509.MarshalPKIXPublicKey(&ec.PublicKey)
	if _, err := ParsePublicKey(spki); !errors.Is(err, ErrKeyEncoding) {
		t.Errorf("an elliptic curve key: %v", err)
	}
}

func TestP13_08_HostKeySignatureForms(t *testing.T) {
	key, item8, item1 := testKey(), []byte("the host key bytes"), []byte("the VSM key bytes")
	digest := func(h crypto.Hash) []byte {
		w := h.New()
		w.Write([]byte("the host key bytesthe VSM key bytes"))
		return w.Sum(nil)
	}
	pss := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}
	for _, f := range signatureForms {
		var sig []byte
		if f.pss {
			sig, _ = rsa.SignPSS(rand.Reader, key, f.hash, digest(f.hash), pss)
		} else {
			sig, _ = rsa.SignPKCS1v15(nil, key, f.hash, digest(f.hash))
		}
		if got, err := VerifyHostKeySignature(&key.PublicKey, item8, item1, sig); err != nil || got != f.name {
			t.Errorf("%s: %q %v", f.name, got, err)
		}
		sig[3] ^= 1
		if _, err := VerifyHostKeySignature(&key.PublicKey, item8, item1, sig); !errors.Is(err, ErrHostKeySignature) || !strings.Contains(err.Error(), "PSS SHA-512") {
			t.Errorf("%s, one bit flipped: %v", f.name, err)
		}
	}
	sha1, _ := rsa.SignPKCS1v15(nil, key, crypto.SHA1, make([]byte, 20))
	swapped, _ := rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest(crypto.SHA256))
	if _, err := VerifyHostKeySignature(&key.PublicKey, item8, item1, sha1); err == nil {
		t.Error("a SHA-1 signature verified")
	}
	if _, err := VerifyHostKeySignature(&key.PublicKey, item1, item8, swapped); err == nil {
		t.Error("the order of the two keys does not matter")
	}
	for _, sig := range [][]byte{nil, {}, make([]byte, 256), make([]byte, 1<<16)} {
		if _, err := VerifyHostKeySignature(&key.PublicKey, item8, item1, sig); err == nil {
			t.Errorf("a signature of %d zero bytes verified", len(sig))
		}
	}
}

func TestClientRequestIsWhatTheServerVerifies(t *testing.T) {
	host := testKey()
	cert := selfSigned(t, host, "host").Raw
	for _, q := range []HostKeyRequest{
		{}, {VSMForm: KeyBcrypt, HostForm: KeyTPM2B}, {HostCertificate: cert, Style: Style{Base64: true}},
	} {
		q.SessionId, q.VSMKey, q.Requested = session, &host.PublicKey, []AttestationResultType{1, 2}
		body, err := NewHostKeyRequest(rand.Reader, host, q)
		if err != nil {
			t.Fatal(err)
		}
		r, style, err := DecodeHostKeyAttest(body)
		if err != nil || style != q.Style || r.Count(HostKeyPublicKey) != 1 {
			t.Fatal(style, err)
		}
		item1, _ := r.Provided(VirtualSecureModeIdentityKey)
		item8, _ := r.Provided(HostKeyPublicKey)
		item9, ok := r.Provided(HostKeySignature)
		k, err := ParsePublicKey(item8)
		if err != nil || !ok || !SameKey(k.RSA, &host.PublicKey) {
			t.Fatal(err)
		}
		if form, err := VerifyHostKeySignature(k.RSA, item8, item1, item9); err != nil || form != signatureForms[0].name {
			t.Error(form, err)
		}
	}
	ec, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if _, err := NewHostKeyRequest(rand.Reader, ec, HostKeyRequest{VSMKey: &host.PublicKey}); err == nil {
		t.Error("an elliptic curve host key was used")
	}
}

func TestSigningCertificatesAreReadByAForeignParser(t *testing.T) {
	var certs []*x509.Certificate
	for _, cn := range []string{"b", "a", "c"} {
		certs = append(certs, selfSigned(t, testKey(), cn))
	}
	body, err := EncodeSigningCertificates(certs)
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckSigningBody(body); err != nil {
		t.Error(err)
	}
	var numbers []int
	if err := json.Unmarshal(body, &numbers); err != nil {
		t.Fatal(err)
	}
	var der []byte
	for _, n := range numbers {
		der = append(der, byte(n))
	}
	p7, err := pkcs7.Parse(der)
	if err != nil || len(p7.Certificates) != 3 {
		t.Fatalf("pkcs7: %v", err)
	}
	again, _ := EncodeSigningCertificates([]*x509.Certificate{certs[2], certs[0], certs[1]})
	if !bytes.Equal(body, again) {
		t.Error("the body depends on the order of the certificates")
	}
	foreign, err := pkcs7.DegenerateCertificate(append(bytes.Clone(certs[0].Raw), certs[1].Raw...))
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"own": body, "foreign": appendNumbers(nil, foreign)} {
		got, err := DecodeSigningCertificates(b)
		if err != nil || len(got) < 2 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRefusesListsThatBreakDrivers(t *testing.T) {
	c := selfSigned(t, testKey(), "a")
	ec, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	for name, list := range map[string][]*x509.Certificate{"none": nil, "six": {c, c, c, c, c, c}, "not RSA": {c, selfSigned(t, ec, "e")}} {
		if _, err := EncodeSigningCertificates(list); !errors.Is(err, ErrSigningCertificates) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, body := range []string{"", "[]", "[1,2]\n", "[1, 2]", " [1]", `"MII="`, "[256]", "[-1]", "[01]", "[1,]", "[1.0]", "[1234]"} {
		if err := CheckSigningBody([]byte(body)); !errors.Is(err, ErrSigningCertificates) {
			t.Errorf("%q: %v", body, err)
		}
	}
	for _, body := range []string{"", "[]", "{}", "[48]", "[48,0]", `"AA=="`, string(golden(t, "signingcertificates.body.json"))} {
		if _, err := DecodeSigningCertificates([]byte(body)); !errors.Is(err, ErrSigningCertificates) {
			t.Errorf("%q decodes: %v", body, err)
		}
	}
}
