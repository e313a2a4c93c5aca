package verb

import (
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

func denialVerbs() []Verb {
	name := place("name", Word, "a name for it here")
	return []Verb{
		{Name: "host deny", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: hostDeny,
			Params: []Param{name, flag("common-name", Text, "of the certificate, for example a host id; or its whole subject"),
				flag("spki", Text, "SHA-256 of its public key, 64 hexadecimal digits"), flag("note", Text, "for people")},
			Stdin: "the health certificate; not with --common-name or --spki",
			Help:  "refuse a health certificate, whoever issued it", Example: "host deny site2-hv7 --common-name hv7.site2.example.test",
			More: "For hosts that are not registered here but come with health certificates of a trusted foreign attestation signer. A registered host is refused, " +
				"also with such certificates, by host revoke."},
		{Name: "host allow", Role: operator, Doors: loggedIn, Risk: Changes, Run: hostAllow, Params: []Param{place("name", Word, "its name in host denied")},
			Help: "take back what host deny refused", Example: "host allow site2-hv7"},
		{Name: "host denied", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: hostDenied,
			Help: "health certificates that are refused, whoever issued them", Example: "host denied"},
	}
}

func classVerbs() []Verb {
	return []Verb{
		{Name: "class list", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: classList,
			Help: "host classes: how many hosts, offline caching", Example: "class list",
			Replaces: []string{"Get-HgsKeyProtectionConfiguration"}},
		{Name: "class offline-caching", Role: operator, Doors: loggedIn, Risk: Changes, Run: classOffline,
			Params: []Param{place("class", Word, "host class"), flag("unwraps", Number, "how many, what hosts are told as MaxOfflineUnwraps; default 1"),
				flag("until", Text, "UTC as 2026-12-31 or 2026-12-31T15:04:05Z; at most 366 days"), flag("off", Switch, "end it"), flag("note", Text, "for people")},
			Help: "let hosts of a class start machines without this service", Example: "class offline-caching edge --until 2026-12-31",
			More: "Off by default. A host that opens a key protector while this holds may keep the transport key, sealed to itself, and start the virtual machine " +
				"while this service is out of reach. What a host keeps it keeps: neither the end nor --off nor host revoke takes it back. Only a new transport key does, " +
				"and the machine gets one at its next start with the service in reach.",
			Replaces: []string{"Set-HgsKeyProtectionConfiguration"}},
	}
}

func hostDeny(ctx context.Context, s *Session, a Args, stdin []byte) (Output, error) {
	b := policy.HostDeny{Name: a.Get("name"), Subject: a.Get("common-name"), Key: strings.ToLower(a.Get("spki")), Note: a.Get("note")}
	if b.Subject == "" && b.Key == "" {
		in, err := ParseInput(stdin)
		if err != nil {
			return Output{}, err
		}
		if in.Certificate == nil {
			return Output{}, failed("this is a bare public key", "give the health certificate, or the key's hash with --spki")
		}
		if b.Subject = in.Certificate.Subject.CommonName; b.Subject == "" {
			b.Subject = in.Certificate.Subject.String()
		}
		spki, err := x509.MarshalPKIXPublicKey(in.Certificate.PublicKey)
		if err != nil {
			return Output{}, failed("the certificate's key can't be used: "+err.Error(), "")
		}
		b.Key = string(policy.RefOf(spki))
	}
	out, _, err := propose(ctx, s, policy.CmdHostDeny, b)
	if err == nil {
		out.Text.Field("subject", "%s", b.Subject).Field("key", "%s", b.Key)
	}
	return out, err
}

func hostAllow(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	return byName(ctx, s, policy.CmdHostAllow, a)
}

func hostDenied(_ context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	list := []policy.Denial{}
	p := new(Page)
	for _, name := range slices.Sorted(maps.Keys(snap.State.Denials)) {
		d := snap.State.Denials[name]
		list = append(list, d)
		p.Blank().Line("%s", d.Name).Field("  subject", "%s", d.Subject).Field("  key", "%s", d.Key).Field("  note", "%s", d.Note).Field("  added", "%s", when(d.Added))
	}
	revoked := 0
	for _, h := range snap.State.Hosts {
		if h.Revoked {
			revoked++
		}
	}
	if len(list) == 0 {
		p.Line("Nothing is denied by name.")
	}
	p.Blank().Line("%d registered hosts are revoked (host list): they are refused with any attestation signer's certificate.", revoked)
	return Output{Text: p, Value: struct {
		Denials []policy.Denial `json:"denials"`
		Revoked int             `json:"revoked"`
	}{list, revoked}}, nil
}

// ClassValue is a host class in --json.
type ClassValue struct {
	Name    string                 `json:"name"`
	Hosts   int                    `json:"hosts"`
	Offline *policy.OfflineCaching `json:"offline,omitempty"`
	Ended   bool                   `json:"ended,omitempty"` // its offline caching has come to its end
}

func classList(_ context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	by := map[string]*ClassValue{}
	class := func(name string) *ClassValue {
		if by[name] == nil {
			by[name] = &ClassValue{Name: name}
		}
		return by[name]
	}
	for _, h := range snap.State.Hosts {
		class(h.Class).Hosts++
	}
	stamp := s.Node.Stamp()
	for name, o := range snap.State.Offline {
		v := class(name)
		v.Offline = &o
		_, holds := snap.State.OfflineUnwraps(name, time.UnixMilli(stamp.Latest))
		v.Ended = stamp.Latest > 0 && !holds
	}
	list := []ClassValue{}
	rows := [][]string{}
	for _, name := range slices.Sorted(maps.Keys(by)) {
		v := *by[name]
		list = append(list, v)
		rows = append(rows, []string{v.Name, fmt.Sprint(v.Hosts), v.offlineText()})
	}
	p := new(Page)
	if len(rows) == 0 {
		p.Line("There is no host yet, so there is no host class.")
	} else {
		p.Table([]string{"CLASS", "HOSTS", "OFFLINE CACHING"}, rows)
	}
	return Output{Text: p, Value: struct {
		Classes []ClassValue `json:"classes"`
	}{list}}, nil
}

func (v ClassValue) offlineText() string {
	switch {
	case v.Offline == nil:
		return "off"
	case v.Ended:
		return "ended " + unixTime(v.Offline.Until)
	}
	return fmt.Sprintf("%d unwraps, until %s", v.Offline.MaxUnwraps, unixTime(v.Offline.Until))
}

func classOffline(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	b := policy.OfflineSet{Class: a.Get("class"), Note: a.Get("note")}
	if a.Has("off") {
		if a.Has("until") || a.Has("unwraps") {
			return Output{}, usage("--off goes alone", "usage: "+mustUsage("class offline-caching"))
		}
	} else {
		n := a.Int("unwraps", 1)
		if n < 1 || n > policy.MaxOfflineUnwraps {
			return Output{}, usage(fmt.Sprintf("--unwraps is not 1 to %d", policy.MaxOfflineUnwraps), "to end it: --off")
		}
		end, err := parseTime(cmp.Or(a.Get("until"), "missing"))
		if err != nil {
			return Output{}, usage("--until is missing or not a time", "it has an end: --until 2026-12-31")
		}
		b.MaxUnwraps, b.Until = uint32(n), end.Unix()
	}
	out, _, err := propose(ctx, s, policy.CmdClassOffline, b)
	return out, err
}

// certifiedKeys are the keys that this node saw health certificates of a host certify; what it does not know, host deny can name.
func certifiedKeys(ctx context.Context, s *Session, name string) (keys []string) {
	snap, _ := s.Node.Snapshot()
	for _, h := range snap.State.HostsByName(name) {
		list, err := rpc.LedgerObserved.Call(ctx, s.Node.Ledger, rpc.ObservedRequest{Kind: policy.ObservedIdentity, Subject: h.ID})
		if err != nil {
			continue // the revocation must not wait for what only helps against foreign certificates under another name
		}
		for _, o := range list {
			if k := o.Facts["vsmKey"]; o.Subject == h.ID && len(k) == 64 && !slices.Contains(keys, k) {
				keys = append(keys, k)
			}
		}
	}
	return keys
}
