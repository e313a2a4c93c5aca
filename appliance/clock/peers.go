package clock

import (
	"fmt"
	"slices"
	"time"

	"guardhouse/appliance/policy"
)

// oldest is from when on a peer's answer is none.
const oldest = 2 * time.Minute

// MaxPeers is how many other nodes have a voice here.
const MaxPeers = 8

// servers are the sources that are no peers.
func servers(sources []Source) []Source { return kind(sources, false) }

// peersOf are the others.
func peersOf(sources []Source) []Source { return kind(sources, true) }

func kind(sources []Source, peer bool) (out []Source) {
	for _, s := range sources {
		if s.Peer == peer {
			out = append(out, s)
		}
	}
	return out
}

func (k *Keeper) servers() []Source { return servers(k.sources) }

// kinds counts the servers and the peers among those inside a vote.
func (k *Keeper) kinds(v Vote) (servers, peers int) {
	for _, i := range v.Inside {
		if k.sources[i].Peer {
			peers++
		} else {
			servers++
		}
	}
	return servers, peers
}

// agreement is who makes a vote, in words.
func (k *Keeper) agreement(v Vote) string {
	in, _ := k.kinds(v)
	said := fmt.Sprintf("%d of %d time servers agree", in, len(k.servers()))
	if !v.Helped {
		return said
	}
	var helpers []string
	for _, i := range v.Inside {
		if s := k.sources[i]; s.Peer {
			helpers = append(helpers, s.Address)
		}
	}
	return said + ", and the tie is broken by " + peersWord(helpers)
}

// peersWord names peers.
func peersWord(list []string) string {
	if len(list) == 1 {
		return "peer " + list[0]
	}
	return "peers " + names(list)
}

// withPeers is the vote where peers count: they break the tie of half of an even number of servers, and may contradict a single one. At
// each moment that decides, more than half of all servers and answering peers agree, and at least half of all configured servers. So at
// least one of these tells the truth as long as a majority of the servers does, and the truth is in the interval of one of them: the vote is
// the hull of their whole intervals, which no peer can move or narrow.
func withPeers(sources []Source, spans []span, total int) (Vote, error) {
	answering := len(spans)
	for _, s := range spans {
		if !sources[s.i].Peer {
			answering--
		}
	}
	hull, ok := decided(sources, spans, total, answering)
	if !ok {
		return Vote{}, undecided(sources, spans, total, answering)
	}
	v := voteOf(sources, spans, hull)
	first := true
	for _, s := range spans {
		if sources[s.i].Peer || hull.apart(s) {
			continue
		}
		if first || s.lo.Before(v.Earliest) {
			v.Earliest = s.lo
		}
		if first || s.hi.After(v.Latest) {
			v.Latest = s.hi
		}
		first = false
	}
	v.Helped = total > 1
	return v, nil
}

// decided is the hull of the moments that more than half of all voices contain, with at least half of the servers among them.
func decided(sources []Source, spans []span, total, peers int) (hull span, ok bool) {
	all, own := 0, 0
	enough := func() bool { return 2*all > total+peers && 2*own >= total && own > 0 }
	for _, e := range edgesOf(spans) {
		if e.step < 0 && enough() {
			hull.hi = e.at
		}
		all += e.step
		if !sources[e.i].Peer {
			own += e.step
		}
		if e.step > 0 && enough() && !ok {
			hull.lo, ok = e.at, true
		}
	}
	return hull, ok
}

// undecided says why there is no vote although peers were heard.
func undecided(sources []Source, spans []span, total, peers int) error {
	var own *span
	var against []string
	servers := make([]span, 0, len(spans))
	for i, s := range spans {
		if !sources[s.i].Peer {
			own = &spans[i]
			servers = append(servers, s)
		}
	}
	if own == nil {
		return fmt.Errorf("%w: only other nodes answer, and they don't lead", ErrNoMajority)
	}
	if len(servers) > 1 || total > 2 {
		_, depth, _ := majority(servers, total)
		return fmt.Errorf("%w: %d of %d, and no tie that the %d other nodes which answer could break", ErrNoMajority, depth, total, peers)
	}
	for _, s := range spans {
		if sources[s.i].Peer && own.apart(s) {
			against = append(against, sources[s.i].Address)
		}
	}
	if len(against) == 0 {
		return fmt.Errorf("%w: %s answers, and the other nodes agree on no moment with it", ErrNoMajority, sources[own.i].Address)
	}
	verb := "contradicts"
	if len(against) > 1 {
		verb = "contradict"
	}
	return fmt.Errorf("%w: %s %s the only one that answers, %s", ErrNoMajority, peersWord(against), verb, sources[own.i].Address)
}

// unaffected reports whether what a peer said changes nothing: there was a vote before and is one now. Then neither the clock nor the rate
// hears of it, so that a node with peers runs as one without.
func (k *Keeper) unaffected(peer bool, err error) bool { return peer && err == nil && k.vote }

// alone is the vote as it would be if no peer answered.
func (k *Keeper) alone(now Reading) (Vote, error) {
	k.forget(now)
	quiet := slices.Clone(k.sources)
	for i := range quiet {
		if quiet[i].Peer {
			quiet[i].Sample = nil
		}
	}
	return k.electOf(now, quiet)
}

// opposed reports whether there is no vote for no other reason than that peers contradict the only server.
func (k *Keeper) opposed(now Reading) bool {
	if k.vote {
		return false
	}
	_, err := k.alone(now)
	return err == nil
}

// contradicted is what becomes of a single server's answer where peers contradict it; true if that is a suspicion. Then nobody is followed,
// but what was foretold must not outlast a server that tells the truth now while the peers are those that lie: a forecast that the server
// contradicts is suspect as ever, and one that it leaves by less is made wide enough for both. The rate is the server's in any case.
func (k *Keeper) contradicted(now Reading, peer bool) bool {
	if k.own == nil || k.state != Locked && k.state != Holdover {
		return false
	}
	v, err := k.alone(now)
	if err != nil {
		return false
	}
	if why, what := k.contradiction(now, v); why != "" {
		k.suspicion(now, why, what)
		return true
	}
	if !peer {
		k.measure(now, v)
	}
	mid, bound := k.own.at(now.Raw)
	lo, hi := mid.Add(-bound), mid.Add(bound)
	if v.Earliest.Before(lo) {
		lo = v.Earliest
	}
	if v.Latest.After(hi) {
		hi = v.Latest
	}
	half := hi.Sub(lo) / 2
	k.own = &known{Raw: now.Raw, UTC: lo.Add(half).UTC().Round(0), Bound: half, Rate: k.dis.rate, Drift: k.dis.drift}
	if k.state == Holdover {
		k.publish(now)
	}
	return false
}

// settles is how many votes in a row count as quiet.
func (k *Keeper) settles() int { return settle * len(k.servers()) }

// asking reports whether a question to a server is out. One to a peer is not waited for.
func (k *Keeper) asking() bool {
	return slices.ContainsFunc(k.sources, func(s Source) bool { return s.asked && !s.Peer })
}

// fewer reports whether a peer whose voice counted in old is not known any more.
func (k *Keeper) fewer(old []Source) bool {
	return slices.ContainsFunc(old, func(o Source) bool {
		return o.Peer && o.Sample != nil && !slices.ContainsFunc(k.sources, func(s Source) bool { return s.Server == o.Server })
	})
}

// Heard checks a peer's answer, at the reading now. It comes from the network, by another process: what makes no sense must not reach sums of
// times and durations.
func Heard(now Reading, s Sample) (Sample, error) {
	switch {
	case s.Raw > now.Raw || s.Raw < now.Raw-oldest:
		return Sample{}, fmt.Errorf("the answer is not from the last %s", short(oldest))
	case s.Distance <= 0 || s.Distance > policy.MaxTimeBound+queryTimeout:
		return Sample{}, fmt.Errorf("its time is certain to %s only", short(s.Distance))
	case s.UTC.Year() < 1970 || s.UTC.Year() > 2200:
		return Sample{}, fmt.Errorf("its time is in the year %d", s.UTC.Year())
	}
	// Part of the distance is a way that was measured by this machine's oscillator.
	return Sample{Raw: s.Raw, UTC: s.UTC.UTC().Round(0), Distance: s.Distance + ppm(2*s.Distance, UnmeasuredPPM)}, nil
}

// aged reports whether a server's newest answer is so old that a fresh rate would hide a jump.
func (k *Keeper) aged(now Reading) bool {
	return slices.ContainsFunc(k.sources, func(s Source) bool {
		return !s.Peer && s.Sample != nil && ppm(now.Raw-s.Sample.Raw, UnmeasuredPPM) > jumpSlack
	})
}

// silence takes the voice of a peer that gave no answer. It is asked over a stream that loses nothing, so there is no benefit of doubt.
func (s *Source) silence() {
	if s.failed++; s.failed >= lost || s.Peer {
		s.Sample = nil
	}
}

// agreement is the second sentence about a clock that is locked: who makes the time, with whose help, and who does not agree.
func (s Status) agreement() string {
	own, peers := servers(s.Sources), peersOf(s.Sources)
	agree, helping := inState(own, "selected"), inState(peers, "selected")
	said := fmt.Sprintf("%d of %d time servers agree: %s", len(agree), len(own), names(agree))
	switch {
	case len(own) == 1 && len(helping) == 0:
		said = fmt.Sprintf("There is a single source (%s), which nobody could contradict, so the bound is doubled", names(agree))
	case len(own) == 1:
		said = fmt.Sprintf("There is a single source (%s), so the bound is doubled", names(agree))
	case len(own) == 2 && len(agree) == 2:
		said = fmt.Sprintf("Only two servers are configured (%s), so neither can outvote the other and the bound is doubled", names(agree))
	case len(own) == 2:
		said = fmt.Sprintf("Only one of two servers is believed (%s), so the bound is doubled", names(agree))
	}
	if len(helping) > 0 {
		said += ", with " + peersWord(helping)
	}
	switch lie, liars, silent := inState(own, "falseticker"), inState(peers, "falseticker"), inState(own, "unreachable"); {
	case len(lie)+len(liars) > 0:
		if len(lie) > 0 {
			said += ", and " + names(lie) + does(lie) + " not"
		}
		if len(liars) > 0 {
			said += ", and " + peersWord(liars) + does(liars) + " not"
		}
	case len(silent) > 0:
		said += ", and " + names(silent) + does(silent) + " not answer"
	}
	if o := s.oscillator(); o != "" {
		said += " (" + o + ")"
	}
	return said + "."
}

func does(list []string) string {
	if len(list) == 1 {
		return " does"
	}
	return " do"
}

// inState lists the addresses of the sources in a state.
func inState(sources []Source, state string) (list []string) {
	for _, src := range sources {
		if src.State == state {
			list = append(list, src.Address)
		}
	}
	return list
}
