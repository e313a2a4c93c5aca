package verb_test

import (
	"errors"
	"strings"
	"testing"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
	"guardhouse/console/verb"
	"guardhouse/console/verb/verbtest"
)

// answers holds a dialogue with prepared answers and keeps what was said.
type answers struct {
	list []string
	said strings.Builder
}

var errSilent = errors.New("nobody answers")

func (a *answers) Say(text string) error { a.said.WriteString(text); return nil }
func (a *answers) Ask(prompt string) (string, error) {
	a.said.WriteString(prompt)
	if len(a.list) == 0 {
		return "", errSilent
	}
	next := a.list[0]
	a.list = a.list[1:]
	return next, nil
}
func (a *answers) Secret(prompt string) ([]byte, error) {
	s, err := a.Ask(prompt)
	return []byte(s), err
}
func (a *answers) Paste(what string) ([]byte, error) { return a.Secret(what) }

func hold(t *testing.T, s *verb.Session, line string, list ...string) (*answers, error) {
	t.Helper()
	v, args, err := verb.Parse(strings.Fields(line))
	if err != nil {
		t.Fatal(err)
	}
	a := &answers{list: list}
	_, err = verb.Run(t.Context(), v, s, args, nil, a)
	return a, err
}

func TestNewRecoverySecretNeedsThePresentOneAndIsTypedBack(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSerial)
	const text = verbtest.RecoveryText
	if _, err := hold(t, s, "recovery new", text[:9], strings.ToLower(text)); err != nil { // a slip first
		t.Fatal(err)
	}
	if v := f.Volume(); v.Secret != "0badcafe" {
		t.Fatalf("%+v", v)
	}
	if a, err := hold(t, s, "recovery new", "AAAA-AAAA"); err == nil || strings.Contains(a.said.String(), text) {
		t.Errorf("a new one without the present one: %v", err)
	}
	if _, err := hold(t, s, "recovery new --form shares", text, "1AAA", "2BBB", "3CCC"); err != nil || f.Volume().Form != "shares" {
		t.Errorf("%v %+v", err, f.Volume())
	}
	before := f.Volume()
	if _, err := hold(t, s, "recovery new --form shares", text, "1AAA"); !errors.Is(err, errSilent) || f.Volume().Form != before.Form {
		t.Errorf("given up in the middle: %v", err)
	}
	for _, e := range f.Audit() {
		if strings.Contains(e.Detail, text) {
			t.Error("the secret is in the audit")
		}
	}
}

func TestResealShowsWhatChangedBeforeItAsks(t *testing.T) {
	f := verbtest.Start(t, true)
	s := f.Session(policy.DoorSerial)
	if _, err := hold(t, s, "reseal", "yes"); err == nil {
		t.Error("resealed what the TPM opens")
	}
	v := rpc.VolumeReply{State: rpc.VolumeTyped, Secret: "0badcafe", Form: "passphrase", Changed: []string{"TPM: another one", "boot: signed", "generation: the disk is at 7"}}
	f.SetVolume(v)
	a, err := hold(t, s, "reseal", "no")
	if err == nil || f.Volume().State != rpc.VolumeTyped {
		t.Errorf("%v %+v", err, f.Volume())
	}
	for _, want := range []string{"another one", "signed", "the disk is at 7"} {
		if !strings.Contains(a.said.String(), want) {
			t.Errorf("the preview lacks %q: %s", want, a.said.String())
		}
	}
	v.Refused, v.Remedy = "a seal to this boot would not open again", "undo the change"
	f.SetVolume(v)
	if _, err := hold(t, s, "reseal", "yes"); err == nil || f.Volume().State != rpc.VolumeTyped {
		t.Errorf("resealed to a boot that nobody signed: %v", err)
	}
	v.Refused = ""
	f.SetVolume(v)
	if _, err := hold(t, s, "reseal", "yes"); err != nil || f.Volume().State != rpc.VolumeTPM {
		t.Errorf("%v %+v", err, f.Volume())
	}
}
