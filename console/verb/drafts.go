package verb

import (
	"context"
	"encoding/json"
	"fmt"

	"guardhouse/appliance/policy"
)

// DraftValue is draft show in --json.
type DraftValue struct {
	Steps  []policy.DraftStep `json:"steps"`
	Digest string             `json:"digest,omitempty"`
	By     string             `json:"by,omitempty"`
	At     *policy.Stamp      `json:"at,omitempty"`
	Effect *Effect            `json:"effect,omitempty"` // of the whole draft
	Why    string             `json:"why,omitempty"`    // it could not be committed now
	Undo   int                `json:"undo"`             // changes that draft undo would take back
}

// stage puts a change into the draft, and shows the effect that the whole draft would have.
func stage(ctx context.Context, s *Session, a Args, kind policy.Kind, body any) (Output, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return Output{}, fmt.Errorf("encode the command: %w", err)
	}
	step := policy.DraftStep{Kind: kind, Body: raw}
	snap, _ := s.Node.Snapshot()
	next, err := tryOn(ctx, s, snap.State, policy.CmdDraftAdd, step)
	if err != nil {
		return Output{}, err
	}
	e, err := effectOn(ctx, s, next, policy.CmdDraftCommit, policy.DraftCommit{Digest: next.Draft.Digest()})
	if err != nil {
		return Output{}, err
	}
	v := Changed{DryRun: a.Has("dry-run"), Effect: e}
	out := Output{Text: new(Page).Line("Nothing was staged.")}
	if !v.DryRun {
		if out, _, err = propose(ctx, s, policy.CmdDraftAdd, step); err != nil {
			return Output{}, err
		}
		v.Done = out.Value.(Done)
		out.Text.Line("See draft show; apply it with draft commit.")
	}
	out.Text.Line("The whole draft, once committed:")
	e.page(out.Text, false)
	out.Value = v
	return out, nil
}

func draftShow(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	snap, _ := s.Node.Snapshot()
	v := DraftValue{Steps: []policy.DraftStep{}}
	if u := snap.State.Undo; u != nil {
		v.Undo = len(u.Steps)
	}
	p := new(Page)
	d := snap.State.Draft
	if d == nil {
		p.Line("Nothing is staged.").Line("Stage a change of policies with --stage, for example: policy enable Hgs_BitLockerEnabled --stage")
	} else {
		v.Steps, v.Digest, v.By, v.At = d.Steps, d.Digest(), d.By, &d.At
		p.Line("%d changes are staged, the last by %s, %s. They have no effect yet.", len(d.Steps), d.By, when(d.At))
		for i, step := range d.Steps {
			p.Line("%d. %s", i+1, stepText(step))
		}
		p.Field("digest", "%s", v.Digest)
		var err error
		if v.Effect, err = effect(ctx, s, policy.CmdDraftCommit, policy.DraftCommit{Digest: v.Digest}); err != nil {
			v.Why = Explain(err).Error()
			p.Line("! It could not be committed now: %s", v.Why)
		} else {
			v.Effect.page(p, false)
		}
	}
	if v.Undo > 0 {
		p.Blank().Line("draft undo takes back the last commit, of %d changes.", v.Undo)
	}
	return Output{Text: p, Value: v}, nil
}

// stepText is a step for people.
func stepText(step policy.DraftStep) string {
	var b struct {
		Name, Policy, Class string
		Enabled             *bool
	}
	if json.Unmarshal(step.Body, &b) != nil {
		return string(step.Kind)
	}
	if step.Kind != policy.CmdPolicySet {
		return fmt.Sprintf("%s %s", step.Kind, b.Name)
	}
	state := "as what is wider says"
	if b.Enabled != nil {
		state = onOff(*b.Enabled)
	}
	if b.Class != policy.FabricWide {
		state += " for the class " + b.Class
	}
	return fmt.Sprintf("%s %s: %s", step.Kind, b.Policy, state)
}

func draftCommit(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	b := policy.DraftCommit{Phrase: a.Get("phrase")}
	if snap, _ := s.Node.Snapshot(); a.Has("digest") {
		b.Digest = a.Get("digest")
	} else if snap.State.Draft != nil {
		b.Digest = snap.State.Draft.Digest()
	}
	return change(ctx, s, a, policy.CmdDraftCommit, b)
}

func draftUndo(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	return change(ctx, s, a, policy.CmdDraftUndo, policy.DraftUndo{Phrase: a.Get("phrase")})
}

func draftDrop(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	out, _, err := propose(ctx, s, policy.CmdDraftDrop, policy.DraftDrop{})
	return out, err
}
