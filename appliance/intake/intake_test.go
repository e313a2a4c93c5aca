package intake

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
	"testing"
	"testing/iotest"
	"time"
)

func TestBodiesTakeFromTheBudgetAndGiveBack(t *testing.T) {
	b := NewBudget(100, 16)
	read := func(body io.Reader, limit int64) ([]byte, func(), error) {
		return b.Body(httptest.NewRecorder(), httptest.NewRequest("POST", "/", body), limit)
	}
	small, done, err := read(bytes.NewReader(make([]byte, 15)), 1000)
	if err != nil || len(small) != 15 || b.Left() != 100 {
		t.Fatalf("a usual body: %d bytes, %d left, %v", len(small), b.Left(), err)
	}
	done()
	large, done, err := read(bytes.NewReader(bytes.Repeat([]byte("ab"), 30)), 1000)
	if err != nil || len(large) != 60 || string(large[58:]) != "ab" || b.Left() != 100-(64-16) {
		t.Fatalf("%d bytes, %d left, %v", len(large), b.Left(), err)
	}
	if _, _, err := read(bytes.NewReader(make([]byte, 100)), 1000); !errors.Is(err, ErrBusy) {
		t.Fatal("two large bodies at once:", err)
	}
	done()
	done()
	if b.Left() != 100 {
		t.Fatalf("%d left", b.Left())
	}
}

func TestRefusesWhatDoesNotFit(t *testing.T) {
	for name, c := range map[string]struct {
		body  io.Reader
		limit int64
		err   error
	}{
		"announced too large":  {bytes.NewReader(make([]byte, 65)), 64, ErrTooLarge},
		"too large at its end": {struct{ io.Reader }{bytes.NewReader(make([]byte, 65))}, 64, ErrTooLarge},
		"over the budget":      {bytes.NewReader(make([]byte, 2000)), 4000, ErrBusy},
		"broken off":           {iotest.TimeoutReader(iotest.OneByteReader(bytes.NewReader(make([]byte, 40)))), 64, ErrBody},
	} {
		t.Run(name, func(t *testing.T) {
			b := NewBudget(1000, 16)
			body, done, err := b.Body(httptest.NewRecorder(), httptest.NewRequest("POST", "/", c.body), c.limit)
			if !errors.Is(err, c.err) || body != nil || done != nil {
				t.Errorf("%d bytes, %v", len(body), err)
			}
			if b.Left() != 1000 {
				t.Errorf("%d bytes of the budget are lost", 1000-b.Left())
			}
		})
	}
}

func TestCounterForgetsAfterAMinuteAndIsBounded(t *testing.T) {
	var c Counter
	now := time.Hour
	for i, want := range []bool{true, true, false} {
		if c.Allow("a", 2, now) != want {
			t.Fatalf("event %d of a minute: want %v", i+1, want)
		}
	}
	if !c.Allow("b", 2, now) {
		t.Fatal("one key counts for another")
	}
	if c.Allow("a", 2, now+59*time.Second) || !c.Allow("a", 2, now+time.Minute) {
		t.Fatal("a new minute begins a minute after the first event")
	}
	for i := range 2 * maxCounted {
		c.Allow(fmt.Sprint(i), 1, now)
	}
	if len(c.seen) > maxCounted {
		t.Fatalf("%d keys in memory", len(c.seen))
	}
}

// TestUsedMemoryHoldsNothingOfTheBodyBefore: a shorter body in the same buffer, and one that grows through several.
func TestUsedMemoryHoldsNothingOfTheBodyBefore(t *testing.T) {
	b := NewBudget(1<<20, 16).Reusing()
	for i, size := range []int{0, 300, 10, 16, 17, 5000, 299, 40000, 1, 300} {
		want := bytes.Repeat([]byte{byte(i)}, size)
		body, done, err := b.Body(httptest.NewRecorder(), httptest.NewRequest("POST", "/", iotest.HalfReader(bytes.NewReader(want))), 1<<20)
		if err != nil || !bytes.Equal(body, want) {
			t.Fatalf("body %d: %d bytes, %v", i, len(body), err)
		}
		other, otherDone, err := b.Body(httptest.NewRecorder(), httptest.NewRequest("POST", "/", bytes.NewReader(make([]byte, 70))), 1<<20)
		if err != nil || !bytes.Equal(body, want) || !bytes.Equal(other, make([]byte, 70)) {
			t.Fatalf("body %d shares memory with one that is read at the same time: %v", i, err)
		}
		done()
		otherDone()
		done()
		if b.Left() != 1<<20 {
			t.Fatalf("%d bytes left", b.Left())
		}
	}
}
