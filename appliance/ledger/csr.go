package ledger

import (
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

const requestLimit = 20 * time.Second

// CertificateRequest makes a PKCS#10 for a recorded key, signed by the key itself. An encryption key may sign nothing else: the HSM
// process takes whole requests only, and where the token gives the key no right to sign, the raw private operation makes the same
// signature. The request changes nothing; making one is audited because a CA will believe it.
func (l *Ledger) CertificateRequest(req rpc.KeyCSRRequest) (rpc.KeyCSRReply, error) {
	if err := l.ready(); err != nil {
		return rpc.KeyCSRReply{}, err
	}
	s, _ := l.Snapshot()
	if err := policy.Allowed(s.State, req.Actor, policy.AdminOperator); err != nil {
		return rpc.KeyCSRReply{}, rpc.ErrRefused.With("%v", err)
	}
	k, ok := s.State.Keys[req.Ref]
	if !ok {
		return rpc.KeyCSRReply{}, rpc.ErrRefused.With("there is no key %.16q; see key list", req.Ref)
	}
	profile, ok := policy.ProfileByName(req.Profile)
	if !ok {
		return rpc.KeyCSRReply{}, rpc.ErrRefused.With("there is no profile %.32q", req.Profile)
	}
	usage, purposes, ok := profile.Extensions(k.Role)
	if !ok {
		return rpc.KeyCSRReply{}, rpc.ErrRefused.With("attestation signers certify themselves: clients accept only a health certificate whose signer is self-signed; use attestation-signer renew for a new one")
	}
	cert, err := x509.ParseCertificate(k.Certificate)
	if err != nil {
		return rpc.KeyCSRReply{}, fmt.Errorf("certificate of key %.16s: %w", k.Ref, err)
	}
	t := &x509.CertificateRequest{RawSubject: cert.RawSubject, SignatureAlgorithm: x509.SHA256WithRSA,
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true, Value: usage}}}
	if purposes != nil {
		t.ExtraExtensions = append(t.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Value: purposes})
	}
	if req.Subject != "" {
		if err := checkSubject(req.Subject); err != nil {
			return rpc.KeyCSRReply{}, err
		}
		t.RawSubject, t.Subject = nil, pkix.Name{CommonName: req.Subject}
	}
	der, err := x509.CreateCertificateRequest(l.cfg.Rand, t, requester{l.cfg.HSM, k.Ref, cert.PublicKey})
	outcome, detail := "ok", "certificate request with the profile "+profile.Name
	if err != nil {
		outcome, detail = "failed", err.Error()
	}
	if err := l.note(req.Actor, "key.csr", string(k.Ref), outcome, detail, ""); err != nil {
		return rpc.KeyCSRReply{}, err
	}
	return rpc.KeyCSRReply{Request: der}, err
}

// requester signs whole requests with a key in the HSM process. It is a crypto.MessageSigner, because what is signed must be seen there.
type requester struct {
	hsm *rpc.Client
	ref policy.KeyRef
	pub crypto.PublicKey
}

// Public implements crypto.Signer.
func (r requester) Public() crypto.PublicKey { return r.pub }

// Sign implements crypto.Signer; a digest alone is never signed here.
func (r requester) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("only whole certificate requests are signed")
}

// SignMessage implements crypto.MessageSigner.
func (r requester) SignMessage(_ io.Reader, info []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != crypto.SHA256 {
		return nil, errors.New("certificate requests are signed with SHA-256")
	}
	ctx, cancel := context.WithTimeout(context.Background(), requestLimit)
	defer cancel()
	reply, err := rpc.HSMRequest.Call(ctx, r.hsm, rpc.HSMRequestRequest{Ref: r.ref, Info: info})
	return reply.Signature, err
}
