package hsm

import (
	"crypto"
	_ "crypto/sha1" // OAEP with SHA-1 is XML encryption's default (kps.md section 15)
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/subtle"
	"encoding/binary"
)

// oaepHash tells whether OAEP accepts h here.
func oaepHash(h crypto.Hash) bool {
	switch h {
	case crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512:
		return true
	}
	return false
}

// Valid tells whether both hashes are ones that OAEP is offered with and the
// label is of a sane size.
func (p OAEP) Valid() bool { return oaepHash(p.Hash) && oaepHash(p.MGF) && len(p.Label) <= 1024 }

// DecodeOAEP removes the padding of RFC 8017 section 7.1.2 step 3 from em, the
// result of the raw private operation, left-padded to the modulus' length k. It
// returns a fresh slice or ErrDecrypt. em is overwritten in any case.
//
// Time and memory access depend on len(em), the hashes and the label only, not
// on the content of em, up to the point where the padding was found good; then
// the message's length becomes visible, as it does to every caller. This is
// what keeps Manger's attack away: a wrong first byte, a wrong label hash and a
// missing separator cannot be told apart.
func DecodeOAEP(em []byte, p OAEP) ([]byte, error) {
	defer clear(em)
	if !p.Valid() {
		return nil, ErrDecrypt
	}
	hLen := p.Hash.Size()
	if len(em) < 2*hLen+2 {
		return nil, ErrDecrypt
	}
	seed, db := em[1:1+hLen], em[1+hLen:]
	mgf1XOR(seed, p.MGF, db)
	mgf1XOR(db, p.MGF, seed)

	h := p.Hash.New()
	h.Write(p.Label)
	good := subtle.ConstantTimeByteEq(em[0], 0)
	good &= subtle.ConstantTimeCompare(h.Sum(nil), db[:hLen])

	// rest = 00..00 01 message. looking is 1 until the first 01; a byte that is
	// neither 00 nor 01 while looking makes the block bad.
	rest := db[hLen:]
	looking, bad, index := 1, 0, 0
	for i, b := range rest {
		zero, one := subtle.ConstantTimeByteEq(b, 0), subtle.ConstantTimeByteEq(b, 1)
		index = subtle.ConstantTimeSelect(looking&one, i, index)
		looking = subtle.ConstantTimeSelect(one, 0, looking)
		bad = subtle.ConstantTimeSelect(looking&^zero&1, 1, bad)
	}
	if good&^bad&^looking&1 != 1 {
		return nil, ErrDecrypt
	}
	return append([]byte(nil), rest[index+1:]...), nil
}

// mgf1XOR xors out with MGF1(seed) (RFC 8017 appendix B.2.1).
func mgf1XOR(out []byte, hash crypto.Hash, seed []byte) {
	var counter [4]byte
	block := make([]byte, 0, hash.Size())
	for n := uint32(0); len(out) > 0; n++ {
		binary.BigEndian.PutUint32(counter[:], n)
		h := hash.New()
		h.Write(seed)
		h.Write(counter[:])
		block = h.Sum(block[:0])
		m := subtle.XORBytes(out, out, block)
		out = out[m:]
	}
	clear(block[:cap(block)])
}
