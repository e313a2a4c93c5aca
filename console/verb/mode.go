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
	Served   bool          `json:"served"` // it is the one that hosts are told
	Passed   int           `json:"passed"`
	Failed   int           `json:"failed"`
	NotSeen  int           `json:"notSeen"`
	NoRecord int           `json:"noRecord"` // registered in another mode only
	Machines []MachineMode `json:"machines"` // those that have not passed first
}

// MachineMode is one machine in one mode.
type MachineMode struct {
	Host    string        `json:"host"`
	State   string        `json:"state"` // passed, failed, not seen, not registered, revoked
	Verdict string        `json:"verdict,omitempty"`
	Last    *policy.Stamp `json:"last,omitempty"`
	Finding string        `json:"finding,omitempty"`
}

// modeOrder puts first what needs somebody.
var modeOrder = []string{"failed", "not registered", "not seen", "passed", "revoked"}

func modeStatus(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	mode := snap.State.Service.Mode
	if a.Has("mode") {
		mode = modes[a.Get("mode")]
	}
	seen, err := observed(ctx, s, policy.ObservedHost)
	if err != nil {
		return Output{}, err
	}
	v := ModeValue{Mode: modeName(mode), Served: mode == snap.State.Service.Mode, Machines: []MachineMode{}}
	machines := map[string]MachineMode{}
	for _, h := range sortedHosts(snap.State) {
		m, ok := machines[h.Name]
		if !ok {
			m = MachineMode{Host: h.Name, State: "not registered"}
		}
		if h.Revoked {
			m.State = "revoked"
		} else if h.Mode() == mode {
			m = inMode(h, seen)
		}
		machines[h.Name] = m
	}
	for _, name := range slices.Sorted(maps.Keys(machines)) {
		m := machines[name]
		v.Machines = append(v.Machines, m)
		switch m.State {
		case "passed":
			v.Passed++
		case "failed":
			v.Failed++
		case "not seen":
			v.NotSeen++
		case "not registered":
			v.NoRecord++
		}
	}
	slices.SortStableFunc(v.Machines, func(x, y MachineMode) int {
		return cmp.Compare(slices.Index(modeOrder, x.State), slices.Index(modeOrder, y.State))
	})
	return Output{Text: v.page(), Value: v}, nil
}

func inMode(h policy.Host, seen map[string]policy.Observation) MachineMode {
	m := MachineMode{Host: h.Name, State: "not seen"}
	o, ok := seen[h.ID]
	if !ok {
		return m
	}
	m.State, m.Verdict, m.Last, m.Finding = "failed", o.Facts["verdict"], &o.Last, o.Facts["finding"]
	if m.Verdict == "ok" {
		m.State = "passed"
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
	const most = 50
	var rows [][]string
	for _, m := range v.Machines[:min(most, len(v.Machines))] {
		last := ""
		if m.Last != nil {
			last = when(*m.Last)
		}
		why := m.Verdict
		if m.State == "passed" {
			why = ""
		}
		rows = append(rows, []string{m.Host, m.State, last, why})
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
