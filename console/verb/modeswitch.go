package verb

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"guardhouse/appliance/appraise"
	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
)

// ModeEffect is what a switch of the attestation mode would mean for the machines that are registered and not revoked (row C06). A machine
// with a TPM is judged by the last boot that it has shown here; a host key is all that its mode asks for.
type ModeEffect struct {
	Mode         string       `json:"mode"`
	Machines     int          `json:"machines"`
	Pass         []string     `json:"pass"`
	Fail         []HostEffect `json:"fail"`
	NotSeen      []string     `json:"notSeen"`      // registered, but nothing here tells how it boots
	Unregistered []string     `json:"unregistered"` // it has a record in another mode only
	Unknown      string       `json:"unknown,omitempty"`
}

// ModeSwitched is a change of the mode in --json.
type ModeSwitched struct {
	Changed
	Mode *ModeEffect `json:"modeEffect"`
}

// modeEffect judges all machines as the service would if it were in the mode. state are the records with that mode in force.
func modeEffect(ctx context.Context, s *Session, state policy.State, mode policy.Mode) *ModeEffect {
	e := &ModeEffect{Mode: mode.String(), Pass: []string{}, Fail: []HostEffect{}, NotSeen: []string{}, Unregistered: []string{}}
	verdicts := map[string]appraise.Verdict{}
	trust, _ := appraise.NewTrust(state) // what can't be read was told when it was imported
	if mode == policy.ModeTPM {
		err := eachEvidence(ctx, s, false, func(o policy.Observation) error {
			h, ok := state.Hosts[o.Subject]
			if !ok || h.TPM == nil {
				return nil
			}
			if _, facts, err := appraise.Recorded(o.Facts); err == nil && facts != nil {
				verdicts[h.ID] = whole(state, trust, h, facts)
			}
			return nil
		})
		if err != nil {
			e.Unknown = "the evidence of hosts is not known: " + Explain(err).Error()
		}
	}
	machines := map[string]policy.Host{} // the record in the mode, if there is one
	for _, h := range state.Hosts {
		if _, ok := machines[h.Name]; !h.Revoked && (!ok || h.Mode() == mode) {
			machines[h.Name] = h
		}
	}
	e.Machines = len(machines)
	for _, name := range slices.Sorted(maps.Keys(machines)) {
		h := machines[name]
		v, judged := verdicts[h.ID]
		if h.TPM != nil && h.Mode() == mode && !judged {
			v = whole(state, trust, h, nil) // its certificate is known all the same
		}
		switch {
		case h.Mode() != mode:
			e.Unregistered = append(e.Unregistered, name)
		case h.TPM == nil || judged && v.Passed:
			e.Pass = append(e.Pass, name)
		case judged || v.Unauthorized():
			e.Fail = append(e.Fail, HostEffect{name, v.Findings[0].What, v.Findings[0].Remedy})
		default:
			e.NotSeen = append(e.NotSeen, name)
		}
	}
	return e
}

// whole is the verdict on a registered host with a TPM as the service would give it, who it is included.
func whole(state policy.State, trust *appraise.Trust, h policy.Host, facts *evidence.Facts) appraise.Verdict {
	ek, err := evidence.ParseEK(h.TPM.EK)
	if err != nil {
		ek = nil // judged as a key that is not the registered one
	}
	return appraise.Judge(appraise.Input{State: state, Trust: trust, Host: h, EK: ek, Facts: facts})
}

func (e *ModeEffect) page(p *Page) {
	const most = 8
	if e.Unknown != "" {
		p.Line("%s", e.Unknown)
	}
	if e.Machines == 0 {
		return
	}
	p.Field("effect", "of %d machines, %d pass in %s mode by what is known of them here, %d fail, %d have shown no boot here, %d are not registered in it",
		e.Machines, len(e.Pass), e.Mode, len(e.Fail), len(e.NotSeen), len(e.Unregistered))
	for i, h := range e.Fail {
		if i == most {
			p.Line("  and %d more, see --json", len(e.Fail)-most)
			break
		}
		p.Line("  - %s: %s", h.Host, h.Reason).Line("    -> %s", h.Remedy)
	}
	if len(e.NotSeen) > 0 {
		p.Line("? Nobody knows yet: %s", some(e.NotSeen, most))
	}
	if n := len(e.Unregistered); n > 0 {
		p.Line("! %d of %d machines are not registered in %s mode, and get no new health certificate: %s", n, e.Machines, e.Mode, some(e.Unregistered, most))
	}
}

// some are the first of many names.
func some(names []string, most int) string {
	text := strings.Join(names[:min(most, len(names))], ", ")
	if n := len(names) - most; n > 0 {
		text += fmt.Sprintf(" and %d more", n)
	}
	return text
}

// switchMode changes the service, the mode with it, unless --dry-run was given, and says either way what the mode means for the hosts.
func switchMode(ctx context.Context, s *Session, a Args, b policy.ServiceSet) (Output, error) {
	snap, _ := s.Node.Snapshot()
	next, err := tryOn(ctx, s, snap.State, policy.CmdServiceSet, b)
	if err != nil {
		return Output{}, err
	}
	v := ModeSwitched{Changed: Changed{DryRun: a.Has("dry-run")}, Mode: modeEffect(ctx, s, next, *b.Mode)}
	out := Output{Text: new(Page).Line("Nothing was changed.")}
	if !v.DryRun {
		if out, _, err = propose(ctx, s, policy.CmdServiceSet, b); err != nil {
			return Output{}, err
		}
		v.Done = out.Value.(Done)
	}
	v.Mode.page(out.Text)
	if !v.DryRun && snap.State.Service.Mode != *b.Mode {
		out.Text.Line("Hosts are told %s mode from now on. Registrations of both modes are kept. See mode status; to go back: mode undo", *b.Mode)
	}
	out.Value = v
	return out, nil
}

// modeUndo takes the last switch of the mode back. Undoing again does it once more.
func modeUndo(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	last := snap.State.Service.Switched
	if last == nil {
		return Output{}, failed("the attestation mode was never switched", "to switch it: service set --mode MODE")
	}
	return switchMode(ctx, s, a, policy.ServiceSet{Mode: &last.From})
}
