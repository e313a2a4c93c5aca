package verb

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"maps"
	"slices"
	"strings"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/hgsa"
	"guardhouse/appliance/policy"
)

func ciPolicyAdd(ctx context.Context, s *Session, a Args, stdin []byte) (Output, error) {
	b := policy.CIPolicyAdd{Name: a.Get("name"), Version: policy.PolicyVersion(a.Or("policy-version", string(policy.Version2)))}
	signed := false
	var c captured
	if a.Has("host") {
		var err error
		if c, err = ciFromHost(ctx, s, a, &b); err != nil {
			return Output{}, err
		}
	} else {
		if len(stdin) == 0 {
			return Output{}, usage("nothing came on standard input", "give the binary policy: ci-policy add NAME < SIPolicy.bin, or --host NAME")
		}
		parsed, err := evidence.ParseCIPolicy(fromBase64(stdin))
		if err != nil {
			return Output{}, failed(err.Error(), "convert it with ConvertFrom-CIPolicy")
		}
		signed = parsed.Signed
		b.Audit, b.PolicyID, b.Revision, b.Title = parsed.Audit, parsed.PolicyID, parsed.Version, clip(parsed.Name)
		for _, bank := range []evidence.Bank{evidence.SHA1, evidence.SHA256, evidence.SHA384, evidence.SHA512} {
			b.Digests = append(b.Digests, policy.HashValue{Alg: uint16(bank), Digest: parsed.Digest(bank)})
		}
	}
	out, err := change(ctx, s, a, policy.CmdCIPolicyAdd, b)
	if err != nil {
		return Output{}, err
	}
	for _, d := range b.Digests {
		if d.Alg == uint16(evidence.SHA256) {
			out.Text.Field("SHA-256", "%x", d.Digest)
		}
	}
	c.changes(out.Text)
	out.Text.Field("title", "%s", b.Title).Field("id", "%s", b.PolicyID).Field("version", "%s", b.Revision)
	if b.Audit {
		out.Text.Line("! It is in audit mode: what it forbids runs all the same and is only logged.")
	}
	if signed {
		out.Text.Line("The file was signed; its signature was taken off, because hosts measure the policy without it.")
	}
	s.modeNoteTPM(out.Text)
	return out, nil
}

// ciFromHost takes the policy that a host has measured. Where there are several, --title chooses.
func ciFromHost(ctx context.Context, s *Session, a Args, b *policy.CIPolicyAdd) (captured, error) {
	c, err := captureHost(ctx, s, a.Get("host"))
	if err != nil {
		return c, err
	}
	var found []evidence.SIPolicy
	var titles []string
	for _, p := range c.facts.Policies {
		titles = append(titles, p.Name)
		if !a.Has("title") || strings.EqualFold(p.Name, a.Get("title")) {
			found = append(found, p)
		}
	}
	switch {
	case len(c.facts.Policies) == 0:
		return c, failed("that host ran without a code integrity policy", "install one, restart the host, and let it attest")
	case len(found) != 1:
		return c, failed("that host has measured several policies, or none of this title: "+Clean(strings.Join(titles, ", ")), "choose one with --title")
	}
	b.Title, b.Revision = clip(found[0].Name), found[0].Version
	b.Digests = []policy.HashValue{{Alg: uint16(found[0].Hash), Digest: found[0].Digest}}
	return c, nil
}

func ciPolicyList(_ context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	type value struct {
		Name     string               `json:"name"`
		Version  policy.PolicyVersion `json:"version"`
		Title    string               `json:"title,omitempty"`
		PolicyID string               `json:"policyId,omitempty"`
		Revision string               `json:"revision,omitempty"`
		Audit    bool                 `json:"audit"`
		Digests  map[string]string    `json:"digests"` // hex by hash
		Added    policy.Stamp         `json:"added"`
	}
	list := []value{}
	p := new(Page)
	for _, name := range slices.Sorted(maps.Keys(snap.State.CIPolicies)) {
		c := snap.State.CIPolicies[name]
		v := value{c.Name, c.Version, c.Title, c.PolicyID, c.Revision, c.Audit, map[string]string{}, c.Added}
		for _, d := range c.Digests {
			v.Digests[evidence.Bank(d.Alg).String()] = hex.EncodeToString(d.Digest)
		}
		list = append(list, v)
		mode := "enforced"
		if c.Audit {
			mode = "audit only"
		}
		p.Blank().Line("%s (%s), %s, added %s", c.Name, c.Version, mode, when(c.Added)).Field("  title", "%s", c.Title).Field("  id", "%s", c.PolicyID).
			Field("  version", "%s", c.Revision).Field("  SHA-256", "%s", v.Digests["sha256"])
	}
	if len(list) == 0 {
		p.Line("No code integrity policy is registered: in TPM mode every host fails %s.", policy.HgsCiPolicy)
		p.Line("Register one: ci-policy add NAME < SIPolicy.bin, or ci-policy add NAME --host HOST after it has tried to attest.")
	}
	return Output{Text: p, Value: struct {
		Policies []value `json:"policies"`
	}{list}}, nil
}

func dumpKeyAdd(ctx context.Context, s *Session, a Args, stdin []byte) (Output, error) {
	b := policy.DumpKeyAdd{Name: a.Get("name")}
	var c captured
	if a.Has("sha256") {
		var err error
		if b.SHA256, err = hex.DecodeString(strings.TrimSpace(a.Get("sha256"))); err != nil || len(b.SHA256) != sha256.Size {
			return Output{}, usage("--sha256 is not 64 hexadecimal digits", "give the SHA-256 of the dump key's public key")
		}
	} else if in, ok, err := dumpKeyOf(a, stdin); err != nil {
		return Output{}, err
	} else if ok {
		b.SHA256 = in
	} else {
		var err error
		if c, err = capture(ctx, s, a, stdin); err != nil {
			return Output{}, err
		}
		if len(c.facts.DumpKey) == 0 {
			return Output{}, failed("that boot has measured no dump key", "give its hash: --sha256, or a log of a host that encrypts dumps")
		}
		b.SHA256 = c.facts.DumpKey
	}
	out, err := change(ctx, s, a, policy.CmdDumpKeyAdd, b)
	if err != nil {
		return Output{}, err
	}
	out.Text.Field("SHA-256", "%x", b.SHA256)
	c.changes(out.Text)
	s.modeNoteTPM(out.Text)
	return out, nil
}

// dumpKeyOf is the digest of the key in a certificate or public key, as a host measures it (event 0x00050027): the SHA-256 of the registry's
// EncryptionCertificates\Certificate.1::PublicKey, which is a BCRYPT_RSAKEY_BLOB of a key of 2048 bits. ok is false for other input.
func dumpKeyOf(a Args, stdin []byte) (digest []byte, ok bool, err error) {
	if a.Has("host") || len(stdin) == 0 {
		return nil, false, nil
	}
	var public any
	if blob := fromBase64(stdin); bytes.HasPrefix(blob, []byte("RSA1")) {
		k, err := hgsa.ParsePublicKey(blob)
		if err != nil {
			return nil, false, failed("the key blob can't be read: "+err.Error(), "give the certificate of the dump key, or the value PublicKey of the registry as it is")
		}
		public = k.RSA
	} else {
		in, err := ParseInput(stdin)
		if err != nil {
			if bytes.Contains(fromUTF16(stdin), []byte("-----BEGIN ")) {
				return nil, false, err
			}
			return nil, false, nil // a boot log, or nothing
		}
		if public, err = x509.ParsePKIXPublicKey(in.SPKI); err != nil {
			return nil, false, failed("the key can't be used: "+err.Error(), "")
		}
	}
	k, isRSA := public.(*rsa.PublicKey)
	if !isRSA || k.N.BitLen() != 2048 {
		return nil, false, failed("Windows encrypts dumps to an RSA key of 2048 bits, and this is none", "give the certificate that is in EncryptionCertificates on the hosts")
	}
	blob, err := hgsa.EncodePublicKey(k, hgsa.KeyBcrypt)
	if err != nil {
		return nil, false, failed("the key can't be used: "+err.Error(), "")
	}
	sum := sha256.Sum256(blob)
	return sum[:], true, nil
}

func dumpKeyList(_ context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	type value struct {
		Name   string       `json:"name"`
		SHA256 string       `json:"sha256"`
		Added  policy.Stamp `json:"added"`
	}
	list := []value{}
	var rows [][]string
	for _, name := range slices.Sorted(maps.Keys(snap.State.DumpKeys)) {
		k := snap.State.DumpKeys[name]
		list = append(list, value{k.Name, hex.EncodeToString(k.SHA256), k.Added})
		rows = append(rows, []string{k.Name, hex.EncodeToString(k.SHA256)})
	}
	p := new(Page)
	if len(list) == 0 {
		p.Line("No dump key is registered: hosts that write encrypted dumps fail %s.", policy.HgsDumpEncryptionKey)
	} else {
		p.Table([]string{"NAME", "SHA-256 OF THE PUBLIC KEY"}, rows)
	}
	return Output{Text: p, Value: struct {
		Keys []value `json:"keys"`
	}{list}}, nil
}
