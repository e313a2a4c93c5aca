package policy

import (
	"fmt"
	"slices"
)

func (r KeyRole) valid() bool {
	for _, known := range KeyRoles {
		if r == known {
			return true
		}
	}
	return false
}

func applyKeyAdd(s *State, c Command) (Result, error) {
	b, err := decode[KeyAdd](c)
	if err != nil {
		return Result{}, err
	}
	if !b.Role.valid() {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("%.64q is not a key role", b.Role), ""}
	}
	if !validText(b.Label, MaxLabel) {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("the label is no printable text of at most %d bytes", MaxLabel), ""}
	}
	cert, err := parseCertificate(c, b.Certificate)
	if err != nil {
		return Result{}, err
	}
	ref := RefOf(cert.RawSubjectPublicKeyInfo)
	if k, ok := s.Keys[ref]; ok {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("this key is already recorded with the role %s", k.Role), "a renewed certificate is installed with key install"}
	}
	if err := checkKeyAdd(*s, c, b); err != nil {
		return Result{}, err
	}
	if len(s.Keys) >= MaxKeys {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("%d keys are recorded, the limit", MaxKeys), "remove keys that are not in use"}
	}
	if !slices.Contains(s.KeyRolesUsed(), b.Role) {
		return Result{}, &Refused{c.Kind, "this service only attests: it has no keys but attestation signers", "protecting keys is chosen at setup"}
	}
	_, has := s.PrimaryKey(b.Role)
	k := Key{Ref: ref, Role: b.Role, Label: b.Label, Certificate: b.Certificate, Enabled: true, Added: c.At, Store: b.Store, Tenant: b.Tenant}
	k.Primary = !has && !b.Spare && b.Tenant == ""
	if b.Role == RoleAttestationSigner {
		if err := startSigner(s, c, &k); err != nil {
			return Result{}, err
		}
	}
	s.Keys[ref] = k
	return Result{Message: fmt.Sprintf("%s added", k.describe()), Subject: string(ref)}, nil
}

// changeKey finds a key and applies edit, which may refuse.
func changeKey(s *State, c Command, edit func(*Key) error) (Key, error) {
	b, err := decode[KeyChange](c)
	if err != nil {
		return Key{}, err
	}
	k, ok := s.Keys[b.Ref]
	if !ok {
		return Key{}, &Refused{c.Kind, fmt.Sprintf("there is no key %.16q", b.Ref), "see key list"}
	}
	if err := edit(&k); err != nil {
		return Key{}, err
	}
	s.Keys[k.Ref] = k
	return k, nil
}

func applyKeyPrimary(s *State, c Command) (Result, error) {
	k, err := changeKey(s, c, func(k *Key) error {
		if k.Tenant != "" {
			return &Refused{c.Kind, fmt.Sprintf("the key belongs to the tenant %s: metadata would hand out its certificate as this service's guardian, and every tenant's new key protectors would depend on it", k.Tenant),
				"make a key of this service primary"}
		}
		if !k.Enabled {
			return &Refused{c.Kind, "the key is disabled", "enable it first"}
		}
		if k.Role == RoleAttestationSigner {
			if err := preferSigner(s, c, k); err != nil {
				return err
			}
		}
		for ref, other := range s.Keys {
			if other.Role == k.Role && other.Primary {
				other.Primary = false
				s.Keys[ref] = other
			}
		}
		k.Primary = true
		return nil
	})
	if err != nil {
		return Result{}, err
	}
	return Result{Message: k.describe() + " is now primary", Subject: string(k.Ref)}, nil
}

func applyKeyEnable(s *State, c Command) (Result, error) {
	k, err := changeKey(s, c, func(k *Key) error { k.Enabled = true; return nil })
	if err != nil {
		return Result{}, err
	}
	return Result{Message: k.describe() + " enabled", Subject: string(k.Ref)}, nil
}

func applyKeyDisable(s *State, c Command) (Result, error) {
	k, err := changeKey(s, c, func(k *Key) error {
		if k.Primary {
			return &Refused{c.Kind, "the key is primary", "make another key primary first"}
		}
		k.Enabled = false
		return nil
	})
	if err != nil {
		return Result{}, err
	}
	if k.Role == RoleAttestationSigner {
		succeed(s, c, k)
		return Result{Message: fmt.Sprintf("attestation signer %.16s disabled: the health certificates it signed are refused", k.Ref), Subject: string(k.Ref)}, nil
	}
	return Result{Message: k.describe() + " disabled: key protectors that only it can open are refused", Subject: string(k.Ref)}, nil
}

func applyKeyRemove(s *State, c Command) (Result, error) {
	k, err := changeKey(s, c, func(k *Key) error {
		if k.Enabled {
			return &Refused{c.Kind, "the key is enabled", "disable it first and see whether anything still needs it"}
		}
		return nil
	})
	if err != nil {
		return Result{}, err
	}
	delete(s.Keys, k.Ref)
	left := "it is still in the token"
	if k.Store == StoreSoftware {
		left = "its private half is wiped from the node"
	}
	return Result{Message: k.describe() + " removed from the records; " + left, Subject: string(k.Ref)}, nil
}

// describe names a key in messages: "signing key 5f3a..", with what makes it another kind of key.
func (k Key) describe() string {
	text := fmt.Sprintf("%s key %.16s", k.Role, k.Ref)
	if k.Store == StoreSoftware {
		text = fmt.Sprintf("%s software key %.16s", k.Role, k.Ref)
	}
	if k.Tenant != "" {
		text += " of the tenant " + k.Tenant
	}
	return text
}

// checkKeyAdd looks at what makes a key another kind than one made in the token for this service.
func checkKeyAdd(s State, c Command, b KeyAdd) error {
	guardian := b.Role == RoleSigning || b.Role == RoleEncryption
	switch {
	case b.Store != StoreToken && b.Store != StoreSoftware:
		return &Refused{c.Kind, fmt.Sprintf("%.32q is no place for a private key", b.Store), ""}
	case b.Store == StoreSoftware && b.Role == RoleAttestationSigner:
		return &Refused{c.Kind, "an attestation signer's private key never leaves the token it was made in", "use attestation-signer renew"}
	case b.Tenant == "":
		return nil
	case !guardian:
		return &Refused{c.Kind, fmt.Sprintf("a tenant brings signing and encryption keys, not a %s key", b.Role), ""}
	}
	if _, ok := s.Tenants[b.Tenant]; !ok {
		return &Refused{c.Kind, fmt.Sprintf("there is no tenant %.64q", b.Tenant), "tenant add first"}
	}
	return nil
}

// applyKeyInstall gives a key another certificate. The old one is forgotten: nothing depends on it, because key protectors name the
// public key.
func applyKeyInstall(s *State, c Command) (Result, error) {
	b, err := decode[KeyInstall](c)
	if err != nil {
		return Result{}, err
	}
	k, ok := s.Keys[b.Ref]
	if !ok {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("there is no key %.16q", b.Ref), "see key list"}
	}
	cert, err := parseCertificate(c, b.Certificate)
	if err != nil {
		return Result{}, err
	}
	if k.Role == RoleAttestationSigner {
		return Result{}, &Refused{c.Kind, "attestation signers certify themselves: clients accept only a health certificate whose signer is self-signed", "use attestation-signer renew for a new one"}
	}
	if ref := RefOf(cert.RawSubjectPublicKeyInfo); ref != k.Ref {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("the certificate is for another public key (%.16s) than this key (%.16s): key protectors that this key opens would stay closed", ref, k.Ref),
			"have the certificate issued for the request that key csr printed"}
	}
	if why := CheckKeyCertificate(k.Role, cert).Refusal(); why != nil {
		return Result{}, &Refused{c.Kind, why.What, why.Remedy}
	}
	if string(k.Certificate) == string(b.Certificate) {
		return Result{}, &Refused{c.Kind, "this certificate is installed already", "nothing to do"}
	}
	k.Certificate = b.Certificate
	s.Keys[k.Ref] = k
	return Result{Message: fmt.Sprintf("certificate %.16s installed for %s; key protectors made for the old certificate still open", Thumbprint(b.Certificate), k.describe()),
		Subject: string(k.Ref)}, nil
}
