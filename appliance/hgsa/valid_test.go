package hgsa

import (
	"bytes"
	"encoding/json"
	"testing"
)

var validSeeds = []string{`{"a":[1,2,3]}`, `[0]`, `[00]`, `[1,]`, `[,1]`, `["[1,2",3]`, `["\"[1,2]"]`, `"[1,2]`, `[1,2]]`, `[[1,2],[3]]`, `[256,1000]`, `[1.5]`, `[-1]`,
	`{"[1]":[1]}`, `{[1]:1}`, `[1,2`, `[1 ,2]`, `\"[1]"`, `"\\"[1]`, `[1][2]`, `[01,2]`, `[]`, `"\`, `"\u005b1]"`}

func TestFastCheckAgreesWithTheSlowOne(t *testing.T) {
	for _, s := range validSeeds {
		if valid([]byte(s)) != json.Valid([]byte(s)) {
			t.Errorf("%s: %t", s, valid([]byte(s)))
		}
	}
}

// FuzzValid: whatever comes, the fast check says what encoding/json says, and a
// plain list gives what encoding/json reads.
func FuzzValid(f *testing.F) {
	for _, s := range validSeeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if valid(b) != json.Valid(b) {
			t.Fatalf("%q: %t", b, valid(b))
		}
		var want []int
		if len(b) == 0 || b[0] != '[' || plainList(b, 0) != len(b)-1 || json.Unmarshal(b, &want) != nil {
			return
		}
		got, ok := plainNumbers(nil, b[1:len(b)-1])
		small := make([]byte, len(want))
		for i, n := range want {
			if n > 255 {
				if ok {
					t.Fatalf("%q: %d is a byte", b, n)
				}
				return
			}
			small[i] = byte(n)
		}
		if !ok || !bytes.Equal(got, small) {
			t.Fatalf("%q: %v", b, got)
		}
	})
}
