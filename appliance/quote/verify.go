package quote

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/tpm"
)

// MaxFile bounds a quote's file, in bytes: the log in base64 and room for the rest.
const MaxFile = 2 << 20

// Bounds of a nonce, in bytes. A shorter one could be met by an old quote.
const (
	MinNonce = 8
	MaxNonce = tpm.MaxNonce
)

// File is a quote with everything that it takes to check it, but for what the checker must know already.
type File struct {
	Version        int            `json:"version"`
	Node           string         `json:"node"`
	Image          string         `json:"image"`          // version, as the node says
	Nonce          string         `json:"nonce"`          // lower-case hex
	AttestationKey []byte         `json:"attestationKey"` // TPM2B_PUBLIC
	Attest         []byte         `json:"attest"`         // TPMS_ATTEST
	Signature      []byte         `json:"signature"`      // TPMT_SIGNATURE
	PCRs           map[int]string `json:"pcrs"`           // 0 to 15, lower-case hex
	Logs           Logs           `json:"logs"`
	AuditKey       *Certified     `json:"auditKey,omitempty"`
}

// Certified is the key that signs the audit's checkpoints, certified by the attestation key under the quote's nonce.
type Certified struct {
	Key       []byte `json:"key"`       // TPM2B_PUBLIC
	Attest    []byte `json:"attest"`    // TPMS_ATTEST
	Signature []byte `json:"signature"` // TPMT_SIGNATURE
}

// Prediction is what somebody knows of an image without asking any machine: registers in lower-case hex, as they are before the node
// caps PCR 11.
type Prediction struct {
	Name string
	PCRs map[int]string
}

// Finding is one thing that was checked.
type Finding struct {
	OK   bool   `json:"ok"`
	What string `json:"what"`
}

// Verdict is the outcome of Verify.
type Verdict struct {
	Findings []Finding
	Report   Report // the boot in plain words; only as good as the findings
}

// Genuine is true where nothing failed.
func (v Verdict) Genuine() bool {
	for _, f := range v.Findings {
		if !f.OK {
			return false
		}
	}
	return len(v.Findings) > 0
}

func (v *Verdict) note(ok bool, format string, args ...any) {
	v.Findings = append(v.Findings, Finding{ok, fmt.Sprintf(format, args...)})
}

// NotBound is what is said of a quote without an enrolment.
const NotBound = "AK not bound to a known EK: any program can make such a key; enrol the node with mkimage enroll and give --ak"

// Verify checks a quote offline. nonce is the one that was asked for; ak is the node's enrolment, nil where there is none, which is a
// failed finding; want is nil where no image is compared.
func Verify(f File, nonce []byte, ak *Enrolment, want *Prediction) Verdict {
	var v Verdict
	name, key, err := attestationKey(f.AttestationKey)
	if err != nil {
		v.note(false, "%v", err)
		return v
	}
	v.bound(name, ak)
	attest, err := signed(f.Attest, f.Signature, key)
	if err == nil && attest.Type != tpm2.TPMSTAttestQuote {
		err = errors.New("what was signed is no quote")
	}
	if err != nil {
		v.note(false, "%v", err)
		return v
	}
	v.note(true, "signed by attestation key %.16x..", name)
	if ok := len(nonce) >= MinNonce && bytes.Equal(attest.ExtraData.Buffer, nonce); ok {
		v.note(true, "made for nonce %x", nonce)
	} else {
		v.note(false, "made for nonce %.80x, not for %x: it may be an old one", attest.ExtraData.Buffer, nonce)
	}
	if err := quoted015(attest, f.PCRs); err != nil {
		v.note(false, "%v", err)
		return v
	}
	v.note(true, "PCR 0 to 15 are what the TPM held")
	if f.AuditKey != nil {
		v.certified(*f.AuditKey, nonce, key)
	}
	v.Report = Explain(f.Logs, f.PCRs, nil)
	for _, p := range v.Report.Problems {
		v.note(false, "%s", p.What)
	}
	if len(v.Report.Problems) == 0 {
		v.note(true, "the logs of %d events lead to these registers", len(v.Report.Events))
	}
	if want != nil {
		v.predicted(f.PCRs, *want)
	}
	return v
}

func (v *Verdict) bound(name []byte, ak *Enrolment) {
	switch {
	case ak == nil:
		v.note(false, NotBound)
	case ak.Name != hex.EncodeToString(name):
		v.note(false, "the attestation key is not the one that was enrolled for node %q: the node's disk or TPM is another, or it is another node", ak.Node)
	default:
		v.note(true, "the attestation key lies in the TPM with endorsement key %.16s.. of node %q", ak.Endorsement, ak.Node)
		if ak.Warning != "" {
			v.note(true, "but %s", ak.Warning)
		}
	}
}

// signed checks the signature, and that the TPM itself made what was signed.
func signed(message, raw []byte, key *ecdsa.PublicKey) (*tpm2.TPMSAttest, error) {
	signature, err := tpm2.Unmarshal[tpm2.TPMTSignature](raw)
	if err != nil || signature.SigAlg != tpm2.TPMAlgECDSA {
		return nil, errors.New("the signature does not parse")
	}
	ec, err := signature.Signature.ECDSA()
	if err != nil || ec.Hash != tpm2.TPMAlgSHA256 {
		return nil, errors.New("the signature is not ECDSA with SHA-256")
	}
	sum := sha256.Sum256(message)
	if !ecdsa.Verify(key, sum[:], new(big.Int).SetBytes(ec.SignatureR.Buffer), new(big.Int).SetBytes(ec.SignatureS.Buffer)) {
		return nil, errors.New("the signature is not by the attestation key")
	}
	attest, err := tpm2.Unmarshal[tpm2.TPMSAttest](message)
	if err != nil {
		return nil, fmt.Errorf("what was signed does not parse: %w", err)
	}
	if attest.Magic != tpm2.TPMGeneratedValue {
		return nil, errors.New("what was signed was not made by a TPM")
	}
	return attest, nil
}

// quoted015 checks that the quote is over PCR 0 to 15 of the SHA-256 bank with these values.
func quoted015(attest *tpm2.TPMSAttest, pcrs map[int]string) error {
	quote, err := attest.Attested.Quote()
	if err != nil {
		return fmt.Errorf("what was signed is no quote: %w", err)
	}
	s := quote.PCRSelect.PCRSelections
	if len(s) != 1 || s[0].Hash != tpm2.TPMAlgSHA256 || len(s[0].PCRSelect) < 2 || s[0].PCRSelect[0] != 0xff || s[0].PCRSelect[1] != 0xff || len(bytes.Trim(s[0].PCRSelect[2:], "\x00")) > 0 {
		return errors.New("the quote is not over PCR 0 to 15 of the SHA-256 bank")
	}
	h := sha256.New()
	for pcr := range Registers {
		value, err := hex.DecodeString(pcrs[pcr])
		if err != nil || len(value) != sha256.Size {
			return fmt.Errorf("PCR %d is missing", pcr)
		}
		h.Write(value)
	}
	if len(pcrs) != Registers || !bytes.Equal(h.Sum(nil), quote.PCRDigest.Buffer) {
		return errors.New("the registers in the file are not those that were quoted")
	}
	return nil
}

// predicted compares with the image. PCR 11 must be capped: before that the volume was not open, and something else ran than our init.
func (v *Verdict) predicted(pcrs map[int]string, want Prediction) {
	for pcr := range evidence.PCRCount {
		value, ok := want.PCRs[pcr]
		if !ok {
			continue
		}
		how := ""
		if raw, err := hex.DecodeString(value); pcr == 11 && err == nil && len(raw) == 32 {
			capped := tpm.Capped([32]byte(raw))
			value, how = hex.EncodeToString(capped[:]), ", capped once the volume was open"
		}
		if pcrs[pcr] == value {
			v.note(true, "PCR %d is as predicted from %s%s", pcr, want.Name, how)
		} else {
			v.note(false, "PCR %d is %.16s.., and from %s it would be %.16s..%s", pcr, pcrs[pcr], want.Name, value, how)
		}
	}
}

// certified checks that the audit's key is one that the same TPM made and never gives out, and names it as `audit key` does.
func (v *Verdict) certified(c Certified, nonce []byte, ak *ecdsa.PublicKey) {
	name, key, err := keyLike(c.Key, tpm.SigningTemplate)
	if err != nil {
		v.note(false, "the audit's key: %v", err)
		return
	}
	attest, err := signed(c.Attest, c.Signature, ak)
	if err != nil {
		v.note(false, "the audit's key: %v", err)
		return
	}
	info, err := attest.Attested.Certify()
	if err != nil || attest.Type != tpm2.TPMSTAttestCertify || !bytes.Equal(info.Name.Buffer, name) || !bytes.Equal(attest.ExtraData.Buffer, nonce) {
		v.note(false, "the audit's key: what was signed does not certify it now")
		return
	}
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		v.note(false, "the audit's key: %v", err)
		return
	}
	v.note(true, "the audit's checkpoints are signed by a key in the same TPM: %x", sha256.Sum256(spki))
}
