package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"guardhouse/appliance/health"
	"guardhouse/appliance/hgsa"
)

// Files of a host in --dir.
const (
	fileHostKey  = "host.key"
	fileHostCer  = "host.cer" // what Get-HgsClientHostKey -Path exports: one DER certificate
	fileVSMKey   = "vsm.key"
	fileHealth   = "health.cer"
	fileLastFail = "last-attestation.txt"
)

func hostKeyNew(o *options) error {
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return err
	}
	host, err := newKey()
	if err != nil {
		return err
	}
	vsm, err := newKey()
	if err != nil {
		return err
	}
	der, err := selfSigned(o.name, host, x509.KeyUsageDigitalSignature, x509.ExtKeyUsageClientAuth)
	if err != nil {
		return err
	}
	if err := errors.Join(o.writeKey(fileHostKey, host), o.writeKey(fileVSMKey, vsm), os.WriteFile(o.path(fileHostCer), der, 0o644)); err != nil {
		return err
	}
	id, err := hgsa.HostID(&host.PublicKey)
	if err != nil {
		return err
	}
	o.say("id", id, "host key     %s", id)
	o.say("certificate", o.path(fileHostCer), "certificate  %s\n             %s", o.path(fileHostCer), thumbprints(der))
	return nil
}

// attested is the outcome of one attestation.
type attested struct {
	certificate []byte
	info        *hgsa.ServiceInfoReply
}

// attest runs the whole client side of hgsa.md 7 in host-key mode: GetInfo, the request, every check of the reply.
func (o *options) attest(ctx context.Context, c *http.Client, host, vsm *rsa.PrivateKey) (*attested, error) {
	if o.url == "" {
		return nil, fmt.Errorf("%w: --url is missing, for example http://hgs.example.test/Attestation", errUsage)
	}
	info, err := o.getInfo(ctx, c)
	if err != nil {
		return nil, err
	}
	if info.OperationMode != hgsa.ModeHostKey {
		return &attested{info: info}, fmt.Errorf("the service is in mode %s and this host can only do host key attestation", info.OperationMode)
	}
	var session hgsa.GUID
	if _, err := rand.Read(session[:]); err != nil {
		return nil, err
	}
	wanted := hgsa.AttestationResultType(o.result)
	body, err := hgsa.NewHostKeyRequest(rand.Reader, host, hgsa.HostKeyRequest{SessionId: session, Requested: []hgsa.AttestationResultType{wanted}, VSMKey: &vsm.PublicKey})
	if err != nil {
		return nil, err
	}
	status, answer, err := exchange(ctx, c, http.MethodPost, hgsa.URL(o.url, hgsa.OpHostKeyAttest, "v2.0"), hgsa.ContentType, body)
	if err != nil {
		return nil, err
	}
	reply, err := hgsa.ParseReply(status, answer)
	if err != nil {
		return &attested{info: info}, err
	}
	certs, ok := reply.(*hgsa.HealthCertificateReply)
	if !ok {
		return nil, fmt.Errorf("the service answered %s to an attestation", reply.Type())
	}
	signers, err := o.signers(ctx, c)
	if err != nil {
		return nil, err
	}
	var got []health.Certificate
	for _, t := range certs.Content {
		got = append(got, health.Certificate{Purpose: health.Purpose(t.Item1), DER: t.Item2})
	}
	now := time.Now()
	// The workstation's clock may be a little off the node's; the certificate is back-dated for hosts like that.
	window := health.Between(now.Add(-time.Minute), now.Add(time.Minute), true)
	if err := health.CheckReply(got, []health.Purpose{health.Purpose(wanted)}, &vsm.PublicKey, signers, window); err != nil {
		return nil, untrusted(err, got[0].DER, now)
	}
	return &attested{got[0].DER, info}, nil
}

func (o *options) getInfo(ctx context.Context, c *http.Client) (*hgsa.ServiceInfoReply, error) {
	status, answer, err := exchange(ctx, c, http.MethodGet, hgsa.URL(o.url, hgsa.OpGetInfo, ""), "", nil)
	if err != nil {
		return nil, err
	}
	reply, err := hgsa.ParseReply(status, answer)
	if err != nil {
		return nil, err
	}
	info, ok := reply.(*hgsa.ServiceInfoReply)
	if !ok {
		return nil, fmt.Errorf("the service answered %s to Getinfo", reply.Type())
	}
	return info, nil
}

func (o *options) signers(ctx context.Context, c *http.Client) ([]*x509.Certificate, error) {
	status, answer, err := exchange(ctx, c, http.MethodGet, hgsa.URL(o.url, hgsa.OpSigningCertificates, "v2.0"), "", nil)
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("signingCertificates answers status %d", status)
	}
	// What the JDBC driver would choke on is an error here too (hgsa.md 6.7).
	if err := hgsa.CheckSigningBody(answer); err != nil {
		return nil, err
	}
	return hgsa.DecodeSigningCertificates(answer)
}

func hostKeyAttest(o *options) error {
	host, err := o.readKey(fileHostKey)
	if err != nil {
		return err
	}
	vsm, err := o.readKey(fileVSMKey)
	if err != nil {
		return err
	}
	c, err := o.httpClient()
	if err != nil {
		return err
	}
	a, err := o.attest(context.Background(), c, host, vsm)
	o.facts["status"] = int(attestationStatus(err))
	if err != nil {
		return o.attestationFailed(err)
	}
	os.Remove(o.path(fileLastFail))
	cert, err := x509.ParseCertificate(a.certificate)
	if err != nil {
		return err
	}
	if err := os.WriteFile(o.path(fileHealth), a.certificate, 0o644); err != nil {
		return err
	}
	o.say("certificate", o.path(fileHealth), "health certificate  %s", o.path(fileHealth))
	o.say("thumbprint", sha256hex(a.certificate), "                    %s", thumbprints(a.certificate))
	o.say("notAfter", cert.NotAfter.UTC().Format(time.RFC3339), "valid               %s .. %s", cert.NotBefore.UTC().Format(time.RFC3339), cert.NotAfter.UTC().Format(time.RFC3339))
	o.say("subject", cert.Subject.CommonName, "subject             %s", cert.Subject.CommonName)
	return nil
}
