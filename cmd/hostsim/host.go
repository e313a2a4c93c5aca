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
	"slices"
	"strings"
	"time"

	"guardhouse/appliance/health"
	"guardhouse/appliance/hgsa"
	"guardhouse/appliance/policy"
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
		return nil, fmt.Errorf("the service's answer is not to be trusted: %w", err)
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

// clientStatus is AttestationStatus as a Windows host shows it (hgs-features.md F01).
type clientStatus int

func (s clientStatus) String() string {
	switch s {
	case 0:
		return "NotConfigured"
	case 1:
		return "Unknown"
	case 100:
		return "Passed"
	case 200:
		return "Expired"
	case 300:
		return "TransientError"
	case 301:
		return "UnauthorizedHost"
	case 302:
		return "TpmError"
	case 303:
		return "InsecureHostConfiguration"
	}
	return fmt.Sprint(int(s))
}

// attestationStatus maps an outcome to what a Windows host shows (hgsa.md 7.4).
func attestationStatus(err error) clientStatus {
	if err == nil {
		return 100
	}
	var (
		unauthorized *hgsa.UnauthorizedErrorReply
		policy       *hgsa.PolicyEvaluationErrorReply
		rtpm         *hgsa.RtpmErrorReply
		tcg          *hgsa.TcgLogValidationErrorReply
		vsm          *hgsa.VirtualSecureModeErrorReply
	)
	switch {
	case errors.As(err, &unauthorized):
		return 301
	case errors.As(err, &rtpm):
		return 302
	case errors.As(err, &policy), errors.As(err, &tcg), errors.As(err, &vsm):
		return 303
	}
	return 300
}

// subStatus names what the failure is about, in the words of a Windows host (hgs-features.md F02).
func subStatus(err error) string {
	var (
		policies *hgsa.PolicyEvaluationErrorReply
		tcg      *hgsa.TcgLogValidationErrorReply
		vsm      *hgsa.VirtualSecureModeErrorReply
		names    []string
	)
	switch {
	case errors.As(err, &policies):
		for _, r := range policies.Reasons {
			if b, ok := policy.BuiltinByName(r.Reason.String()); ok && !slices.Contains(names, b.SubStatus) {
				names = append(names, b.SubStatus)
			}
		}
	case errors.As(err, &tcg):
		return "TcgLogVerification"
	case errors.As(err, &vsm):
		return "VirtualSecureMode"
	}
	if len(names) == 0 {
		return "NoInformation"
	}
	return strings.Join(names, ", ")
}

// status prints Get-HgsClientConfiguration's fields in its words and order.
func status(o *options) error {
	st := clientStatus(0)
	sub := "NoInformation"
	mode := "Local"
	op := "None"
	if o.url != "" {
		mode, st = "HostGuardianService", 1
		c, err := o.httpClient()
		if err != nil {
			return err
		}
		info, err := o.getInfo(context.Background(), c)
		if err != nil {
			st = 300
		} else {
			op = info.OperationMode.String()
		}
	}
	if cert, err := o.readCertificate(fileHealth); err == nil && o.url != "" {
		st = 100
		if time.Now().After(cert.NotAfter) {
			st = 200
		}
	}
	if b, err := os.ReadFile(o.path(fileLastFail)); err == nil {
		name, rest, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
		for _, s := range []clientStatus{300, 301, 302, 303} {
			if name == s.String() {
				st = s
			}
		}
		if rest != "" {
			sub = rest
		}
	}
	o.say("IsHostGuarded", st == 100, "IsHostGuarded            : %t", st == 100)
	o.say("Mode", mode, "Mode                     : %s", mode)
	o.say("KeyProtectionServerUrl", o.kps, "KeyProtectionServerUrl   : %s", o.kps)
	o.say("AttestationServerUrl", o.url, "AttestationServerUrl     : %s", o.url)
	o.say("AttestationOperationMode", op, "AttestationOperationMode : %s", op)
	o.say("AttestationStatus", st.String(), "AttestationStatus        : %s", st)
	o.say("AttestationSubstatus", sub, "AttestationSubstatus     : %s", sub)
	return nil
}
