package evidence

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rsa"
	"encoding/binary"
	"fmt"
	"io"
)

// kdfa is TCG Part 1, 11.4.10.2: HMAC in counter mode. The label gets its NUL here.
func kdfa(hash Bank, key []byte, label string, contextU, contextV []byte, bits int) []byte {
	var out []byte
	for i := uint32(1); len(out)*8 < bits; i++ {
		h := hmac.New(hash.Hash().New, key)
		h.Write(binary.BigEndian.AppendUint32(nil, i))
		h.Write(append([]byte(label), 0))
		h.Write(contextU)
		h.Write(contextV)
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(bits)))
		out = h.Sum(out)
	}
	return out[:bits/8]
}

// kdfe is TCG Part 1, 11.4.10.3: the hash of counter, shared secret, label, and both parties' x coordinates.
func kdfe(hash Bank, z []byte, label string, partyU, partyV []byte, bits int) []byte {
	var out []byte
	for i := uint32(1); len(out)*8 < bits; i++ {
		h := hash.Hash().New()
		h.Write(binary.BigEndian.AppendUint32(nil, i))
		h.Write(z)
		h.Write(append([]byte(label), 0))
		h.Write(partyU)
		h.Write(partyV)
		out = h.Sum(out)
	}
	return out[:bits/8]
}

// saltFor makes a secret that only the TPM with this endorsement key can learn, and its encryption (TPM2B_ENCRYPTED_SECRET without the
// size; Part 1, annexes B.10.2 and C.6.1).
func saltFor(random io.Reader, ek *EK) (salt, encrypted []byte, err error) {
	switch key := ek.Public.(type) {
	case *rsa.PublicKey:
		salt = make([]byte, ek.NameAlg.Size())
		if _, err := io.ReadFull(random, salt); err != nil {
			return nil, nil, fmt.Errorf("salt: %w", err)
		}
		encrypted, err = rsa.EncryptOAEP(ek.NameAlg.Hash().New(), random, key, salt, []byte("SECRET\x00"))
		if err != nil {
			return nil, nil, fmt.Errorf("encrypt the salt: %w", err)
		}
		return salt, encrypted, nil
	case *ecdsa.PublicKey:
		theirs, err := key.ECDH()
		if err != nil {
			return nil, nil, fmt.Errorf("salt: %w", err)
		}
		ours, err := theirs.Curve().GenerateKey(random)
		if err != nil {
			return nil, nil, fmt.Errorf("salt: %w", err)
		}
		return ecdhSalt(ours, theirs, ek.NameAlg)
	}
	return nil, nil, ErrEKKind
}

func ecdhSalt(ours *ecdh.PrivateKey, theirs *ecdh.PublicKey, hash Bank) (salt, encrypted []byte, err error) {
	z, err := ours.ECDH(theirs)
	if err != nil {
		return nil, nil, fmt.Errorf("salt: %w", err)
	}
	defer clear(z)
	point, other := ours.PublicKey().Bytes(), theirs.Bytes() // 04, X, Y
	n := (len(point) - 1) / 2
	salt = kdfe(hash, z, "SECRET", point[1:1+n], other[1:1+n], 8*hash.Size())
	return salt, append(sized2B(point[1:1+n]), sized2B(point[1+n:])...), nil
}
