package tpm

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// PolicyPCRs are the registers of every signed policy: boot path (4), Secure Boot's keys and state (7), image (11), and what the boot
// stub took from beside the image (12 and 13), which must be nothing.
var PolicyPCRs = []uint{4, 7, 11, 12, 13}

// PolicyRef is bound into every signature of a policy, so that a signature of the same key for another purpose opens nothing here.
const PolicyRef = "guardhouse volume 1"

// Limits of a policy file.
const (
	MaxPolicyFile = 256 << 10 // bytes
	MaxPolicies   = 256       // one for each (key, key set, dbx) that a release expects
)

// PolicyFile is what lies beside an image: the boots that its builder vouches for. It authenticates itself, signature by signature, so
// it may lie anywhere; it can't lie inside the image, because a policy over PCR 4 covers the image's own hash.
type PolicyFile struct {
	Version  int            `json:"version"` // 1
	Keys     []string       `json:"keys"`    // public keys that signed, PEM "PUBLIC KEY", RSA-2048
	Policies []SignedPolicy `json:"policies"`
}

// SignedPolicy is one boot that gets the volume key: these PCR values, and a version floor of at most Release.
type SignedPolicy struct {
	Name      string          `json:"name"` // for people: which key set and dbx
	Release   uint64          `json:"release"`
	PCRs      map[uint]string `json:"pcrs"`      // SHA-256 bank, lower-case hex; exactly PolicyPCRs
	Key       string          `json:"key"`       // who signed: lower-case hex SHA-256 of the SubjectPublicKeyInfo
	Signature []byte          `json:"signature"` // RSASSA-PKCS1-v1_5, SHA-256, over ToSign's input
}

// ErrPolicyFile is a policy file that can't be used as a whole.
var ErrPolicyFile = errors.New("not a policy file")

// ParsePolicyFile reads and checks the form of a policy file, and that each signature is by one of its keys. That a key is the right
// one is for the TPM to say: it knows the key's name from the sealed object.
func ParsePolicyFile(b []byte) (PolicyFile, error) {
	var f PolicyFile
	if len(b) > MaxPolicyFile {
		return f, fmt.Errorf("%w: larger than %d bytes", ErrPolicyFile, MaxPolicyFile)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return PolicyFile{}, fmt.Errorf("%w: %v", ErrPolicyFile, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return PolicyFile{}, fmt.Errorf("%w: more follows its end", ErrPolicyFile)
	}
	if f.Version != 1 {
		return PolicyFile{}, fmt.Errorf("%w: version %d is not known", ErrPolicyFile, f.Version)
	}
	if len(f.Policies) > MaxPolicies || len(f.Keys) > MaxPolicies {
		return PolicyFile{}, fmt.Errorf("%w: more than %d policies or keys", ErrPolicyFile, MaxPolicies)
	}
	keys := map[string]*rsa.PublicKey{}
	for i, text := range f.Keys {
		key, err := ParseAuthority([]byte(text))
		if err != nil {
			return PolicyFile{}, fmt.Errorf("%w: key %d: %v", ErrPolicyFile, i+1, err)
		}
		keys[AuthorityID(key)] = key
	}
	for i, p := range f.Policies {
		if err := p.check(keys); err != nil {
			return PolicyFile{}, fmt.Errorf("%w: policy %d (%.64q): %v", ErrPolicyFile, i+1, p.Name, err)
		}
	}
	return f, nil
}

// ParseAuthority reads the public key of whoever signs policies: PEM, RSA-2048, which is what every TPM 2.0 can verify.
func ParseAuthority(text []byte) (*rsa.PublicKey, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" || len(bytes.TrimSpace(rest)) != 0 {
		return nil, errors.New("not one PEM block of type PUBLIC KEY")
	}
	any, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := any.(*rsa.PublicKey)
	if !ok || key.N.BitLen() != 2048 || key.E != 65537 {
		return nil, errors.New("not RSA with 2048 bits and exponent 65537")
	}
	return key, nil
}

// AuthorityPEM is ParseAuthority's opposite.
func AuthorityPEM(key *rsa.PublicKey) ([]byte, error) {
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}), nil
}

// AuthorityID names a policy signing key: lower-case hex SHA-256 of its SubjectPublicKeyInfo DER.
func AuthorityID(key *rsa.PublicKey) string {
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "" // not possible for an RSA key
	}
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}

func (p SignedPolicy) check(keys map[string]*rsa.PublicKey) error {
	message, err := p.ToSign()
	if err != nil {
		return err
	}
	key := keys[p.Key]
	if key == nil {
		return fmt.Errorf("its key %.16q is not in the file", p.Key)
	}
	sum := sha256.Sum256(message)
	if err := rsa.VerifyPKCS1v15(key, hashSHA256, sum[:], p.Signature); err != nil {
		return fmt.Errorf("the signature is not by key %.16s", p.Key)
	}
	return nil
}

// ToSign is the input of the signature: the policy's digest, then PolicyRef (TPM 2.0 part 3, TPM2_PolicyAuthorize: aHash covers
// approvedPolicy and policyRef). The signer hashes it with SHA-256.
func (p SignedPolicy) ToSign() ([]byte, error) {
	digest, err := p.Digest()
	return append(digest, PolicyRef...), err
}

// Digest is the policy as the TPM computes it: TPM2_PolicyPCR over the values, then TPM2_PolicyNV "floor <= Release". 32 bytes.
func (p SignedPolicy) Digest() ([]byte, error) {
	values, err := p.values()
	if err != nil {
		return nil, err
	}
	calc, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	for _, pcr := range PolicyPCRs { // ascending, as TPM2_PolicyPCR concatenates
		h.Write(values[pcr])
	}
	if err := (tpm2.PolicyPCR{PcrDigest: tpm2.TPM2BDigest{Buffer: h.Sum(nil)}, Pcrs: selection(PolicyPCRs...)}).Update(calc); err != nil {
		return nil, err
	}
	cmd, err := floorAtMost(p.Release)
	if err != nil {
		return nil, err
	}
	if err := cmd.Update(calc); err != nil {
		return nil, err
	}
	return calc.Hash().Digest, nil
}

// values decodes the PCR values and refuses any other set of registers.
func (p SignedPolicy) values() (map[uint][]byte, error) {
	if !slices.Equal(slices.Sorted(maps.Keys(p.PCRs)), PolicyPCRs) {
		return nil, fmt.Errorf("it is not over PCR %v", PolicyPCRs)
	}
	values := map[uint][]byte{}
	for pcr, text := range p.PCRs {
		b, err := hex.DecodeString(text)
		if err != nil || len(b) != sha256.Size {
			return nil, fmt.Errorf("PCR %d is not a SHA-256 value in hex", pcr)
		}
		values[pcr] = b
	}
	return values, nil
}

// differs lists the registers whose present values are not the policy's.
func (p SignedPolicy) differs(now map[uint][]byte) (pcrs []uint) {
	values, err := p.values()
	if err != nil {
		return PolicyPCRs
	}
	for _, pcr := range PolicyPCRs {
		if !bytes.Equal(values[pcr], now[pcr]) {
			pcrs = append(pcrs, pcr)
		}
	}
	return pcrs
}

func floorAtMost(release uint64) (tpm2.PolicyNV, error) {
	name, err := tpm2.NVName(floorPublic(true))
	if err != nil {
		return tpm2.PolicyNV{}, err
	}
	return tpm2.PolicyNV{
		AuthHandle: tpm2.AuthHandle{Handle: FloorIndex, Name: *name, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    tpm2.NamedHandle{Handle: FloorIndex, Name: *name},
		OperandB:   tpm2.TPM2BOperand{Buffer: binary.BigEndian.AppendUint64(nil, release)},
		Operation:  tpm2.TPMEOUnsignedLE,
	}, nil
}
