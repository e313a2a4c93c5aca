package ledger

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"guardhouse/appliance/policy"
)

func stamps() *rapid.Generator[policy.Stamp] {
	return rapid.Custom(func(t *rapid.T) policy.Stamp {
		at := rapid.Int64Range(0, 3).Draw(t, "at")
		return policy.Stamp{Earliest: at, Latest: at, Boot: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "boot")}
	})
}

func observationsOfOne() *rapid.Generator[policy.Observation] {
	return rapid.Custom(func(t *rapid.T) policy.Observation {
		return policy.Observation{Kind: policy.ObservedHost, Subject: "s", First: stamps().Draw(t, "first"), Last: stamps().Draw(t, "last"),
			Count: rapid.Uint64Range(0, 3).Draw(t, "count"), Facts: rapid.MapOfN(rapid.SampledFrom([]string{"x", "y"}), rapid.SampledFrom([]string{"1", "2"}), 0, 2).Draw(t, "facts")}
	})
}

func TestObservationsMergeTheSameInAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := observationsOfOne().Draw(t, "a"), observationsOfOne().Draw(t, "b"), observationsOfOne().Draw(t, "c")
		merge := mergeObservations
		if !reflect.DeepEqual(merge(a, b), merge(b, a)) {
			t.Fatalf("not commutative: %+v, %+v", merge(a, b), merge(b, a))
		}
		if !reflect.DeepEqual(merge(merge(a, b), c), merge(a, merge(b, c))) {
			t.Fatal("not associative")
		}
		if !reflect.DeepEqual(merge(a, a), a) {
			t.Fatal("not idempotent")
		}
		if m := merge(a, b); m.Count < a.Count || compareStamps(m.Last, b.Last) < 0 {
			t.Fatal("lost the newer")
		}
	})
}

func TestObservationsAreBoundedAndSurviveARestartButNotDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "observed.db")
	cfg := Config{Log: func(string, ...any) {}, CheckStore: CheckInChild(os.Args[0], "--check-store")}
	o := openObservations(t.Context(), path, cfg)
	for i := range 3000 {
		o.add([]policy.Observation{{Kind: policy.ObservedPending, Subject: fmt.Sprint("h", i), Last: policy.Stamp{Latest: int64(i)}, Count: 1},
			{Kind: "unknown", Subject: "x"}, {Kind: policy.ObservedHost, Subject: string(make([]byte, 300))}})
	}
	if n := len(o.kinds[policy.ObservedPending]); n > 1000 || n < 900 {
		t.Errorf("%d pending hosts", n)
	}
	newest := o.list(policy.ObservedPending, "", 3)
	if one := o.list(policy.ObservedPending, newest[0].Subject, 3); len(one) != 1 || one[0].Subject != newest[0].Subject {
		t.Errorf("of one subject: %v", one)
	}
	if none := o.list("", "nobody", 3); len(none) != 0 {
		t.Errorf("of nobody: %v", none)
	}
	if len(newest) != 3 || newest[0].Subject != "h2999" {
		t.Errorf("%+v", newest)
	}
	kept := len(o.list("", "", 100000))
	if err := o.close(); err != nil {
		t.Fatal(err)
	}
	o = openObservations(t.Context(), path, cfg)
	if n := len(o.list("", "", 100000)); n != kept {
		t.Errorf("%d after a restart, %d before", n, kept)
	}
	o.close()
	b, _ := os.ReadFile(path)
	os.WriteFile(path, b[:5000], 0o600)
	o = openObservations(t.Context(), path, cfg)
	o.add([]policy.Observation{{Kind: policy.ObservedPending, Subject: "h"}})
	if n := len(o.list("", "", 10)); n != 1 {
		t.Errorf("%d after damage", n)
	}
	if err := o.close(); err != nil {
		t.Error(err)
	}
}

func TestWhatIsSeenAgainIsCounted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "observed.db")
	cfg := Config{Log: func(string, ...any) {}, CheckStore: CheckInChild(os.Args[0], "--check-store")}
	o := openObservations(t.Context(), path, cfg)
	for at := range 5 {
		o.add([]policy.Observation{{Kind: policy.ObservedPending, Subject: "h", First: policy.Stamp{Latest: int64(at + 1)}, Last: policy.Stamp{Latest: int64(at + 1)}, Count: 1}})
	}
	if err := o.close(); err != nil {
		t.Fatal(err)
	}
	o = openObservations(t.Context(), path, cfg)
	defer o.close()
	o.add([]policy.Observation{{Kind: policy.ObservedPending, Subject: "h", Last: policy.Stamp{Latest: 9}, Count: 2}})
	if l := o.list(policy.ObservedPending, "", 3); len(l) != 1 || l[0].Count != 7 || l[0].First.Latest != 1 || l[0].Last.Latest != 9 {
		t.Errorf("%+v", l)
	}
	o.add([]policy.Observation{{Kind: policy.ObservedPending, Subject: "h", Count: math.MaxUint64}})
	if l := o.list(policy.ObservedPending, "", 3); l[0].Count != math.MaxUint64 {
		t.Errorf("counted %d", l[0].Count)
	}
}

// TestObservationsAreBoundedWhateverTheFaceSends: the process that sends them talks to strangers.
func TestObservationsAreBoundedWhateverTheFaceSends(t *testing.T) {
	o := &observations{kinds: map[policy.ObservationKind]map[string]policy.Observation{}, dirty: map[observedKey]bool{}}
	for kind := range policy.ObservedBounds {
		o.kinds[kind] = map[string]policy.Observation{}
	}
	long := strings.Repeat("x", 1<<10)
	fine := map[string]string{"source": "192.0.2.1", "verdict": "ok"}
	for name, one := range map[string]policy.Observation{
		"endless facts":   {Kind: policy.ObservedHost, Subject: "s", Facts: map[string]string{"host": long}},
		"facts of a host": {Kind: policy.ObservedHost, Subject: "s", Facts: map[string]string{"verdict": long + long}},
		"endless subject": {Kind: policy.ObservedHost, Subject: long, Facts: fine},
		"endless boot id": {Kind: policy.ObservedHost, Subject: "s", Last: policy.Stamp{Boot: long}, Facts: fine},
	} {
		if o.add([]policy.Observation{one}); len(o.list("", "", 0)) != 0 {
			t.Fatalf("%s: kept", name)
		}
	}
	if o.add([]policy.Observation{{Kind: policy.ObservedPending, Subject: "s", Facts: map[string]string{"certificate": strings.Repeat("x", policy.ObservedBounds[policy.ObservedPending].Facts)}}}); len(o.list("", "", 0)) != 0 {
		t.Fatal("an endless certificate was kept")
	}
	total := 0
	for _, l := range policy.ObservedBounds {
		total += l.Count * (l.Facts + 2*policy.MaxObservedSubject)
	}
	if total > 150<<20 {
		t.Errorf("%d bytes of observations may lie in memory", total)
	}
	o.add([]policy.Observation{{Kind: policy.ObservedHost, Subject: "s", Facts: fine}, {Kind: policy.ObservedPending, Subject: "s", Facts: map[string]string{"spki": long, "certificate": long + long + long + long}}})
	if len(o.list("", "", 0)) != 2 {
		t.Fatal("the control: what is usual was dropped")
	}
}
