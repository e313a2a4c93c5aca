package verb

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

const maxSealedInput = 64 << 10

func profileNames() []string {
	names := make([]string, len(policy.CSRProfiles))
	for i, p := range policy.CSRProfiles {
		names[i] = p.Name
	}
	return names
}

func guardianRoles() []string {
	return []string{string(policy.RoleSigning), string(policy.RoleEncryption), string(policy.RoleCommunications)}
}

// keyCareVerbs are what is done with keys and certificates that are not made here from end to end.
func keyCareVerbs() []Verb {
	role := flag("role", Choice, "what the key is for; default: what its label says", guardianRoles()...)
	return []Verb{
		{Name: "key test", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: keyTest,
			Params: []Param{{Name: "key", Kind: Text, Optional: true, Help: "only this key, also a disabled one; default: all that are enabled"}},
			Help:   "have every node use the keys once, and say what fails", Example: "key test",
			More: "A real signature or decryption with each key on each node, checked against the recorded public key, and the key's attributes. " +
				"It is done at each start too, and before key primary: a key that fails on any node, or a node that does not answer, keeps it from becoming primary. " +
				"This takes the place of granting the gMSA access to private keys.",
			Replaces: []string{"Get-HgsTrace"}},
		{Name: "key csr", Role: operator, Doors: loggedIn, Risk: Reads, Run: keyCSR,
			Params: []Param{keyParam, flag("profile", Choice, "what the request asks for, by HSM; default generic", profileNames()...),
				flag("subject", Text, "common name; default: the present certificate's name"), flag("sheet", Switch, "print the AD CS template sheet with it")},
			Help: "a certificate request (PKCS#10) for a key", Example: "key csr 5f3ac9 --profile luna > signing.req",
			More: "The key signs its own request, also an encryption key: where the token gives it no right to sign, the raw private operation makes the same signature, " +
				"and the HSM process takes nothing but whole requests for it. A token in FIPS mode may forbid that; then keep the certificate that the signing key issued. " +
				"HGS and hosts take certificates as containers of keys, so nothing depends on who issued them."},
		{Name: "key install", Role: operator, Doors: loggedIn, Risk: Changes, Run: keyInstall, Params: []Param{keyParam, dryRun},
			Stdin: "the issued certificate: PEM, DER, base64 or PKCS#7",
			Help:  "give a key the certificate that a CA issued for it", Example: "key install 5f3ac9 < signing.p7b",
			More: "The certificate must be for this key; another public key, less than 2048 bits, or a key usage that forbids the role's work is refused. " +
				"metadata hands the new one out at once; key protectors that were made with the old one still open, because they name the key.",
			Replaces: []string{"Set-HgsKeyProtectionCertificate"}},
		{Name: "key add", Role: operator, Doors: loggedIn, Risk: Changes, Run: keyAdd, StdinFlag: "certificate",
			Params: []Param{place("key", Text, "the beginning of its reference in key list, 6 characters or more"), role,
				flag("subject", Text, "name in the certificate that the node makes; default: the service's name"), flag("certificate", Switch, "take its certificate from standard input instead")},
			Stdin: "the pair's certificate, with --certificate: PEM, DER, base64 or PKCS#7",
			Help:  "record a pair that lies in the token already", Example: "key add 5f3ac9 --role signing",
			More:     "For pairs that the vendor's tools made, and for those that an interrupted key new left. The pair is tested on every node first; one that fails is recorded, but does not become primary.",
			Replaces: []string{"Add-HgsKeyProtectionCertificate"}},
		{Name: "key seal-key", Role: operator, Doors: loggedIn, Risk: Reads, Run: keySealKey,
			Help: "to whom secrets for this node are encrypted, this boot", Example: "key seal-key"},
		{Name: "key import-pfx", Role: operator, Doors: loggedIn, Risk: Changes, Run: keyImport,
			Params: []Param{flag("role", Choice, "what the key is for", guardianRoles()...), flag("tenant", Word, "the tenant that brings it")},
			Stdin:  "an age file: a line with the PFX's passphrase, then the PFX",
			Help:   "take a software key from a PFX", Example: "key import-pfx --role encryption < pair.age",
			More: "Encrypt it on your workstation to the key that key seal-key shows, so that neither passphrase nor key passes a terminal or this console in the clear: " +
				"(echo PASSPHRASE; cat pair.pfx) | age -a -r KEY > pair.age. The private key is sealed on the node's disk and used by a process of its own; " +
				"it never enters the token and is shown as a software key everywhere. RSA of 2048 bits or more.",
			Replaces: []string{"Add-HgsKeyProtectionCertificate"}},
		{Name: "metadata", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: runMetadata,
			Help: "URLs and guardian fingerprints for hosts and tenants", Example: "metadata"},
	}
}

// TestValue is key test in --json.
type TestValue struct {
	OK      bool                `json:"ok"`
	Results []rpc.HSMTestResult `json:"results"`
}

func keyTest(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	var req rpc.KeyTestRequest
	if a.Has("key") {
		ref, err := findKey(snap.State, a.Get("key"))
		if err != nil {
			return Output{}, err
		}
		req.Refs = []policy.KeyRef{ref}
	}
	r, err := rpc.LedgerKeyTest.Call(ctx, s.Node.Ledger, req)
	if err != nil {
		return Output{}, err
	}
	p := new(Page)
	if len(r.Results) == 0 {
		p.Line("There are no keys to test. Make them: key new --roles all --subject NAME")
	}
	ok := showTests(p, snap.State, r.Results)
	return Output{Text: p, Value: TestValue{ok, append([]rpc.HSMTestResult{}, r.Results...)}, Failed: !ok}, nil
}

// showTests is a table of tests and below it each finding with its remedy; it tells whether all passed.
func showTests(p *Page, state policy.State, results []rpc.HSMTestResult) bool {
	var rows [][]string
	ok := true
	for _, r := range results {
		verdict := "passed in " + r.Took.Round(10*time.Microsecond).String()
		if !r.OK {
			verdict, ok = "FAILED", false
		}
		rows = append(rows, []string{nodeName(state, r.Node), string(r.Role), string(r.Ref[:min(16, len(r.Ref))]), verdict})
	}
	if len(rows) > 0 {
		p.Table([]string{"NODE", "KEY", "REFERENCE", "TEST"}, rows)
	}
	for _, r := range results {
		if r.OK {
			continue
		}
		for _, f := range r.Problems {
			p.Blank().Line("! on node %s: %s", nodeName(state, r.Node), f.What).Line("  do: %s", f.Remedy)
		}
	}
	return ok
}

func nodeName(state policy.State, id string) string {
	if n, ok := state.Nodes[id]; ok {
		return n.Name
	}
	return id
}

// CSRValue is key csr in --json; Sheet only with --sheet.
type CSRValue struct {
	Ref     policy.KeyRef `json:"ref"`
	Profile string        `json:"profile"`
	Request string        `json:"request"` // PEM
	Sheet   []SheetLine   `json:"sheet,omitempty"`
}

// SheetLine is one setting of an AD CS certificate template.
type SheetLine struct {
	Tab     string `json:"tab"`
	Setting string `json:"setting"`
	Value   string `json:"value"`
}

func keyCSR(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	ref, err := findKey(snap.State, a.Get("key"))
	if err != nil {
		return Output{}, err
	}
	profile, _ := policy.ProfileByName(a.Or("profile", policy.CSRProfiles[0].Name))
	r, err := rpc.LedgerKeyRequest.Call(ctx, s.Node.Ledger, rpc.KeyCSRRequest{Actor: s.Actor, Ref: ref, Profile: profile.Name, Subject: a.Get("subject")})
	if err != nil {
		return Output{}, err
	}
	v := CSRValue{Ref: ref, Profile: profile.Name, Request: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: r.Request}))}
	p := new(Page)
	p.b.WriteString(v.Request)
	if a.Has("sheet") {
		v.Sheet = templateSheet(profile, snap.State.Keys[ref])
		p.Blank().Line("AD CS certificate template for this request (Certificate Templates console):")
		var rows [][]string
		for _, l := range v.Sheet {
			rows = append(rows, []string{l.Tab, l.Setting, l.Value})
		}
		p.Table([]string{"TAB", "SETTING", "VALUE"}, rows)
		p.Blank().Line("%s: %s.", profile.Vendor, profile.Note)
	}
	return Output{Text: p, Value: v}, nil
}

// templateSheet is row B04, with what this node's request changes about it.
func templateSheet(profile policy.CSRProfile, k policy.Key) []SheetLine {
	bits := "2048"
	if cert, err := x509.ParseCertificate(k.Certificate); err == nil {
		bits = keyText(cert.RawSubjectPublicKeyInfo)
	}
	sheet := []SheetLine{
		{"General", "validity", "as you like: its end stops nothing; renew with the same key"},
		{"Compatibility", "certification authority", "Windows Server 2012 or later"},
		{"Request Handling", "purpose", "signature and encryption"},
		{"Request Handling", "allow private key to be exported", "no"},
		{"Cryptography", "provider category", "key storage provider"},
		{"Cryptography", "provider", profile.Provider},
		{"Cryptography", "algorithm, minimum size", "RSA, 2048 (this key: " + bits + ")"},
		{"Cryptography", "request hash", "SHA256"},
		{"Subject Name", "source", "supply in the request; tenants see it"},
		{"Extensions", "key usage", "digital signature; allow key exchange only with key encryption; allow encryption of user data"},
		{"Extensions", "this request asks for", policy.KeyUsageText(profile.Usage[k.Role])},
	}
	if profile.ServerAuth {
		sheet = append(sheet, SheetLine{"Extensions", "application policies", "server authentication"})
	}
	return append(sheet, SheetLine{"Security", "enroll", "whoever submits the request; the node itself needs no right"})
}

// InstallValue is key install in --json.
type InstallValue struct {
	Done
	DryRun   bool                       `json:"dryRun,omitempty"`
	Key      KeyValue                   `json:"key"`
	Findings policy.CertificateFindings `json:"findings"`
}

func keyInstall(ctx context.Context, s *Session, a Args, stdin []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	ref, err := findKey(snap.State, a.Get("key"))
	if err != nil {
		return Output{}, err
	}
	cert, err := certificateFor(stdin, ref)
	if err != nil {
		return Output{}, err
	}
	k := snap.State.Keys[ref]
	body := policy.KeyInstall{Ref: ref, Certificate: cert.Raw}
	v := InstallValue{DryRun: a.Has("dry-run"), Findings: append(policy.CertificateFindings{}, policy.CheckKeyCertificate(k.Role, cert)...)}
	p := new(Page)
	if v.DryRun {
		r, err := rehearse(s, policy.CmdKeyInstall, body)
		if err != nil {
			return Output{}, err
		}
		v.Done = Done{Message: r.Message, Subject: r.Subject}
		p.Line("Nothing was changed. It would be: %s", r.Message)
	} else {
		out, r, err := propose(ctx, s, policy.CmdKeyInstall, body)
		if err != nil {
			return Output{}, err
		}
		v.Done, p = Done{r.Message, r.Index, r.Subject}, out.Text
	}
	k.Certificate = cert.Raw
	v.Key = keyValue(k, nil)
	p.Field("subject", "%s", v.Key.Subject).Field("issuer", "%s", cert.Issuer.String()).Field("SHA-1", "%s", v.Key.SHA1).Field("SHA-256", "%s", v.Key.SHA256)
	now, _ := trusted(ctx, s)
	p.Field("expires", "%s", expiryText(v.Key.Until, now))
	for _, f := range v.Findings {
		p.Line("! %s; %s", f.What, f.Remedy)
	}
	if k.Primary {
		p.Line("Tenants that import the guardian from now on see this certificate; compare its thumbprints with them anew.")
	}
	return Output{Text: p, Value: v}, nil
}

// expiryText tells the end of a guardian's certificate. It never stops a key (row B05), and says so where somebody could fear it.
func expiryText(until, now time.Time) string {
	text := until.UTC().Format(time.DateOnly)
	if !now.IsZero() && now.After(until) {
		text += ": EXPIRED, no effect on VMs; tenants that import the guardian anew need -AllowExpired"
	}
	return text
}

// certificateFor reads certificates in any of the usual forms and gives the one of this key. If there is only one, it is that one: the
// records say what is wrong with it.
func certificateFor(stdin []byte, ref policy.KeyRef) (*x509.Certificate, error) {
	if len(stdin) > maxInput {
		return nil, usage("the input is larger than 64 KiB", "give one certificate and those that issued it")
	}
	if strings.Contains(string(stdin), "PRIVATE KEY-----") {
		return nil, failed("the input holds a private key: others have seen it, and the node would not need it", "treat it as known to others; give only the certificate")
	}
	data := fromUTF16(stdin)
	if der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(string(data)), "")); err == nil {
		data = der
	}
	read, _, err := evidence.ReadBundle(data)
	if err != nil || len(read) == 0 {
		return nil, failed("the input holds no certificate", "give PEM, DER, base64 or PKCS#7 on standard input")
	}
	var first *x509.Certificate
	for _, one := range read {
		cert, err := x509.ParseCertificate(one.Original)
		if err != nil {
			return nil, failed("a certificate does not parse: "+err.Error(), "export it anew from the CA")
		}
		if policy.RefOf(cert.RawSubjectPublicKeyInfo) == ref {
			return cert, nil
		}
		if first == nil {
			first = cert
		}
	}
	if len(read) > 1 {
		return nil, failed("none of the certificates is for this key", "have it issued for the request that key csr printed")
	}
	return first, nil
}

// rehearse applies a command to a copy of the records: what it would say, or why it would be refused.
func rehearse(s *Session, kind policy.Kind, body any) (policy.Result, error) {
	raw, err := marshal(body)
	if err != nil {
		return policy.Result{}, err
	}
	snap, _ := s.Node.Snapshot()
	_, r, err := policy.Apply(snap.State, policy.Command{ID: "dry-run", Kind: kind, Actor: s.Actor, At: s.Node.Stamp(), Body: raw})
	return r, err
}

func keyAdd(ctx context.Context, s *Session, a Args, stdin []byte) (Output, error) {
	return addFromToken(ctx, s, a, "", stdin)
}

// AddedValue is key add, key import-pfx and tenant adopt in --json.
type AddedValue struct {
	Message string              `json:"message"`
	Index   uint64              `json:"index"`
	Key     KeyValue            `json:"key"`
	Tests   []rpc.HSMTestResult `json:"tests"`
}

// addFromToken records a pair that lies in the token, for this service or for a tenant.
func addFromToken(ctx context.Context, s *Session, a Args, tenant string, stdin []byte) (Output, error) {
	inToken, err := rpc.HSMKeys.Call(ctx, s.Node.HSM, rpc.Empty{})
	if err != nil {
		return Output{}, err
	}
	k, err := findInToken(inToken, a.Get("key"))
	if err != nil {
		return Output{}, err
	}
	role := policy.KeyRole(a.Or("role", string(k.Role)))
	if role == "" {
		return Output{}, usage("the label of this key names no role of ours", "say what it is for with --role")
	}
	id, err := s.Node.ID()
	if err != nil {
		return Output{}, err
	}
	req := rpc.KeyAddRequest{Actor: s.Actor, ID: id, Ref: k.Ref, Role: role, Tenant: tenant, Subject: a.Get("subject")}
	if a.Has("certificate") {
		cert, err := certificateFor(stdin, k.Ref)
		if err != nil {
			return Output{}, err
		}
		req.Certificate = cert.Raw
	}
	r, err := rpc.LedgerKeyAdd.Call(ctx, s.Node.Ledger, req)
	return addedOutput(ctx, s, r, map[policy.KeyRef]rpc.HSMKey{k.Ref: k}, err)
}

func addedOutput(ctx context.Context, s *Session, r rpc.KeyAddReply, token map[policy.KeyRef]rpc.HSMKey, err error) (Output, error) {
	if err != nil {
		return Output{}, err
	}
	s.Node.reached(ctx, r.Index)
	snap, _ := s.Node.Snapshot()
	v := AddedValue{Index: r.Index, Key: keyValue(r.Key, token), Tests: append([]rpc.HSMTestResult{}, r.Tests...)}
	v.Message = fmt.Sprintf("%s %.16s recorded", keyKind(r.Key), r.Key.Ref)
	p := new(Page).Line("%s", v.Message)
	v.Key.show(p, false)
	p.Blank()
	if !showTests(p, snap.State, r.Tests) {
		p.Blank().Line("The key is recorded, but can't become primary before it passes: key test %.8s", r.Key.Ref)
	}
	return Output{Text: p, Value: v, Failed: anyFailed(r.Tests)}, nil
}

// keyKind says what kind of key it is: software keys and tenants' keys are named so wherever a key is shown.
func keyKind(k policy.Key) string {
	kind := string(k.Role) + " key"
	if k.Store == policy.StoreSoftware {
		kind = string(k.Role) + " software key"
	}
	if k.Tenant != "" {
		kind += " of the tenant " + k.Tenant
	}
	return kind
}

func findInToken(keys []rpc.HSMKey, prefix string) (rpc.HSMKey, error) {
	want := strings.ToLower(prefix)
	if len(want) < 6 {
		return rpc.HSMKey{}, usage("give 6 characters of the key's reference, or more", "see key list")
	}
	found := slices.DeleteFunc(slices.Clone(keys), func(k rpc.HSMKey) bool { return !strings.HasPrefix(string(k.Ref), want) })
	switch len(found) {
	case 0:
		return rpc.HSMKey{}, failed(fmt.Sprintf("the token holds no key whose reference begins with %q", clip(prefix)), "see key list: it ends with the keys that are not recorded")
	case 1:
		return found[0], nil
	}
	return rpc.HSMKey{}, failed(fmt.Sprintf("%d keys begin so", len(found)), "give more characters")
}

func keySealKey(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	r, err := rpc.LedgerSealKey.Call(ctx, s.Node.Ledger, rpc.Empty{})
	if err != nil {
		return Output{}, err
	}
	p := new(Page).Line("%s", r.Recipient).Blank().Line("Encrypt secrets for this node to it, on your workstation: age -a -r KEY. It changes when the node's ledger starts anew.")
	return Output{Text: p, Value: r}, nil
}

func keyImport(ctx context.Context, s *Session, a Args, stdin []byte) (Output, error) {
	defer clear(stdin)
	if !a.Has("role") {
		return Output{}, usage("what the key is for is not said", "give --role "+strings.Join(guardianRoles(), "|"))
	}
	if len(stdin) > maxSealedInput {
		return Output{}, usage("the input is larger than 64 KiB", "give one age file with one PFX")
	}
	text := string(stdin)
	if !strings.HasPrefix(strings.TrimSpace(text), "-----BEGIN AGE ENCRYPTED FILE-----") && !strings.HasPrefix(text, "age-encryption.org/") {
		return Output{}, failed("this is no age file: a key in the clear is not taken", "encrypt it as help key import-pfx says; if it went over a line that others see, make a new key")
	}
	id, err := s.Node.ID()
	if err != nil {
		return Output{}, err
	}
	r, err := rpc.LedgerKeyImport.Call(ctx, s.Node.Ledger, rpc.KeyImportRequest{Actor: s.Actor, ID: id, Role: policy.KeyRole(a.Get("role")), Tenant: a.Get("tenant"), Sealed: stdin})
	return addedOutput(ctx, s, r, nil, err)
}
