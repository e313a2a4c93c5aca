package policy

import (
	"encoding/json"
	"reflect"
	"testing"
)

// turn is a service with a primary pair, in the middle of rotations.
type turn struct {
	t     *testing.T
	s     State
	actor Actor
	old   KeyPair
}

func newTurn(t *testing.T) *turn {
	s, actors := setUp(t)
	r := &turn{t: t, s: s, actor: actors[AdminOperator]}
	r.old = r.pair()
	return r
}

func (r *turn) pair() KeyPair {
	r.t.Helper()
	var refs []KeyRef
	for _, role := range []KeyRole{RoleSigning, RoleEncryption} {
		var result Result
		r.s, result = must(r.t, r.s, command(r.t, CmdKeyAdd, r.actor, KeyAdd{Role: role, Certificate: certificate(r.t, rsaKey(r.t, 2048))}))
		refs = append(refs, KeyRef(result.Subject))
	}
	return KeyPair{refs[0], refs[1]}
}

func (r *turn) start() {
	r.t.Helper()
	r.s, _ = must(r.t, r.s, command(r.t, CmdRotationStart, r.actor, RotationStart{Bits: 2048, Days: 30}))
}

func (r *turn) move(kind Kind, pair KeyPair) Command {
	return command(r.t, kind, r.actor, RotationMove{ID: r.s.Rotation.ID, From: r.s.Rotation.Step, New: pair})
}

func (r *turn) do(kinds ...Kind) {
	r.t.Helper()
	for _, kind := range kinds {
		r.s, _ = must(r.t, r.s, r.move(kind, KeyPair{}))
	}
}

// is compares a pair with what it should be: both halves together.
func (r *turn) is(p KeyPair, enabled, primary bool) {
	r.t.Helper()
	for _, ref := range p.refs() {
		if k := r.s.Keys[ref]; k.Enabled != enabled || k.Primary != primary {
			r.t.Errorf("%s key %.8s: enabled %v, primary %v; want %v, %v", k.Role, ref, k.Enabled, k.Primary, enabled, primary)
		}
	}
}

func TestARotationReplacesThePairAndEachStepCanBeTakenBack(t *testing.T) {
	r := newTurn(t)
	r.start()
	refused(t, r.s, command(t, CmdRotationStart, r.actor, RotationStart{Bits: 2048, Days: 30}))
	fresh := r.pair()
	r.is(r.old, true, true)
	r.is(fresh, true, false)
	r.s, _ = must(t, r.s, r.move(CmdRotationPair, fresh))
	for _, ahead := range []Kind{CmdRotationDisable, CmdRotationRemove, CmdRotationUndo, CmdRotationPair} {
		refused(t, r.s, r.move(ahead, fresh))
	}
	before := r.s
	r.do(CmdRotationPrimary)
	r.is(r.old, true, false)
	r.is(fresh, true, true)
	r.do(CmdRotationUndo)
	r.is(r.old, true, true)
	r.is(fresh, true, false)
	if !reflect.DeepEqual(before.Keys, r.s.Keys) {
		t.Error("undo left something")
	}
	r.do(CmdRotationPrimary, CmdRotationDisable)
	r.is(r.old, false, false)
	r.is(fresh, true, true)
	r.do(CmdRotationUndo)
	r.is(r.old, true, false)
	r.is(fresh, true, true)
	r.do(CmdRotationDisable, CmdRotationRemove)
	if _, there := r.s.Keys[r.old.Signing]; there || r.s.Rotation != nil {
		t.Error("the old pair is still on record")
	}
	r.is(fresh, true, true)
	refused(t, r.s, command(t, CmdRotationUndo, r.actor, RotationMove{From: RotationDisabled}))
	r.start() // and the next one
}

func TestARotationAbortsFromEachStep(t *testing.T) {
	for name, c := range map[string]struct {
		kinds         []Kind // after the pair was made
		fresh, served bool
	}{
		"started":  {nil, false, false},
		"made":     {[]Kind{}, true, false},
		"primary":  {[]Kind{CmdRotationPrimary}, true, true},
		"undone":   {[]Kind{CmdRotationPrimary, CmdRotationUndo}, true, true},
		"disabled": {[]Kind{CmdRotationPrimary, CmdRotationDisable}, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newTurn(t)
			r.start()
			var fresh KeyPair
			if c.fresh {
				fresh = r.pair()
				r.s, _ = must(t, r.s, r.move(CmdRotationPair, fresh))
			}
			r.do(c.kinds...)
			r.do(CmdRotationAbort)
			r.is(r.old, true, true)
			if c.fresh {
				r.is(fresh, c.served, false) // what was primary may be needed
			}
			if r.s.Rotation != nil {
				t.Error("the plan is still there")
			}
		})
	}
}

// TestTwoAdministratorsMoveARotationOnce: the second one's command was meant for the step before.
func TestTwoAdministratorsMoveARotationOnce(t *testing.T) {
	r := newTurn(t)
	r.start()
	r.s, _ = must(t, r.s, r.move(CmdRotationPair, r.pair()))
	first, second := r.move(CmdRotationPrimary, KeyPair{}), r.move(CmdRotationPrimary, KeyPair{})
	r.s, _ = must(t, r.s, first)
	refused(t, r.s, second)
	stale := r.move(CmdRotationDisable, KeyPair{})
	r.do(CmdRotationAbort)
	r.start()
	refused(t, r.s, stale)
}

func TestRefusesARotationWhoseKeysSomebodyElseChanged(t *testing.T) {
	change := func(kind Kind, ref KeyRef) func(*turn) {
		return func(r *turn) { r.s, _ = must(r.t, r.s, command(r.t, kind, r.actor, KeyChange{ref})) }
	}
	r := newTurn(t)
	r.start()
	fresh := r.pair()
	refused(t, r.s, r.move(CmdRotationPair, r.old))
	refused(t, r.s, r.move(CmdRotationPair, KeyPair{fresh.Encryption, fresh.Signing}))
	r.s, _ = must(t, r.s, r.move(CmdRotationPair, fresh))
	made := r.s
	change(CmdKeyDisable, fresh.Signing)(r)
	refused(t, r.s, r.move(CmdRotationPrimary, KeyPair{}))
	r.s = made
	r.do(CmdRotationPrimary)
	primary := r.s
	change(CmdKeyPrimary, r.old.Signing)(r)
	refused(t, r.s, r.move(CmdRotationDisable, KeyPair{}))
	r.s = primary
	r.do(CmdRotationDisable)
	change(CmdKeyEnable, r.old.Signing)(r)
	refused(t, r.s, r.move(CmdRotationRemove, KeyPair{}))
	change(CmdKeyDisable, r.old.Signing)(r)
	change(CmdKeyRemove, r.old.Signing)(r)
	refused(t, r.s, r.move(CmdRotationUndo, KeyPair{}))
	r.do(CmdRotationRemove)
}

func TestRefusesARotationOfNothing(t *testing.T) {
	s, actors := setUp(t)
	refused(t, s, command(t, CmdRotationStart, actors[AdminOperator], RotationStart{Bits: 2048, Days: 30}))
	r := newTurn(t)
	for what, b := range map[string]RotationStart{"bits": {Bits: 1024, Days: 30}, "no window": {Bits: 2048}, "a window without end": {Bits: 2048, Days: MaxRotationDays + 1},
		"a subject that writes": {Bits: 2048, Days: 1, Subject: "\x1b[2J"}} {
		t.Run(what, func(t *testing.T) { refused(t, r.s, command(t, CmdRotationStart, r.actor, b)) })
	}
	r.start()
	raw, _ := json.Marshal(r.s)
	var back State
	if err := json.Unmarshal(raw, &back); err != nil || !reflect.DeepEqual(back.Rotation, r.s.Rotation) {
		t.Error("a rotation does not survive its encoding:", err)
	}
}

func TestAFrozenKeyIsOutAtOnce(t *testing.T) {
	r := newTurn(t)
	r.s, _ = must(t, r.s, command(t, CmdKeyFreeze, r.actor, KeyChange{r.old.Encryption}))
	if k := r.s.Keys[r.old.Encryption]; k.Enabled || k.Primary {
		t.Errorf("%+v", k)
	}
	l := newLife(t)
	signer := l.apply(l.signer(spring))
	refused(t, l.s, command(t, CmdKeyFreeze, l.actor, KeyChange{signer}))
}
