package verb

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// What somebody types who means it.
const (
	resetPhrase   = "end this node"
	destroyPhrase = "destroy the keys"
	keepWord      = "keep"
	leaveWord     = "leave"
)

func factoryReset(ctx context.Context, s *Session, _ Args, ask Asker) (Output, error) {
	v, err := rpc.InitVolume.Call(ctx, s.Node.Init, rpc.Empty{})
	if err != nil {
		return Output{}, err
	}
	shut := v.State == rpc.VolumeShut
	switch {
	case v.State == rpc.VolumeNone:
		return Output{}, failed("there is no data volume to end", "none needed")
	case !s.LoggedIn() && !shut:
		return Output{}, notAllowed("the data volume is open, so this needs an owner's login", "wait for the ledger; see status")
	}
	p := new(Page).Line("This ends the node: its records, its audit and its secrets can't be had again by anybody, with or without the recovery secret.")
	if shut {
		p.Line("The volume is shut, so the TPM can't be given back from here: clear it in the firmware's setup afterwards, or recover first.")
		p.Line("Keys in the HSM stay, because which of them are this node's is on the shut volume: recover first where they must go too, or remove them with the HSM's own tools.")
	} else {
		p.Line("What the TPM keeps for this node is removed. The network settings and software keys are on the disk and go with it; the serial line stays as it is.")
	}
	if err := ask.Say(p.String()); err != nil {
		return Output{}, err
	}
	var keys keysAnswer
	if s.LoggedIn() && !shut {
		if keys, err = askKeys(ctx, s, ask); err != nil {
			return Output{}, err
		}
	}
	if err := typedPhrase(ask, "type "+resetPhrase+": ", resetPhrase); err != nil {
		return Output{}, err
	}
	if s.LoggedIn() {
		s.audit(ctx, policy.AuditCommand, "factory-reset", "ok", keys.note) // whoever exports it meanwhile should see it
	}
	if err := reset(ctx, s, rpc.FactoryResetRequest{Actor: s.Actor, Shut: shut, Destroy: keys.destroy}, ask); err != nil {
		return Output{}, err
	}
	done := "the node stops; what was removed is told on the serial line"
	return Output{Text: new(Page).Line("%s", done), Value: Done{Message: done}, End: true}, nil
}

func typedPhrase(ask Asker, prompt, phrase string) error {
	word, err := ask.Ask(prompt)
	if err == nil && word != phrase {
		err = failed("nothing was changed", "")
	}
	return err
}

// keysAnswer is what an owner wants done with the keys in the HSM; note is for the audit.
type keysAnswer struct {
	destroy []policy.KeyRef
	note    string
}

// askKeys shows the keys in the HSM and asks for them separately.
func askKeys(ctx context.Context, s *Session, ask Asker) (keysAnswer, error) {
	list, err := rpc.LedgerResetKeys.Call(ctx, s.Node.Ledger, rpc.Empty{})
	if err != nil {
		list = rpc.ResetKeysReply{Away: Explain(err).Error()}
	}
	var ours, stay []rpc.ResetKey
	for _, k := range list.Keys {
		if k.Stays == "" {
			ours = append(ours, k)
		} else {
			stay = append(stay, k)
		}
	}
	p := new(Page).Blank()
	if list.Away != "" {
		p.Line("The HSM can't be asked: %s.", list.Away)
		p.Line("No key in it can be destroyed now. By its records this node made:")
		keyLines(p, stay)
		if err := ask.Say(p.String()); err != nil {
			return keysAnswer{}, err
		}
		return keysAnswer{note: "keys left in the HSM, which did not answer: " + labels(stay)},
			typedPhrase(ask, "type "+leaveWord+" to go on and leave them, anything else to stop: ", leaveWord)
	}
	if len(stay) > 0 {
		p.Line("Keys in the HSM, token %s, that stay in any case:", list.Token)
		keyLines(p, stay)
	}
	if len(ours) == 0 {
		return keysAnswer{}, ask.Say(p.Line("No key in the HSM, token %s, is this node's to destroy.", list.Token).String())
	}
	p.Line("Keys in the HSM, token %s, that this node made:", list.Token)
	keyLines(p, ours)
	p.Line("Destroyed, they can't be had again from anywhere but a backup of the HSM; what only they open stays shut. Kept, they lie in the HSM with nobody who uses them.")
	if err := ask.Say(p.String()); err != nil {
		return keysAnswer{}, err
	}
	word, err := ask.Ask(fmt.Sprintf("type %s (%d), or %s to leave them in the HSM: ", destroyPhrase, len(ours), keepWord))
	switch {
	case err != nil:
		return keysAnswer{}, err
	case word == keepWord:
		return keysAnswer{note: "keys kept in the HSM: " + labels(ours)}, nil
	case word != destroyPhrase:
		return keysAnswer{}, failed("nothing was changed", "")
	}
	a := keysAnswer{note: "keys to be destroyed in the HSM: " + labels(ours)}
	for _, k := range ours {
		a.destroy = append(a.destroy, k.Ref)
	}
	return a, nil
}

func keyLines(p *Page, list []rpc.ResetKey) {
	for _, k := range list {
		p.Line("  %s, %s", k.Label, cmp.Or(string(k.Role), "no role of this service"))
		p.Line("    id %s", k.ID)
		p.Line("    SPKI %s", k.Ref)
		if k.Stays != "" {
			p.Line("    stays: %s", k.Stays)
		}
	}
}

// labels names keys within the length of an audit entry's detail.
func labels(list []rpc.ResetKey) string {
	var names []string
	for i, k := range list {
		if i == 8 {
			names = append(names, fmt.Sprintf("and %d more", len(list)-i))
			break
		}
		names = append(names, k.Label)
	}
	if names == nil {
		return "none"
	}
	return strings.Join(names, ", ")
}

// reset asks init to end the node. Where keys are left that were to be destroyed, the owner decides.
func reset(ctx context.Context, s *Session, r rpc.FactoryResetRequest, ask Asker) error {
	reply, err := rpc.InitFactoryReset.Call(ctx, s.Node.Init, r)
	if err != nil || reply.Ends {
		return err
	}
	k := reply.Keys
	if k == nil || len(k.Left) == 0 {
		return failed("the node did not end, and does not say why", "see status, then begin again")
	}
	p := new(Page).Line("%d of %d keys were destroyed in the HSM; the next one was not: %s.", len(k.Gone), len(k.Gone)+len(k.Left), k.Why).Line("Left in the HSM, or not known to be gone:")
	keyLines(p, k.Left)
	if err := ask.Say(p.String()); err != nil {
		return err
	}
	word, err := ask.Ask("type " + leaveWord + " to go on and leave them, anything else to stop: ")
	if err != nil {
		return err
	}
	if word != leaveWord {
		if len(k.Gone) > 0 {
			return failed(fmt.Sprintf("the node goes on, without the %d keys that were destroyed", len(k.Gone)), "begin again when the HSM answers, or make new keys")
		}
		return failed("nothing was changed", "")
	}
	s.audit(ctx, policy.AuditCommand, "factory-reset", "ok", "keys left in the HSM: "+labels(k.Left))
	r.Destroy = nil
	if reply, err = rpc.InitFactoryReset.Call(ctx, s.Node.Init, r); err == nil && !reply.Ends {
		err = failed("the node did not end, and does not say why", "see status, then begin again")
	}
	return err
}
