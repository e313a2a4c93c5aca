package tpm

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// AttestationKey is the node's own key for quotes: ECDSA P-256, made in this TPM, restricted to what the TPM itself says (it signs no
// digest that a program brings). It lies under the storage root key and needs no owner: whoever has Encode's bytes and this TPM can
// use it, so they are kept on the sealed volume, where no other system gets them. Safe for concurrent use.
type AttestationKey struct{ child }

// MaxAttestationKey bounds an encoded AttestationKey, in bytes.
const MaxAttestationKey = maxChild

// AttestationTemplate is what the public area of an attestation key must be, but for the key itself.
var AttestationTemplate = tpm2.TPMTPublic{Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
	ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true},
	Parameters:       ecdsaParameters}

// NewAttestationKey has the TPM make a key. The caller keeps what Encode gives; nothing stays in the TPM.
func (t *TPM) NewAttestationKey() (*AttestationKey, error) {
	c, err := t.newChild(attestationKeyName, AttestationTemplate)
	return &AttestationKey{c}, err
}

const attestationKeyName = "attestation key"

// LoadAttestationKey takes what Encode gave and proves that this TPM can use it. Errors of type *Error: KindOtherTPM where another TPM
// made it or this one was cleared since, KindDamaged.
func (t *TPM) LoadAttestationKey(b []byte) (*AttestationKey, error) {
	c, err := t.loadChild(attestationKeyName, b)
	return &AttestationKey{c}, err
}

// Public is the key's TPM2B_PUBLIC.
func (k *AttestationKey) Public() []byte { return bytes.Clone(k.blob.Public) }

// QuotePCRs is how many registers a quote covers: 0 to 15.
const QuotePCRs = 16

// MaxNonce bounds a quote's nonce, in bytes: what every TPM takes.
const MaxNonce = 32

// Quote has the TPM sign PCR 0 to 15 of its SHA-256 bank with the nonce. It gives TPMS_ATTEST and TPMT_SIGNATURE as the TPM made them.
func (k *AttestationKey) Quote(nonce []byte) (attest, signature []byte, err error) {
	if len(nonce) > MaxNonce {
		return nil, nil, fmt.Errorf("the nonce has %d bytes, more than %d", len(nonce), MaxNonce)
	}
	pcrs := make([]uint, QuotePCRs)
	for i := range pcrs {
		pcrs[i] = uint(i)
	}
	k.t.mu.Lock()
	defer k.t.mu.Unlock()
	err = k.use(func(h tpm2.NamedHandle) error {
		r, err := tpm2.Quote{SignHandle: tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: tpm2.PasswordAuth(nil)},
			QualifyingData: tpm2.TPM2BData{Buffer: nonce}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, PCRSelect: selection(pcrs...)}.Execute(k.t.t)
		if err != nil {
			return fmt.Errorf("quote: %w", err)
		}
		attest, signature = r.Quoted.Bytes(), tpm2.Marshal(r.Signature)
		return nil
	})
	return attest, signature, err
}

// Certify has the TPM say that it holds the other key, with these attributes, under data. It gives TPMS_ATTEST and TPMT_SIGNATURE.
func (k *AttestationKey) Certify(other *SigningKey, data []byte) (attest, signature []byte, err error) {
	if other.t != k.t {
		return nil, nil, errors.New("certify: the keys are of two TPMs")
	}
	k.t.mu.Lock()
	defer k.t.mu.Unlock()
	err = k.use(func(ak tpm2.NamedHandle) error {
		return other.use(func(h tpm2.NamedHandle) error {
			r, err := tpm2.Certify{ObjectHandle: tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: tpm2.PasswordAuth(nil)},
				SignHandle:     tpm2.AuthHandle{Handle: ak.Handle, Name: ak.Name, Auth: tpm2.PasswordAuth(nil)},
				QualifyingData: tpm2.TPM2BData{Buffer: data}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}}.Execute(k.t.t)
			if err != nil {
				return fmt.Errorf("certify: %w", err)
			}
			attest, signature = r.CertifyInfo.Bytes(), tpm2.Marshal(r.Signature)
			return nil
		})
	})
	return attest, signature, err
}

// NV indices of endorsement key certificates (TCG EK Credential Profile 2.2.1.4) with the templates of their keys, the faster first.
var endorsements = []struct {
	index    tpm2.TPMHandle
	template tpm2.TPMTPublic
}{{0x01c0000a, tpm2.ECCEKTemplate}, {0x01c00002, tpm2.RSAEKTemplate}}

const maxEndorsement = 16 << 10 // bytes of a certificate

// Endorsement is the TPM's endorsement key: its TPM2B_PUBLIC, and its maker's certificate (empty where the TPM holds none: then nothing
// says who made it). P-256 is taken before RSA 2048.
func (t *TPM) Endorsement() (public, certificate []byte, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	template, certificate, err := t.endorsement()
	if err != nil {
		return nil, nil, err
	}
	ek, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(template)}.Execute(t.t)
	if err != nil {
		return nil, nil, fmt.Errorf("make endorsement key: %w", err)
	}
	flush(t.t, ek.ObjectHandle)
	return tpm2.Marshal(ek.OutPublic), certificate, nil
}

func (t *TPM) endorsement() (tpm2.TPMTPublic, []byte, error) {
	for _, e := range endorsements {
		name, err := indexName(t.t, e.index)
		if errors.Is(err, errNoIndex) {
			continue
		}
		if err != nil {
			return tpm2.TPMTPublic{}, nil, err
		}
		certificate, err := t.readAll(e.index, *name)
		return e.template, certificate, err
	}
	return endorsements[0].template, nil, nil
}

// readAll reads an index that everybody may read.
func (t *TPM) readAll(index tpm2.TPMHandle, name tpm2.TPM2BName) ([]byte, error) {
	r, err := tpm2.NVReadPublic{NVIndex: index}.Execute(t.t)
	if err != nil {
		return nil, fmt.Errorf("read index %#x: %w", uint32(index), err)
	}
	public, err := r.NVPublic.Contents()
	if err != nil {
		return nil, fmt.Errorf("read index %#x: %w", uint32(index), err)
	}
	if public.DataSize > maxEndorsement {
		return nil, fmt.Errorf("index %#x holds %d bytes, more than %d", uint32(index), public.DataSize, maxEndorsement)
	}
	var all []byte
	for len(all) < int(public.DataSize) {
		r, err := tpm2.NVRead{AuthHandle: tpm2.AuthHandle{Handle: index, Name: name, Auth: tpm2.PasswordAuth(nil)}, NVIndex: tpm2.NamedHandle{Handle: index, Name: name},
			Size: min(512, public.DataSize-uint16(len(all))), Offset: uint16(len(all))}.Execute(t.t)
		if err != nil || len(r.Data.Buffer) == 0 {
			return nil, fmt.Errorf("read index %#x: %v", uint32(index), err)
		}
		all = append(all, r.Data.Buffer...)
	}
	return all, nil
}

// Activate opens a credential that was made for this TPM's endorsement key and this attestation key (TPM2_MakeCredential): the TPM does
// it only where it holds both. blob is a TPMS_ID_OBJECT, secret the encrypted seed.
func (k *AttestationKey) Activate(blob, secret []byte) ([]byte, error) {
	t := k.t
	t.mu.Lock()
	defer t.mu.Unlock()
	template, _, err := t.endorsement()
	if err != nil {
		return nil, err
	}
	var out []byte
	err = k.use(func(ak tpm2.NamedHandle) error {
		ek, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(template)}.Execute(t.t)
		if err != nil {
			return fmt.Errorf("make endorsement key: %w", err)
		}
		defer flush(t.t, ek.ObjectHandle)
		// The endorsement hierarchy's authorisation is empty: Own sets those of owner and lockout.
		session := tpm2.Policy(tpm2.TPMAlgSHA256, 16, endorsed)
		r, err := tpm2.ActivateCredential{
			ActivateHandle: tpm2.AuthHandle{Handle: ak.Handle, Name: ak.Name, Auth: tpm2.PasswordAuth(nil)},
			KeyHandle:      tpm2.AuthHandle{Handle: ek.ObjectHandle, Name: ek.Name, Auth: session},
			CredentialBlob: tpm2.TPM2BIDObject{Buffer: blob}, Secret: tpm2.TPM2BEncryptedSecret{Buffer: secret}}.Execute(t.t)
		if wrongKey(t.t, err) {
			return &Error{KindOtherTPM, fmt.Sprintf("the challenge is not for this TPM and its attestation key (%v)", err), "make it anew from what node identity gives now"}
		}
		if err != nil {
			return fmt.Errorf("answer the challenge: %w", err)
		}
		out = r.CertInfo.Buffer
		return nil
	})
	return out, err
}

// endorsed is the policy of the default endorsement keys: TPM2_PolicySecret of their hierarchy.
func endorsed(t transport.TPM, h tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
	_, err := tpm2.PolicySecret{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)}, PolicySession: h, NonceTPM: nonce}.Execute(t)
	return err
}

// wrongKey reports whether the TPM refused a credential because it is for other keys. libtpms says "failure" where OAEP does not decrypt,
// and goes on working; a TPM that really failed answers nothing any more.
func wrongKey(t transport.TPM, err error) bool {
	for _, rc := range []tpm2.TPMRC{tpm2.TPMRCIntegrity, tpm2.TPMRCSize, tpm2.TPMRCValue, tpm2.TPMRCECCPoint} {
		if errors.Is(err, rc) {
			return true
		}
	}
	if !errors.Is(err, tpm2.TPMRCFailure) {
		return false
	}
	_, dead := readPCRs(t, []uint{0})
	return dead == nil
}
