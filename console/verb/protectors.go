package verb

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"strings"

	"guardhouse/appliance/kps"
	"guardhouse/appliance/policy"
)

func protectorVerbs() []Verb {
	return []Verb{
		{Name: "protector inspect", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: protectorInspect,
			Stdin: "a key protector: the file, or base64 of it",
			Help:  "explain a key protector: owner, guardians, our key in it", Example: "protector inspect < vm1.protector",
			More: "On a host: (Get-VMKeyProtector -VMName vm1) gives the bytes. It shows who owns the key protector, which of this service's keys opens it, " +
				"or why none does. Nothing is decrypted, so it can't tell whether the transport key inside is intact: only a roll does.",
			Replaces: []string{"ConvertTo-HgsKeyProtector"}},
	}
}

// PartyValue is one of the two certificates of a wrapping in --json. Ref is set where its key is one of this service's.
type PartyValue struct {
	Subject string        `json:"subject"`
	SHA1    string        `json:"sha1"`
	SHA256  string        `json:"sha256"`
	Key     string        `json:"key"` // SHA-256 of the SubjectPublicKeyInfo
	Ref     policy.KeyRef `json:"ref,omitempty"`
	Enabled bool          `json:"enabled,omitempty"`
	Primary bool          `json:"primary,omitempty"`
}

// WrappingValue is one wrapping in --json.
type WrappingValue struct {
	ID         uint32     `json:"id"`
	Parent     uint32     `json:"parent"`
	Owner      bool       `json:"owner"`
	Signing    PartyValue `json:"signing"`
	Encryption PartyValue `json:"encryption"`
	Algorithm  string     `json:"algorithm"`
	Opens      bool       `json:"opens"`
	Why        string     `json:"why,omitempty"` // why it does not
}

// ProtectorValue is protector inspect in --json.
type ProtectorValue struct {
	SHA256            string          `json:"sha256"`
	Bytes             int             `json:"bytes"`
	MaxOfflineUnwraps uint32          `json:"maxOfflineUnwraps"`
	SignedBy          uint32          `json:"signedBy"` // id of a wrapping
	Problem           string          `json:"problem,omitempty"`
	ForeignForms      []string        `json:"foreignForms,omitempty"`
	Wrappings         []WrappingValue `json:"wrappings"`
	Opens             bool            `json:"opens"`
	Why               string          `json:"why,omitempty"`
	Remedy            string          `json:"remedy,omitempty"`
}

// noProtector is what Get-VMKeyProtector gives for a machine without one.
var noProtector = []byte{0, 0, 0, 4}

// protectorInput reads a key protector as a file, in UTF-16, or as base64 of it.
func protectorInput(data []byte) ([]byte, error) {
	text := bytes.TrimSpace(fromUTF16(data))
	if len(text) == 0 {
		return nil, usage("nothing came on standard input", "give the key protector: protector inspect < FILE")
	}
	if bytes.Equal(data, noProtector) {
		return nil, errNoProtector
	}
	if bytes.HasPrefix(text, []byte("<")) {
		return text, nil
	}
	raw, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	switch {
	case err != nil:
		return nil, failed("the input is neither XML nor base64", "give the bytes of (Get-VMKeyProtector -VMName NAME), or base64 of them")
	case bytes.Equal(raw, noProtector):
		return nil, errNoProtector
	}
	return raw, nil
}

var errNoProtector = failed("this is what stands for no key protector: the virtual machine has none", "its owner makes one with New-HgsKeyProtector and Set-VMKeyProtector")

func protectorInspect(_ context.Context, s *Session, _ Args, stdin []byte) (Output, error) {
	raw, err := protectorInput(stdin)
	if err != nil {
		return Output{}, err
	}
	protector, err := kps.ParseProtector(raw)
	if err != nil {
		return Output{}, failed("a roll refuses this as it is: "+err.Error(), "get it again from the virtual machine; if it is whole, report what is refused")
	}
	snap, _ := s.Node.Snapshot()
	v := explainProtector(snap.State, protector)
	p := new(Page)
	v.page(p)
	return Output{Text: p, Value: v}, nil
}

func explainProtector(state policy.State, p *kps.Protector) ProtectorValue {
	sum := p.Summary()
	v := ProtectorValue{SHA256: sum.SHA256, Bytes: sum.Bytes, MaxOfflineUnwraps: p.MaxOfflineUnwraps, SignedBy: p.GuardianID, Problem: sum.Problem, Wrappings: []WrappingValue{}}
	if v.Problem != "" {
		if forms, err := p.VerifyForeign(); err == nil {
			v.ForeignForms = forms
			if state.Service.ForeignForms {
				v.Problem = ""
			}
		}
	}
	matches := p.MatchKeys(func(ref policy.KeyRef) (policy.Key, bool) { k, ok := state.Keys[ref]; return k, ok },
		func(k policy.Key) string { return state.TenantRefusal(k, anyClass(state, k)) })
	for i, m := range matches {
		w := &p.Wrappings[i]
		x := WrappingValue{ID: w.ID, Parent: w.ParentID, Owner: w.IsOwner(), Algorithm: w.TransportKey.Algorithm, Opens: m.Opens, Why: m.Why}
		x.Signing = party(w.SigningCertificate.Raw, w.SigningCertificate.Subject.String(), kps.KeyID(w.SigningCertificate), m.Signing)
		x.Encryption = party(w.EncryptionCertificate.Raw, w.EncryptionCertificate.Subject.String(), kps.KeyID(w.EncryptionCertificate), m.Encryption)
		v.Wrappings = append(v.Wrappings, x)
	}
	best, why, ok := kps.Best(matches)
	v.Opens, v.Why = ok && v.Problem == "", why
	switch {
	case v.Problem != "" && v.ForeignForms != nil:
		v.Why, v.Remedy = "its certificates are signed in a form that is switched off", "service set --foreign-forms on, if its maker is trusted to know what it signs"
	case v.Problem != "":
		v.Why, v.Remedy = "its signatures do not hold", "take an older copy: whatever was changed, it is not what its last signer wrote"
	case ok:
		v.Why = fmt.Sprintf("wrapping %d is for %s", best.Wrapping.ID, ours(best, state.Tenants[best.Encryption.Tenant]))
	case why == kps.NotForUs:
		v.Remedy = "its owner grants it to this service: Grant-HgsKeyProtectorAccess with the guardian of metadata.xml"
	default:
		v.Remedy = "key enable, if that key may be used again; or its owner grants it to this service's present guardian"
	}
	return v
}

// anyClass is a host class for which a tenant's key is used: nobody says here which host would ask.
func anyClass(state policy.State, k policy.Key) string {
	if t := state.Tenants[k.Tenant]; len(t.Classes) > 0 {
		return t.Classes[0]
	}
	return ""
}

// ours names the keys that open a wrapping.
func ours(m kps.KeyMatch, tenant policy.Tenant) string {
	text := fmt.Sprintf("encryption key %.16s and signing key %.16s", m.Encryption.Ref, m.Signing.Ref)
	switch {
	case m.Primary():
		return text + ", both primary"
	case len(tenant.Classes) > 0:
		return text + ", which tenant " + tenant.Name + " brought, for hosts of the classes " + strings.Join(tenant.Classes, ", ") + " only"
	case tenant.Name != "":
		return text + ", which tenant " + tenant.Name + " brought"
	}
	return text + ", enabled but not both primary: grant the new guardian before they are disabled"
}

func party(der []byte, subject, key string, ours *policy.Key) PartyValue {
	v := PartyValue{Subject: subject, Key: key}
	v.SHA1, v.SHA256 = thumbprints(der)
	if ours != nil {
		v.Ref, v.Enabled, v.Primary = ours.Ref, ours.Enabled, ours.Primary
	}
	return v
}

func (v PartyValue) page(p *Page, name string) {
	p.Field("  "+name, "%s", v.Subject).Field("    SHA-1", "%s", v.SHA1).Field("    SHA-256", "%s", v.SHA256)
	if v.Ref != "" {
		state := map[bool]string{true: "enabled", false: "disabled"}[v.Enabled]
		if v.Primary {
			state = "primary, " + state
		}
		p.Field("    our key", "%.16s, %s", v.Ref, state)
	}
}

func (v ProtectorValue) page(p *Page) {
	if v.Opens {
		p.Line("This service opens it: %s.", v.Why)
	} else {
		p.Line("! This service does not open it: %s.", v.Why)
		if v.Remedy != "" {
			p.Line("  -> %s", v.Remedy)
		}
	}
	p.Blank().Field("key protector", "%d bytes", v.Bytes).Field("SHA-256", "%s", v.SHA256)
	if v.Problem != "" {
		p.Field("signatures", "DO NOT HOLD: %s", v.Problem)
	} else {
		p.Field("signatures", "hold; that of the transport key can't be checked without opening it")
	}
	if v.ForeignForms != nil {
		p.Field("foreign forms", "certificates signed as %s", strings.Join(v.ForeignForms, ", "))
	}
	p.Field("last signed", "by wrapping %d", v.SignedBy)
	if v.MaxOfflineUnwraps > 0 {
		p.Field("offline", "%d unwraps; no signature covers this number", v.MaxOfflineUnwraps)
	}
	for _, w := range v.Wrappings {
		role := fmt.Sprintf("granted by wrapping %d", w.Parent)
		if w.Owner {
			role = "the owner"
		}
		p.Blank().Line("wrapping %d: %s", w.ID, role)
		w.Signing.page(p, "signing")
		w.Encryption.page(p, "encryption")
		p.Field("  key wrapped", "%s", w.Algorithm)
		if !w.Opens && (w.Signing.Ref != "" || w.Encryption.Ref != "") {
			p.Field("  not opened", "%s", w.Why)
		}
	}
}
