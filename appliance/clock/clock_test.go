package clock

import (
	"errors"
	"testing"
	"time"
)

var base = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func source(name string, off, dist time.Duration) Source {
	return Source{Server: Server{Address: name}, Sample: &Sample{Raw: 10 * time.Second, UTC: base.Add(off), Distance: dist}}
}

func keyed(s Source) Source {
	s.Key, s.Sample.Verified = 7, true
	return s
}

func TestSelectNeedsAStrictMajorityOfAllConfiguredServers(t *testing.T) {
	silent := Source{Server: Server{Address: "silent"}}
	forger := source("forger", time.Hour, time.Second)
	forger.Key = 7 // it should prove and did not
	peer := source("peer", 0, time.Second)
	peer.Peer = true
	for name, tt := range map[string]struct {
		sources []Source
		inside  int
		err     bool
	}{
		"one":                        {[]Source{source("a", 0, time.Second)}, 1, false},
		"two that agree":             {[]Source{source("a", 0, time.Second), source("b", time.Second, time.Second)}, 2, false},
		"two that contradict":        {[]Source{source("a", 0, time.Second), source("b", time.Hour, time.Second)}, 0, true},
		"three, one lies":            {[]Source{source("a", 0, time.Second), source("b", time.Hour, time.Second), source("c", 500*time.Millisecond, time.Second)}, 2, false},
		"three, one silent":          {[]Source{source("a", 0, time.Second), silent, source("c", 0, time.Second)}, 2, false},
		"three, two silent":          {[]Source{source("a", 0, time.Second), silent, silent}, 0, true},
		"four, two against two":      {[]Source{source("a", 0, 1), source("b", 0, 1), source("c", time.Hour, 1), source("d", time.Hour, 1)}, 0, true},
		"none":                       {nil, 0, true},
		"a wide liar spans everyone": {[]Source{source("a", 0, time.Second), source("b", time.Hour, 2*time.Hour), source("c", 0, time.Second)}, 3, false},
		"two proved against three":   {[]Source{keyed(source("a", 0, 1)), keyed(source("b", 0, 1)), source("c", time.Hour, 1), source("d", time.Hour, 1), source("e", time.Hour, 1)}, 2, false},
		"one proved has one voice":   {[]Source{keyed(source("a", time.Hour, 1)), source("b", 0, 1), source("c", 0, 1)}, 2, false},
		"keys without proof":         {[]Source{forger, forger, source("c", 0, 1), source("d", 0, 1), source("e", 0, 1)}, 3, false},
		"a peer helps":               {[]Source{source("a", 0, time.Second), peer, silent}, 2, false},
		"peers don't lead":           {[]Source{peer, peer, silent}, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			v, err := Select(tt.sources, 10*time.Second, 0, FreshPPM)
			if (err != nil) != tt.err || len(v.Inside) != tt.inside {
				t.Fatalf("got %v, %v", v, err)
			}
			if err != nil && !errors.Is(err, ErrNoMajority) {
				t.Fatal(err)
			}
		})
	}
}

// TestALiarAtTheEdgeDoesNotChooseTheTime: the moment that most intervals contain is the liar's choice; the promise is for the majority.
func TestALiarAtTheEdgeDoesNotChooseTheTime(t *testing.T) {
	ms := time.Millisecond
	v, err := Select([]Source{source("a", 0, 10*ms), source("b", ms, 10*ms), source("c", -2*ms, 10*ms), source("liar", 17*ms, 9500*time.Microsecond)}, 10*time.Second, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if base.Before(v.Earliest) || base.After(v.Latest) {
		t.Errorf("the truth of three honest servers is not in [%v, %v]", v.Earliest.Sub(base), v.Latest.Sub(base))
	}
}

func TestOldAnswersCountForLess(t *testing.T) {
	v, err := Select([]Source{source("a", 0, time.Second)}, 10*time.Second+time.Hour, 0, FreshPPM)
	if want := 2*time.Second + 2*360*time.Millisecond; err != nil || v.Latest.Sub(v.Earliest) != want {
		t.Errorf("after an hour the interval is %v, not %v (%v)", v.Latest.Sub(v.Earliest), want, err)
	}
}
