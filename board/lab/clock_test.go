package lab

import (
	"encoding/hex"
	"fmt"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"guardhouse/appliance/clock"
)

// paper is a clock.Clock over this machine's oscillator that disciplines nothing but itself: the clock of the machine that runs the tests
// is read and never set. Its truth is that machine's clock, which the servers of the lab serve.
type paper struct {
	mu      sync.Mutex
	kernel  *clock.Kernel
	last    clock.Reading
	applied float64
	steps   int
}

func newPaper(t testing.TB, wall time.Time) *paper {
	k, err := clock.OpenKernel()
	if err != nil {
		t.Fatal(err)
	}
	r := k.Read()
	return &paper{kernel: k, last: clock.Reading{Raw: r.Raw, Boot: r.Boot, Wall: wall}}
}

func (p *paper) read() clock.Reading {
	raw := p.kernel.Read().Raw
	passed := raw - p.last.Raw
	passed += time.Duration(float64(passed) * p.applied / 1e6)
	p.last = clock.Reading{Raw: raw, Boot: p.last.Boot + passed, Wall: p.last.Wall.Add(passed)}
	return p.last
}

func (p *paper) Read() clock.Reading {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.read()
}

func (p *paper) Step(utc time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.read()
	p.last.Wall = utc
	p.steps++
	return nil
}

func (p *paper) Rate(ppm float64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.read()
	p.applied = ppm
	return nil
}

func (p *paper) Applied() float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.applied
}

// keep runs a keeper on the servers until the test ends.
func keep(t testing.TB, p *paper, servers []clock.Server, keys ...clock.Key) *clock.Keeper {
	k := clock.New()
	k.Clock, k.Boot, k.Build, k.Log = p, "boot", time.Now().AddDate(0, -1, 0), func(f string, a ...any) { t.Logf(f, a...) }
	k.Query = clock.QueryNTP(p, func(id uint16) (clock.Key, bool) {
		for _, key := range keys {
			if key.ID == id {
				return key, true
			}
		}
		return clock.Key{}, false
	})
	k.Configure(servers, 0)
	done := make(chan struct{})
	ctx := t.Context()
	go func() { defer close(done); k.Run(ctx) }()
	t.Cleanup(func() { <-done })
	return k
}

// until waits for the keeper to be as want says.
func until(t testing.TB, k *clock.Keeper, what string, limit time.Duration, want func(clock.Status) bool) clock.Status {
	t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		s := k.Status()
		if want(s) {
			return s
		}
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s; state %s (%s), sources %+v", limit, what, s.State, s.Reason, s.Sources)
		}
	}
}

func locked(s clock.Status) bool { return s.State == clock.Locked }

// tellsTheTruth compares with this machine's clock, which the servers serve.
func tellsTheTruth(t testing.TB, p *paper, k *clock.Keeper) {
	t.Helper()
	trusted, _ := k.Current()
	lo, hi, ok := trusted.At(p.Read().Boot)
	if now := time.Now(); !ok || now.Before(lo.Add(-time.Millisecond)) || now.After(hi.Add(time.Millisecond)) {
		t.Errorf("trusted %v: the truth %v is not in [%v, %v]", ok, now, lo.Sub(now), hi.Sub(now))
	}
}

func TestTheClockLocksOnRealServersAndRefusesTheirSteps(t *testing.T) {
	l := testLab(t)
	secret := []byte("a key of thirty-two bytes, really")[:32]
	cmac := []byte("sixteen bytes 16")
	file := fmt.Sprintf("7 SHA256 HEX:%s\n8 AES128 HEX:%s\n", hex.EncodeToString(secret), hex.EncodeToString(cmac))
	var list []clock.Server
	var servers []*TimeServer
	for _, key := range []uint16{7, 8, 0, 9} {
		keys := file
		if key == 0 {
			keys = ""
		}
		s, err := l.TimeServerWithKeys(t.Context(), 0, keys)
		if err != nil {
			t.Fatal(err)
		}
		servers = append(servers, s)
		list = append(list, clock.Server{Address: s.Addr(), Key: key})
	}
	p := newPaper(t, time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC))
	k := keep(t, p, list, clock.Key{ID: 7, Algorithm: "sha256", Secret: secret}, clock.Key{ID: 8, Algorithm: "aes128", Secret: cmac},
		clock.Key{ID: 9, Algorithm: "sha256", Secret: secret})
	s := until(t, k, "trusted time of servers of which one does not know the key", 10*time.Second, func(s clock.Status) bool {
		return locked(s) && s.Sources[3].Err != nil && s.Sources[2].State == "selected"
	})
	if s.SinceLock > 4*time.Second {
		t.Errorf("the first majority took %v", s.SinceLock)
	}
	t.Logf("trusted %v after the start, to within %v", s.SinceLock.Round(time.Millisecond), s.Bound())
	tellsTheTruth(t, p, k)
	if !s.Sources[0].Sample.Verified || !s.Sources[1].Sample.Verified || s.Sources[2].Sample.Verified {
		t.Errorf("proved: %+v", s.Sources)
	}
	if s.Sources[3].Sample != nil {
		t.Errorf("a server without the key was heard: %v", s.Sources[3].Err)
	}
	if p.steps != 1 || time.Until(p.Read().Wall).Abs() > 50*time.Millisecond {
		t.Errorf("the clock that said 2099 is off by %v after %d steps", time.Until(p.Read().Wall), p.steps)
	}

	if err := l.Restart(t.Context(), servers[2], time.Hour); err != nil {
		t.Fatal(err)
	}
	until(t, k, "the server that stepped is named", time.Minute, func(s clock.Status) bool { return locked(s) && s.Sources[2].State == "falseticker" })
	tellsTheTruth(t, p, k)
	for _, i := range []int{0, 1} {
		if err := l.Restart(t.Context(), servers[i], time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	s = until(t, k, "servers that stepped together are suspect", 2*time.Minute, func(s clock.Status) bool { return s.State == clock.Suspect })
	if trusted, _ := k.Current(); !trusted.UTC.IsZero() || p.steps != 1 || !strings.Contains(s.Reason, "jumped") {
		t.Errorf("%q, trusted %v, steps %d", s.Reason, trusted, p.steps)
	}
}

// BenchmarkClockBesideChronyd asks four chronyd servers that serve this machine's clock, so the truth is an offset of 0, and reports what
// this clock makes of them beside what chronyd itself does (-Q: four answers of each server, set nothing).
func BenchmarkClockBesideChronyd(b *testing.B) {
	l := testLab(b)
	servers, err := l.TimeServers(b.Context(), 4)
	if err != nil {
		b.Fatal(err)
	}
	who, err := user.Current()
	if err != nil {
		b.Fatal(err)
	}
	var list []clock.Server
	args := []string{"-Q", "-t", "20", "-U", "-u", who.Username, "cmdport 0", "pidfile " + filepath.Join(b.TempDir(), "pid")}
	for _, s := range servers {
		list = append(list, clock.Server{Address: s.Addr()})
		args = append(args, fmt.Sprintf("server 127.0.0.1 port %d iburst", s.Port))
	}
	root, _, err := l.chrony(b.Context(), 0)
	if err != nil {
		b.Fatal(err)
	}
	var ours, theirs, lock time.Duration
	for range b.N {
		p := newPaper(b, time.Now())
		k := keep(b, p, list)
		s := until(b, k, "locked", 10*time.Second, locked)
		lock = max(lock, s.SinceLock)
		time.Sleep(6 * time.Second) // as long as chronyd's four answers take
		ours = max(ours, time.Until(p.Read().Wall).Abs())
		out, err := exec.Command(filepath.Join(root, "usr/sbin/chronyd"), args...).CombinedOutput()
		m := regexp.MustCompile(`System clock wrong by (-?[0-9.]+) seconds`).FindSubmatch(out)
		if m == nil {
			b.Fatalf("chronyd: %v\n%s", err, out)
		}
		sec, err := strconv.ParseFloat(string(m[1]), 64)
		if err != nil {
			b.Fatal(err)
		}
		theirs = max(theirs, time.Duration(sec*1e9).Abs())
	}
	b.ReportMetric(float64(ours.Microseconds()), "µs-error")
	b.ReportMetric(float64(theirs.Microseconds()), "µs-error-chronyd")
	b.ReportMetric(float64(lock.Microseconds())/1e3, "ms-to-lock")
}
