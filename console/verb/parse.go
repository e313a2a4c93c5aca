package verb

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"guardhouse/appliance/policy"
)

// Kind is what a parameter's value must look like.
type Kind int

const (
	Text     Kind = iota // anything of at most 256 bytes
	Word                 // a name as policy.ValidName has it
	Number               // an integer
	Duration             // 8h, 90m
	Choice               // one of Choices, in any case
	Switch               // a flag without a value
	Rest                 // positional: all words that are left
)

// Param is one argument. Flags are written --name VALUE or --name=VALUE; the others stand in their order.
type Param struct {
	Name     string
	Kind     Kind
	Choices  []string
	Flag     bool
	Optional bool // flags always are
	Help     string
}

func (p Param) usage() string {
	value := strings.ToUpper(strings.ReplaceAll(p.Name, " ", "-"))
	if p.Kind == Choice {
		value = strings.Join(p.Choices, "|")
	}
	switch {
	case p.Flag && p.Kind == Switch:
		return "[--" + p.Name + "]"
	case p.Flag:
		return "[--" + p.Name + " " + value + "]"
	case p.Kind == Rest:
		return "[" + value + "...]"
	case p.Optional:
		return "[" + value + "]"
	}
	return value
}

// Args are the parsed arguments of one call. JSON is the --json that every verb takes.
type Args struct {
	values map[string]string
	JSON   bool
}

// Has reports whether the argument was given.
func (a Args) Has(name string) bool { _, ok := a.values[name]; return ok }

// Get is the argument as given (choices in their canonical case), "" where it was not.
func (a Args) Get(name string) string { return a.values[name] }

// Or is Get with a default.
func (a Args) Or(name, otherwise string) string {
	if v, ok := a.values[name]; ok {
		return v
	}
	return otherwise
}

// Int is the argument as a number that Parse has checked.
func (a Args) Int(name string, otherwise int) int {
	n, err := strconv.Atoi(a.values[name])
	if err != nil {
		return otherwise
	}
	return n
}

// Limits of a command line.
const (
	MaxLine  = 64 << 10
	maxWords = 64
	maxValue = 256
)

// Split cuts a command line into words. Words are separated by blanks; single quotes keep everything, double quotes and a backslash
// keep the next character. No variables, no globs: this is not a shell.
func Split(line string) ([]string, error) {
	if len(line) > MaxLine {
		return nil, usage("the line is longer than 64 KiB", "")
	}
	var words []string
	var word strings.Builder
	inWord, quote, escaped := false, rune(0), false
	for _, c := range line {
		switch {
		case escaped:
			word.WriteRune(c)
			escaped = false
		case c == '\\' && quote != '\'':
			escaped, inWord = true, true
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(c)
		case c == '\'' || c == '"':
			quote, inWord = c, true
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			if inWord {
				words = append(words, word.String())
				word.Reset()
				inWord = false
			}
		default:
			word.WriteRune(c)
			inWord = true
		}
	}
	if quote != 0 || escaped {
		return nil, usage("a quote or backslash at the end of the line has no partner", "")
	}
	if inWord {
		words = append(words, word.String())
	}
	if len(words) > maxWords {
		return nil, usage("more than 64 words", "")
	}
	return words, nil
}

// Missing is the failure of Parse where a positional argument was not given, so that a dialogue can ask for it.
type Missing struct {
	Verb  *Verb
	Param Param
}

func (m *Missing) Error() string { return "missing " + m.Param.usage() }

// Parse finds the verb and its arguments in the words of a command line.
func Parse(words []string) (*Verb, Args, error) {
	if len(words) == 0 {
		return nil, Args{}, usage("no verb given", "see help")
	}
	v, rest := find(words)
	if v == nil {
		a := Args{JSON: slices.Contains(words, "--json")}
		return nil, a, usage(fmt.Sprintf("there is no verb %q", clip(strings.Join(words[:min(2, len(words))], " "))), suggestion(words))
	}
	a := Args{values: map[string]string{}}
	a.JSON = slices.Contains(rest, "--json")
	if slices.Contains(rest, "--help") {
		help, _ := Lookup("help")
		a.values["topic"] = v.Name
		return help, a, nil
	}
	if err := v.fill(&a, rest); err != nil {
		return v, a, err
	}
	return v, a, nil
}

// longestName is the most words that a verb's name has.
const longestName = 3

func find(words []string) (*Verb, []string) {
	for n := min(longestName, len(words)); n > 0; n-- {
		if v, ok := Lookup(strings.ToLower(strings.Join(words[:n], " "))); ok {
			return v, words[n:]
		}
	}
	return nil, nil
}

func (v *Verb) fill(a *Args, words []string) error {
	var places []string
	for i := 0; i < len(words); i++ {
		w := words[i]
		name, value, joined := strings.Cut(strings.TrimPrefix(w, "--"), "=")
		if !strings.HasPrefix(w, "--") || w == "--" {
			places = append(places, w)
			continue
		}
		if name == "json" && !joined {
			continue
		}
		p, ok := v.param(name)
		if !ok {
			return usage(fmt.Sprintf("%s has no --%s", v.Name, clip(name)), "usage: "+v.Usage())
		}
		if a.Has(name) {
			return usage("--"+name+" is given twice", "")
		}
		if p.Kind == Switch {
			if joined {
				return usage("--"+name+" takes no value", "")
			}
			a.values[name] = "on"
			continue
		}
		if !joined {
			if i++; i >= len(words) {
				return usage("--"+name+" needs a value", "usage: "+v.Usage())
			}
			value = words[i]
		}
		if err := p.accept(a, value); err != nil {
			return err
		}
	}
	return v.place(a, places)
}

func (v *Verb) param(flag string) (Param, bool) {
	for _, p := range v.Params {
		if p.Flag && p.Name == flag {
			return p, true
		}
	}
	return Param{}, false
}

func (v *Verb) place(a *Args, places []string) error {
	for _, p := range v.Params {
		switch {
		case p.Flag:
		case p.Kind == Rest:
			if len(places) > 0 {
				a.values[p.Name] = strings.Join(places, " ")
			}
			places = nil
		case len(places) > 0:
			if err := p.accept(a, places[0]); err != nil {
				return err
			}
			places = places[1:]
		case !p.Optional:
			return &Missing{v, p}
		}
	}
	if len(places) > 0 {
		return usage(fmt.Sprintf("%s takes no %q", v.Name, clip(places[0])), "usage: "+v.Usage())
	}
	return nil
}

// accept checks one value and stores it.
func (p Param) accept(a *Args, value string) error {
	name := p.usage()
	switch p.Kind {
	case Word:
		if !policy.ValidName(value) {
			return usage(fmt.Sprintf("%s: %q is not a name", name, clip(value)), "use letters, digits, dots, dashes; at most 64")
		}
	case Number:
		if n, err := strconv.Atoi(value); err != nil || n > 1<<53 || n < -(1<<53) {
			return usage(fmt.Sprintf("%s: %q is not a number", name, clip(value)), "")
		}
	case Duration:
		if _, err := time.ParseDuration(value); err != nil {
			return usage(fmt.Sprintf("%s: %q is not a duration", name, clip(value)), "write it like 8h or 90m")
		}
	case Choice:
		i := slices.IndexFunc(p.Choices, func(c string) bool { return strings.EqualFold(c, value) })
		if i < 0 {
			return usage(fmt.Sprintf("%q is not one of %s", clip(value), strings.Join(p.Choices, ", ")), "")
		}
		value = p.Choices[i]
	default:
		if len(value) > maxValue {
			return usage(name+" is longer than 256 bytes", "")
		}
	}
	a.values[p.Name] = value
	return nil
}

// suggestion is the remedy for a word that is no verb: what begins alike.
func suggestion(words []string) string {
	first := strings.ToLower(words[0])
	var alike []string
	for _, v := range All() {
		if group, _, _ := strings.Cut(v.Name, " "); group == first || len(first) >= 2 && strings.HasPrefix(v.Name, first) {
			alike = append(alike, v.Name)
		}
	}
	if len(alike) == 0 {
		return "see help"
	}
	return "there is " + strings.Join(alike, ", ")
}

// clip shortens what somebody typed for an error message.
func clip(s string) string {
	const most = 60
	s = Clean(s)
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return s
}
