package keys

import (
	"bytes"
	"errors"
	"testing"
)

// At every rest of a rollover some key that is still kept can make the next step, and an image signed by both sets starts.
func TestNoStepOfARolloverLocksAMachineOut(t *testing.T) {
	old, next := made(t, "Contoso", false), made(t, "Contoso", false)
	states := Rollover(old, next)
	for i, s := range states {
		if len(s.DB) == 0 || len(s.KEK) == 0 {
			t.Errorf("%d: %+v", i, s)
		}
		changed := 0
		if i > 0 {
			before := states[i-1]
			was, is := before.Variables(nil), s.Variables(nil)
			for n := range was {
				if !bytes.Equal(was[n].Data, is[n].Data) {
					changed++
				}
			}
			if changed != 1 {
				t.Errorf("step %d changes %d variables at once", i, changed)
			}
		}
	}
	db := states[1].Variables(nil)[2].Data
	if !bytes.Equal(db, append(CertList(old.Owner, old.Certs[DB]), CertList(next.Owner, next.Certs[DB])...)) {
		t.Error("an appended list is not behind the old one")
	}
	if last := states[len(states)-1].Variables([]byte{1}); !bytes.Equal(last[0].Data, next.Variables(nil)[0].Data) || last[3].Data[0] != 1 {
		t.Error("it does not end at the new set")
	}
	if !Forbids(CertList(next.Owner, old.Certs[DB]), old) || Forbids(HashList(next.Owner, [32]byte{}), old) {
		t.Error("dbx is misread")
	}
}

func TestTryingOutAndProductionDoNotMix(t *testing.T) {
	a, b := made(t, "Contoso", false), made(t, "", true)
	if err := Unmixed(a, a); err != nil {
		t.Error(err)
	}
	if err := Unmixed(a, b); !errors.Is(err, ErrMixed) {
		t.Errorf("%v", err)
	}
}
