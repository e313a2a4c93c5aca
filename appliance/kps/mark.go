package kps

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
)

// Mark names a version of a key protector by its transport key, 32 hex digits:
// the same before and after its owner granted or revoked, another one after each
// roll. It tells nothing of the key that TransportKeySignature, which everybody
// may read, does not tell already: whether a guess is right.
func (t *TransportKey) Mark() string {
	mac := hmac.New(sha256.New, t.Key)
	mac.Write([]byte("guardhouse version of a key protector 1"))
	return hex.EncodeToString(mac.Sum(nil)[:16])
}
