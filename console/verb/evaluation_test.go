package verb_test

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"

	"guardhouse/appliance/policy"
	"guardhouse/console/verb"
	"guardhouse/console/verb/verbtest"
)

// everyScreen are verbs of each kind of output.
var everyScreen = []string{"status", "help", "node list", "node measure", "audit tail", "key list", "network show", "metadata"}

func TestEvaluationImageSaysSoOnEveryScreen(t *testing.T) {
	f := verbtest.Start(t, true)
	f.Node.Evaluation = true
	s := f.Session(policy.DoorSSH)
	var b strings.Builder
	for _, line := range everyScreen {
		out, err := call(s, line, "")
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		first, _, _ := strings.Cut(out.Text.String(), "\n")
		if first != verb.EvaluationLine || strings.Count(out.Text.String(), verb.EvaluationLine) != 1 {
			t.Errorf("%s: begins with %q", line, first)
		}
		raw, err := verb.JSON(out.Value)
		var v struct{ Evaluation bool }
		if err != nil || json.Unmarshal(raw, &v) != nil || !v.Evaluation {
			t.Errorf("%s: %v: %.80s", line, err, raw)
		}
	}
	b.WriteString(mustCall(t, s, "status", ""))
	golden(t, "evaluation.txt", b.String())
	if out := mustCall(t, s, "network show --toml", ""); strings.Contains(out, "EVALUATION") {
		t.Error("a file for a program has a line that it can't read")
	}
	for _, line := range []string{"node identity", "node quote 0123456789abcdef", "node activate"} {
		out, err := call(s, line, "{}")
		raw, jsonErr := verb.JSON(out.Value)
		if err != nil || jsonErr != nil || strings.Contains(out.Text.String()+string(raw), "valuation") {
			t.Errorf("%s: a file was changed: %v %v %s", line, err, jsonErr, raw)
		}
	}
	out, err := call(s, "log show", "")
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := out.Stream(context.Background(), &text, false); err != nil || !strings.HasPrefix(text.String(), verb.EvaluationLine+"\n") {
		t.Errorf("log show: %v, %q", err, text.String())
	}
	if raw, err := f.Node.FailureJSON(verb.Explain(context.Canceled)); err != nil || !bytes.Contains(raw, []byte(`"evaluation": true`)) {
		t.Errorf("%v: %s", err, raw)
	}
}

func TestEvaluationIsANoticeAndTurnsNothingRed(t *testing.T) {
	f := verbtest.Start(t, true)
	before := verb.GatherStatus(context.Background(), f.Node)
	f.Node.Evaluation = true
	v := verb.GatherStatus(context.Background(), f.Node)
	if len(v.Problems) != len(before.Problems) || v.OK != before.OK || len(v.Hints) == 0 || v.Hints[0].Kind != "evaluation" {
		t.Errorf("%+v", v)
	}
}

func TestCustomersImageNeverSaysEvaluation(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	for _, line := range everyScreen {
		out, err := call(s, line, "")
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		raw, err := verb.JSON(out.Value)
		if err != nil || strings.Contains(out.Text.String(), "EVALUATION") || bytes.Contains(raw, []byte("evaluation")) {
			t.Errorf("%s: %v\n%s\n%s", line, err, out.Text, raw)
		}
	}
	if f.Node.Banner() != "" {
		t.Errorf("banner %q", f.Node.Banner())
	}
}
