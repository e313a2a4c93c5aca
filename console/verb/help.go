package verb

import (
	"context"
	"fmt"
	"strings"

	"guardhouse/appliance/policy"
)

// HelpValue is help for one verb in --json.
type HelpValue struct {
	Name     string           `json:"name"`
	Usage    string           `json:"usage"`
	Help     string           `json:"help"`
	Stdin    string           `json:"stdin,omitempty"`
	Role     policy.AdminRole `json:"role,omitempty"`
	Doors    []policy.Door    `json:"doors"`
	Risk     Risk             `json:"risk"`
	Example  string           `json:"example"`
	Replaces []string         `json:"replaces,omitempty"`
}

func (v *Verb) value() HelpValue {
	return HelpValue{v.Name, v.Usage(), v.Help, v.Stdin, v.Role, v.Doors, v.Risk, v.Example, v.Replaces}
}

func runHelp(_ context.Context, s *Session, a Args, _ []byte) (Output, error) {
	topic := strings.ToLower(strings.Join(strings.Fields(a.Get("topic")), " "))
	if topic == "" {
		return helpAll(s)
	}
	if v, ok := Lookup(topic); ok {
		return Output{Text: v.help(), Value: v.value()}, nil
	}
	if answer, ok := Cmdlet(topic); ok {
		return Output{Text: answer.page(), Value: answer}, nil
	}
	var group []*Verb
	for _, v := range All() {
		if first, _, _ := strings.Cut(v.Name, " "); first == topic {
			group = append(group, v)
		}
	}
	if len(group) == 0 {
		return Output{}, failed(fmt.Sprintf("there is no verb and no known cmdlet %q", clip(a.Get("topic"))), "see help")
	}
	return helpList(group), nil
}

// helpAll lists what the session may use at this door.
func helpAll(s *Session) (Output, error) {
	var usable []*Verb
	for _, v := range All() {
		if Permitted(v, s) == nil {
			usable = append(usable, v)
		}
	}
	out := helpList(usable)
	out.Text.Blank().Line("help VERB tells more; help CMDLET tells what replaces a Microsoft cmdlet. Each verb takes --json.")
	return out, nil
}

func helpList(verbs []*Verb) Output {
	p := new(Page)
	values := []HelpValue{}
	for _, v := range verbs {
		values = append(values, v.value())
		p.wrap(fmt.Sprintf("%-18s ", v.Name), strings.Repeat(" ", 19), v.Help)
	}
	return Output{Text: p, Value: struct {
		Verbs []HelpValue `json:"verbs"`
	}{values}}
}

func (v *Verb) help() *Page {
	p := new(Page).Line("%s: %s", v.Name, v.Help)
	if v.More != "" {
		p.Blank().Line("%s", v.More)
	}
	p.Blank().Field("usage", "%s", v.Usage())
	for _, param := range v.Params {
		name := strings.ToUpper(param.Name)
		if param.Flag {
			name = "--" + param.Name
		}
		help := param.Help
		if param.Kind == Choice {
			help = strings.TrimPrefix(help+": "+strings.Join(param.Choices, ", "), ": ")
		}
		p.Field("  "+name, "%s", help)
	}
	doors := make([]string, len(v.Doors))
	for i, d := range v.Doors {
		doors[i] = string(d)
	}
	role := "nobody has to be logged in"
	if v.Role != "" {
		role = "needs the role " + string(v.Role)
	}
	return p.Field("input", "%s", v.Stdin).Field("example", "%s", v.Example).Field("role", "%s", role).
		Field("doors", "%s", strings.Join(doors, ", ")).Field("risk", "%s", v.Risk).
		Field("replaces", "%s", strings.Join(v.Replaces, ", "))
}

func (c CmdletAnswer) page() *Page {
	p := new(Page)
	if c.Why != "" {
		return p.Line("%s: %s", c.Cmdlet, c.Why)
	}
	p.Line("%s is done here by: %s", c.Cmdlet, strings.Join(c.Verbs, ", "))
	for _, name := range c.Verbs {
		v, _ := Lookup(name)
		p.Blank().Line("%s: %s", v.Name, v.Help).Line("  %s", v.Example)
	}
	return p
}
