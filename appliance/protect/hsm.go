package protect

import (
	"context"

	"guardhouse/appliance/kps"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// HSMDecrypter is a kps.Decrypter whose private key lies in the HSM process.
type HSMDecrypter struct {
	HSM *rpc.Client
	Ref policy.KeyRef
}

// NewHSMDecrypter fits Deps.Decrypter.
func NewHSMDecrypter(hsm *rpc.Client, k policy.Key) kps.Decrypter {
	return HSMDecrypter{HSM: hsm, Ref: k.Ref}
}

// Decrypt implements kps.Decrypter; the caller wipes the result.
func (d HSMDecrypter) Decrypt(ctx context.Context, ciphertext []byte, padding kps.OAEP) ([]byte, error) {
	r, err := rpc.HSMDecrypt.Call(ctx, d.HSM, rpc.HSMDecryptRequest{Ref: d.Ref, Ciphertext: ciphertext, Hash: uint(padding.Hash), MGF: uint(padding.MGF)})
	switch {
	case rpc.IsDecryptRefused(err):
		return nil, kps.ErrDecryption
	case err != nil:
		return nil, err
	}
	return r.Plaintext, nil
}
