package clock

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// asked counts the questions to each server while d passes.
func (w *world) asks(d time.Duration) (n []int) {
	for _, f := range w.net {
		n = append(n, -f.asked)
	}
	w.run(d)
	for i, f := range w.net {
		n[i] += f.asked
	}
	return n
}

// TestASilentServerIsAskedLessAndLess: while the others make a majority. When they do not any more, it is needed and asked at once.
func TestASilentServerIsAskedLessAndLess(t *testing.T) {
	w := newWorld(15, 4)
	w.net[0].down = true
	if n := w.asks(20 * time.Second)[0]; n < lost {
		t.Errorf("a silent server was given %d chances in the first 20 s", n)
	}
	w.run(time.Hour)
	n := w.asks(6 * time.Hour)
	if most := int(6*time.Hour/pollAbsent) + 3; n[0] > most {
		t.Errorf("a silent server was asked %d times in 6 hours, not %d", n[0], most)
	}
	for i, n := range n[1:] {
		if least := int(6*time.Hour/pollSlow) - 10; n < least {
			t.Errorf("server %d was asked %d times in 6 hours: one that is silent slows the others", i+1, n)
		}
	}
	if s := w.k.Status(); s.State != Locked || s.Sources[0].State != "unreachable" || s.Sources[0].Poll != pollAbsent {
		t.Errorf("state %s, source %s, asked every %v", s.State, s.Sources[0].State, s.Sources[0].Poll)
	}
	w.net[0].down, w.net[1].down, w.net[2].down = false, true, true
	w.run(6 * pollSlow) // until the answers of two more are forgotten
	if s := w.k.Status(); s.Sources[0].State == "unreachable" {
		t.Errorf("the server that is needed for a majority was not asked: %+v", s.Sources[0])
	}
	w.net[1].down = false
	w.run(2 * pollPatient)
	if w.containsTruth(t); w.k.state != Locked {
		t.Errorf("state %s (%s)", w.k.state, w.k.reason)
	}
}

func TestNobodyIsFloodedWhileNobodyAnswers(t *testing.T) {
	w := newWorld(16, 4)
	w.all(func(f *fakeServer) { f.down = true })
	for i, most := range []int{60, 200} { // the first minute and then the first hour
		for _, n := range w.asks([]time.Duration{time.Minute, time.Hour - time.Minute}[i]) {
			if n > most || n < most/10 {
				t.Errorf("part %d: asked %d times", i, n)
			}
		}
	}
	for _, n := range w.asks(24 * time.Hour) {
		if n > int(24*time.Hour/pollSlow) {
			t.Errorf("asked %d times in a day", n)
		}
	}
}

// TestANetworkThatComesUpIsUsedAtOnce: a question that can't leave the machine floods nobody.
func TestANetworkThatComesUpIsUsedAtOnce(t *testing.T) {
	start := newWorld(17, 4)
	start.all(func(f *fakeServer) { f.cut = true })
	start.run(10 * time.Second)
	start.all(func(f *fakeServer) { f.cut = false })
	start.run(pollEager + 100*time.Millisecond)
	start.containsTruth(t)
	w := newWorld(17, 4)
	w.all(func(f *fakeServer) { f.cut = true })
	w.run(20 * time.Minute)
	w.withheld(t, Waiting)
	w.all(func(f *fakeServer) { f.cut = false })
	w.run(4 * time.Second)
	w.containsTruth(t)
}

func TestOtherKeysAreTriedAtOnce(t *testing.T) {
	w := newWorld(18, 4)
	w.net[0].down = true
	w.run(6 * time.Hour)
	w.net[0].down = false
	w.k.Retry()
	w.run(2 * time.Second)
	if s := w.k.Status(); s.Sources[0].State != "selected" {
		t.Errorf("%+v", s.Sources[0])
	}
}

// TestAQuestionIsOneSocketThatIsClosed whatever comes of it.
func TestAQuestionIsOneSocketThatIsClosed(t *testing.T) {
	open := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, e := range list {
			if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(to, "socket:") {
				n++
			}
		}
		return n
	}
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for name, reply := range map[string]func(q []byte) []byte{
		"answers": func(q []byte) []byte { return answer(q, now) },
		"refuses": func(q []byte) []byte { b := answer(q, now); b[1] = 0; copy(b[12:], "RATE"); return b },
		"silent":  func([]byte) []byte { return nil },
		"garbage": func([]byte) []byte { return []byte("nonsense") },
	} {
		var ports sync.Map
		address := responderTo(t, func(port int, q []byte) []byte { ports.Store(port, true); return reply(q) })
		before := open()
		const questions = 8
		for range questions {
			_, err := askWithin(t, 50*time.Millisecond, Server{Address: address})
			if (err == nil) != (name == "answers") {
				t.Errorf("%s: %v", name, err)
			}
		}
		if after := open(); after != before {
			t.Errorf("%s: %d sockets before, %d after %d questions", name, before, after, questions)
		}
		different := 0
		ports.Range(func(any, any) bool { different++; return true })
		if different < questions/2 {
			t.Errorf("%s: %d questions came from %d ports: who guesses one can lie", name, questions, different)
		}
	}
}

func TestAStopWritesTheHardwareClock(t *testing.T) {
	w := newWorld(19, 4)
	var rtc []time.Time
	w.k.SetRTC = func(utc time.Time) error { rtc = append(rtc, utc); return nil }
	w.all(func(f *fakeServer) { f.down = true })
	w.run(time.Minute)
	w.k.Stop()
	if len(rtc) != 0 {
		t.Errorf("a time that nobody said was written: %v", rtc)
	}
	w.all(func(f *fakeServer) { f.down = false })
	w.run(3 * time.Hour)
	was := len(rtc)
	w.k.Stop()
	if len(rtc) != was+1 || rtc[was].Sub(w.utc(w.now)).Abs() > time.Second {
		t.Errorf("after %d writes: %v at %v", was, rtc, w.utc(w.now))
	}
	w.all(func(f *fakeServer) { f.lie = time.Hour })
	w.run(10 * time.Minute)
	w.withheld(t, Suspect)
	w.k.Stop()
	if len(rtc) != was+1 {
		t.Error("a suspect time was written")
	}
}

// TestASuspicionSaysWhatCanBeDone: only what would be obeyed.
func TestASuspicionSaysWhatCanBeDone(t *testing.T) {
	said := func(w *world, want string, not string) {
		t.Helper()
		s := w.k.Status()
		text := strings.Join(s.Decide(), "\n")
		if s.State != Suspect || len(s.Decide()) != 3 || !strings.Contains(text, want) || strings.Contains(text, not) || len(s.Why()) != 3 {
			t.Errorf("state %s (%s): %q", s.State, s.Reason, text)
		}
	}
	w := newWorld(20, 4)
	w.run(2 * time.Hour)
	if w.k.Status().Decide() != nil {
		t.Error("there is something to decide")
	}
	w.pause(3 * time.Second)
	w.run(10 * time.Minute)
	said(w, "it ends by itself", "floor lower")
	if r := w.k.Status().Reason; !strings.Contains(r, "this machine stood still") {
		t.Errorf("a pause is not thought of: %s", r)
	}
	w.reboot(t, 0) // nothing is left that the servers could come back to
	w.run(10 * time.Minute)
	said(w, "time release", "it ends by itself")
	w = newWorld(21, 4)
	w.run(time.Hour)
	w.k.Floor(w.utc(w.now).AddDate(0, 0, 3), "tpm")
	w.run(10 * time.Minute)
	said(w, "time floor lower", "time release")
	back := newWorld(22, 4)
	back.run(time.Hour)
	back.all(func(f *fakeServer) { f.lie = -time.Hour })
	back.run(10 * time.Minute)
	if r := back.k.Status().Reason; back.k.state != Suspect || strings.Contains(r, "stood still") {
		t.Errorf("no pause has time run backwards: %s", r)
	}
}

// TestTheClockStartsWithoutTheLedger: from what lies on the sealed disk, in another boot.
func TestTheClockStartsWithoutTheLedger(t *testing.T) {
	w := newWorld(23, 4)
	w.run(2 * time.Hour)
	dir := t.TempDir()
	if err := w.k.Keep(dir); err != nil {
		t.Fatal(err)
	}
	floor, _ := w.k.Floor(time.Time{}, "")
	w.start()
	w.k.Boot = "next boot"
	fresh := New() // nobody configures it
	fresh.Clock, fresh.Boot, fresh.Build, fresh.Log = w.k.Clock, w.k.Boot, w.k.Build, w.k.Log
	w.k = fresh
	if err := w.k.Restore(dir); err != nil {
		t.Fatal(err)
	}
	if f, from := w.k.Floor(time.Time{}, ""); !f.Equal(floor) || from != fromClock {
		t.Errorf("floor %v from %s, not %v", f, from, floor)
	}
	w.run(5 * time.Second)
	w.containsTruth(t)
	if n := len(w.k.Status().Sources); n != 4 {
		t.Errorf("%d servers", n)
	}
}

// TestAProcessThatStartsAnewTakesNothingBack: its first word is what the one before it said, so that others notice nothing.
func TestAProcessThatStartsAnewTakesNothingBack(t *testing.T) {
	w := newWorld(24, 4)
	w.run(2 * time.Hour)
	before, _ := w.k.Current()
	dir := t.TempDir()
	if err := w.k.Keep(dir); err != nil {
		t.Fatal(err)
	}
	w.run(5 * time.Minute) // it dies here
	w.start()
	if w.k.Resume(dir + "/not mounted yet") {
		t.Error("resumed from nothing")
	}
	for range 2 { // the second call finds it resumed
		if !w.k.Resume(dir) {
			t.Error("not resumed")
		}
	}
	if now, _ := w.k.Current(); now.UTC.IsZero() || now.Locks != before.Locks {
		t.Errorf("its first word is %+v, after %+v", now, before)
	}
	w.containsTruth(t)
}

var errCut = fmt.Errorf("ask: dial udp: connect: %w", syscall.ENETUNREACH)
