package quote

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"time"

	"github.com/google/go-tpm/tpm2"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/tpm"
)

// MaxEnrolment bounds each file of an enrolment, in bytes.
const MaxEnrolment = 64 << 10

const version = 1

// Identity is what a node says of its TPM, unproved.
type Identity struct {
	Version        int    `json:"version"`
	Node           string `json:"node"`
	Endorsement    []byte `json:"endorsement"`           // TPM2B_PUBLIC
	Certificate    []byte `json:"certificate,omitempty"` // of the endorsement key, as the TPM's maker put it there
	AttestationKey []byte `json:"attestationKey"`        // TPM2B_PUBLIC
}

// Challenge is a secret that only the TPM with that endorsement key can open, and only if it holds that attestation key.
type Challenge struct {
	Version    int    `json:"version"`
	Credential []byte `json:"credential"` // TPMS_ID_OBJECT
	Secret     []byte `json:"secret"`     // encrypted to the endorsement key
}

// Answer is the node's answer: the secret.
type Answer struct {
	Version int    `json:"version"`
	Secret  []byte `json:"secret"`
}

// Pending is what the workstation keeps between challenge and answer. It holds the secret's SHA-256 only.
type Pending struct {
	Version   int       `json:"version"`
	Enrolment Enrolment `json:"enrolment"`
	Expect    []byte    `json:"expect"`
}

// Enrolment is the record that [Verify] trusts: this attestation key lies in the TPM with this endorsement key.
type Enrolment struct {
	Version        int    `json:"version"`
	Node           string `json:"node"`
	Name           string `json:"name"`                  // the attestation key's TPM name, lower-case hex
	AttestationKey []byte `json:"attestationKey"`        // TPM2B_PUBLIC
	Endorsement    string `json:"endorsement"`           // as hosts are named: upper-case hex SHA-256 of the key's SubjectPublicKeyInfo
	Certificate    []byte `json:"certificate,omitempty"` // the endorsement key's
	Maker          string `json:"maker,omitempty"`       // as the certificate says: manufacturer, model, version
	Root           string `json:"root,omitempty"`        // to which root certificate it led
	Warning        string `json:"warning,omitempty"`     // what is not known of the TPM
	At             string `json:"at,omitempty"`          // when it was made, RFC 3339
}

// Parse reads one of the files of an enrolment, or what Verify takes. Anything of another version or size is an error.
func Parse[T Identity | Challenge | Answer | Pending | Enrolment | File](b []byte) (T, error) {
	var v T
	limit := MaxEnrolment
	if _, ok := any(v).(File); ok {
		limit = MaxFile
	}
	if len(b) > limit {
		return v, fmt.Errorf("larger than %d bytes", limit)
	}
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return v, fmt.Errorf("not a file of this kind: %w", err)
	}
	if head.Version != version {
		return v, fmt.Errorf("version %d is not known", head.Version)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		var none T
		return none, fmt.Errorf("not a file of this kind: %w", err)
	}
	return v, nil
}

// Begin checks what the node says and makes the challenge. trust nil accepts an endorsement key of any maker, with a warning in the
// record, and one without a certificate. at is the time for the certificates.
func Begin(id Identity, trust *evidence.Trust, at time.Time, rand io.Reader) (Challenge, Pending, error) {
	fail := func(err error) (Challenge, Pending, error) { return Challenge{}, Pending{}, err }
	ek, err := evidence.ParseEK(id.Endorsement)
	if err != nil {
		return fail(fmt.Errorf("endorsement key: %w", err))
	}
	record := Enrolment{Version: version, Node: clean(id.Node), AttestationKey: id.AttestationKey, Endorsement: ek.ID(), Certificate: id.Certificate, At: at.UTC().Format(time.RFC3339)}
	if err := record.vouch(ek, trust, at); err != nil {
		return fail(err)
	}
	name, _, err := attestationKey(id.AttestationKey)
	if err != nil {
		return fail(err)
	}
	record.Name = hex.EncodeToString(name)
	public, err := contents(id.Endorsement)
	if err != nil {
		return fail(fmt.Errorf("endorsement key: %w", err))
	}
	kem, err := tpm2.ImportEncapsulationKey(public)
	if err != nil {
		return fail(fmt.Errorf("endorsement key: %w", err))
	}
	secret := make([]byte, 32)
	if _, err := io.ReadFull(rand, secret); err != nil {
		return fail(err)
	}
	defer clear(secret)
	blob, seed, err := tpm2.CreateCredential(rand, kem, name, secret)
	if err != nil {
		return fail(fmt.Errorf("make the challenge: %w", err))
	}
	sum := sha256.Sum256(secret)
	return Challenge{version, blob, seed}, Pending{version, record, sum[:]}, nil
}

// vouch looks at who made the TPM.
func (e *Enrolment) vouch(ek *evidence.EK, trust *evidence.Trust, at time.Time) error {
	if len(e.Certificate) == 0 {
		if trust != nil {
			return errors.New("the TPM holds no certificate of its endorsement key, so that it can't lead to the given roots; without --roots it is enrolled by its bare key")
		}
		e.Warning = "the TPM holds no certificate of its endorsement key: nothing says who made it, only that it is the same one again"
		return nil
	}
	cert, err := evidence.ParseCertificate(e.Certificate)
	if err != nil {
		return fmt.Errorf("certificate of the endorsement key: %w", err)
	}
	certified, err := cert.EK()
	if err != nil {
		return fmt.Errorf("certificate of the endorsement key: %w", err)
	}
	if !certified.Same(ek) {
		return errors.New("the certificate is of another endorsement key than the node shows")
	}
	manufacturer, model, firmware := cert.TPM()
	e.Maker = clean(manufacturer + " " + model + " " + firmware)
	if trust == nil {
		e.Warning = "the endorsement key's certificate was not checked: give the maker's roots with --roots"
		return nil
	}
	chain, err := trust.Chain(cert, at)
	if err != nil {
		return fmt.Errorf("certificate of the endorsement key: %w", err)
	}
	e.Root = clean(chain[len(chain)-1].Name())
	return nil
}

// ErrAnswer is an answer that is not to this challenge.
var ErrAnswer = errors.New("the answer is not to this challenge: the TPM did not open it, or the files are of two tries")

// Finish gives the record if the answer is right. Only a TPM that holds both keys can give it.
func Finish(p Pending, a Answer) (Enrolment, error) {
	sum := sha256.Sum256(a.Secret)
	if len(a.Secret) == 0 || subtle.ConstantTimeCompare(sum[:], p.Expect) != 1 {
		return Enrolment{}, ErrAnswer
	}
	return p.Enrolment, nil
}

// Thumbprints are those of the endorsement key's certificate; empty without one.
func (e Enrolment) Thumbprints() (sha1Hex, sha256Hex string) {
	if len(e.Certificate) == 0 {
		return "", ""
	}
	a, b := sha1.Sum(e.Certificate), sha256.Sum256(e.Certificate)
	return hex.EncodeToString(a[:]), hex.EncodeToString(b[:])
}

func contents(b []byte) (*tpm2.TPMTPublic, error) {
	if len(b) > MaxEnrolment {
		return nil, errors.New("it is too large")
	}
	public, err := tpm2.Unmarshal[tpm2.TPM2BPublic](b)
	if err != nil {
		return nil, err
	}
	return public.Contents()
}

// attestationKey checks that a TPM2B_PUBLIC is a key that signs only what its TPM says, and gives its TPM name.
func attestationKey(b []byte) (name []byte, key *ecdsa.PublicKey, err error) {
	if name, key, err = keyLike(b, tpm.AttestationTemplate); err != nil {
		return nil, nil, fmt.Errorf("attestation key: %w", err)
	}
	return name, key, nil
}

// keyLike reads a TPM2B_PUBLIC of a key on P-256 that is as the template but for the key itself, and gives its TPM name.
func keyLike(b []byte, template tpm2.TPMTPublic) (name []byte, key *ecdsa.PublicKey, err error) {
	public, err := contents(b)
	if err != nil {
		return nil, nil, err
	}
	bare := *public
	bare.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	template.Unique = bare.Unique
	if public.Type != tpm2.TPMAlgECC || !bytes.Equal(tpm2.Marshal(bare), tpm2.Marshal(template)) {
		return nil, nil, errors.New("its attributes are others than this node's keys have")
	}
	point, err := public.Unique.ECC()
	if err != nil || len(point.X.Buffer) > 32 || len(point.Y.Buffer) > 32 {
		return nil, nil, errors.New("not a point on P-256")
	}
	uncompressed := make([]byte, 65)
	uncompressed[0] = 4
	new(big.Int).SetBytes(point.X.Buffer).FillBytes(uncompressed[1:33])
	new(big.Int).SetBytes(point.Y.Buffer).FillBytes(uncompressed[33:])
	if key, err = ecdsa.ParseUncompressedPublicKey(elliptic.P256(), uncompressed); err != nil {
		return nil, nil, err
	}
	n, err := tpm2.ObjectName(public)
	if err != nil {
		return nil, nil, err
	}
	return n.Buffer, key, nil
}
