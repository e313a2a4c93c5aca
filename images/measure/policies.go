package measure

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"guardhouse/appliance/tpm"
)

// Boot is one way in which an image is expected to start.
type Boot struct {
	Name     string // for people: key set and dbx
	Firmware *Firmware
}

// SignPolicies predicts each boot of an image and signs it with each policy key: the file that lies beside the image. Several keys are
// for a change of the key: nodes sealed under the old one and under the new one both open. PCR 12 and 13 must be zero.
func SignPolicies(image []byte, release uint64, boots []Boot, signers ...crypto.Signer) (tpm.PolicyFile, error) {
	f := tpm.PolicyFile{Version: 1}
	if len(boots) == 0 || len(signers) == 0 {
		return f, errors.New("no boot to sign, or nothing to sign with")
	}
	for _, s := range signers {
		pub, ok := s.Public().(*rsa.PublicKey)
		if !ok {
			return f, errors.New("a policy key is RSA")
		}
		pem, err := tpm.AuthorityPEM(pub)
		if err != nil {
			return f, err
		}
		f.Keys = append(f.Keys, string(pem))
		for _, b := range boots {
			if b.Firmware == nil {
				return f, fmt.Errorf("boot %q: without Secure Boot there is nothing to predict in PCR 7", b.Name)
			}
			p, err := Predict(image, Options{SecureBoot: true, Firmware: b.Firmware})
			if err != nil {
				return f, err
			}
			signed, err := sign(p, b.Name, release, pub, s)
			if err != nil {
				return f, err
			}
			if !slices.ContainsFunc(f.Policies, func(q tpm.SignedPolicy) bool {
				return q.Key == signed.Key && string(q.Signature) == string(signed.Signature)
			}) {
				f.Policies = append(f.Policies, signed)
			}
		}
	}
	return f, nil
}

func sign(p *Prediction, name string, release uint64, pub *rsa.PublicKey, s crypto.Signer) (tpm.SignedPolicy, error) {
	zero := hex.EncodeToString(make([]byte, 32))
	policy := tpm.SignedPolicy{Name: name, Release: release, Key: tpm.AuthorityID(pub), PCRs: map[uint]string{
		4: hex.EncodeToString(p.PCR4[:]), 7: hex.EncodeToString(p.PCR7[:]), 11: hex.EncodeToString(p.PCR11[:]), 12: zero, 13: zero}}
	message, err := policy.ToSign()
	if err != nil {
		return policy, err
	}
	sum := sha256.Sum256(message)
	if policy.Signature, err = s.Sign(rand.Reader, sum[:], crypto.SHA256); err != nil {
		return policy, fmt.Errorf("sign policy %q: %w", name, err)
	}
	return policy, rsa.VerifyPKCS1v15(pub, crypto.SHA256, sum[:], policy.Signature)
}
