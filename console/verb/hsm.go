package verb

import (
	"bytes"
	"cmp"
	"context"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

func hsmStatus(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	st, err := rpc.HSMStatus.Call(ctx, s.Node.HSM, rpc.Empty{})
	if err != nil {
		return Output{}, err
	}
	pin := "kept on this node, sealed to its TPM"
	if st.Attended {
		pin = "typed after each boot (attended)"
	}
	p := new(Page).Field("HSM", "%s", st.State).Field("token", "%s, serial %s", cmp.Or(st.Token, "none"), cmp.Or(st.Serial, "not known")).
		Field("pack", "%s", cmp.Or(st.Pack, "none")).Field("module", "%s", st.Module).Field("PIN", "%s", pin).Field("OAEP by", "%s", st.OAEP).
		Field("breaker", "%s, %d calls wait", breakerText(st.Breaker), st.Waiting).
		Field("restarts", "%d (of the worker that holds the token)", st.Restarts)
	problems(p, st.Problems)
	return Output{Text: p, Value: st}, nil
}

func breakerText(b string) string {
	switch b {
	case "open":
		return "open (hosts are told at once to come back later)"
	case "half-open":
		return "half-open (the token is on trial)"
	}
	return b
}

// maxTypedPIN bounds a PIN as it comes from a terminal or a file, in bytes.
const maxTypedPIN = 255

// hsmUnlock hands the PIN from standard input to the HSM process; a line end behind it does not belong to it.
func hsmUnlock(ctx context.Context, s *Session, a Args, stdin []byte) (Output, error) {
	defer clear(stdin)
	pin := bytes.TrimSuffix(bytes.TrimSuffix(stdin, []byte("\n")), []byte("\r"))
	if len(pin) == 0 || len(pin) > maxTypedPIN || bytes.ContainsAny(pin, "\r\n") {
		return Output{}, usage("the input must be the token's PIN on one line", "ssh NODE hsm unlock < FILE, or hsm unlock in a session")
	}
	_, err := rpc.HSMUnlock.Call(ctx, s.Node.HSM, rpc.HSMUnlockRequest{PIN: pin, LastTry: a.Has("last-try")})
	return s.touched(ctx, "hsm.unlock", err, "the PIN was handed to the HSM process, which keeps it until the machine stops")
}

// hsmUnlockDialogue asks for the PIN without showing it.
func hsmUnlockDialogue(ctx context.Context, s *Session, a Args, ask Asker) (Output, error) {
	pin, err := ask.Secret("PIN of the token: ")
	if err != nil {
		return Output{}, err
	}
	return hsmUnlock(ctx, s, a, pin)
}

func hsmRetry(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	_, err := rpc.HSMRetry.Call(ctx, s.Node.HSM, rpc.HSMRetryRequest{LastTry: a.Has("last-try")})
	return s.touched(ctx, "hsm.retry", err, "the token is tried once more")
}

// touched records what an administrator did to the HSM process, done or not, and says how to see what came of it. The HSM must be
// mendable while the audit is not.
func (s *Session) touched(ctx context.Context, action string, err error, done string) (Output, error) {
	outcome := "ok"
	if err != nil {
		outcome = "failed"
	}
	written := s.audit(ctx, policy.AuditCommand, action, outcome, "")
	if err != nil {
		return Output{}, err
	}
	p := new(Page).Line("%s", done).Line("see hsm status")
	if written != nil {
		p.Line("this could not be written to the audit: %s", Explain(written).Error())
	}
	return Output{Text: p, Value: Done{Message: done}}, nil
}
