// Package verb is every administrative action of a node, once: its name, arguments, role, doors, risk, help and handler. It promises
// that each door (serial line, SSH) offers the same actions with the same checks, because both call Run on this one table; that no
// handler but those of status and help runs for somebody who has not proved who they are once the node is set up; and that what a
// handler returns has both a plain rendering of at most 80 columns and a JSON value with stable member names.
//
// Limits: it reads no device and holds no key. It speaks rpc to the ledger, the HSM process, the clock and init, and the ledger checks
// every change again. Terminals, sessions and authentication belong to console/plain, console/serial and console/ssh.
package verb

import (
	"context"
	"io"
	"slices"
	"strings"
	"time"

	"guardhouse/appliance/policy"
)

// Risk says how much a verb may break; a dialogue asks before a Disrupts verb runs.
type Risk string

const (
	Reads    Risk = "reads"    // changes nothing
	Changes  Risk = "changes"  // changes records, hosts go on working
	Disrupts Risk = "disrupts" // hosts or the machine stop working
)

// Verb is one action.
type Verb struct {
	Name   string
	Params []Param
	Role   policy.AdminRole // least role; "" = nobody has to be logged in
	Doors  []policy.Door
	// Waiting: whoever is at the serial line may do it while the ledger has sent no records, when nobody can log in. With the door of setup
	// they may also when it has ceased to answer.
	Waiting bool
	Risk    Risk
	Stdin   string // what comes on standard input, for people; "" = nothing
	// StdinFlag is the flag without which nothing is read from standard input; "" = it is always read.
	StdinFlag string
	Help      string // one line
	More      string // for its help page; "" = the line says it all
	Example   string
	Replaces  []string // Microsoft cmdlets
	Run       func(ctx context.Context, s *Session, a Args, stdin []byte) (Output, error)
	// Stream is Run for a door with standard input, of any length, which it reads as it comes.
	Stream func(ctx context.Context, s *Session, a Args, in io.Reader) (Output, error)
	// Dialogue is instead of Run for a verb that can only be done by question and answer; a verb with both holds a dialogue where there is
	// a terminal and else reads its standard input.
	Dialogue func(ctx context.Context, s *Session, a Args, ask Asker) (Output, error)
}

// Asker is a line on which a dialogue is held. Paste reads lines until one that holds only a dot.
type Asker interface {
	Say(text string) error
	Ask(prompt string) (string, error)
	Secret(prompt string) ([]byte, error)
	Paste(what string) ([]byte, error)
}

// Session is somebody at a door. Actor.Name is empty until they have proved who they are.
type Session struct {
	Node   *Node
	Actor  policy.Actor
	Source string // address without its port; empty on the serial line
}

// LoggedIn reports whether the session belongs to a proved administrator.
func (s *Session) LoggedIn() bool { return s.Actor.Name != "" }

// MaxStdin is the most that a verb takes on standard input, in bytes.
const MaxStdin = 4 << 20

// WantsStdin reports whether the verb reads standard input with these arguments.
func (v *Verb) WantsStdin(a Args) bool {
	return v.Stdin != "" && (v.StdinFlag == "" || a.Has(v.StdinFlag)) && !a.Has("pending") && !a.Has("host") && !a.Has("sha256") && !a.Has("common-name") && !a.Has("spki") && !a.Has("word")
}

// Permitted reports why the session may not use the verb now, or nil. It looks at the records as they are, so an administrator who was
// removed or whose role shrank loses the verb in the middle of a session.
func Permitted(v *Verb, s *Session) error {
	snapshot, known := s.Node.Snapshot()
	if v.Waiting && s.Actor.Door == policy.DoorSetup && !known {
		return nil
	}
	if v.Waiting && s.Actor.Door == policy.DoorSetup && s.Node.Silent() && slices.Contains(v.Doors, policy.DoorSetup) {
		return nil
	}
	if v.Waiting && len(v.Doors) == 0 {
		return notAllowed("the data volume is open", "none needed; this is for a node whose volume stays shut")
	}
	if s.Actor.Door == policy.DoorSetup && known && !snapshot.State.SetUp() && !slices.Contains(v.Doors, policy.DoorSetup) {
		return notAllowed("the node is not set up", "run setup first")
	}
	if v.Role != "" && !s.LoggedIn() {
		return notAllowed("this needs a login", "log in first; without it only help and status answer")
	}
	if s.Actor.Door == policy.DoorSetup {
		if !slices.Contains(v.Doors, policy.DoorSetup) {
			return notAllowed("the node is not set up", "run setup on the serial line first")
		}
		if v.Name == "setup" && !known {
			return unavailable("the ledger has not said yet whether this node is set up", "try again in a few seconds, or see status")
		}
		if v.Waiting && snapshot.State.SetUp() {
			return notAllowed("this node has administrators, who can log in now", "log in; see help time")
		}
		if v.Name == "setup" && snapshot.State.SetUp() {
			return notAllowed("this node is already set up", "log in; single settings have their own verbs")
		}
		return nil
	}
	if !slices.Contains(v.Doors, s.Actor.Door) {
		return notAllowed("this can't be done over "+string(s.Actor.Door), "see help "+v.Name)
	}
	if v.Role == "" {
		return nil
	}
	if !known {
		return unavailable("the ledger has not sent the records yet", "try again in a few seconds")
	}
	if err := policy.Allowed(snapshot.State, s.Actor, v.Role); err != nil {
		return notAllowed(err.Error(), "ask an owner to give you the role, or another administrator to do it")
	}
	return nil
}

// runLimit ends a verb whose process does not answer; making keys in a slow token takes longest. Streams have no limit.
const runLimit = 6 * time.Minute

// Run checks and runs a verb. ask may be nil where no dialogue is possible.
func Run(ctx context.Context, v *Verb, s *Session, a Args, stdin []byte, ask Asker) (Output, error) {
	if err := Permitted(v, s); err != nil {
		return Output{}, err
	}
	if len(stdin) > MaxStdin {
		return Output{}, usage("the input is larger than 4 MiB", "")
	}
	if v.Run != nil && (v.Dialogue == nil || ask == nil) {
		ctx, cancel := context.WithTimeout(ctx, runLimit)
		defer cancel()
		out, err := v.Run(ctx, s, a, stdin)
		return out.marked(s.Node.Evaluation), err
	}
	if ask == nil {
		return Output{}, notAllowed("this is a dialogue", "run it on the serial line or in a session with a terminal")
	}
	out, err := v.Dialogue(ctx, s, a, ask)
	return out.marked(s.Node.Evaluation), err
}

// Usage is the verb's call with its arguments, as in "host add NAME [--class CLASS] < FILE".
func (v *Verb) Usage() string {
	var b strings.Builder
	b.WriteString(v.Name)
	for _, p := range v.Params {
		b.WriteByte(' ')
		b.WriteString(p.usage())
	}
	if v.Stdin != "" || v.Stream != nil {
		b.WriteString(" < FILE")
	}
	return b.String()
}
