//go:build qemu

package site

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"guardhouse/board/lab"
)

// clockNow is what `time status --json` says, as far as the tests look.
type clockNow struct {
	Trusted struct {
		OK               bool
		Earliest, Latest time.Time
	}
	State, Reason, FloorFrom string
	Floor                    time.Time
	Bound, SinceLock         time.Duration
	SinceNetwork             time.Duration
	DriftPPM                 float64
	Sources                  []struct {
		Address, State string
		Offset         time.Duration // from the node's system clock
	}
	Problems []struct{ Kind string }
}

func (s *stage) clock(ctx context.Context) (c clockNow, err error) {
	err = s.JSON(ctx, nil, &c, "time", "status")
	return c, err
}

// clockIs waits until the clock is in a state.
func (s *stage) clockIs(t *testing.T, state string, limit time.Duration) (c clockNow) {
	t.Helper()
	eventually(t, limit, func(ctx context.Context) (err error) {
		if c, err = s.clock(ctx); err == nil && c.State != state {
			err = fmt.Errorf("the clock is %s (%s), not %s", c.State, c.Reason, state)
		}
		return err
	})
	return c
}

// issuesNow has the host attest, and wants a certificate whose dates fit the workstation's clock, which the time servers serve.
func (s *stage) issuesNow(t *testing.T) {
	t.Helper()
	eventually(t, 30*time.Second, func(ctx context.Context) error { return s.certified(ctx) })
	der, err := os.ReadFile(filepath.Join(s.folder("host"), "health.cer"))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	if age := now.Sub(cert.NotBefore); age < 0 || age > 10*time.Minute || cert.NotAfter.Before(now.Add(7*time.Hour)) || cert.NotAfter.After(now.Add(9*time.Hour)) {
		t.Errorf("at %s a health certificate from %s to %s", now.UTC(), cert.NotBefore, cert.NotAfter)
	}
}

func (s *stage) certified(ctx context.Context) error {
	_, err := s.sim(ctx, "host-key", "attest", "--dir", s.folder("host"), "--url", s.URL("/Attestation"))
	return err
}

// TestClockChipThatLies: a machine whose clock chip says 2097, later 2011 and 2099, issues certificates of today by the word of its time
// servers, nothing that it wrote before it knew the time raises the floor, and the chip is set right. OVMF believes years from 1998 to
// 2097 and makes 1999 of 2099, so 2097 is the furthest that the node itself sees.
func TestClockChipThatLies(t *testing.T) {
	t.Parallel()
	s := openStage(t, "test-rtc", Attached)
	boot := func(year int, setUp bool) {
		t.Helper()
		if err := s.BootWith(t.Context(), func(o *lab.NodeOptions) { o.RTC = time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC) }); err != nil {
			t.Fatal(err)
		}
		s.ready(t, setUp)
	}
	boot(2097, false)
	if chip, err := s.Node.ClockChip(within(t, 10*time.Second)); err != nil || chip.Year() != 2097 {
		t.Fatalf("the clock chip says %s, %v: nothing lies here", chip, err)
	}
	repaired := func() {
		t.Helper()
		eventually(t, 10*time.Second, func(ctx context.Context) error {
			chip, err := s.Node.ClockChip(ctx)
			if err == nil && time.Since(chip).Abs() > 5*time.Second {
				err = fmt.Errorf("the clock chip still says %s", chip)
			}
			return err
		})
	}
	setUpRightly(t, s)
	s.guest(t)
	s.issuesNow(t)
	repaired()
	for _, year := range []int{2011, 2099} {
		if err := s.Node.Stop(within(t, 30*time.Second)); err != nil {
			t.Fatal(err)
		}
		boot(year, true)
		c := s.clockIs(t, "locked", 40*time.Second)
		asked := time.Now()
		if now, err := s.clock(t.Context()); err != nil {
			t.Fatal(err)
		} else {
			c = now
		}
		answered, middle := time.Now(), c.Trusted.Earliest.Add(c.Trusted.Latest.Sub(c.Trusted.Earliest)/2)
		if !c.Trusted.OK || c.Trusted.Earliest.After(answered) || c.Trusted.Latest.Before(asked) {
			t.Errorf("after a boot at %d the time is trusted to lie from %s to %s; it was from %s to %s", year, c.Trusted.Earliest, c.Trusted.Latest, asked, answered)
		}
		t.Logf("clock chip at %d: locked %v after the clock began to ask and %v after the network was up, error from %v to %v, bound %v, floor %s (%s)", year, c.SinceLock, c.SinceNetwork,
			middle.Sub(answered).Round(time.Millisecond), middle.Sub(asked).Round(time.Millisecond), c.Bound, c.Floor, c.FloorFrom)
		if age := time.Since(c.Floor); age < 0 || age > time.Hour {
			t.Errorf("the floor after a boot at %d is %s (%s)", year, c.Floor, c.FloorFrom)
		}
		s.issuesNow(t)
		repaired()
		for _, server := range c.Sources {
			if server.State == "selected" && server.Offset.Abs() > time.Second {
				t.Errorf("after a boot at %d the system clock was not set: %+v", year, server)
			}
		}
		for _, p := range c.Problems {
			if p.Kind == "time-undisciplined" {
				t.Errorf("after a boot at %d the system clock can't be set", year)
			}
		}
		if err := s.roll(within(t, 30*time.Second)); err != nil {
			t.Errorf("a roll: %v", err)
		}
	}
	before := 0
	for line := range strings.Lines(s.verb(t, "audit", "tail", "--lines", "200")) {
		if strings.Contains(line, "2097-") || strings.Contains(line, "2011-") || strings.Contains(line, "1999-") || strings.Contains(line, "2099-") {
			t.Errorf("the audit believed the clock chip: %s", line)
		}
		if strings.Contains(line, "time not known") {
			before++
		}
	}
	if before == 0 {
		t.Error("no entry was written before the time was known: this test shows nothing")
	}
}

// TestIssuingStopsAtTheBoundAndReturns: with servers that promise little more than the limit, issuing goes on for a while without any of
// them, stops when the time may be wrong by more, and comes back with them. What needs no clock goes on.
func TestIssuingStopsAtTheBoundAndReturns(t *testing.T) {
	t.Parallel()
	s := openStage(t, "test-holdover", Attached)
	if err := s.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.ready(t, false)
	setUpRightly(t, s)
	s.guest(t)
	const limit = 3 * time.Second
	words := []string{"time", "set"}
	var servers []*lab.Liar
	bound := func(dispersion time.Duration) (c clockNow) {
		t.Helper()
		for _, l := range servers {
			l.Tell(lab.Lie{RootDispersion: dispersion})
		}
		eventually(t, 90*time.Second, func(ctx context.Context) (err error) {
			c, err = s.clock(ctx)
			if err == nil && (c.State != "locked" || c.Bound < dispersion*9/10 || c.Bound > limit) {
				err = fmt.Errorf("%s, bound %s, want %s", c.State, c.Bound, dispersion)
			}
			return err
		})
		return c
	}
	for range 3 {
		l, err := s.Lab.NewLiar()
		if err != nil {
			t.Fatal(err)
		}
		servers, words = append(servers, l), append(words, l.GuestAddr())
	}
	s.verb(t, words...)
	s.verb(t, "service", "set", "--time-limit", limit.String())
	// The worse this machine's clock is known, the faster the bound grows: the rest up to the limit shall last about two minutes.
	c := bound(time.Second)
	rest := max(20*time.Millisecond, time.Duration(c.DriftPPM/1e6*float64(2*time.Minute)))
	if c.DriftPPM == 0 {
		t.Fatal("the clock does not say how well its rate is known")
	}
	t.Logf("drift known to %.0f ppm: servers within %s of the limit, %s of it their distance", c.DriftPPM, rest, c.Bound-time.Second)
	bound(limit - rest - (c.Bound - time.Second))
	s.issuesNow(t)
	for _, l := range servers {
		l.Tell(lab.Lie{Silent: true})
	}
	s.clockIs(t, "holdover", 90*time.Second)
	s.issuesNow(t)
	s.clockIs(t, "stopped", 6*time.Minute)
	err := s.certified(within(t, 20*time.Second))
	if err == nil || !strings.Contains(err.Error(), "Unavailable") {
		t.Errorf("beyond the bound an attestation: %v", err)
	}
	if err := s.roll(within(t, 20*time.Second)); err == nil || !strings.Contains(err.Error(), "Unavailable") {
		t.Errorf("beyond the bound a roll: %v", err)
	}
	s.goesOn(t)
	if why := s.verb(t, "time", "why"); strings.Count(strings.TrimSpace(why), ".") < 3 {
		t.Errorf("time why: %s", why)
	}
	for _, l := range servers {
		l.Tell(lab.Lie{RootDispersion: 10 * time.Millisecond})
	}
	s.clockIs(t, "locked", time.Minute)
	s.issuesNow(t)
}

// goesOn is what needs no clock.
func (s *stage) goesOn(t *testing.T) {
	t.Helper()
	for _, path := range []string{"/Attestation/getinfo", "/Attestation/v2.0/signingCertificates", "/KeyProtection/service/metadata/2014-07/metadata.xml"} {
		eventually(t, 10*time.Second, func(ctx context.Context) error {
			r, err := client().Get(s.URL("") + path)
			if err != nil {
				return err
			}
			defer r.Body.Close()
			if r.StatusCode != 200 {
				return fmt.Errorf("%s: %s", path, r.Status)
			}
			if r.Header.Get("Date") != "" {
				return errors.New("a Date without a trusted time")
			}
			return nil
		})
	}
}
