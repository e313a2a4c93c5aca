package verb_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"guardhouse/appliance/policy"
	"guardhouse/console/verb"
	"guardhouse/console/verb/verbtest"
)

// stream runs a verb with a file on its standard input, as ssh does.
func stream(s *verb.Session, line, in string) (verb.Output, error) {
	words, err := verb.Split(line)
	if err != nil {
		return verb.Output{}, err
	}
	v, args, err := verb.Parse(words)
	if err != nil {
		return verb.Output{}, err
	}
	return verb.RunStream(context.Background(), v, s, args, strings.NewReader(in))
}

func TestUpdateIsCheckedInstalledAndAudited(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	out, err := stream(s, "update check", verbtest.Bundle)
	if err != nil || !strings.Contains(out.Text.String(), "will open for it") || !strings.Contains(out.Text.String(), "faster") || len(f.Power()) != 0 {
		t.Errorf("%v\n%v", err, out.Text)
	}
	checkWidth(t, "update check", out.Text.String())
	golden(t, "update-check.txt", out.Text.String())
	if out, err = stream(s, "update check", "refused"); err != nil || !strings.Contains(out.Text.String(), "can't be installed") || !strings.Contains(out.Text.String(), "floor is 6") {
		t.Errorf("%v\n%v", err, out.Text)
	}
	out, err = stream(s, "update install", verbtest.Bundle)
	if err != nil || !out.End || strings.Join(f.Power(), "") != "reboot" {
		t.Errorf("%v %v", err, f.Power())
	}
	a := f.Audit()
	if e := a[len(a)-1]; e.Action != "update.install" || e.Outcome != "ok" || !strings.Contains(e.Detail, "release 7 (1.1), image SHA-256 ab") || e.Actor.Name != "ada" {
		t.Errorf("%+v", e)
	}
	if out, err = stream(s, "update install --later", verbtest.Bundle); err != nil || out.End || len(f.Power()) != 1 {
		t.Errorf("restarts although it was asked not to: %v", err)
	}
}

func TestUpdateThatIsRefusedRestartsNothing(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSSH)
	for in, want := range map[string]string{"refused": "floor is 6", "broken": "not a usable update"} {
		_, err := stream(s, "update install", in)
		var failure *verb.Failure
		if !errors.As(err, &failure) || !strings.Contains(failure.Reason, want) || failure.Remedy == "" || len(f.Power()) != 0 {
			t.Errorf("%s: %v", in, err)
		}
		a := f.Audit()
		if e := a[len(a)-1]; e.Outcome != "refused" || !strings.Contains(e.Detail, want) {
			t.Errorf("%s: %+v", in, e)
		}
	}
}

func TestUpdateFromAStickAndBack(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSerial)
	if _, err := call(s, "update install", ""); err == nil || !strings.Contains(err.Error(), "--stick") {
		t.Errorf("%v", err)
	}
	if text := mustCall(t, s, "update check --stick", ""); !strings.Contains(text, "release 7") {
		t.Error(text)
	}
	if text := mustCall(t, s, "update status", ""); !strings.Contains(text, "did not come up") || !strings.Contains(text, "floor") {
		t.Error(text)
	}
	if text := mustCall(t, s, "update back", ""); !strings.Contains(text, "release 6 starts again") || strings.Join(f.Power(), "") != "reboot" {
		t.Error(text)
	}
}
