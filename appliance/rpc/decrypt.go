package rpc

import "errors"

// DecryptRefused is the fixed message of the ErrRefused that hsm.Decrypt gives for a ciphertext that does not open; an ErrRefused with
// another message (no such key, wrong usage) is about the key, not about the ciphertext.
const DecryptRefused = "the ciphertext does not open with this key"

// IsDecryptRefused reports whether err says that a ciphertext does not open under a working key.
func IsDecryptRefused(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Kind == ErrRefused.Kind && e.Message == DecryptRefused
}
