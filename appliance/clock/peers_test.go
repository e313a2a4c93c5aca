package clock

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func peer(name string, off, dist time.Duration) Source {
	s := source(name, off, dist)
	s.Peer = true
	return s
}

func silent(s Source) Source {
	s.Sample = nil
	return s
}

// TestPeersBreakTiesAndContradictALoneServer and do nothing else.
func TestPeersBreakTiesAndContradictALoneServer(t *testing.T) {
	const ms, s, h = time.Millisecond, time.Second, time.Hour
	type list = []Source
	for name, tt := range map[string]struct {
		sources list
		inside  []string
		says    string // of the refusal
		helped  bool
		lo, hi  time.Duration
	}{
		"agree with one":                       {list{source("a", 0, s), peer("p", 0, ms)}, []string{"a", "p"}, "", false, -s, s},
		"contradict the only server":           {list{source("a", 0, s), peer("p", h, s)}, nil, "peer p contradicts the only one that answers, a", false, 0, 0},
		"two contradict the only server":       {list{source("a", 0, s), peer("p", h, s), peer("q", -h, s)}, nil, "peers p, q contradict the only one", false, 0, 0},
		"one against, one for the only server": {list{source("a", 0, s), peer("p", h, s), peer("q", 0, ms)}, []string{"a", "q"}, "", false, -s, s},
		"a lone server that is silent":         {list{silent(source("a", 0, s)), peer("p", 0, s), peer("q", 0, s)}, nil, "don't lead", false, 0, 0},
		"no server at all":                     {list{peer("p", 0, s), peer("q", 0, s)}, nil, "don't lead", false, 0, 0},
		"silent ones do not count":             {list{source("a", 0, s), silent(peer("p", 0, s)), silent(peer("q", 0, s))}, []string{"a"}, "", false, -s, s},
		"one of two answers":                   {list{source("a", 0, s), silent(source("b", 0, s)), peer("p", 0, ms)}, []string{"a", "p"}, "", true, -s, s},
		"one of two answers, contradicted":     {list{source("a", 0, s), silent(source("b", 0, s)), peer("p", h, ms)}, nil, "peer p contradicts the only one that answers, a", false, 0, 0},
		"two servers that contradict":          {list{source("a", 0, s), source("b", h, s), peer("p", h, ms)}, []string{"b", "p"}, "", true, h - s, h + s},
		"two that agree are not overruled":     {list{source("a", 0, s), source("b", 0, s), peer("p", h, s), peer("q", h, s), peer("r", h, s)}, []string{"a", "b"}, "", false, -s, s},
		"one liar with all peers of three":     {list{source("a", 0, s), source("b", 0, s), source("c", h, s), peer("p", h, s), peer("q", h, s), peer("r", h, s)}, []string{"a", "b"}, "", false, -s, s},
		"one liar with all peers, two blocked": {list{silent(source("a", 0, s)), silent(source("b", 0, s)), source("c", h, s), peer("p", h, s), peer("q", h, s), peer("r", h, s)}, nil, "1 of 3", false, 0, 0},
		"two of four and a peer":               {list{source("a", 0, s), source("b", ms, s), silent(source("c", 0, s)), silent(source("d", 0, s)), peer("p", 0, ms)}, []string{"a", "b", "p"}, "", true, -s, s + ms},
		"two against two":                      {list{source("a", 0, s), source("b", 0, s), source("c", h, s), source("d", h, s), peer("p", 0, ms)}, []string{"a", "b", "p"}, "", true, -s, s},
		"two against two, peers divided":       {list{source("a", 0, s), source("b", 0, s), source("c", h, s), source("d", h, s), peer("p", 0, ms), peer("q", h, ms)}, nil, "2 of 4", false, 0, 0},
		"half of the servers, most peers against": {list{source("a", 0, s), source("b", 0, s), silent(source("c", 0, s)), silent(source("d", 0, s)), peer("p", h, ms), peer("q", h, ms)},
			nil, "2 of 4", false, 0, 0},
		"a peer does not narrow":             {list{source("a", 0, 10*ms), source("b", 10*ms, 10*ms), silent(source("c", 0, s)), silent(source("d", 0, s)), peer("p", 15*ms, ms)}, nil, "2 of 4", false, 0, 0},
		"a peer at the edge does not choose": {list{source("a", 0, 10*ms), source("b", 10*ms, 10*ms), silent(source("c", 0, s)), silent(source("d", 0, s)), peer("p", 9*ms, ms)}, []string{"a", "b", "p"}, "", true, -10 * ms, 20 * ms},
		"proved servers decide":              {list{keyed(source("a", 0, s)), keyed(source("b", 0, s)), source("c", h, s), source("d", h, s), peer("p", h, s)}, []string{"a", "b"}, "", false, -s, s},
	} {
		t.Run(name, func(t *testing.T) {
			v, err := Select(tt.sources, 10*time.Second, 0, 0)
			var inside []string
			for _, i := range v.Inside {
				inside = append(inside, tt.sources[i].Address)
			}
			if (err != nil) != (tt.says != "") || !slices.Equal(inside, tt.inside) || v.Helped != tt.helped {
				t.Fatalf("inside %v, helped %v, %v", inside, v.Helped, err)
			}
			if err != nil {
				if !errors.Is(err, ErrNoMajority) || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("%v", err)
				}
				return
			}
			if lo, hi := v.Earliest.Sub(base), v.Latest.Sub(base); lo != tt.lo || hi != tt.hi {
				t.Errorf("[%v, %v], not [%v, %v]", lo, hi, tt.lo, tt.hi)
			}
		})
	}
}

// TestPeersNeverAnnounceALeapSecond: it is the servers inside that do.
func TestPeersNeverAnnounceALeapSecond(t *testing.T) {
	announce := func(s Source) Source { s.Sample.Leap = 1; return s }
	sources := []Source{source("a", 0, time.Second), announce(source("b", 0, time.Second)), announce(peer("p", 0, 1)), announce(peer("q", 0, 1))}
	if v, err := Select(sources, 10*time.Second, 0, 0); err != nil || v.Leap != 0 {
		t.Errorf("%+v, %v", v, err)
	}
	announce(sources[0])
	if v, err := Select(sources, 10*time.Second, 0, 0); err != nil || v.Leap != 1 {
		t.Errorf("%+v, %v", v, err)
	}
}

// TestNoPeersTakeTheTruthFromAMajorityOfServers: whatever they say, however many of the servers are silent.
func TestNoPeersTakeTheTruthFromAMajorityOfServers(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	around := func(scale float64) time.Duration { return time.Duration((rnd.Float64() - 0.5) * scale) }
	votes, helped, blocked := 0, 0, 0
	for range 200_000 {
		n, p := rnd.IntN(MaxSources+1), rnd.IntN(5)
		liars := max(n-1, 0) / 2
		var sources []Source
		answering, lying := 0, 0
		for i := range n {
			dist := time.Duration(rnd.Float64()*20e6) + time.Millisecond
			s := source(fmt.Sprint("s", i), around(2*float64(dist-time.Millisecond)), dist)
			if i < liars {
				s = source(s.Address, around(200e6), dist)
			}
			if rnd.IntN(3) == 0 {
				s = silent(s)
			} else if answering++; i < liars {
				lying++
			}
			sources = append(sources, s)
		}
		alone, lonely := Select(sources, 10*time.Second, 0, 0)
		for i := range p {
			s := peer(fmt.Sprint("p", i), around(200e6), time.Duration(rnd.Float64()*100e6)+1)
			if rnd.IntN(3) == 0 {
				s = silent(s)
			}
			sources = append(sources, s)
		}
		v, err := Select(sources, 10*time.Second, 0, 0)
		switch {
		case lonely == nil && err != nil:
			if blocked++; n != 1 {
				t.Fatalf("peers silenced %d servers that agreed: %v", n, err)
			}
		case lonely == nil:
			if !v.Earliest.Equal(alone.Earliest) || !v.Latest.Equal(alone.Latest) || v.Leap != alone.Leap || v.Helped {
				t.Fatalf("peers turned %+v into %+v", alone, v)
			}
		case err == nil:
			if helped++; !v.Helped || base.Before(v.Earliest) || base.After(v.Latest) {
				t.Fatalf("%d servers, %d answer, %d lie: %+v does not hold the truth", n, answering, lying, v)
			}
		}
		if err == nil {
			votes++
		}
	}
	if votes < 1000 || helped < 1000 || blocked < 1000 {
		t.Errorf("%d votes, %d with help, %d contradicted: this proves little", votes, helped, blocked)
	}
}

// TestAPeersAnswerThatMakesNoSenseIsNone: nothing of it reaches sums of times.
func TestAPeersAnswerThatMakesNoSenseIsNone(t *testing.T) {
	now := Reading{Raw: time.Hour}
	good := Sample{Raw: time.Hour - time.Second, UTC: base, Distance: time.Second, Leap: 1, Stratum: 1, Verified: true}
	h, err := Heard(now, good)
	if err != nil || h.Leap != 0 || h.Stratum != 0 || h.Verified || h.Raw != good.Raw || !h.UTC.Equal(base) || h.Distance <= good.Distance {
		t.Errorf("%+v, %v", h, err)
	}
	for name, spoil := range map[string]func(*Sample){
		"of the future":   func(s *Sample) { s.Raw = time.Hour + 1 },
		"of another boot": func(s *Sample) { s.Raw = math.MinInt64 },
		"old":             func(s *Sample) { s.Raw = 30 * time.Minute },
		"too good":        func(s *Sample) { s.Distance = 0 },
		"negative":        func(s *Sample) { s.Distance = -time.Second },
		"agrees with all": func(s *Sample) { s.Distance = time.Hour },
		"no time":         func(s *Sample) { s.UTC = time.Time{} },
		"far away":        func(s *Sample) { s.UTC = time.Date(200000, 1, 1, 0, 0, 0, 0, time.UTC) },
	} {
		bad := good
		spoil(&bad)
		if _, err := Heard(now, bad); err == nil {
			t.Errorf("%s: believed", name)
		}
	}
}
