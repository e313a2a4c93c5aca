package clock

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"guardhouse/appliance/policy"
)

var base = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func source(name string, off, dist time.Duration) Source {
	return Source{Address: name, Sample: &Sample{Wall: base, Boot: 10 * time.Second, Offset: off, Distance: dist}}
}

func TestSelectNeedsAStrictMajorityOfAllConfiguredServers(t *testing.T) {
	for name, tt := range map[string]struct {
		sources []Source
		inside  int
		err     bool
	}{
		"one":                        {[]Source{source("a", 0, time.Second)}, 1, false},
		"two that agree":             {[]Source{source("a", 0, time.Second), source("b", time.Second, time.Second)}, 2, false},
		"two that contradict":        {[]Source{source("a", 0, time.Second), source("b", time.Hour, time.Second)}, 0, true},
		"three, one lies":            {[]Source{source("a", 0, time.Second), source("b", time.Hour, time.Second), source("c", 500*time.Millisecond, time.Second)}, 2, false},
		"three, one silent":          {[]Source{source("a", 0, time.Second), {Address: "b"}, source("c", 0, time.Second)}, 2, false},
		"three, two silent":          {[]Source{source("a", 0, time.Second), {Address: "b"}, {Address: "c"}}, 0, true},
		"four, two against two":      {[]Source{source("a", 0, 1), source("b", 0, 1), source("c", time.Hour, 1), source("d", time.Hour, 1)}, 0, true},
		"none":                       {nil, 0, true},
		"a wide liar spans everyone": {[]Source{source("a", 0, time.Second), source("b", time.Hour, 2*time.Hour), source("c", 0, time.Second)}, 3, false},
	} {
		t.Run(name, func(t *testing.T) {
			v, err := Select(tt.sources, 10*time.Second, time.Minute)
			if (err != nil) != tt.err || len(v.Inside) != tt.inside {
				t.Fatalf("got %v, %v", v, err)
			}
			if err != nil && !errors.Is(err, ErrNoMajority) {
				t.Fatal(err)
			}
		})
	}
}

func TestSelectForgetsOldAnswers(t *testing.T) {
	if _, err := Select([]Source{source("a", 0, time.Second)}, 10*time.Minute, time.Minute); err == nil {
		t.Fatal("an answer of ten minutes ago still counted")
	}
}

func TestTrustRefusesATimeBeforeTheImageWasBuilt(t *testing.T) {
	s := []Source{source("a", 0, time.Second)}
	v, err := Select(s, 10*time.Second, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Trust(v, s, "boot", 10*time.Second, base.Add(time.Hour)); err == nil || !strings.Contains(err.Error(), "before this image was built") {
		t.Fatalf("got %v", err)
	}
}

func TestTrustedTimeContainsTheTruthAndExpires(t *testing.T) {
	s := []Source{source("a", 100*time.Millisecond, time.Second), source("b", -200*time.Millisecond, time.Second), source("c", 0, 2*time.Second)}
	v, err := Select(s, 10*time.Second, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	tt, err := Trust(v, s, "boot", 10*time.Second, base.Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	early, late, ok := tt.At(10 * time.Second)
	if !ok || early.After(base) || late.Before(base) {
		t.Fatalf("%v..%v does not contain %v", early, late, base)
	}
	e2, l2, ok := tt.At(10*time.Second + time.Hour)
	if !ok || l2.Sub(e2) <= late.Sub(early) {
		t.Fatal("the bound did not grow")
	}
	if _, _, ok := tt.At(tt.Expires); ok {
		t.Fatal("an expired time was given")
	}
	if _, _, ok := tt.At(9 * time.Second); ok {
		t.Fatal("a moment before the value was made was given")
	}
	if _, _, ok := (policy.TrustedTime{}).At(0); ok {
		t.Fatal("the zero value gave a time")
	}
}

func TestKeeperNamesTheFalsetickerAndKeepsTheLastValue(t *testing.T) {
	k := New()
	boot := 10 * time.Second
	k.Boot, k.BootTime, k.Log = "boot", func() time.Duration { return boot }, t.Logf
	steps := 0
	k.Step = func(time.Time) error { steps++; return nil }
	fail := false
	k.Query = func(_ context.Context, a string) (Sample, error) {
		if fail {
			return Sample{}, errors.New("unreachable")
		}
		off := time.Duration(0)
		if a == "liar" {
			off = time.Hour
		}
		return Sample{Wall: base.Add(boot - 10*time.Second), Boot: boot, Offset: off, Distance: time.Millisecond}, nil
	}
	k.SetServers([]string{"a", "liar", "b"})
	k.round(t.Context())
	tt, sources, problem := k.Status()
	if problem != "" || tt.UTC.IsZero() || sources[1].State != "falseticker" || sources[0].State != "selected" || steps != 1 {
		t.Fatalf("%+v %+v %q steps %d", tt, sources, problem, steps)
	}
	fail = true
	boot += time.Hour
	k.round(t.Context())
	after, sources, problem := k.Status()
	if after.BootTime != tt.BootTime || problem == "" || sources[0].State != "unreachable" {
		t.Fatalf("%+v %+v %q", after, sources, problem)
	}
	fail = false
	k.round(t.Context())
	if newer, _, _ := k.Status(); newer.BootTime != boot || steps != 1 {
		t.Fatalf("%+v steps %d", newer, steps)
	}
}

func TestKeeperWithoutServersSaysWhoseTurnItIs(t *testing.T) {
	k := New()
	k.BootTime, k.Log = func() time.Duration { return 0 }, t.Logf
	k.round(t.Context())
	if _, _, problem := k.Status(); problem != "the records that name the time servers have not come yet" {
		t.Errorf("before the records came: %q", problem)
	}
	k.SetServers(nil)
	k.round(t.Context())
	if _, _, problem := k.Status(); problem != "no time server is configured" {
		t.Errorf("with records that name none: %q", problem)
	}
}
