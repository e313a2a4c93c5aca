package verbtest

import (
	"time"

	"guardhouse/appliance/rpc"
)

const decisionID = "5f3ac91e"

// timeDecisions waits for a confirmation whatever it is asked, and has one confirmed by grace.
func (f *Fake) timeDecisions(s *rpc.Server) {
	waiting := func(req rpc.TimeAskRequest) rpc.TimeProposal {
		return rpc.TimeProposal{ID: decisionID, Kind: req.Kind, UTC: req.UTC, Now: req.UTC.Add(time.Minute), By: req.Actor.Name, ExpiresIn: 14 * time.Minute}
	}
	on(f, s, rpc.LedgerTimeAsk, func(req rpc.TimeAskRequest) (rpc.TimeDecision, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.asked = append(f.asked, req)
		w := waiting(req)
		return rpc.TimeDecision{Message: "waits for another administrator", Waiting: &w}, nil
	})
	on(f, s, rpc.LedgerTimeConfirm, func(req rpc.TimeConfirmRequest) (rpc.TimeDecision, error) {
		if req.ID != decisionID {
			return rpc.TimeDecision{}, rpc.ErrRefused.With("no decision with the id %.16q waits", req.ID)
		}
		return rpc.TimeDecision{Message: "done", By: []string{"ada", "grace"}}, nil
	})
	on(f, s, rpc.LedgerTimeAsked, func(rpc.Empty) ([]rpc.TimeProposal, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		list := []rpc.TimeProposal{}
		for _, req := range f.asked {
			list = append(list, waiting(req))
		}
		return list, nil
	})
	on(f, s, rpc.LedgerTimeKeySet, func(req rpc.TimeKeyRequest) (rpc.Empty, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.timeKeys = append(f.timeKeys, req)
		return rpc.Empty{}, nil
	})
}
