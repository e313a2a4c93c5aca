package verb

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// modeNames are the attestation modes as people write them; modes gives their numbers.
var modeNames = []string{"TPM", "AD", "HostKey"}

var modes = map[string]policy.Mode{"TPM": policy.ModeTPM, "AD": policy.ModeAD, "HostKey": policy.ModeHostKey}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

func serviceShow(_ context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	svc := snap.State.Service
	p := new(Page).Field("service", "%s", svc.Name).Field("mode", "%s", svc.Mode).
		Field("http", "%s (port 80)", onOff(svc.HTTP)).Field("https", "%s (port 443)", onOff(svc.HTTPS)).
		Field("health life", "%s", span(svc.HealthLife)).
		Field("time limit", "nothing is issued while the time may be wrong by more than %s", span(timeLimit(svc)))
	if svc.AttestationOnly {
		p.Field("key protection", "none: this service only attests")
	}
	if svc.OtherSigning {
		p.Field("metadata.xml", "lists the enabled signing keys that are not primary")
	}
	if svc.ForeignForms {
		p.Field("foreign forms", "ON: certificate signatures of key protectors may cover base64 text or the element instead of DER")
	}
	if svc.DenyIssuedBefore > 0 {
		p.Field("refused", "health certificates issued before %s", unixTime(svc.DenyIssuedBefore))
	}
	return Output{Text: p, Value: struct {
		Name             string `json:"name"`
		Mode             string `json:"mode"`
		HTTP             bool   `json:"http"`
		HTTPS            bool   `json:"https"`
		HealthLife       string `json:"healthLife"`
		DenyIssuedBefore int64  `json:"denyIssuedBefore,omitempty"`
		KeyProtection    bool   `json:"keyProtection"`
		OtherSigning     bool   `json:"otherSigning"`
		ForeignForms     bool   `json:"foreignForms"`
		TimeLimit        string `json:"timeLimit"`
	}{svc.Name, svc.Mode.String(), svc.HTTP, svc.HTTPS, svc.HealthLife.String(), svc.DenyIssuedBefore, !svc.AttestationOnly, svc.OtherSigning, svc.ForeignForms, timeLimit(svc).String()}}, nil
}

func serviceSet(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	var b policy.ServiceSet
	if a.Has("mode") {
		m := modes[a.Get("mode")]
		b.Mode = &m
	}
	for name, field := range map[string]**bool{"http": &b.HTTP, "https": &b.HTTPS, "other-signing": &b.OtherSigning, "foreign-forms": &b.ForeignForms} {
		if a.Has(name) {
			on := a.Get(name) == "on"
			*field = &on
		}
	}
	if a.Has("health-life") {
		d, err := time.ParseDuration(a.Get("health-life"))
		if err != nil {
			return Output{}, usage("--health-life is not a duration", "write it like 8h or 90m")
		}
		b.HealthLife = &d
	}
	if a.Has("time-limit") {
		d, err := time.ParseDuration(a.Get("time-limit"))
		if err != nil {
			return Output{}, usage("--time-limit is not a duration", "write it like 60s or 2m")
		}
		b.TimeBound = &d
	}
	if b == (policy.ServiceSet{}) {
		return Output{}, usage("nothing to change", "usage: "+mustUsage("service set"))
	}
	switch {
	case b.Mode != nil:
		return switchMode(ctx, s, a, b)
	case a.Has("dry-run"):
		snap, _ := s.Node.Snapshot()
		_, err := tryOn(ctx, s, snap.State, policy.CmdServiceSet, b)
		return Output{Text: new(Page).Line("Nothing was changed. No host's verdict depends on these settings."), Value: Changed{DryRun: true}}, err
	}
	out, _, err := propose(ctx, s, policy.CmdServiceSet, b)
	return out, err
}

func mustUsage(name string) string {
	v, _ := Lookup(name)
	return v.Usage()
}

// NetworkValue is network show in --json: what is set and what the machine has.
type NetworkValue struct {
	Node     string           `json:"node"`
	Settings policy.Network   `json:"settings"`
	Links    []rpc.LinkStatus `json:"links"`
	Warning  string           `json:"warning,omitempty"`
}

func networkShow(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	self, _ := s.Node.Self()
	if a.Has("toml") && !a.JSON {
		text, err := toml.Marshal(self.Network)
		if err != nil {
			return Output{}, fmt.Errorf("write TOML: %w", err)
		}
		p := new(Page)
		p.b.WriteString(CleanLines(string(text)))
		return Output{Text: p, Raw: true}, nil
	}
	v := NetworkValue{Node: self.Name, Settings: self.Network, Links: []rpc.LinkStatus{}}
	st, err := rpc.InitStatus.Call(ctx, s.Node.Init, rpc.Empty{})
	p := new(Page)
	if err != nil {
		v.Warning = "the state of the interfaces is not known: " + Explain(err).Error()
	} else {
		v.Links = append(v.Links, st.Links...)
	}
	for _, i := range self.Network.Interfaces {
		p.Blank().Line("%s", interfaceText(i)).Field("  addresses", "%s", cmp.Or(strings.Join(i.Addresses, ", "), dhcpText(i.DHCP))).
			Field("  gateways", "%s", strings.Join(i.Gateways, ", "))
		for _, l := range st.Links {
			if l.Name == i.Name {
				linkText(p, l)
			}
		}
	}
	p.Blank().Field("resolvers", "%s", cmp.Or(strings.Join(self.Network.Resolvers, ", "), "none"))
	for _, l := range st.Links {
		if !slices.ContainsFunc(self.Network.Interfaces, func(i policy.Interface) bool { return i.Name == l.Name }) {
			p.Blank().Line("%s: not used; MAC %s", cmp.Or(l.Device, l.Name), l.MAC)
		}
	}
	if v.Warning != "" {
		p.Blank().Line("%s", v.Warning)
	}
	return Output{Text: p, Value: v}, nil
}

func dhcpText(on bool) string {
	if on {
		return "from DHCP"
	}
	return "none"
}

func interfaceText(i policy.Interface) string {
	roles := make([]string, len(i.Roles))
	for n, r := range i.Roles {
		roles[n] = string(r)
	}
	text := i.Name + ": " + strings.Join(roles, ", ") + "; MAC " + strings.Join(i.MAC, ", ")
	if i.Bond != "" {
		text += "; bond " + i.Bond
	}
	if i.VLAN > 0 {
		text += fmt.Sprintf("; VLAN %d", i.VLAN)
	}
	if i.MTU > 0 {
		text += fmt.Sprintf("; MTU %d", i.MTU)
	}
	return text
}

func linkText(p *Page, l rpc.LinkStatus) {
	state := "NO LINK: is the cable in?"
	if l.Link {
		state = "link up"
	}
	p.Field("  now", "%s %s, %s, has %s", l.Device, l.MAC, state, cmp.Or(strings.Join(l.Addresses, ", "), "no address"))
	if l.Problem != "" {
		p.Field("  problem", "%s", l.Problem).Field("  remedy", "%s", l.Remedy)
	}
}

// ParseNetwork reads the network settings, bare or below [node.network] as in an answer file. Unknown keys are errors with their line.
func ParseNetwork(text []byte) (policy.Network, error) {
	if len(text) > maxInput {
		return policy.Network{}, usage("the input is larger than 64 KiB", "")
	}
	var doc struct {
		policy.Network
		Node struct {
			Network policy.Network `toml:"network"`
		} `toml:"node"`
	}
	d := toml.NewDecoder(bytes.NewReader(fromUTF16(text)))
	d.DisallowUnknownFields()
	if err := d.Decode(&doc); err != nil {
		return policy.Network{}, failed("the settings do not parse: "+tomlError(err), "compare with network show --toml")
	}
	n := doc.Network
	if len(n.Interfaces) == 0 && len(n.Resolvers) == 0 {
		n = doc.Node.Network
	}
	if len(n.Interfaces) == 0 {
		return policy.Network{}, failed("the settings have no [[interface]]", "compare with network show --toml")
	}
	return n, nil
}

func tomlError(err error) string {
	switch e := err.(type) {
	case *toml.DecodeError:
		row, _ := e.Position()
		return fmt.Sprintf("line %d: %s", row, strings.TrimPrefix(e.Error(), "toml: "))
	case *toml.StrictMissingError:
		var unknown []string
		for _, m := range e.Errors[:min(5, len(e.Errors))] {
			row, _ := m.Position()
			unknown = append(unknown, fmt.Sprintf("line %d: unknown key %s", row, strings.Join(m.Key(), ".")))
		}
		return strings.Join(unknown, ", ")
	}
	return strings.TrimPrefix(err.Error(), "toml: ")
}

func networkSet(ctx context.Context, s *Session, _ Args, stdin []byte) (Output, error) {
	n, err := ParseNetwork(stdin)
	if err != nil {
		return Output{}, err
	}
	return setNode(ctx, s, policy.NodeSet{Network: &n})
}

func setNode(ctx context.Context, s *Session, b policy.NodeSet) (Output, error) {
	self, ok := s.Node.Self()
	if !ok {
		return Output{}, unavailable("this node has no record yet", "try again in a few seconds")
	}
	b.Node = self.ID
	out, _, err := propose(ctx, s, policy.CmdNodeSet, b)
	return out, err
}

// middle is the middle of the interval in which UTC lies, and half its width.
func middle(t rpc.ClockView) (now string, bound time.Duration) {
	half := t.Latest.Sub(t.Earliest) / 2
	return t.Earliest.Add(half).UTC().Format("2006-01-02 15:04:05 UTC"), half.Round(time.Microsecond)
}

func problems(p *Page, list []policy.Problem) {
	for _, problem := range list {
		p.Blank().Line("! %s", problem.What)
		if problem.Remedy != "" {
			p.Line("  -> %s", problem.Remedy)
		}
	}
}
