package verb

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/text"
)

// Input is a public key that somebody gave, and the certificate it came in, if any. SPKI is SubjectPublicKeyInfo DER, taken from the
// certificate byte for byte, because its hash is the host's id.
type Input struct {
	SPKI        []byte
	Certificate *x509.Certificate
}

const maxInput = 64 << 10

var errPrivateKey = failed("this is a private key, which must never leave its machine",
	"treat it as known to others: make a new one, and give only its certificate or public key")

// ParseInput reads one certificate (what Get-HgsClientHostKey exports), SubjectPublicKeyInfo or RSA public key, as DER, PEM or bare
// base64, also in the UTF-16 that PowerShell writes. A private key is refused, and so are two keys in one file.
func ParseInput(data []byte) (Input, error) {
	if len(data) > maxInput {
		return Input{}, usage("the input is larger than 64 KiB", "give one certificate or public key")
	}
	data = fromUTF16(data)
	text := bytes.TrimSpace(data)
	if len(text) == 0 {
		return Input{}, usage("nothing came on standard input", "give the certificate or public key: verb ... < FILE")
	}
	if bytes.Contains(text, []byte("PRIVATE KEY-----")) {
		return Input{}, errPrivateKey
	}
	if bytes.Contains(text, []byte("-----BEGIN ")) {
		return parsePEM(text)
	}
	if in, err := parseDER(data); err == nil || errors.Is(err, errPrivateKey) {
		return in, err
	}
	der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		return Input{}, failed("the input is neither PEM, DER nor base64 of a certificate or public key", "export it on the host with Get-HgsClientHostKey")
	}
	return parseDER(der)
}

func parsePEM(text []byte) (Input, error) {
	var found *Input
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		in, err := parseDER(block.Bytes)
		if err != nil {
			return Input{}, err
		}
		if found != nil {
			return Input{}, failed("the input holds more than one certificate or key", "give exactly one")
		}
		found = &in
	}
	if found == nil {
		return Input{}, failed("the PEM block is damaged", "copy it whole, with its BEGIN and END lines")
	}
	return *found, nil
}

func parseDER(der []byte) (Input, error) {
	if cert, err := x509.ParseCertificate(der); err == nil {
		return Input{cert.RawSubjectPublicKeyInfo, cert}, nil
	}
	if _, err := x509.ParsePKIXPublicKey(der); err == nil {
		return Input{SPKI: bytes.Clone(der)}, nil
	}
	if key, err := x509.ParsePKCS1PublicKey(der); err == nil {
		spki, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			return Input{}, failed("the RSA public key can't be used: "+err.Error(), "")
		}
		return Input{SPKI: spki}, nil
	}
	if _, err := x509.ParsePKCS8PrivateKey(der); err == nil {
		return Input{}, errPrivateKey
	}
	return Input{}, failed("the input is not a certificate, SubjectPublicKeyInfo or RSA public key", "export it on the host with Get-HgsClientHostKey")
}

// fromUTF16 undoes what PowerShell's redirection does to text, and removes a byte order mark. Without a mark the input may be binary, and
// what is not UTF-16 in spite of one is left as it is.
func fromUTF16(data []byte) []byte {
	e, mark := text.Marked(data)
	if e == text.UTF8 {
		return data[mark:]
	}
	if s, err := text.FromUTF16(data[mark:], e, 2*MaxStdin); err == nil {
		return s
	}
	return data
}

// thumbprints are the SHA-1 (as Windows shows it, upper case) and the SHA-256 of a certificate.
func thumbprints(der []byte) (sha1hex, sha256hex string) {
	sum := sha1.Sum(der)
	return strings.ToUpper(hex.EncodeToString(sum[:])), policy.Thumbprint(der)
}

func keyText(spki []byte) string {
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return "does not parse"
	}
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d bits", k.N.BitLen())
	case *ecdsa.PublicKey:
		return "ECC " + k.Curve.Params().Name
	}
	return fmt.Sprintf("%T", pub)
}

func unixTime(seconds int64) string {
	return time.Unix(seconds, 0).UTC().Format("2006-01-02 15:04:05 UTC")
}
