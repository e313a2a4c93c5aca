package verb

import (
	"context"
	"errors"

	"guardhouse/appliance/appraise"
	"guardhouse/appliance/evidence"
	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// eachEvidence gives f what this node keeps of its hosts' boots, page by page in the order of host ids, so that the evidence of 10,000
// hosts never lies in memory at once. Of each host it is the newest; with both, the last good boot and the last bad one.
func eachEvidence(ctx context.Context, s *Session, both bool, f func(policy.Observation) error) error {
	for after := ""; ; {
		page, err := rpc.LedgerEvidence.Call(ctx, s.Node.Ledger, rpc.EvidenceRequest{After: after, Both: both})
		if err != nil || len(page) == 0 {
			return err
		}
		for _, o := range page {
			if err := f(o); err != nil {
				return err
			}
			after = max(after, o.Subject)
		}
	}
}

// reprove proves the log of an observation again: what comes of it is as true as on the day of the attestation.
func reprove(ctx context.Context, s *Session, o policy.Observation) (*evidence.Facts, error) {
	r, err := rpc.LedgerBootLog.Call(ctx, s.Node.Ledger, rpc.BootLogRequest{Digest: o.Facts["log"]})
	if err != nil {
		return nil, err
	}
	return appraise.Reprove(o.Facts, r.Log)
}

// EvidenceFinding is a host's boot whose stored log does not prove what is on record.
type EvidenceFinding struct {
	Host   string `json:"host"`
	ID     string `json:"id"`
	Boot   string `json:"boot"` // good or bad
	Log    string `json:"log"`  // SHA-256
	Kind   string `json:"kind"` // missing, differs or damaged
	What   string `json:"what"`
	Remedy string `json:"remedy"`
}

// EvidenceValue is evidence verify in --json.
type EvidenceValue struct {
	Boots    int               `json:"boots"`
	Proved   int               `json:"proved"`
	Findings []EvidenceFinding `json:"findings"`
}

func evidenceVerify(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	only := ""
	if a.Has("host") {
		h, err := tpmHost(s, a.Get("host"))
		if err != nil {
			return Output{}, err
		}
		only = h.ID
	}
	v := EvidenceValue{Findings: []EvidenceFinding{}}
	err := eachEvidence(ctx, s, true, func(o policy.Observation) error {
		if only != "" && o.Subject != only {
			return nil
		}
		v.Boots++
		_, err := reprove(ctx, s, o)
		if err == nil {
			v.Proved++
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		v.Findings = append(v.Findings, evidenceFinding(snap.State, o, err))
		return nil
	})
	if err != nil {
		return Output{}, err
	}
	p := new(Page).Line("Of %d boots on record here, %d are proved by their stored logs.", v.Boots, v.Proved)
	for _, f := range v.Findings {
		p.Blank().Line("! %s, last %s boot: %s", f.Host, f.Boot, f.What)
		p.Field("  -> remedy", "%s", f.Remedy).Field("  log", "%s", f.Log)
	}
	return Output{Text: p, Value: v}, nil
}

func evidenceFinding(state policy.State, o policy.Observation, err error) EvidenceFinding {
	f := EvidenceFinding{Host: o.Subject, ID: o.Subject, Boot: "good", Log: o.Facts["log"], Kind: "damaged", What: err.Error(),
		Remedy: "wait until the host attests here again; if it comes again, this node's disk is failing"}
	if o.Kind == policy.ObservedFindings {
		f.Boot = "bad"
	}
	if h, ok := state.Hosts[o.Subject]; ok {
		f.Host = h.Name
	}
	switch {
	case errors.Is(err, rpc.ErrUnavailable):
		f.Kind, f.What, f.Remedy = "missing", "its boot log is not kept here", "wait until the host attests here again"
	case errors.Is(err, appraise.ErrOtherFacts):
		f.Kind = "differs"
		f.Remedy = "right after an update of this node's software the next attestation cures it; else somebody changed what is on record: look at the audit, and register nothing of it"
	}
	return f
}
