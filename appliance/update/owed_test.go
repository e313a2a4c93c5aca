package update

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"guardhouse/appliance/policy"
)

// noting makes u's entries as init does, each with an ID of its own.
func noting(u *Updater) {
	n := 0
	u.Note = func(s State, action, outcome, detail string) Owed {
		n++
		return Owed{ID: fmt.Sprint(n), Entry: policy.AuditEntry{Action: action, Outcome: outcome, Detail: detail, Facts: map[string]string{"release": fmt.Sprint(s.Release)}}}
	}
}

func owes(u *Updater) (actions []string) {
	for _, o := range u.State().Owed {
		actions = append(actions, o.Entry.Action+" "+o.Entry.Outcome)
	}
	return actions
}

// What was decided and not told yet lasts over everything that an update does until the audit has it.
func TestADecisionIsOwedToTheAuditUntilItIsTold(t *testing.T) {
	u, _ := updater(t)
	noting(u)
	install := func(n uint64) {
		t.Helper()
		if err := errors.Join(u.Begin(Manifest{Number: n}), u.Wrote(nil), u.Try()); err != nil {
			t.Fatal(err)
		}
	}
	install(7)
	reboot(t, u, 0, 6) // firmware did not come to it
	if got, want := owes(u), []string{"update.failed failed"}; !slices.Equal(got, want) {
		t.Fatalf("%v", got)
	}
	install(7)
	reboot(t, u, 1, 7)
	if err := errors.Join(u.MarkGood(), u.Finish()); err != nil {
		t.Fatal(err)
	}
	reboot(t, u, 1, 7)
	if got, want := owes(u), []string{"update.failed failed", "update.good ok", "update.floor ok"}; !slices.Equal(got, want) {
		t.Fatalf("%v", got)
	}
	if e := u.State().Owed[1].Entry; e.Facts["release"] != "7" {
		t.Errorf("%+v", e)
	}
	good := u.State().Owed[1].ID
	if err := errors.Join(u.Told(good), u.Told(good)); err != nil {
		t.Fatal(err)
	}
	reboot(t, u, 1, 7)
	if got, want := owes(u), []string{"update.failed failed", "update.floor ok"}; !slices.Equal(got, want) {
		t.Fatalf("after one was told: %v", got)
	}
	u.Own, u.Release = 1, 7
	install(8)
	reboot(t, u, 0, 8)
	if err := u.Reject("the HSM is not ready"); err != nil {
		t.Fatal(err)
	}
	if got := owes(u); len(got) != 3 || got[2] != "update.reject failed" {
		t.Errorf("%v", got)
	}
}

// An audit that never takes anything does not make the state grow without end.
func TestWhatIsOwedIsBounded(t *testing.T) {
	u, _ := updater(t)
	noting(u)
	for n := range uint64(2 * maxOwed) {
		if err := errors.Join(u.Begin(Manifest{Number: 7 + n}), u.Wrote(nil), u.Try()); err != nil {
			t.Fatal(err)
		}
		reboot(t, u, 0, 6)
	}
	owed := u.State().Owed
	if len(owed) != maxOwed || owed[maxOwed-1].ID != fmt.Sprint(2*maxOwed) {
		t.Errorf("%d entries, the last %+v", len(owed), owed[len(owed)-1])
	}
}
