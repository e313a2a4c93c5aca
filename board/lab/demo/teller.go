package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"guardhouse/board/lab/site"
)

// teller prints the story: one line a step, what a slow step waits for, and for a failure what was expected, what came, what to do, and
// where the log lies.
type teller struct {
	out   io.Writer
	start time.Time
	live  bool   // a terminal: the waiting line is overwritten
	log   string // path shown with failures
}

func newTeller(out *os.File) *teller {
	return &teller{out: out, start: time.Now(), live: term.IsTerminal(int(out.Fd()))}
}

const slow = 3 * time.Second

// failure is an error with all that a person needs.
type failure struct{ expected, got, remedy string }

func (f *failure) Error() string { return "expected " + f.expected + ", got " + f.got }

func (t *teller) stamp() string { return fmt.Sprintf("[%5.1fs]", time.Since(t.start).Seconds()) }

// step runs do, which gives the line's text. waits says what the step waits for when it takes longer than 3 s.
func (t *teller) step(name, waits string, do func() (string, error)) error {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-done:
			return
		case <-time.After(slow):
		}
		line := fmt.Sprintf("%s ..  %-14s waiting: %s", t.stamp(), name, waits)
		if t.live {
			fmt.Fprint(t.out, line)
			<-done
			fmt.Fprint(t.out, "\r"+strings.Repeat(" ", len(line))+"\r")
			return
		}
		fmt.Fprintln(t.out, line)
	})
	text, err := do()
	close(done)
	wg.Wait()
	if err == nil {
		fmt.Fprintf(t.out, "%s ok  %-14s %s\n", t.stamp(), name, text)
		return nil
	}
	f, ok := err.(*failure)
	if !ok {
		f = &failure{"the step to work", err.Error(), "see the log; make clean and make demo begin anew"}
	}
	fmt.Fprintf(t.out, "%s FAIL %s\n  expected  %s\n  got       %s\n  remedy    %s\n  log       %s\n", t.stamp(), name, f.expected, f.got, f.remedy, t.log)
	return err
}

// step is one line of a chapter: its name, what it waits for when it is slow, and what it does.
type step struct {
	name, waits string
	do          func(context.Context) (string, error)
}

// tell runs the steps of a chapter at a site until one fails.
func (t *teller) tell(ctx context.Context, s *site.Site, steps []step) error {
	for _, one := range steps {
		t.log = filepath.Join(s.Lab.Dir, "nodes", s.Name)
		if s.Node != nil {
			t.log = s.Node.Serial.LogPath()
		}
		if err := t.step(one.name, one.waits, func() (string, error) { return one.do(ctx) }); err != nil {
			return err
		}
	}
	return nil
}

func (t *teller) end(format string, args ...any) {
	fmt.Fprintf(t.out, "%s %s\n", t.stamp(), fmt.Sprintf(format, args...))
}

// short is the beginning of a hash.
func short(hash string) string {
	if len(hash) < 8 {
		return "?" + hash
	}
	return hash[:8] + ".."
}
