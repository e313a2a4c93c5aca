// Package plain speaks to people in numbered and named lines: for the serial console, dumb terminals and screen readers. It promises
// that nothing it writes can command a terminal, that what is typed is bounded, that secrets are not echoed, and that a session ends
// by itself when nobody types for the idle time, on a BREAK and when the line is lost.
//
// Limits: it moves no cursor but by backspace and knows no colours. It needs a line in raw mode: it echoes by itself. A NUL byte is
// taken for a BREAK, which is how a raw serial line reports one.
package plain

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"guardhouse/console/verb"
)

// Prompt is the prompt of the command loop; it never changes, people drive it with expect.
const Prompt = "guardhouse> "

// Bounds of what is typed or pasted, in bytes.
const (
	MaxLine  = 64 << 10
	MaxPaste = 1 << 20
)

// Idle is how long nobody may type before the session ends.
const Idle = 10 * time.Minute

// Why a dialogue ended.
var (
	ErrIdle        = errors.New("nobody typed for 10 minutes")
	ErrBreak       = errors.New("BREAK on the line")
	ErrGone        = errors.New("the line was lost")
	ErrInterrupted = errors.New("interrupted")           // ctrl-C: this question only
	ErrEnd         = errors.New("end of the session")    // ctrl-D on an empty line
	errTooLong     = errors.New("that line is too long") //
)

// Terminal is one raw line. Only one goroutine may use it at a time.
type Terminal struct {
	out  io.Writer
	idle time.Duration
	in   chan []byte
	lost chan struct{} // closed when reading failed
	done chan struct{} // closed by Close
	rest []byte
	cr   bool // the last byte was a carriage return: a line feed belongs to it
}

// NewTerminal reads rw in the background until it fails or Close; idle 0 means Idle.
func NewTerminal(rw io.ReadWriter, idle time.Duration) *Terminal {
	if idle <= 0 {
		idle = Idle
	}
	t := &Terminal{out: rw, idle: idle, in: make(chan []byte, 16), lost: make(chan struct{}), done: make(chan struct{})}
	go t.pump(rw)
	return t
}

// Close lets the background reader go at its next byte. It does not close the line.
func (t *Terminal) Close() { close(t.done) }

func (t *Terminal) pump(r io.Reader) {
	defer close(t.lost)
	for {
		b := make([]byte, 4096)
		n, err := r.Read(b)
		if n > 0 {
			select {
			case t.in <- b[:n]:
			case <-t.done:
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (t *Terminal) readByte(ctx context.Context) (byte, error) {
	if len(t.rest) == 0 {
		timer := time.NewTimer(t.idle)
		defer timer.Stop()
		select {
		case t.rest = <-t.in:
		case <-timer.C:
			return 0, ErrIdle
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-t.lost:
			select { // what came before the end still counts
			case t.rest = <-t.in:
			default:
				return 0, ErrGone
			}
		}
	}
	b := t.rest[0]
	t.rest[0] = 0 // it may have been part of a secret
	t.rest = t.rest[1:]
	if b == 0 {
		return 0, ErrBreak
	}
	return b, nil
}

// Write shows text: control bytes are replaced, a newline becomes carriage return and line feed.
func (t *Terminal) Write(p []byte) (int, error) {
	text := strings.ReplaceAll(verb.CleanLines(string(p)), "\n", "\r\n")
	if _, err := io.WriteString(t.out, text); err != nil {
		return 0, fmt.Errorf("%w: %v", ErrGone, err)
	}
	return len(p), nil
}

// Say is Write for text.
func (t *Terminal) Say(text string) error {
	_, err := t.Write([]byte(text))
	return err
}

// Line shows the prompt and reads one line, echoed.
func (t *Terminal) Line(ctx context.Context, prompt string) (string, error) {
	b, err := t.line(ctx, prompt, true, MaxLine)
	return string(b), err
}

// Secret is Line without echo. The caller wipes what it gets.
func (t *Terminal) Secret(ctx context.Context, prompt string) ([]byte, error) {
	return t.line(ctx, prompt, false, 1024)
}

// Keys of the line editor.
const (
	keyInterrupt = 0x03
	keyEnd       = 0x04
	keyBackspace = 0x08
	keyKill      = 0x15
	keyEscape    = 0x1b
	keyDelete    = 0x7f
)

func (t *Terminal) line(ctx context.Context, prompt string, echo bool, most int) (line []byte, err error) {
	if err := t.Say(prompt); err != nil {
		return nil, err
	}
	tooLong := false
	line = make([]byte, 0, 1024)
	for {
		b, err := t.readByte(ctx)
		if err != nil {
			clear(line)
			return nil, err
		}
		after := t.cr
		t.cr = b == '\r'
		switch {
		case b == '\n' && after:
		case b == '\r' || b == '\n':
			if err := t.Say("\n"); err != nil {
				return nil, err
			}
			if tooLong {
				clear(line)
				return nil, errTooLong
			}
			return line, nil
		case b == keyInterrupt:
			clear(line)
			t.Say("^C\n")
			return nil, ErrInterrupted
		case b == keyEnd && len(line) == 0:
			t.Say("\n")
			return nil, ErrEnd
		case b == keyBackspace || b == keyDelete:
			line = t.erase(line, echo)
		case b == keyKill:
			for len(line) > 0 {
				line = t.erase(line, echo)
			}
		case b == keyEscape:
			if err := t.swallowEscape(ctx); err != nil {
				return nil, err
			}
		case b == '\t':
			b = ' '
			fallthrough
		case b >= 0x20:
			if len(line) >= most {
				tooLong = true
				continue
			}
			line = append(line, b)
			if echo {
				t.echo(line)
			}
		}
	}
}

// echo shows the last character once all its bytes are there.
func (t *Terminal) echo(line []byte) {
	if r, n := utf8.DecodeLastRune(line); r != utf8.RuneError {
		t.Write(line[len(line)-n:])
	}
}

// erase removes the last character from the line and, where it was shown, from the screen.
func (t *Terminal) erase(line []byte, echo bool) []byte {
	if len(line) == 0 {
		return line
	}
	_, n := utf8.DecodeLastRune(line)
	clear(line[len(line)-n:])
	if echo {
		io.WriteString(t.out, "\b \b")
	}
	return line[:len(line)-n]
}

// swallowEscape reads the rest of an arrow or function key.
func (t *Terminal) swallowEscape(ctx context.Context) error {
	b, err := t.readByte(ctx)
	if err != nil || b != '[' && b != 'O' {
		return err
	}
	for range 16 {
		if b, err = t.readByte(ctx); err != nil || b >= 0x40 && b <= 0x7e {
			return err
		}
	}
	return nil
}

// Paste asks for lines until one that holds only a dot, and gives them with newlines. A paste that is too large is read to its end, so
// that its tail is never taken for commands.
func (t *Terminal) Paste(ctx context.Context, what string) ([]byte, error) {
	ask := "paste " + what + ", end with a line holding only a dot\n"
	if len(ask) > verb.Width {
		ask = new(verb.Page).Line("paste %s", what).Line("end with a line holding only a dot").String()
	}
	if err := t.Say(ask); err != nil {
		return nil, err
	}
	var text []byte
	var tooMuch bool
	for {
		line, err := t.line(ctx, "", true, MaxLine)
		if err != nil && err != errTooLong {
			return nil, err
		}
		if strings.TrimRight(string(line), " ") == "." {
			break
		}
		if tooMuch = tooMuch || err != nil || len(text)+len(line) >= MaxPaste; !tooMuch {
			text = append(append(text, line...), '\n')
		}
	}
	if tooMuch {
		return nil, &verb.Failure{Code: verb.ExitUsage, Kind: "usage", Reason: "that was more than 1 MiB, or a line of more than 64 KiB", Remedy: "is it the right file?"}
	}
	return text, nil
}

// asker holds a dialogue on the terminal for a verb.
type asker struct {
	ctx context.Context
	t   *Terminal
}

func (a asker) Say(text string) error                { return a.t.Say(text) }
func (a asker) Ask(prompt string) (string, error)    { return a.t.Line(a.ctx, prompt) }
func (a asker) Secret(prompt string) ([]byte, error) { return a.t.Secret(a.ctx, prompt) }
func (a asker) Paste(what string) ([]byte, error)    { return a.t.Paste(a.ctx, what) }
