package kps

import (
	"fmt"

	"guardhouse/appliance/policy"
)

// KeyMatch is what a service's records say of one wrapping.
type KeyMatch struct {
	Wrapping *Wrapping
	// The recorded keys that are those of the wrapping's certificates; nil where it is not one of the service's of that role.
	Encryption, Signing *policy.Key
	// Opens says that the service opens this wrapping; else Why tells why not. Whether its certificates are the recorded ones does not
	// matter: they are renewed with the same key [kps.md 9.2].
	Opens bool
	Why   string
}

// Primary reports whether both keys are the primary ones of their role.
func (m KeyMatch) Primary() bool { return m.Opens && m.Encryption.Primary && m.Signing.Primary }

// MatchKeys compares every wrapping, by public key, with the keys that lookup knows, enabled or not. barred tells why a tenant's key does
// not serve whoever asks, or nothing.
func (p *Protector) MatchKeys(lookup func(policy.KeyRef) (policy.Key, bool), barred func(policy.Key) string) []KeyMatch {
	find := func(ref string, role policy.KeyRole) *policy.Key {
		k, ok := lookup(policy.KeyRef(ref))
		if !ok || k.Role != role {
			return nil
		}
		return &k
	}
	list := make([]KeyMatch, 0, len(p.Wrappings))
	for i := range p.Wrappings {
		w := &p.Wrappings[i]
		m := KeyMatch{Wrapping: w, Encryption: find(KeyID(w.EncryptionCertificate), policy.RoleEncryption),
			Signing: find(KeyID(w.SigningCertificate), policy.RoleSigning)}
		m.Why = m.why(barred)
		m.Opens = m.Why == ""
		list = append(list, m)
	}
	return list
}

func (m KeyMatch) why(barred func(policy.Key) string) string {
	id := m.Wrapping.ID
	switch {
	case m.Encryption == nil && m.Signing == nil:
		return "it is not for a key of this service"
	case m.Encryption == nil:
		return fmt.Sprintf("wrapping %d has our signing key %.16s with an encryption key that is not ours", id, m.Signing.Ref)
	case m.Signing == nil:
		return fmt.Sprintf("wrapping %d has our encryption key %.16s with a signing key that is not ours", id, m.Encryption.Ref)
	case m.Wrapping.IsOwner():
		return fmt.Sprintf("this service is the owner in wrapping %d, not a guardian", id)
	case !m.Encryption.Enabled:
		return fmt.Sprintf("wrapping %d is for encryption key %.16s, which is disabled", id, m.Encryption.Ref)
	case !m.Signing.Enabled:
		return fmt.Sprintf("wrapping %d is for signing key %.16s, which is disabled", id, m.Signing.Ref)
	case m.Encryption.Tenant != m.Signing.Tenant:
		return fmt.Sprintf("wrapping %d joins a tenant's key with a key that is not that tenant's", id)
	}
	if why := barred(*m.Encryption); why != "" {
		return fmt.Sprintf("wrapping %d: %s", id, why)
	}
	return ""
}

// NotForUs is the reason where no wrapping has a key of the service.
const NotForUs = "none of its wrappings is for a key of this service"

// Best is the match that opens the protector, the pair of primary keys before others. Where ok is false, why tells what is nearest to
// one.
func Best(list []KeyMatch) (best KeyMatch, why string, ok bool) {
	why = NotForUs
	for _, m := range list {
		switch {
		case m.Opens && (!ok || m.Primary()):
			best, ok = m, true
		case !m.Opens && (m.Encryption != nil || m.Signing != nil):
			why = m.Why
		}
	}
	return best, why, ok
}
