package hgsa

import (
	"crypto"
	"crypto/rsa"
	_ "crypto/sha256" // the hashes of the signature forms below
	_ "crypto/sha512"
	"errors"
	"fmt"
	"strings"
)

// ErrHostKeySignature is a signature that verifies in none of the forms tried;
// the error text names them.
var ErrHostKeySignature = errors.New("host key signature does not verify")

// signatureForms is the order of 13.8: what our client sends comes first. SHA-1
// is never accepted.
var signatureForms = []struct {
	name string
	hash crypto.Hash
	pss  bool
}{
	{"RSASSA-PKCS1-v1_5 SHA-256", crypto.SHA256, false},
	{"RSASSA-PSS SHA-256", crypto.SHA256, true},
	{"RSASSA-PKCS1-v1_5 SHA-384", crypto.SHA384, false},
	{"RSASSA-PSS SHA-384", crypto.SHA384, true},
	{"RSASSA-PKCS1-v1_5 SHA-512", crypto.SHA512, false},
	{"RSASSA-PSS SHA-512", crypto.SHA512, true},
}

// VerifyHostKeySignature checks that signature, made with hostKey, covers the
// bytes of HostKeyPublicKey followed by those of VirtualSecureModeIdentityKey,
// both exactly as received (hgsa.md 6.4). It returns the form that verified.
// The work is bounded: six public key operations.
func VerifyHostKeySignature(hostKey *rsa.PublicKey, hostKeyBytes, vsmKeyBytes, signature []byte) (form string, err error) {
	var digest []byte
	var tried []string
	for i, f := range signatureForms {
		if i == 0 || signatureForms[i-1].hash != f.hash {
			h := f.hash.New()
			h.Write(hostKeyBytes)
			h.Write(vsmKeyBytes)
			digest = h.Sum(nil)
		}
		if f.pss {
			err = rsa.VerifyPSS(hostKey, f.hash, digest, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		} else {
			err = rsa.VerifyPKCS1v15(hostKey, f.hash, digest, signature)
		}
		if err == nil {
			return f.name, nil
		}
		tried = append(tried, f.name)
	}
	return "", fmt.Errorf("%w; tried %s", ErrHostKeySignature, strings.Join(tried, ", "))
}
