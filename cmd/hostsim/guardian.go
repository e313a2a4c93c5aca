package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"guardhouse/appliance/kps"
	"guardhouse/appliance/policy"
)

// An imported guardian lies as its metadata document, as it was read, in --dir.
const (
	guardianPrefix = "guardian-"
	suffixXML      = ".xml"
)

// importGuardian imports metadata as Import-HgsGuardian does, with its two switches. What it lets pass it says on standard error.
func (o *options) importGuardian(raw []byte) (*kps.Metadata, *kps.Guardian, error) {
	m, err := kps.ParseMetadata(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("the guardian's metadata is not to be trusted: %w", err)
	}
	options := kps.ImportOptions{AllowUntrustedRoot: o.allowUntrusted, AllowExpired: o.allowExpired, Now: time.Now()}
	if o.roots != "" {
		pem, err := os.ReadFile(o.roots)
		if err != nil {
			return nil, nil, err
		}
		options.Roots = x509.NewCertPool()
		if !options.Roots.AppendCertsFromPEM(pem) {
			return nil, nil, fmt.Errorf("%s holds no PEM certificate", o.roots)
		}
	}
	if o.communications != "" {
		der, err := os.ReadFile(o.communications)
		if err != nil {
			return nil, nil, err
		}
		if options.Communications, err = certificateOf(der); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", o.communications, err)
		}
	}
	g, warnings, err := m.Import(options)
	if err != nil {
		return nil, nil, err
	}
	for _, w := range warnings {
		fmt.Fprintln(os.Stderr, "warning:", w)
	}
	o.facts["warnings"] = warnings
	return m, g, nil
}

// guardianImport keeps a guardian under a name, for protector new and grant.
func guardianImport(o *options) error {
	if !policy.ValidName(o.name) {
		return fmt.Errorf("%w: --name is 1 to 64 letters, digits, dots, dashes", errUsage)
	}
	raw, err := o.readMetadata(context.Background())
	if err != nil {
		return err
	}
	m, g, err := o.importGuardian(raw)
	if err != nil {
		return err
	}
	if err := errors.Join(os.MkdirAll(o.dir, 0o700), os.WriteFile(o.path(guardianPrefix+o.name+suffixXML), raw, 0o644)); err != nil {
		return err
	}
	o.say("guardian", o.name, "guardian %s", o.name)
	o.sayGuardian(m, g)
	return nil
}

func (o *options) sayGuardian(m *kps.Metadata, g *kps.Guardian) {
	o.say("signing", sha256hex(g.SigningCertificate.Raw), "  signing certificate     %s", thumbprints(g.SigningCertificate.Raw))
	o.say("encryption", sha256hex(g.EncryptionCertificate.Raw), "  encryption certificate  %s", thumbprints(g.EncryptionCertificate.Raw))
	o.say("documentSignature", m.Signature.String(), "  document signature      %s", m.Signature)
	if m.CommunicationsCertificate != nil {
		o.say("communications", sha256hex(m.CommunicationsCertificate.Raw), "  by                      %s", thumbprints(m.CommunicationsCertificate.Raw))
	}
	o.say("otherSigning", len(m.OtherSigningCertificates), "  other signing keys      %d", len(m.OtherSigningCertificates))
}

// guardianExport writes an owner as a guardian that others can grant to. It has no ds:Signature: an owner has no communications key.
func guardianExport(o *options) error {
	owner, err := o.owner()
	if err != nil {
		return err
	}
	raw, err := kps.MakeMetadata(kps.MetadataSpec{SigningCertificate: owner.SigningCertificate, EncryptionCertificate: owner.EncryptionCertificate,
		Signer: owner.Signer, Random: rand.Reader})
	if err != nil {
		return err
	}
	if err := os.WriteFile(o.out, raw, 0o644); err != nil {
		return err
	}
	o.say("metadata", sha256hex(raw), "guardian metadata %s  %s", o.out, sha256hex(raw))
	return nil
}

// guardians are those that --guardian names and the one that --metadata gives. Without --guardian a lab's --metadata is taken as it is.
func (o *options) guardians(ctx context.Context) ([]kps.Guardian, error) {
	var list []kps.Guardian
	for _, name := range strings.FieldsFunc(o.guardian, func(r rune) bool { return r == ',' }) {
		if !policy.ValidName(name) {
			return nil, fmt.Errorf("%w: %q is not a guardian's name", errUsage, name)
		}
		raw, err := os.ReadFile(o.path(guardianPrefix + name + suffixXML))
		if err != nil {
			return nil, fmt.Errorf("%w (guardian import it first)", err)
		}
		m, err := kps.ParseMetadata(raw)
		if err != nil {
			return nil, fmt.Errorf("guardian %s: %w", name, err)
		}
		list = append(list, m.Guardian)
	}
	if o.metadata != "" {
		raw, err := o.readMetadata(ctx)
		if err != nil {
			return nil, err
		}
		o.allowUntrusted = true
		m, g, err := o.importGuardian(raw)
		if err != nil {
			return nil, err
		}
		o.say("guardian", sha256hex(g.SigningCertificate.Raw), "guardian signing certificate %s", thumbprints(g.SigningCertificate.Raw))
		o.say("documentSignature", m.Signature.String(), "metadata document signature  %s", m.Signature)
		list = append(list, *g)
	}
	return list, nil
}

// edit reads the key protector in --in, changes it as its owner and writes it to --out.
func (o *options) edit(change func(*kps.Protector, kps.Owner) (*kps.Protector, error)) error {
	owner, err := o.owner()
	if err != nil {
		return err
	}
	raw, err := os.ReadFile(o.in)
	if err != nil {
		return err
	}
	p, err := kps.ParseProtector(raw)
	if err != nil {
		return err
	}
	q, err := change(p, owner)
	if err != nil {
		return err
	}
	if err := os.WriteFile(o.out, q.Bytes(), 0o644); err != nil {
		return err
	}
	o.say("wrappings", len(q.Wrappings), "wrappings      %d", len(q.Wrappings))
	o.say("protector", sha256hex(q.Bytes()), "key protector  %s  %s", o.out, sha256hex(q.Bytes()))
	return nil
}

func protectorGrant(o *options) error {
	return o.edit(func(p *kps.Protector, owner kps.Owner) (*kps.Protector, error) {
		list, err := o.guardians(context.Background())
		if err != nil {
			return nil, err
		}
		if len(list) == 0 {
			return nil, fmt.Errorf("%w: name a guardian with --guardian or --metadata", errUsage)
		}
		for _, g := range list {
			if p, err = p.Grant(context.Background(), owner, g, rand.Reader); err != nil {
				return nil, err
			}
		}
		return p, nil
	})
}

// protectorRevoke takes guardians out by name, or one wrapping by its id.
func protectorRevoke(o *options) error {
	return o.edit(func(p *kps.Protector, owner kps.Owner) (*kps.Protector, error) {
		var ids []uint32
		if o.id > 0 {
			ids = append(ids, uint32(o.id))
		}
		list, err := o.guardians(context.Background())
		if err != nil {
			return nil, err
		}
		for _, g := range list {
			i := slices.IndexFunc(p.Wrappings, func(w kps.Wrapping) bool {
				return bytes.Equal(w.EncryptionCertificate.Raw, g.EncryptionCertificate.Raw) && bytes.Equal(w.SigningCertificate.Raw, g.SigningCertificate.Raw)
			})
			if i < 0 {
				return nil, errors.New("that guardian has no wrapping in it")
			}
			ids = append(ids, p.Wrappings[i].ID)
		}
		if len(ids) == 0 {
			return nil, fmt.Errorf("%w: name a guardian with --guardian or --metadata, or a wrapping with --id", errUsage)
		}
		for _, id := range ids {
			if p, err = p.Revoke(context.Background(), owner, id, rand.Reader); err != nil {
				return nil, err
			}
		}
		return p, nil
	})
}
