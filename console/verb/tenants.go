package verb

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"guardhouse/appliance/policy"
)

// tenantVerbs are for tenants that bring keys of their own (row B20).
func tenantVerbs() []Verb {
	name := place("tenant", Word, "its name")
	quota := flag("per-minute", Number, "its quota: transport keys a minute on each node; 0 = no bound")
	classes := flag("classes", Text, "host classes that may use its keys, with commas; all = every class")
	return []Verb{
		{Name: "tenant add", Role: operator, Doors: loggedIn, Risk: Changes, Run: tenantAdd, Params: []Param{name, classes, quota, flag("note", Text, "for people")},
			Help: "record a tenant that brings keys of its own", Example: "tenant add contoso --classes gold",
			More: "Then bring its signing and encryption pair into the token of every node with the vendor's tools, and record them with tenant adopt. " +
				"A tenant's keys open what its owners wrapped for them; they are never primary, because metadata would give them to everybody else."},
		{Name: "tenant list", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: tenantList,
			Help: "tenants with keys of their own, and these keys", Example: "tenant list"},
		{Name: "tenant adopt", Role: operator, Doors: loggedIn, Risk: Changes, Run: tenantAdopt, StdinFlag: "certificate",
			Params: []Param{name, place("key", Text, "the beginning of its reference in key list, 6 characters or more"),
				flag("role", Choice, "what the key is for; default: what its label says", string(policy.RoleSigning), string(policy.RoleEncryption)),
				flag("subject", Text, "name in the certificate that the node makes; default: the service's name"), flag("certificate", Switch, "take its certificate from standard input instead")},
			Stdin: "the pair's certificate, with --certificate: PEM, DER, base64 or PKCS#7",
			Help:  "record a pair in the token as a tenant's", Example: "tenant adopt contoso 5f3ac9 --role encryption",
			Replaces: []string{"Add-HgsKeyProtectionCertificate"}},
		{Name: "tenant set", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: tenantSet, Params: []Param{name, classes, flag("state", Choice, "whether its keys open anything", "on", "off"), quota, dryRun},
			Help: "switch a tenant's keys on or off, change host classes or quota", Example: "tenant set contoso --state off --dry-run"},
		{Name: "tenant remove", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: tenantRemove, Params: []Param{name},
			Help: "forget a tenant whose keys were removed", Example: "tenant remove contoso"},
	}
}

func marshal(body any) (json.RawMessage, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode the command: %w", err)
	}
	return raw, nil
}

// parseClasses reads a list of host classes; all is every class, which is the empty list.
func parseClasses(list string) []string {
	if strings.EqualFold(strings.TrimSpace(list), "all") {
		return []string{}
	}
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
}

func tenantAdd(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	out, _, err := propose(ctx, s, policy.CmdTenantAdd, policy.TenantAdd{Name: a.Get("tenant"), Classes: parseClasses(a.Get("classes")), PerMinute: a.Int("per-minute", 0), Note: a.Get("note")})
	return out, err
}

func tenantRemove(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	out, _, err := propose(ctx, s, policy.CmdTenantRemove, policy.ByName{Name: a.Get("tenant")})
	return out, err
}

func tenantAdopt(ctx context.Context, s *Session, a Args, stdin []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	if _, ok := snap.State.Tenants[a.Get("tenant")]; !ok {
		return Output{}, failed(fmt.Sprintf("there is no tenant %q", clip(a.Get("tenant"))), "tenant add first")
	}
	return addFromToken(ctx, s, a, a.Get("tenant"), stdin)
}

// TenantValue is a tenant in --json.
type TenantValue struct {
	policy.Tenant
	Enabled bool `json:"enabled"`
	// AtQuota is when this node last told one of its hosts to come again because the quota was used up, if within an hour.
	AtQuota *policy.Stamp `json:"atQuota,omitempty"`
	Keys    []KeyValue    `json:"keys"`
}

func tenantList(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	value := struct {
		Tenants []TenantValue `json:"tenants"`
		Warning string        `json:"warning,omitempty"`
	}{Tenants: []TenantValue{}}
	full, unseen := atQuota(ctx, s.Node)
	p := new(Page)
	for _, name := range slices.Sorted(maps.Keys(snap.State.Tenants)) {
		t := snap.State.Tenants[name]
		v := TenantValue{Tenant: t, Enabled: !t.Disabled, Keys: []KeyValue{}}
		p.Blank().Line("%s: %s", name, map[bool]string{true: "enabled", false: "DISABLED: its keys open nothing"}[v.Enabled])
		p.Field("  classes", "%s", map[bool]string{true: "every host class", false: strings.Join(t.Classes, ", ")}[len(t.Classes) == 0]).
			Field("  quota", "%s", t.Quota()).Field("  note", "%s", t.Note)
		if at, ok := full[name]; ok {
			v.AtQuota = &at
			p.Line("! It asked for more than its quota within the last hour, last %s: its machines start late.", when(at)).
				Line("  -> tenant set %s --per-minute, if it may have more; audit tail says which hosts ask", name)
		}
		for _, k := range sortedKeys(snap.State) {
			if k.Tenant == name {
				v.Keys = append(v.Keys, keyValue(k, nil))
				p.Field("  "+string(k.Role), "%.16s, %s", k.Ref, map[bool]string{true: "enabled", false: "disabled"}[k.Enabled])
			}
		}
		value.Tenants = append(value.Tenants, v)
	}
	if len(value.Tenants) == 0 {
		p.Line("No tenant brings keys of its own.")
	}
	if unseen != nil {
		value.Warning = "whether a tenant is at its quota is not known: " + Explain(unseen).Error()
		p.Blank().Line("%s", value.Warning)
	}
	return Output{Text: p, Value: value}, nil
}

// TenantChanged is tenant set in --json. Hosts are those for which the tenant's keys stop, by name.
type TenantChanged struct {
	Done
	DryRun bool     `json:"dryRun,omitempty"`
	Loses  []string `json:"loses"`
}

func tenantSet(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	b := policy.TenantSet{Name: a.Get("tenant")}
	if a.Has("state") {
		off := a.Get("state") == "off"
		b.Disabled = &off
	}
	if a.Has("classes") {
		classes := parseClasses(a.Get("classes"))
		b.Classes = &classes
	}
	if a.Has("per-minute") {
		n := a.Int("per-minute", 0)
		b.PerMinute = &n
	}
	if b.Disabled == nil && b.Classes == nil && b.PerMinute == nil {
		return Output{}, usage("nothing to change", "usage: "+mustUsage("tenant set"))
	}
	raw, err := marshal(b)
	if err != nil {
		return Output{}, err
	}
	snap, _ := s.Node.Snapshot()
	next, r, err := policy.Apply(snap.State, policy.Command{ID: "dry-run", Kind: policy.CmdTenantSet, Actor: s.Actor, At: s.Node.Stamp(), Body: raw})
	if err != nil {
		return Output{}, err
	}
	v := TenantChanged{Done: Done{Message: r.Message, Subject: r.Subject}, DryRun: a.Has("dry-run"), Loses: []string{}}
	k := policy.Key{Tenant: b.Name}
	for _, h := range sortedHosts(snap.State) {
		if snap.State.TenantRefusal(k, h.Class) == "" && next.TenantRefusal(k, h.Class) != "" && !slices.Contains(v.Loses, h.Name) {
			v.Loses = append(v.Loses, h.Name)
		}
	}
	p := new(Page)
	if v.DryRun {
		p.Line("Nothing was changed. It would be: %s", r.Message)
	} else {
		out, r, err := propose(ctx, s, policy.CmdTenantSet, b)
		if err != nil {
			return Output{}, err
		}
		v.Done, p = Done{r.Message, r.Index, r.Subject}, out.Text
	}
	if n := len(v.Loses); n > 0 {
		p.Line("! %s for which the tenant's machines do not start any more: %s", count(n, "host"), clip(strings.Join(v.Loses, ", ")))
	}
	return Output{Text: p, Value: v}, nil
}
