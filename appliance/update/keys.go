package update

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"

	"guardhouse/appliance/tpm"
)

// KeysFile is where an image carries the public release keys that may replace it: written when the image is built, measured with it.
const KeysFile = "/etc/guardhouse/release.pub"

// maxKeys: the present key, and while keys change the next one.
const maxKeys = maxSignatures

// Keys reads KeysFile, or name if it is another.
func Keys(name string) ([]*rsa.PublicKey, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("release keys: %w; a node takes updates only if its image was built by mkimage with a key set", err)
	}
	keys, err := ParseKeys(text)
	if err != nil {
		return nil, fmt.Errorf("release keys, %s: %w", name, err)
	}
	return keys, nil
}

// ParseKeys reads one or more PEM blocks of type PUBLIC KEY, each RSA-2048.
func ParseKeys(text []byte) ([]*rsa.PublicKey, error) {
	var keys []*rsa.PublicKey
	for rest := text; len(bytes.TrimSpace(rest)) > 0; {
		block, after := pem.Decode(rest)
		if block == nil {
			return nil, errors.New("not PEM")
		}
		key, err := tpm.ParseAuthority(pem.EncodeToMemory(block)) // the same form of key
		if err != nil {
			return nil, err
		}
		if keys, rest = append(keys, key), after; len(keys) > maxKeys {
			return nil, fmt.Errorf("more than %d keys", maxKeys)
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("no key")
	}
	return keys, nil
}

// KeyID names a release key: lower-case hex SHA-256 of its SubjectPublicKeyInfo.
func KeyID(k *rsa.PublicKey) string {
	id := keyID(k)
	return hex.EncodeToString(id[:])
}

func keyID(k *rsa.PublicKey) [sha256.Size]byte {
	der, err := x509.MarshalPKIXPublicKey(k)
	if err != nil {
		return [sha256.Size]byte{} // not possible for an RSA key
	}
	return sha256.Sum256(der)
}

func names(keys []*rsa.PublicKey) string {
	if len(keys) == 0 {
		return "none"
	}
	var ids []string
	for _, k := range keys {
		ids = append(ids, KeyID(k)[:16])
	}
	return strings.Join(ids, " and ")
}
