package keys

import (
	"bytes"
	"crypto/rsa"
	"errors"
	"fmt"
)

// ErrMixed reports a set for trying out beside a production set.
var ErrMixed = errors.New("a set for trying out and a production set never sign the same thing")

// Unmixed refuses to let a set for trying out and a production set sign the same image.
func Unmixed(set *Set, also ...*Set) error {
	for _, a := range also {
		if a.Evaluation != set.Evaluation {
			return fmt.Errorf("%w: %q and %q", ErrMixed, set.Name, a.Name)
		}
	}
	return nil
}

// RSA is a role's public key.
func (s *Set) RSA(role string) *rsa.PublicKey {
	k, _ := s.Certs[role].PublicKey.(*rsa.PublicKey) // Load has looked
	return k
}

// Trust says whose keys a machine's firmware holds, list by list.
type Trust struct {
	Name string // for people
	PK   *Set
	KEK  []*Set
	DB   []*Set
}

// Alone is a machine that holds one set.
func Alone(s *Set) Trust { return Trust{s.Name, s, []*Set{s}, []*Set{s}} }

// Rollover lists how a machine's firmware stands while one set follows another: before, after each of the updates of RolloverSteps, and so
// at the end with the new set alone. A machine may rest at any of them.
func Rollover(old, next *Set) []Trust {
	both := []*Set{old, next}
	name := func(what string) string { return fmt.Sprintf("%s to %s: %s", old.Name, next.Name, what) }
	return []Trust{
		Alone(old),
		{name("db both"), old, []*Set{old}, both},
		{name("db and KEK both"), old, both, both},
		{name("db and KEK both, PK new"), next, both, both},
		{name("db both, KEK and PK new"), next, []*Set{next}, both},
		Alone(next),
	}
}

// Variables are PK, KEK, db and dbx of a machine that trusts so. dbx is a list of signature lists, nil for none.
func (t Trust) Variables(dbx []byte) []Variable {
	lists := func(role string, sets []*Set) (b []byte) {
		for _, s := range sets {
			b = append(b, s.list(role)...)
		}
		return b
	}
	return []Variable{
		{"PK", GlobalVariable, t.PK.list(PK)}, {"KEK", GlobalVariable, lists(KEK, t.KEK)},
		{"db", SecurityDatabase, lists(DB, t.DB)}, {"dbx", SecurityDatabase, dbx},
	}
}

// Forbids says whether this content of dbx has the set's db certificate: firmware then refuses whatever it signed, also where another
// signature would do.
func Forbids(dbx []byte, s *Set) bool { return bytes.Contains(dbx, s.Certs[DB].Raw) }
