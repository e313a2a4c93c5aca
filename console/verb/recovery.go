package verb

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

var (
	onlySerial = []policy.Door{policy.DoorSerial}
	onlySetup  = []policy.Door{policy.DoorSetup}
)

const (
	formPassphrase = "passphrase"
	formShares     = "shares"
	neededShares   = 2
)

func recoveryVerbs() []Verb {
	form := flag("form", Choice, "default passphrase", formPassphrase, formShares)
	return []Verb{
		{Name: "recover", Role: anyone, Waiting: true, Risk: Changes, Dialogue: recoverDialogue,
			Help: "open the data volume with its recovery secret", Example: "recover",
			More: "For a volume that the TPM does not open: after a swap of TPM or board, or a boot that nobody signed. What is typed is not shown. " +
				"The services start then; until reseal the next boot asks again."},
		{Name: "recovery status", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: recoveryStatus,
			Help: "who opens the data volume, and what changed", Example: "recovery status"},
		{Name: "recovery new", Role: owner, Doors: onlySerial, Risk: Changes, Dialogue: recoveryNew, Params: []Param{form},
			Help: "make a new recovery secret; it needs the present one", Example: "recovery new --form shares",
			More: "One passphrase, or three shares of which any two open. It is shown once and must be typed back before it counts; then the one before opens nothing."},
		{Name: "reseal", Role: owner, Doors: loggedIn, Risk: Changes, Dialogue: resealDialogue,
			Help: "give a recovered data volume to the present TPM", Example: "reseal",
			More: "It shows first what the TPM did not accept: which TPM, which measurements, which generation. Do it only if you know why they changed."},
		{Name: "factory-reset", Role: owner, Doors: onlySerial, Waiting: true, Risk: Disrupts, Dialogue: factoryReset,
			Help: "end this node: zeroise its disk, what the TPM keeps for it and, asked separately, its keys in the HSM", Example: "factory-reset",
			More: "Every record, audit entry and secret of this node is gone for ever; the machine can be set up anew. What it removed it reads again and shows. " +
				"Keys in the HSM are asked for separately: those that this node made can be destroyed with it. Tenants' keys, keys that were brought and " +
				"keys that other nodes of a cluster use always stay."},
	}
}

func recoveryStatus(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	v, err := rpc.InitVolume.Call(ctx, s.Node.Init, rpc.Empty{})
	if err != nil {
		return Output{}, err
	}
	return Output{Text: volumePage(v), Value: v}, nil
}

func volumePage(v rpc.VolumeReply) *Page {
	p := new(Page)
	switch v.State {
	case rpc.VolumeTPM:
		p.Field("volume", "open; the TPM opens it")
	case rpc.VolumeTyped:
		p.Field("volume", "open by its recovery secret; the next boot asks for it again")
	case rpc.VolumeShut:
		p.Field("volume", "shut; its recovery secret opens it")
	default:
		p.Field("volume", "none")
	}
	if v.Secret == "" {
		p.Field("recovery", "no secret; make one with recovery new")
	} else {
		p.Field("recovery", "secret %s, %s", v.Secret, describeSecret(v.Form))
	}
	for _, line := range v.Changed {
		label, text, _ := strings.Cut(line, ": ")
		p.Field(label, "%s", text)
	}
	if v.Refused != "" {
		p.Field("reseal", "not now: %s; %s", v.Refused, v.Remedy)
	} else if v.State == rpc.VolumeTyped {
		p.Field("reseal", "possible")
	}
	return p
}

func describeSecret(form string) string {
	if form == formShares {
		return "three shares, of which two open"
	}
	return "one passphrase"
}

// typeSecret asks for the secret in its form, without showing it. The caller wipes it.
func typeSecret(ask Asker, name, form string) (r rpc.RecoveryTexts, err error) {
	prompts := []string{"recovery secret " + name + ": "}
	if form == formShares {
		prompts = prompts[:0]
		for i := range neededShares {
			prompts = append(prompts, fmt.Sprintf("share %d of the %d that open, of secret %s: ", i+1, neededShares, name))
		}
	}
	for _, prompt := range prompts {
		text, err := ask.Secret(prompt)
		if err != nil {
			r.Wipe()
			return rpc.RecoveryTexts{}, err
		}
		r.Texts = append(r.Texts, text)
	}
	return r, nil
}

func recoverDialogue(ctx context.Context, s *Session, _ Args, ask Asker) (Output, error) {
	v, err := rpc.InitVolume.Call(ctx, s.Node.Init, rpc.Empty{})
	if err != nil {
		return Output{}, err
	}
	switch {
	case v.State == rpc.VolumeNone:
		return Output{}, failed("there is no data volume to open", "see status")
	case v.State != rpc.VolumeShut:
		return Output{}, failed("the data volume is open", "wait for the ledger; see status")
	case v.Secret == "":
		return Output{}, failed("no recovery secret was ever confirmed for this volume", "put disk and TPM back together, or restore from a backup")
	}
	typed, err := typeSecret(ask, v.Secret, v.Form)
	if err != nil {
		return Output{}, err
	}
	defer typed.Wipe()
	if v, err = rpc.InitUnlock.Call(ctx, s.Node.Init, typed); err != nil {
		return Output{}, err
	}
	p := new(Page).Line("the data volume is open; the services start").Line("%s", "the next boot asks again, until an owner has done reseal")
	for _, line := range v.Changed {
		p.Line("  %s", line)
	}
	return Output{Text: p, Value: v}, nil
}

// makeSecret has init make a secret, shows it once and has it typed back. It reports the secret's name.
func makeSecret(ctx context.Context, s *Session, form string, current rpc.RecoveryTexts, ask Asker) (string, error) {
	draft, err := rpc.InitRecoveryDraft.Call(ctx, s.Node.Init, rpc.RecoveryDraftRequest{Form: form, Current: current.Texts})
	if err != nil {
		return "", err
	}
	defer rpc.RecoveryTexts{Texts: draft.Texts}.Wipe()
	if err := ask.Say(new(Page).Line("Recovery secret %s (%s) is shown once. Write it down on paper and keep it away from this machine.", draft.Secret, describeSecret(draft.Form)).String()); err != nil {
		return "", err
	}
	var typed rpc.RecoveryTexts
	defer func() { typed.Wipe() }()
	for i, text := range draft.Texts {
		name := "passphrase"
		if draft.Form == formShares {
			name = fmt.Sprintf("share %d of %d", i+1, len(draft.Texts))
		}
		back, err := typedBack(ask, name, text)
		if err != nil {
			return "", err
		}
		typed.Texts = append(typed.Texts, back)
	}
	if _, err := rpc.InitRecoveryConfirm.Call(ctx, s.Node.Init, typed); err != nil {
		return "", err
	}
	return draft.Secret, nil
}

// typedBack shows one text and asks for it until it is typed as it was shown.
func typedBack(ask Asker, name string, text []byte) ([]byte, error) {
	if err := ask.Say(fmt.Sprintf("%s:\n  %s\n", name, text)); err != nil {
		return nil, err
	}
	for {
		back, err := ask.Secret("type it back: ")
		if err != nil {
			return nil, err
		}
		if plainText(back) == plainText(text) {
			return back, nil
		}
		clear(back)
		if err := ask.Say("that is not what was shown; an interrupt (^C) gives up\n"); err != nil {
			return nil, err
		}
	}
}

// plainText is a text without what is there for the eye. Init compares again, as strictly as it will when the secret is needed.
func plainText(text []byte) string {
	return strings.NewReplacer("-", "", " ", "", "O", "0", "I", "1", "L", "1").Replace(strings.ToUpper(string(text)))
}

func recoveryNew(ctx context.Context, s *Session, a Args, ask Asker) (Output, error) {
	v, err := rpc.InitVolume.Call(ctx, s.Node.Init, rpc.Empty{})
	if err != nil {
		return Output{}, err
	}
	var current rpc.RecoveryTexts
	if v.Secret != "" {
		if current, err = typeSecret(ask, v.Secret, v.Form); err != nil {
			return Output{}, err
		}
		defer current.Wipe()
	}
	name, err := makeSecret(ctx, s, cmp.Or(a.Get("form"), formPassphrase), current, ask)
	if err != nil {
		s.audit(ctx, policy.AuditCommand, "recovery.new", "failed", "")
		return Output{}, err
	}
	done := "recovery secret " + name + " opens the data volume from now on"
	if v.Secret != "" {
		done += "; " + v.Secret + " opens nothing any more"
	}
	p := new(Page).Line("%s", done)
	if err := s.audit(ctx, policy.AuditCommand, "recovery.new", "ok", name); err != nil {
		p.Line("this could not be written to the audit: %s", Explain(err).Error())
	}
	return Output{Text: p, Value: Done{Message: done}}, nil
}

// setupRecovery is the part of setup that makes the recovery secret. A node that has one keeps it; a node without a sealed volume, as on
// a workstation, has nothing to recover.
func setupRecovery(ctx context.Context, s *Session, ask Asker) error {
	v, err := rpc.InitVolume.Call(ctx, s.Node.Init, rpc.Empty{})
	if err != nil {
		return err
	}
	if v.State == rpc.VolumeNone {
		return nil
	}
	if v.Secret != "" {
		return ask.Say(new(Page).Line("Recovery secret %s was confirmed before and stays.", v.Secret).String())
	}
	if err := ask.Say(new(Page).Line("If TPM or board fail, only a recovery secret opens the data volume: one passphrase, or three shares of which any two open it.").String()); err != nil {
		return err
	}
	form := ""
	for form != formPassphrase && form != formShares {
		if form, err = ask.Ask("type passphrase or shares: "); err != nil {
			return err
		}
		form = strings.TrimSpace(form)
	}
	_, err = makeSecret(ctx, s, form, rpc.RecoveryTexts{}, ask)
	return err
}

func resealDialogue(ctx context.Context, s *Session, _ Args, ask Asker) (Output, error) {
	v, err := rpc.InitVolume.Call(ctx, s.Node.Init, rpc.Empty{})
	if err != nil {
		return Output{}, err
	}
	if v.State != rpc.VolumeTyped {
		return Output{}, failed("the TPM opens this volume: there is nothing to reseal", "none needed")
	}
	if err := ask.Say(volumePage(v).String()); err != nil {
		return Output{}, err
	}
	if v.Refused != "" {
		return Output{}, failed(v.Refused, v.Remedy)
	}
	word, err := ask.Ask("type yes to give the volume to this TPM and boot: ")
	if err != nil {
		return Output{}, err
	}
	if word != "yes" {
		return Output{}, failed("nothing was changed", "")
	}
	_, err = rpc.InitReseal.Call(ctx, s.Node.Init, rpc.Empty{})
	outcome := "ok"
	if err != nil {
		outcome = "failed"
	}
	written := s.audit(ctx, policy.AuditCommand, "reseal", outcome, strings.Join(v.Changed, "; "))
	if err != nil {
		return Output{}, err
	}
	done := "the TPM opens the data volume again, for the boots that this image's builder signs"
	p := new(Page).Line("%s", done)
	if written != nil {
		p.Line("this could not be written to the audit: %s", Explain(written).Error())
	}
	return Output{Text: p, Value: Done{Message: done}}, nil
}
