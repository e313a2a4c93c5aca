package verb

import (
	"context"
	"errors"
	"strings"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// Exit codes of `ssh node verb`, stable.
const (
	ExitOK          = 0
	ExitFailed      = 1 // refused or failed
	ExitUsage       = 2
	ExitNotAllowed  = 3
	ExitUnavailable = 4 // not now; try again
)

// Failure is why a verb did not do its work, as people and scripts see it. Kind is stable.
type Failure struct {
	Code   int    `json:"-"`
	Kind   string `json:"kind"`
	Reason string `json:"reason"`
	Remedy string `json:"remedy,omitempty"`
}

func (f *Failure) Error() string {
	if f.Remedy == "" {
		return f.Reason
	}
	return f.Reason + "; " + f.Remedy
}

func usage(reason, remedy string) *Failure { return &Failure{ExitUsage, "usage", reason, remedy} }
func failed(reason, remedy string) *Failure {
	return &Failure{ExitFailed, "refused", reason, remedy}
}
func notAllowed(reason, remedy string) *Failure {
	return &Failure{ExitNotAllowed, "not-allowed", reason, remedy}
}
func unavailable(reason, remedy string) *Failure {
	return &Failure{ExitUnavailable, "unavailable", reason, remedy}
}

// Explain turns any error of a verb into a Failure.
func Explain(err error) *Failure {
	var f *Failure
	var m *Missing
	var refused *policy.Refused
	var e *rpc.Error
	switch {
	case errors.As(err, &f):
		return f
	case errors.As(err, &m):
		return usage(m.Error(), "usage: "+m.Verb.Usage())
	case errors.As(err, &refused):
		return failed(refused.Reason, refused.Remedy)
	case errors.As(err, &e):
		return explainRPC(e)
	case errors.Is(err, context.DeadlineExceeded):
		return unavailable("no answer in time", "try again; status shows which process is slow")
	case errors.Is(err, context.Canceled):
		return unavailable("interrupted", "try again")
	}
	return &Failure{ExitFailed, "failed", err.Error(), ""}
}

func explainRPC(e *rpc.Error) *Failure {
	reason, remedy := e.Message, e.Remedy
	if remedy == "" && (e.Kind == rpc.ErrRefused.Kind || e.Kind == rpc.ErrUnavailable.Kind) {
		// A process that passed on only the text: the remedy is what follows the last semicolon.
		if i := strings.LastIndex(reason, "; "); i > 0 {
			reason, remedy = reason[:i], reason[i+2:]
		}
	}
	// "host.add refused: reason": the person knows what they asked for.
	if _, after, ok := strings.Cut(reason, " refused: "); ok && !strings.Contains(reason[:len(reason)-len(after)], "; ") {
		reason = after
	}
	code, other := ExitFailed, ""
	switch e.Kind {
	case rpc.ErrUnavailable.Kind, rpc.ErrLost.Kind:
		code, other = ExitUnavailable, "try again in a few seconds; status shows what is missing"
	case rpc.ErrNoQuorum.Kind, rpc.ErrNotLeader.Kind:
		code, other = ExitUnavailable, "try again, or on another node"
	case rpc.ErrUnknownOutcome.Kind:
		code, other = ExitUnavailable, "look whether it was done before repeating it"
	case rpc.ErrNotAllowed.Kind, rpc.ErrUnknownMethod.Kind:
		other = "this is a fault of the image: its processes disagree; see log show"
	}
	if remedy == "" {
		remedy = other
	}
	return &Failure{code, e.Kind, reason, remedy}
}
