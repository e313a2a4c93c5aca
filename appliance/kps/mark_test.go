package kps

import (
	"crypto/rand"
	"testing"
)

// TestMarkStaysOverAGrantAndChangesWithEachRoll: it is how a machine is counted once while its owner moves it to another guardian.
func TestMarkStaysOverAGrantAndChangesWithEachRoll(t *testing.T) {
	a, b := &TransportKey{Key: make([]byte, 32), Form: FormRaw}, &TransportKey{Key: make([]byte, 32)}
	if a.Mark() != b.Mark() || len(a.Mark()) != 32 {
		t.Error(a.Mark(), b.Mark())
	}
	if _, err := rand.Read(b.Key); err != nil {
		t.Fatal(err)
	}
	if a.Mark() == b.Mark() {
		t.Error("two keys have one mark")
	}
}
