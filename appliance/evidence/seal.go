package evidence

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"io"
)

// ContextKeys are the keys that every node of the cluster shares for an hour: Current for Epoch, Previous for the hour before. 32 bytes.
type ContextKeys struct {
	Epoch             uint64
	Current, Previous []byte
}

// EncStateObject, in our layout (hgsa.md 13.7): magic, length of what follows the 32 bytes (u32), nonce (12), key id (the epoch's low 32
// bits), 8 zero bytes, then AES-256-GCM.
const (
	stateMagic = "GHS1"
	stateHead  = 32
	maxState   = 4096
)

// seal encrypts state for the next round; bound names the conversation it belongs to.
func (k *ContextKeys) seal(random io.Reader, state, bound []byte) ([]byte, error) {
	aead, err := aeadOf(k.Current)
	if err != nil {
		return nil, err
	}
	head := make([]byte, stateHead, stateHead+len(state)+aead.Overhead())
	copy(head, stateMagic)
	binary.LittleEndian.PutUint32(head[4:], uint32(len(state)+aead.Overhead()))
	if _, err := io.ReadFull(random, head[8:20]); err != nil {
		return nil, fmt.Errorf("context nonce: %w", err)
	}
	binary.LittleEndian.PutUint32(head[20:], uint32(k.Epoch))
	return aead.Seal(head, head[8:20], state, bound), nil
}

// open undoes seal. The nonce identifies the context, for those who remember which ones were answered.
func (k *ContextKeys) open(object, bound []byte) (state []byte, nonce [12]byte, err error) {
	refused := fmt.Errorf("%w: not sealed by this cluster for this host and session", ErrContext)
	if len(object) < stateHead || string(object[:4]) != stateMagic || binary.LittleEndian.Uint64(object[24:]) != 0 ||
		int64(binary.LittleEndian.Uint32(object[4:])) != int64(len(object)-stateHead) {
		return nil, nonce, refused
	}
	key := k.Current
	switch binary.LittleEndian.Uint32(object[20:]) {
	case uint32(k.Epoch):
	case uint32(k.Epoch - 1):
		key = k.Previous
	default:
		return nil, nonce, fmt.Errorf("%w: its key has expired", ErrContext)
	}
	aead, err := aeadOf(key)
	if err != nil {
		return nil, nonce, err
	}
	copy(nonce[:], object[8:20])
	if state, err = aead.Open(nil, nonce[:], object[stateHead:], bound); err != nil {
		return nil, nonce, refused
	}
	return state, nonce, nil
}

func aeadOf(key []byte) (cipher.AEAD, error) {
	if len(key) != 32 {
		return nil, fmt.Errorf("context key of %d bytes", len(key))
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("context key: %w", err)
	}
	return cipher.NewGCM(block)
}
