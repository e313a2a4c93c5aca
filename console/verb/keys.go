package verb

import (
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

func roleNames() string {
	names := make([]string, len(policy.KeyRoles))
	for i, r := range policy.KeyRoles {
		names[i] = string(r)
	}
	return strings.Join(names, ", ")
}

// KeyValue is a key in --json. Token is what the HSM says of it now; nil where it was not asked or has no such key.
type KeyValue struct {
	Ref     policy.KeyRef  `json:"ref"`
	Role    policy.KeyRole `json:"role"`
	Label   string         `json:"label"`
	Primary bool           `json:"primary"`
	Enabled bool           `json:"enabled"`
	Subject string         `json:"subject"`
	SHA1    string         `json:"sha1"`
	SHA256  string         `json:"sha256"`
	Until   time.Time      `json:"notAfter"`
	Store   string         `json:"store"` // hsm or software
	Tenant  string         `json:"tenant,omitempty"`
	Token   *rpc.HSMKey    `json:"token"`
	Use     *rpc.KeyUsage  `json:"use,omitempty"` // key list only
}

func keyValue(k policy.Key, token map[policy.KeyRef]rpc.HSMKey) KeyValue {
	v := KeyValue{Ref: k.Ref, Role: k.Role, Label: k.Label, Primary: k.Primary, Enabled: k.Enabled, Store: "hsm", Tenant: k.Tenant}
	if k.Store == policy.StoreSoftware {
		v.Store = string(policy.StoreSoftware)
	}
	v.SHA1, v.SHA256 = thumbprints(k.Certificate)
	if cert, err := x509.ParseCertificate(k.Certificate); err == nil {
		v.Subject, v.Until = cert.Subject.String(), cert.NotAfter.UTC()
	}
	if t, ok := token[k.Ref]; ok {
		v.Token = &t
	}
	return v
}

func (v KeyValue) show(p *Page, asked bool) {
	state := "enabled"
	if !v.Enabled {
		state = "disabled"
	}
	if v.Primary {
		state = "primary, " + state
	}
	p.Blank()
	if v.Tenant != "" {
		state += ", of the tenant " + v.Tenant
	}
	p.Line("%s: %s", v.Role, state)
	p.Field("  subject", "%s", v.Subject).Field("  reference", "%s", v.Ref)
	p.Field("  SHA-1", "%s", v.SHA1).Field("  SHA-256", "%s", v.SHA256)
	if v.Role == policy.RoleAttestationSigner {
		p.Field("  life", "see attestation-signer list")
	}
	switch {
	case v.Store == string(policy.StoreSoftware):
		p.Field("  store", "SOFTWARE KEY: sealed on the node's disk, not in the token")
		if v.Token == nil && asked {
			p.Field("  loaded", "NO: what only this key opens stays closed; see key test")
		}
	case v.Token != nil:
		tokenFields(p, *v.Token)
	case asked:
		p.Field("  token", "HAS NO SUCH KEY: what only this key opens stays closed")
	}
}

func tokenText(k rpc.HSMKey) string {
	var uses []string
	if k.Sign {
		uses = append(uses, "sign")
	}
	if k.Decrypt {
		uses = append(uses, "decrypt")
	}
	return fmt.Sprintf("RSA %d, use %s, label %q", k.Bits, cmp.Or(strings.Join(uses, "+"), "none"), k.Label)
}

// tokenFields shows what the token says of a key.
func tokenFields(p *Page, k rpc.HSMKey) {
	p.Field("  token", "%s", tokenText(k)).
		Field("  in the token", "sensitive %s, extractable %s, never extractable %s", yes(k.Sensitive), yes(k.Extractable), yes(k.NeverExtractable))
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func sortedKeys(state policy.State) []policy.Key {
	keys := make([]policy.Key, 0, len(state.Keys))
	for _, k := range state.Keys {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b policy.Key) int {
		first := func(k policy.Key) int {
			if k.Primary {
				return 0
			}
			return 1
		}
		return cmp.Or(cmp.Compare(slices.Index(policy.KeyRoles, a.Role), slices.Index(policy.KeyRoles, b.Role)),
			cmp.Compare(first(a), first(b)), cmp.Compare(a.Ref, b.Ref))
	})
	return keys
}

func keyNew(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	roles := snap.State.KeyRolesUsed()
	if list := a.Or("roles", "all"); !strings.EqualFold(list, "all") {
		var err error
		if roles, err = parseRoles(list); err != nil {
			return Output{}, err
		}
	}
	bits, _ := strconv.Atoi(a.Or("bits", "2048"))
	return makeKeys(ctx, s, roles, bits, cmp.Or(a.Get("subject"), snap.State.Service.Name))
}

// makeKeys has the ledger make keys and shows them.
func makeKeys(ctx context.Context, s *Session, roles []policy.KeyRole, bits int, subject string) (Output, error) {
	id, err := s.Node.ID()
	if err != nil {
		return Output{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute) // a slow token needs a minute for a 4096 bit key
	defer cancel()
	made, err := rpc.LedgerMakeKeys.Call(ctx, s.Node.Ledger, rpc.MakeKeysRequest{Actor: s.Actor, ID: id, Roles: roles, Bits: bits, Subject: subject})
	if err != nil {
		return Output{}, err
	}
	s.Node.reached(ctx, made.Index)
	token := tokenMap(made.Token)
	value := struct {
		Message string              `json:"message"`
		Index   uint64              `json:"index"`
		Keys    []KeyValue          `json:"keys"`
		Tests   []rpc.HSMTestResult `json:"tests"`
	}{fmt.Sprintf("keys made in the token: %d", len(made.Keys)), made.Index, []KeyValue{}, append([]rpc.HSMTestResult{}, made.Tests...)}
	p := new(Page).Line("%s", value.Message)
	for _, k := range made.Keys {
		v := keyValue(k, token)
		value.Keys = append(value.Keys, v)
		v.show(p, true)
	}
	failed := anyFailed(made.Tests)
	if failed {
		snap, _ := s.Node.Snapshot()
		showTests(p.Blank(), snap.State, made.Tests)
		p.Blank().Line("A key that failed is recorded, but does not become primary before it passes: key test")
	}
	return Output{Text: p, Value: value, Failed: failed}, nil
}

// anyFailed tells whether a test did not pass: then the exit code is not 0.
func anyFailed(tests []rpc.HSMTestResult) bool {
	return slices.ContainsFunc(tests, func(r rpc.HSMTestResult) bool { return !r.OK })
}

func tokenMap(keys []rpc.HSMKey) map[policy.KeyRef]rpc.HSMKey {
	m := make(map[policy.KeyRef]rpc.HSMKey, len(keys))
	for _, k := range keys {
		m[k.Ref] = k
	}
	return m
}

func parseRoles(list string) ([]policy.KeyRole, error) {
	var roles []policy.KeyRole
	for _, name := range strings.Split(list, ",") {
		r := policy.KeyRole(strings.ToLower(strings.TrimSpace(name)))
		if !slices.Contains(policy.KeyRoles, r) {
			return nil, usage(fmt.Sprintf("%q is not a key role", clip(name)), "roles are all, "+roleNames())
		}
		if slices.Contains(roles, r) {
			return nil, usage(fmt.Sprintf("the role %s is named twice", r), "")
		}
		roles = append(roles, r)
	}
	return roles, nil
}

func keyList(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	inToken, err := rpc.HSMKeys.Call(ctx, s.Node.HSM, rpc.Empty{})
	value := struct {
		Keys       []KeyValue   `json:"keys"`
		Unrecorded []rpc.HSMKey `json:"unrecorded"` // in the token, not in the records
		Warning    string       `json:"warning,omitempty"`
	}{Keys: []KeyValue{}, Unrecorded: []rpc.HSMKey{}}
	p := new(Page)
	token := tokenMap(inToken)
	used, usedErr := usageOf(ctx, s, 0, 0)
	now, _ := trusted(ctx, s)
	show := func(k policy.Key) {
		v := keyValue(k, token)
		v.Use = useOf(used, k.Ref)
		value.Keys = append(value.Keys, v)
		v.show(p, err == nil)
		if k.Role != policy.RoleAttestationSigner && !now.IsZero() && now.After(v.Until) {
			p.Field("  expires", "%s", expiryText(v.Until, now))
		}
		if usedErr == nil && (k.Role == policy.RoleSigning || k.Role == policy.RoleEncryption) {
			p.Field("  last used", "%s", useText(v.Use, now))
		}
	}
	ours, brought := byOwner(snap.State)
	for _, k := range ours {
		show(k)
	}
	if len(brought) > 0 {
		p.Blank().Line("Keys that tenants brought; never primary, see tenant list:")
	}
	for _, k := range brought {
		show(k)
	}
	if len(value.Keys) == 0 {
		p.Line("There are no keys: hosts can't be served. Make them: key new --roles all --subject NAME")
	}
	for _, k := range inToken {
		if _, ok := snap.State.Keys[k.Ref]; !ok {
			value.Unrecorded = append(value.Unrecorded, k)
			p.Blank().Line("in the token, not in the records:").Field("  reference", "%s", k.Ref)
			tokenFields(p, k)
		}
	}
	if err != nil {
		value.Warning = "what the token holds is not known: " + Explain(err).Error()
		p.Blank().Line("%s", value.Warning)
	}
	return Output{Text: p, Value: value}, nil
}

// byOwner parts this service's keys from those of tenants, which are in the order of their tenants.
func byOwner(state policy.State) (ours, brought []policy.Key) {
	for _, k := range sortedKeys(state) {
		if k.Tenant == "" {
			ours = append(ours, k)
		} else {
			brought = append(brought, k)
		}
	}
	slices.SortStableFunc(brought, func(a, b policy.Key) int { return cmp.Compare(a.Tenant, b.Tenant) })
	return ours, brought
}

func keyChange(kind policy.Kind) func(context.Context, *Session, Args, []byte) (Output, error) {
	return func(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
		snap, _ := s.Node.Snapshot()
		ref, err := findKey(snap.State, a.Get("key"))
		if err != nil {
			return Output{}, err
		}
		if a.Has("dry-run") {
			return rehearseKey(ctx, s, kind, ref)
		}
		out, _, err := propose(ctx, s, kind, policy.KeyChange{Ref: ref})
		return out, err
	}
}

// KeyRehearsal is key primary, enable, disable or remove with --dry-run in --json.
type KeyRehearsal struct {
	Done
	DryRun bool                `json:"dryRun"`
	Tests  []rpc.HSMTestResult `json:"tests,omitempty"` // of key primary
	Recent int                 `json:"recent"`          // key protectors last seen on the key of late, of key disable and key remove
	Total  int                 `json:"total"`
}

// rehearseKey says what a change of a key would do, and changes nothing: whether it would be refused, the test that key primary makes, and
// what depends on a key that goes.
func rehearseKey(ctx context.Context, s *Session, kind policy.Kind, ref policy.KeyRef) (Output, error) {
	r, err := rehearse(s, kind, policy.KeyChange{Ref: ref})
	if err != nil {
		return Output{}, err
	}
	snap, _ := s.Node.Snapshot()
	v := KeyRehearsal{Done: Done{Message: r.Message, Subject: r.Subject}, DryRun: true}
	p := new(Page).Line("Nothing was changed. It would be: %s", r.Message)
	switch kind {
	case policy.CmdKeyPrimary:
		tests, err := rpc.LedgerKeyTest.Call(ctx, s.Node.Ledger, rpc.KeyTestRequest{Refs: []policy.KeyRef{ref}})
		if err != nil {
			return Output{}, err
		}
		v.Tests = tests.Results
		if !showTests(p.Blank(), snap.State, tests.Results) {
			p.Blank().Line("! It would be refused, because the key fails its test.")
		}
	case policy.CmdKeyDisable, policy.CmdKeyRemove:
		used, err := usageOf(ctx, s, 0, 1, ref)
		if err != nil {
			return Output{}, err
		}
		now, _ := trusted(ctx, s)
		v.Recent, v.Total = used.Recent, used.Total
		p.Line("%s %s", seenText(used, now), usageNote)
	}
	return Output{Text: p, Value: v, Failed: anyFailed(v.Tests)}, nil
}

// findKey is the one key whose reference or certificate thumbprint begins with prefix.
func findKey(state policy.State, prefix string) (policy.KeyRef, error) {
	want := strings.ToLower(strings.NewReplacer(":", "", " ", "").Replace(prefix))
	if len(want) < 6 {
		return "", usage("give 6 characters of the key's reference or thumbprint, or more", "see key list")
	}
	var found []policy.KeyRef
	for ref, k := range state.Keys {
		s1, s256 := thumbprints(k.Certificate)
		if strings.HasPrefix(string(ref), want) || strings.HasPrefix(strings.ToLower(s1), want) || strings.HasPrefix(s256, want) {
			found = append(found, ref)
		}
	}
	switch len(found) {
	case 0:
		return "", failed(fmt.Sprintf("no key has a reference or thumbprint that begins with %q", clip(prefix)), "see key list")
	case 1:
		return found[0], nil
	}
	return "", failed(fmt.Sprintf("%d keys begin so", len(found)), "give more characters")
}

func runMetadata(_ context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	svc := snap.State.Service
	value := struct {
		Metadata      string     `json:"metadataUrl"`
		Attestation   string     `json:"attestationUrl"`
		KeyProtection string     `json:"keyProtectionUrl"`
		HostCommand   string     `json:"hostCommand"`
		Guardian      []KeyValue `json:"guardian"`
	}{Guardian: []KeyValue{}}
	scheme := "http"
	if !svc.HTTP {
		scheme = "https"
	}
	base := scheme + "://" + svc.Name
	value.Attestation, value.KeyProtection = base+"/Attestation", base+"/KeyProtection"
	if svc.AttestationOnly {
		value.KeyProtection = ""
		return Output{Text: new(Page).Line("This service only attests: it has no guardian. SQL Server clients name this attestation URL:").
			Line("  %s", value.Attestation), Value: value}, nil
	}
	value.Metadata = value.KeyProtection + "/service/metadata/2014-07/metadata.xml"
	value.HostCommand = fmt.Sprintf("Set-HgsClientConfiguration -AttestationServerUrl '%s' -KeyProtectionServerUrl '%s'", value.Attestation, value.KeyProtection)
	p := new(Page).Line("Tenants import the guardian from:").Line("  %s", value.Metadata).
		Line("and compare these thumbprints with you over another way:")
	for _, role := range []policy.KeyRole{policy.RoleSigning, policy.RoleEncryption} {
		k, ok := snap.State.PrimaryKey(role)
		if !ok {
			p.Field(string(role), "none; make one: key new --roles %s --subject NAME", role)
			continue
		}
		v := keyValue(k, nil)
		value.Guardian = append(value.Guardian, v)
		p.Field(string(role), "%s", v.Subject).Field("  SHA-1", "%s", v.SHA1).Field("  SHA-256", "%s", v.SHA256)
	}
	p.Blank().Line("On each host, in an elevated PowerShell:").Line("  Set-HgsClientConfiguration `").
		Line("    -AttestationServerUrl '%s' `", value.Attestation).Line("    -KeyProtectionServerUrl '%s'", value.KeyProtection)
	return Output{Text: p, Value: value}, nil
}
