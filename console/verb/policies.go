package verb

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"guardhouse/appliance/appraise"
	"guardhouse/appliance/policy"
)

// Effect is what a change of policies would do to the hosts whose last evidence this node keeps.
type Effect struct {
	Hosts   int          `json:"hosts"`             // of TPM mode, registered and not revoked
	Judged  int          `json:"judged"`            // of them, with evidence
	Fail    []HostEffect `json:"fail"`              // pass now, would fail
	Pass    []HostEffect `json:"pass"`              // fail now, would pass
	Failing int          `json:"failing"`           // fail before and after
	Update  []string     `json:"update,omitempty"`  // to be updated first: their logs don't tell what the policy asks
	Unknown string       `json:"unknown,omitempty"` // why nothing is known
}

// HostEffect is one host whose verdict would change.
type HostEffect struct {
	Host   string `json:"host"`
	Reason string `json:"reason"` // the first finding: that of the new verdict, or the one that goes away
	Remedy string `json:"remedy,omitempty"`
}

// Changed is a change of policies in --json. With --dry-run nothing was changed and Done is empty.
type Changed struct {
	Done
	DryRun bool    `json:"dryRun,omitempty"`
	Effect *Effect `json:"effect,omitempty"`
}

// effect applies a command to a copy of the records, as the ledger would, and judges all evidence under both. A command that the records
// refuse is an error.
func effect(ctx context.Context, s *Session, kind policy.Kind, body any) (*Effect, error) {
	snap, _ := s.Node.Snapshot()
	return effectOn(ctx, s, snap.State, kind, body)
}

// tryOn applies a command to a copy of records.
func tryOn(ctx context.Context, s *Session, state policy.State, kind policy.Kind, body any) (policy.State, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return state, fmt.Errorf("encode the command: %w", err)
	}
	c := policy.Command{ID: "dry-run", Kind: kind, Actor: s.Actor, At: s.Node.Stamp(), Body: raw}
	var seen map[string]policy.Observation
	last := func(id string) (policy.Observation, bool) { o, ok := seen[id]; return o, ok }
	if state.Stragglers(c, last) != nil { // which the ledger will add, too
		if seen, err = observed(ctx, s, policy.ObservedHost); err != nil {
			return state, err
		}
		c.Stragglers = state.Stragglers(c, last)
	}
	next, _, err := policy.Apply(state, c)
	return next, err
}

// effectOn judges all evidence under records and under what a command would make of them.
func effectOn(ctx context.Context, s *Session, state policy.State, kind policy.Kind, body any) (*Effect, error) {
	next, err := tryOn(ctx, s, state, kind, body)
	if err != nil {
		return nil, err
	}
	return effectOf(ctx, s, state, next, asksFor(state, kind, body)), nil
}

// effectOf judges all evidence under two sets of records. asked are the policies that are switched between them.
func effectOf(ctx context.Context, s *Session, state, next policy.State, asked []string) *Effect {
	e := &Effect{Fail: []HostEffect{}, Pass: []HostEffect{}}
	changed, err := e.judge(ctx, s, state, next, asked)
	if err != nil {
		e.Unknown = "the evidence of hosts is not known: " + Explain(err).Error()
	}
	for _, h := range sortedHosts(state) {
		if h.TPM == nil || h.Revoked {
			continue
		}
		e.Hosts++
		c, ok := changed[h.ID]
		if !ok {
			continue
		}
		if c.update {
			e.Update = append(e.Update, h.Name)
		}
		switch {
		case c.fails:
			e.Fail = append(e.Fail, HostEffect{h.Name, c.reason, c.remedy})
		case c.passes:
			e.Pass = append(e.Pass, HostEffect{Host: h.Name, Reason: c.reason})
		}
	}
	return e
}

// asksFor are the built-in policies that a command switches.
func asksFor(state policy.State, kind policy.Kind, body any) (names []string) {
	var all []policy.PolicySwitch
	if set, ok := body.(policy.PolicySwitch); ok {
		all = append(all, set)
	}
	if kind == policy.CmdDraftCommit && state.Draft != nil {
		for _, step := range state.Draft.Steps {
			var set policy.PolicySwitch
			if step.Kind == policy.CmdPolicySet && json.Unmarshal(step.Body, &set) == nil {
				all = append(all, set)
			}
		}
	}
	for _, set := range all {
		if b, known := policy.BuiltinByName(set.Policy); known {
			names = append(names, b.Name)
		}
	}
	return names
}

// changedVerdict is what a change means for a host of which something is to be said.
type changedVerdict struct {
	fails, passes  bool
	reason, remedy string
	update         bool // the host does not measure what the policy asks for
}

// judge counts the verdicts of all hosts with evidence under two sets of records, and gives those to speak of, by host id. It judges what
// their logs proved; the logs themselves are not read. asked are the policies that are switched.
func (e *Effect) judge(ctx context.Context, s *Session, now, next policy.State, asked []string) (map[string]changedVerdict, error) {
	changed := map[string]changedVerdict{}
	trust, nextTrust, sameTrust := trusts(now, next)
	err := eachEvidence(ctx, s, false, func(o policy.Observation) error {
		h, ok := now.Hosts[o.Subject]
		if !ok || h.TPM == nil || h.Revoked {
			return nil
		}
		_, facts, err := appraise.Recorded(o.Facts)
		if err != nil || facts == nil {
			return nil // what is damaged is as good as none
		}
		e.Judged++
		before := appraise.Review(appraise.Input{State: now, Host: h, Facts: facts})
		after := appraise.Review(appraise.Input{State: next, Host: next.Hosts[h.ID], Facts: facts}) // its class may be what changes
		if before.Passed != after.Passed || !sameTrust {
			// What it booted is not all: a host whose TPM is not trusted fails whatever becomes of the policies.
			before, after = whole(now, trust, h, facts), whole(next, nextTrust, next.Hosts[h.ID], facts)
		}
		c := changedVerdict{fails: before.Passed && !after.Passed, passes: !before.Passed && after.Passed}
		c.update = slices.ContainsFunc(after.Findings, func(f appraise.Finding) bool {
			return f.Kind == appraise.DumpEventsMissing && slices.Contains(asked, f.Policy)
		})
		switch {
		case c.fails:
			c.reason, c.remedy = after.Findings[0].What, after.Findings[0].Remedy
		case c.passes:
			c.reason = before.Findings[0].What
		case !after.Passed:
			e.Failing++
		}
		if c.fails || c.passes || c.update {
			changed[h.ID] = c
		}
		return nil
	})
	return changed, err
}

// trusts are the TPM vendors' certificates of two sets of records, and whether they are the same.
func trusts(now, next policy.State) (trust, nextTrust *appraise.Trust, same bool) {
	trust, _ = appraise.NewTrust(now) // what can't be read was told when it was imported
	if maps.Equal(now.VendorsOff, next.VendorsOff) && maps.EqualFunc(now.Anchors, next.Anchors, func(a, b policy.Anchor) bool { return a.Vendor == b.Vendor && a.Root == b.Root }) {
		return trust, trust, true
	}
	nextTrust, _ = appraise.NewTrust(next)
	return trust, nextTrust, false
}

func (e *Effect) page(p *Page, done bool) {
	const most = 8
	would := "would "
	if done {
		would = "will "
	}
	switch {
	case e.Unknown != "":
		p.Line("%s", e.Unknown)
		return
	case e.Hosts == 0:
		return
	}
	p.Field("effect", "of %d hosts with a TPM, %d have shown evidence here: %d that pass %sfail, %d that fail %spass, %d fail as before",
		e.Hosts, e.Judged, len(e.Fail), would, len(e.Pass), would, e.Failing)
	for i, h := range e.Fail {
		if i == most {
			p.Line("  and %d more, see --json", len(e.Fail)-most)
			break
		}
		p.Line("  - %s: %s", h.Host, h.Reason)
	}
	if n := len(e.Update); n > 0 {
		names := strings.Join(e.Update[:min(most, n)], ", ")
		if n > most {
			names += fmt.Sprintf(" and %d more", n-most)
		}
		p.Line("! Update first, their logs don't tell how they write dumps: %s", names)
		p.Line("  -> install the cumulative updates of Windows on them, and restart them, before this policy is on")
	}
	for i, h := range e.Pass {
		if i == most {
			p.Line("  and %d more, see --json", len(e.Pass)-most)
			break
		}
		p.Line("  + %s: no longer counts: %s", h.Host, h.Reason)
	}
}

// change sends a change of policies, unless --dry-run was given, and shows its effect on hosts either way. With --stage it goes into the draft.
func change(ctx context.Context, s *Session, a Args, kind policy.Kind, body any) (Output, error) {
	if a.Has("stage") {
		return stage(ctx, s, a, kind, body)
	}
	e, err := effect(ctx, s, kind, body)
	if err != nil {
		return Output{}, err
	}
	v := Changed{DryRun: a.Has("dry-run"), Effect: e}
	out := Output{Text: new(Page).Line("Nothing was changed.")}
	if !v.DryRun {
		if out, _, err = propose(ctx, s, kind, body); err != nil {
			return Output{}, err
		}
		v.Done = out.Value.(Done)
	}
	e.page(out.Text, !v.DryRun)
	out.Value = v
	return out, nil
}

// PolicyValue is a built-in policy in --json, as it holds for one class or for all hosts.
type PolicyValue struct {
	policy.Builtin
	Enabled bool            `json:"enabled"`
	Because string          `json:"because"`           // locked, default, fabric, or the class
	Classes map[string]bool `json:"classes,omitempty"` // those with a setting of their own
	Matches int             `json:"matches,omitempty"` // entries that a negative policy can match
}

func policyList(_ context.Context, s *Session, a Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	class := a.Or("class", policy.FabricWide)
	registered := map[string]int{policy.HgsSecureBootSettings: len(snap.State.Baselines), policy.HgsCiPolicy: len(snap.State.CIPolicies),
		policy.HgsDumpEncryptionKey: len(snap.State.DumpKeys)}
	list := []PolicyValue{}
	var rows [][]string
	for _, b := range policy.Builtins {
		v := PolicyValue{Builtin: b, Matches: registered[b.Name], Classes: map[string]bool{}}
		v.Enabled, v.Because = snap.State.Enabled(&b, class)
		for name, set := range snap.State.PolicySets {
			if on, ok := set.Enabled[b.Name]; ok && name != policy.FabricWide {
				v.Classes[name] = on
			}
		}
		list = append(list, v)
		because := v.Because
		if b.Negative {
			because += fmt.Sprintf(", %d registered", v.Matches)
		}
		if len(v.Classes) > 0 && class == policy.FabricWide {
			because += fmt.Sprintf(", %d classes differ", len(v.Classes))
		}
		rows = append(rows, []string{b.Name, onOff(v.Enabled), because})
	}
	p := new(Page).Table([]string{"POLICY", "STATE", "WHY"}, rows)
	negatives(p, list)
	dumpTable(p, list)
	s.modeNoteTPM(p)
	return Output{Text: p, Value: struct {
		Class    string        `json:"class,omitempty"`
		Policies []PolicyValue `json:"policies"`
	}{class, list}}, nil
}

// negatives explains policies that fail because nothing is registered (E25).
func negatives(p *Page, list []PolicyValue) {
	verbs := map[string]string{policy.HgsSecureBootSettings: "baseline add", policy.HgsCiPolicy: "ci-policy add", policy.HgsDumpEncryptionKey: "dump-key add"}
	noDumps := slices.ContainsFunc(list, func(v PolicyValue) bool { return v.Name == policy.HgsNoDumps && v.Enabled })
	for _, v := range list {
		if !v.Negative || !v.Enabled || v.Matches > 0 || v.Name == policy.HgsDumpEncryptionKey && noDumps {
			continue
		}
		who := "every host fails"
		if v.Name == policy.HgsDumpEncryptionKey {
			who = "hosts that encrypt dumps fail"
		}
		p.Blank().Line("! %s has nothing to match yet, so %s.", v.Name, who).Line("  -> %s", verbs[v.Name])
	}
}

// dumpTable says what the three policies on dumps mean together (E19).
func dumpTable(p *Page, list []PolicyValue) {
	on := func(name string) bool {
		i := slices.IndexFunc(list, func(v PolicyValue) bool { return v.Name == name })
		return i >= 0 && list[i].Enabled
	}
	p.Blank()
	switch {
	case on(policy.HgsNoDumps):
		p.Line("Dumps: hosts must not write any.")
	case on(policy.HgsDumpEncryption) && on(policy.HgsDumpEncryptionKey):
		p.Line("Dumps: hosts may write them if they are encrypted to a registered key.")
	case on(policy.HgsDumpEncryption):
		p.Line("! Dumps: hosts may write them if they are encrypted, to whatever key.")
	default:
		p.Line("! Dumps: hosts may write them without encryption, and with them the secrets of virtual machines.")
	}
}

// policySwitch switches a built-in policy; nil takes the setting back.
func policySwitch(on *bool) func(context.Context, *Session, Args, []byte) (Output, error) {
	return func(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
		return change(ctx, s, a, policy.CmdPolicySet, policy.PolicySwitch{Policy: a.Get("policy"), Class: a.Get("class"), Enabled: on})
	}
}
