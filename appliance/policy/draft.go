package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// A draft is a set of changes of TPM mode's policies that has no effect until it is committed as one (E22, -Stage). What it would do to hosts
// is seen by applying it to a copy. The last commit can be undone as one.

// Limits of a draft.
const (
	MaxDraftSteps = 32
	MaxDraftBytes = 64 << 10 // of the bodies of all steps
)

// DraftStep is one change: the kind and the body of its command.
type DraftStep struct {
	Kind Kind            `json:"kind"`
	Body json.RawMessage `json:"body"`
}

// Draft is what is staged, in the order in which it will be applied.
type Draft struct {
	Steps []DraftStep `json:"steps"`
	By    string      `json:"by"` // who changed it last
	At    Stamp       `json:"at"`
}

// Digest names the steps: whoever commits says what they have seen.
func (d *Draft) Digest() string {
	b, err := json.Marshal(d.Steps)
	if err != nil {
		return "" // bodies that were decoded once
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// DraftCommit applies the draft with this digest. Phrase is for all removals in it, as in Removal.
type DraftCommit struct {
	Digest string `json:"digest"`
	Phrase string `json:"phrase,omitempty"`
}

// DraftDrop throws the draft away.
type DraftDrop struct{}

// DraftUndo takes the last commit back. Phrase is for all removals in that, as in Removal.
type DraftUndo struct {
	Phrase string `json:"phrase,omitempty"`
}

// staged are the commands that may be steps of a draft.
var staged = map[Kind]func(*State, Command) (Result, error){
	CmdPolicySet:      applyPolicySet,
	CmdBaselineAdd:    applyBaselineAdd,
	CmdBaselineRemove: applyBaselineRemove,
	CmdCIPolicyAdd:    applyCIPolicyAdd,
	CmdCIPolicyRemove: applyCIPolicyRemove,
	CmdDumpKeyAdd:     applyDumpKeyAdd,
	CmdDumpKeyRemove:  applyDumpKeyRemove,
}

// removing are those of them that may burn the way back.
var removing = []Kind{CmdBaselineRemove, CmdCIPolicyRemove, CmdDumpKeyRemove}

func (d *Draft) removes() bool {
	return d != nil && slices.ContainsFunc(d.Steps, func(s DraftStep) bool { return slices.Contains(removing, s.Kind) })
}

// draftRemoves reports whether a command on drafts would remove what may be another mode's.
func (s *State) draftRemoves(c Command) bool {
	switch c.Kind {
	case CmdDraftAdd:
		b, err := decode[DraftStep](c)
		return err == nil && slices.Contains(removing, b.Kind) || s.Draft.removes()
	case CmdDraftCommit:
		return s.Draft.removes()
	case CmdDraftUndo:
		return s.Undo.removes()
	}
	return false
}

// phrased is the step with a phrase, if it removes something.
func (d DraftStep) phrased(phrase string) (DraftStep, error) {
	if phrase == "" || !slices.Contains(removing, d.Kind) {
		return d, nil
	}
	var b Removal
	if err := json.Unmarshal(d.Body, &b); err != nil {
		return d, err
	}
	b.Phrase = phrase
	raw, err := json.Marshal(b)
	return DraftStep{d.Kind, raw}, err
}

// run applies steps in order and gives what they said and the steps that take them back.
func (s *State) run(c Command, steps []DraftStep, phrase string) (said []string, inverse []DraftStep, err error) {
	for i, step := range steps {
		apply, ok := staged[step.Kind]
		if !ok {
			return nil, nil, &Refused{c.Kind, fmt.Sprintf("%.64q can't be staged", step.Kind), "do it at once"}
		}
		back, err := s.inverse(step)
		if err == nil {
			step, err = step.phrased(phrase)
		}
		if err != nil {
			return nil, nil, &Refused{c.Kind, fmt.Sprintf("change %d of the draft does not parse: %.200s", i+1, err), "drop the draft"}
		}
		one := c
		one.Kind, one.Body = step.Kind, step.Body
		r, err := apply(s, one)
		if err != nil {
			return nil, nil, err
		}
		said, inverse = append(said, r.Message), append(inverse, back)
	}
	slices.Reverse(inverse)
	return said, inverse, nil
}

// inverse is the step that takes a step back, made before it is applied. Of a step that will be refused it may be anything.
func (s *State) inverse(step DraftStep) (DraftStep, error) {
	var b struct {
		Name, Policy, Class string
	}
	if err := json.Unmarshal(step.Body, &b); err != nil {
		return DraftStep{}, err
	}
	back := func(kind Kind, body any) (DraftStep, error) {
		raw, err := json.Marshal(body)
		return DraftStep{kind, raw}, err
	}
	switch step.Kind {
	case CmdBaselineAdd:
		return back(CmdBaselineRemove, Removal{Name: b.Name})
	case CmdCIPolicyAdd:
		return back(CmdCIPolicyRemove, Removal{Name: b.Name})
	case CmdDumpKeyAdd:
		return back(CmdDumpKeyRemove, Removal{Name: b.Name})
	case CmdBaselineRemove:
		r := s.Baselines[b.Name]
		return back(CmdBaselineAdd, BaselineAdd{Name: r.Name, Version: r.Version, LogDigest: r.LogDigest, Variables: r.Variables, Authorities: r.Authorities, NoDMA: r.NoDMA})
	case CmdCIPolicyRemove:
		r := s.CIPolicies[b.Name]
		return back(CmdCIPolicyAdd, CIPolicyAdd{Name: r.Name, Version: r.Version, Digests: r.Digests, Audit: r.Audit, PolicyID: r.PolicyID, Title: r.Title, Revision: r.Revision})
	case CmdDumpKeyRemove:
		r := s.DumpKeys[b.Name]
		return back(CmdDumpKeyAdd, DumpKeyAdd{Name: r.Name, SHA256: r.SHA256})
	}
	old := PolicySwitch{Policy: b.Policy, Class: b.Class}
	if builtin, ok := BuiltinByName(b.Policy); ok {
		if on, set := s.PolicySets[b.Class].Enabled[builtin.Name]; set {
			old.Enabled = &on
		}
	}
	return back(CmdPolicySet, old)
}

func applyDraftAdd(s *State, c Command) (Result, error) {
	step, err := decode[DraftStep](c)
	if err != nil {
		return Result{}, err
	}
	d := Draft{By: c.Actor.Name, At: c.At}
	if s.Draft != nil {
		d.Steps = slices.Clone(s.Draft.Steps)
	}
	d.Steps = append(d.Steps, step)
	size := 0
	for _, one := range d.Steps {
		size += len(one.Body)
	}
	if len(d.Steps) > MaxDraftSteps || size > MaxDraftBytes {
		return Result{}, &Refused{c.Kind, fmt.Sprintf("a draft has at most %d changes of %d KiB", MaxDraftSteps, MaxDraftBytes>>10), "commit it, or drop it"}
	}
	try := s.clone()
	if _, _, err := try.run(c, d.Steps, ""); err != nil {
		return Result{}, err
	}
	s.Draft = &d
	return Result{Message: fmt.Sprintf("%s staged as change %d of the draft; nothing has changed yet", step.Kind, len(d.Steps))}, nil
}

func noDraft(c Command) error {
	return &Refused{c.Kind, "there is no draft", "stage a change first: --stage"}
}

func applyDraftCommit(s *State, c Command) (Result, error) {
	b, err := decode[DraftCommit](c)
	if err != nil {
		return Result{}, err
	}
	if s.Draft == nil {
		return Result{}, noDraft(c)
	}
	if b.Digest != s.Draft.Digest() {
		return Result{}, &Refused{c.Kind, "the draft is another one than you have seen", "see draft show"}
	}
	said, inverse, err := s.run(c, s.Draft.Steps, b.Phrase)
	if err != nil {
		return Result{}, err
	}
	s.Draft, s.Undo = nil, &Draft{Steps: inverse, By: c.Actor.Name, At: c.At}
	return Result{Message: fmt.Sprintf("draft of %d changes committed: %s", len(said), strings.Join(said, "; "))}, nil
}

func applyDraftDrop(s *State, c Command) (Result, error) {
	if _, err := decode[DraftDrop](c); err != nil {
		return Result{}, err
	}
	if s.Draft == nil {
		return Result{}, noDraft(c)
	}
	n := len(s.Draft.Steps)
	s.Draft = nil
	return Result{Message: fmt.Sprintf("draft of %d changes dropped; nothing has changed", n)}, nil
}

// applyDraftUndo takes the last commit back; undoing again does it once more.
func applyDraftUndo(s *State, c Command) (Result, error) {
	b, err := decode[DraftUndo](c)
	if err != nil {
		return Result{}, err
	}
	if s.Undo == nil {
		return Result{}, &Refused{c.Kind, "no draft has been committed", ""}
	}
	said, inverse, err := s.run(c, s.Undo.Steps, b.Phrase)
	if err != nil {
		return Result{}, err
	}
	s.Undo = &Draft{Steps: inverse, By: c.Actor.Name, At: c.At}
	return Result{Message: fmt.Sprintf("the last commit of %d changes is undone: %s", len(said), strings.Join(said, "; "))}, nil
}
