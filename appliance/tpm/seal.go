package tpm

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// SealPolicy decides when the TPM gives the root key out. An implementation is stateless: what it must remember it returns from Seal
// and gets back.
type SealPolicy interface {
	// Kind names the policy in the file of the sealed key; never rename one.
	Kind() string
	// Describe is a line for people: what the key is sealed to and what that means.
	Describe() string
	// Seal gives the policy digest for a new key and what Satisfy and Explain will need.
	Seal(t transport.TPM) (digest []byte, note json.RawMessage, err error)
	// Satisfy runs the policy's commands in the session.
	Satisfy(t transport.TPM, session tpm2.TPMISHPolicy, note json.RawMessage) error
	// Explain says why the TPM refused, as an *Error, or nil if it has no explanation.
	Explain(t transport.TPM, note json.RawMessage) error
}

// LiteralPCRs seals to the present values of these PCRs of the SHA-256 bank. Any other image or boot path gets nothing.
type LiteralPCRs []uint

// ImagePCRs are the boot path (4), the image (11), and what the boot stub took from beside the image (12): without Secure Boot a boot
// entry may replace the kernel's command line, which the stub measures into PCR 12 and nowhere else.
var ImagePCRs = LiteralPCRs{4, 11, 12}

// Kind is "literal-pcrs".
func (p LiteralPCRs) Kind() string { return "literal-pcrs" }

// Describe lists the PCRs and warns about updates.
func (p LiteralPCRs) Describe() string {
	names := make([]string, len(p))
	for i, pcr := range p {
		names[i] = strconv.Itoa(int(pcr))
	}
	return "sealed to PCR " + strings.Join(names, "+") + " (not update-safe)"
}

// Seal reads the PCRs and notes their values in hex.
func (p LiteralPCRs) Seal(t transport.TPM) ([]byte, json.RawMessage, error) {
	values, err := readPCRs(t, p)
	if err != nil {
		return nil, nil, err
	}
	calc, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		return nil, nil, err
	}
	// The order of the digest is the order of PCR numbers, whatever order the list has (TPM 2.0 part 3, TPM2_PolicyPCR).
	h := sha256.New()
	for _, pcr := range slices.Sorted(maps.Keys(values)) {
		h.Write(values[pcr])
	}
	if err := (tpm2.PolicyPCR{PcrDigest: tpm2.TPM2BDigest{Buffer: h.Sum(nil)}, Pcrs: selection(p...)}).Update(calc); err != nil {
		return nil, nil, err
	}
	note := map[uint]string{}
	for pcr, v := range values {
		note[pcr] = hex.EncodeToString(v)
	}
	b, err := json.Marshal(note)
	return calc.Hash().Digest, b, err
}

// Satisfy has the TPM compare the PCRs as they are now.
func (p LiteralPCRs) Satisfy(t transport.TPM, session tpm2.TPMISHPolicy, _ json.RawMessage) error {
	_, err := tpm2.PolicyPCR{PolicySession: session, Pcrs: selection(p...)}.Execute(t)
	return err
}

// Explain names the PCRs that differ, with both values.
func (p LiteralPCRs) Explain(t transport.TPM, note json.RawMessage) error {
	var was map[uint]string
	if err := json.Unmarshal(note, &was); err != nil {
		return nil
	}
	now, err := readPCRs(t, p)
	if err != nil {
		return nil
	}
	var differ []string
	for _, pcr := range slices.Sorted(maps.Keys(now)) {
		if v := hex.EncodeToString(now[pcr]); v != was[pcr] {
			differ = append(differ, fmt.Sprintf("sealed to PCR %d %.16s.., now %.16s..", pcr, was[pcr], v))
		}
	}
	if differ == nil {
		return nil
	}
	return &Error{KindImageChanged, "the image or the boot path changed: " + strings.Join(differ, "; "),
		"boot the image that this node was set up with, or reset the data disk and set the node up again"}
}

// Kinds of errors of Secrets.
const (
	KindImageChanged = "seal-image-changed" // the policy is not met
	KindOtherTPM     = "seal-other-tpm"     // the sealed key belongs to another TPM
	KindNoTPM        = "tpm-unusable"       // the TPM fails
	KindDamaged      = "secrets-damaged"    // a file does not open or is missing
)

// Error is a problem of the sealed secrets with its remedy.
type Error struct{ Kind, What, Remedy string }

func (e *Error) Error() string { return e.What + "; " + e.Remedy }

// sealed is the file of the sealed root key.
type sealed struct {
	Version int             `json:"version"` // 1
	SRK     []byte          `json:"srk"`     // name of the storage root key: which TPM this is
	Policy  string          `json:"policy"`  // SealPolicy.Kind
	Note    json.RawMessage `json:"note"`
	Public  []byte          `json:"public"`  // TPM2B_PUBLIC
	Private []byte          `json:"private"` // TPM2B_PRIVATE
}

// storageRoot makes the ECC storage root key, which is the same each time as long as the owner hierarchy's seed is. It takes about 1 ms
// on swtpm and 0.1 s on slow TPMs, so nothing is made persistent.
func storageRoot(t transport.TPM) (*tpm2.CreatePrimaryResponse, error) {
	srk, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("make storage root key: %w", err)
	}
	return srk, nil
}

func flush(t transport.TPM, h tpm2.TPMHandle) { tpm2.FlushContext{FlushHandle: h}.Execute(t) }

// bus gives session options that encrypt parameters to a key inside the TPM, so that a probe on the bus sees no secret.
func bus(srk *tpm2.CreatePrimaryResponse, parameters tpm2.AuthOption) ([]tpm2.AuthOption, error) {
	pub, err := srk.OutPublic.Contents()
	if err != nil {
		return nil, err
	}
	return []tpm2.AuthOption{tpm2.Salted(srk.ObjectHandle, *pub), parameters}, nil
}

// seal puts key into the TPM's custody.
func (t *TPM) seal(p SealPolicy, key []byte) (*sealed, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	srk, err := storageRoot(t.t)
	if err != nil {
		return nil, err
	}
	defer flush(t.t, srk.ObjectHandle)
	digest, note, err := p.Seal(t.t)
	if err != nil {
		return nil, err
	}
	opts, err := bus(srk, tpm2.AESEncryption(128, tpm2.EncryptInOut))
	if err != nil {
		return nil, err
	}
	r, err := tpm2.Create{
		ParentHandle: tpm2.AuthHandle{Handle: srk.ObjectHandle, Name: srk.Name, Auth: tpm2.HMAC(tpm2.TPMAlgSHA256, 16, opts...)},
		InSensitive:  tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: key})}},
		InPublic: tpm2.New2B(tpm2.TPMTPublic{Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
			// No UserWithAuth: only the policy opens it. NoDA: somebody guessing elsewhere must not lock this node out.
			ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, NoDA: true},
			AuthPolicy:       tpm2.TPM2BDigest{Buffer: digest}}),
	}.Execute(t.t)
	if err != nil {
		return nil, fmt.Errorf("seal root key: %w", err)
	}
	return &sealed{Version: 1, SRK: srk.Name.Buffer, Policy: p.Kind(), Note: note,
		Public: tpm2.Marshal(r.OutPublic), Private: tpm2.Marshal(r.OutPrivate)}, nil
}

// unseal gets the key back; the caller wipes it.
func (t *TPM) unseal(p SealPolicy, s *sealed) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	srk, err := storageRoot(t.t)
	if err != nil {
		return nil, err
	}
	defer flush(t.t, srk.ObjectHandle)
	if !bytes.Equal(srk.Name.Buffer, s.SRK) {
		return nil, &Error{KindOtherTPM, "this disk's secrets belong to another TPM, or this TPM was cleared",
			"put the disk back into its machine, or reset the data disk and set the node up again"}
	}
	pub, err := tpm2.Unmarshal[tpm2.TPM2BPublic](s.Public)
	if err != nil {
		return nil, damaged("the sealed root key does not parse")
	}
	priv, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](s.Private)
	if err != nil {
		return nil, damaged("the sealed root key does not parse")
	}
	obj, err := tpm2.Load{ParentHandle: tpm2.AuthHandle{Handle: srk.ObjectHandle, Name: srk.Name, Auth: tpm2.PasswordAuth(nil)},
		InPrivate: *priv, InPublic: *pub}.Execute(t.t)
	if err != nil {
		return nil, damaged("the TPM does not take the sealed root key (%v)", err)
	}
	defer flush(t.t, obj.ObjectHandle)
	opts, err := bus(srk, tpm2.AESEncryption(128, tpm2.EncryptOut)) // TPM2_Unseal has no parameter to encrypt
	if err != nil {
		return nil, err
	}
	var unmet error
	session := tpm2.Policy(tpm2.TPMAlgSHA256, 16, func(tpm transport.TPM, h tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
		unmet = p.Satisfy(tpm, h, s.Note)
		return unmet
	}, opts...)
	r, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: obj.ObjectHandle, Name: obj.Name, Auth: session}}.Execute(t.t)
	if err == nil {
		return r.OutData.Buffer, nil
	}
	if unmet != nil || errors.Is(err, tpm2.TPMRCPolicyFail) || errors.Is(err, tpm2.TPMRCPolicy) {
		if why := p.Explain(t.t, s.Note); why != nil {
			return nil, why
		}
		return nil, &Error{KindImageChanged, fmt.Sprintf("the TPM refuses the root key: %v", err), "boot the image that this node was set up with"}
	}
	return nil, fmt.Errorf("unseal root key: %w", err)
}

func damaged(format string, args ...any) error {
	return &Error{KindDamaged, fmt.Sprintf(format, args...), "reset the data disk and set the node up again"}
}
