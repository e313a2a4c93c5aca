package verb

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"guardhouse/appliance/policy"
)

// ModeValue is mode status in --json.
type ModeValue struct {
	Mode     string        `json:"mode"`
	Served   bool          `json:"served"`          // it is the one that hosts are told
	Since    *policy.Stamp `json:"since,omitempty"` // when it was switched on; what was seen before does not count
	Before   string        `json:"before,omitempty"`
	Passed   int           `json:"passed"`
	Failed   int           `json:"failed"`
	NotSeen  int           `json:"notSeen"`
	NoRecord int           `json:"noRecord"` // registered in another mode only
	Machines []MachineMode `json:"machines"` // those that have not passed first
}

// MachineMode is one machine in one mode.
type MachineMode struct {
	Host    string          `json:"host"`
	State   policy.Progress `json:"state"`
	Verdict string          `json:"verdict,omitempty"`
	Last    *policy.Stamp   `json:"last,omitempty"`
	Finding string          `json:"finding,omitempty"`
}

// modeOrder puts first what needs somebody.
var modeOrder = []policy.Progress{policy.MachineFailed, policy.MachineNotRegistered, policy.MachineNotSeen, policy.MachinePassed, policy.MachineRevoked}

func modeStatus(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	svc := snap.State.Service
	mode := svc.Mode
	if a.Has("mode") {
		mode = modes[a.Get("mode")]
	}
	seen, err := observed(ctx, s, policy.ObservedHost)
	if err != nil {
		return Output{}, err
	}
	v := ModeValue{Mode: mode.String(), Served: mode == svc.Mode, Machines: []MachineMode{}}
	var since *policy.ModeSwitch
	if v.Served && svc.Switched != nil {
		since = svc.Switched
		v.Since, v.Before = &since.At, since.From.String()
	}
	machines := map[string]MachineMode{}
	for _, h := range sortedHosts(snap.State) {
		m, ok := machines[h.Name]
		if !ok {
			m = MachineMode{Host: h.Name, State: policy.MachineNotRegistered}
		}
		if h.Revoked {
			m.State = policy.MachineRevoked
		} else if h.Mode() == mode {
			m = inMode(h, seen, since)
		}
		machines[h.Name] = m
	}
	for _, name := range slices.Sorted(maps.Keys(machines)) {
		m := machines[name]
		v.Machines = append(v.Machines, m)
		switch m.State {
		case policy.MachinePassed:
			v.Passed++
		case policy.MachineFailed:
			v.Failed++
		case policy.MachineNotSeen:
			v.NotSeen++
		case policy.MachineNotRegistered:
			v.NoRecord++
		}
	}
	slices.SortStableFunc(v.Machines, func(x, y MachineMode) int {
		return cmp.Compare(slices.Index(modeOrder, x.State), slices.Index(modeOrder, y.State))
	})
	return Output{Text: v.page(), Value: v}, nil
}

func inMode(h policy.Host, seen map[string]policy.Observation, since *policy.ModeSwitch) MachineMode {
	o, ok := seen[h.ID]
	m := MachineMode{Host: h.Name, State: policy.ProgressOf(h, o, ok, since)}
	if ok {
		m.Verdict, m.Last, m.Finding = o.Facts["verdict"], &o.Last, o.Facts["finding"]
	}
	return m
}

func (v ModeValue) page() *Page {
	served := "served now"
	if !v.Served {
		served = "not served now"
	}
	all := v.Passed + v.Failed + v.NotSeen + v.NoRecord
	p := new(Page).Line("%s mode, %s: %d of %d machines have passed here, %d failed, %d not seen, %d not registered in this mode.",
		v.Mode, served, v.Passed, all, v.Failed, v.NotSeen, v.NoRecord)
	if v.Since != nil {
		p.Line("Switched from %s mode, %s; what was seen before does not count.", v.Before, when(*v.Since))
		if v.Passed < all {
			p.Line("What %s mode needs can't be removed before all have passed, but by a typed phrase.", v.Before)
		}
	}
	const most = 50
	var rows [][]string
	for _, m := range v.Machines[:min(most, len(v.Machines))] {
		last := ""
		if m.Last != nil {
			last = when(*m.Last)
		}
		why := m.Verdict
		switch {
		case m.State == policy.MachinePassed:
			why = ""
		case m.State == policy.MachineNotSeen && m.Verdict != "":
			why = "before the switch: " + m.Verdict
		}
		rows = append(rows, []string{m.Host, string(m.State), last, why})
	}
	if len(rows) > 0 {
		p.Blank().Table([]string{"HOST", "STATE", "LAST", "WHY"}, rows)
	}
	if len(v.Machines) > most {
		p.Line("and %d more, see --json", len(v.Machines)-most)
	}
	if v.Failed > 0 && v.Mode == "TPM" {
		p.Line("See host findings HOST for what failed and what to do.")
	}
	return p
}
