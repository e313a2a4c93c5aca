package kps

import (
	"bytes"
	"context"
	"crypto"
	"crypto/hmac"
	"crypto/rsa"
	_ "crypto/sha1" // OAEP of old peers only, never a signature
	_ "crypto/sha256"
	_ "crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strings"

	"github.com/beevik/etree"
)

// Algorithm URIs of profile P1 that this package writes.
const (
	RSASHA256  = "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256"
	HMACSHA256 = "http://www.w3.org/2001/04/xmldsig-more#hmac-sha256"
	ConcatKDF  = "http://www.w3.org/2009/xmlenc11#ConcatKDF"
	RSAOAEP    = "http://www.w3.org/2009/xmlenc11#rsa-oaep"
	// RSAOAEPMGF1P has MGF1 fixed to SHA-1; read, and written on request.
	RSAOAEPMGF1P = "http://www.w3.org/2001/04/xmlenc#rsa-oaep-mgf1p"
	AES256GCM    = "http://www.w3.org/2009/xmlenc11#aes256-gcm"

	digestSHA256 = "http://www.w3.org/2001/04/xmlenc#sha256"
)

// Sizes of RSA moduli in bits that are accepted [kps.md 9.2]; the upper one
// bounds the cost of a protector with many wrappings.
const (
	MinRSABits = 2048
	MaxRSABits = 8192
)

type rsaScheme struct {
	hash crypto.Hash
	pss  bool
}

// rsaSignatures are the accepted signature algorithms; SHA-1 and MD5 never are.
var rsaSignatures = map[string]rsaScheme{
	RSASHA256: {hash: crypto.SHA256},
	"http://www.w3.org/2001/04/xmldsig-more#rsa-sha384":      {hash: crypto.SHA384},
	"http://www.w3.org/2001/04/xmldsig-more#rsa-sha512":      {hash: crypto.SHA512},
	"http://www.w3.org/2007/05/xmldsig-more#sha256-rsa-MGF1": {hash: crypto.SHA256, pss: true},
	"http://www.w3.org/2007/05/xmldsig-more#sha384-rsa-MGF1": {hash: crypto.SHA384, pss: true},
	"http://www.w3.org/2007/05/xmldsig-more#sha512-rsa-MGF1": {hash: crypto.SHA512, pss: true},
}

// hashesByDigestURI serve DigestMethod of OAEP and ConcatKDF.
var hashesByDigestURI = map[string]crypto.Hash{
	"http://www.w3.org/2000/09/xmldsig#sha1":        crypto.SHA1,
	digestSHA256:                                    crypto.SHA256,
	"http://www.w3.org/2001/04/xmldsig-more#sha384": crypto.SHA384,
	"http://www.w3.org/2001/04/xmlenc#sha384":       crypto.SHA384,
	"http://www.w3.org/2001/04/xmlenc#sha512":       crypto.SHA512,
}

var hashesByMGF = map[string]crypto.Hash{
	"http://www.w3.org/2009/xmlenc11#mgf1sha1":   crypto.SHA1,
	"http://www.w3.org/2009/xmlenc11#mgf1sha256": crypto.SHA256,
	"http://www.w3.org/2009/xmlenc11#mgf1sha384": crypto.SHA384,
	"http://www.w3.org/2009/xmlenc11#mgf1sha512": crypto.SHA512,
}

func checkRSA(pub crypto.PublicKey) (*rsa.PublicKey, error) {
	key, ok := pub.(*rsa.PublicKey)
	switch {
	case !ok:
		return nil, errors.New("the key is not RSA")
	case key.N.BitLen() < MinRSABits:
		return nil, fmt.Errorf("the RSA key has %d bits, at least %d are needed", key.N.BitLen(), MinRSABits)
	case key.N.BitLen() > MaxRSABits:
		return nil, fmt.Errorf("the RSA key has %d bits, at most %d are accepted", key.N.BitLen(), MaxRSABits)
	case key.E < 3 || key.E&1 == 0 || key.N.Bit(0) == 0:
		return nil, errors.New("the RSA key is malformed")
	}
	return key, nil
}

func verifyRSA(pub crypto.PublicKey, sig Signature, message []byte) error {
	scheme, ok := rsaSignatures[sig.Algorithm]
	if !ok {
		return unknownAlgorithm("", "signature", sig.Algorithm)
	}
	key, err := checkRSA(pub)
	if err != nil {
		return err
	}
	h := scheme.hash.New()
	h.Write(message)
	if scheme.pss {
		err = rsa.VerifyPSS(key, scheme.hash, h.Sum(nil), sig.Value, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	} else {
		err = rsa.VerifyPKCS1v15(key, scheme.hash, h.Sum(nil), sig.Value)
	}
	if err != nil {
		return errors.New("the signature is not valid")
	}
	return nil
}

// signRSA signs with RSASHA256, the only algorithm written. What the key
// returned is verified: a token that computes wrongly must not leak its key by
// a faulty signature, nor a tenant get a protector that nobody can open.
func signRSA(signer crypto.Signer, random io.Reader, message []byte) (Signature, error) {
	if _, err := checkRSA(signer.Public()); err != nil {
		return Signature{}, err
	}
	h := crypto.SHA256.New()
	h.Write(message)
	value, err := signer.Sign(random, h.Sum(nil), crypto.SHA256)
	if err != nil {
		return Signature{}, fmt.Errorf("sign: %w", err)
	}
	sig := Signature{Algorithm: RSASHA256, Value: value}
	if err := verifyRSA(signer.Public(), sig, message); err != nil {
		return Signature{}, fmt.Errorf("sign: the key returned a wrong signature: %w", err)
	}
	return sig, nil
}

// OAEP names the two hashes of RSA-OAEP; the label is always empty.
type OAEP struct {
	Hash crypto.Hash // of the label
	MGF  crypto.Hash // of the mask generation function
}

// A Decrypter holds an RSA private key, perhaps in a token. Decrypt must return
// an error that wraps ErrDecryption when the ciphertext or its padding is bad,
// and any other error when the key could not be used.
type Decrypter interface {
	Decrypt(ctx context.Context, ciphertext []byte, padding OAEP) ([]byte, error)
}

// ErrDecryption means that a ciphertext does not decrypt under a working key.
var ErrDecryption = errors.New("decryption failed")

// MemoryKey is a Decrypter over a key in memory, for tests and workstations.
type MemoryKey struct{ Key *rsa.PrivateKey }

// Decrypt implements Decrypter.
func (k MemoryKey) Decrypt(_ context.Context, ciphertext []byte, padding OAEP) ([]byte, error) {
	plain, err := k.Key.Decrypt(nil, ciphertext, &rsa.OAEPOptions{Hash: padding.Hash, MGFHash: padding.MGF})
	if err != nil {
		return nil, ErrDecryption
	}
	return plain, nil
}

func encryptOAEP(pub crypto.PublicKey, random io.Reader, padding OAEP, plain []byte) ([]byte, error) {
	key, err := checkRSA(pub)
	if err != nil {
		return nil, err
	}
	out, err := rsa.EncryptOAEPWithOptions(random, key, plain, &rsa.OAEPOptions{Hash: padding.Hash, MGFHash: padding.MGF})
	if err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	return out, nil
}

// EncryptedData is one ciphertext with its algorithm [MS-KPS 2.2.2.10].
type EncryptedData struct {
	Algorithm string
	Padding   OAEP
	Value     []byte
}

// oaepFromXML reads algorithm and Parameters of an EncryptedData. Children that
// are absent have the defaults of XML Encryption: SHA-1 and MGF1 with SHA-1.
func oaepFromXML(uri string, params *etree.Element) (OAEP, error) {
	padding := OAEP{Hash: crypto.SHA1, MGF: crypto.SHA1}
	if uri != RSAOAEP && uri != RSAOAEPMGF1P {
		return padding, unknownAlgorithm(CodeInvalidProtector, "EncryptedData", uri)
	}
	if params == nil {
		return padding, nil
	}
	seq, err := children(params)
	if err != nil {
		return padding, err
	}
	if el := seq.optional(xencNamespace, "OAEPparams"); el != nil {
		if label, err := text(el); err != nil || strings.TrimSpace(label) != "" {
			return padding, errors.New("an OAEP label is not supported")
		}
	}
	if el := seq.optional(dsigNamespace, "DigestMethod"); el != nil {
		if padding.Hash, err = algorithmOf(el, hashesByDigestURI); err != nil {
			return padding, err
		}
	}
	if el := seq.optional(xenc11Namespace, "MGF"); el != nil {
		if padding.MGF, err = algorithmOf(el, hashesByMGF); err != nil {
			return padding, err
		}
	}
	if uri == RSAOAEPMGF1P && padding.MGF != crypto.SHA1 {
		return padding, errors.New("rsa-oaep-mgf1p has MGF1 with SHA-1 only")
	}
	return padding, seq.end()
}

// algorithmOf reads the attribute Algorithm of an element without content.
func algorithmOf(el *etree.Element, known map[string]crypto.Hash) (crypto.Hash, error) {
	if err := onlyAttributes(el, "Algorithm"); err != nil {
		return 0, err
	}
	if seq, err := children(el); err != nil || seq.end() != nil {
		return 0, fmt.Errorf("%s has content", el.Tag)
	}
	uri, _ := attribute(el, "Algorithm")
	h, ok := known[uri]
	if !ok {
		return 0, unknownAlgorithm(CodeInvalidProtector, el.Tag, uri)
	}
	return h, nil
}

func uriOf(known map[string]crypto.Hash, h crypto.Hash) string {
	best := ""
	for uri, candidate := range known {
		if candidate == h && (best == "" || uri < best) {
			best = uri
		}
	}
	return best
}

// writeOAEP writes the Parameters in canonical form under the namespace KPS.
func writeOAEP(w *bytes.Buffer, d EncryptedData) {
	if (d.Padding == OAEP{crypto.SHA1, crypto.SHA1}) {
		return
	}
	w.WriteString(`<Parameters><ds:DigestMethod xmlns:ds="` + dsigNamespace + `" Algorithm="`)
	w.WriteString(uriOf(hashesByDigestURI, d.Padding.Hash))
	w.WriteString(`"></ds:DigestMethod>`)
	if d.Algorithm == RSAOAEP {
		w.WriteString(`<xenc11:MGF xmlns:xenc11="` + xenc11Namespace + `" Algorithm="`)
		w.WriteString(uriOf(hashesByMGF, d.Padding.MGF))
		w.WriteString(`"></xenc11:MGF>`)
	}
	w.WriteString(`</Parameters>`)
}

// KeyDerivation is a KeyDerivationMethod: ConcatKDF of NIST SP 800-56A with the
// parameters of XML Encryption 1.1.
type KeyDerivation struct {
	Digest crypto.Hash
	// Info are AlgorithmID, PartyUInfo, PartyVInfo, SuppPubInfo, SuppPrivInfo,
	// whole bytes without the leading count of pad bits; nil when absent.
	Info [5][]byte
}

var concatInfoNames = [5]string{"AlgorithmID", "PartyUInfo", "PartyVInfo", "SuppPubInfo", "SuppPrivInfo"}

// defaultKeyDerivation is the method of profile P1 for a MAC algorithm.
func defaultKeyDerivation(mac string) KeyDerivation {
	return KeyDerivation{Digest: crypto.SHA256, Info: [5][]byte{[]byte(mac), {}, {}}}
}

func keyDerivationFromXML(el *etree.Element) (KeyDerivation, error) {
	var kd KeyDerivation
	uri, params, err := method(el)
	if err != nil {
		return kd, err
	}
	if uri != ConcatKDF {
		return kd, unknownAlgorithm(CodeInvalidProtector, "KeyDerivationMethod", uri)
	}
	if params == nil {
		return kd, errors.New("ConcatKDF lacks its parameters")
	}
	seq, err := children(params)
	if err != nil {
		return kd, err
	}
	concat, err := seq.take(xenc11Namespace, "ConcatKDFParams")
	if err != nil {
		return kd, err
	}
	if err := seq.end(); err != nil {
		return kd, err
	}
	if err := onlyAttributes(concat, concatInfoNames[:]...); err != nil {
		return kd, err
	}
	for i, name := range concatInfoNames {
		if kd.Info[i], err = bitString(concat, name); err != nil {
			return kd, err
		}
	}
	inner, err := children(concat)
	if err != nil {
		return kd, err
	}
	digest, err := inner.take(dsigNamespace, "DigestMethod")
	if err != nil {
		return kd, err
	}
	if kd.Digest, err = algorithmOf(digest, hashesByDigestURI); err != nil {
		return kd, err
	}
	if kd.Digest == crypto.SHA1 {
		return kd, unknownAlgorithm(CodeInvalidProtector, "ConcatKDF", hashURI(digest))
	}
	return kd, inner.end()
}

func hashURI(el *etree.Element) string {
	uri, _ := attribute(el, "Algorithm")
	return uri
}

// bitString reads a hexBinary attribute whose first byte counts the pad bits.
func bitString(el *etree.Element, name string) ([]byte, error) {
	const most = 256
	value, ok := attribute(el, name)
	if !ok {
		return nil, nil
	}
	raw, err := hex.DecodeString(value)
	if err != nil || len(raw) == 0 || len(raw) > most || raw[0] != 0 {
		return nil, fmt.Errorf("%s is not a string of whole bytes", name)
	}
	return raw[1:], nil
}

func (k KeyDerivation) write(w *bytes.Buffer) {
	fmt.Fprintf(w, `<KeyDerivationMethod Algorithm="%s"><Parameters><xenc11:ConcatKDFParams xmlns:xenc11="%s"`, ConcatKDF, xenc11Namespace)
	for _, i := range [5]int{0, 1, 2, 4, 3} { // canonical order: by name
		if k.Info[i] != nil {
			fmt.Fprintf(w, ` %s="00%X"`, concatInfoNames[i], k.Info[i])
		}
	}
	fmt.Fprintf(w, `><ds:DigestMethod xmlns:ds="%s" Algorithm="%s"></ds:DigestMethod></xenc11:ConcatKDFParams></Parameters></KeyDerivationMethod>`,
		dsigNamespace, uriOf(hashesByDigestURI, k.Digest))
}

// derive computes size bytes from the secret z.
func (k KeyDerivation) derive(z []byte, size int) []byte {
	out := make([]byte, 0, size+k.Digest.Size())
	h := k.Digest.New()
	for counter := uint32(1); len(out) < size; counter++ {
		h.Reset()
		var c [4]byte
		binary.BigEndian.PutUint32(c[:], counter)
		h.Write(c[:])
		h.Write(z)
		for _, part := range k.Info {
			h.Write(part)
		}
		out = h.Sum(out)
	}
	return out[:size]
}

// macTransportKey computes the MAC over message with a key derived from tk.
func macTransportKey(kd KeyDerivation, tk, message []byte) []byte {
	key := kd.derive(tk, 32)
	defer wipe(key)
	mac := hmac.New(crypto.SHA256.New, key)
	mac.Write(message)
	return mac.Sum(nil)
}

// sameModulus reports whether two public keys are the same RSA key.
func sameModulus(a, b crypto.PublicKey) bool {
	x, ok1 := a.(*rsa.PublicKey)
	y, ok2 := b.(*rsa.PublicKey)
	return ok1 && ok2 && x.E == y.E && new(big.Int).Sub(x.N, y.N).Sign() == 0
}
