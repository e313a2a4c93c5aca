package policy

import (
	"bytes"
	"fmt"
	"maps"
	"strings"
)

func applyPolicySet(s *State, c Command) (Result, error) {
	b, err := decode[PolicySwitch](c)
	if err != nil {
		return Result{}, err
	}
	builtin, ok := BuiltinByName(b.Policy)
	if !ok {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("there is no policy %.64q", b.Policy), "see policy list"}
	}
	if builtin.Locked {
		if b.Enabled != nil && *b.Enabled {
			return Result{}, &Refused{c.Kind, builtin.Name + " is locked: it is always on", "nothing to do"}
		}
		return Result{}, &Refused{c.Kind, builtin.Name + " is locked: it can't be switched off, for no host", "change the host so that it passes: " + builtin.Asks}
	}
	if b.Class != FabricWide && !ValidName(b.Class) {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("%.64q is not a host class", b.Class), "see host list for classes"}
	}
	set := PolicySet{Class: b.Class, Enabled: maps.Clone(s.PolicySets[b.Class].Enabled), Changed: c.At}
	if b.Enabled == nil {
		delete(set.Enabled, builtin.Name)
	} else {
		put(&set.Enabled, builtin.Name, *b.Enabled)
	}
	if _, ok := s.PolicySets[b.Class]; !ok && len(s.PolicySets) >= MaxPolicySets {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("%d host classes have policies of their own, the limit", MaxPolicySets), "reset one with policy enable --inherit"}
	}
	put(&s.PolicySets, b.Class, set)
	if len(set.Enabled) == 0 {
		delete(s.PolicySets, b.Class)
	}
	return Result{Message: switched(s, builtin, b.Class), Subject: builtin.Name}, nil
}

// switched says what now holds.
func switched(s *State, b *Builtin, class string) string {
	on, because := s.Enabled(b, class)
	where := "all hosts"
	if class != FabricWide {
		where = "hosts of the class " + class
	}
	state := "off"
	if on {
		state = "on"
	}
	text := fmt.Sprintf("%s is %s for %s", b.Name, state, where)
	if because == "default" {
		text += ", as by default"
	}
	if on && b.Name == HgsDumpEncryptionKey {
		if encryption, _ := BuiltinByName(HgsDumpEncryption); encryption != nil {
			if applied, _ := s.Enabled(encryption, class); !applied {
				text += "; it is not applied while " + HgsDumpEncryption + " is off"
			}
		}
	}
	if b.Negative && on && len(s.DumpKeys) == 0 {
		text += "; no dump key is registered, so hosts with encrypted dumps fail"
	}
	return text
}

func applyTrustImport(s *State, c Command) (Result, error) {
	b, err := decode[TrustImport](c)
	if err != nil {
		return Result{}, err
	}
	if !ValidName(b.Vendor) || len(b.Anchors) == 0 {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("%.64q is not a valid vendor label, or no certificate came with it", b.Vendor), "use letters, digits, dots, dashes"}
	}
	known := false
	total := 0
	for _, a := range s.Anchors {
		known = known || a.Vendor == b.Vendor
		total += len(a.Certificate)
	}
	added := 0
	for _, a := range b.Anchors {
		if !bytes.HasPrefix(a.Certificate, []byte{0x30}) || len(a.Certificate) > MaxEKCertificate || !validText(a.Name, MaxNameLength) {
			return Result{}, &Refused{c.Kind, fmt.Sprintf("the certificate %.64q is no DER, or larger than %d bytes", a.Name, MaxEKCertificate), ""}
		}
		tp := Thumbprint(a.Certificate)
		if _, ok := s.Anchors[tp]; ok {
			continue
		}
		total += len(a.Certificate)
		if len(s.Anchors) >= MaxAnchors || total > MaxAnchorBytes {
			return Result{}, &Refused{c.Kind, fmt.Sprintf("%d TPM certificates are trusted, and there is no room for this one", len(s.Anchors)), "remove vendors whose TPMs you don't have"}
		}
		put(&s.Anchors, tp, Anchor{Thumbprint: tp, Vendor: b.Vendor, Root: a.Root, Name: a.Name, Certificate: a.Certificate, Added: c.At})
		added++
	}
	message := fmt.Sprintf("%d certificates of the TPM vendor %s trusted, %d were there", added, b.Vendor, len(b.Anchors)-added)
	if b.Virtual && !known && added > 0 {
		put(&s.VendorsOff, b.Vendor, true)
		message += fmt.Sprintf("; virtual TPMs are not accepted until you say so: tpm-trust vendor %s on", b.Vendor)
	}
	return Result{Message: message, Subject: b.Vendor}, nil
}

func applyTrustRemove(s *State, c Command) (Result, error) {
	b, err := decode[Removal](c)
	if err != nil {
		return Result{}, err
	}
	removed, left := 0, false
	vendor := b.Name
	for tp, a := range s.Anchors {
		if tp == strings.ToLower(b.Name) {
			vendor = a.Vendor
		}
		if tp == strings.ToLower(b.Name) || a.Vendor == b.Name {
			delete(s.Anchors, tp)
			removed++
		}
	}
	if removed == 0 {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("there is no trusted TPM certificate or vendor %.64q", b.Name), "see tpm-trust list"}
	}
	note, err := s.keepOld(c, ModeTPM, b.Phrase)
	if err != nil {
		return Result{}, err
	}
	for _, a := range s.Anchors {
		left = left || a.Vendor == vendor
	}
	if !left {
		delete(s.VendorsOff, vendor)
	}
	return Result{Message: fmt.Sprintf("%d certificates of the TPM vendor %s are no longer trusted%s", removed, vendor, note), Subject: b.Name}, nil
}

func applyTrustVendor(s *State, c Command) (Result, error) {
	b, err := decode[VendorSwitch](c)
	if err != nil {
		return Result{}, err
	}
	known := false
	for _, a := range s.Anchors {
		known = known || a.Vendor == b.Vendor
	}
	if !known {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("there is no TPM vendor %.64q", b.Vendor), "see tpm-trust list"}
	}
	if b.On {
		delete(s.VendorsOff, b.Vendor)
		return Result{Message: "the TPM vendor " + b.Vendor + " is on: its TPMs are trusted", Subject: b.Vendor}, nil
	}
	put(&s.VendorsOff, b.Vendor, true)
	return Result{Message: "the TPM vendor " + b.Vendor + " is off: hosts of version v2 with its TPMs fail", Subject: b.Vendor}, nil
}
