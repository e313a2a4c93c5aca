package policy

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"slices"
	"strings"
	"testing"
)

// What a file says of a computer is kept as it was checked, and nothing of it may fill records or play with a terminal.
func TestKeepsOnlyWellFormedWordsOfAMachine(t *testing.T) {
	s, actors := setUp(t)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	add := func(m *Machine) Command {
		return command(t, CmdHostAddTPM, actors[AdminOperator], TPMHostAdd{Name: "hv7", EK: spki, NameAlg: 11, Symmetric: 128, Version: Version1, Force: true, Reason: "lab", Machine: m})
	}
	for name, m := range map[string]*Machine{
		"long serial": {Serial: strings.Repeat("x", MaxNameLength+1)}, "serial with escapes": {Serial: "\x1b[2J"}, "long UUID": {SMBIOS: wide(MaxNameLength + 1)},
		"many addresses": {MACs: slices.Repeat([]string{"00155D010203"}, MaxMACs+1)}, "separators": {MACs: []string{"00-15-5D-01-02-03"}}, "lower case": {MACs: []string{"00155d010203"}},
		"short address": {MACs: []string{"00155D0102"}}, "half a byte": {MACs: []string{"00155D0102034"}}, "long address": {MACs: []string{strings.Repeat("A", 42)}},
	} {
		t.Run(name, func(t *testing.T) { refused(t, s, add(m)) })
	}
	want := Machine{SMBIOS: "4C4C4544", Serial: "SN 1", MACs: []string{"00155D010203"}}
	s, r := must(t, s, add(&want))
	if m := s.Hosts[r.Subject].TPM.Machine; m == nil || m.Serial != want.Serial || m.SMBIOS != want.SMBIOS || !slices.Equal(m.MACs, want.MACs) {
		t.Errorf("%+v", m)
	}
}
