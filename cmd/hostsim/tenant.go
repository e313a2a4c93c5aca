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
	"strings"
	"time"

	"guardhouse/appliance/health"
	"guardhouse/appliance/kps"
)

// Files of an owner in --dir.
const (
	fileOwnerSigning       = "owner-signing"
	fileOwnerEncryption    = "owner-encryption"
	suffixKey, suffixCer   = ".key", ".cer"
	metadataPath           = "/service/metadata/2014-07/metadata.xml"
	rollPath               = "/service/v2.0/rolltransportkey"
	rollPathV1             = "/service/v1.0/rolltransportkey"
	contentTypeXML         = "application/xml; charset=utf-8"
	foreignName            = "foreign-signer"
	subjectOwnerSigning    = "Shielded VM Signing Certificate (%s) (hostsim)"
	subjectOwnerEncryption = "Shielded VM Encryption Certificate (%s) (hostsim)"
)

func guardianNew(o *options) error {
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return err
	}
	for _, part := range []struct {
		file, subject string
		usage         x509.KeyUsage
	}{
		{fileOwnerSigning, subjectOwnerSigning, x509.KeyUsageDigitalSignature},
		{fileOwnerEncryption, subjectOwnerEncryption, x509.KeyUsageDataEncipherment | x509.KeyUsageKeyEncipherment},
	} {
		k, err := newKey()
		if err != nil {
			return err
		}
		der, err := selfSigned(fmt.Sprintf(part.subject, o.name), k, part.usage)
		if err != nil {
			return err
		}
		if err := errors.Join(o.writeKey(part.file+suffixKey, k), os.WriteFile(o.path(part.file+suffixCer), der, 0o644)); err != nil {
			return err
		}
		o.say(part.file, sha256hex(der), "%-17s %s", part.file, thumbprints(der))
	}
	return nil
}

func (o *options) owner() (kps.Owner, error) {
	sk, err1 := o.readKey(fileOwnerSigning + suffixKey)
	ek, err2 := o.readKey(fileOwnerEncryption + suffixKey)
	sc, err3 := o.readCertificate(fileOwnerSigning + suffixCer)
	ec, err4 := o.readCertificate(fileOwnerEncryption + suffixCer)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return kps.Owner{}, err
	}
	return kps.Owner{SigningCertificate: sc, EncryptionCertificate: ec, Signer: sk, Decrypter: kps.MemoryKey{Key: ek}}, nil
}

// readMetadata takes a file or a URL; a base that ends in /KeyProtection gets the protocol's path appended.
func (o *options) readMetadata(ctx context.Context) ([]byte, error) {
	if !strings.Contains(o.metadata, "://") {
		return os.ReadFile(o.metadata)
	}
	url := o.metadata
	if strings.HasSuffix(strings.ToLower(strings.TrimRight(url, "/")), "/keyprotection") {
		url = strings.TrimRight(url, "/") + metadataPath
	}
	c, err := o.httpClient()
	if err != nil {
		return nil, err
	}
	status, body, err := exchange(ctx, c, http.MethodGet, url, "", nil)
	if err != nil {
		return nil, err
	}
	if status != http.StatusOK {
		return nil, serviceError(status, body)
	}
	return body, nil
}

// serviceError reads the Error document of a refusal; a body that is none (an ASP.NET page, a proxy's) is tolerated (kps.md 4.3).
func serviceError(status int, body []byte) error {
	if e, err := kps.ParseError(body); err == nil {
		return e
	}
	return fmt.Errorf("the service answers status %d without an Error document", status)
}

func protectorNew(o *options) error {
	owner, err := o.owner()
	if err != nil {
		return err
	}
	guardians, err := o.guardians(context.Background())
	if err != nil {
		return err
	}
	if len(guardians) == 0 {
		return fmt.Errorf("%w: name a guardian with --guardian or --metadata", errUsage)
	}
	p, tk, err := kps.New(owner, guardians, rand.Reader)
	if err != nil {
		return err
	}
	defer kps.Wipe(tk)
	if err := os.WriteFile(o.out, p.Bytes(), 0o644); err != nil {
		return err
	}
	o.say("protector", sha256hex(p.Bytes()), "key protector                %s  %s", o.out, sha256hex(p.Bytes()))
	o.say("transportKey", sha256hex(tk), "transport key, SHA-256       %s", sha256hex(tk))
	return nil
}

// roll is the host's side of rolltransportkey with every check of kps.md 10.
func (o *options) roll(ctx context.Context, c *http.Client, protector, certificate []byte, vsm *rsa.PrivateKey) (*kps.Rolled, error) {
	if o.kps != "" {
		o.url = o.kps
	}
	if o.url == "" {
		return nil, fmt.Errorf("%w: --url is missing, for example http://hgs.example.test/KeyProtection", errUsage)
	}
	req := kps.NewRequest(protector, certificate)
	base := strings.TrimRight(o.url, "/")
	status, body, err := o.persist(ctx, c, http.MethodPost, base+rollPath, contentTypeXML, req.Marshal())
	if err == nil && status == http.StatusNotFound {
		status, body, err = o.persist(ctx, c, http.MethodPost, base+rollPathV1, contentTypeXML, req.Marshal())
	}
	if err != nil {
		return nil, err
	}
	o.facts["httpStatus"] = status
	if status != http.StatusOK || len(body) == 0 {
		err := serviceError(status, body)
		var doc *kps.ErrorDocument
		if errors.As(err, &doc) {
			o.facts["code"] = string(doc.Code)
		}
		return nil, err
	}
	resp, err := kps.ParseResponse(body)
	if err != nil {
		return nil, err
	}
	return req.OpenReply(ctx, resp, kps.MemoryKey{Key: vsm})
}

func protectorRoll(o *options) error {
	protector, err := os.ReadFile(o.in)
	if err != nil {
		return err
	}
	if o.flip >= 0 {
		if o.flip >= len(protector) {
			return fmt.Errorf("%w: the key protector has only %d bytes", errUsage, len(protector))
		}
		protector[o.flip] ^= 1
	}
	vsm, err := o.readKey(fileVSMKey)
	if err != nil {
		return err
	}
	var certificate []byte
	if o.health != "none" {
		file := o.health
		if file == "" {
			file = o.path(fileHealth)
		}
		if certificate, err = os.ReadFile(file); err != nil {
			return fmt.Errorf("%w (run host-key attest first)", err)
		}
	}
	c, err := o.httpClient()
	if err != nil {
		return err
	}
	rolled, err := o.roll(context.Background(), c, protector, certificate, vsm)
	if err != nil {
		return err
	}
	defer rolled.Wipe()
	egress := rolled.Egress.Bytes()
	if o.out != "" {
		if err := os.WriteFile(o.out, egress, 0o644); err != nil {
			return err
		}
	}
	o.say("ingressKey", sha256hex(rolled.IngressKey), "transport key out, SHA-256   %s", sha256hex(rolled.IngressKey))
	o.say("egressKey", sha256hex(rolled.EgressKey), "new transport key, SHA-256   %s", sha256hex(rolled.EgressKey))
	o.say("ingress", sha256hex(protector), "key protector sent           %s", sha256hex(protector))
	o.say("egress", sha256hex(egress), "key protector returned       %s", sha256hex(egress))
	return nil
}

func protectorOpen(o *options) error {
	owner, err := o.owner()
	if err != nil {
		return err
	}
	raw, err := os.ReadFile(o.in)
	if err != nil {
		return err
	}
	p, err := kps.ParseProtector(raw)
	if err != nil {
		return err
	}
	tk, err := p.Open(context.Background(), owner, rand.Reader)
	if err != nil {
		return err
	}
	defer kps.Wipe(tk)
	o.say("transportKey", sha256hex(tk), "transport key, SHA-256  %s", sha256hex(tk))
	return nil
}

func protectorInspect(o *options) error {
	raw, err := os.ReadFile(o.in)
	if err != nil {
		return err
	}
	p, err := kps.ParseProtector(raw)
	if err != nil {
		return err
	}
	s := p.Summary()
	o.say("summary", s, "key protector   %s (%d bytes)\nverified        %s\nsigned by       wrapping %d\noffline unwraps %d", s.SHA256, s.Bytes,
		map[bool]string{true: "yes", false: "no: " + s.Problem}[s.Problem == ""], s.SignedBy, s.MaxOfflineUnwraps)
	if o.json {
		return nil
	}
	for i, w := range s.Wrappings {
		role := fmt.Sprintf("granted by wrapping %d", w.Parent)
		if w.Owner {
			role = "the owner"
		}
		fmt.Printf("wrapping %d: %s\n", w.ID, role)
		fmt.Printf("  signing     %s\n              %s\n", w.Signing, thumbprints(p.Wrappings[i].SigningCertificate.Raw))
		fmt.Printf("  encryption  %s\n              %s\n", w.Encryption, thumbprints(p.Wrappings[i].EncryptionCertificate.Raw))
		fmt.Printf("  wrapped by  %s\n", w.Algorithm)
	}
	return nil
}

// certificateNew makes health certificates that a service must refuse. "signer" makes a foreign attestation signer in --dir; "foreign"
// and "expired" are signed by it, so that registering the signer shows that expiry, not the signer, is what refuses the second.
func certificateNew(o *options) error {
	vsm, err := o.readKey(fileVSMKey)
	if err != nil && o.kind != "signer" {
		return err
	}
	var der []byte
	now := time.Now()
	switch o.kind {
	case "self":
		der, err = selfSigned(strings.Repeat("0", 64), vsm, x509.KeyUsageKeyEncipherment)
	case "signer":
		return o.foreignSigner(now)
	case "foreign", "expired":
		var signer *x509.Certificate
		var key *rsa.PrivateKey
		signer, err = o.readCertificate(foreignName + suffixCer)
		if err != nil {
			return err
		}
		if key, err = o.readKey(foreignName + suffixKey); err != nil {
			return err
		}
		at := now
		if o.kind == "expired" {
			at = now.Add(-48 * time.Hour)
		}
		der, err = health.Issue(rand.Reader, health.Between(at, at, true), health.Order{HostID: strings.Repeat("F", 64), Purpose: health.Encryption,
			Key: &vsm.PublicKey, Life: health.DefaultLife}, signer, key)
	default:
		return fmt.Errorf("%w: --kind is self, signer, foreign or expired", errUsage)
	}
	if err != nil {
		return err
	}
	if err := os.WriteFile(o.out, der, 0o644); err != nil {
		return err
	}
	o.say("certificate", o.out, "%s  %s", o.out, thumbprints(der))
	return nil
}

func (o *options) foreignSigner(now time.Time) error {
	k, err := newKey()
	if err != nil {
		return err
	}
	// Back-dated by a year, so that an expired health certificate lies within the signer's own validity.
	past := now.AddDate(-1, 0, 0)
	der, err := health.NewSignerCertificate(rand.Reader, health.Between(past, past, true), "Foreign Attestation Service", 3*365*24*time.Hour, k)
	if err != nil {
		return err
	}
	if err := errors.Join(o.writeKey(foreignName+suffixKey, k), os.WriteFile(o.path(foreignName+suffixCer), der, 0o644)); err != nil {
		return err
	}
	o.say("certificate", o.path(foreignName+suffixCer), "%s  %s", o.path(foreignName+suffixCer), thumbprints(der))
	return nil
}
