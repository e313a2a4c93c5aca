package protect

import (
	"crypto"
	"crypto/x509"
	"errors"
	"net/http"

	"guardhouse/appliance/kps"
)

const (
	outcomeNotSetUp = "not-set-up"
	outcomeNoTime   = "no-trusted-time"
	outcomeNoKey    = "no-primary-certificate"
	outcomeToken    = "token-unavailable"
)

// metadata answers GetMetaData [MS-KPS 3.1.5.1.2.3] from the newest records.
func (q *request) metadata() {
	body, err := q.makeMetadata()
	var missing *kps.Refusal
	switch {
	case err == nil:
		q.reply(http.StatusOK, body)
	case errors.As(err, &missing):
		q.d.Log("key protection: metadata.xml: %v", err)
		// The exact string stands in Code and in Message (kps.md 14.14).
		q.note(outcomeNoKey, missing.Reason, "key new, then key primary")
		q.fail(missing.Code, missing.Reason)
	default:
		q.d.Log("key protection: metadata.xml: %v", err)
		q.unavailable(outcomeToken, "the HSM does not sign at the moment", "see hsm status")
	}
}

func (q *request) makeMetadata() ([]byte, error) {
	spec := kps.MetadataSpec{Random: q.d.Random}
	if k := q.keys.encryption; k != nil {
		spec.EncryptionCertificate = k.cert
	}
	if k := q.keys.signing; k != nil {
		spec.SigningCertificate = k.cert
	}
	if q.keys.encryption == nil || q.keys.signing == nil {
		return kps.MakeMetadata(spec)
	}
	if q.keys.communications == nil {
		return nil, &kps.Refusal{Code: kps.CodeInternal, Reason: "there is no enabled primary communications certificate"}
	}
	if s := q.snap.State.Service; s.OtherSigning {
		spec.Others = q.keys.otherSigning()
	}
	var err error
	if spec.Signer, err = q.rememberingSigner(q.keys.signing); err != nil {
		return nil, err
	}
	if spec.CommunicationsSigner, err = q.rememberingSigner(q.keys.communications); err != nil {
		return nil, err
	}
	spec.CommunicationsCertificate = q.keys.communications.cert
	m := &q.keys.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed != nil && q.d.BootTime()-m.at < failureStands {
		return nil, m.failed
	}
	body, err := kps.MakeMetadata(spec)
	m.failed, m.at = err, q.d.BootTime()
	return body, err
}

func (q *request) rememberingSigner(k *key) (crypto.Signer, error) {
	s, err := q.d.Signer(k.Key)
	if err != nil {
		return nil, err
	}
	return remembering{Signer: s, name: k.Ref, memory: &q.keys.memory}, nil
}

// thumbprint is the lower-case hex SHA-256 of a certificate.
func thumbprint(c *x509.Certificate) string { return hexSum(c.Raw) }
