package policy

import "encoding/hex"

// ProtectorUse is one transport key that left: which version of a key protector came, which one went out, and whose keys opened it.
// Owner and OwnerName are the tenant's own words as far as anybody checked them. Nothing may be decided by it but what people are told.
type ProtectorUse struct {
	Mark       string `json:"mark"`      // of the version that came (kps.TransportKey.Mark)
	Next       string `json:"next"`      // of the version that left
	Protector  string `json:"protector"` // SHA-256 of the document that left, the fact "egress" of the audit entry
	Owner      string `json:"owner"`     // SHA-256 of the owner's signing certificate
	OwnerName  string `json:"ownerName,omitempty"`
	Encryption KeyRef `json:"encryption"`
	Signing    KeyRef `json:"signing"`
	Host       string `json:"host"` // as in the audit: host id, or a foreign signer's name for it
	HostName   string `json:"hostName,omitempty"`
	At         Stamp  `json:"at"`
}

// MaxOwnerName bounds ProtectorUse.OwnerName and Host, in bytes.
const MaxOwnerName = 128

// Valid bounds what the public face says before it is remembered.
func (u ProtectorUse) Valid() bool {
	hexOf := func(s string, n int) bool {
		b, err := hex.DecodeString(s)
		return err == nil && len(b) == n
	}
	return hexOf(u.Mark, 16) && hexOf(u.Next, 16) && u.Mark != u.Next && hexOf(u.Protector, 32) && hexOf(u.Owner, 32) &&
		hexOf(string(u.Encryption), 32) && hexOf(string(u.Signing), 32) && len(u.OwnerName) <= MaxOwnerName && len(u.Host) <= 2*MaxOwnerName &&
		len(u.HostName) <= MaxNameLength && len(u.At.Boot) <= MaxNameLength
}
