package volume

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"

	"github.com/cloudflare/circl/group"
	"github.com/cloudflare/circl/secretsharing"

	"guardhouse/appliance/disk"
)

// Forms of a recovery secret.
const (
	FormPassphrase = "passphrase" // one text of 130 random bits
	FormShares     = "shares"     // three texts, of which any two open
)

// Kinds of errors of recovery secrets.
const (
	KindMistyped     = "recovery-mistyped" // not a recovery secret as it was shown: the check symbols do not fit
	KindWrongSecret  = "recovery-wrong"    // well typed, but not this volume's
	KindNoSecret     = "recovery-none"     // this volume has no recovery secret
	KindSecretNeeded = "recovery-needed"   // what is asked for needs the present recovery secret
)

// Sizes in symbols of five bits. A share's value is a scalar of P-256, 256 bits.
const (
	passSymbols  = 26
	passCheck    = 2
	shareSymbols = 52
	shareCheck   = 3
	numShares    = 3
	opening      = 2 // shares that open
	// MaxSecretText bounds what is typed as a passphrase or a share, in bytes.
	MaxSecretText = 256
)

// symbols are the digits of a text, as in Crockford's Base32: no I, L, O, U.
const symbols = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// recoverySlot is the volume key wrapped by a recovery secret. The secret comes from a machine with at least 128 bits, so that a plain
// key derivation is enough: nobody can guess it, however fast.
type recoverySlot struct {
	Version int    `json:"version"` // 1
	ID      string `json:"id"`      // eight hex digits that name the secret for people; says nothing of it
	Form    string `json:"form"`
	Box     []byte `json:"box"` // AES-256-GCM under HKDF-SHA256(secret, salt = the volume's name); the slot's other fields are bound in
}

func parseRecoverySlot(b []byte) (recoverySlot, error) {
	var s recoverySlot
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil || s.Version != 1 || s.Form != FormPassphrase && s.Form != FormShares || len(s.ID) != 8 {
		return recoverySlot{}, &disk.Error{Kind: disk.KindHeader, What: "the volume's recovery slot can't be read", Remedy: "restore the node from a backup or from its cluster"}
	}
	return s, nil
}

func (s recoverySlot) seal(secret []byte, volume string) (cipher.AEAD, []byte, error) {
	key, err := hkdf.Key(sha256.New, secret, []byte(volume), "guardhouse recovery", 32)
	if err != nil {
		return nil, nil, err
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, nil, err
	}
	aead, err := cipher.NewGCM(block)
	return aead, fmt.Appendf(nil, "%d/%s/%s/%s", s.Version, s.Form, s.ID, volume), err
}

// wrap fills in the box. The nonce is zero: a secret wraps one key once, because both texts and slot are thrown away together.
func (s *recoverySlot) wrap(secret []byte, volume string, key []byte) error {
	aead, bound, err := s.seal(secret, volume)
	if err == nil {
		s.Box = aead.Seal(nil, make([]byte, aead.NonceSize()), key, bound)
	}
	return err
}

func (s recoverySlot) unwrap(secret []byte, volume string) ([]byte, error) {
	aead, bound, err := s.seal(secret, volume)
	if err != nil {
		return nil, err
	}
	key, err := aead.Open(nil, make([]byte, aead.NonceSize()), s.Box, bound)
	if err != nil {
		return nil, &disk.Error{Kind: KindWrongSecret, What: fmt.Sprintf("this is not recovery secret %s, which opens this volume", s.ID), Remedy: "look for the one of that name; a new one replaces those before it"}
	}
	return key, nil
}

// newSecret makes a secret in a form: what is hashed into the wrapping key, and the texts that people keep.
func newSecret(form string, random io.Reader) (secret []byte, texts [][]byte, err error) {
	if form == FormPassphrase {
		raw := make([]byte, passSymbols)
		if _, err := io.ReadFull(random, raw); err != nil {
			return nil, nil, err
		}
		for i := range raw {
			raw[i] = symbols[raw[i]&31]
		}
		return raw, [][]byte{grouped(raw, passCheck)}, nil
	}
	if form != FormShares {
		return nil, nil, fmt.Errorf("no form of a recovery secret: %.20q", form)
	}
	scalar := group.P256.RandomNonZeroScalar(random)
	if secret, err = scalar.MarshalBinary(); err != nil {
		return nil, nil, err
	}
	for i, share := range secretsharing.New(random, opening-1, scalar).Share(numShares) {
		value, err := share.Value.MarshalBinary()
		if err != nil {
			return nil, nil, err
		}
		body := append([]byte{symbols[i+1]}, toSymbols(value, shareSymbols)...)
		clear(value)
		texts = append(texts, grouped(body, shareCheck))
		clear(body)
	}
	return secret, texts, nil
}

// grouped adds n check symbols and a dash after each four.
func grouped(body []byte, n int) []byte {
	text := append(bytes.Clone(body), check(body, n)...)
	defer clear(text)
	out := make([]byte, 0, len(text)*5/4)
	for i, c := range text {
		if i > 0 && i%4 == 0 {
			out = append(out, '-')
		}
		out = append(out, c)
	}
	return out
}

// check finds slips of the fingers: five bits of a hash for each symbol. It says next to nothing of a secret of 130 bits.
func check(body []byte, n int) []byte {
	sum := sha256.Sum256(append([]byte("guardhouse recovery text "), body...))
	out := make([]byte, n)
	for i := range out {
		out[i] = symbols[sum[i]&31]
	}
	return out
}

func toSymbols(b []byte, n int) []byte {
	v, mask := new(big.Int).SetBytes(b), big.NewInt(31)
	out := make([]byte, n)
	for i := n - 1; i >= 0; i-- {
		out[i] = symbols[new(big.Int).And(v, mask).Uint64()]
		v.Rsh(v, 5)
	}
	return out
}

// canonical drops what is only there to be read, takes small letters and the letters that look like digits for what they are meant to
// be, and checks the check symbols. What it gives is without them.
func canonical(text []byte) ([]byte, error) {
	bad := func(why string) ([]byte, error) {
		return nil, &disk.Error{Kind: KindMistyped, What: "mistyped: " + why, Remedy: "type it again as it was shown; dashes and small letters do not matter"}
	}
	if len(text) > MaxSecretText {
		return bad("it is too long")
	}
	out := make([]byte, 0, len(text))
	for _, c := range bytes.ToUpper(text) {
		switch c {
		case '-', ' ':
			continue
		case 'O':
			c = '0'
		case 'I', 'L':
			c = '1'
		}
		if bytes.IndexByte([]byte(symbols), c) < 0 {
			clear(out)
			return bad("it holds a character that is never shown")
		}
		out = append(out, c)
	}
	n := passCheck
	switch len(out) {
	case passSymbols + passCheck:
	case 1 + shareSymbols + shareCheck:
		n = shareCheck
	default:
		defer clear(out)
		return bad(fmt.Sprintf("%d characters; a passphrase has %d, a share %d", len(out), passSymbols+passCheck, 1+shareSymbols+shareCheck))
	}
	body := out[:len(out)-n]
	if subtle.ConstantTimeCompare(check(body, n), out[len(body):]) != 1 {
		clear(out)
		return bad("the check characters at its end do not fit the rest")
	}
	return body, nil
}

// readSecret is newSecret's opposite: the passphrase, or two or more shares in any order.
func readSecret(form string, texts [][]byte) ([]byte, error) {
	want := 1
	if form == FormShares {
		want = opening
	}
	if len(texts) < want || len(texts) > numShares {
		return nil, &disk.Error{Kind: KindMistyped, What: fmt.Sprintf("this volume's recovery secret is %s", describeForm(form)), Remedy: "type all that is asked for"}
	}
	var shares []secretsharing.Share
	for _, text := range texts {
		body, err := canonical(text)
		if err != nil {
			return nil, err
		}
		if isShare := len(body) == 1+shareSymbols; isShare != (form == FormShares) {
			clear(body)
			return nil, &disk.Error{Kind: KindMistyped, What: fmt.Sprintf("this volume's recovery secret is %s", describeForm(form)), Remedy: "type the right one"}
		}
		if form == FormPassphrase {
			return body, nil
		}
		share, err := readShare(body)
		clear(body)
		if err != nil {
			return nil, err
		}
		for _, other := range shares {
			if other.ID.IsEqual(share.ID) {
				return nil, &disk.Error{Kind: KindMistyped, What: "the same share twice", Remedy: "type two different ones of the three"}
			}
		}
		shares = append(shares, share)
	}
	scalar, err := secretsharing.Recover(opening-1, shares)
	if err != nil {
		return nil, err
	}
	return scalar.MarshalBinary()
}

var errShare = &disk.Error{Kind: KindMistyped, What: "mistyped: not a share", Remedy: "type it again as it was shown"}

func readShare(body []byte) (secretsharing.Share, error) {
	number := bytes.IndexByte([]byte(symbols), body[0])
	v := new(big.Int)
	for _, c := range body[1:] {
		v.Lsh(v, 5).Or(v, big.NewInt(int64(bytes.IndexByte([]byte(symbols), c))))
	}
	if number < 1 || number > numShares || v.BitLen() > 256 {
		return secretsharing.Share{}, errShare
	}
	value := group.P256.NewScalar()
	raw := v.FillBytes(make([]byte, 32))
	defer clear(raw)
	if err := value.UnmarshalBinary(raw); err != nil {
		return secretsharing.Share{}, errShare
	}
	return secretsharing.Share{ID: group.P256.NewScalar().SetUint64(uint64(number)), Value: value}, nil
}

func describeForm(form string) string {
	if form == FormShares {
		return "three shares, of which two open"
	}
	return "one passphrase"
}

func newSecretID(random io.Reader) (string, error) {
	b := make([]byte, 4)
	_, err := io.ReadFull(random, b)
	return hex.EncodeToString(b), err
}

// errKeyGone: Forget was called.
var errKeyGone = errors.New("the volume key was forgotten")
