package protect

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"guardhouse/appliance/health"
	"guardhouse/appliance/kps"
	"guardhouse/appliance/policy"
)

// key is a recorded key with its parsed certificate.
type key struct {
	policy.Key
	cert *x509.Certificate
}

// keyring is what one snapshot says of keys and attestation signers. It is
// never changed, apart from the memory of signatures.
type keyring struct {
	byRef          map[policy.KeyRef]key // signing and encryption keys, enabled or not
	signing        *key                  // the enabled primary ones, or nil
	encryption     *key
	communications *key
	signers        []health.Signer
	own            map[string]bool // DER of the cluster's own attestation signers
	denied         denials
	memory         signatureMemory
}

// keyCache keeps the keyring of the newest snapshot.
type keyCache struct {
	mu    sync.Mutex
	index uint64
	ring  *keyring
}

func (c *keyCache) of(snap policy.Snapshot) *keyring {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ring == nil || c.index != snap.Index {
		c.index, c.ring = snap.Index, newKeyring(snap.State)
	}
	return c.ring
}

func newKeyring(s policy.State) *keyring {
	ring := &keyring{byRef: map[policy.KeyRef]key{}, own: map[string]bool{}, denied: newDenials(s)}
	all := time.Time{}
	if s.Service != nil && s.Service.DenyIssuedBefore != 0 {
		all = time.Unix(s.Service.DenyIssuedBefore, 0)
	}
	for _, ref := range slices.Sorted(maps.Keys(s.Keys)) {
		k, ok := parseKey(s.Keys[ref])
		if !ok {
			continue
		}
		primary := k.Primary && k.Enabled
		switch k.Role {
		case policy.RoleSigning:
			ring.byRef[ref] = k
			if primary {
				ring.signing = &k
			}
		case policy.RoleEncryption:
			ring.byRef[ref] = k
			if primary {
				ring.encryption = &k
			}
		case policy.RoleCommunications:
			if primary {
				ring.communications = &k
			}
		case policy.RoleAttestationSigner:
			if k.Enabled {
				ring.own[string(k.cert.Raw)] = true
				ring.signers = append(ring.signers, health.Signer{Certificate: k.cert, DenyIssuedBefore: later(all, k.DenyIssuedBefore), Own: true, AcceptedUntil: k.SignerAcceptedUntil()})
			}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(s.Signers)) {
		t := s.Signers[id]
		cert, err := x509.ParseCertificate(t.Certificate)
		if err != nil {
			continue
		}
		ring.signers = append(ring.signers, health.Signer{Certificate: cert, DenyIssuedBefore: later(all, t.DenyIssuedBefore)})
	}
	return ring
}

// later is the deny date that counts for a signer: the one for all or its own, in unix seconds, 0 = none.
func later(all time.Time, own int64) time.Time {
	if d := time.Unix(own, 0); own != 0 && d.After(all) {
		return d
	}
	return all
}

// parseKey gives the record with its certificate. A certificate of another key
// than the one named cannot be used for anything.
func parseKey(k policy.Key) (key, bool) {
	cert, err := x509.ParseCertificate(k.Certificate)
	if err != nil || policy.RefOf(cert.RawSubjectPublicKeyInfo) != k.Ref {
		return key{}, false
	}
	_, ok := cert.PublicKey.(*rsa.PublicKey)
	return key{k, cert}, ok
}

// opener is the wrapping of a protector that this service opens, with its keys.
type opener struct {
	wrapping   *kps.Wrapping
	encryption key
	signing    key
	forms      []string              // foreign forms of certificate signatures in the protector
	offline    policy.OfflineCaching // what the host is given beside the key; zero = nothing
}

// find gives the wrapping that this service opens, and its keys. A tenant's keys
// count only for hosts for which barred says nothing. Where there is none, why
// tells what is nearest to one.
func (ring *keyring) find(p *kps.Protector, barred func(policy.Key) string) (found opener, why string, ok bool) {
	m, why, ok := kps.Best(p.MatchKeys(func(ref policy.KeyRef) (policy.Key, bool) {
		k, known := ring.byRef[ref]
		return k.Key, known
	}, barred))
	if !ok {
		return opener{}, why, false
	}
	return opener{wrapping: m.Wrapping, encryption: ring.byRef[m.Encryption.Ref], signing: ring.byRef[m.Signing.Ref]}, "", true
}

// otherSigning are the certificates of the enabled signing keys that are not
// primary, without those that tenants brought, in the order of their references [MS-KPS 3.1.5.1.2.3].
func (ring *keyring) otherSigning() (list []*x509.Certificate) {
	for _, ref := range slices.Sorted(maps.Keys(ring.byRef)) {
		if k := ring.byRef[ref]; k.Role == policy.RoleSigning && k.Enabled && !k.Primary && k.Tenant == "" && len(list) < kps.MaxOtherSigningCertificates {
			list = append(list, k.cert)
		}
	}
	return list
}

// signatureMemory remembers the signatures of metadata.xml for one snapshot.
// RSA PKCS#1 v1.5 gives the same signature for the same bytes, so nobody can
// tell; and nobody can keep the token busy by asking for the document.
type signatureMemory struct {
	mu     sync.Mutex // held while the token signs: others wait for the same answer
	done   map[string][]byte
	failed error // of the last try, at this BootTime
	at     time.Duration
}

// failureStands is how long those who waited for the token get its last failure
// instead of a try of their own, one after the other.
const failureStands = 2 * time.Second

// remembering is a crypto.Signer that asks the token once for each digest.
type remembering struct {
	crypto.Signer
	name   policy.KeyRef
	memory *signatureMemory
}

const maxRemembered = 16

// Sign implements crypto.Signer.
func (r remembering) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	id := string(r.name) + string(digest)
	if sig, ok := r.memory.done[id]; ok {
		return sig, nil
	}
	sig, err := r.Signer.Sign(random, digest, opts)
	if err != nil {
		return nil, err
	}
	if r.memory.done == nil || len(r.memory.done) >= maxRemembered {
		r.memory.done = map[string][]byte{}
	}
	r.memory.done[id] = sig
	return sig, nil
}
