package kps

import (
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
)

// Sizes of the two keys of a reply in bytes.
const (
	transferKeySize = 32
	wrappingKeySize = 32
)

// transferCiphers are the accepted TransferKeyEncryptionAlgorithms. The reply
// has no room for parameters, so each URI fixes its hashes.
var transferCiphers = map[string]OAEP{
	RSAOAEP:      {Hash: crypto.SHA256, MGF: crypto.SHA256},
	RSAOAEPMGF1P: {Hash: crypto.SHA1, MGF: crypto.SHA1},
}

// contentCiphers are the accepted algorithms of the two inner layers, with
// empty additional data.
var contentCiphers = map[string]func(key []byte) (cipher.AEAD, error){
	AES256GCM: newGCM,
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// CheckAlgorithms refuses a request for algorithms that cannot be served, with
// CodeUnsupportedAlgorithm and the URI verbatim.
func (r *RollTransportKeyRequest) CheckAlgorithms() error {
	if _, ok := transferCiphers[r.TransferKeyEncryptionAlgorithm]; !ok {
		return unknownAlgorithm(CodeUnsupportedAlgorithm, "TransferKeyEncryptionAlgorithm", r.TransferKeyEncryptionAlgorithm)
	}
	if _, ok := contentCiphers[r.WrappingKeyEncryptionAlgorithm]; !ok {
		return unknownAlgorithm(CodeUnsupportedAlgorithm, "WrappingKeyEncryptionAlgorithm", r.WrappingKeyEncryptionAlgorithm)
	}
	if _, ok := contentCiphers[r.TransportKeysEncryptionAlgorithm]; !ok {
		return unknownAlgorithm(CodeUnsupportedAlgorithm, "TransportKeysEncryptionAlgorithm", r.TransportKeysEncryptionAlgorithm)
	}
	return nil
}

// Reply is what SealReply encrypts.
type Reply struct {
	Version PayloadVersion
	Ingress *TransportKey
	Egress  *TransportKey
	// Protector is the egress protector. Its MaxOfflineUnwraps, when not zero,
	// also becomes the policy of a V2 payload.
	Protector *Protector
	HostKey   *rsa.PublicKey // of the health certificate
	Random    io.Reader
}

// SealReply answers a request whose algorithms were checked: host key encrypts
// transfer key, that one the wrapping key, that one both transport keys.
func (r *RollTransportKeyRequest) SealReply(in Reply) (*RollTransportKeyResponse, error) {
	if err := r.CheckAlgorithms(); err != nil {
		return nil, err
	}
	payload := Payload{Version: in.Version, Keys: [][]byte{in.Ingress.Key, in.Egress.Key}}
	if n := in.Protector.MaxOfflineUnwraps; n != 0 && in.Version == PayloadV2 {
		payload.Policies = []Policy{OfflinePolicy(n)}
	}
	blob, err := payload.Marshal()
	if err != nil {
		return nil, err
	}
	defer wipe(blob)
	keys := make([]byte, transferKeySize+wrappingKeySize)
	if _, err := io.ReadFull(in.Random, keys); err != nil {
		return nil, fmt.Errorf("random: %w", err)
	}
	defer wipe(keys)
	transfer, wrapping := keys[:transferKeySize], keys[transferKeySize:]
	out := &RollTransportKeyResponse{EgressProtector: in.Protector.Bytes()}
	if out.EncryptedTransferKey, err = encryptOAEP(in.HostKey, in.Random, transferCiphers[r.TransferKeyEncryptionAlgorithm], transfer); err != nil {
		return nil, recode(CodeHealthCertificate, "", err)
	}
	if out.EncryptedWrappingKey, err = sealContent(r.WrappingKeyEncryptionAlgorithm, transfer, wrapping, in.Random); err != nil {
		return nil, err
	}
	if out.EncryptedTransportKeys, err = sealContent(r.TransportKeysEncryptionAlgorithm, wrapping, blob, in.Random); err != nil {
		return nil, err
	}
	return out, nil
}

// sealContent writes IV, ciphertext and tag, the layout of XML Encryption 1.1.
func sealContent(algorithm string, key, plain []byte, random io.Reader) ([]byte, error) {
	aead, err := contentCiphers[algorithm](key)
	if err != nil {
		return nil, err
	}
	out := make([]byte, aead.NonceSize(), aead.NonceSize()+len(plain)+aead.Overhead())
	if _, err := io.ReadFull(random, out); err != nil {
		return nil, fmt.Errorf("random: %w", err)
	}
	return aead.Seal(out, out[:aead.NonceSize()], plain, nil), nil
}

var errReply = errors.New("the reply does not decrypt")

func openContent(algorithm string, key, sealed []byte) ([]byte, error) {
	cipherOf, ok := contentCiphers[algorithm]
	if !ok {
		return nil, errReply
	}
	aead, err := cipherOf(key)
	if err != nil || len(sealed) < aead.NonceSize()+aead.Overhead() {
		return nil, errReply
	}
	n := aead.NonceSize()
	plain, err := aead.Open(nil, sealed[:n], sealed[n:], nil)
	if err != nil {
		return nil, errReply
	}
	return plain, nil
}

// NewRequest builds a roll request with the algorithms of profile P1. The
// protector is sent whole and unchanged; healthCertificate is DER.
func NewRequest(protector, healthCertificate []byte) *RollTransportKeyRequest {
	return &RollTransportKeyRequest{
		IngressProtector: protector, HealthCertificate: healthCertificate,
		TransferKeyEncryptionAlgorithm: RSAOAEP, WrappingKeyEncryptionAlgorithm: AES256GCM, TransportKeysEncryptionAlgorithm: AES256GCM,
	}
}

// Rolled is a checked reply. The caller wipes the keys.
type Rolled struct {
	IngressKey []byte
	EgressKey  []byte
	Egress     *Protector
	Policies   []Policy
}

// Wipe overwrites both keys.
func (r *Rolled) Wipe() {
	wipe(r.IngressKey)
	wipe(r.EgressKey)
}

// OpenReply decrypts a response with the private key of the health certificate
// and makes every check of kps.md 10 before anything of it is used: the egress
// protector's signatures, the same owner and the same other keys as in the
// ingress protector, both transport keys under their protectors' MACs, a new
// key, and a signer that is not the owner.
func (r *RollTransportKeyRequest) OpenReply(ctx context.Context, resp *RollTransportKeyResponse, key Decrypter) (*Rolled, error) {
	payload, err := r.decryptReply(ctx, resp, key)
	if err != nil {
		return nil, err
	}
	out := &Rolled{IngressKey: payload.Keys[0], EgressKey: payload.Keys[1], Policies: payload.Policies}
	if err := r.checkReply(resp, out); err != nil {
		out.Wipe()
		return nil, err
	}
	return out, nil
}

func (r *RollTransportKeyRequest) decryptReply(ctx context.Context, resp *RollTransportKeyResponse, key Decrypter) (*Payload, error) {
	padding, ok := transferCiphers[r.TransferKeyEncryptionAlgorithm]
	if !ok {
		return nil, errReply
	}
	transfer, err := key.Decrypt(ctx, resp.EncryptedTransferKey, padding)
	if err != nil {
		return nil, fmt.Errorf("transfer key: %w", err)
	}
	defer wipe(transfer)
	wrapping, err := openContent(r.WrappingKeyEncryptionAlgorithm, transfer, resp.EncryptedWrappingKey)
	if err != nil {
		return nil, fmt.Errorf("wrapping key: %w", err)
	}
	defer wipe(wrapping)
	blob, err := openContent(r.TransportKeysEncryptionAlgorithm, wrapping, resp.EncryptedTransportKeys)
	if err != nil {
		return nil, fmt.Errorf("transport keys: %w", err)
	}
	payload, err := ParsePayload(blob)
	if err != nil {
		wipe(blob)
		return nil, err
	}
	if len(payload.Keys) != 2 {
		wipe(blob)
		return nil, errPayload
	}
	return payload, nil
}

func (r *RollTransportKeyRequest) checkReply(resp *RollTransportKeyResponse, out *Rolled) error {
	ingress, err := ParseProtector(r.IngressProtector)
	if err != nil {
		return fmt.Errorf("ingress protector: %w", err)
	}
	egress, err := ParseProtector(resp.EgressProtector)
	if err != nil {
		return fmt.Errorf("egress protector: %w", err)
	}
	if err := egress.Verify(); err != nil {
		return fmt.Errorf("egress protector: %w", err)
	}
	if err := ingress.SameKeys(egress); err != nil {
		return fmt.Errorf("egress protector is not the ingress one's next version: %w", err)
	}
	if egress.GuardianID == egress.Owner().ID {
		return errors.New("egress protector is signed by the owner, not by a guardian")
	}
	if ingress.VerifyTransportKey(out.IngressKey) != nil {
		return errors.New("the returned ingress key does not belong to the ingress protector")
	}
	if egress.VerifyTransportKey(out.EgressKey) != nil {
		return errors.New("the returned egress key does not belong to the egress protector")
	}
	if string(out.IngressKey) == string(out.EgressKey) {
		return errors.New("the transport key was not changed")
	}
	out.Egress = egress
	return nil
}
