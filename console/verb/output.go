package verb

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Width is the widest line of plain text, in columns.
const Width = 80

// Output is what a verb gives: text for people and a value for --json, or a stream of either.
type Output struct {
	Text  *Page
	Value any
	// Stream, where not nil, is instead of both; Binary streams belong into a file, never on a terminal.
	Stream  func(ctx context.Context, w io.Writer, asJSON bool) error
	Binary  bool
	Endless bool // the stream goes on until somebody stops it
	Raw     bool // Text and Value are a file for a program: nothing may be added to them
	End     bool // the session is over
	// Failed: the answer is whole, and what it tells of did not succeed, so that scripts get ExitFailed with it.
	Failed bool
}

// Page is plain text under construction: lines of at most Width columns, printable characters only.
type Page struct{ b strings.Builder }

// String is the text, with a newline at the end of each line.
func (p *Page) String() string { return p.b.String() }

// Line adds text, wrapped at words; continued lines are indented by two more blanks.
func (p *Page) Line(format string, args ...any) *Page {
	text := Clean(fmt.Sprintf(format, args...))
	indent := len(text) - len(strings.TrimLeft(text, " "))
	p.wrap(text[:indent], strings.Repeat(" ", indent+2), text[indent:])
	return p
}

// Blank adds an empty line, unless the page is empty or has one there.
func (p *Page) Blank() *Page {
	if s := p.b.String(); s != "" && !strings.HasSuffix(s, "\n\n") {
		p.b.WriteByte('\n')
	}
	return p
}

const labelWidth = 14

// Field adds "label         value", wrapped under the value. An empty value is left out.
func (p *Page) Field(label, format string, args ...any) *Page {
	value := Clean(fmt.Sprintf(format, args...))
	if value == "" {
		return p
	}
	p.wrap(fmt.Sprintf("%-*s", labelWidth, Clean(label))+" ", strings.Repeat(" ", labelWidth+1), value)
	return p
}

func (p *Page) wrap(first, next, text string) {
	line, width, empty := first, utf8.RuneCountInString(first), true
	for _, word := range strings.Fields(text) {
		n := utf8.RuneCountInString(word)
		if !empty && width+1+n > Width {
			p.b.WriteString(strings.TrimRight(line, " ") + "\n")
			line, width, empty = next, len(next), true
		}
		if !empty {
			line, width = line+" ", width+1
		}
		for width+n > Width { // a word longer than the line is cut
			cut := Width - width
			head := string([]rune(word)[:cut])
			p.b.WriteString(line + head + "\n")
			word, n = word[len(head):], n-cut
			line, width = next, len(next)
		}
		line, width, empty = line+word, width+n, false
	}
	p.b.WriteString(strings.TrimRight(line, " ") + "\n")
}

// Table is Rows below a header.
func (p *Page) Table(header []string, rows [][]string) *Page {
	return p.Rows(append([][]string{header}, rows...))
}

// Rows adds rows of equally many cells in aligned columns. A row too wide for the page has its last cell on lines of its own.
func (p *Page) Rows(all [][]string) *Page {
	if len(all) == 0 {
		return p
	}
	width := make([]int, len(all[0]))
	for _, row := range all {
		for i, cell := range row {
			row[i] = Clean(cell)
			width[i] = max(width[i], utf8.RuneCountInString(row[i]))
		}
	}
	last := len(width) - 1
	for _, row := range all {
		var b strings.Builder
		for i, cell := range row[:last] {
			fmt.Fprintf(&b, "%-*s  ", width[i], cell)
		}
		if utf8.RuneCountInString(b.String())+utf8.RuneCountInString(row[last]) <= Width {
			p.b.WriteString(strings.TrimRight(b.String()+row[last], " ") + "\n")
			continue
		}
		p.b.WriteString(strings.TrimRight(b.String(), " ") + "\n")
		p.wrap("    ", "    ", row[last])
	}
	return p
}

// Clean replaces what a terminal could obey instead of show: control characters, bad UTF-8, invisible and direction marks.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// CleanLines is Clean that keeps newlines, and turns tabs into blanks.
func CleanLines(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n':
			return r
		case r == '\t':
			return ' '
		case r == utf8.RuneError || !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, s)
}

// JSON is the value as indented JSON with a newline. What a terminal could obey is escaped.
func JSON(v any) ([]byte, error) { return encode(v, "  ") }

// JSONLine is JSON on one line, for streams.
func JSONLine(v any) ([]byte, error) { return encode(v, "") }

func encode(v any, indent string) ([]byte, error) {
	var raw bytes.Buffer
	e := json.NewEncoder(&raw)
	e.SetEscapeHTML(false)
	e.SetIndent("", indent)
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("encode the answer: %w", err)
	}
	var out bytes.Buffer
	for _, r := range raw.String() {
		switch {
		case r == '\n' || unicode.IsPrint(r):
			out.WriteRune(r)
		case r > 0xFFFF:
			a, b := utf16.EncodeRune(r)
			fmt.Fprintf(&out, `\u%04x\u%04x`, a, b)
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
	}
	return out.Bytes(), nil
}

// FailurePage is a failure as people see it: what is wrong, then what to do.
func FailurePage(f *Failure) *Page {
	p := new(Page).Line("%s: %s", f.Kind, f.Reason)
	if f.Remedy != "" {
		p.Line("  -> %s", f.Remedy)
	}
	return p
}
