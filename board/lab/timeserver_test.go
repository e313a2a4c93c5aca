package lab

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/beevik/ntp"
)

// cacheDir is shared by the tests of this package, so that Debian packages are fetched once.
func cacheDir(t testing.TB) string {
	t.Helper()
	if d := os.Getenv("GUARDHOUSE_CACHE"); d != "" {
		return d
	}
	d, err := os.UserCacheDir()
	if err != nil {
		return t.TempDir()
	}
	return filepath.Join(d, "guardhouse")
}

func TestLiarLiesAsTold(t *testing.T) {
	l := testLab(t)
	s, err := l.NewLiar()
	if err != nil {
		t.Fatal(err)
	}
	ask := func() (*ntp.Response, error) {
		return ntp.QueryWithOptions(s.Addr(), ntp.QueryOptions{Timeout: 500 * time.Millisecond})
	}
	for _, off := range []time.Duration{0, 250 * time.Millisecond, -time.Hour} {
		s.Tell(Lie{Offset: off})
		r, err := ask()
		if err != nil || r.Validate() != nil {
			t.Fatalf("offset %v: %v %v", off, err, r)
		}
		if d := (r.ClockOffset - off).Abs(); d > 20*time.Millisecond {
			t.Errorf("offset %v: answered %v", off, r.ClockOffset)
		}
	}
	for name, lie := range map[string]Lie{
		"kiss": {Kiss: "RATE"}, "leap": {Leap: 3}, "origin": {WrongOrigin: true}, "silent": {Silent: true},
		"dispersion": {RootDispersion: 20 * time.Second},
	} {
		s.Tell(lie)
		if r, err := ask(); err == nil && r.Validate() == nil {
			t.Errorf("%s: answer was accepted", name)
		}
	}
}
