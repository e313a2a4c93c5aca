package health

import (
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"
)

// maxCertificate bounds the DER of a health certificate; a genuine one has 958
// bytes.
const maxCertificate = 16 << 10

// Reason says why a health certificate is refused; empty means it is not.
type Reason string

// The reasons. Their strings go into audit entries: never rename one.
const (
	Accepted          Reason = ""
	NoTrustedTime     Reason = "no-trusted-time"
	Unparsable        Reason = "certificate-unparsable"
	UnknownSigner     Reason = "signer-unknown"
	BadSignature      Reason = "signature-wrong"
	SignerNotValid    Reason = "signer-not-valid-now"
	NotYetValid       Reason = "certificate-not-yet-valid"
	Expired           Reason = "certificate-expired"
	IssuedBeforeDeny  Reason = "issued-before-deny-date"
	WeakKey           Reason = "key-unusable"
	WrongKeyUsage     Reason = "key-usage-wrong"
	WrongPolicy       Reason = "certificate-for-another-purpose"
	CertificateOfCA   Reason = "certificate-of-an-authority"
	CriticalExtension Reason = "critical-extension-unknown"
)

// remedies is what an administrator can do; one line for each reason.
var remedies = map[Reason]string{
	NoTrustedTime:     "wait until the node has its time, see clock status",
	Unparsable:        "the host must attest again; if it did, look at what it sends",
	UnknownSigner:     "the host must attest to this service, or trust the other attestation signer with attestation-signer trust",
	BadSignature:      "the certificate is forged or damaged; the host must attest again",
	SignerNotValid:    "renew the attestation signer",
	NotYetValid:       "compare the clocks of the service that issued it and of this node",
	Expired:           "the host must attest again; compare its clock if it just did",
	IssuedBeforeDeny:  "the host must attest again: an administrator refused older certificates",
	WeakKey:           "the host needs an RSA key of at least 2048 bits",
	WrongKeyUsage:     "the host must send the certificate of its encryption key (type 1)",
	WrongPolicy:       "the host must send the certificate of its encryption key (type 1)",
	CertificateOfCA:   "the host must send its health certificate, not the signer's",
	CriticalExtension: "the certificate demands something that this service does not know",
}

// Remedy is what an administrator can do about the reason.
func (r Reason) Remedy() string { return remedies[r] }

// Signer is an attestation signer whose health certificates count.
type Signer struct {
	Certificate *x509.Certificate
	// DenyIssuedBefore refuses certificates that were issued before it; the
	// zero time refuses none.
	DenyIssuedBefore time.Time
	// Own says that the certificates are made by Issue, whose serial numbers tell
	// the second of issue. For others notBefore has to do.
	Own bool
	// AcceptedUntil ends the signer before its certificate does; the zero time
	// does not.
	AcceptedUntil time.Time
}

// Verdict is the outcome of a check. Certificate, Key and HostID are set as far
// as the check came and mean nothing unless Reason is Accepted.
type Verdict struct {
	Reason      Reason
	Detail      string // one line for the audit; never goes to the caller
	Certificate *x509.Certificate
	Key         *rsa.PublicKey
	HostID      string // the subject's common name if it is 64 upper-case hex digits, else empty
	Signer      *x509.Certificate
	Issued      time.Time // what a deny date is compared with, see IssuedAt
}

// OK reports whether the certificate is accepted.
func (v Verdict) OK() bool { return v.Reason == Accepted }

// Err is nil, or the reason and detail as an error.
func (v Verdict) Err() error {
	if v.OK() {
		return nil
	}
	return fmt.Errorf("health certificate refused (%s): %s", v.Reason, v.Detail)
}

// Check judges a DER health certificate for a purpose (kps.md 9.4 and 14.21):
// signed by one of the signers, valid over the whole window, RSA of at least
// 2048 bits, and with a profile that allows the purpose. The cost is bounded by
// one signature check for each signer of the issuer's name.
func Check(raw []byte, purpose Purpose, signers []Signer, now Window) Verdict {
	if !now.known {
		return Verdict{Reason: NoTrustedTime, Detail: "the node does not know the time"}
	}
	if len(raw) > maxCertificate {
		return Verdict{Reason: Unparsable, Detail: fmt.Sprintf("%d bytes", len(raw))}
	}
	c, err := x509.ParseCertificate(raw)
	if err != nil {
		return Verdict{Reason: Unparsable, Detail: err.Error()}
	}
	v := Verdict{Certificate: c}
	if validHostID(c.Subject.CommonName) {
		v.HostID = c.Subject.CommonName
	}
	signer := v.findSigner(c, signers)
	if signer == nil {
		return v
	}
	v.Signer, v.Issued = signer.Certificate, c.NotBefore
	if signer.Own {
		v.Issued = IssuedAt(c)
	}
	v.Reason, v.Detail = validity(c, *signer, v.Issued, now)
	if v.OK() {
		v.Reason, v.Detail = v.profile(c, purpose)
	}
	return v
}

// findSigner sets the reason where it returns nil. Signers share one name, so
// that several may have to be tried.
func (v *Verdict) findSigner(c *x509.Certificate, signers []Signer) *Signer {
	v.Reason = UnknownSigner
	v.Detail = fmt.Sprintf("issuer %q is none of %d trusted attestation signers", c.Issuer.String(), len(signers))
	for i, s := range signers {
		if s.Certificate == nil || !issuedBy(c, s.Certificate) {
			continue
		}
		err := verify(c, s.Certificate)
		if err == nil {
			v.Reason, v.Detail = Accepted, ""
			return &signers[i]
		}
		v.Reason, v.Detail = BadSignature, err.Error()
	}
	return nil
}

// verify checks the signature only, with RSA and SHA-2 whatever the certificate
// would like.
func verify(c, signer *x509.Certificate) error {
	if _, ok := signer.PublicKey.(*rsa.PublicKey); !ok {
		return errors.New("the signer's key is not RSA")
	}
	switch c.SignatureAlgorithm {
	case x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
		x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS:
		return signer.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature)
	}
	return fmt.Errorf("signature algorithm %s is not accepted", c.SignatureAlgorithm)
}

func validity(c *x509.Certificate, s Signer, issued time.Time, now Window) (Reason, string) {
	stamp := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	span := fmt.Sprintf("valid from %s to %s, now is between %s and %s",
		stamp(c.NotBefore), stamp(c.NotAfter), stamp(now.earliest), stamp(now.latest))
	switch {
	case !now.Within(s.Certificate.NotBefore, s.Certificate.NotAfter):
		return SignerNotValid, fmt.Sprintf("the signer is valid from %s to %s", stamp(s.Certificate.NotBefore), stamp(s.Certificate.NotAfter))
	case !s.AcceptedUntil.IsZero() && now.latest.After(s.AcceptedUntil):
		return SignerNotValid, fmt.Sprintf("the signer was retired, nothing it signed can be valid after %s", stamp(s.AcceptedUntil))
	case now.earliest.Before(c.NotBefore):
		return NotYetValid, span
	case now.latest.After(c.NotAfter):
		return Expired, span
	case issued.Before(s.DenyIssuedBefore):
		return IssuedBeforeDeny, fmt.Sprintf("issued at %s, refused before %s", stamp(issued), stamp(s.DenyIssuedBefore))
	}
	return Accepted, ""
}

// profile checks what the certificate says of its key, and sets Key.
func (v *Verdict) profile(c *x509.Certificate, purpose Purpose) (Reason, string) {
	key, ok := c.PublicKey.(*rsa.PublicKey)
	if !ok || key.N.BitLen() < minKeyBits || key.N.BitLen() > maxKeyBits {
		return WeakKey, fmt.Sprintf("the key is not RSA of %d to %d bits", minKeyBits, maxKeyBits)
	}
	v.Key = key
	usage := map[Purpose]x509.KeyUsage{
		Encryption: x509.KeyUsageKeyEncipherment | x509.KeyUsageDataEncipherment,
		Signing:    x509.KeyUsageDigitalSignature,
	}[purpose]
	oids, parsed := policies(c)
	switch {
	case c.IsCA:
		return CertificateOfCA, "the certificate may itself issue certificates"
	case len(c.UnhandledCriticalExtensions) > 0:
		return CriticalExtension, c.UnhandledCriticalExtensions[0].String()
	case has(c, oidKeyUsage) && c.KeyUsage&usage == 0:
		return WrongKeyUsage, fmt.Sprintf("key usage %#x does not allow it", int(c.KeyUsage))
	case !parsed:
		return Unparsable, "the application policies do not parse"
	case !fits(oids, purpose):
		return WrongPolicy, fmt.Sprintf("application policies %v", oids)
	}
	return Accepted, ""
}

func has(c *x509.Certificate, oid asn1.ObjectIdentifier) bool {
	return slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oid) })
}

// Certificate is one item of a HealthCertificateReply.
type Certificate struct {
	Purpose Purpose
	DER     []byte
}

// CheckReply is the host's check of what it got (hgsa.md 15): one certificate
// for each wanted purpose in that order, each with the submitted key, signed by
// a certificate from signingCertificates and valid now.
func CheckReply(got []Certificate, wanted []Purpose, submitted *rsa.PublicKey, signers []*x509.Certificate, now Window) error {
	if len(got) != len(wanted) {
		return fmt.Errorf("attestation reply holds %d certificates, asked for %d", len(got), len(wanted))
	}
	trusted := make([]Signer, 0, len(signers))
	for _, s := range signers {
		trusted = append(trusted, Signer{Certificate: s})
	}
	for i, c := range got {
		if c.Purpose != wanted[i] {
			return fmt.Errorf("attestation reply: certificate %d has type %d, asked for %d", i+1, c.Purpose, wanted[i])
		}
		v := Check(c.DER, c.Purpose, trusted, now)
		if err := v.Err(); err != nil {
			return fmt.Errorf("attestation reply: certificate %d: %w", i+1, err)
		}
		if !v.Key.Equal(submitted) {
			return fmt.Errorf("attestation reply: certificate %d is for another key than the submitted one", i+1)
		}
	}
	return nil
}
