package verb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
)

// FoundHost is a host that host find gives, in --json. By is what of the record it was found by.
type FoundHost struct {
	HostValue
	By string `json:"by"`
}

// sought is what somebody looks for: a word, or the key in a file.
type sought struct {
	word string   // as given
	hex  string   // word as upper-case hexadecimal; "" where it is none
	ids  []string // of the key in the file, as each kind of host would have it
	name string   // of the host, by its platform identifier
	add  string   // the verb that takes the file; "": both do
}

// shortestID is how much of an id must be given; host list shows so much.
const shortestID = 8

func soughtWord(word string) sought {
	w := sought{word: strings.TrimSpace(word)}
	digits := strings.ToUpper(strings.NewReplacer(":", "", " ", "").Replace(w.word))
	if digits = strings.TrimPrefix(digits, "0X"); digits != "" && strings.Trim(digits, "0123456789ABCDEF") == "" {
		w.hex = digits
	}
	return w
}

// soughtFile reads what host add and host add-tpm do. A certificate is not asked which of the two it is for: an endorsement key in an
// unusual form has another hash as host key.
func soughtFile(stdin []byte) (sought, error) {
	if len(strings.TrimSpace(string(fromUTF16(stdin)))) == 0 {
		return sought{}, usage("nothing to look for", "give a word or a file: host find hv7, or host find < hv7.xml")
	}
	in, keyErr := ParseInput(stdin)
	if errors.Is(keyErr, errPrivateKey) {
		return sought{}, keyErr
	}
	e, ekErr := parseEndorsement(stdin)
	var w sought
	if ekErr == nil {
		w.ids, w.name = append(w.ids, e.ek.ID()), e.name
	}
	if keyErr == nil && !slices.Contains(w.ids, policy.HostID(in.SPKI)) {
		w.ids = append(w.ids, policy.HostID(in.SPKI))
	}
	switch {
	case keyErr == nil && ekErr == nil:
		return w, nil
	case keyErr == nil:
		w.add = "host add"
		return w, nil
	case ekErr == nil:
		w.add = "host add-tpm"
		return w, nil
	case strings.HasPrefix(strings.TrimSpace(string(fromUTF16(stdin))), "<"):
		return sought{}, ekErr
	}
	return sought{}, failed("no platform identifier, and "+Explain(keyErr).Reason,
		"give what the host writes, (Get-PlatformIdentifier -Name NAME).Save(FILE) or Get-HgsClientHostKey, or one certificate or public key")
}

// isID reports whether it is what a host of this id would be looked for by.
func (w sought) isID(id string) bool {
	return slices.Contains(w.ids, id) || len(w.hex) >= shortestID && strings.HasPrefix(id, w.hex)
}

// by is what the host is found by; "": it is not the one.
func (w sought) by(h policy.Host) string {
	switch {
	case w.word != "" && strings.EqualFold(h.Name, w.word):
		return "name"
	case h.TPM == nil && w.isID(h.ID):
		return "host key"
	case h.TPM == nil:
		return ""
	case w.isID(h.ID):
		return "EK"
	case w.word != "" && strings.EqualFold(h.TPM.Inventory, w.word):
		return "inventory number"
	case w.word == "":
		return ""
	case w.hex != "" && len(h.TPM.EKCert) > 0:
		if by := w.byCertificate(h.TPM.EKCert); by != "" {
			return by
		}
	}
	return w.byMachine(h.TPM.Machine)
}

// byMachine goes by what the host's platform identifier said of the computer; m may be nil.
func (w sought) byMachine(m *policy.Machine) string {
	switch {
	case m == nil:
	case strings.EqualFold(m.Serial, w.word):
		return "serial number of the computer"
	case m.SMBIOS != "" && strings.EqualFold(strings.Trim(m.SMBIOS, "{}"), strings.Trim(w.word, "{}")):
		return "SMBIOS UUID"
	case slices.Contains(m.MACs, macDigits(w.word)):
		return "MAC address"
	}
	return ""
}

func (w sought) byCertificate(der []byte) string {
	c, err := evidence.ParseCertificate(der)
	if err != nil {
		return ""
	}
	s1, s256 := thumbprints(c.Original)
	switch {
	case strings.TrimLeft(w.hex, "0") == fmt.Sprintf("%X", c.SerialNumber):
		return "serial number of its EK certificate"
	case w.hex == s1, w.hex == strings.ToUpper(s256):
		return "thumbprint of its EK certificate"
	}
	return ""
}

// absent is the answer where no host was found, with what to do about it.
func (w sought) absent(ctx context.Context, s *Session, state policy.State) error {
	what := fmt.Sprintf("no host is registered that has the name, id, inventory number, serial number, SMBIOS UUID or MAC address %q, or an EK certificate with it as serial number or thumbprint", clip(w.word))
	if len(w.ids) > 0 {
		what = "no host is registered with the key in this file, whose id is " + w.ids[0]
	}
	add := cmp.Or(w.add, "host add")
	if w.add == "" && state.Service != nil && state.Service.Mode == policy.ModeTPM {
		add = "host add-tpm"
	}
	if len(w.ids) > 0 || len(w.hex) >= shortestID {
		waiting, err := pending(ctx, s)
		if err != nil {
			what += "; whether it has asked is not known: " + Explain(err).Reason
		}
		for _, v := range waiting {
			if w.isID(v.ID) {
				return failed(fmt.Sprintf("%s; it has asked from %s, last %s", what, Clean(v.Source), when(v.Last)), "look at it with host pending; to accept it: "+v.Accept)
			}
		}
	}
	if w.name != "" && len(state.HostsByName(w.name)) > 0 {
		return failed(fmt.Sprintf("%s; a host of the name %s in it is, with another key", what, clip(w.name)),
			fmt.Sprintf("see host show %s; if its TPM was replaced: host remove %s, then %s %s < FILE", w.name, w.name, add, w.name))
	}
	return failed(what, "see host pending for those that asked, or register it: "+add+" NAME < FILE")
}

func hostFind(ctx context.Context, s *Session, a Args, stdin []byte) (Output, error) {
	w := soughtWord(a.Get("word"))
	if w.word == "" {
		var err error
		if w, err = soughtFile(stdin); err != nil {
			return Output{}, err
		}
	}
	snap, _ := s.Node.Snapshot()
	seen, unseen := observed(ctx, s, policy.ObservedHost)
	value := struct {
		Hosts   []FoundHost `json:"hosts"`
		Warning string      `json:"warning,omitempty"`
	}{}
	var rows [][]string
	var found []string
	for _, h := range sortedHosts(snap.State) {
		by := w.by(h)
		if by == "" {
			continue
		}
		v := FoundHost{s.hostValue(snap.State, h, seen), by}
		value.Hosts = append(value.Hosts, v)
		rows = append(rows, v.row())
		if !slices.Contains(found, by) {
			found = append(found, by)
		}
	}
	if len(rows) == 0 {
		return Output{}, w.absent(ctx, s, snap.State)
	}
	p := new(Page).Table(hostHeader, rows).Line("Found by: %s.", strings.Join(found, ", "))
	if unseen != nil {
		value.Warning = "when hosts attested is not known: " + Explain(unseen).Error()
		p.Blank().Line("%s", value.Warning)
	}
	return Output{Text: p, Value: value}, nil
}
