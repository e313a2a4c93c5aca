package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// ModeSwitch is the last change of the attestation mode.
type ModeSwitch struct {
	From Mode  `json:"from"`
	At   Stamp `json:"at"`
}

// modeWords are the names of the modes as the answer file and service set write them.
var modeWords = map[Mode]string{ModeTPM: "TPM", ModeAD: "AD", ModeHostKey: "HostKey"}

func (m Mode) String() string {
	if s, ok := modeWords[m]; ok {
		return s
	}
	return fmt.Sprintf("unknown (%d)", int(m))
}

// Progress is how far a machine has come in a mode.
type Progress string

// The states of a machine. Its last word counts: one that passed and then failed has failed.
const (
	MachinePassed        Progress = "passed"
	MachineFailed        Progress = "failed"
	MachineNotSeen       Progress = "not seen"
	MachineNotRegistered Progress = "not registered" // it has a record in another mode only
	MachineRevoked       Progress = "revoked"
)

// ProgressOf says how far the host of a record has come, by the last that was seen of it (ok: anything was). since is the switch to the
// service's present mode, nil where only the last word counts: what was not certainly seen after it says nothing.
func ProgressOf(h Host, last Observation, ok bool, since *ModeSwitch) Progress {
	switch {
	case h.Revoked:
		return MachineRevoked
	case !ok || since != nil && (since.At.Latest == 0 || last.Last.Earliest < since.At.Latest):
		return MachineNotSeen
	case last.Facts["verdict"] == "ok":
		return MachinePassed
	}
	return MachineFailed
}

// maxStragglers is how many of them a refusal names.
const maxStragglers = 8

// Stragglers are the registered machines, not revoked, that have not passed in the service's mode since it was switched on. The ledger puts
// them into a command that removes what another mode needs, because only it knows them; whatever the sender says of them is thrown away.
// They hold for one switch only: Mode and Since must be the records' when the command is applied.
type Stragglers struct {
	Mode  Mode        `json:"mode"`
	Since Stamp       `json:"since"`
	Of    int         `json:"of"` // machines that were looked at
	Count int         `json:"count"`
	First []Straggler `json:"first,omitempty"` // by name, at most 8
}

// Straggler is one of them. Last and Finding are of its last attestation in this mode, if any was seen.
type Straggler struct {
	Host    string   `json:"host"`
	State   Progress `json:"state"`
	Last    Stamp    `json:"last,omitzero"`
	Finding string   `json:"finding,omitempty"`
}

func (s Straggler) String() string {
	var more []string
	if s.Last.Latest > 0 {
		more = append(more, "last seen "+s.Last.minute())
	}
	if s.Finding != "" {
		more = append(more, s.Finding)
	}
	if len(more) == 0 {
		return s.Host + " " + string(s.State)
	}
	return fmt.Sprintf("%s %s (%s)", s.Host, s.State, strings.Join(more, ", "))
}

// minute is a stamp for people, in UTC.
func (s Stamp) minute() string {
	if s.Latest == 0 {
		return "at a time not known"
	}
	return time.UnixMilli(s.Latest).UTC().Format("2006-01-02 15:04 UTC")
}

// Removal is the body of a command that removes a record of TPM mode by its name. Phrase is what the refusal of an earlier try has asked for.
type Removal struct {
	Name   string `json:"name"`
	Phrase string `json:"phrase,omitempty"`
}

// HostRemove forgets a machine, or with Mode only its record in that mode.
type HostRemove struct {
	Name   string `json:"name"`
	Mode   Mode   `json:"mode,omitempty"`
	Phrase string `json:"phrase,omitempty"`
}

// records are those that the command removes.
func (b HostRemove) records(s *State) []Host {
	return slices.DeleteFunc(s.HostsByName(b.Name), func(h Host) bool { return b.Mode != ModeUnknown && h.Mode() != b.Mode })
}

// leaves reports whether the machine will not be registered any more.
func (b HostRemove) leaves(s *State) bool { return len(b.records(s)) == len(s.HostsByName(b.Name)) }

// guarded reports whether a mode's registrations are kept: it is not in force, and some other one was before.
func (s *State) guarded(mode Mode) bool {
	return s.Service != nil && s.Service.Switched != nil && s.Service.Mode != mode
}

// Stragglers looks at the machines for a command, with what seen gives for a host's id; nil if the command removes nothing that is kept. A
// machine that the command forgets altogether does not count.
func (s State) Stragglers(c Command, seen func(id string) (Observation, bool)) *Stragglers {
	gone := ""
	switch c.Kind {
	case CmdHostRemove:
		b, err := decode[HostRemove](c)
		if err != nil || !slices.ContainsFunc(b.records(&s), func(h Host) bool { return s.guarded(h.Mode()) }) {
			return nil
		}
		if b.leaves(&s) {
			gone = b.Name
		}
	case CmdBaselineRemove, CmdCIPolicyRemove, CmdDumpKeyRemove, CmdTrustRemove:
		if !s.guarded(ModeTPM) {
			return nil
		}
	default:
		if !s.guarded(ModeTPM) || !s.draftRemoves(c) {
			return nil
		}
	}
	list := &Stragglers{Mode: s.Service.Mode, Since: s.Service.Switched.At}
	for _, m := range s.machines(seen) {
		if m.Host == gone || m.State == MachineRevoked {
			continue
		}
		list.Of++
		if m.State == MachinePassed {
			continue
		}
		if list.Count++; list.Count <= maxStragglers {
			list.First = append(list.First, m)
		}
	}
	return list
}

// machines is how far each machine has come in the mode that is in force, by name.
func (s *State) machines(seen func(id string) (Observation, bool)) []Straggler {
	byName := make(map[string]Straggler, len(s.Hosts))
	for _, h := range s.Hosts {
		if h.Mode() != s.Service.Mode {
			if _, ok := byName[h.Name]; !ok {
				state := MachineNotRegistered
				if h.Revoked {
					state = MachineRevoked
				}
				byName[h.Name] = Straggler{Host: h.Name, State: state}
			}
			continue
		}
		last, ok := seen(h.ID)
		m := Straggler{Host: h.Name, State: ProgressOf(h, last, ok, s.Service.Switched)}
		if ok {
			m.Last = last.Last
			if v := last.Facts["verdict"]; v != "ok" && validText(v, MaxNameLength) {
				m.Finding = v
			}
		}
		byName[h.Name] = m
	}
	all := make([]Straggler, 0, len(byName))
	for _, name := range sortedNames(byName) {
		all = append(all, byName[name])
	}
	return all
}

// phrase is what somebody types who gives up the way back all the same: one word, so that no shell takes it apart.
func (l *Stragglers) phrase(old Mode) string {
	return fmt.Sprintf("remove-%s-although-%d-of-%d-hosts-have-not-passed-in-%s", old, l.Count, l.Of, l.Mode)
}

// keepOld refuses to remove what belongs to a mode that was in force before, while machines have not passed in the present one: the way
// back would be gone. With the right phrase it gives what the record of the command says of it.
func (s *State) keepOld(c Command, old Mode, phrase string) (note string, err error) {
	l := c.Stragglers
	switch {
	case !s.guarded(old):
		return "", nil
	case l == nil || l.Mode != s.Service.Mode || l.Since != s.Service.Switched.At:
		return "", &Refused{c.Kind, "which hosts have passed since the mode was switched was not looked at", "ask again"}
	case l.Count == 0:
		return "", nil
	case phrase == l.phrase(old):
		return fmt.Sprintf("; by typed phrase, while %d of %d hosts have not passed in %s mode", l.Count, l.Of, l.Mode), nil
	}
	names := make([]string, len(l.First))
	for i, one := range l.First {
		names[i] = one.String()
	}
	if more := l.Count - len(l.First); more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	return "", &Refused{c.Kind, fmt.Sprintf("it belongs to %s mode, the way back, and %d of %d hosts have not passed in %s mode since it was switched on (%s): %s",
		old, l.Count, l.Of, l.Mode, l.Since.minute(), strings.Join(names, "; ")),
		fmt.Sprintf("see mode status; to give up the way back, repeat it with --phrase %s", l.phrase(old))}
}
