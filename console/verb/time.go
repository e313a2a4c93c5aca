package verb

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// notShielded is said wherever time servers are named.
const notShielded = "A time server must not be a shielded virtual machine of this fabric: it could not start without this service, nor this service without it."

func timeVerbs() []Verb {
	moment := place("time", Text, "UTC as 2026-11-22T15:04:05Z")
	keyID := place("id", Number, "the key's number, 1 to 65535")
	const two = "Two administrators decide, one where only one exists: the other one types time confirm. A decision is for this boot and for 15 minutes."
	return []Verb{
		{Name: "time status", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: timeStatus,
			Help: "whether the time is trusted, until when, by whose word", Example: "time status",
			More: "Without a trusted time no health certificate is issued and no key protector opened; metadata.xml and what was published go on."},
		{Name: "time sources", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: timeSources,
			Help: "time servers and peers: offset, error, interval, key", Example: "time sources"},
		{Name: "time why", Role: reviewer, Doors: loggedIn, Risk: Reads, Run: timeWhy,
			Help: "in three sentences why the time is trusted, or is not", Example: "time why"},
		{Name: "time set", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: timeSet,
			Params: []Param{{Name: "servers", Kind: Rest, Help: "HOST or HOST:PORT each, #KEY behind it if it must prove itself"}},
			Help:   "replace this node's list of time servers", Example: "time set ntp1.example.test#7 ntp2.example.test",
			More: "Three or more can outvote one that lies. With #7 only answers made with key 7 count (time key set). " + notShielded},
		{Name: "time key set", Role: operator, Doors: loggedIn, Risk: Changes, Run: timeKeySet, Params: []Param{keyID},
			Stdin: "an age file with the line ALGORITHM:HEX",
			Help:  "give this node a key that time servers prove themselves with", Example: "time key set 7 < key7.age",
			More: "ALGORITHM is sha1, sha256, sha512, aes128 or aes256. Encrypt the line on your workstation to the key that key seal-key shows: " +
				"echo sha256:HEX | age -a -r KEY > key7.age. Only the node's clock process gets it."},
		{Name: "time key remove", Role: operator, Doors: loggedIn, Risk: Changes, Run: timeKeyRemove, Params: []Param{keyID},
			Help: "forget a key of time servers that none of them needs", Example: "time key remove 7"},
		{Name: "time approve", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: timeApprove, Params: []Param{moment},
			Help: "say what time it is while no time server is in reach", Example: "time approve 2026-11-22T15:04:05Z",
			More: "Type the time as it is when you press enter. It counts as wrong by up to 5 minutes then, and by more the longer this machine's clock runs alone (time status), for 24 hours; it is marked manual in every audit entry, and ends with the " +
				"first majority of time servers. " + two},
		{Name: "time recover", Role: anyone, Doors: onlySetup, Waiting: true, Risk: Disrupts, Dialogue: timeRecover, Params: []Param{moment},
			Help: "say what time it is where nobody can log in yet", Example: "time recover 2026-11-22T15:04:05Z",
			More: "For a start without any time server before setup, or while the ledger does not answer; it needs the recovery secret, and the serial line. Type the time as it " +
				"is when you press enter. It counts as wrong by up to 5 minutes then, for 24 hours, and is marked manual as with time approve, which is for administrators."},
		{Name: "time release", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: timeRelease,
			Help: "end a suspicion: believe the majority of time servers again", Example: "time release",
			More: "Compare what each server says in time status with a clock that you trust first. " + two},
		{Name: "time floor lower", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: timeFloorLower, Params: []Param{moment},
			Help: "believe earlier times again, after a lie raised the floor", Example: "time floor lower 2026-11-22T00:00:00Z",
			More: "The node believes no time before the newest that it ever trusted, nor before its image was built. " + two},
		{Name: "time confirm", Role: operator, Doors: loggedIn, Risk: Disrupts, Run: timeConfirm, Params: []Param{place("decision", Word, "its id in time status")},
			Help: "confirm what another administrator decided about the time", Example: "time confirm 5f3ac91e"},
	}
}

func timeLimit(s *policy.Service) time.Duration { return cmp.Or(s.TimeBound, policy.DefaultTimeBound) }

// TimeValue is time status in --json.
type TimeValue struct {
	rpc.ClockStatusReply
	Sources  []rpc.ClockSource  `json:"sources"`
	Problems []policy.Problem   `json:"problems"`
	Waiting  []rpc.TimeProposal `json:"waiting"` // decisions that another administrator must confirm
	// SinceNetwork is how long after the network was up the time was trusted first in this boot; absent = not yet, or it was not asked over a
	// network. SinceLock counts from the clock's first question.
	SinceNetwork time.Duration `json:"sinceNetwork,omitempty"`
}

func clockStatus(ctx context.Context, s *Session) (TimeValue, error) {
	st, err := rpc.ClockStatus.Call(ctx, s.Node.Clock, rpc.Empty{})
	v := TimeValue{ClockStatusReply: st, Sources: append([]rpc.ClockSource{}, st.Sources...), Problems: append([]policy.Problem{}, st.Problems...), Waiting: []rpc.TimeProposal{}}
	if err != nil {
		return v, err
	}
	if waiting, err := rpc.LedgerTimeAsked.Call(ctx, s.Node.Ledger, rpc.Empty{}); err == nil { // the clock's word counts without it
		v.Waiting = append(v.Waiting, waiting...)
	}
	if up, silent := ask(ctx, rpc.Init, rpc.InitStatus, s.Node.Init); silent == nil && up.NetworkUp > 0 && st.LockedAt > up.NetworkUp {
		v.SinceNetwork = st.LockedAt - up.NetworkUp
	}
	return v, nil
}

// first tells how long the first majority took, "" where there was none.
func (v TimeValue) first() string {
	if v.SinceLock == 0 {
		return ""
	}
	said := fmt.Sprintf("The servers first agreed %s after the clock asked them", brief(v.SinceLock))
	if v.SinceNetwork > 0 {
		said += fmt.Sprintf(", %s after the network was up", brief(v.SinceNetwork))
	}
	return said + "."
}

// brief is a short span to the millisecond.
func brief(d time.Duration) string { return d.Round(time.Millisecond).String() }

func timeStatus(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	v, err := clockStatus(ctx, s)
	if err != nil {
		return Output{}, err
	}
	p := new(Page)
	t := v.Trusted
	var decide []string
	switch {
	case t.OK:
		now, bound := middle(t)
		p.Line("The time is trusted: it is %s, wrong by at most %s.", now, bound)
		if t.Manual {
			p.Line("It is MANUAL, by the word of %s and of no time server.", strings.Join(slices.DeleteFunc(slices.Clone(t.Sources), isManual), " and "))
		} else {
			p.Line("These servers agreed: %s.", strings.Join(t.Sources, ", "))
		}
		p.Line("%s", v.end())
		if first := v.first(); first != "" {
			p.Line("%s", first)
		}
	case v.State == rpc.ClockSuspect:
		p.Line("The time is SUSPECT: %s.", strings.TrimSuffix(v.Reason, "."))
		p.Line("Nothing is issued until administrators decide. Compare with a clock that you trust:")
		decide = v.Decide
	default:
		p.Line("The time is NOT trusted: no health certificate is issued or accepted until it is.")
		p.Line("It becomes trusted when enough time servers answer and agree; change them with time set.")
	}
	v.servers(p)
	if len(decide) > 0 {
		p.Blank()
	}
	for _, line := range decide {
		p.Line("- %s", line)
	}
	for _, w := range v.Waiting {
		p.Blank().Line("%s asks: %s; another administrator: time confirm %s (within %s)", w.By, waitingText(w), w.ID, span(w.ExpiresIn))
	}
	// The page itself is what this problem's remedy names.
	problems(p, slices.DeleteFunc(slices.Clone(v.Problems), func(p policy.Problem) bool { return p.Kind == "time-suspect" && len(decide) > 0 }))
	return Output{Text: p, Value: v}, nil
}

// isManual is the word that stands before the names of those who approved a time.
func isManual(source string) bool { return source == "manual" }

// end tells when issuing stops if nothing answers any more.
func (v TimeValue) end() string {
	in := "Without another answer the time stays trusted for " + span(v.Trusted.ExpiresIn) + "."
	if v.State == rpc.ClockHoldover {
		in = "HOLDOVER: no majority of the servers answers; the time stays trusted for " + span(v.Trusted.ExpiresIn) + "."
	}
	if !v.StopsAt.IsZero() {
		in += fmt.Sprintf(" Issuing stops at %s", v.StopsAt.UTC().Format("2006-01-02 15:04 UTC"))
		if v.Limit > 0 && !v.Trusted.Manual {
			in += fmt.Sprintf(", when it may be wrong by more than %s", span(v.Limit))
		}
		in += "."
	}
	return in
}

// servers are shown side by side with what each says where somebody must compare them, else by how far they are off.
func (v TimeValue) servers(p *Page) {
	if len(v.Sources) == 0 {
		p.Line("No time server is configured.")
		return
	}
	var rows [][]string
	head := []string{"SERVER", "STATE", "OFFSET", "BOUND", "AGE", "ERROR"}
	compare := v.State == rpc.ClockSuspect
	if compare {
		head = []string{"SERVER", "STATE", "IT SAYS", "+-", "ERROR"}
	}
	peers := 0
	for _, c := range v.Sources {
		if c.Peer {
			peers++
		}
		if !compare {
			rows = append(rows, []string{sourceName(c), c.State, c.Offset.Round(time.Microsecond).String(), c.Bound.Round(time.Microsecond).String(), span(c.Age), c.Error})
			continue
		}
		says := "nothing"
		if !c.Says.IsZero() {
			says = c.Says.UTC().Format("2006-01-02 15:04:05")
		}
		rows = append(rows, []string{sourceName(c), c.State, says, c.Bound.Round(time.Millisecond).String(), c.Error})
	}
	p.Blank().Table(head, rows)
	if peers > 0 {
		p.Line("%s", "A peer votes and does not lead: it can break a tie and contradict a single server.")
	}
}

// sourceName marks peers.
func sourceName(c rpc.ClockSource) string {
	if c.Peer {
		return "peer " + c.Address
	}
	return c.Address
}

// peersLine is what the peers' clocks are to this node's, in a line; "" where it has none.
func peersLine(sources []rpc.ClockSource) string {
	var list []string
	for _, c := range sources {
		switch {
		case !c.Peer:
		case c.Says.IsZero():
			list = append(list, c.Address+" "+c.State)
		default:
			list = append(list, fmt.Sprintf("%s %s, off by %s +- %s", c.Address, c.State, c.Offset.Round(time.Millisecond), c.Bound.Round(time.Millisecond)))
		}
	}
	if len(list) == 0 {
		return ""
	}
	return strings.Join(list, "; ") + " (votes, does not lead)"
}

func timeSources(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	v, err := clockStatus(ctx, s)
	if err != nil {
		return Output{}, err
	}
	p := new(Page)
	for _, c := range v.Sources {
		p.Blank().Line("%s: %s", sourceName(c), c.State)
		if c.Peer {
			p.Field("  voice", "%s", "votes, does not lead")
		}
		if c.Says.IsZero() && c.Age == 0 && c.Error != "" {
			p.Field("  error", "%s", c.Error)
			continue
		}
		p.Field("  offset", "%s +- %s, %s ago", c.Offset.Round(time.Microsecond), c.Bound.Round(time.Microsecond), span(c.Age))
		if c.Peer {
			p.Field("  asked", "every %s, jitter %s", span(c.Poll), c.Jitter.Round(time.Microsecond)).Field("  key", "its pinned key").Field("  error", "%s", c.Error)
			continue
		}
		if c.Poll > 0 {
			p.Field("  asked", "every %s, stratum %d, jitter %s", span(c.Poll), c.Stratum, c.Jitter.Round(time.Microsecond))
		}
		p.Field("  key", "%s", map[bool]string{true: strconv.Itoa(int(c.Key)), false: "none: anybody on the way can answer for it"}[c.Authenticated]).Field("  error", "%s", c.Error)
	}
	if len(v.Sources) == 0 {
		p.Line("No time server is configured.")
	}
	return Output{Text: p, Value: struct {
		Sources []rpc.ClockSource `json:"sources"`
	}{v.Sources}}, nil
}

func timeWhy(ctx context.Context, s *Session, _ Args, _ []byte) (Output, error) {
	v, err := clockStatus(ctx, s)
	if err != nil {
		return Output{}, err
	}
	why := append([]string{}, v.Why...)
	if len(why) == 0 && v.Reason != "" {
		why = append(why, v.Reason)
	}
	p := new(Page)
	for _, sentence := range why {
		p.Line("%s", sentence)
	}
	return Output{Text: p, Value: struct {
		State string   `json:"state"`
		Why   []string `json:"why"`
	}{v.State, why}}, nil
}

func timeSet(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	words := strings.FieldsFunc(a.Get("servers"), func(r rune) bool { return r == ' ' || r == ',' })
	if len(words) == 0 {
		return Output{}, usage("no time server given", "usage: "+mustUsage("time set"))
	}
	if len(words) > policy.MaxTimeServers {
		return Output{}, usage(fmt.Sprintf("more than %d time servers", policy.MaxTimeServers), "")
	}
	var b policy.NodeSet
	for _, word := range words {
		server, number, keyed := strings.Cut(word, "#")
		if len(server) > 260 || server == "" || strings.ContainsAny(server, "/\\\"'") || Clean(server) != server {
			return Output{}, usage(fmt.Sprintf("%q is not HOST or HOST:PORT", clip(server)), "")
		}
		if slices.Contains(b.TimeServers, server) {
			return Output{}, usage(fmt.Sprintf("%q is named twice", clip(server)), "each server has one vote")
		}
		b.TimeServers = append(b.TimeServers, server)
		if keyed {
			id, err := strconv.ParseUint(number, 10, 16)
			if err != nil || id == 0 {
				return Output{}, usage(fmt.Sprintf("%q is not the number of a key", clip(number)), "HOST#7 for key 7, which time key set takes")
			}
			if b.TimeKeys == nil {
				b.TimeKeys = map[string]uint16{}
			}
			b.TimeKeys[server] = uint16(id)
		}
	}
	out, err := setNode(ctx, s, b)
	if err == nil {
		out.Text.Line("%s", notShielded)
	}
	return out, err
}

func timeKeySet(ctx context.Context, s *Session, a Args, stdin []byte) (Output, error) {
	if len(stdin) == 0 {
		return Output{}, usage("no key given on standard input", "usage: "+mustUsage("time key set"))
	}
	return timeKey(ctx, s, a, stdin, "is kept")
}

func timeKeyRemove(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	return timeKey(ctx, s, a, nil, "is forgotten")
}

func timeKey(ctx context.Context, s *Session, a Args, sealed []byte, done string) (Output, error) {
	id := number(a, "id")
	if id < 1 || id > 65535 {
		return Output{}, usage("the number of a key is 1 to 65535", "")
	}
	if _, err := rpc.LedgerTimeKeySet.Call(ctx, s.Node.Ledger, rpc.TimeKeyRequest{Actor: s.Actor, ID: uint16(id), Sealed: sealed}); err != nil {
		return Output{}, err
	}
	text := fmt.Sprintf("key %d of time servers %s on this node", id, done)
	return Output{Text: new(Page).Line("%s", text), Value: Done{Message: text}}, nil
}

func timeApprove(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	return timeAsk(ctx, s, rpc.ApproveManual, a)
}

func timeRelease(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	return timeAsk(ctx, s, rpc.ApproveRelease, a)
}

func timeFloorLower(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	return timeAsk(ctx, s, rpc.ApproveFloor, a)
}

func timeAsk(ctx context.Context, s *Session, kind string, a Args) (Output, error) {
	typed, err := typedMoment(ctx, s, a, kind != rpc.ApproveRelease)
	if err != nil {
		return Output{}, err
	}
	req := rpc.TimeAskRequest{Actor: s.Actor, Kind: kind, UTC: typed.utc, BootTime: typed.at, Boot: typed.clock.Boot}
	d, err := rpc.LedgerTimeAsk.Call(ctx, s.Node.Ledger, req)
	if err != nil {
		return Output{}, err
	}
	return decided(d), nil
}

// timeRecover has init check the recovery secret; init then tells the clock.
func timeRecover(ctx context.Context, s *Session, a Args, ask Asker) (Output, error) {
	typed, err := typedMoment(ctx, s, a, true)
	if err != nil {
		return Output{}, err
	}
	st := typed.clock
	req := rpc.TimeRecoverRequest{UTC: typed.utc, BootTime: typed.at, Boot: st.Boot}
	switch {
	case st.State == rpc.ClockLocked || st.State == rpc.ClockHoldover:
		return Output{}, failed("the time is trusted by the word of time servers", "none needed; an approved time is for when none is in reach")
	case req.UTC.Before(st.Floor):
		return Output{}, failed(fmt.Sprintf("this lies before %s, when this node knows that it was later (%s)", st.Floor.UTC().Format(time.RFC3339), st.FloorFrom), "compare with a clock that you trust")
	}
	v, err := rpc.InitVolume.Call(ctx, s.Node.Init, rpc.Empty{})
	switch {
	case err != nil:
		return Output{}, err
	case v.State == rpc.VolumeShut:
		return Output{}, failed("the data volume is shut", "open it first: recover")
	case v.Secret == "":
		return Output{}, failed("this node has no recovery secret that could prove who you are", "run setup, which needs no time; then its administrator may say what time it is (time approve)")
	}
	p := new(Page).Line("In this boot (%s) it is %s, wrong by up to 5 minutes now and by more later, for 24 hours or until a majority of time servers answers.", st.Boot, req.UTC.Format("2006-01-02 15:04:05 UTC"))
	if err := ask.Say(p.Line("Every audit entry until then says that this time is manual.").String()); err != nil {
		return Output{}, err
	}
	texts, err := typeSecret(ask, v.Secret, v.Form)
	if err != nil {
		return Output{}, err
	}
	defer texts.Wipe()
	req.Texts = texts.Texts
	if _, err := rpc.InitTimeRecover.Call(ctx, s.Node.Init, req); err != nil {
		return Output{}, err
	}
	done := "the time counts now, as manual, by recovery secret " + v.Secret
	return Output{Text: new(Page).Line("%s", done), Value: Done{Message: done}}, nil
}

// typedTime is a time that somebody typed, the boot time at which they did, and the clock it is meant for.
type typedTime struct {
	utc   time.Time // zero where the verb takes none
	at    time.Duration
	clock rpc.ClockStatusReply
}

// typedMoment reads the boot time first: the typed time was true then, and asking takes a while.
func typedMoment(ctx context.Context, s *Session, a Args, wanted bool) (m typedTime, err error) {
	m.at = s.Node.Boottime()
	if wanted {
		if m.utc, err = momentOf(a); err != nil {
			return m, err
		}
	}
	m.clock, err = rpc.ClockStatus.Call(ctx, s.Node.Clock, rpc.Empty{})
	return m, err
}

// momentOf reads the argument time.
func momentOf(a Args) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, a.Get("time"))
	if err != nil {
		return time.Time{}, usage("this is not a time", "write UTC as 2026-11-22T15:04:05Z")
	}
	return t.UTC(), nil
}

func timeConfirm(ctx context.Context, s *Session, a Args, _ []byte) (Output, error) {
	d, err := rpc.LedgerTimeConfirm.Call(ctx, s.Node.Ledger, rpc.TimeConfirmRequest{Actor: s.Actor, ID: a.Get("decision")})
	if err != nil {
		return Output{}, err
	}
	return decided(d), nil
}

func decided(d rpc.TimeDecision) Output {
	p := new(Page).Line("%s", d.Message)
	if d.Waiting != nil {
		p.Line("Another administrator, within %s: time confirm %s", span(d.Waiting.ExpiresIn), d.Waiting.ID)
	} else {
		p.Line("See time status.")
	}
	return Output{Text: p, Value: d}
}

func waitingText(w rpc.TimeProposal) string {
	switch w.Kind {
	case rpc.ApproveManual:
		return "it is now " + w.Now.UTC().Format("2006-01-02 15:04:05 UTC")
	case rpc.ApproveFloor:
		return "believe times from " + w.UTC.UTC().Format("2006-01-02 15:04:05 UTC") + " on"
	}
	return "believe the majority of time servers again"
}
