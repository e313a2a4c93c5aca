package verb

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// setupDialogue sets the node up: answer file, its hash and summary, the encrypted secrets, the recovery secret, one question, done. The prompts are stable:
// people drive this with expect. The console only carries the bytes; the ledger reads, checks and decrypts them.
func setupDialogue(ctx context.Context, s *Session, _ Args, ask Asker) (Output, error) {
	key, err := rpc.LedgerSetupKey.Call(ctx, s.Node.Ledger, rpc.Empty{})
	if err != nil {
		return Output{}, err
	}
	answers, err := ask.Paste("the answer file")
	if err != nil {
		return Output{}, err
	}
	sum := sha256.Sum256(answers)
	if err := ask.Say(new(Page).Field("sha256", "%s", hex.EncodeToString(sum[:])).String()); err != nil {
		return Output{}, err
	}
	req := rpc.SetupRequest{Answers: answers, Actor: s.Actor, DryRun: true}
	plan, err := setupCall(ctx, s, req)
	if err != nil {
		return Output{}, err
	}
	p := new(Page)
	for _, line := range strings.Split(strings.TrimSpace(plan.Message), "\n") {
		p.Line("%s", line)
	}
	p.Line("Encrypt the secrets file to this node's setup key (age -a -r KEY):").Line("  %s", key.Recipient)
	if err := ask.Say(p.String()); err != nil {
		return Output{}, err
	}
	if req.Secrets, err = ask.Paste("the encrypted secrets"); err != nil {
		return Output{}, err
	}
	if _, err = setupCall(ctx, s, req); err != nil {
		return Output{}, err
	}
	if err := setupRecovery(ctx, s, ask); err != nil {
		return Output{}, err
	}
	word, err := ask.Ask("type yes to apply: ")
	if err != nil {
		return Output{}, err
	}
	if word != "yes" {
		return Output{}, failed("nothing was changed", "")
	}
	req.DryRun = false
	r, err := setupCall(ctx, s, req)
	if err != nil {
		return Output{}, err
	}
	s.Node.reached(ctx, max(r.Index, 1))
	out := Output{Text: new(Page).Line("%s", r.Message), Value: Done{r.Message, r.Index, r.Subject}, End: true}
	if self, ok := s.Node.Self(); ok {
		v := nodeValue(self, self.ID)
		out.Text.Field("node", "%s (%s)", v.Name, v.ID).Field("fingerprint", "%s", v.Fingerprint)
	}
	return out, nil
}

func setupCall(ctx context.Context, s *Session, req rpc.SetupRequest) (policy.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	return rpc.LedgerSetupApply.Call(ctx, s.Node.Ledger, req)
}
