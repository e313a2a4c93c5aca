package policy

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
)

// Kinds of findings on a key's certificate. The first ones refuse it, the others are told only (rows B02, B03, B05).
const (
	CertificateWrongKey   = "certificate-wrong-key"   // not RSA, or too small
	CertificateWrongUsage = "certificate-wrong-usage" // its key usage forbids what the role does
	CertificateUsage      = "certificate-usage"       // allowed, but not all that Microsoft asks for
	CertificatePurpose    = "certificate-purpose"     // no extended key usage server authentication
	CertificateDigest     = "certificate-digest"      // not signed with SHA-256 or better
	CertificateAuthority  = "certificate-authority"   // says that it is a CA
)

// CertificateFinding is something about a key's certificate that differs from what rows B02 and B03 ask for.
type CertificateFinding struct {
	Problem
	Refuses bool `json:"refuses"`
}

// CertificateFindings are what CheckKeyCertificate found.
type CertificateFindings []CertificateFinding

// Refusal is the first finding for which the certificate is refused; nil where there is none.
func (f CertificateFindings) Refusal() *Problem {
	for i := range f {
		if f[i].Refuses {
			return &f[i].Problem
		}
	}
	return nil
}

// usageNames are the key usages that guardians' certificates have, in the words of X.509.
var usageNames = []struct {
	bit  x509.KeyUsage
	name string
}{{x509.KeyUsageDigitalSignature, "digital signature"}, {x509.KeyUsageContentCommitment, "content commitment"}, {x509.KeyUsageKeyEncipherment, "key encipherment"},
	{x509.KeyUsageDataEncipherment, "data encipherment"}, {x509.KeyUsageKeyAgreement, "key agreement"}, {x509.KeyUsageCertSign, "certificate signing"},
	{x509.KeyUsageCRLSign, "CRL signing"}, {x509.KeyUsageEncipherOnly, "encipher only"}, {x509.KeyUsageDecipherOnly, "decipher only"}}

// KeyUsageText names key usages; "none" for 0.
func KeyUsageText(u x509.KeyUsage) string {
	var names []string
	for _, n := range usageNames {
		if u&n.bit != 0 {
			names = append(names, n.name)
		}
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

const encipherment = x509.KeyUsageKeyEncipherment | x509.KeyUsageDataEncipherment

// CheckKeyCertificate compares a certificate with what the role of its key needs: RSA of 2048 bits or more and a key usage that does not
// forbid the role's work refuse it; the rest of B02 and B03 is only told, because HGS takes certificates as containers of keys. Its
// dates are no finding here (B05), and neither is who issued it.
func CheckKeyCertificate(role KeyRole, cert *x509.Certificate) CertificateFindings {
	var f CertificateFindings
	add := func(refuses bool, kind, remedy, format string, args ...any) {
		f = append(f, CertificateFinding{Problem{Kind: kind, What: fmt.Sprintf(format, args...), Remedy: remedy}, refuses})
	}
	if err := usableRSA(cert.PublicKey); err != nil {
		add(true, CertificateWrongKey, "use an RSA key of at least 2048 bits", "the certificate can't be used: %v", err)
	}
	const reissue = "have it issued for the request of key csr with the template of key csr --sheet"
	u := cert.KeyUsage
	switch {
	case u == 0:
		add(false, CertificateUsage, "none needed", "the certificate has no key usage, so it allows everything")
	case role == RoleEncryption && u&encipherment == 0:
		add(true, CertificateWrongUsage, reissue, "the key usage of the certificate (%s) forbids encryption: an encryption key needs data encipherment or key encipherment", KeyUsageText(u))
	case role != RoleEncryption && u&x509.KeyUsageDigitalSignature == 0:
		add(true, CertificateWrongUsage, reissue, "the key usage of the certificate (%s) forbids signatures: a %s key needs digital signature", KeyUsageText(u), role)
	case role == RoleEncryption && u&x509.KeyUsageDataEncipherment == 0:
		add(false, CertificateUsage, "none needed here; Microsoft's guide asks for data encipherment too", "the key usage of the certificate (%s) has no data encipherment", KeyUsageText(u))
	}
	if len(cert.ExtKeyUsage)+len(cert.UnknownExtKeyUsage) > 0 && !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageServerAuth) && !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageAny) {
		add(false, CertificatePurpose, "none needed here; Microsoft's guide asks for server authentication", "the certificate's purposes (extended key usage) do not include server authentication")
	}
	switch cert.SignatureAlgorithm {
	case x509.MD5WithRSA, x509.SHA1WithRSA, x509.ECDSAWithSHA1, x509.DSAWithSHA1:
		add(false, CertificateDigest, "ask the CA for SHA-256 at the next renewal", "the certificate is signed with %s; SHA-256 is recommended", cert.SignatureAlgorithm)
	}
	if cert.IsCA {
		add(false, CertificateAuthority, "none needed; ask for an end entity's certificate at the next renewal", "the certificate says that it is a certification authority's")
	}
	return f
}
