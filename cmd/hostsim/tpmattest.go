package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/health"
	"guardhouse/appliance/hgsa"
)

// maxRounds bounds how many contexts of one attestation a host answers (hgsa.md 7.3).
const maxRounds = 8

// conversation is one attestation in TPM mode, from the host's side.
type conversation struct {
	host    *tpmHost
	device  *device
	client  *http.Client
	log     []byte
	version string // "v1.0" names the key, "v2.0" its certificate
	session hgsa.GUID
	own     []byte // this TPM's endorsement key where the host claims another
	rounds  int
	// meddle changes an answer before it is sent, for tests; nil: nothing.
	meddle func(round int, context []byte) []byte
}

var wantedTypes = []hgsa.AttestationResultType{hgsa.VSMIdentityEncryptionKeyCertificate, hgsa.VSMIdentitySigningKeyCertificate}

// request is the first message without a context, and the following ones with it.
func (c *conversation) request(context []byte) []byte {
	base := hgsa.ProtocolRequestBase{SessionId: c.session}
	if c.version == "v2.0" {
		r := &hgsa.AttestationRequest{ProtocolRequestBase: base, RequestedContent: wantedTypes,
			ProvidedContent: []hgsa.TupleOfAttestationProvidedContentTypebase64Binary{{Item1: hgsa.EndorsementKeyCertificate, Item2: c.host.certificate.Original}}}
		if context != nil {
			r.ProvidedContent = append(r.ProvidedContent, hgsa.TupleOfAttestationProvidedContentTypebase64Binary{Item1: hgsa.RtpmContext, Item2: context})
		}
		return hgsa.EncodeRequest(r, hgsa.Style{})
	}
	tpm := hgsa.TpmRequest{ProtocolRequestBase: base, RequestedContent: wantedTypes, RtpmPublicEndorsementKey: c.host.ek}
	if context == nil {
		return hgsa.EncodeRequest(&hgsa.TpmRequestInitial{TpmRequest: tpm}, hgsa.Style{})
	}
	return hgsa.EncodeRequest(&hgsa.TpmRequestContinue{TpmRequest: tpm, RtpmNewContext: context}, hgsa.Style{})
}

// run answers contexts until there is a certificate or an error.
func (c *conversation) run(ctx context.Context) (*hgsa.HealthCertificateReply, error) {
	defer c.device.tidy()
	if _, err := rand.Read(c.session[:]); err != nil {
		return nil, err
	}
	var answer []byte
	for c.rounds = 0; ; c.rounds++ {
		status, body, err := exchange(ctx, c.client, http.MethodPost, hgsa.URL(c.host.o.url, hgsa.OpAttest, c.version), hgsa.ContentType, c.request(answer))
		if err != nil {
			return nil, err
		}
		reply, err := hgsa.ParseReply(status, body)
		if err != nil {
			return nil, err
		}
		switch r := reply.(type) {
		case *hgsa.HealthCertificateReply:
			return r, nil
		case *hgsa.TpmReplyContinue:
			if c.rounds == maxRounds {
				return nil, fmt.Errorf("the service asked the TPM more than %d times", maxRounds)
			}
			if answer, err = c.answer(r.RtpmActiveContext); err != nil {
				return nil, err
			}
			if c.meddle != nil {
				answer = c.meddle(c.rounds, answer)
			}
		default:
			return nil, fmt.Errorf("the service answered %s to an attestation", reply.Type())
		}
	}
}

// answer runs the commands of a context, all of them or none: only the five that a service may ask for.
func (c *conversation) answer(context []byte) ([]byte, error) {
	order, err := evidence.PrivateCodec.DecodeOrder(context)
	if err != nil {
		return nil, err
	}
	for _, cmd := range order.Commands {
		if err := evidence.CheckCommand(cmd); err != nil {
			return nil, fmt.Errorf("the service's command is not run: %w", err)
		}
	}
	a := &evidence.Answer{State: order.State}
	if order.WantLog {
		a.Device, a.Log = &evidence.DeviceInfo{Version: uint32(hgsa.TPM_VERSION_20), Interface: uint32(hgsa.TPM_IFTYPE_EMULATOR), ImplementedBy: 1}, c.log
	}
	for _, cmd := range order.Commands {
		r, err := c.device.Send(cmd)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errTPM, err)
		}
		if c.own != nil {
			r = bytes.ReplaceAll(r, c.own, c.host.ek)
		}
		a.Responses = append(a.Responses, r)
	}
	return evidence.PrivateCodec.EncodeAnswer(a)
}

// checkCertificates is hgsa.md 15: one certificate for each wanted type, for the very key that the host's log shows, by a published signer.
func (h *tpmHost) checkCertificates(reply *hgsa.HealthCertificateReply, signers []*x509.Certificate) ([][]byte, error) {
	if len(reply.Content) != len(wantedTypes) {
		return nil, fmt.Errorf("the service gave %d certificates for %d", len(reply.Content), len(wantedTypes))
	}
	now := time.Now()
	window := health.Between(now.Add(-time.Minute), now.Add(time.Minute), true) // as in host key mode
	var all [][]byte
	for i, key := range []*rsa.PublicKey{&h.vsm.PublicKey, &h.vsmSigning.PublicKey} {
		got := []health.Certificate{{Purpose: health.Purpose(reply.Content[i].Item1), DER: reply.Content[i].Item2}}
		if err := health.CheckReply(got, []health.Purpose{health.Purpose(wantedTypes[i])}, key, signers, window); err != nil {
			return nil, untrusted(err, got[0].DER, now)
		}
		all = append(all, got[0].DER)
	}
	return all, nil
}

// attestTPM runs the whole client side of hgsa.md 7 in TPM mode: v2.0 if the key is certified, then v1.0 if that is refused.
func (h *tpmHost) attestTPM(ctx context.Context, c *conversation) ([][]byte, error) {
	info, err := h.o.getInfo(ctx, c.client)
	if err != nil {
		return nil, err
	}
	if info.OperationMode != hgsa.ModeTPM {
		return nil, fmt.Errorf("the service is in mode %s and this host attests with its TPM; on the node: service set --mode TPM", info.OperationMode)
	}
	versions := []string{"v2.0", "v1.0"}
	switch {
	case h.o.version != "":
		versions = []string{h.o.version}
	case h.certificate == nil:
		versions = versions[1:]
	}
	var reply *hgsa.HealthCertificateReply
	for _, c.version = range versions {
		if c.version == "v2.0" && h.certificate == nil {
			return nil, fmt.Errorf("v2.0 needs a certificate of the endorsement key: put it into %s", h.o.path(fileEKCertificate))
		}
		var failure hgsa.Failure
		if reply, err = c.run(ctx); !errors.As(err, &failure) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	signers, err := h.o.signers(ctx, c.client)
	if err != nil {
		return nil, err
	}
	return h.checkCertificates(reply, signers)
}

// converse opens the TPM, starts the host unless --log says that it has started, and prepares an attestation.
func (h *tpmHost) converse(m misbehaviour) (*conversation, error) {
	client, err := h.o.httpClient()
	if err != nil {
		return nil, err
	}
	d, err := openTPM(h.o.tpm)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errTPM, err)
	}
	c := &conversation{host: h, device: d, client: client}
	if h.o.log != "" {
		c.log, err = os.ReadFile(h.o.log)
	} else {
		c.log, err = h.powerOn(d, m)
	}
	var own []byte
	if err == nil {
		if own, err = d.endorsementKey(); err != nil {
			err = fmt.Errorf("%w: %w", errTPM, err)
		}
	}
	if err == nil && !bytes.Equal(own, h.ek) {
		if c.own = own; !m.otherEK {
			err = errors.New("this TPM has another endorsement key than the host in --dir: hostsim tpm new")
		}
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	return c, nil
}

func tpmAttest(o *options) error {
	h, err := o.tpmHost()
	if err != nil {
		return err
	}
	m, err := findMisbehaviour(o.misbehave)
	if err != nil {
		return err
	}
	if o.url == "" {
		return fmt.Errorf("%w: --url is missing, for example http://hgs.example.test/Attestation", errUsage)
	}
	c, err := h.converse(m)
	if errors.Is(err, errTPM) && !errors.Is(err, errUsage) {
		return o.attestationFailed(err)
	}
	if err != nil {
		return err
	}
	defer c.device.Close()
	certificates, err := h.attestTPM(context.Background(), c)
	o.facts["status"] = int(attestationStatus(err))
	if err != nil {
		return o.attestationFailed(err)
	}
	os.Remove(o.path(fileLastFail))
	for i, name := range []string{fileHealth, fileHealthSigning} {
		if err := os.WriteFile(o.path(name), certificates[i], 0o644); err != nil {
			return err
		}
	}
	cert, err := x509.ParseCertificate(certificates[0])
	if err != nil {
		return err
	}
	o.say("version", c.version, "attested            %s, the TPM was asked %d times", c.version, c.rounds)
	o.say("rounds", c.rounds, "health certificates %s and %s", o.path(fileHealth), o.path(fileHealthSigning))
	o.say("thumbprint", sha256hex(certificates[0]), "                    %s", thumbprints(certificates[0]))
	o.say("notAfter", cert.NotAfter.UTC().Format(time.RFC3339), "valid               %s .. %s", cert.NotBefore.UTC().Format(time.RFC3339), cert.NotAfter.UTC().Format(time.RFC3339))
	o.say("subject", cert.Subject.CommonName, "subject             %s", cert.Subject.CommonName)
	return nil
}

// attestationFailed keeps the status for hostsim status and tells the reply, with the policies that it names.
func (o *options) attestationFailed(err error) error {
	o.facts["subStatus"] = subStatus(err)
	_ = os.WriteFile(o.path(fileLastFail), []byte(attestationStatus(err).String()+" "+subStatus(err)+"\n"), 0o600) // the failure itself is told anyway
	var policies *hgsa.PolicyEvaluationErrorReply
	if errors.As(err, &policies) {
		reasons := []string{}
		for _, r := range policies.Reasons {
			reasons = append(reasons, r.Reason.String())
		}
		o.facts["reasons"] = reasons
	}
	var f hgsa.Failure
	if errors.As(err, &f) {
		o.facts["reply"] = f.Type()
		return fmt.Errorf("%s: %w", f.Type(), err)
	}
	return err
}
