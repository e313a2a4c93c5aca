package policy

import (
	"crypto/x509"
	"encoding/asn1"
)

// CSRProfile is what a request for a certificate asks for, by the HSM that the key lies in (rows B02 to B04, B15). The profile decides
// what stands in the request only; what a key may do in the token was decided by its role when it was made.
type CSRProfile struct {
	Name       string
	Vendor     string                    // as people know the HSM
	Usage      map[KeyRole]x509.KeyUsage // of the roles that have requests
	ServerAuth bool                      // asks for the extended key usage server authentication
	Provider   string                    // on the sheet: what to write where AD CS asks for a provider
	Note       string                    // on the sheet: the vendor's fact
}

const signAndEncipher = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment

// CSRProfiles are the profiles in the order in which help shows them; the first is the default. The Luna guide asks for the key usage
// octet 0xa0 in the request, which is digital signature and key encipherment, on both certificates. The Utimaco guide's 0x13 is a
// number of Windows' key storage (decrypt and sign), none of X.509: its certificate asks for what Microsoft's guide does (B02).
var CSRProfiles = []CSRProfile{
	{Name: "generic", Vendor: "any PKCS#11 HSM", Usage: perRole(x509.KeyUsageDigitalSignature, encipherment), ServerAuth: true,
		Provider: "none: the request comes from this node, the CA sees only the public key",
		Note:     "each certificate has the usage of its role only; the service accepts this form and the one with both usages"},
	{Name: "luna", Vendor: "Thales Luna (SafeNet)", Usage: perRole(signAndEncipher, signAndEncipher|x509.KeyUsageDataEncipherment), ServerAuth: true,
		Provider: "none here; on a Windows HGS it would be the SafeNet Key Storage Provider",
		Note:     "the vendor's guide asks for key usage 0xa0 (digital signature, key encipherment); data encipherment is added for the encryption key"},
	{Name: "nshield", Vendor: "Entrust nShield (nCipher)", Usage: perRole(x509.KeyUsageDigitalSignature|encipherment, x509.KeyUsageDigitalSignature|encipherment), ServerAuth: true,
		Provider: "none here; on a Windows HGS it would be the nCipher Security World Key Storage Provider",
		Note:     "every node needs the same security world; the vendor names no key usage, so both certificates ask for what Microsoft's guide does"},
	{Name: "utimaco", Vendor: "Utimaco CryptoServer", Usage: perRole(x509.KeyUsageDigitalSignature|encipherment, x509.KeyUsageDigitalSignature|encipherment), ServerAuth: true,
		Provider: "none here; on a Windows HGS it would be the Utimaco CryptoServer Key Storage Provider",
		Note:     "the vendor's key usage 0x13 is a setting of Windows' key storage (decrypt and sign), not of the certificate"},
}

// perRole gives the signing and the encryption key their usages; a communications certificate only signs.
func perRole(signing, encryption x509.KeyUsage) map[KeyRole]x509.KeyUsage {
	return map[KeyRole]x509.KeyUsage{RoleSigning: signing, RoleEncryption: encryption, RoleCommunications: x509.KeyUsageDigitalSignature}
}

// ProfileByName finds a profile.
func ProfileByName(name string) (CSRProfile, bool) {
	for _, p := range CSRProfiles {
		if p.Name == name {
			return p, true
		}
	}
	return CSRProfile{}, false
}

// Extensions are the X.509 extensions that a request of this profile asks for: key usage (critical) and, where the profile has it,
// extended key usage server authentication. ok is false for a role whose certificates nobody else issues.
func (p CSRProfile) Extensions(role KeyRole) (usage, purposes []byte, ok bool) {
	u, ok := p.Usage[role]
	if !ok {
		return nil, nil, false
	}
	usage, err := asn1.Marshal(usageBits(u))
	if err != nil {
		return nil, nil, false
	}
	if p.ServerAuth {
		purposes, err = asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 1}})
	}
	return usage, purposes, err == nil
}

// usageBits is KeyUsage as RFC 5280 4.2.1.3 writes it: bit 0 is the highest of the first octet, zeros at the end are cut.
func usageBits(u x509.KeyUsage) asn1.BitString {
	bits := asn1.BitString{Bytes: make([]byte, 2)}
	for i := range 9 {
		if u&(1<<i) != 0 {
			bits.Bytes[i/8] |= 0x80 >> (i % 8)
			bits.BitLength = i + 1
		}
	}
	bits.Bytes = bits.Bytes[:(bits.BitLength+7)/8]
	return bits
}
