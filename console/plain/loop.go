package plain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"guardhouse/console/verb"
)

// Loop reads and runs verbs until logout or until the line or the patience ends; then it gives the reason, nil for a logout. A number
// picks from the list last shown; the word menu shows one.
func Loop(ctx context.Context, t *Terminal, s *verb.Session) error {
	return LoopAt(ctx, t, s, Prompt)
}

// LoopMenu is Loop that begins with the menu, whose numbers then count.
func LoopMenu(ctx context.Context, t *Terminal, s *verb.Session) error {
	l := loop{t: t, s: s}
	if err := l.menu(""); err != nil {
		return err
	}
	return l.at(ctx, Prompt)
}

// LoopAt is Loop with another prompt.
func LoopAt(ctx context.Context, t *Terminal, s *verb.Session, prompt string) error {
	l := loop{t: t, s: s}
	return l.at(ctx, prompt)
}

// at reads and runs until the session is over.
func (l *loop) at(ctx context.Context, prompt string) error {
	for {
		line, err := l.t.Line(ctx, prompt)
		switch {
		case errors.Is(err, ErrInterrupted):
			continue
		case errors.Is(err, errTooLong):
			l.t.Say(err.Error() + "\n")
			continue
		case errors.Is(err, ErrEnd):
			return nil
		case err != nil:
			return err
		}
		if end, err := l.run(ctx, line); end || err != nil {
			return err
		}
	}
}

// One runs a single command line as Loop would. end is true where the session is over.
func One(ctx context.Context, t *Terminal, s *verb.Session, line string) (end bool, err error) {
	l := loop{t: t, s: s}
	return l.run(ctx, line)
}

type loop struct {
	t       *Terminal
	s       *verb.Session
	choices []string
}

// run is one line; err ends the session, failures of the verb itself are shown.
func (l *loop) run(ctx context.Context, line string) (end bool, err error) {
	words, err := verb.Split(line)
	if err != nil {
		return false, l.show(err)
	}
	if len(words) == 0 {
		return false, nil
	}
	if len(words) == 1 {
		if n, err := strconv.Atoi(words[0]); err == nil {
			if n < 1 || n > len(l.choices) {
				return false, l.t.Say("there is no such number; type menu\n")
			}
			words = strings.Fields(l.choices[n-1])
		}
	}
	if len(words) == 1 && isGroup(words[0]) {
		return false, l.menu(words[0])
	}
	if words[0] == "menu" {
		return false, l.menu("")
	}
	v, args, err := l.parse(ctx, words)
	if err != nil {
		return false, l.show(err)
	}
	return l.verb(ctx, v, args)
}

// parse asks for the arguments that are missing.
func (l *loop) parse(ctx context.Context, words []string) (*verb.Verb, verb.Args, error) {
	for {
		v, args, err := verb.Parse(words)
		var missing *verb.Missing
		if !errors.As(err, &missing) {
			return v, args, err
		}
		if err := verb.Permitted(v, l.s); err != nil {
			return nil, args, err
		}
		p := missing.Param
		if hint := strings.Trim(p.Help+": "+strings.Join(p.Choices, ", "), ": "); hint != "" {
			if err := l.t.Say(new(verb.Page).Line("%s: %s", strings.ToUpper(p.Name), hint).String()); err != nil {
				return nil, args, err
			}
		}
		answer, err := l.t.Line(ctx, strings.ToUpper(p.Name)+": ")
		if err != nil {
			return nil, args, err
		}
		if strings.TrimSpace(answer) == "" || strings.HasPrefix(answer, "--") {
			return nil, args, missing
		}
		words = append(words, answer)
	}
}

func (l *loop) verb(ctx context.Context, v *verb.Verb, args verb.Args) (end bool, err error) {
	if err := verb.Permitted(v, l.s); err != nil {
		return false, l.show(err)
	}
	if v.Risk == verb.Disrupts {
		if err := l.t.Say(new(verb.Page).Line("%s: %s", v.Name, v.Help).String()); err != nil {
			return false, err
		}
		answer, err := l.t.Line(ctx, "type yes to go on: ")
		if err != nil || answer != "yes" {
			if err == nil {
				err = l.t.Say("nothing was changed\n")
			}
			return false, l.show(err)
		}
	}
	var input []byte
	if v.WantsStdin(args) && v.Dialogue == nil {
		if input, err = l.t.Paste(ctx, v.Stdin); err != nil {
			return false, l.show(err)
		}
	}
	out, err := verb.Run(ctx, v, l.s, args, input, asker{ctx, l.t})
	if err != nil {
		return false, l.show(err)
	}
	if out.Stream != nil {
		return false, l.show(l.stream(ctx, out, args.JSON))
	}
	text := out.Text.String()
	if args.JSON {
		b, err := verb.JSON(out.Value)
		if err != nil {
			return false, l.show(err)
		}
		text = string(b)
	}
	return out.End, l.t.Say(text)
}

// stream shows lines until they end or, where they would go on for ever, until somebody presses a key.
func (l *loop) stream(ctx context.Context, out verb.Output, asJSON bool) error {
	if out.Binary {
		return &verb.Failure{Code: verb.ExitFailed, Kind: "refused", Reason: "this gives a file, not text", Remedy: "run it without a terminal: ssh NODE VERB > FILE"}
	}
	if !out.Endless {
		return out.Stream(ctx, l.t, asJSON) // what is typed ahead is for the next prompt
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- out.Stream(ctx, l.t, asJSON)
		cancel()
	}()
	_, err := l.t.readByte(ctx)
	cancel()
	streamed := <-ended
	if err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	if errors.Is(streamed, context.Canceled) {
		return nil
	}
	return streamed
}

// show shows a failure of a verb; it gives back only what ends the session.
func (l *loop) show(err error) error {
	switch {
	case err == nil || errors.Is(err, ErrInterrupted):
		return nil
	case errors.Is(err, ErrIdle), errors.Is(err, ErrBreak), errors.Is(err, ErrGone), errors.Is(err, ErrEnd):
		return err
	case errors.Is(err, errTooLong):
		return l.t.Say(err.Error() + "\n")
	}
	return l.t.Say(l.s.Node.Banner() + verb.FailurePage(verb.Explain(err)).String())
}

func isGroup(word string) bool {
	if _, alone := verb.Lookup(word); alone {
		return false
	}
	return slices.ContainsFunc(verb.All(), func(v *verb.Verb) bool {
		return strings.HasPrefix(v.Name, word+" ")
	})
}

// menu shows what may be done here as a numbered list: single verbs and groups, or the verbs of one group.
func (l *loop) menu(group string) error {
	l.choices = nil
	var rows [][]string
	add := func(word, help string) {
		l.choices = append(l.choices, word)
		rows = append(rows, []string{fmt.Sprintf("%2d", len(l.choices)), word, help})
	}
	for _, v := range verb.All() {
		if verb.Permitted(v, l.s) != nil {
			continue
		}
		first, _, grouped := strings.Cut(v.Name, " ")
		switch {
		case group == "" && grouped && !slices.Contains(l.choices, first):
			add(first, v.Name+" and more")
		case group == "" && !grouped || group != "" && first == group:
			add(v.Name, v.Help)
		}
	}
	p := new(verb.Page).Rows(rows)
	if len(l.choices) == 0 {
		p.Line("nothing of that may be done here; log in first, or see help")
	} else {
		p.Line("type a number or a verb")
	}
	return l.t.Say(l.s.Node.Banner() + p.String())
}
