package policy

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// vendors is a service that trusts one TPM vendor, and the certificate of a TPM of theirs with its chain.
func vendors(t *testing.T) (s State, op Actor, ek []byte, cert []byte, chain []string) {
	t.Helper()
	s, actors := setUp(t)
	op = actors[AdminOperator]
	root, key := rsaKey(t, 2048), rsaKey(t, 2048)
	rootCert := certificate(t, root)
	s, _ = must(t, s, command(t, CmdTrustImport, op, TrustImport{Vendor: "infineon", Anchors: []TrustAnchor{{true, "Root", rootCert}}}))
	return s, op, spki(t, key), certificate(t, key), []string{Thumbprint(rootCert)}
}

func refusal(t *testing.T, s State, c Command) *Refused {
	t.Helper()
	_, _, err := Apply(s, c)
	var r *Refused
	if !errors.As(err, &r) {
		t.Fatalf("%s: got %v, want a refusal", c.Kind, err)
	}
	return r
}

// TestVersionsDecideWhoNeedsACertificate is C20 to C22.
func TestVersionsDecideWhoNeedsACertificate(t *testing.T) {
	s, op, ek, cert, chain := vendors(t)
	good := TPMHostAdd{Name: "hv7", EK: ek, NameAlg: 0x000b, Symmetric: 128, EKCert: cert, Chain: chain}
	for name, c := range map[string]struct {
		change func(*TPMHostAdd)
		says   string // of the refusal; empty = accepted
		forced string
	}{
		"v2 by default":     {func(*TPMHostAdd) {}, "", ""},
		"v2 without cert":   {func(b *TPMHostAdd) { b.EKCert, b.Chain = nil, nil }, "no endorsement key certificate", ""},
		"v2 untrusted":      {func(b *TPMHostAdd) { b.Chain = nil }, "does not lead to a trusted root", ""},
		"v2 untrusted, why": {func(b *TPMHostAdd) { b.Chain, b.Untrusted = nil, "the issuer X is in neither store" }, "issuer X", ""},
		"v2 invented chain": {func(b *TPMHostAdd) { b.Chain = []string{strings.Repeat("0", 64)} }, "not among the trusted", ""},
		"v2 forced":         {func(b *TPMHostAdd) { b.Chain, b.Force, b.Reason = nil, true, "old" }, "can't be forced", ""},
		"v1 trusted":        {func(b *TPMHostAdd) { b.Version = Version1 }, "", ""},
		"v1 without cert":   {func(b *TPMHostAdd) { b.Version, b.EKCert, b.Chain = Version1, nil, nil }, "no endorsement key certificate", ""},
		"v1 forced": {func(b *TPMHostAdd) {
			b.Version, b.EKCert, b.Chain, b.Force, b.Reason = Version1, nil, nil, true, "old TPM"
		}, "", "old TPM"},
		"v1 forced, no reason": {func(b *TPMHostAdd) { b.Version, b.Chain, b.Force = Version1, nil, true }, "needs a reason", ""},
		"v1 forced, trusted":   {func(b *TPMHostAdd) { b.Version, b.Force = Version1, true }, "", ""},
		"v3":                   {func(b *TPMHostAdd) { b.Version = "v3" }, "not a policy version", ""},
		"other key's cert":     {func(b *TPMHostAdd) { b.EKCert = certificate(t, rsaKey(t, 2048)) }, "another endorsement key", ""},
		"weak key":             {func(b *TPMHostAdd) { b.EK = spki(t, rsaKey(t, 1024)) }, "not RSA of 2048", ""},
		"unknown template":     {func(b *TPMHostAdd) { b.NameAlg = 4 }, "template", ""},
		"no key":               {func(b *TPMHostAdd) { b.EK = []byte{1} }, "no public key", ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := good
			c.change(&b)
			cmd := command(t, CmdHostAddTPM, op, b)
			if c.says != "" {
				if r := refusal(t, s, cmd); !strings.Contains(r.Reason, c.says) {
					t.Fatalf("refused with %q", r)
				}
				return
			}
			after, r := must(t, s, cmd)
			h := after.Hosts[r.Subject]
			if h.ID != HostID(ek) || h.HostKey != nil || h.TPM.Forced != c.forced || (len(h.TPM.Chain) == 0) != (c.forced != "") {
				t.Fatalf("%+v %+v", h, h.TPM)
			}
			refused(t, after, cmd)
		})
	}
	s, _ = must(t, s, command(t, CmdTrustVendor, op, VendorSwitch{"infineon", false}))
	if r := refusal(t, s, command(t, CmdHostAddTPM, op, good)); !strings.Contains(r.Reason, "switched off") || !strings.Contains(r.Remedy, "tpm-trust vendor infineon on") {
		t.Errorf("a vendor that is off: %v", r)
	}
}

// TestOneMachineInTwoModesIsOne: its records are revoked, restored and removed together, so that none is forgotten.
func TestOneMachineInTwoModesIsOne(t *testing.T) {
	s, op, ek, cert, chain := vendors(t)
	tpm := TPMHostAdd{Name: "hv7", EK: ek, NameAlg: 0x000b, Symmetric: 128, EKCert: cert, Chain: chain}
	s, _ = must(t, s, command(t, CmdHostAdd, op, HostAdd{Name: "hv7", HostKey: spki(t, rsaKey(t, 2048)), Class: "edge"}))
	other := tpm
	other.Class = "core"
	refused(t, s, command(t, CmdHostAddTPM, op, other))
	revoked, _ := must(t, s, command(t, CmdHostRevoke, op, HostRevoke{Name: "hv7"}))
	refused(t, revoked, command(t, CmdHostAddTPM, op, tpm))
	s, _ = must(t, s, command(t, CmdHostAddTPM, op, tpm))
	if hosts := s.HostsByName("hv7"); len(hosts) != 2 || hosts[0].Mode() != ModeHostKey || hosts[1].Class != "edge" {
		t.Fatalf("%+v", hosts)
	}
	core, note, bad := "core", "rack 3", "a b"
	s, _ = must(t, s, command(t, CmdHostSet, op, HostSet{Name: "hv7", Class: &core, Note: &note}))
	for _, h := range s.Hosts {
		if h.Class != core || h.Note != note {
			t.Errorf("%+v", h)
		}
	}
	refused(t, s, command(t, CmdHostSet, op, HostSet{Name: "hv7", Class: &bad}))
	refused(t, s, command(t, CmdHostSet, op, HostSet{Name: "hv8", Class: &core}))
	s, _ = must(t, s, command(t, CmdHostRevoke, op, HostRevoke{Name: "hv7"}))
	for _, h := range s.Hosts {
		if !h.Revoked {
			t.Errorf("the record of mode %d is not revoked", h.Mode())
		}
	}
	s, _ = must(t, s, command(t, CmdHostRestore, op, ByName{"hv7"}))
	for _, h := range s.Hosts {
		if h.Revoked || h.DenyIssuedBefore == 0 {
			t.Errorf("%+v", h)
		}
	}
	if s, _ = must(t, s, command(t, CmdHostRemove, op, ByName{"hv7"})); len(s.Hosts) != 0 {
		t.Error("a record was left")
	}
}

func TestLockedPoliciesStayOnForEveryone(t *testing.T) {
	s, actors := setUp(t)
	owner := actors[AdminOwner]
	off := false
	for i := range Builtins {
		b := &Builtins[i]
		for _, class := range []string{FabricWide, "edge"} {
			c := command(t, CmdPolicySet, owner, PolicySwitch{Policy: strings.ToUpper(b.Name), Class: class, Enabled: &off})
			if !b.Locked {
				must(t, s, c)
				continue
			}
			if r := refusal(t, s, c); !strings.Contains(r.Reason, "locked") {
				t.Errorf("%s: %v", b.Name, r)
			}
			forged := s
			forged.PolicySets = map[string]PolicySet{class: {Enabled: map[string]bool{b.Name: false}}}
			if on, because := forged.Enabled(b, class); !on || because != "locked" {
				t.Errorf("%s is off by a record", b.Name)
			}
		}
	}
	refused(t, s, command(t, CmdPolicySet, owner, PolicySwitch{Policy: "Hgs_Other", Enabled: &off}))
	refused(t, s, command(t, CmdPolicySet, owner, PolicySwitch{Policy: HgsNoDumps, Class: "a b", Enabled: &off}))
}

func TestAClassGoesBeforeTheFabricAndTheFabricBeforeTheDefault(t *testing.T) {
	s, actors := setUp(t)
	op := actors[AdminOperator]
	on, off := true, false
	b, _ := BuiltinByName(HgsIommuEnabled)
	check := func(class string, want bool, why string) {
		t.Helper()
		if got, because := s.Enabled(b, class); got != want || because != why {
			t.Errorf("%q: %v because %s, want %v because %s", class, got, because, want, why)
		}
	}
	set := func(class string, v *bool) {
		t.Helper()
		s, _ = must(t, s, command(t, CmdPolicySet, op, PolicySwitch{Policy: b.Name, Class: class, Enabled: v}))
	}
	check("edge", true, "default")
	set(FabricWide, &off)
	check("edge", false, "fabric")
	set("edge", &on)
	check("edge", true, "edge")
	check("core", false, "fabric")
	set(FabricWide, nil)
	set("edge", &off)
	check("edge", false, "edge")
	check("core", true, "default")
	set("edge", nil)
	if check("edge", true, "default"); len(s.PolicySets) != 0 {
		t.Errorf("empty sets are kept: %v", s.PolicySets)
	}
}

func TestBuiltinsAreThoseOfTheProtocol(t *testing.T) {
	names, guids, hgs := map[string]bool{}, map[string]bool{}, 0
	for _, b := range Builtins {
		if names[b.Name] || guids[b.GUID] || len(b.GUID) != 36 || b.GUID != strings.ToLower(b.GUID) || b.SubStatus == "" || b.Asks == "" {
			t.Errorf("%+v", b)
		}
		names[b.Name], guids[b.GUID] = true, true
		if strings.HasPrefix(b.Name, "Hgs_") {
			hgs++
		}
		if found, ok := BuiltinByName(strings.ToUpper(b.GUID)); !ok || found.Name != b.Name {
			t.Errorf("%s is not found by its GUID", b.Name)
		}
		if b.Locked && !b.Default {
			t.Errorf("%s is locked and off", b.Name)
		}
	}
	if hgs != 14 || len(Builtins) != 15 {
		t.Errorf("%d policies, %d of them Hgs_", len(Builtins), hgs)
	}
}

func TestRegistrationsAreAddedOnceAndRemoved(t *testing.T) {
	s, actors := setUp(t)
	op := actors[AdminOperator]
	m := []Measured{{"dbx", "guid", make([]byte, 32)}}
	base := BaselineAdd{Name: "r740", LogDigest: strings.Repeat("ab", 32), Variables: m}
	ci := CIPolicyAdd{Name: "allow", Digests: []HashValue{{0x000b, make([]byte, 32)}, {0x0004, make([]byte, 20)}}}
	dump := DumpKeyAdd{Name: "ops", SHA256: make([]byte, 32)}
	renamed := func(name string) (BaselineAdd, CIPolicyAdd, DumpKeyAdd) {
		b, c, d := base, ci, dump
		b.Name, c.Name, d.Name = name, name, name
		return b, c, d
	}
	s, _ = must(t, s, command(t, CmdBaselineAdd, op, base))
	s, _ = must(t, s, command(t, CmdCIPolicyAdd, op, ci))
	s, _ = must(t, s, command(t, CmdDumpKeyAdd, op, dump))
	if s.Baselines["r740"].Version != Version2 || s.CIPolicies["allow"].Version != Version2 {
		t.Error("v2 is not the default")
	}
	b, c, d := renamed("again")
	refused(t, s, command(t, CmdBaselineAdd, op, base))
	refused(t, s, command(t, CmdBaselineAdd, op, b))
	refused(t, s, command(t, CmdCIPolicyAdd, op, ci))
	refused(t, s, command(t, CmdCIPolicyAdd, op, c))
	refused(t, s, command(t, CmdDumpKeyAdd, op, dump))
	refused(t, s, command(t, CmdDumpKeyAdd, op, d))
	b.Version, c.Version = Version1, Version1
	s, _ = must(t, s, command(t, CmdBaselineAdd, op, b))
	s, _ = must(t, s, command(t, CmdCIPolicyAdd, op, c))
	p := s.CIPolicies["allow"]
	if !p.Matches(0x0004, make([]byte, 20)) || p.Matches(0x000c, nil) || p.Matches(0x000b, nil) {
		t.Error("a digest is compared wrongly")
	}
	for kind, name := range map[Kind]string{CmdBaselineRemove: "r740", CmdCIPolicyRemove: "allow", CmdDumpKeyRemove: "ops"} {
		refused(t, s, command(t, kind, op, ByName{"other"}))
		s, _ = must(t, s, command(t, kind, op, ByName{name}))
	}
	if len(s.Baselines) != 1 || len(s.CIPolicies) != 1 || len(s.DumpKeys) != 0 {
		t.Errorf("%v %v %v", s.Baselines, s.CIPolicies, s.DumpKeys)
	}
}

func TestRefusesMalformedRegistrations(t *testing.T) {
	s, actors := setUp(t)
	op := actors[AdminOperator]
	digest := strings.Repeat("ab", 32)
	m := func(n int) (list []Measured) {
		for i := range n {
			list = append(list, Measured{fmt.Sprint("v", i), "g", make([]byte, 32)})
		}
		return list
	}
	sha256 := HashValue{0x000b, make([]byte, 32)}
	for name, c := range map[string]Command{
		"baseline without name":      command(t, CmdBaselineAdd, op, BaselineAdd{LogDigest: digest, Variables: m(1)}),
		"baseline without variables": command(t, CmdBaselineAdd, op, BaselineAdd{Name: "x", LogDigest: digest}),
		"baseline without log":       command(t, CmdBaselineAdd, op, BaselineAdd{Name: "x", Variables: m(1)}),
		"baseline too large":         command(t, CmdBaselineAdd, op, BaselineAdd{Name: "x", LogDigest: digest, Variables: m(maxVariables + 1)}),
		"baseline with escapes":      command(t, CmdBaselineAdd, op, BaselineAdd{Name: "x", LogDigest: digest, Variables: []Measured{{"\x1b[2J", "g", make([]byte, 32)}}}),
		"baseline with short digest": command(t, CmdBaselineAdd, op, BaselineAdd{Name: "x", LogDigest: digest, Variables: []Measured{{"dbx", "g", make([]byte, 31)}}}),
		"baseline of version 3":      command(t, CmdBaselineAdd, op, BaselineAdd{Name: "x", LogDigest: digest, Variables: m(1), Version: "v3"}),
		"CI policy without SHA-256":  command(t, CmdCIPolicyAdd, op, CIPolicyAdd{Name: "x", Digests: []HashValue{{0x0004, make([]byte, 20)}}}),
		"CI policy, digest twice":    command(t, CmdCIPolicyAdd, op, CIPolicyAdd{Name: "x", Digests: []HashValue{sha256, sha256}}),
		"CI policy, unknown hash":    command(t, CmdCIPolicyAdd, op, CIPolicyAdd{Name: "x", Digests: []HashValue{sha256, {0x0012, make([]byte, 32)}}}),
		"CI policy with long title":  command(t, CmdCIPolicyAdd, op, CIPolicyAdd{Name: "x", Digests: []HashValue{sha256}, Title: wide(MaxNote + 1)}),
		"dump key too short":         command(t, CmdDumpKeyAdd, op, DumpKeyAdd{Name: "x", SHA256: make([]byte, 20)}),
		"vendor without name":        command(t, CmdTrustImport, op, TrustImport{Anchors: []TrustAnchor{{true, "x", []byte{0x30}}}}),
		"vendor without anchors":     command(t, CmdTrustImport, op, TrustImport{Vendor: "x"}),
		"anchor is no DER":           command(t, CmdTrustImport, op, TrustImport{Vendor: "x", Anchors: []TrustAnchor{{true, "x", []byte("x")}}}),
		"anchor too large":           command(t, CmdTrustImport, op, TrustImport{Vendor: "x", Anchors: []TrustAnchor{{true, "x", bytes.Repeat([]byte{0x30}, MaxEKCertificate+1)}}}),
		"unknown vendor":             command(t, CmdTrustVendor, op, VendorSwitch{"x", true}),
		"unknown anchor":             command(t, CmdTrustRemove, op, ByName{"x"}),
	} {
		t.Run(name, func(t *testing.T) { refused(t, s, c) })
	}
}

func TestVendorsAreTrustedSwitchedAndRemoved(t *testing.T) {
	s, actors := setUp(t)
	op := actors[AdminOperator]
	anchor := func(i byte) TrustAnchor { return TrustAnchor{i == 0, fmt.Sprint("c", i), []byte{0x30, i}} }
	s, _ = must(t, s, command(t, CmdTrustImport, op, TrustImport{Vendor: "stm", Anchors: []TrustAnchor{anchor(0), anchor(1)}}))
	s, r := must(t, s, command(t, CmdTrustImport, op, TrustImport{Vendor: "stm", Anchors: []TrustAnchor{anchor(1), anchor(2)}}))
	if len(s.Anchors) != 3 || !strings.Contains(r.Message, "1 certificates") {
		t.Fatalf("%v %s", s.Anchors, r.Message)
	}
	s, r = must(t, s, command(t, CmdTrustImport, op, TrustImport{Vendor: "cloud", Virtual: true, Anchors: []TrustAnchor{anchor(9)}}))
	if !s.VendorOff("cloud") || !strings.Contains(r.Message, "tpm-trust vendor cloud on") {
		t.Fatalf("virtual TPMs are trusted at once: %s", r.Message)
	}
	s, _ = must(t, s, command(t, CmdTrustVendor, op, VendorSwitch{"cloud", true}))
	s, _ = must(t, s, command(t, CmdTrustVendor, op, VendorSwitch{"stm", false}))
	if s.VendorOff("cloud") || !s.VendorOff("stm") {
		t.Fatalf("%v", s.VendorsOff)
	}
	one := Thumbprint(anchor(1).Certificate)
	if _, err := hex.DecodeString(one); err != nil {
		t.Fatal(err)
	}
	s, _ = must(t, s, command(t, CmdTrustRemove, op, ByName{strings.ToUpper(one)}))
	if len(s.Anchors) != 3 || !s.VendorOff("stm") {
		t.Fatalf("%v %v", s.Anchors, s.VendorsOff)
	}
	s, _ = must(t, s, command(t, CmdTrustRemove, op, ByName{"stm"}))
	if len(s.Anchors) != 1 || s.VendorOff("stm") {
		t.Fatalf("%v %v", s.Anchors, s.VendorsOff)
	}
}

func TestHostsShareTheRoomForThem(t *testing.T) {
	s, op, ek, cert, chain := vendors(t)
	big := Host{ID: "X", Name: "x", HostKey: make([]byte, maxHostBytes*3/4)}
	s.Hosts = map[string]Host{"X": big}
	r := refusal(t, s, command(t, CmdHostAddTPM, op, TPMHostAdd{Name: "hv7", EK: ek, NameAlg: 0x000b, Symmetric: 128, EKCert: cert, Chain: chain}))
	if !strings.Contains(r.Reason, "room") {
		t.Fatal(r)
	}
}
