package hgsa

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

var validSeeds = []string{`{"a":[1,2,3]}`, `[0]`, `[00]`, `[1,]`, `[,1]`, `["[1,2",3]`, `["\"[1,2]"]`, `"[1,2]`, `[1,2]]`, `[[1,2],[3]]`, `[256,1000]`, `[1.5]`, `[-1]`,
	`{"[1]":[1]}`, `{[1]:1}`, `[1,2`, `[1 ,2]`, `\"[1]"`, `"\\"[1]`, `[1][2]`, `[01,2]`, `[]`, `"\`, `"\u005b1]"`}

// longLists are lists of a few hundred numbers: one with all that are short in its
// first part, and then the bytes 0 to 255 at every place of the 64 bytes that are
// looked at together.
func longLists() (lists []string) {
	lists = append(lists, "["+strings.Repeat("7,", 900)+strings.Repeat("255,", 99)+"10]")
	for shift := range 66 {
		values := make([]byte, 300)
		for i := range values {
			values[i] = byte(i * (shift + 1))
		}
		lists = append(lists, strings.Repeat(" ", shift)+string(appendNumbers(nil, values)))
	}
	return lists
}

func isValid(b []byte) bool {
	_, ok := check(b)
	return ok
}

func TestFastCheckAgreesWithTheSlowOne(t *testing.T) {
	for _, s := range append(validSeeds, longLists()...) {
		if isValid([]byte(s)) != json.Valid([]byte(s)) {
			t.Errorf("%s: %t", s, isValid([]byte(s)))
		}
	}
}

// TestLongListsAreReadAndTheirFaultsSeen: each byte of a long list is replaced by
// what must not be there, and by what makes another list of it.
func TestLongListsAreReadAndTheirFaultsSeen(t *testing.T) {
	for _, s := range longLists()[:9] {
		compareWithJSON(t, []byte(s))
		for i := range len(s) {
			for _, c := range []byte(`0,]9" -.[/:`) {
				b := []byte(s)
				b[i] = c
				compareWithJSON(t, b)
			}
		}
	}
}

// compareWithJSON wants of check what encoding/json says, of b and of each list.
func compareWithJSON(t *testing.T, b []byte) {
	t.Helper()
	lists, ok := check(b)
	if ok != json.Valid(b) {
		t.Fatalf("%q: %t", b, ok)
	}
	for _, l := range lists {
		var want []uint16
		if err := json.Unmarshal(b[l.at:l.end+1], &want); err != nil {
			t.Fatalf("%q is no list: %v", b[l.at:l.end+1], err)
		}
		small := slices.Max(want) <= 255
		if small != (l.bytes != nil) || small && len(l.bytes) != len(want) {
			t.Fatalf("%q: %v", b[l.at:l.end+1], l.bytes)
		}
		for i, v := range l.bytes {
			if uint16(v) != want[i] {
				t.Fatalf("%q: %v", b[l.at:l.end+1], l.bytes)
			}
		}
	}
}

// FuzzValid: whatever comes, the fast check says what encoding/json says, and
// each list gives what encoding/json reads.
func FuzzValid(f *testing.F) {
	for _, s := range append(validSeeds, longLists()[:3]...) {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) { compareWithJSON(t, b) })
}

// FuzzNumbersAreWrittenAsJSON: the writer's lists are those of encoding/json.
func FuzzNumbersAreWrittenAsJSON(f *testing.F) {
	f.Add([]byte{0, 9, 10, 99, 100, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		wide := make([]uint16, len(b))
		for i, v := range b {
			wide[i] = uint16(v)
		}
		want, err := json.Marshal(wide)
		if got := appendNumbers(nil, b); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%s, not %s", got, want)
		}
	})
}
