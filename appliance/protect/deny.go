package protect

import (
	"crypto/x509"
	"strings"
	"time"

	"guardhouse/appliance/kps"
	"guardhouse/appliance/policy"
)

// denials is what the records say against single hosts, to be met by any
// health certificate: revoked hosts by their id, their host key and the keys
// that were certified for them, and what an administrator denied by name.
type denials struct {
	subjects map[string]refusal // by upper-case common name or subject
	keys     map[string]refusal // by lower-case hex SHA-256 of the SubjectPublicKeyInfo
	foreign  map[string]int64   // by host id: the deny date of foreign certificates, unix seconds
}

func newDenials(s policy.State) denials {
	d := denials{subjects: map[string]refusal{}, keys: map[string]refusal{}, foreign: map[string]int64{}}
	for _, n := range s.Denials {
		why := refusal{code: kps.CodeHealthCertificate, outcome: outcomeDenied, detail: "an administrator denied this health certificate", remedy: "host allow " + n.Name + ", if it may work again"}
		if n.Subject != "" {
			d.subjects[strings.ToUpper(n.Subject)] = why
		}
		if n.Key != "" {
			d.keys[n.Key] = why
		}
	}
	for _, h := range s.Hosts {
		if h.DenyForeignBefore != 0 {
			d.foreign[h.ID] = h.DenyForeignBefore
		}
		if !h.Revoked {
			continue
		}
		why := refusal{code: kps.CodeHealthCertificate, outcome: outcomeRevoked, detail: "the host is revoked", remedy: "host restore, if it may work again; then it must attest again", host: h.ID}
		d.subjects[h.ID] = why
		d.keys[strings.ToLower(h.ID)] = why // the id is the hash of its key
		for _, k := range h.CertifiedKeys {
			d.keys[k] = why
		}
	}
	return d
}

// find tells why a host whose certificate was accepted is denied.
func (d denials) find(c caller) (why refusal, denied bool) {
	name := strings.ToUpper(c.Certificate.Subject.CommonName)
	for _, subject := range []string{name, strings.ToUpper(c.Certificate.Subject.String())} {
		if why, denied = d.subjects[subject]; denied {
			return c.explain(why), true
		}
	}
	// Over Go's own encoding of the key, as all such hashes in the records.
	if spki, err := x509.MarshalPKIXPublicKey(c.Key); err == nil {
		if why, denied = d.keys[hexSum(spki)]; denied {
			return c.explain(why), true
		}
	}
	if before := d.foreign[name]; !c.own && before != 0 && c.Issued.Before(time.Unix(before, 0)) {
		return c.explain(refusal{code: kps.CodeHealthCertificate, outcome: outcomeHostDenied, host: name,
			detail: "the health certificate is older than an administrator allows for this host", remedy: "the host must attest again"}), true
	}
	return why, false
}

// explain adds who issued a foreign certificate, for the audit.
func (c caller) explain(why refusal) refusal {
	if !c.own {
		why.private = "the certificate is of the trusted foreign attestation signer " + thumbprint(c.Signer)[:16]
	}
	return why
}
